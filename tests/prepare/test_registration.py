"""Registration finds planted moves, says when it found none, and writes transforms that ITK reads the same way."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from oligovox.errors import CohortError, SettingsError
from oligovox.prepare import geometry
from oligovox.prepare.geometry import Volume, resample_to
from oligovox.prepare.registration import (
    _better,
    itk_image,
    moved,
    ras_to_lps,
    read_itk,
    register,
    shift_and_turn,
    write_itk,
)
from oligovox.simulate.recipe import make_recipe
from oligovox.simulate.subject import simulate_subject


@pytest.fixture(scope="module")
def head() -> dict[str, Volume]:
    """A simulated head at 3 mm, not stripped: T1w, T2w, FLAIR on one grid."""
    still = {"acquisition": {"shift_mm": 0.0, "turn_deg": 0.0}}
    made = simulate_subject(make_recipe("ms-3t", {"spacing": 3.0, "head": {}, **still}), 1)
    return {name: Volume(array, made.affine) for name, array in made.images.items()}


def rigid(turn_deg: tuple[float, float, float], shift_mm: tuple[float, float, float], about: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix()
    matrix[:3, 3] = about - matrix[:3, :3] @ about + shift_mm
    return matrix


def test_planted_moves_are_found(head: dict[str, Volume]) -> None:
    """A T1w scanned with the head elsewhere, on its own thick grid, comes back onto the FLAIR."""
    fixed, truth = head["FLAIR"], head["T1w"]
    middle = fixed.affine[:3, :3] @ (np.array(fixed.shape) / 2) + fixed.affine[:3, 3]
    for turn, shift in (((6.0, -4.0, 3.0), (5.0, -8.0, 4.0)), ((-3.0, 0.0, 8.0), (-12.0, 3.0, 0.0))):
        there = rigid(turn, shift, middle)  # tissue at p in the fixed image is at there·p in the moving one
        grid = there @ truth.affine @ np.diag([1.4, 1.4, 1.0, 1.0])
        shape = tuple(int(n / s) for n, s in zip(truth.shape, (1.4, 1.4, 1.0), strict=True))
        voxels = resample_to(truth, np.linalg.inv(there) @ grid, shape, 1)
        found = register(Volume(voxels.array, grid), fixed)
        away = found.matrix @ there
        far, angle = shift_and_turn(away, fixed.affine, fixed.shape)
        assert found.improved
        assert found.after > found.before
        assert far < 1
        assert angle < 1


def test_without_overlap_it_begins_at_the_centres_of_mass(head: dict[str, Volume]) -> None:
    away = np.eye(4)
    away[:3, 3] = 400, -50, 300
    found = register(moved(head["T2w"], away), head["FLAIR"])
    assert found.before is None
    assert found.improved
    assert found.start != "header"
    shift, turn = shift_and_turn(found.matrix @ away, head["FLAIR"].affine, head["FLAIR"].shape)
    assert shift < 1
    assert turn < 1


@pytest.mark.parametrize(("lowest", "slices"), [(4, 8), (20, 2)])
def test_a_thin_slab_stays_where_its_right_header_puts_it(head: dict[str, Volume], lowest: int, slices: int) -> None:
    whole = head["T2w"]
    slab = Volume(whole.array[:, :, lowest : lowest + slices].copy(), geometry.shifted(whole.affine, (0, 0, lowest)))
    found = register(slab, head["FLAIR"], near=True)
    assert found.overlap > 0.9
    assert found.after == found.before or found.after > found.before  # of two slices ITK gives no metric
    shift, turn = shift_and_turn(found.matrix, slab.affine, slab.shape)
    assert shift < 2
    assert turn < 2


def test_what_is_believed() -> None:
    assert _better(0.81, 0.80, far=False)
    assert not _better(0.79, 0.80, far=False)
    assert not _better(0.99, 0.80, far=True)  # far away it must be a quarter better
    assert _better(1.01, 0.80, far=True)
    assert _better(0.1, None, far=False)


def test_an_image_onto_itself_stays() -> None:
    noise = Volume(np.random.default_rng(0).normal(100, 9, (24, 24, 24)).astype(np.float32), np.diag([4.0, 4, 4, 1]))
    found = register(noise, noise)
    assert not found.improved
    np.testing.assert_array_equal(found.matrix, np.eye(4))
    assert found.before == found.after


numbers = st.floats(-80, 80)


@given(st.tuples(numbers, numbers, numbers), st.tuples(numbers, numbers, numbers), st.tuples(numbers, numbers, numbers))
def test_files_are_those_of_itk(tmp_path_factory, turn, shift, point) -> None:
    import SimpleITK as sitk

    path = tmp_path_factory.mktemp("xfm") / "a_xfm.txt"
    matrix = rigid(turn, shift, np.array([3.0, 9.0, -5.0]))
    write_itk(matrix, path)
    np.testing.assert_allclose(read_itk(path), matrix, atol=1e-9)
    itk = sitk.ReadTransform(str(path))  # fixed → moving, LPS
    x, y, z = itk.TransformPoint((-point[0], -point[1], point[2]))
    np.testing.assert_allclose(matrix @ [-x, -y, z, 1], [*point, 1], atol=1e-6)
    sitk.WriteTransform(sitk.AffineTransform(itk), str(path))
    np.testing.assert_allclose(read_itk(path), matrix, atol=1e-6)
    np.testing.assert_allclose(ras_to_lps(ras_to_lps(matrix)), matrix)


def test_other_tools_apply_the_file_as_we_do(tmp_path: Path) -> None:
    import SimpleITK as sitk

    rng = np.random.default_rng(1)
    moving = Volume(rng.normal(50, 10, (12, 14, 10)).astype(np.float32), np.diag([-2.0, 2, 2.5, 1]))
    fixed = Volume(
        np.zeros((16, 13, 12), np.float32), rigid((0, 0, 10), (-25, -2, 1), np.zeros(3)) @ np.diag([1.8, 2, 2, 1])
    )
    matrix = rigid((5, -8, 3), (1.5, 2, -3), np.zeros(3))
    write_itk(matrix, tmp_path / "m_xfm.txt")
    theirs = sitk.Resample(
        itk_image(moving), itk_image(fixed), sitk.ReadTransform(str(tmp_path / "m_xfm.txt")), sitk.sitkLinear, -1.0
    )
    theirs = sitk.GetArrayFromImage(theirs).T
    ours = resample_to(moved(moving, matrix), fixed.affine, fixed.shape, 1).array
    seen = theirs != -1
    assert seen.mean() > 0.1
    inner = seen & (ours != 0)
    np.testing.assert_allclose(ours[inner], theirs[inner], atol=2e-3)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "#Insight Transform File V1.0\nTransform: BSplineTransform_double_3_3\nParameters: 1\nFixedParameters: 0",
        "#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\nParameters: 1 2 x\nFixedParameters: 0 0 0",
        "#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\nParameters: "
        + "0 " * 12
        + "\nFixedParameters: 0 0 0",
    ],
)
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text(text)
    with pytest.raises(CohortError, match=r"bad\.txt"):
        read_itk(tmp_path / "bad.txt")


def test_without_simpleitk_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    volume = Volume(np.ones((4, 4, 4), np.float32), np.eye(4))
    with pytest.raises(SettingsError, match=r"pip install 'oligovox\[raw\]'"):
        register(volume, volume)
