from __future__ import annotations

import math

import pytest

from oligovox.report.content import Arm, CaseRow, Comparison, Data, Interval, MetricName, Report
from oligovox.report.verdict import judge, verdict


def _comparison(low: float | None, high: float | None, n: int = 6, metric: MetricName = "dice") -> Comparison:
    mean = None if low is None or high is None else (low + high) / 2
    return Comparison(metric=metric, arm="ours", against="scratch", mean=mean, low=low, high=high, n=n)


def _report(comparison: Comparison | None = None, **more: object) -> Report:
    row = CaseRow(case="sub-1", dice=0.5, volume_true_ml=1.0)
    mean = {"dice": Interval(mean=0.64, low=0.6, high=0.7, n=6)}
    arms = (
        Arm(name="scratch", start="scratch", labels=5, cases=(row,), means=mean),
        Arm(name="ours", start="generative", labels=5, cases=(row,), means=mean),
    )
    given = {"title": "t", "created": "2026-01-01", "command": "c", "arms": arms, "main": "ours", "baseline": "scratch"}
    return Report(**{**given, "comparisons": (comparison,) if comparison else (), **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("low", "high", "n", "metric", "expected"),
    [
        (0.001, 0.02, 6, "dice", "gain shown"),
        (-0.010, 0.036, 6, "dice", "no gain shown"),
        (0.0, 0.02, 6, "dice", "no gain shown"),
        (-0.02, 0.0, 6, "dice", "no gain shown"),
        (-0.02, -0.001, 6, "dice", "worse"),
        (0.01, 0.02, 5, "dice", "undecided"),
        (-0.02, -0.01, 5, "dice", "undecided"),
        (None, None, 60, "dice", "undecided"),
        (math.nan, math.nan, 60, "dice", "undecided"),
        (0.5, 2.0, 6, "hd95_mm", "worse"),
        (-2.0, -0.5, 6, "hd95_mm", "gain shown"),
        (-2.0, 0.5, 6, "hd95_mm", "no gain shown"),
        (0.01, 0.02, 6, "lesion_f1", "gain shown"),
    ],
)
def test_truth_table(low: float | None, high: float | None, n: int, metric: MetricName, expected: str) -> None:
    assert judge(_comparison(low, high, n, metric)) == expected


def test_the_sentence_says_what_how_much_over_whom_and_the_outcome() -> None:
    found = verdict(_report(_comparison(-0.010, 0.036)))
    assert found.outcome == "no gain shown"
    assert found.sentence == (
        "Pre-training with generative changed Dice by +0.013 [−0.010, +0.036] over 6 held-out subjects: no gain shown."
    )
    assert "one draw of 5 labelled subjects and one seed" in found.cautions[0]


def test_few_subjects_never_show_a_gain() -> None:
    assert verdict(_report(_comparison(0.1, 0.2, n=3))).sentence.endswith(
        "3 held-out subjects: too few to show a gain or a loss."
    )


def test_two_pretrained_arms_are_named() -> None:
    arms = [arm.model_copy(update={"start": "slem"}) for arm in _report().arms]
    assert verdict(_report(_comparison(0.1, 0.2), arms=arms)).sentence.startswith("“ours” instead of “scratch” changed")


def test_without_comparison_truth_or_arm() -> None:
    alone = verdict(_report())
    assert (alone.outcome, "0.640 [0.600, 0.700]" in alone.sentence) == ("not compared", True)
    blind = Arm(name="ours", start="generative", labels=5, cases=(CaseRow(case="a", volume_predicted_ml=1.0),))
    unscored = verdict(_report(arms=(blind,), baseline=""))
    assert (unscored.outcome, unscored.cautions) == ("not scored", ())
    assert verdict(_report(arms=(), main="", baseline="")).outcome == "not scored"


def test_leaks_between_splits_are_said() -> None:
    splits = {"train": ("a", "b"), "test": ("b", "c"), "pretrain": ("c",), "validation": ()}
    cautions = " ".join(verdict(_report(_comparison(0.1, 0.2), data=Data(splits=splits))).cautions)
    assert "Pre-training saw the images (not the labels) of 1 test subject." in cautions
    assert "1 test subject also used for training" in cautions


def test_unequal_budgets_are_said() -> None:
    arms = [arm.model_copy(update={"labels": 3 if arm.name == "ours" else 5}) for arm in _report().arms]
    assert "“ours” was trained on 3 labelled subjects, “scratch” on 5." in verdict(_report(arms=arms)).cautions
