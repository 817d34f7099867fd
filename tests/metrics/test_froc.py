from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from oligovox.errors import GeometryError, LabelError, SettingsError
from oligovox.metrics.froc import CaseCounts, Froc, FrocRule, count_case, froc
from oligovox.metrics.lesions import LesionRule, match_lesions
from oligovox.settings import parse

ANY = LesionRule(min_volume_mm3=0, min_overlap=0)
RULE = FrocRule(thresholds=(0.2, 0.5, 0.8), rule=ANY)
cases = st.tuples(st.integers(0, 999), st.floats(0, 0.2)).map(
    lambda drawn: (
        np.random.default_rng(drawn[0]).random((7, 6, 5)) ** 3,
        np.random.default_rng(drawn[0] + 1).random((7, 6, 5)) < drawn[1],
    )
)


def slow_counts(probability, truth, threshold):
    """Lesions of any size touched by any voxel, one component at a time."""
    mask, joined = probability >= threshold, np.ones((3, 3, 3))
    reference, n = ndimage.label(truth, joined)
    predicted, m = ndimage.label(mask, joined)
    found = sum((mask & (reference == i)).any() for i in range(1, n + 1))
    false = sum(not (truth & (predicted == j)).any() for j in range(1, m + 1))
    return n, found, false


@settings(max_examples=30, deadline=None)
@given(st.lists(cases, min_size=1, max_size=3))
def test_equals_components_one_by_one(drawn):
    counts = [count_case(probability, truth, (1, 1, 1), RULE) for probability, truth in drawn]
    slow = np.array([[slow_counts(*case, cut) for cut in RULE.thresholds] for case in drawn])
    assert [(c.reference, c.found, c.false) for c in counts] == [
        (rows[0, 0], tuple(rows[:, 1]), tuple(rows[:, 2])) for rows in slow
    ]
    curve = froc(counts, RULE)
    lesions = slow[:, 0, 0].sum()
    assert curve.false_per_case == pytest.approx(slow[:, :, 2].mean(axis=0))
    expected = slow[:, :, 1].sum(axis=0) / lesions if lesions else [math.nan] * 3
    assert curve.sensitivity == pytest.approx(expected, nan_ok=True)


@settings(max_examples=25, deadline=None)
@given(cases, st.sampled_from([(6, 0), (18, 3), (26, 3)]), st.sampled_from([0, 0.1, 0.5]))
def test_a_threshold_is_the_match_of_a_mask(case, kind, overlap):
    probability, truth = case
    rule = LesionRule(connectivity=kind[0], min_volume_mm3=kind[1], min_overlap=overlap)
    counts = count_case(probability, truth, (1, 1, 2), FrocRule(thresholds=(0.1, 0.4), rule=rule))
    matches = [match_lesions(probability >= cut, truth, (1, 1, 2), rule) for cut in (0.1, 0.4)]
    assert counts.found == tuple(match.found for match in matches)
    assert counts.false == tuple(match.false_positives for match in matches)
    assert counts.reference == len(matches[0].reference)


@settings(max_examples=25, deadline=None)
@given(cases)
def test_more_is_found_as_the_threshold_falls_and_flips_change_nothing(case):
    probability, truth = case
    counts = count_case(probability, truth, (1, 1, 2))
    assert list(counts.found) == sorted(counts.found, reverse=True)
    assert count_case(probability[::-1], truth[::-1], (1, 1, 2)) == counts


def test_worked_case():
    """Two lesions given 0.9 and 0.4, a false one given 0.6; a second case without lesions and a false one given 0.3."""
    probability, truth = np.zeros((20, 20, 20)), np.zeros((20, 20, 20), dtype=np.uint8)
    truth[1:3, 1:3, 1:3] = truth[10:12, 10:12, 10:12] = 1
    probability[1:3, 1:3, 1:3], probability[10:12, 10:12, 10:12], probability[16:18, 1:3, 1:3] = 0.9, 0.4, 0.6
    healthy = np.zeros((20, 20, 20))
    healthy[5:7, 5:7, 5:7] = 0.3
    rule = FrocRule(thresholds=(0.3, 0.4, 0.6, 0.9))  # ≥: each value is on one
    first, second = (count_case(p, t, (1, 1, 1), rule) for p, t in [(probability, truth), (healthy, truth * 0)])
    assert first == CaseCounts(reference=2, found=(2, 2, 1, 1), false=(1, 1, 1, 0))
    assert second == CaseCounts(reference=0, found=(0, 0, 0, 0), false=(1, 0, 0, 0))
    curve = froc([first, second], rule)
    assert curve == Froc(2, rule.thresholds, sensitivity=(1, 1, 0.5, 0.5), false_per_case=(1, 0.5, 0.5, 0))
    assert [curve.sensitivity_at(rate) for rate in (0, 0.4, 0.5, 8)] == [0.5, 0.5, 1, 1]
    assert curve.score() == pytest.approx((2 * 0.5 + 5 * 1) / 7)


def test_every_point_may_have_too_many_false_positives():
    curve = Froc(1, (0.5,), sensitivity=(0.9,), false_per_case=(20.0,))
    assert curve.sensitivity_at(8) == 0
    assert curve.sensitivity_at(20) == 0.9


def test_nothing_to_find_is_undefined():
    empty, rule = np.zeros((5, 5, 5)), FrocRule()
    healthy = froc([count_case(empty, empty, (1, 1, 1))], rule)
    assert math.isnan(healthy.score())
    assert healthy.false_per_case == (0,) * 19
    nobody = froc([], rule)
    assert nobody.cases == 0
    assert all(math.isnan(value) for value in (*nobody.false_per_case, *nobody.sensitivity))


@pytest.mark.parametrize("thresholds", [[], [0, 0.5], [0.5, 0.5], [0.6, 0.4], [0.5, 1.1]])
def test_thresholds_ascend_within_0_and_1(thresholds):
    with pytest.raises(SettingsError, match="thresholds"):
        parse(FrocRule, {"thresholds": thresholds}, "froc")


def test_wrong_inputs_are_refused():
    mask = np.zeros((5, 5, 5), dtype=np.uint8)
    with pytest.raises(LabelError, match="softmax"):
        count_case(mask - 3.0, mask, (1, 1, 1))
    with pytest.raises(GeometryError, match="one grid"):
        count_case(mask[1:], mask, (1, 1, 1))


def test_a_whole_head_at_19_thresholds_takes_seconds_at_most():
    """About 1 s on one core; the bound is loose because test machines are shared."""
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.standard_normal((182, 218, 60), dtype=np.float32), 3)
    truth = noise > np.quantile(noise, 0.995)
    start = time.perf_counter()
    counts = count_case(np.clip(noise / noise.max(), 0, 1), truth, (1, 1, 3))
    assert time.perf_counter() - start < 10
    assert counts.found[0] == counts.reference > 10
