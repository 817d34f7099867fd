from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from oligovox.errors import GeometryError, LabelError
from oligovox.metrics.surface import assd_mm, hausdorff_mm, hd95_mm, nsd, surface, surface_distances, surface_scores

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


def slow_distances(first, second, spacing):
    between = cdist(
        np.argwhere(slow_surface(first)) * np.array(spacing), np.argwhere(slow_surface(second)) * np.array(spacing)
    )
    return between.min(axis=1), between.min(axis=0)


@settings(max_examples=40, deadline=None)
@given(masks, masks, spacings, st.sampled_from([0, 1, 2.5]))
def test_equals_the_definition_written_out(first, second, spacing, tolerance):
    assert np.array_equal(surface(first), slow_surface(first))
    forward, backward = slow_distances(first, second, spacing)
    pooled = np.concatenate([forward, backward])
    scores = surface_scores(first, second, spacing, (tolerance, 1))
    assert scores.hd95_mm == pytest.approx(max(np.percentile(forward, 95), np.percentile(backward, 95)))
    assert scores.mssd_mm == pytest.approx(pooled.max())
    assert scores.assd_mm == pytest.approx(pooled.mean())
    assert scores.nsd == pytest.approx({t: (pooled <= t * (1 + 1e-6)).mean() for t in (tolerance, 1)})


@settings(max_examples=15, deadline=None)
@given(masks, masks, spacings)
def test_distances_keep_array_order_and_the_short_forms_agree(first, second, spacing):
    """Voxels of both surfaces are not searched for; they must still stand in their place."""
    found, expected = surface_distances(first, second, spacing), slow_distances(first, second, spacing)
    assert all(np.allclose(a, b) for a, b in zip(found, expected, strict=True))
    scores = surface_scores(first, second, spacing, (1.5,))
    assert hd95_mm(first, second, spacing) == hausdorff_mm(first, second, spacing, 95) == scores.hd95_mm
    assert hausdorff_mm(first, second, spacing, 100) == scores.mssd_mm
    assert assd_mm(first, second, spacing) == scores.assd_mm
    assert nsd(first, second, spacing, 1.5) == scores.nsd[1.5]


@settings(max_examples=25, deadline=None)
@given(masks, masks, st.integers(0, 2))
def test_order_flips_and_bounds(first, second, axis):
    scores = surface_scores(first, second, (1, 2, 3), (1, 2, 4))
    exchanged = surface_scores(second, first, (1, 2, 3), (1, 2, 4))
    flipped = surface_scores(np.flip(first, axis), np.flip(second, axis), (1, 2, 3), (1, 2, 4))
    for other in (exchanged, flipped):
        assert other.nsd == scores.nsd
        assert (other.hd95_mm, other.mssd_mm) == pytest.approx((scores.hd95_mm, scores.mssd_mm))
        assert other.assd_mm == pytest.approx(scores.assd_mm)
    assert 0 <= scores.assd_mm <= scores.mssd_mm
    assert scores.hd95_mm <= scores.mssd_mm
    assert 0 <= scores.nsd[1] <= scores.nsd[2] <= scores.nsd[4] <= 1
    same = surface_scores(first, first, (1, 2, 3))
    assert (same.hd95_mm, same.mssd_mm, same.assd_mm, same.nsd) == (0, 0, 0, {1.0: 1})


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


def test_two_plates_worked_out():
    """Plates of 16 voxels, 2 mm apart, one of them with 4 voxels of the other: distances 0 (8 times) and 2 mm (12 + 4 edge voxels)."""
    first, second = np.zeros((2, 6, 6, 6), dtype=bool)
    first[1:5, 1:5, 1] = second[1:5, 1:5, 3] = True
    second[1:5, 1, 1] = True
    scores = surface_scores(first, second, (2, 1, 1), (0.0, 1.0, 2.0))
    forward = [0] * 4 + [1] * 4 + [2] * 8  # first → second, row by row from the shared one
    backward = [0] * 4 + [2] * 16
    assert scores.assd_mm == pytest.approx((sum(forward) + sum(backward)) / 36)
    assert scores.nsd == pytest.approx({0.0: 8 / 36, 1.0: 12 / 36, 2.0: 1})
    assert (scores.hd95_mm, scores.mssd_mm) == (2, 2)


def test_a_tolerance_forgives_the_rounding_of_float32_spacings():
    first, second = np.zeros((2, 4, 9, 4), dtype=bool)
    first[1, 1, 1] = second[1, 4, 1] = True
    spacing = tuple(float(v) for v in np.float32([1, 0.6, 1]))
    assert nsd(first, second, spacing, tolerance_mm=1.8) == nsd(first, second, (1, 0.6, 1), tolerance_mm=1.8) == 1
    assert nsd(first, second, spacing, tolerance_mm=1.79) == 0


def test_larger_direction_not_pooled():
    """One far voxel beside 10: pooled percentiles would hide that the prediction sends 1 in 11 far away."""
    truth = np.zeros((60, 3, 3), dtype=bool)
    truth[:10, 1, 1] = True
    prediction = truth.copy()
    prediction[59, 1, 1] = True
    forward = np.percentile([0.0] * 10 + [50.0], 95)
    assert hd95_mm(prediction, truth, (1, 1, 1)) == pytest.approx(forward)
    assert forward > np.percentile([0.0] * 20 + [50.0], 95)


@pytest.mark.parametrize(("predicted", "referenced", "near"), [(0, 1, 0), (1, 0, 0), (0, 0, math.nan)])
def test_an_empty_mask_has_no_surface(predicted, referenced, near):
    scores = surface_scores(np.full((3, 3, 3), predicted), np.full((3, 3, 3), referenced), (1, 1, 1))
    assert scores.nsd == pytest.approx({1.0: near}, nan_ok=True)
    assert all(math.isnan(value) for value in (scores.hd95_mm, scores.mssd_mm, scores.assd_mm))


def test_wrong_inputs_are_refused():
    mask = np.ones((3, 3, 3), dtype=np.uint8)
    with pytest.raises(GeometryError, match="one grid"):
        surface_scores(mask, mask[:2], (1, 1, 1))
    with pytest.raises(GeometryError, match="three positive"):
        nsd(mask, mask, (1, 0, 1))
    with pytest.raises(LabelError, match="threshold"):
        assd_mm(mask * 0.5, mask, (1, 1, 1))
