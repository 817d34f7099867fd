"""Where a voxel is called: at a half, or where validation people are scored best."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from oligovox import experiment
from oligovox.errors import SettingsError
from oligovox.experiment.budget_plan import parse_study, write_study
from oligovox.experiment.budget_scoring import LIMITS, Predicted, operating_point, scored_at

TRUTH = np.zeros((4, 4, 4), dtype=bool)
TRUTH[0, 0] = True


def case(person: str, label: np.ndarray = TRUTH) -> Any:
    return SimpleNamespace(person=person, spacing=(1.0, 1.0, 1.0), labelled=True, label=lambda: label.astype(np.int8))


def one_class(person: str, lesion: float, decoy: float) -> Predicted:
    """Lesion voxels at one probability, as many others at another."""
    probability = np.where(TRUTH, lesion, 0.0).astype(np.float32)
    probability[1, 0] = decoy
    return Predicted(case(person), probability[None], ("lesion",), (TRUTH,), True)


def study(**changes: Any) -> Any:
    given = {
        "name": "s", "store": "store", "split": {"test": 1, "validation": 1}, "counts": [1],
        "operating_point": "validation", "arms": {"scratch": {"start": "scratch"}},
    }  # fmt: skip
    return parse_study(yaml.safe_dump(given | changes), "s")


def test_a_limit_between_lesion_and_decoy_is_chosen_and_scores_are_those_of_that_limit() -> None:
    seen = [one_class("a", 0.97, 0.85), one_class("b", 0.99, 0.92)]
    scores = scored_at(seen, LIMITS)
    assert scores[0.5]["a"]["dice"] == pytest.approx(2 / 3)  # lesion and as many decoys
    assert operating_point(scores, study()) == 0.95
    assert [row["dice"] for row in scores[0.95].values()] == [1.0, 1.0]


def test_of_equal_limits_the_nearest_to_a_half_wins() -> None:
    assert operating_point(scored_at([one_class("a", 0.999, 0.0)], LIMITS), study()) == 0.5
    distance = study(metric="hd95_mm")  # lower is better
    scores = {0.1: {"a": {"hd95_mm": 90.0}}, 0.5: {"a": {"hd95_mm": 90.0}}, 0.9: {"a": {"hd95_mm": 5.0}}}
    assert operating_point(scores, distance) == 0.9


def test_a_limit_at_which_little_is_defined_is_not_chosen() -> None:
    rows = {0.5: [4.0, 5.0, 6.0], 0.995: [1.0, None, None]}
    scores = {limit: {str(n): {"hd95_mm": value} for n, value in enumerate(values)} for limit, values in rows.items()}
    assert operating_point(scores, study(metric="hd95_mm")) == 0.5


def test_several_classes_that_exclude_each_other_have_no_limit() -> None:
    label = np.where(TRUTH, 1, 0)
    label[2, 2] = 2
    probability = np.stack([np.where(label == 1, 0.35, 0.1), np.where(label == 2, 0.45, 0.2)]).astype(np.float32)
    seen = Predicted(case("a", label), probability, ("x", "y"), (label == 1, label == 2), True)
    assert np.array_equal(seen.masks(0.1)["y"][0], seen.masks(0.99)["y"][0])
    assert not seen.masks(0.5)["x"][0].any()  # background has 0.45 there
    overlapping = Predicted(case("a", label), probability, ("x", "y"), (label == 1, label == 2), False)
    assert np.array_equal(overlapping.masks(0.3)["x"][0], label == 1)


def test_a_study_at_a_half_reads_as_before_and_validation_needs_people() -> None:
    assert "operating_point" not in write_study(study(operating_point="half"))
    assert "operating_point: validation" in write_study(study())
    with pytest.raises(SettingsError, match="chosen on validation people"):
        study(split={"test": 1, "validation": 0}, lr=[1e-3])


def test_a_run_says_which_limit_it_was_scored_at(make_phantom: Callable[..., Path], tmp_path: Path) -> None:
    make_phantom(tmp_path / "phantom", subjects=5, labelled=5, side=20)
    stage = {"patch": [16, 16, 16], "training": {"threads": 1, "tensorboard": "off", "steps": 2}}
    given = {
        "name": "s", "cohorts": {"phantom": {"bids": "phantom"}}, "prepare": {"modalities": ["T1w", "FLAIR"]},
        "split": {"test": 2, "validation": 1}, "network": {"settings": {"preset": "nano"}}, "counts": [1], "draws": 1,
        "lr": [1.0e-3], "tune": {"count": 1}, "arms": {"scratch": {"start": "scratch"}}, "finetune": stage,
        "operating_point": "validation",
    }  # fmt: skip
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(given))
    experiment.budget(tmp_path / "s.yaml", tmp_path / "out")
    row = json.loads((tmp_path / "out" / "runs" / "scratch" / "n1_d0_s0" / "scores.json").read_text())
    assert row.get("operating_point", 0.5) in LIMITS
    assert row["validation"] is None or 0 <= row["validation"] <= 1, "the score by which an arm may be chosen"
    assert len(row["scores"]) == 2
