"""The robust z-score."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oligovox.prepare.intensity import LIMIT, robust_scale, robust_zscore


def test_worked_values() -> None:
    values = np.arange(
        201, dtype=np.float32
    )  # percentiles 0.5 and 99.5 are 1 and 199: one value is clipped at each end
    scale = robust_scale(values)
    assert (scale.low, scale.high, scale.mean) == pytest.approx((1, 199, 100))
    assert scale.sd == pytest.approx(np.sqrt((2 * sum(i**2 for i in range(100)) + 2 * 99**2) / 201))
    z = robust_zscore(values.reshape(3, 67, 1), np.ones((3, 67, 1), dtype=bool))
    assert z[2, 66, 0] == pytest.approx(100 / scale.sd)  # the outlier itself is not clipped


@given(st.floats(0.1, 1000), st.floats(-1e4, 1e4), st.integers(0, 99))
def test_scanner_gain_and_offset_do_not_matter(gain: float, offset: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    array, foreground = rng.normal(size=(9, 8, 7)), rng.random((9, 8, 7)) < 0.6
    z = robust_zscore(array, foreground)
    np.testing.assert_allclose(robust_zscore(gain * array + offset, foreground), z, atol=2e-2)
    assert not z[~foreground].any()
    assert abs(z[foreground].mean()) < 0.1
    assert 0.8 < z[foreground].std() < 1.2


def test_one_hot_voxel_neither_moves_the_rest_nor_leaves_the_range() -> None:
    array = np.random.default_rng(0).normal(100, 10, (10, 10, 10)).astype(np.float32)
    foreground = np.ones(array.shape, dtype=bool)
    calm = robust_zscore(array, foreground)
    array[0, 0, 0] = 1e9
    hot = robust_zscore(array, foreground)
    assert hot[0, 0, 0] == LIMIT
    np.testing.assert_allclose(hot[1:], calm[1:], atol=0.02)


def test_nothing_to_scale_gives_zeros() -> None:
    array = np.full((3, 3, 3), 5.0)
    assert not robust_zscore(array, np.ones((3, 3, 3), dtype=bool)).any()
    assert not robust_zscore(array, np.zeros((3, 3, 3), dtype=bool)).any()
