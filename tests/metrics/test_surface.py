from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from oligovox.metrics.surface import hd95_mm, surface

masks = (
    st.tuples(st.integers(0, 999), st.floats(0.02, 0.9))
    .map(lambda drawn: np.random.default_rng(drawn[0]).random((7, 6, 5)) < drawn[1])
    .filter(np.any)
)
spacings = st.tuples(*[st.floats(0.5, 4)] * 3)


def slow_surface(mask):
    found = np.zeros_like(mask)
    for x, y, z in np.argwhere(mask):
        for dx, dy, dz in [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]:
            other = (x + dx, y + dy, z + dz)
            beyond = any(v < 0 or v >= side for v, side in zip(other, mask.shape, strict=True))
            found[x, y, z] |= beyond or not mask[other]
    return found


def slow_hd95(first, second, spacing):
    between = cdist(
        np.argwhere(slow_surface(first)) * np.array(spacing), np.argwhere(slow_surface(second)) * np.array(spacing)
    )
    return max(np.percentile(between.min(axis=0), 95), np.percentile(between.min(axis=1), 95))


@settings(max_examples=40, deadline=None)
@given(masks, masks, spacings)
def test_equals_the_definition_written_out(first, second, spacing):
    assert np.array_equal(surface(first), slow_surface(first))
    assert hd95_mm(first, second, spacing) == pytest.approx(slow_hd95(first, second, spacing))


@settings(max_examples=25, deadline=None)
@given(masks, masks, st.floats(0.1, 10), st.tuples(*[st.integers(0, 6)] * 3))
def test_symmetry_scaling_and_translation(first, second, scale, shift):
    value = hd95_mm(first, second, (1, 2, 3))
    assert hd95_mm(second, first, (1, 2, 3)) == pytest.approx(value)
    assert hd95_mm(first, first, (1, 2, 3)) == 0
    assert hd95_mm(first, second, (scale, 2 * scale, 3 * scale)) == pytest.approx(scale * value)
    moved = [np.pad(mask, [(s, 6 - s) for s in shift]) for mask in (first, second)]
    assert hd95_mm(*moved, (1, 2, 3)) == pytest.approx(value)


def test_a_shifted_cube_is_one_shift_away():
    first, second = np.zeros((2, 20, 20, 20), dtype=bool)
    first[5:10, 5:10, 5:10] = second[8:13, 5:10, 5:10] = True
    assert hd95_mm(first, second, (1.5, 1, 1)) == pytest.approx(4.5)


def test_larger_direction_not_pooled():
    """One far voxel beside 10: pooled percentiles would hide that the prediction sends 1 in 11 far away."""
    truth = np.zeros((60, 3, 3), dtype=bool)
    truth[:10, 1, 1] = True
    prediction = truth.copy()
    prediction[59, 1, 1] = True
    forward = np.percentile([0.0] * 10 + [50.0], 95)
    assert hd95_mm(prediction, truth, (1, 1, 1)) == pytest.approx(forward)
    assert forward > np.percentile([0.0] * 20 + [50.0], 95)


@pytest.mark.parametrize(("predicted", "referenced"), [(False, True), (True, False), (False, False)])
def test_an_empty_mask_has_no_surface(predicted, referenced):
    assert math.isnan(hd95_mm(np.full((3, 3, 3), predicted), np.full((3, 3, 3), referenced), (1, 1, 1)))
