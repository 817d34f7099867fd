"""Means and differences on a table small enough to do by hand, and what additions may not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from oligovox.experiment.budget_choice import choices_of
from oligovox.experiment.budget_plan import Run, Study
from oligovox.experiment.budget_tables import Tables, cells_of, comparisons, differences_of
from oligovox.report.budget_content import Difference, judge
from oligovox.report.content import Interval
from oligovox.settings import parse

PEOPLE = [f"p{k:02d}" for k in range(12)]
ARMS = {
    "threshold": {"classical": "flair_threshold"},
    "scratch": {"start": "scratch"},
    "matched": {"start": "scratch", "extra_steps": 1000},
    "masked": {"start": "masked_reconstruction"},
}


def study(**changes: Any) -> Study:
    given = {"name": "s", "store": "/nowhere", "arms": ARMS, "counts": [1, 2], "draws": 6, "lr": [1e-3], "seed": 3}
    return parse(Study, given | changes, "study")


def scores(run: Run, gain: float) -> dict[str, Any]:
    """Dice by a rule: it grows with the number of labels, differs between draws and people, and an arm adds `gain`."""
    base = {p: 0.3 + 0.05 * run.count + 0.01 * run.draw + 0.02 * k + 0.001 * run.seed for k, p in enumerate(PEOPLE)}
    jitter = {
        p: 1e-3 * k**1.5 for k, p in enumerate(PEOPLE)
    }  # without ties, for which scipy's exact test takes seconds
    row = {p: {"dice": base[p] + gain * (1 + jitter[p]), "hd95_mm": None, "volume_ml": 1.0} for p in PEOPLE}
    return {"scores": row, "version": "0", "steps": 1, "seconds": 1.0}


def done(asked: Study, gains: dict[str, float]) -> dict[Run, dict[str, Any]]:
    return {run: scores(run, gains.get(run.arm, 0.0)) for run in asked.runs}


def found(asked: Study, before: Study, gains: dict[str, float]) -> dict[tuple[str, str, int, bool], Difference]:
    rows = differences_of(Tables(asked, before, done(asked, gains)))
    return {(d.arm, d.against, d.count, d.exploratory): d for d in rows}


def test_means_are_over_draws_and_people_and_average_seeds_first() -> None:
    asked = study(seeds=[0, 10])
    cells = {(c.arm, c.count): c for c in cells_of(Tables(asked, asked, done(asked, {})))}
    cell = cells["scratch", 2]
    by_hand = [[0.3 + 0.1 + 0.01 * d + 0.02 * k + 0.005 for k in range(12)] for d in range(6)]
    assert cell.metrics["dice"].mean == pytest.approx(np.mean(by_hand))
    np.testing.assert_allclose(np.array(cell.by_draw, float), np.mean(by_hand, 1))
    assert (cell.draws, cell.metrics["dice"].n, cell.exploratory) == (6, 12, False)
    assert (cell.metrics["hd95_mm"].n, cell.metrics["hd95_mm"].mean) == (0, None)
    assert "volume_ml" not in cell.metrics
    low, high = cell.metrics["dice"].low, cell.metrics["dice"].high
    assert low is not None
    assert high is not None
    assert low < np.mean(by_hand) < high
    spread = np.std(np.mean(by_hand, 0)) / 12**0.5 + np.std(np.mean(by_hand, 1)) / 6**0.5
    assert high - low > 2 * spread, "the interval holds people and draws"


def test_a_gain_a_loss_and_a_null_are_told_apart() -> None:
    rows = found(study(), study(), {"masked": 0.05, "threshold": -0.2})
    gain, loss, null = (rows[arm, "scratch", 1, False] for arm in ("masked", "threshold", "matched"))
    assert (gain.outcome, loss.outcome, null.outcome) == ("gain", "loss", "no difference shown")
    assert gain.mean == pytest.approx(0.05, rel=0.03)
    assert (null.mean, null.p) == (pytest.approx(0.0), 1.0)
    assert rows["masked", "matched", 2, False].outcome == "gain"
    assert {(arm, against) for arm, against, _, _ in rows} == set(comparisons(study(), study()))
    assert ("threshold", "matched", 1, False) not in rows


def test_p_is_holms_over_all_comparisons() -> None:
    rows = found(study(), study(), {"masked": 0.05, "threshold": -0.2})
    raw = stats.wilcoxon(np.arange(1, 13)).pvalue
    assert [d.p for d in rows.values()].count(pytest.approx(raw)) == 6, "one sign in everyone: 3 comparisons, 2 counts"
    for d in rows.values():
        assert d.p_holm == pytest.approx(8 * raw if d.p and d.p < 1 else 1.0), (
            "of 8 comparisons, 6 share the first place"
        )


def test_what_is_added_later_does_not_touch_the_frozen_numbers() -> None:
    before = study(arms={name: ARMS[name] for name in ("scratch", "masked")}, counts=[1])
    later = study(arms=ARMS, counts=[1, 2], draws={1: 8, 2: 6})
    gains = {"masked": 0.05, "threshold": -0.2}
    old, new = found(before, before, gains), found(later, before, gains)
    assert new["masked", "scratch", 1, False] == old["masked", "scratch", 1, False]
    assert new["masked", "scratch", 1, True].draws == 8
    assert [key for key in new if not key[3]] == list(old)
    assert new["threshold", "scratch", 1, True].exploratory
    assert new["masked", "scratch", 1, True].p_holm > old["masked", "scratch", 1, False].p_holm
    cells = cells_of(Tables(later, before, done(later, gains)))
    assert {(c.arm, c.count) for c in cells if not c.exploratory} == {("scratch", 1), ("masked", 1)}
    assert {c.draws for c in cells if (c.arm, c.count) == ("scratch", 1)} == {6, 8}


def test_what_is_taken_of_the_frozen_arms_is_not_changed_by_a_later_one() -> None:
    before = study(arms={name: ARMS[name] for name in ("scratch", "matched")})
    later = study(arms=ARMS | {"longer": {"start": "scratch", "extra_steps": 2000}})
    rows = done(later, {"matched": 0.02, "longer": 0.1})
    choices = choices_of(Tables(later, before, rows), ())
    scratch = [choice for choice in choices if (choice.material, choice.count) == ("from scratch", 1)]
    assert [(c.exploratory, c.best, c.arms) for c in scratch] == [(False, "matched", 2), (True, "longer", 3)]
    assert scratch[:1] == [
        c for c in choices_of(Tables(before, before, done(before, {"matched": 0.02})), ()) if c.count == 1
    ]
    assert {c.exploratory for c in choices if c.material != "from scratch"} == {True}


def test_a_pretext_is_compared_with_the_scratch_of_equal_compute() -> None:
    arms = ARMS | {"more": {"start": "scratch", "extra_steps": 50}}
    arms["masked"] = ARMS["masked"] | {"pretrain": {"training": {"steps": 50}}}
    asked = study(arms=arms)
    assert [pair for pair in comparisons(asked, asked) if pair[0] == "masked"] == [
        ("masked", "scratch"),
        ("masked", "more"),
    ]
    other = study(arms={"matched": ARMS["matched"], "masked": arms["masked"]})
    assert comparisons(other, other) == [("masked", "matched")], "none has as many steps: the one that there is"


def test_a_plain_scratch_that_comes_later_does_not_become_what_is_compared_with() -> None:
    before = study(arms={"scratch": ARMS["scratch"], "masked": ARMS["masked"]})
    later = study(arms={"another": {"start": "scratch"}, **before.model_dump()["arms"]})
    assert comparisons(later, before)[0] == ("masked", "scratch")
    assert all(against == "scratch" for _, against in comparisons(later, before))


def test_runs_that_are_missing_leave_what_both_have() -> None:
    asked = study()
    some = {run: row for run, row in done(asked, {"masked": 0.05}).items() if run.arm != "masked" or run.draw < 2}
    rows = {(d.arm, d.count): d for d in differences_of(Tables(asked, asked, some)) if d.against == "scratch"}
    assert rows["masked", 1].draws == 2
    assert rows["masked", 1].outcome == "too few draws to tell"
    assert rows["matched", 1].draws == 6


@pytest.mark.parametrize(
    ("low", "high", "draws", "p", "higher", "expected"),
    [
        (0.01, 0.05, 5, 0.01, True, "gain"),
        (0.01, 0.05, 5, 0.01, False, "loss"),
        (-0.05, -0.01, 5, 0.01, True, "loss"),
        (0.01, 0.05, 5, 0.05, True, "no difference shown"),
        (0.0, 0.05, 5, 0.01, True, "no difference shown"),
        (-0.01, 0.05, 8, 0.01, True, "no difference shown"),
        (0.01, 0.05, 4, 0.01, True, "too few draws to tell"),
        (None, None, 5, None, True, "no difference shown"),
    ],
)
def test_what_a_difference_shows(
    low: float | None, high: float | None, draws: int, p: float | None, higher: bool, expected: str
) -> None:
    interval = Interval(mean=0.02, low=low, high=high, n=12)
    assert judge(interval, draws, p, higher_is_better=higher) == expected
