"""Work that two studies have in common is done once: from a folder, with models and store; from one file, trials and runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from oligovox import experiment
from oligovox.cohort.bids import read_bids
from oligovox.cohort.manifest import Cohort
from oligovox.errors import LabelError, RunError, SettingsError
from oligovox.experiment import budget_ground
from oligovox.experiment.budget_jobs import NUMERICS
from oligovox.experiment.budget_plan import read_study
from oligovox.experiment.cohorts import together

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


def with_test_part(phantom: Path, table: Path) -> Path:
    """Seven people with a label; 01 to 03 are the folder's own test part, 03 has no label."""
    cases = [replace(c, info={"part": "test"}) if c.person <= "03" else c for c in read_bids(phantom).cases]
    Cohort(cases=tuple(replace(c, label=None) if c.person == "03" else c for c in cases)).save(table)
    return table


def test_nobody_of_a_test_part_is_learned_from_whoever_goes_on(
    make_phantom: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with_test_part(make_phantom(tmp_path / "phantom", subjects=7, labelled=7, side=20), tmp_path / "parts.tsv")
    semi = {"start": "scratch", "finetune": {"semi": {"name": "mean_teacher"}}}
    given = {
        "cohorts": {"parts": {"table": "parts.tsv"}}, "split": {"test": 1, "validation": 1}, "lr": [1.0e-3],
        "arms": {"masked": OLD["masked"], "semi": semi, "sharp": OLD["sharp"]},
    }  # fmt: skip
    file, old = written(tmp_path / "parts.yaml", **given), tmp_path / "old"
    with monkeypatch.context() as patch:  # killed when the store is there, and nobody is drawn yet
        patch.setattr(budget_ground, "check_metric", lambda *_: (_ for _ in ()).throw(RunError("killed")))
        with pytest.raises(RunError):
            experiment.budget(file, old)
    experiment.budget(file, old)
    assert "3, of whom 1 tested on and 0 learned from" in " ".join(capfd.readouterr().err.split())
    experiment.budget(file, tmp_path / "new", reuse=old)
    experiment.budget(file, tmp_path / "alone", reuse=old / "records.jsonl")
    for out in (old, tmp_path / "new", tmp_path / "alone"):
        people = json.loads((out / "people.json").read_text())
        assert {*people["test"], *people["apart"]} == {"01", "02", "03"}
        assert {*people["validation"], *people["labels"]} == {"04", "05", "06", "07"}
        assert {*people["order_of_draw"]["0"]} <= {*people["labels"]}
        for result in results(out).values():
            assert not {*result.get("people", ()), *result.get("labels", ())} & {"01", "02", "03"}
    for model in old.glob("runs/*/*/model/model.json"):
        assert not {*json.loads(model.read_text())["trained_on"]} & {"01", "02", "03"}

    leaky = json.loads((old / "people.json").read_text())
    leaky["labels"] += leaky.pop("apart")  # as an earlier version had it
    (old / "people.json").write_text(json.dumps(leaky))
    with pytest.raises(
        SettingsError, match=r"learns from 2 people of the folder's own test part, .*choose another --out"
    ):
        experiment.budget(file, old)
    with pytest.raises(SettingsError, match="the other study kept other people of the test part apart"):
        experiment.budget(file, tmp_path / "third", reuse=old)
    assert results(tmp_path / "third") == {}


def test_a_cohort_of_which_all_are_a_test_part_is_not_learned_from_by_its_name(phantom: Path, tmp_path: Path) -> None:
    with_test_part(phantom, tmp_path / "parts.tsv")
    here, elsewhere = {"table": "parts.tsv"}, {"bids": "phantom"}
    named = {"test": 1, "validation": 0, "labels": ["here"]}
    file = written(tmp_path / "two.yaml", cohorts={"here": here, "else": elsewhere}, split=named, lr=[1.0e-3])
    split = budget_ground._draw(read_study(file), together({k: c.read() for k, c in read_study(file).cohorts.items()}))
    assert split.train == ("here_04", "here_05", "here_06")
    whole = Cohort.load(tmp_path / "parts.tsv")
    Cohort(cases=whole.cases[:3]).save(tmp_path / "parts.tsv")
    with pytest.raises(LabelError, match="'here' to learn from, of which everyone labelled is in a test part"):
        experiment.budget(file, tmp_path / "out")


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
    earlier = (tmp_path / "old" / "records.jsonl").read_text().replace(f'"numerics": {NUMERICS}, ', "")
    (tmp_path / "earlier.jsonl").write_text(earlier)
    same = written(tmp_path / "second.yaml", arms=rules)
    with pytest.raises(SettingsError, match=rf"by code that gave other results \(numerics 1, now {NUMERICS}\)"):
        experiment.budget(same, tmp_path / "new", reuse=tmp_path / "earlier.jsonl")
    assert not results(tmp_path / "new")
    shutil.rmtree(tmp_path / "new")
    other = written(tmp_path / "second.yaml", arms={"sharp": {**rules["sharp"], "settings": {"smoothing_mm": [2.0]}}})
    experiment.budget(other, tmp_path / "new", reuse=tmp_path / "old")
    assert not any("taken_from" in result for result in results(tmp_path / "new").values()), "it is another arm"


def test_a_folder_that_earlier_code_began_is_shown_and_not_gone_on_with(
    make_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    make_phantom(tmp_path / "phantom", subjects=6, labelled=6, side=20)
    rules, out = {"sharp": OLD["sharp"]}, tmp_path / "out"
    file = written(tmp_path / "study.yaml", arms=rules)
    experiment.budget(file, out)
    for place, result in results(out).items():
        assert result.pop("numerics") == NUMERICS
        (out / place).write_text(json.dumps(result))
    before = results(out)
    assert experiment.budget(file, out)["finished"] == 1  # nothing is left to do
    more = written(file, arms=rules | {"soft": {**rules["sharp"], "settings": {"smoothing_mm": [2.0]}}})
    with pytest.raises(SettingsError, match=rf"numerics 1, now {NUMERICS}\); choose another --out, or go on with"):
        experiment.budget(more, out)
    assert results(out) == before
