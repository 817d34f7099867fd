"""What the page of a study says beside the numbers, from stand-in results."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from oligovox.cohort.splits import Split
from oligovox.experiment import budget_result
from oligovox.experiment.budget_freeze import Frozen
from oligovox.experiment.budget_plan import Run, Study
from oligovox.files import write_json
from oligovox.report.budget_content import BudgetReport
from oligovox.settings import parse

PEOPLE = [f"p{k:02d}" for k in range(12)]
SEMI = {"finetune": {"semi": {"name": "mean_teacher"}}}
ARMS: dict[str, Any] = {
    "scratch": {"start": "scratch"},
    "matched scratch": {"start": "scratch", "extra_steps": 1000},
    "pre-trained": {"start": "generative", "settings": {"block": 8}},
    "semi": {"start": "scratch", **SEMI},
    "both": {"start": "generative", "settings": {"block": 8}, **SEMI},
}
SECONDS = {"scratch": 10.0, "matched scratch": 20.0, "pre-trained": 10.0, "semi": 24.0, "both": 24.0}


def reported(folder: Path, gains: dict[str, float], **changes: Any) -> BudgetReport:
    """The content of the page of a study with Dice by a rule, to which an arm adds its gain."""
    given = {"name": "s", "store": "/nowhere", "arms": ARMS, "counts": [1, 2], "draws": 6, "lr": [1e-3], "seed": 3}
    study = parse(Study, given | changes, "study")

    def result(run: Run) -> dict[str, Any]:
        gain = gains.get(run.arm, 0.0)
        dice = {
            p: 0.3 + 0.05 * run.count + 0.01 * run.draw + 0.02 * k + gain * (1 + 0.01 * k) for k, p in enumerate(PEOPLE)
        }
        seconds = SECONDS[run.arm]
        return {"scores": {p: {"dice": v} for p, v in dice.items()}, "version": "0", "steps": 1, "seconds": seconds}

    done = {run: result(run) for run in study.runs}
    for name, arm in study.arms.items():
        if arm.pretext:
            place = budget_result.pretraining_of(study, name, 0).result
            write_json(folder / place, {"steps": 1000, "seconds": 11.0, "people": []})
    split = Split(train=tuple("abcdefgh"), validation=(), test=tuple(PEOPLE), seed=0)
    ground: Any = SimpleNamespace(split=split, pretraining=lambda *_: ("a",))
    (folder / "study.yaml").write_text("name: s")
    frozen = Frozen(study, "2026-12-01T10:00:00+00:00", "ab12" * 16, folder / "study.yaml")
    return budget_result.collect_budget(frozen, (), done, ground, folder, command="oligovox budget")


def test_what_takes_longer_than_matched_scratch_is_not_called_matched(tmp_path: Path) -> None:
    (caution,) = (words for words in reported(tmp_path, {}).cautions if "measured seconds" in words)
    assert caution.startswith("matched scratch is matched in steps, not in measured seconds.")
    assert caution.endswith(": both 1.8."), "semi takes 1.2, pre-trained 1.05 times as long, which is near enough"


def test_a_strategy_has_its_name_and_its_comparison_with_matched_scratch(tmp_path: Path) -> None:
    report = reported(tmp_path, {"semi": 0.05})
    assert {arm.name: arm.method for arm in report.arms} == {
        "scratch": "", "matched scratch": "", "pre-trained": "generative", "semi": "mean_teacher", "both": "generative, mean_teacher",
    }  # fmt: skip
    row = next(d for d in report.differences if (d.arm, d.against, d.count) == ("semi", "matched scratch", 1))
    assert row.outcome == "gain"
    assert row.mean == pytest.approx(0.05, rel=0.1)
