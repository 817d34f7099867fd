from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oligovox.errors import GeometryError, LabelError, SettingsError
from oligovox.metrics.calibration import calibration, pooled

SHAPE = (6, 5, 4)
everything = np.ones(SHAPE, dtype=bool)
cases = st.tuples(st.integers(0, 999), st.floats(0, 1)).map(
    lambda drawn: (
        np.random.default_rng(drawn[0]).random(SHAPE) ** 2,
        np.random.default_rng(drawn[0] + 1).random(SHAPE) < drawn[1],
        np.random.default_rng(drawn[0] + 2).random(SHAPE) < 0.7,
    )
)


@settings(max_examples=40, deadline=None)
@given(cases, st.integers(1, 20))
def test_equals_the_bins_one_by_one(case, bins):
    probability, truth, foreground = case
    found = calibration(probability, truth, foreground, bins=bins)
    p, t = probability[foreground], truth[foreground]
    error = 0.0
    for k in range(bins):
        here = (p >= k / bins) & (p < (k + 1) / bins)  # a drawn number is never 1
        assert found.voxels[k] == here.sum()
        if here.any():
            assert found.mean_probability[k] == pytest.approx(p[here].mean())
            assert found.lesion_share[k] == pytest.approx(t[here].mean())
            error += here.mean() * abs(p[here].mean() - t[here].mean())
        else:
            assert np.isnan([found.mean_probability[k], found.lesion_share[k]]).all()
    assert found.ece == pytest.approx(error)
    assert found.brier == pytest.approx(np.mean((p - t) ** 2))
    assert found.total == foreground.sum()


@settings(max_examples=25, deadline=None)
@given(cases, cases)
def test_pooling_is_one_case_of_all_voxels(first, second):
    together = [np.concatenate(parts) for parts in zip(first, second, strict=True)]
    apart, whole = pooled([calibration(*first), calibration(*second)]), calibration(*together)
    assert (apart.ece, apart.brier) == (pytest.approx(whole.ece), pytest.approx(whole.brier))
    assert np.array_equal(apart.voxels, whole.voxels)


@settings(max_examples=25, deadline=None)
@given(cases)
def test_bounds_order_and_the_opposite_class(case):
    probability, truth, foreground = case
    found = calibration(*case)
    assert 0 <= found.ece <= 1
    assert found.brier >= found.ece**2 - 1e-12  # Jensen, within bins and over them
    assert calibration(*[part[::-1, :, ::-1] for part in case]).ece == pytest.approx(found.ece)
    opposite = calibration(1 - probability, ~truth, foreground)
    assert (opposite.ece, opposite.brier) == (pytest.approx(found.ece), pytest.approx(found.brier))


@pytest.mark.parametrize(
    ("given", "lesion", "ece", "brier"),
    [(1, 1, 0, 0), (0, 0, 0, 0), (1, 0, 1, 1), (0, 1, 1, 1), (0.8, 1, 0.2, 0.04), (0.25, 0, 0.25, 0.0625)],
)
def test_constant_maps_worked_out(given, lesion, ece, brier):
    found = calibration(np.full(SHAPE, given, dtype=float), np.full(SHAPE, lesion), everything, bins=10)
    assert (found.ece, found.brier) == (pytest.approx(ece), pytest.approx(brier))


def test_a_quarter_given_a_quarter_is_calibrated():
    truth = np.zeros((4, 4, 4), dtype=np.uint8)
    truth[0] = 1
    found = calibration(np.full(truth.shape, 0.25), truth, truth + 1, bins=10)
    assert found.ece == 0
    assert found.brier == pytest.approx(0.25 * 0.75)
    assert np.flatnonzero(found.voxels).tolist() == [2]


def test_the_last_bin_is_closed_and_only_the_foreground_is_looked_at():
    probability, truth = np.zeros(SHAPE), np.zeros(SHAPE, dtype=np.uint8)
    probability[0], truth[0] = 1, 1
    foreground = np.zeros(SHAPE, dtype=np.uint8)
    foreground[:2] = 1
    found = calibration(probability, truth, foreground, bins=4)
    assert found.voxels.tolist() == [20, 0, 0, 20]
    assert found.lesion.tolist() == [0, 0, 0, 20]


def test_no_voxels_no_numbers():
    found = calibration(np.zeros(SHAPE), np.zeros(SHAPE), np.zeros(SHAPE, dtype=bool))
    assert found.total == 0
    assert math.isnan(found.ece)
    assert math.isnan(found.brier)
    assert len(found.mean_probability) == 15


def test_rounding_of_float16_is_clipped_and_more_is_refused():
    slightly = np.full(SHAPE, 1.0005)
    assert calibration(slightly, everything, everything).brier == 0
    for wrong in (1.01, -0.01, math.nan, 7):
        with pytest.raises(LabelError, match="0 to 1"):
            calibration(np.full(SHAPE, wrong), everything, everything)


def test_wrong_inputs_are_refused():
    p = np.zeros(SHAPE)
    with pytest.raises(GeometryError, match="prediction has shape"):
        calibration(p[1:], everything, everything)
    with pytest.raises(GeometryError, match="foreground has shape"):
        calibration(p, everything, everything[1:])
    with pytest.raises(LabelError, match="threshold"):
        calibration(p, everything, p + 0.5)
    with pytest.raises(SettingsError, match="at least 1"):
        calibration(p, everything, everything, bins=0)
    with pytest.raises(SettingsError, match="no bins"):
        pooled([])
    with pytest.raises(SettingsError, match="same number"):
        pooled([calibration(p, everything, everything, bins=n) for n in (5, 10)])
