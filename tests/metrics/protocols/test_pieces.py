from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from oligovox.metrics.lesions import find_lesions
from oligovox.metrics.protocols.pieces import components, dilated, pieces, shell, spread, touching
from oligovox.metrics.surface import surface

MARGIN = 4
EDGES = ndimage.generate_binary_structure(3, 2)
masks = st.builds(
    lambda seed, share, shape: np.pad(np.random.default_rng(seed).random(shape) < share, MARGIN),
    st.integers(0, 9999),
    st.floats(0, 1) | st.floats(0, 0.05),
    st.sampled_from([(7, 6, 9), (1, 1, 12), (5, 1, 1), (12, 10, 8)]),
)
pairs_of_masks = st.builds(
    lambda mask, seed: (mask, mask & (np.random.default_rng(seed).random(mask.shape) < 0.5)), masks, st.integers(0, 99)
)


def cut(mask):
    where = np.flatnonzero(mask)
    number = components(where, mask.shape)
    return pieces(where, number, int(number.max(initial=0)))


@settings(max_examples=150, deadline=None)
@given(masks)
def test_components_are_those_of_the_core(mask):
    found = find_lesions(mask)
    lesions = cut(mask)
    np.testing.assert_array_equal(spread(lesions, mask.shape).reshape(mask.shape), found.labels)
    np.testing.assert_array_equal(lesions.voxels, found.voxels)


@settings(max_examples=60, deadline=None)
@given(masks, st.integers(0, MARGIN))
def test_dilation_is_that_of_whole_volumes(mask, times):
    expected = ndimage.binary_dilation(mask, EDGES, times) if times else mask
    np.testing.assert_array_equal(dilated(np.flatnonzero(mask), mask.shape, times), np.flatnonzero(expected))


@settings(max_examples=40, deadline=None)
@given(masks)
def test_shell_is_the_surface(mask):
    lesions = cut(mask)
    np.testing.assert_array_equal(lesions.where[shell(lesions, mask.shape)], np.flatnonzero(surface(mask)))


@settings(max_examples=60, deadline=None)
@given(pairs_of_masks)
def test_touching_pairs_are_those_of_one_dilation(pair):
    both, part = pair
    own, other = cut(part), cut(both & ~part)
    numbers = [spread(lesions, both.shape).reshape(both.shape) for lesions in (own, other)]
    expected = {
        (i, int(j)) for i in range(1, len(own.voxels) + 1)
        for j in np.unique(numbers[1][ndimage.binary_dilation(numbers[0] == i, EDGES)]) if j
    }  # fmt: skip
    assert set(zip(*(side.tolist() for side in touching(own, other, both.shape)), strict=True)) == expected


def test_renumbering_deletes_and_joins():
    lesions = pieces(np.array([3, 5, 6, 9]), np.array([1, 2, 2, 3], dtype=np.int32), 3)
    joined = lesions.renumbered(np.array([1, 0, 1]))
    assert (joined.where.tolist(), joined.number.tolist(), joined.voxels.tolist()) == ([3, 9], [1, 1], [2])
