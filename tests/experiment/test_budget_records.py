"""Work that two studies have in common is done once: from a folder, with models and store; from one file, trials and runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from oligovox import experiment
from oligovox.errors import SettingsError

TRAINING = {"threads": 1, "tensorboard": "off", "steps": 2}
OLD = {
    "sharp": {"classical": "flair_threshold"},
    "masked": {"start": "masked_reconstruction", "settings": {"block": 4}},
}
NEW = {"scratch": {"start": "scratch"}, **OLD}


def written(path: Path, **changes: Any) -> Path:
    stage = {"patch": [16, 16, 16], "training": TRAINING}
    given = {
        "name": path.stem, "cohorts": {"phantom": {"bids": "phantom"}}, "prepare": {"modalities": ["T1w", "FLAIR"]},
        "split": {"test": 2, "validation": 1}, "network": {"settings": {"preset": "nano"}}, "counts": [1], "draws": 1,
        "lr": [1.0e-3, 3.0e-3], "tune": {"count": 1}, "arms": OLD, "pretrain": stage, "finetune": stage,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(given | changes, sort_keys=False))
    return path


def results(out: Path) -> dict[str, dict[str, Any]]:
    names = ("scores.json", "trial.json", "pretrained.json")
    files = (path for path in out.rglob("*.json") if path.name in names)
    return {path.relative_to(out).as_posix(): json.loads(path.read_text()) for path in files}


def test_what_two_studies_have_in_common_is_done_once(make_phantom: Callable[..., Path], tmp_path: Path) -> None:
    make_phantom(tmp_path / "phantom", subjects=6, labelled=6, side=20)
    old = tmp_path / "old"
    first = experiment.budget(written(tmp_path / "first.yaml"), old)
    before = results(old)
    assert len(before) == 1 + 2 + 2

    more = written(tmp_path / "more.yaml", arms=NEW, title="with scratch", counts=[1, 2])
    beside = experiment.budget(more, tmp_path / "beside", reuse=old)
    after = results(tmp_path / "beside")
    assert {place for place, result in after.items() if result.get("taken_from") == first["study"]} == set(before)
    assert {place: {k: v for k, v in after[place].items() if k != "taken_from"} for place in before} == before
    assert (beside["finished"], len(after)) == (6, 5 + 2 + 4)
    page = (tmp_path / "beside" / "budget.html").read_text()
    assert f"2 of 6 runs were not computed in this study but taken over from study {first['study']}" in page
    link, own = (root / "store" / "store.json" for root in (old, tmp_path / "beside"))
    assert own.read_bytes() == link.read_bytes()

    alone = tmp_path / "alone"
    experiment.budget(written(tmp_path / "same.yaml", arms=NEW), alone, reuse=tmp_path / "beside" / "records.jsonl")
    found = results(alone)
    assert all("taken_from" in result for result in found.values()), "every run was there, so nothing was trained"
    assert not (alone / "pretrain").exists(), "a start that no run needs any more is not trained again"
    for place, result in found.items():
        for person, row in result.get("scores", {}).items():
            defined = {metric: value for metric, value in after[place]["scores"][person].items() if value is not None}
            assert {m for m, value in row.items() if value is not None} == set(defined)
            assert {m: row[m] for m in defined} == pytest.approx(defined, rel=1e-5), "six digits are kept"


def test_another_ground_is_refused(make_phantom: Callable[..., Path], tmp_path: Path) -> None:
    make_phantom(tmp_path / "phantom", subjects=6, labelled=6, side=20)
    rules = {"sharp": OLD["sharp"]}
    experiment.budget(written(tmp_path / "first.yaml", arms=rules), tmp_path / "old")
    for change, message in (
        ({"metric": "lesion_f1"}, r"the other study has metric = "),
        ({"finetune": {"patch": [16, 16, 16], "training": TRAINING | {"steps": 3}}}, r"finetune\.training\.steps = 2"),
        ({"seeds": [4]}, r"seeds\[0\] = 0, asked for 4"),
    ):
        asked = written(tmp_path / "second.yaml", arms=rules, **change)
        with pytest.raises(SettingsError, match=message):
            experiment.budget(asked, tmp_path / "new", reuse=tmp_path / "old")
    assert not (tmp_path / "new").exists()
    (tmp_path / "cut.jsonl").write_text('{"study": ')
    for source in (tmp_path / "cut.jsonl", tmp_path / "none.jsonl", tmp_path / "phantom"):
        with pytest.raises(SettingsError, match="expected the folder of a study"):
            experiment.budget(written(tmp_path / "second.yaml", arms=rules), tmp_path / "new", reuse=source)
    other = written(tmp_path / "second.yaml", arms={"sharp": {**rules["sharp"], "settings": {"smoothing_mm": [2.0]}}})
    experiment.budget(other, tmp_path / "new", reuse=tmp_path / "old")
    assert not any("taken_from" in result for result in results(tmp_path / "new").values()), "it is another arm"
