"""A whole label-budget study on phantoms: what it writes, what may be added to it, and what kill -9 does to it.

The test of killing starts this file as a script. The script imports oligovox once and forks a child for every process of the study.

python test_budget.py ROOT
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from oligovox.errors import LabelError, RunError, SettingsError

RULES = {"sharp": {"classical": "flair_threshold", "settings": {"smoothing_mm": [0.0]}}}
BLURRED = {"blurred": {"classical": "flair_threshold", "settings": {"smoothing_mm": [2.0]}}}
TRAINING = {"threads": 1, "tensorboard": "off", "checkpoint_every": 1}
ARMS = {
    **RULES,
    "scratch": {"start": "scratch"},
    "matched": {"start": "scratch", "extra_steps": 2},
    "masked": {"start": "masked_reconstruction", "settings": {"block": 4}},
}


def content(**changes: Any) -> dict[str, Any]:
    """A study that takes seconds."""
    given = {
        "name": "tiny", "cohorts": {"phantom": {"bids": "phantom"}}, "prepare": {"modalities": ["T1w", "T2w", "FLAIR"]},
        "split": {"test": 2, "validation": 1}, "network": {"settings": {"preset": "nano"}}, "counts": [1, 2], "draws": 2,
        "lr": [1.0e-3], "arms": RULES,
        "pretrain": {"patch": [16, 16, 16], "training": {**TRAINING, "steps": 2}},
        "finetune": {"patch": [16, 16, 16], "training": {**TRAINING, "steps": 3}},
    }  # fmt: skip
    return given | changes


def written(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(content(**changes), sort_keys=False))
    return path


@pytest.fixture
def home(make_phantom: Callable[..., Path], tmp_path: Path) -> Path:
    make_phantom(tmp_path / "phantom", subjects=7, labelled=7, side=20)
    return tmp_path


def table(out: Path) -> list[dict[str, str]]:
    with (out / "budget.tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_a_study_from_file_to_page_with_shares_and_additions(home: Path) -> None:
    from oligovox import experiment

    out, file = home / "out", written(home / "study.yaml")
    half = experiment.budget(file, out, job="1/2")
    assert (half["finished"], half["planned"]) == (2, 4)
    assert "Not finished: 2 of 4 runs are missing" in (out / "budget.html").read_text()
    whole = experiment.budget(file, out, job="2/2")
    assert (whole["finished"], whole["study"]) == (4, half["study"])
    frozen = (out / "study.yaml").read_bytes()
    assert hashlib.sha256(frozen).hexdigest().startswith(whole["study"])
    assert frozen.startswith(b"# Frozen 20")
    assert whole["study"] in (out / "budget.html").read_text()
    assert not list((out / "claims").glob("*_*")), "every claim is given back"

    people = json.loads((out / "people.json").read_text())
    assert set(people["test"]).isdisjoint({*people["validation"], *people["labels"]})
    assert len({*people["test"], *people["validation"], *people["labels"]}) == 7
    for draw in range(2):
        runs = [json.loads((out / f"runs/sharp/n{n}_d{draw}_s0/scores.json").read_text()) for n in (1, 2)]
        assert runs[1]["labels"][:1] == runs[0]["labels"], "fewer labels are the first of more"
        assert runs[1]["labels"] == people["order_of_draw"][str(draw)]
        assert {*runs[1]["labels"]} <= {*people["labels"]}
        assert set(runs[1]["scores"]) == set(people["test"])
    rows = table(out)
    assert {(row["exploratory"], row["arm"]) for row in rows} == {("false", "sharp")}
    dice = [float(row["value"]) for row in rows if row["metric"] == "dice"]
    assert len(dice) == 2 * 2 * 2
    assert min(dice) > 0.5

    times = {path: path.stat().st_mtime_ns for path in out.rglob("scores.json")}
    written(file, arms=BLURRED | RULES, draws={1: 3, 2: 2}, counts=[1, 2])
    more = experiment.budget(file, out)
    assert (more["finished"], more["study"]) == (5 + 5, whole["study"])
    assert times == {path: path.stat().st_mtime_ns for path in times}, "a finished run was done again"
    assert (out / "study.yaml").read_bytes() == frozen
    added = {(r["arm"], r["count"], r["draw"]) for r in table(out) if r["exploratory"] == "true"}
    assert added == {
        ("sharp", "1", "2"),
        *(("blurred", n, d) for n, d in (("1", "0"), ("1", "1"), ("1", "2"), ("2", "0"), ("2", "1"))),
    }
    page = (out / "budget.html").read_text()
    assert "exploratory: arm blurred, 1 draw of 1 label" in page

    refused = (
        ({"arms": BLURRED, "draws": {1: 3, 2: 2}}, "arm 'sharp' is gone"),
        ({"arms": BLURRED | RULES, "draws": 2}, "draws for 1 labels: 2, were 3"),
        (
            {"arms": BLURRED | RULES, "draws": {1: 3, 2: 2}, "metric": "lesion_f1"},
            'metric = "dice", asked for "lesion_f1"',
        ),
        ({"arms": BLURRED | {"sharp": BLURRED["blurred"]}, "draws": {1: 3, 2: 2}}, r"arms\.sharp\.settings"),
        ({"arms": BLURRED | RULES, "draws": {1: 3}, "counts": [1]}, "counts: 2 is gone"),
        ({"arms": BLURRED | RULES, "draws": {1: 3, 2: 2}, "seeds": [1, 0]}, "expected those that were there"),
    )
    files = {path for path in out.rglob("*") if path.is_file()}
    for change, message in refused:
        with pytest.raises(SettingsError, match=message) as error:
            experiment.budget(written(file, **change), out)
        assert "\n" not in str(error.value)
        assert "the study was frozen on" in str(error.value)
    assert files == {path for path in out.rglob("*") if path.is_file()}


def test_a_worker_that_fails_says_why_and_leaves_no_claim(home: Path) -> None:
    from oligovox import experiment

    out, file = home / "out", written(home / "study.yaml")
    experiment.budget(file, out, job="1/4")
    person = json.loads((out / "people.json").read_text())["test"][0]
    image = out / "store" / "cases" / f"sub-{person}" / "image.npy"
    moved = image.rename(home / "image.npy")
    with pytest.raises(RunError, match=r"worker \d ended with 1: CohortError: .*image\.npy: cannot be read") as error:
        experiment.budget(file, out, workers=2)
    assert "\n" not in str(error.value)
    moved.rename(image)
    done = experiment.budget(file, out, workers=2)
    assert (done["finished"], done["planned"]) == (4, 4)
    assert [path.name for path in (out / "claims").iterdir() if not path.name.startswith(".")] == []


def test_each_worker_has_a_gpu_of_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from oligovox.experiment.budget_run import _devices

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-ab12")
    assert _devices() == ["2", "GPU-ab12"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert _devices() == []


def test_what_cannot_be_used_is_said_before_anything_is_written(home: Path) -> None:
    from oligovox import experiment

    out, start = home / "out", {"a": {"start": "generative", "settings": {"blok": 8}}}
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"arms": start}, SettingsError, "did you mean 'block'"),
        ({"counts": [6]}, LabelError, "lower"),
        ({"arms": ARMS, "finetune": {"patch": [15, 16, 16]}}, SettingsError, "multiple"),
        (
            {"arms": {"t": {"classical": "flair_threshold", "settings": {"sequence": "QSM"}}}},
            SettingsError,
            "QSM is not prepared",
        ),
        ({"split": {"test": ["99"], "validation": 1}}, Exception, "99"),
    ]
    for change, kind, message in wrong:
        with pytest.raises(kind, match=message):
            experiment.budget(written(home / "study.yaml", **change), out)
    with pytest.raises(SettingsError, match="expected K/N"):
        experiment.budget(written(home / "study.yaml"), out, job="3/2")
    assert not out.exists()
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(SettingsError, match="not empty and not a study"):
        experiment.budget(home / "study.yaml", out)


def test_killed_and_gone_on_with_by_two_processes_on_one_store(
    make_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    make_phantom(tmp_path / "phantom", subjects=7, labelled=7, side=20)
    done = subprocess.run([sys.executable, __file__, tmp_path], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr


# --- the script --------------------------------------------------------------------------------------------------------------------


def killing(root: Path) -> None:
    """A study is killed in the middle of a run; two processes end it together, while a second study uses the same store."""
    wait(start(root / "prepared", "prepare", root / "phantom", root / "store", "--workers", 1))
    both = {"cohorts": {}, "prepare": None, "store": "store", "arms": ARMS, "draws": 1, "lr": [1.0e-3, 3.0e-3]}
    study = written(root / "study.yaml", **both)
    command = ["budget", study, "--out", root / "killed"]
    first = start(root / "first", *command)
    until(lambda: len(scores(root / "killed")) >= 2 and running(root / "killed"), "no run is under way")
    os.kill(first, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) == -signal.SIGKILL, "it ended before it was killed"
    before = {path: path.stat().st_mtime_ns for path in (root / "killed").rglob("*.json") if path.name in RESULTS}
    assert [p for p in (root / "killed" / "claims").iterdir() if not p.name.startswith(".")], (
        "the dead one's claim stands"
    )

    words = [root / "second", root / "third", root / "other"]
    children = [start(words[0], *command), start(words[1], *command)]
    children.append(start(words[2], "budget", study, "--out", root / "whole"))
    for child in children:
        wait(child)
    assert before == {path: path.stat().st_mtime_ns for path in before}, "something finished was done again"
    did = [re.findall(r"^\d+ of \d+: (\S+)$", path.read_text(), re.MULTILINE) for path in words]
    assert len(did[2]) == len(set(did[2])) == 6 + 1 + 8
    assert not {*did[0]} & {*did[1]}, "a piece of work was done twice"
    assert len({*did[0], *did[1]}) == len(did[2]) - len(before)
    assert len(scores(root / "killed")) == len(scores(root / "whole")) == 8
    for path in scores(root / "whole"):
        one, two = (json.loads((root / out / path).read_text()) for out in ("whole", "killed"))
        assert one["scores"] == two["scores"], path
        assert (one["labels"], one.get("lr"), one["steps"]) == (two["labels"], two.get("lr"), two["steps"]), path
    chosen = [json.loads((root / out / "chosen.json").read_text())["arms"] for out in ("whole", "killed")]
    assert chosen[0] == chosen[1]
    assert list(chosen[0]) == ["scratch", "matched", "masked"]
    assert {len(arm["validation"]) for arm in chosen[0].values()} == {2}, "every arm has the same trials"
    steps = {arm: json.loads((root / f"whole/runs/{arm}/n1_d0_s0/scores.json").read_text())["steps"] for arm in ARMS}
    assert steps == {"sharp": 0, "scratch": 3, "matched": 5, "masked": 3}
    assert not list((root / "killed").rglob("runs/**/checkpoints"))
    content = json.loads((root / "killed" / "budget.json").read_text())
    assert content["report"]["finished"] == 8
    assert len(content["sentences"]) == 2 * 4, "threshold, matched, masked − scratch and masked − matched"
    assert all("too few draws to tell" in words for words in content["sentences"])
    assert (root / "killed" / "curves.png").stat().st_size > 10_000


RESULTS = ("scores.json", "trial.json", "pretrained.json")


def start(said: Path, *arguments: object) -> int:
    """A child that runs this command line and says what it says into a file; its number."""
    if child := os.fork():
        return child
    code = 1
    try:
        with said.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv = ["oligovox", *map(str, arguments)]
        cli.main()
        code = 0
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, "\n".join(
        path.read_text()[-800:] for path in ROOT.iterdir() if path.is_file() and not path.suffix
    )


def until(true: Callable[[], bool], message: str) -> None:
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < 200, message
        time.sleep(0.001)


def scores(out: Path) -> list[Path]:
    return sorted(path.relative_to(out) for path in out.glob("runs/*/*/scores.json"))


def running(out: Path) -> bool:
    """Whether a run has taken a step and is not scored yet."""
    logs = out.glob("runs/*/*/log.jsonl")
    return any(log.stat().st_size and not log.with_name("scores.json").exists() for log in logs)


if __name__ == "__main__":
    import torch

    from oligovox import cli
    from warm import import_all

    import_all()  # before the forks, since it takes seconds
    torch.set_num_threads(1)
    ROOT = Path(sys.argv[1])
    killing(ROOT)
