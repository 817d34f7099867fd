"""Grids: the exact way when only axes, flips and crops differ, the right place in mm when not."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from oligovox.errors import ImageError
from oligovox.prepare.geometry import (
    Placement,
    Volume,
    blur_of,
    corner_distance,
    inside,
    orientation_of,
    ras_grid,
    read_volume,
    resample_labels,
    resample_to,
    same_grid,
    shifted,
    spacing_of,
    to_native,
    to_ras,
)


def _oblique(spacing: tuple[float, float, float], degrees: float = 12.0, origin: float = -7.0) -> np.ndarray:
    """Axes near L, P, S, rotated a little."""
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", [degrees, -degrees / 2, degrees / 3], degrees=True).as_matrix()
    affine[:3, :3] = turn @ np.diag([-1.0, -1.0, 1.0]) @ np.diag(spacing)
    affine[:3, 3] = origin, -origin, 2 * origin
    return affine


def _positions(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Scanner position in mm of every voxel, (3, x, y, z)."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    return np.tensordot(affine[:3, :3], index, 1) + affine[:3, 3][:, None, None, None]


@st.composite
def native_grids(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Any axis order, any flips, an odd origin, a small tilt, anisotropic voxels."""
    spacing = draw(st.sampled_from([(1.0, 1.0, 1.0), (0.72, 0.72, 3.0), (2.0, 0.5, 1.3)]))
    signs = np.diag([draw(st.sampled_from([-1.0, 1.0])) for _ in range(3)])
    order = np.eye(3)[list(draw(st.permutations(range(3))))]
    tilt = Rotation.from_euler("x", draw(st.sampled_from([0.0, 5.0])), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = tilt @ order @ signs @ np.diag(spacing)
    affine[:3, 3] = draw(st.tuples(*(st.floats(-90, 90),) * 3))
    return affine, (draw(st.integers(3, 7)), draw(st.integers(3, 7)), draw(st.integers(3, 7)))


@given(native_grids(), st.data())
def test_there_and_back_is_the_identity_in_the_crop(
    grid: tuple[np.ndarray, tuple[int, int, int]], data: st.DataObject
) -> None:
    affine, shape = grid
    array = np.random.default_rng(0).integers(1, 1000, shape).astype(np.int16)
    own_spacing = spacing_of(to_ras(Volume(array, affine)).affine)
    ras, size = ras_grid(affine, shape, own_spacing)
    assert orientation_of(ras) == "RAS"
    low = tuple(data.draw(st.integers(0, n - 2)) for n in size)
    high = tuple(data.draw(st.integers(a + 2, n)) for a, n in zip(low, size, strict=True))
    cropped, cut = shifted(ras, low), tuple(b - a for a, b in zip(low, high, strict=True))
    placement = Placement(shape, affine, cut, cropped)

    prepared = resample_to(Volume(array, affine), cropped, cut, 3)
    assert prepared.array.dtype == array.dtype
    assert (prepared.array == to_ras(Volume(array, affine)).array[tuple(map(slice, low, high))]).all()
    at_mm = {
        tuple(p): v for p, v in zip(_positions(affine, shape).reshape(3, -1).T.round(2), array.ravel(), strict=True)
    }
    for position, value in zip(_positions(cropped, cut).reshape(3, -1).T.round(2), prepared.array.ravel(), strict=True):
        assert at_mm.get(tuple(position), value) == value

    back = to_native(prepared.array, placement, 1)
    kept = to_native(np.ones(cut, dtype=bool), placement, 0)
    assert kept.sum() == np.prod(cut)
    assert (back == np.where(kept, array, 0)).all()


def test_resampling_keeps_positions_in_mm() -> None:
    source, target = _oblique((0.7, 0.7, 3.0)), _oblique((1.0, 1.2, 1.0), degrees=5.0, origin=-4.0)
    source_shape, shape = (40, 38, 12), (20, 18, 24)
    for axis in range(3):  # a ramp is reproduced exactly by linear and cubic splines away from the border
        ramp = _positions(source, source_shape)[axis].astype(np.float32)
        for order in (1, 3):
            found = resample_to(Volume(ramp, source), target, shape, order)
            ijk = np.tensordot(np.linalg.inv(source)[:3, :3], _positions(target, shape), 1)
            ijk += np.linalg.inv(source)[:3, 3][:, None, None, None]
            deep = np.all([(p > 4) & (p < n - 5) for p, n in zip(ijk, source_shape, strict=True)], axis=0)
            assert deep.sum() > 100
            np.testing.assert_allclose(found.array[deep], _positions(target, shape)[axis][deep], atol=0.03)


def test_nothing_outside_the_field_of_view() -> None:
    source = Volume(np.full((4, 4, 4), 7.0, dtype=np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    grid = np.eye(4)
    grid[:3, 3] = -3.0
    seen = inside(source, grid, (14, 14, 14))  # the field of view is -1 … 7 mm, the grid -3 … 10 mm
    assert np.argwhere(seen).min() == 2
    assert np.argwhere(seen).max() == 10
    for order in (0, 1, 3):
        found = resample_to(source, grid, (14, 14, 14), order).array
        np.testing.assert_allclose(found, np.where(seen, 7, 0), atol=1e-4)


def test_a_cubic_spline_does_not_overshoot() -> None:
    step = np.zeros((12, 12, 12), dtype=np.float32)
    step[6:] = 100
    affine, shape = ras_grid(np.eye(4), (12, 12, 12), (0.6, 0.6, 0.6))
    found = resample_to(Volume(step, np.eye(4)), affine, shape, 3).array
    assert (found.min(), found.max()) == (0, 100)


def test_a_coarser_grid_does_not_alias() -> None:
    stripes = np.zeros((32, 32, 32), dtype=np.float32)
    stripes[::2] = 100
    affine, shape = ras_grid(np.eye(4), stripes.shape, (2.5, 2.5, 2.5))
    volume = Volume(stripes, np.eye(4))
    middle = (slice(3, -3),) * 3
    assert resample_to(volume, affine, shape, 3).array[middle].std() > 20
    smooth = resample_to(volume, affine, shape, 3, smooth=True).array[middle]
    assert smooth.std() < 2
    assert smooth.mean() == pytest.approx(50, abs=1)
    assert blur_of(np.eye(4), np.diag([2.0, 1.0, 0.5, 1])) == pytest.approx((3**0.5 / 2.3548, 0, 0), abs=1e-4)


def test_the_new_grid_covers_the_old_one_around_the_same_centre() -> None:
    affine, shape = ras_grid(_oblique((0.7, 0.7, 3.0)), (41, 40, 13), (1.0, 0.7, 1.0))
    assert spacing_of(affine) == pytest.approx((1.0, 0.7, 1.0))
    assert shape == (29, 40, 39)
    old_centre = _oblique((0.7, 0.7, 3.0)) @ [20, 19.5, 6, 1]
    np.testing.assert_allclose(affine @ [14, 19.5, 19, 1], old_centre, atol=1e-9)


@pytest.mark.parametrize("spacing", [(0.8, 0.8, 0.8), (2.0, 2.0, 2.0), (1.0, 1.0, 3.0)])
def test_labels_keep_their_volume(spacing: tuple[float, float, float]) -> None:
    shape = (41, 40, 42)
    position = _positions(np.eye(4), shape)
    label = np.zeros(shape, dtype=np.int8)
    for index, (centre, radius) in enumerate([((12.3, 20.1, 19.6), 8), ((28.6, 20.4, 20.2), 7)], start=1):
        label[np.linalg.norm(position - np.array(centre)[:, None, None, None], axis=0) < radius] = index
    affine, size = ras_grid(np.eye(4), shape, spacing)
    found = resample_labels(Volume(label, np.eye(4)), affine, size, 2)
    assert found.dtype == np.int8
    for index in (1, 2):
        before, after = np.sum(label == index), np.sum(found == index) * np.prod(spacing)
        assert after == pytest.approx(before, rel=0.03)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 0.7), (0.8, 1.3, 1.3), (2.0, 2.0, 1.9)])
