from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from oligovox.report.content import ShownCase
from oligovox.report.overlay import outlines, overlay


def _save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> str:
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path.name


def _head(shape: tuple[int, int, int] = (20, 24, 18)) -> np.ndarray:
    image = np.zeros(shape, np.float32)
    image[2:-2, 2:-2, 2:-2] = np.random.default_rng(0).uniform(1, 2, [s - 4 for s in shape])
    return image


def _case(**files: object) -> ShownCase:
    return ShownCase(case="sub-1", role="worst", sequence="FLAIR", **files)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_outlines_walk_every_face_between_inside_and_outside_once(mask: np.ndarray) -> None:
    padded = np.pad(mask, 1).astype(int)
    faces = sum(int(np.abs(np.diff(padded, axis=axis)).sum()) for axis in (0, 1))
    loops = outlines(mask)
    points = [point for loop in loops for point in loop]
    assert len(points) == len(set(points)) == faces
    for loop in loops:
        assert all(np.hypot(a[0] - b[0], a[1] - b[1]) <= 1 for a, b in pairwise([*loop, loop[0]]))


def test_voxels_that_touch_at_a_corner_have_outlines_of_their_own() -> None:
    assert sorted(len(loop) for loop in outlines(np.eye(3, dtype=bool))) == [4, 4, 4]


def test_radiological_convention(tmp_path: Path) -> None:
    """A lesion at the right, front and top is drawn at left and top in every plane, however the file is stored."""
    truth = np.zeros((20, 24, 18), np.uint8)
    truth[14:17, 18:21, 12:15] = 1
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = 19
    for affine, order in ((np.eye(4), 1), (flip, -1)):
        files = {"image": _head()[::order], "truth": truth[::order]}
        saved = {name: _save(tmp_path / f"{name}.nii.gz", array, affine) for name, array in files.items()}
        picture = overlay(_case(**saved), [], tmp_path)
        assert picture.slices == "axial 13 of 18, coronal 19 of 24, sagittal 15 of 20"
        unit = (960 - 2 * 4) / (20 + 20 + 24)  # SVG units per mm: the widths of the three panels fill the picture
        row = 24 * unit + 4  # the outlines are in the second row
        inset = 4.5 * unit  # from the middle of the lesion to the right, front or top edge of the volume
        lower = row + 3 * unit + inset  # coronal and sagittal slices are 6 mm lower than the axial one, and centred
        expected = [(inset, row + inset), (20 * unit + 4 + inset, lower), (40 * unit + 8 + inset, lower)]
        for path, middle in zip(picture.svg.split('class="truth" d="M')[1:4], expected, strict=True):
            points = np.array([point.split(",") for point in path.split("Z")[0].split()], float)
            assert points.mean(axis=0) == pytest.approx(middle, abs=0.1)


def test_a_lesion_is_drawn_around_its_voxels(tmp_path: Path) -> None:
    truth = np.zeros((20, 24, 18), np.uint8)
    truth[10, 12, 9] = 1
    saved = {"image": _save(tmp_path / "i.nii.gz", _head()), "truth": _save(tmp_path / "t.nii.gz", truth)}
    svg = overlay(_case(**saved, predictions={"ours": "t.nii.gz"}), ["ours"], tmp_path).svg
    assert svg.count('class="truth"') == 4  # three planes and the closer look
    assert svg.count('class="predicted arm-0"') == 4


@pytest.mark.parametrize(
    ("predictions", "said"),
    [
        ({"ours": "gone.nii.gz"}, "prediction of ours gone.nii.gz is not there"),
        ({"ours": "other.nii.gz"}, "prediction of ours other.nii.gz is not on the grid of the image"),
        ({"ours": "broken.nii.gz"}, "prediction of ours broken.nii.gz cannot be read"),
        ({"ours": "empty.nii.gz"}, "ours predicted no lesion."),
    ],
)
def test_what_cannot_be_drawn_is_said(tmp_path: Path, predictions: dict[str, str], said: str) -> None:
    image = _save(tmp_path / "i.nii.gz", _head())
    _save(tmp_path / "other.nii.gz", np.ones((5, 5, 5), np.uint8))
    truth = _save(tmp_path / "empty.nii.gz", np.zeros((20, 24, 18), np.uint8))
    (tmp_path / "broken.nii.gz").write_bytes(b"not a gzip file")
    picture = overlay(_case(image=image, truth=truth, predictions=predictions), ["ours"], tmp_path)
    assert picture.svg
    assert any(said in note for note in picture.notes)
    assert any("reference mask is empty" in note for note in picture.notes)


@pytest.mark.parametrize("image", ["gone.nii.gz", "broken.nii.gz", "flat.nii.gz", "."])
def test_an_unreadable_image_gives_a_sentence_instead_of_a_picture(tmp_path: Path, image: str) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8b broken")
    _save(tmp_path / "flat.nii.gz", np.ones((4, 4), np.float32))
    picture = overlay(_case(image=image), [], tmp_path)
    assert (picture.svg, picture.notes[0][:14]) == ("", "No picture: th")


def test_images_of_zeros_and_of_large_thick_slices_can_be_drawn(tmp_path: Path) -> None:
    zeros = _save(tmp_path / "z.nii.gz", np.zeros((6, 6, 6), np.float32))
    assert overlay(_case(image=zeros), [], tmp_path).svg
    thick = _save(tmp_path / "t.nii.gz", _head((500, 480, 8)), np.diag([0.45, 0.45, 6.0, 1.0]))
    assert 0 < len(overlay(_case(image=thick), [], tmp_path).svg) < 600_000
