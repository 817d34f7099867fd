"""Curves over lesions against counts done by hand, and differences of two classifiers against drawn cohorts scored one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oligovox.errors import InputError
from oligovox.metrics.lesion_curves import net_benefit, precision_recall_points, reliability, roc_points
from oligovox.metrics.protocols.prl import Settings, lesion_differences, score_lesions

CHANCE, TRUTH = [0.9, 0.8, 0.8, 0.4, 0.1], [1, 1, 0, 0, 1]


def test_points_of_five_lesions() -> None:
    false_alarms, sensitivity = roc_points(CHANCE, TRUTH)
    np.testing.assert_allclose(false_alarms, [0, 0, 1 / 2, 1, 1])
    np.testing.assert_allclose(sensitivity, [0, 1 / 3, 2 / 3, 2 / 3, 1])
    recall, precision = precision_recall_points(CHANCE, TRUTH)
    np.testing.assert_allclose(recall, [1 / 3, 2 / 3, 2 / 3, 1])
    np.testing.assert_allclose(precision, [1, 2 / 3, 1 / 2, 3 / 5])
    assert reliability(CHANCE, TRUTH).total == 5


@given(st.integers(0, 5000), st.integers(2, 40))
def test_the_curves_have_the_areas_of_the_protocol(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    chance, truth = rng.integers(0, 6, n) / 5, rng.integers(0, 2, n)
    truth[:2] = 0, 1
    scores = score_lesions(chance, truth, ["p"] * n).regions["lesion"]
    assert np.trapezoid(*roc_points(chance, truth)[::-1]) == pytest.approx(scores["roc_auc"])
    recall, precision = precision_recall_points(chance, truth)
    assert np.sum(np.diff(recall, prepend=0) * precision) == pytest.approx(scores["pr_auc"])


def test_net_benefit_weighs_false_alarms_by_the_odds() -> None:
    ours, everyone = net_benefit(CHANCE, TRUTH, [0.2, 0.5, 0.85])
    np.testing.assert_allclose(ours, [2 / 5 - 2 / 5 * 0.25, 2 / 5 - 1 / 5, 1 / 5])
    np.testing.assert_allclose(everyone, [3 / 5 - 2 / 5 * 0.25, 3 / 5 - 2 / 5, 3 / 5 - 2 / 5 * 0.85 / 0.15])
    with pytest.raises(InputError, match="outside"):
        net_benefit(CHANCE, TRUTH, [1.0])
    with pytest.raises(InputError, match="at least one lesion"):
        net_benefit([], [], [0.5])


def test_differences_are_those_of_drawn_people_scored_one_by_one() -> None:
    rng = np.random.default_rng(3)
    people = np.repeat(list("abcde"), 4)
    truth = rng.integers(0, 2, 20)
    one, other = rng.random(20), rng.random(20)
    limits = (np.full(20, 0.3), np.full(20, 0.6))
    chosen = Settings(categories=(1,))
    found = lesion_differences(one, other, truth, people, chosen, seed=7, thresholds=limits, resamples=40)
    times = np.random.default_rng(7).multinomial(5, np.full(5, 0.2), 40)

    def scored(chance: np.ndarray, limit: np.ndarray, rows: np.ndarray) -> float | None:
        names = [f"{place}-{people[row]}" for place, row in enumerate(rows)]
        return score_lesions(chance[rows], truth[rows], names, chosen, thresholds=limit[rows]).regions["lesion"][
            "pr_auc"
        ]

    drawn = []
    for row in times:
        rows = np.concatenate(
            [np.flatnonzero(people == name) for name, n in zip("abcde", row, strict=True) for _ in range(n)]
        )
        drawn.append(scored(one, limits[0], rows) - scored(other, limits[1], rows))
    estimate = found["lesion"]["pr_auc"]
    assert estimate.value == pytest.approx(
        scored(one, limits[0], np.arange(20)) - scored(other, limits[1], np.arange(20))
    )
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    back = np.random.default_rng(0).permutation(20)
    moved = lesion_differences(
        one[back],
        other[back],
        truth[back],
        people[back],
        chosen,
        seed=7,
        thresholds=(limits[0], limits[1]),
        resamples=40,
    )
    assert moved["lesion"]["pr_auc"].low == pytest.approx(estimate.low)


def test_a_classifier_differs_from_itself_by_nothing() -> None:
    found = lesion_differences(CHANCE, CHANCE, TRUTH, list("aabbc"), seed=0, resamples=50)
    assert {e.value for metrics in found.values() for e in metrics.values() if np.isfinite(e.value)} == {0.0}
    assert found["lesion"]["roc_auc"].low == found["lesion"]["roc_auc"].high == 0
