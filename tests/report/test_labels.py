"""The picture of what is labelled."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from oligovox.errors import GeometryError
from oligovox.report.labels import LabelView, _telling_slice, labels_png, read_view

SHAPE = (20, 24, 16)


def ball() -> np.ndarray:
    away = np.linalg.norm(np.indices(SHAPE) - np.reshape((9.5, 11.5, 7.5), (3, 1, 1, 1)), axis=0)
    return np.where(away < 7, 100.0, 0.0)


def test_it_is_cut_where_most_is_known_of_what_is_rare() -> None:
    label = np.full(SHAPE, -1, np.int8)
    label[:, :, [3, 9]] = 0
    assert _telling_slice(label, 2) == 3
    label[4:6, 4, 9] = 1
    assert [_telling_slice(label, axis) for axis in range(3)] == [4, 4, 9]
    boxes = np.zeros(SHAPE, np.int8)
    boxes[5:8, 10, 12] = -1
    assert [_telling_slice(boxes, axis) for axis in range(3)] == [5, 10, 12]


def test_what_nobody_looked_at_is_pale_blue_and_the_rest_is_grey() -> None:
    def tints(label: np.ndarray) -> int:
        png = labels_png([LabelView("sub-1", ball(), label, (1.0, 1.0, 2.0))])
        pixels = np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(int)
        pixels = pixels[: int(0.85 * len(pixels))]  # without the legend
        return int((abs(pixels[..., 2] - pixels[..., 0] - 20) <= 1).sum())

    whole, none = np.zeros(SHAPE, np.int8), np.full(SHAPE, -1, np.int8)
    half = np.where(np.indices(SHAPE)[2] < 8, 0, -1).astype(np.int8)
    found = [tints(label) for label in (whole, half, none)]
    assert found[0] < 0.05 * found[1], "but for the soft edge of the border"
    assert found[1] < 0.8 * found[2]


def test_files_are_read_on_one_grid(tmp_path: Path) -> None:
    label = np.full(SHAPE, 255, np.uint8)
    label[3, 4, 5], label[3, 5, 5] = 2, 0
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    nib.save(nib.Nifti1Image(ball()[::-1].astype(np.float32), flip), tmp_path / "image.nii.gz")
    nib.save(nib.Nifti1Image(label[::-1], flip), tmp_path / "label.nii.gz")
    view = read_view("x", tmp_path / "image.nii.gz", tmp_path / "label.nii.gz")
    assert (view.label[3, 4, 5], view.label[3, 5, 5]) == (2, 0)
    assert np.count_nonzero(view.label == -1) == label.size - 2
    np.testing.assert_array_equal(view.image, ball())
    nib.save(nib.Nifti1Image(label[1:], flip), tmp_path / "label.nii.gz")
    with pytest.raises(GeometryError, match=r"has shape \(19, 24, 16\)"):
        read_view("x", tmp_path / "image.nii.gz", tmp_path / "label.nii.gz")
