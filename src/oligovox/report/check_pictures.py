"""Small pictures for the page of `oligovox check`: one slice of each image of a case, with the outline of its mask.

Axes: volumes are turned to (x, y, z) = RAS; pictures follow the radiological convention, as in `overlay.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from oligovox.cohort.manifest import Case
from oligovox.doctor.finding import Finding
from oligovox.errors import ImageError
from oligovox.prepare.geometry import Volume, read_volume, spacing_of, to_ras
from oligovox.report.overlay import outlines

_INCH, _DPI = 2.2, 110
_WINDOW = (1.0, 99.9)  # percentiles of the non-zero intensities shown as black and white
_PIXELS = 320  # a slice has at most this many a side
_OUTLINE = "#f0e442"
_NAMES = ("sagittal", "coronal", "axial")


@dataclass(frozen=True)
class Thumbnail:
    """One small picture.

    Attributes:
        caption: sequence, plane and slice; or why there is no picture.
        png: the picture, or None.
    """

    caption: str
    png: bytes | None


def thumbnails(case: Case, findings: Sequence[Finding]) -> list[Thumbnail]:
    """One picture an image, in the order of the sequences' names.

    Args:
        case: whose images and label.
        findings: of this case; 'axis' and 'slices' in their numbers choose the plane.
    """
    label = _read(case.label) if case.label else None
    through = _middle(label) if label is not None else None
    made = []
    for name, path in sorted(case.images.items()):
        volume = _read(path)
        if volume is None:
            made.append(Thumbnail(f"{name}: cannot be read", None))
            continue
        odd = next((f.numbers for f in findings if f.sequence == name and "slices" in f.numbers), None)
        plane = 2 if odd is None else 0 if odd.get("axis") != 0 else 2
        index = _index(volume, plane, through)
        png = _draw(volume, _on_grid(label, volume), plane, index)
        made.append(Thumbnail(f"{name}, {_NAMES[plane]} {index + 1} of {volume.shape[plane]}", png))
    return made


def _read(path: Path) -> Volume | None:
    """The volume in RAS; None where it cannot be read, which a finding says."""
    try:
        return to_ras(read_volume(path, empty_ok=True))
    except ImageError:
        return None


def _middle(label: Volume) -> NDArray[np.float64] | None:
    """The point (mm) where the slices of each axis have most of the mask; None for an empty one."""
    mask = label.array > 0.5
    if not mask.any():
        return None
    most = [int(mask.sum(axis=tuple(a for a in range(3) if a != axis)).argmax()) for axis in range(3)]
    return np.asarray(label.affine[:3, :3] @ most + label.affine[:3, 3])


def _index(volume: Volume, plane: int, through: NDArray[np.float64] | None) -> int:
    """The slice through a point; the middle of what is shown where there is none, or it lies outside."""
    if through is not None:
        back = np.linalg.inv(volume.affine)
        at = round(float((back[:3, :3] @ through + back[:3, 3])[plane]))
        if 0 <= at < volume.shape[plane]:
            return at
    shown = np.flatnonzero(volume.array.any(axis=tuple(a for a in range(3) if a != plane)))
    return int((shown[0] + shown[-1]) // 2) if shown.size else volume.shape[plane] // 2


def _on_grid(label: Volume | None, volume: Volume) -> NDArray[np.bool_] | None:
    """The mask, where it is on the grid of the image."""
    if label is None or label.shape != volume.shape or not np.allclose(label.affine, volume.affine, atol=1e-2):
        return None
    return label.array > 0.5


def _draw(volume: Volume, mask: NDArray[np.bool_] | None, plane: int, index: int) -> bytes:
    """The slice as it is looked at: rows from the top, columns from the left."""
    shown = volume.array[volume.array != 0][::11]
    low, high = np.percentile(shown, _WINDOW) if shown.size else (0.0, 1.0)
    grey = volume.array.take(index, plane)[::-1, ::-1].T
    drawn = np.zeros(grey.shape, np.bool_) if mask is None else np.asarray(mask.take(index, plane))[::-1, ::-1].T
    box = _box((grey != grey[0, 0]) | drawn)
    grey, drawn = grey[box], drawn[box]
    step = max(1, -(-max(grey.shape) // _PIXELS))
    across, up = (size for axis, size in enumerate(spacing_of(volume.affine)) if axis != plane)
    wide, tall = grey.shape[1] * across, grey.shape[0] * up
    scale = _INCH / max(wide, tall)
    figure = Figure(figsize=(_INCH, _INCH), dpi=_DPI, facecolor="black")
    left, bottom = (1 - wide * scale / _INCH) / 2, (1 - tall * scale / _INCH) / 2
    axes = figure.add_axes((left, bottom, 1 - 2 * left, 1 - 2 * bottom))
    axes.imshow(grey[::step, ::step], cmap="gray", vmin=low, vmax=max(high, low + 1e-12), aspect="auto",
                extent=(0, grey.shape[1], grey.shape[0], 0), interpolation="nearest")  # fmt: skip
    for loop in outlines(drawn):
        rows, columns = np.array([*loop, loop[0]]).T
        axes.plot(columns, rows, color=_OUTLINE, linewidth=0.8)
    axes.set_axis_off()
    picture = BytesIO()
    figure.savefig(picture, format="png", facecolor="black")
    return picture.getvalue()


def _box(shown: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Rows and columns that show something, with a little around them; all where nothing does."""
    parts = []
    for axis, size in enumerate(shown.shape):
        there = np.flatnonzero(shown.any(axis=1 - axis))
        parts.append(slice(max(0, int(there[0]) - 3), int(there[-1]) + 4) if there.size else slice(0, size))
    return parts[0], parts[1]