def test_where_nobody_looked_has_no_share_in_a_class(spacing: tuple[float, float, float]) -> None:
    whole = np.zeros(
        (30, 30, 30), dtype=np.int8
    )  # the same in every slice, so that what is known does not depend on which are
    whole[5:14, 8:20], whole[14:22, 8:20] = 1, 2
    part = whole.copy()
    part[:, :, np.arange(30) % 7 != 3] = -1
    affine, shape = ras_grid(np.eye(4), whole.shape, spacing)
    affine = shifted(affine, (0, 0, -3))  # three slices outside the field of view
    found = resample_labels(Volume(part, np.eye(4)), affine, shape, 2)
    z = (affine @ np.array([[0, 0, k, 1] for k in range(shape[2])]).T)[2]
    known = np.isin(np.rint(z), [3, 10, 17, 24])
    assert known.any()
    np.testing.assert_array_equal(found[:, :, ~known], -1)
    np.testing.assert_array_equal(
        found[:, :, known], resample_labels(Volume(whole, np.eye(4)), affine, shape, 2)[:, :, known]
    )


def test_a_smooth_blob_comes_back_through_resampling() -> None:
    native, shape = _oblique((0.8, 0.8, 3.0)), (60, 60, 18)
    centre = (native @ [30, 31, 9, 1])[:3]
    distance = np.linalg.norm(_positions(native, shape) - centre[:, None, None, None], axis=0)
    blob = np.exp(-(distance**2) / (2 * 8.0**2)).astype(np.float32)
    affine, size = ras_grid(native, shape, (1.0, 1.0, 1.0))
    prepared = resample_to(Volume(blob, native), affine, size, 1).array
    back = to_native(prepared, Placement(shape, native, size, affine), 1)
    one, two = blob > 0.5, back > 0.5
    assert 2 * (one & two).sum() / (one.sum() + two.sum()) > 0.95
    both = to_native(np.stack([prepared, 1 - prepared]), Placement(shape, native, size, affine), 1)
    assert both.shape == (2, *shape)
    np.testing.assert_array_equal(both[0], back)


