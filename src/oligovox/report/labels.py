"""Picture of what is labelled: three planes of an exam, known lesions and the border of what somebody looked at on it, the rest pale.

Axes: volumes are turned to (x, y, z) = RAS; pictures follow the radiological convention, as in `overlay.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from oligovox.cohort.annotate import NOBODY_LOOKED, NOT_LOOKED
from oligovox.errors import GeometryError
from oligovox.report.overlay import outlines

_INCH = 2.3  # height of a row
_WINDOW = (1.0, 99.9)  # percentiles of the non-zero intensities shown as black and white
_PALE = np.array([0.62, 0.66, 0.78])  # what a voxel that nobody looked at is mixed with
_LOOKED, _LESION = "#39c0c8", "#ff6a3d"
_PLANES = (("axial", 2), ("coronal", 1), ("sagittal", 0))


@dataclass(frozen=True)
class LabelView:
    """One exam.

    Attributes:
        title: above its row.
        image: (x, y, z) intensities, RAS.
        label: (x, y, z) class, 0 background, -1 where nobody looked.
        spacing: voxel size, mm.
    """

    title: str
    image: NDArray[Any]
    label: NDArray[np.int8]
    spacing: tuple[float, float, float]


def read_view(title: str, image: Path, label: Path) -> LabelView:
    """One exam from its files, NIfTI on one grid; 255 in the label is where nobody looked.

    Raises:
        GeometryError: their shapes differ.
        OSError: a file is not there, or cannot be read.
    """
    shown, drawn = (nib.as_closest_canonical(nib.load(path)) for path in (image, label))
    grey, values = (np.squeeze(np.asarray(one.dataobj, dtype=np.float32)) for one in (shown, drawn))
    if grey.shape != values.shape or grey.ndim != 3:
        raise GeometryError(f"{label} has shape {values.shape}, {image} has {grey.shape}; expected one 3-D grid")
    known = np.where(values == NOBODY_LOOKED, NOT_LOOKED, values.clip(0, 127)).astype(np.int8)
    x, y, z = np.linalg.norm(shown.affine[:3, :3], axis=0).tolist()
    return LabelView(title, np.nan_to_num(grey), known, (x, y, z))


def labels_png(views: Sequence[LabelView]) -> bytes:
    """A PNG with a row an exam, cut in each plane where most lesion is known; without any, where most is of what is rarer: looked at or not."""
    figure = Figure(figsize=(3 * _INCH, len(views) * (_INCH + 0.2) + 0.35), dpi=110, facecolor="white")
    grid = figure.add_gridspec(len(views), 3, left=0.01, right=0.99, bottom=0.30 / figure.get_figheight(), hspace=0.12,
                               top=1 - 0.25 / figure.get_figheight(), wspace=0.02)  # fmt: skip
    for row, view in enumerate(views):
        low, high = np.percentile(view.image[view.image != 0], _WINDOW) if view.image.any() else (0.0, 1.0)
        box = _box((view.image != 0) | (view.label > 0))
        for column, (plane, axis) in enumerate(_PLANES):
            axes, index = figure.add_subplot(grid[row, column]), _telling_slice(view.label, axis)
            cut = tuple(index if a == axis else part for a, part in enumerate(box))
            grey = ((view.image[cut] - low) / max(float(high - low), 1e-12)).clip(0, 1)
            across, up = (view.spacing[a] for a in range(3) if a != axis)
            _panel(axes, grey[::-1, ::-1].T, view.label[cut][::-1, ::-1].T, up / across)
            title = f"{view.title}  {plane} {index + 1}" if column == 0 else f"{plane} {index + 1}"
            axes.set_title(f"{title} of {view.label.shape[axis]}", fontsize=7, pad=2, parse_math=False)
    keys = [
        Line2D([], [], color=_LOOKED, label="border of what was looked at"),
        Line2D([], [], color=_LESION, label="lesion that was drawn"),
        Line2D([], [], color=tuple((0.75 * _PALE + 0.2).tolist()), linewidth=6, label="nobody looked"),
    ]
    figure.legend(handles=keys, loc="lower center", ncols=3, fontsize=7, frameon=False)
    picture = BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _panel(axes: Any, grey: NDArray[Any], label: NDArray[np.int8], aspect: float) -> None:
    """A slice as it is looked at: (row from the top, column from the left)."""
    unlooked = (label < 0)[..., None]
    colours = np.where(unlooked, 0.45 * grey[..., None] + 0.5 * _PALE, grey[..., None])
    axes.imshow(colours.clip(0, 1), aspect=aspect, interpolation="nearest")
    for mask, colour in ((label >= 0, _LOOKED), (label > 0, _LESION)):
        for loop in outlines(mask):
            rows, columns = np.array([*loop, loop[0]]).T - 0.5
            axes.plot(columns, rows, color=colour, linewidth=0.8)
    axes.set_axis_off()


def _telling_slice(label: NDArray[np.int8], axis: int) -> int:
    looked = label >= 0
    telling = label > 0 if (label > 0).any() else looked if looked.mean() < 0.5 else ~looked
    return int(telling.sum(tuple(a for a in range(3) if a != axis)).argmax())


def _box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Where the mask is, with three voxels around it; everything where it is empty."""
    box = []
    for axis, size in enumerate(mask.shape):
        there = np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis)))
        box.append(slice(max(int(there[0]) - 3, 0), int(there[-1]) + 4) if there.size else slice(0, size))
    return tuple(box)
