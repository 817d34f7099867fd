"""Lost and repeated slices, clipping, noise, ghosts, fields: worked values on small heads of known make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import fft, ndimage

from oligovox.doctor.intensity import check_intensity, clipped_share, ghosts, noise, odd_slices, snr, unevenness
from oligovox.doctor.seen import Seen, otsu
from oligovox.prepare.geometry import Volume
from oligovox.simulate.scanner.kspace import ghost_lines

SHAPE = (64, 76, 60)


def seen(array: np.ndarray, mm: float = 3.0) -> Seen:
    return Seen.of("T1w", Path("t1w.nii.gz"), Volume(array.astype(np.float32), np.diag([mm, mm, mm, 1.0])))


def head(noise: float = 4.0, *, stripped: bool = False) -> np.ndarray:
    """A ball of brightness 200 with soft structure, in noisy air or in zeros."""
    rng = np.random.default_rng(3)
    axes = np.meshgrid(*[np.linspace(-1.5, 1.5, n) for n in SHAPE], indexing="ij")
    ball = sum(axis**2 for axis in axes) < 1
    soft = ndimage.gaussian_filter(rng.normal(size=SHAPE), 3)
    array = np.hypot(ball * (200 + 20 * soft / soft.std()) + rng.normal(0, noise, SHAPE), rng.normal(0, noise, SHAPE))
    return array * ball if stripped else array


def names(array: np.ndarray, covering: str = "head") -> set[str]:
    return {found.check for found in check_intensity("sub-1", seen(array), covering)}  # type: ignore[arg-type]


@pytest.mark.parametrize("covering", ["head", "stripped"])
def test_a_clean_image_has_nothing(covering: str) -> None:
    assert names(head(stripped=covering == "stripped"), covering) == set()


@given(st.integers(0, 2), st.integers(20, 35), st.integers(1, 4))
def test_lost_slices_are_counted_where_they_are(axis: int, first: int, many: int) -> None:
    array = np.random.default_rng(0).normal(100, 5, (48, 44, 42)).astype(np.float32)
    np.moveaxis(array, axis, 0)[first : first + many] = 0
    found = odd_slices(array)[axis]
    assert found.empty == tuple(range(first, first + many))
    assert found.of == array.shape[axis] - many
    assert not found.repeated
    assert all(not odd.empty for odd in odd_slices(array) if odd.axis != axis)


def test_empty_slices_at_the_ends_are_the_field_of_view() -> None:
    array = np.zeros((10, 10, 10), np.float32)
    array[2:8, 2:8, 2:8] = np.random.default_rng(0).random((6, 6, 6))
    assert all(not odd.empty and not odd.repeated and odd.of == 6 for odd in odd_slices(array))


def test_a_repeated_slice_is_named_counted_from_one() -> None:
    array = head()
    array[:, :, 31] = array[:, :, 30]
    (found,) = check_intensity("sub-1", seen(array), "head")
    assert found.check == "repeated_slices"
    assert found.severity == "warning"
    assert found.found == "1 of 60 slices along head-foot repeat the one before: 32"
    assert found.numbers["slices"] == (31,)


def test_clipping_counts_the_highest_value() -> None:
    array = head(stripped=True)
    cut = np.percentile(array[array > 0], 98)
    share, ratio = clipped_share(seen(array.clip(None, cut)))
    assert share == pytest.approx(0.02, rel=0.1)
    assert ratio > 100
    assert names(array.clip(None, cut), "stripped") == {"clipped"}


def test_few_grey_levels_are_not_clipping() -> None:
    """An 8-bit image has many voxels of each value, the highest too, and no more of that."""
    array = np.random.default_rng(0).integers(100, 140, SHAPE) * (head(stripped=True) > 0)
    assert clipped_share(seen(array))[1] < 2
    assert "clipped" not in names(array, "stripped")


def test_noise_is_measured_in_units_of_the_file() -> None:
    assert noise(seen(head(8.0))) == pytest.approx(8.0, rel=0.15)
    assert snr(seen(head(8.0))) == pytest.approx(25, rel=0.2)
    assert "noisy" in names(head(70.0))


@pytest.mark.parametrize("axis", [0, 1])
def test_ghosts_are_seen_along_their_axis(axis: int) -> None:
    lines = ghost_lines(SHAPE[axis], 0.35 * SHAPE[axis], 0.2).reshape([-1 if a == axis else 1 for a in range(3)])
    array = np.abs(fft.ifft(fft.fft(head(), axis=axis) * lines, axis=axis))
    found = ghosts(seen(array))
    assert found is not None
    assert found[1] == axis
    assert found[0] > 0.06
    assert "ghosts" in names(array)
    clean = ghosts(seen(head()))
    assert clean is not None
    assert abs(clean[0]) < 0.01


def test_without_air_ghosts_are_not_guessed() -> None:
    assert ghosts(seen(head(stripped=True))) is None


def test_a_field_of_a_known_range() -> None:
    """exp(a x) over a ball, x from -1 to 1: nine tenths of its voxels have |x| < 0.81, less what smoothing takes."""
    x = np.linspace(-1.5, 1.5, SHAPE[0])[:, None, None]
    assert unevenness(seen(head(stripped=True))) < 0.05
    for much in (0.5, 1.0):
        assert 0.4 * much < unevenness(seen(head(stripped=True) * np.exp(much * x))) < 0.81 * much
    assert "uneven" in names(head(stripped=True) * np.exp(1.4 * x), "stripped")


def test_a_field_too_strong_for_a_threshold_is_still_seen() -> None:
    """A factor of 37: half of the ball lies below Otsu's threshold."""
    x = np.linspace(-1.5, 1.5, SHAPE[0])[:, None, None]
    strong = seen(head(stripped=True) * np.exp(1.8 * x))
    assert unevenness(strong) > 0.8


def test_otsu_parts_two_heaps() -> None:
    values = np.concatenate([np.full(100, 10.0), np.full(50, 90.0)])
    assert 10 < otsu(values) < 90
