"""The model that goes out: whose labels it learns from, for how long, and what is said of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from oligovox import experiment
from oligovox.engine.checkpoint import Checkpoints, read_state
from oligovox.engine.log import RunLog, read_log
from oligovox.engine.model import read_description
from oligovox.errors import LabelError
from oligovox.experiment.final import CAUTION, best_arm
from oligovox.experiment.recipe import Recipe, read_recipe
from oligovox.settings import parse

TINY = Path(__file__).parents[1] / "tiny.yaml"
ALL = ["01", "02", "03", "04", "05", "06"]


@pytest.fixture(scope="module")
def reported(make_phantom: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run as it was before anybody asked for a final model: of six labelled people two teach, one validates, two are tested."""
    root = tmp_path_factory.mktemp("final")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHANTOM", str(make_phantom(root / "phantom")))
        experiment.run(TINY, root / "run")
        yield root / "run"


def state_of(run: Path, which: str) -> Any:
    folder = Checkpoints(run / "checkpoints").find(which)  # type: ignore[arg-type]
    assert folder is not None
    return read_state(folder)


def test_it_learns_from_every_label_and_may_be_asked_for_when_the_page_is_there(reported: Path, tmp_path: Path) -> None:
    run = shutil.copytree(reported, tmp_path / "run")
    assert not (run / "final").exists()
    assert "\nfinal:" not in (run / "recipe.yaml").read_text()
    before = {path: path.read_bytes() for name in ("pretrain", "arms") for path in sorted((run / name).rglob("*.*"))}

    done = experiment.run(TINY, run, ["final=all"])
    assert before == {path: path.read_bytes() for path in before}
    description, state = read_description(Path(done["final"])), state_of(run / "final", "last")
    assert description.trained_on == tuple(ALL)
    assert [name[-2:] for name in state.identity["describe"]["streams"]["0"]["cases"]] == ALL
    arm = run / "arms" / best_arm(read_recipe(run / "recipe.yaml"), run)
    chosen = state_of(arm, "best")
    assert state.step == chosen.best_step
    lr, other = ([row["lr"] for row in read_log(folder / "log.jsonl")] for folder in (run / "final", arm))
    assert lr == other[: state.step]
    assert description.parent == read_description(arm / "model").parent
    (said,) = json.loads((run / "report.json").read_text())["report"]["data"]["warnings"]
    assert said == f"The model in final/ is '{arm.name}', {CAUTION}."
    assert CAUTION in (run / "report.html").read_text()

    assert "final" not in experiment.run(TINY, run)
    assert CAUTION not in (run / "report.html").read_text()


def test_killed_while_it_learns_and_started_again(
    reported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        """Stands for a process that ends without a word."""

    def dying(log: RunLog, row: dict[str, Any]) -> None:
        if log.path.parent.name == "final" and row["step"] == 2:
            raise Killed
        write(log, row)

    whole, parts = (shutil.copytree(reported, tmp_path / name) for name in ("whole", "parts"))
    experiment.run(TINY, whole, ["final=all"])
    write = RunLog.write
    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "write", dying)
        with pytest.raises(Killed):
            experiment.run(TINY, parts, ["final=all"])
    assert len(read_log(parts / "final" / "log.jsonl")) == 2
    assert not (parts / "final" / "model").exists()
    experiment.run(TINY, parts, ["final=all"])
    for name in ("weights.safetensors", "model.json"):
        assert (whole / "final" / "model" / name).read_bytes() == (parts / "final" / "model" / name).read_bytes()


def test_a_strategy_that_would_have_no_exam_left_is_said_before_anything_runs(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHANTOM", str(phantom))
    with pytest.raises(LabelError, match="final: all leaves mean_teacher no exam without a label"):
        experiment.run(TINY, tmp_path / "run", ["final=all", "finetune.semi.name=mean_teacher"])
    assert not (tmp_path / "run").exists()


def test_the_best_arm_where_the_score_of_a_step_is_undefined(tmp_path: Path) -> None:
    found = {"scratch": [0.2, None, 0.5], "pretrained": [None, 0.4, None], "other": [None]}
    for name, values in found.items():
        log = tmp_path / "arms" / name / "log.jsonl"
        log.parent.mkdir(parents=True)
        rows = [{"step": step, "validation": {"dice": dice}} for step, dice in enumerate(values)]
        log.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": 9}]))
    arms = {name: {"start": "scratch"} for name in found}
    given = {"name": "x", "cohorts": {"x": {"bids": "x"}}, "prepare": {"modalities": ["FLAIR"]}, "arms": arms}
    assert best_arm(parse(Recipe, given, "x"), tmp_path) == "scratch"
