from __future__ import annotations

import math
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oligovox.metrics.protocols.elements import (
    _areas,
    distances,
    element_cloud,
    hd95_of_elements,
    nsd_of_voxels,
    voxel_cloud,
)
from oligovox.metrics.protocols.pieces import pieces

CORNERS = list(product((0, 1), repeat=3))


def bit(corner):
    return 1 << CORNERS.index(tuple(corner))


def one_lesion(mask):
    where = np.flatnonzero(np.pad(mask, 1))
    return pieces(where, np.ones(len(where), dtype=np.int32), int(len(where) > 0)), tuple(
        side + 2 for side in mask.shape
    )


def cloud(mask, spacing=(1, 1, 1), kind=element_cloud):
    return kind(*one_lesion(mask), spacing)


def slow_elements(mask, spacing):
    """Point and area of each corner of the voxel grid between voxels that are not all equal."""
    padded = np.pad(mask, 1)
    for point in np.ndindex(*(side - 1 for side in padded.shape)):
        code = sum(bit(corner) for corner in CORNERS if padded[tuple(np.add(point, corner))])
        if 0 < code < 255:
            yield np.multiply(point, spacing), _areas(*map(float, spacing))[code]


def slow_hd95(first, second, spacing, share):
    """Smallest distance that a share of the area of both surfaces does not exceed."""
    clouds = [list(slow_elements(mask, spacing)) for mask in (first, second)]
    directed = []
    for here, there in (clouds, clouds[::-1]):
        far = [(min(math.dist(point, other) for other, _ in there), area) for point, area in here]
        needed = share * sum(area for _, area in far)
        directed.append(min(d for d, _ in far if sum(area for other, area in far if other <= d) >= needed))
    return max(directed)


masks = st.builds(
    lambda seed, share: np.random.default_rng(seed).random((5, 4, 3)) < share,
    st.integers(0, 9999),
    st.floats(0.05, 0.9),
).filter(np.any)
spacings = st.sampled_from([(1, 1, 1), (2, 2, 2), (1, 1, 3), (0.7, 1.1, 0.9)])


@pytest.mark.parametrize(
    ("corners", "area"),
    [
        ([], 0),
        ([(0, 0, 0)], math.sqrt(3) / 8),
        ([(0, 0, 0), (0, 0, 1)], math.sqrt(2) / 2),
        ([(0, 0, 0), (0, 1, 1)], math.sqrt(3) / 4),
        ([(0, 0, 0), (1, 1, 1)], math.sqrt(3) / 4),
        ([(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)], 1),
        ([(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)], math.sqrt(3) / 2),
        ([(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)], 6 * math.sqrt(3) / 8),
    ],
)
def test_area_of_patterns_that_leave_no_choice(corners, area):
    assert _areas(1.0, 1.0, 1.0)[sum(map(bit, corners))] == pytest.approx(area)


def test_area_does_not_depend_on_how_the_cube_lies_nor_on_which_side_is_inside():
    areas = _areas(1.0, 1.0, 1.0)
    for axes, flips in product(permutations(range(3)), CORNERS):
        turned = [sum(bit([c[a] ^ f for a, f in zip(axes, flips, strict=True)]) for i, c in enumerate(CORNERS) if code >> i & 1) for code in range(256)]  # fmt: skip
        np.testing.assert_allclose(areas[turned], areas)
    np.testing.assert_array_equal(areas[::-1], areas)


def test_area_grows_with_the_square_of_the_voxel_and_of_a_flat_face_with_its_sides():
    np.testing.assert_allclose(_areas(2.0, 2.0, 2.0), 4 * _areas(1.0, 1.0, 1.0))
    low_in_z = sum(bit(corner) for corner in CORNERS if corner[2] == 0)
    assert _areas(2.0, 3.0, 5.0)[low_in_z] == pytest.approx(6)


def test_elements_of_a_box_lie_on_its_faces():
    found = cloud(np.ones((4, 4, 4), dtype=bool))
    assert len(found.points) == 5**3 - 3**3
    flat, edges, corners = 6 * 3 * 3, 12 * 3 * math.sqrt(2) / 2, 8 * math.sqrt(3) / 8
    assert found.weights.sum() == pytest.approx(flat + edges + corners)


@settings(max_examples=20, deadline=None)
@given(masks, masks, spacings)
def test_hd95_equals_the_definition(first, second, spacing):
    ours = hd95_of_elements(cloud(first, spacing), cloud(second, spacing))
    around = [
        slow_hd95(first, second, spacing, share) for share in (0.95 - 1e-9, 0.95 + 1e-9)
    ]  # 19 of 20 alike: rounding
    assert ours in [pytest.approx(value) for value in around]
    assert ours == hd95_of_elements(cloud(second, spacing), cloud(first, spacing))


@settings(max_examples=40, deadline=None)
@given(masks, masks, st.sampled_from([0.5, 1.0, 2.0]))
def test_nsd_equals_the_definition(first, second, tolerance):
    def edge(mask):
        padded = np.pad(mask, 1)
        around = [np.roll(padded, step, axis) for axis in range(3) for step in (-1, 1)]
        return np.argwhere(padded & ~np.logical_and.reduce(around))

    edges = edge(first), edge(second)
    shares = [
        np.mean([min(math.dist(point, other) for other in there) <= tolerance for point in here])
        for here, there in (edges, edges[::-1])
    ]
    ours = nsd_of_voxels(cloud(first, kind=voxel_cloud), cloud(second, kind=voxel_cloud), (tolerance,))
    assert ours == (pytest.approx(sum(shares) / 2),)


@settings(max_examples=30, deadline=None)
@given(masks, masks, spacings, st.floats(0.3, 6))
def test_a_farthest_distance_only_hides_what_lies_beyond(first, second, spacing, farthest):
    clouds = cloud(first, spacing), cloud(second, spacing)
    for full, cut in zip(distances(*clouds), distances(*clouds, farthest), strict=True):
        np.testing.assert_array_equal(cut, np.where(full < farthest, full, math.inf))


def test_a_tolerance_is_met_by_spacings_stored_as_float32():
    first, second = np.zeros((2, 3, 3, 3), dtype=bool)
    first[1, 1, 1] = second[1, 1, 2] = True
    spacing = (1.0, 1.0, 1 + 1e-7)
    assert nsd_of_voxels(cloud(first, spacing, voxel_cloud), cloud(second, spacing, voxel_cloud), (0.5, 1.0)) == (0, 1)


def test_lesions_of_a_cloud_are_kept_apart():
    number = np.zeros((9, 5, 5), dtype=np.int32)
    number[2, 2, 2], number[6, 2, 2] = 2, 1
    where = np.flatnonzero(number)
    found = element_cloud(pieces(where, number.ravel()[where], 2), number.shape, (1, 1, 1))
    assert [len(found.of([i]).points) for i in (1, 2)] == [8, 8]
    assert found.of([2]).points[:, 0].max() < found.of([1]).points[:, 0].min()
    assert hd95_of_elements(found.of([1]), found.of([2])) == 4
    assert hd95_of_elements(found.of([1, 2]), found.of([2, 1])) == 0