def test_placement_survives_json() -> None:
    placement = Placement((3, 4, 5), _oblique((0.7, 0.7, 3)), (6, 7, 8), _oblique((1, 1, 1)))
    again = Placement.from_json(placement.as_json())
    assert again.as_json() == placement.as_json()
    assert (again.native_affine == placement.native_affine).all()


def test_grids_are_compared_at_their_corners_in_mm() -> None:
    affine = _oblique((0.7, 0.7, 3.0))
    volume = Volume(np.zeros((100, 100, 20)), affine)
    tilted = affine.copy()
    tilted[0, 0] += 5e-6  # a cosine differs in the sixth digit: half a micrometre at the far corner
    assert same_grid(volume, Volume(volume.array, tilted))
    moved = affine.copy()
    moved[2, 3] += 0.01
    assert not same_grid(volume, Volume(volume.array, moved))
    assert corner_distance(affine, moved, volume.shape) == pytest.approx(0.01)
    assert not same_grid(volume, Volume(volume.array[1:], affine))


def test_reading_applies_scale_factors_and_drops_trailing_axes(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(27, dtype=np.int16).reshape(3, 3, 3, 1), np.diag([1, 2, 3, 1]))
    image.header.set_slope_inter(2, 1)
    nib.save(image, tmp_path / "x.nii.gz")
    raw = nib.load(tmp_path / "x.nii.gz").get_fdata()
    volume = read_volume(tmp_path / "x.nii.gz")
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, raw[..., 0])
    assert spacing_of(volume.affine) == (1, 2, 3)


def _save(array: np.ndarray, affine: np.ndarray | None = None):
    return lambda path: nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def _truncate(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 9999, (20, 20, 20)).astype(np.int16)
    _save(noise)(path)
    path.write_bytes(path.read_bytes()[:-4000])


def _damage(path: Path) -> None:
    _truncate(path)
    content = bytearray(path.read_bytes())
    content[2000:2100] = bytes(100)
    path.write_bytes(content)


def _short(path: Path) -> None:
    _truncate(path)
    _save(np.ones((9, 9, 9), dtype=np.int16))(path)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-300]))


_FLAT = np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # x and y point the same way
_HOLES = np.ones((4, 4, 4), dtype=np.float32)
_HOLES[0, 0, :2] = np.nan, np.inf


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda path: None, "missing"),
        (lambda path: path.symlink_to(path.parent / "annex"), "link to nowhere"),
        (_truncate, "truncated or damaged"),
        (_damage, "truncated or damaged"),
        (_short, "truncated or damaged"),
        (lambda path: path.write_bytes(b"not an image"), "truncated or damaged"),
        (_save(_HOLES), "2 voxels are NaN or infinite"),
        (_save(np.ones((4, 4, 4, 3), dtype=np.int16)), r"has shape \(4, 4, 4, 3\)"),
        (_save(np.ones((4, 4, 1), dtype=np.int16)), r"has shape \(4, 4, 1\)"),
        (_save(np.zeros((4, 4, 4), dtype=np.int16)), "every voxel is 0"),
        (_save(np.ones((4, 4, 4), dtype=np.int16), _FLAT), "no inverse"),
    ],
)
def test_a_file_that_is_no_volume(tmp_path: Path, make, found: str) -> None:
    path = tmp_path / "x.nii.gz"
    make(path)
    with pytest.raises(ImageError, match=found) as caught:
        read_volume(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert caught.value.path == path


def test_an_empty_mask_can_be_read(tmp_path: Path) -> None:
    _save(np.zeros((4, 4, 4), dtype=np.uint8))(tmp_path / "x.nii.gz")
    assert not read_volume(tmp_path / "x.nii.gz", empty_ok=True).array.any()
