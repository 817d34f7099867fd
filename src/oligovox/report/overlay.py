"""Pictures: one case in three planes, outlines of reference and prediction on the image, as inline SVG.

The slices are grey PNG pixels at the image's own resolution; outlines are vectors along the voxel faces, so that they stay
sharp on paper. Axes: volumes are turned to (x, y, z) = RAS; pictures follow the radiological convention (the patient's
right is on the left; in the sagittal plane the front is on the left).
"""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import uniform_filter

from oligovox.report.content import ShownCase
from oligovox.report.text import Html, escape

_PLANES = ((2, "axial", "RLAP"), (1, "coronal", "RLSI"), (0, "sagittal", "APSI"))
"""Axis across the slice, name, letters at left, right, top, bottom."""
_WIDTH, _GAP = 960.0, 4.0  # of the picture, and between panels and rows, in SVG units
_MOST_PIXELS = 320  # a slice has at most this many pixels a side
_ZOOM_MM = 64.0  # width of the closer look
_WINDOW = (1.0, 99.9)  # percentiles of the non-zero intensities shown as black and white


@dataclass(frozen=True)
class Picture:
    """A drawn case.

    Attributes:
        svg: the picture, '' where the image cannot be read.
        notes: one sentence for each thing that could not be drawn, or that a reader must know.
        slices: where it was cut, e.g. 'axial 67 of 134, coronal 80 of 168, sagittal 50 of 135'.
    """

    svg: Html
    notes: tuple[str, ...]
    slices: str


def overlay(case: ShownCase, arms: Sequence[str], root: Path) -> Picture:
    """Draw one case: a row with the bare image, a row for each arm with its outline and that of the reference, and below a
    closer look at all of them in the axial plane, where most lesion is.

    Args:
        case: files and names.
        arms: names of the arms in the order of their colours; those without a prediction have no row.
        root: folder that relative paths start from.
    """
    notes: list[str] = []
    image = _volume(root, case.image, "image", notes)
    if image is None:
        return Picture(Html(""), tuple(notes), "")
    truth = _mask(root, case.truth, "reference mask", image, notes) if case.truth else None
    files = [(place, arm, case.predictions[arm]) for place, arm in enumerate(arms) if arm in case.predictions]
    masks = {arm: (place, _mask(root, file, f"prediction of {arm}", image, notes)) for place, arm, file in files}
    drawn = {arm: (place, mask) for arm, (place, mask) in masks.items() if mask is not None}
    if truth is not None and not truth.any():
        notes.append("The reference mask is empty: no lesion was drawn here.")
    notes += [f"{arm} predicted no lesion." for arm, (_, mask) in drawn.items() if not mask.any()]
    panels, slices = _panels(image, [mask for mask in (truth, *(m for _, m in drawn.values())) if mask is not None])
    rows = [_Row(case.sequence, "", None, None)]
    rows += [_Row(arm, f"arm-{place % 4}", truth, mask) for arm, (place, mask) in drawn.items()]
    if not drawn and truth is not None:
        rows.append(_Row("reference", "", truth, None))
    what = f"{case.sequence} of {case.case} ({case.role}) in three planes: {slices}. " + " ".join(notes)
    return Picture(_draw(panels, rows, what.strip()), tuple(notes), slices)


@dataclass(frozen=True)
class _Image:
    grey: np.ndarray  # (x, y, z) uint8
    affine: np.ndarray  # 4 × 4
    spacing: tuple[float, ...]  # mm


@dataclass(frozen=True)
class _Row:
    title: str
    style: str  # class of the prediction's outline
    truth: np.ndarray | None  # (x, y, z) bool
    mask: np.ndarray | None


@dataclass(frozen=True)
class _Panel:
    """One plane: how to cut it, and its place in a row of pictures, in SVG units."""

    axis: int
    index: int
    box: tuple[slice, slice, slice]
    letters: str
    grey: np.ndarray  # (row, column) uint8
    left: float
    step: tuple[float, float]  # width and height of a voxel
    scale: float  # SVG units per mm

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """The slice as it is looked at: (row from the top, column from the left)."""
        inside = [self.index if axis == self.axis else part for axis, part in enumerate(self.box)]
        return np.asarray(volume[tuple(inside)][::-1, ::-1].T)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height."""
        rows, columns = self.grey.shape
        return columns * self.step[0], rows * self.step[1]


def _load(root: Path, file: str) -> tuple[np.ndarray, np.ndarray]:
    """Array (x, y, z) in RAS and its affine."""
    nifti = nib.as_closest_canonical(nib.load(root / file))
    array = np.asarray(nifti.dataobj, dtype=np.float32)
    array = array.reshape(array.shape[:3]) if array.ndim > 3 and array[..., :1].size == array.size else array
    if array.ndim != 3 or not array.size:
        raise ValueError(f"shape {array.shape}, expected a 3-D volume")
    return np.nan_to_num(array, posinf=0, neginf=0), nifti.affine


def _volume(root: Path, file: str, what: str, notes: list[str]) -> _Image | None:
    try:
        array, affine = _load(root, file)
    except FileNotFoundError:
        notes.append(f"No picture: the {what} {file} is not there (it was moved or deleted after the run).")
        return None
    except Exception as error:  # any file may lie here; a page never fails because of a picture
        notes.append(f"No picture: the {what} {file} cannot be read ({' '.join(str(error).split())[:120]}).")
        return None
    shown = array[array != 0]
    low, high = np.percentile(shown, _WINDOW) if shown.size else (0.0, 1.0)
    grey = np.clip((array - low) / max(float(high - low), 1e-12), 0, 1) * (array != 0)
    spacing = tuple(float(step) for step in np.linalg.norm(affine[:3, :3], axis=0))
    return _Image(np.round(255 * grey).astype(np.uint8), affine, spacing)


def _mask(root: Path, file: str, what: str, image: _Image, notes: list[str]) -> np.ndarray | None:
    try:
        array, affine = _load(root, file)
    except Exception as error:  # as above
        reason = "is not there" if isinstance(error, FileNotFoundError) else "cannot be read"
        notes.append(f"The {what} {file} {reason}; it is not drawn.")
        return None
    if array.shape != image.grey.shape or not np.allclose(affine, image.affine, atol=1e-2):
        notes.append(f"The {what} {file} is not on the grid of the image; it is not drawn.")
        return None
    return array > 0.5


def _panels(image: _Image, masks: Sequence[np.ndarray]) -> tuple[list[_Panel], str]:
    """The three planes side by side in one scale, cut where the first mask that has any lesion has most of it."""
    shown = np.logical_or.reduce([image.grey > 0, *masks])
    box = (_extent(shown, 0), _extent(shown, 1), _extent(shown, 2))
    area = next((mask for mask in masks if mask.any()), shown)
    cut = [int(_profile(area, axis).argmax()) if area.any() else area.shape[axis] // 2 for axis in range(3)]
    columns = {axis: 1 if axis == 0 else 0 for axis in range(3)}  # axis that runs from right to left in the picture
    across = {axis: (box[c].stop - box[c].start) * image.spacing[c] for axis, c in columns.items()}
    scale = (_WIDTH - 2 * _GAP) / sum(across.values())
    panels, left = [], 0.0
    for axis, _, letters in _PLANES:
        u, v = (a for a in range(3) if a != axis)
        step = (image.spacing[u] * scale, image.spacing[v] * scale)
        panel = _Panel(axis, cut[axis], box, letters, np.empty((0, 0)), left, step, scale)
        panels.append(replace(panel, grey=panel.cut(image.grey)))
        left += across[axis] * scale + _GAP
    return panels, ", ".join(f"{name} {cut[axis] + 1} of {area.shape[axis]}" for axis, name, _ in _PLANES)


def _profile(mask: np.ndarray, axis: int) -> np.ndarray:
    return np.asarray(mask.sum(axis=tuple(a for a in range(3) if a != axis)))


def _extent(mask: np.ndarray, axis: int, margin: int = 3) -> slice:
    """Where the mask is, along one axis, with a margin; everything where it is empty."""
    places = np.flatnonzero(_profile(mask, axis))
    if not places.size:
        return slice(0, mask.shape[axis])
    return slice(max(0, int(places[0]) - margin), min(mask.shape[axis], int(places[-1]) + 1 + margin))


def _draw(panels: Sequence[_Panel], rows: Sequence[_Row], alt: str) -> Html:
    tall = max(panel.size[1] for panel in panels)
    parts, names = ["<defs>"], []
    for panel in panels:
        png, width, high = _pixels(panel)
        names.append("slice-" + hashlib.sha256(png).hexdigest()[:12])
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        size = f'width="{width:.1f}" height="{high:.1f}" preserveAspectRatio="none"'
        parts.append(f'<image id="{names[-1]}" {size} href="{source}"/>')
    parts.append("</defs>")
    zoom = _zoom(panels[0], rows)
    for number, row in enumerate(rows):
        top = number * (tall + _GAP)
        for panel, name in zip(panels, names, strict=True):
            above = top + (tall - panel.size[1]) / 2
            parts.append(_slice(panel, name, row, panel.left, above) + _letters(panel, top, tall))
        if number == 0:
            x, y, side = zoom
            above = (tall - panels[0].size[1]) / 2
            parts.append(
                f'<rect class="zoomed" x="{x:.1f}" y="{y + above:.1f}" width="{side:.1f}" height="{side:.1f}"/>'
            )
        parts.append(_title(row.title, 0, top + tall))
    top = len(rows) * (tall + _GAP)
    side = min(tall, (_WIDTH - (len(rows) - 1) * _GAP) / len(rows))
    for number, row in enumerate(rows):
        left = number * (side + _GAP)
        frame = f'x="{left:.1f}" y="{top:.1f}" width="{side:.1f}" height="{side:.1f}"'
        view = " ".join(f"{value:.1f}" for value in (zoom[0], zoom[1], zoom[2], zoom[2]))
        parts.append(f'<svg {frame} viewBox="{view}">{_slice(panels[0], names[0], row, 0, 0)}</svg>')
        parts.append(_title(f"closer: {row.title}", left, top + side))
    head = f'<svg class="overlay" viewBox="0 0 {_WIDTH:.0f} {top + side:.1f}" role="img" aria-label="{escape(alt)}">'
    return Html("".join([head, *parts, "</svg>"]))


def _slice(panel: _Panel, name: str, row: _Row, left: float, top: float) -> str:
    """One slice with the outlines of a row."""
    parts = [f'<use href="#{name}" x="{left:.1f}" y="{top:.1f}"/>']
    for style, mask in (("truth", row.truth), (f"predicted {row.style}", row.mask)):
        if mask is not None and (path := _path(panel, panel.cut(mask), left, top)):
            parts.append(f'<path class="{style}" d="{path}"/>')
    return "".join(parts)


def _zoom(panel: _Panel, rows: Sequence[_Row]) -> tuple[float, float, float]:
    """Left, top and side of the square of `_ZOOM_MM` that holds most lesion of the first mask that has any in this plane."""
    masks = [panel.cut(m) for m in (*(row.truth for row in rows), *(row.mask for row in rows)) if m is not None]
    area = next((mask for mask in masks if mask.any()), panel.grey > 0)
    side = _ZOOM_MM * panel.scale
    window = tuple(max(1, round(side / step)) for step in panel.step[::-1])
    held = uniform_filter(area.astype(np.float32), window, mode="constant")
    row, column = np.argwhere(held >= held.max() - 1e-6).mean(axis=0)
    return (column + 0.5) * panel.step[0] - side / 2, (row + 0.5) * panel.step[1] - side / 2, side


def _title(text: str, left: float, bottom: float) -> str:
    return f'<text class="row" x="{left + 10:.1f}" y="{bottom - 10:.1f}">{escape(text)}</text>'


def _letters(panel: _Panel, top: float, tall: float) -> str:
    width = panel.size[0]
    places = (
        (panel.left + 10, top + tall / 2),
        (panel.left + width - 10, top + tall / 2),
        (panel.left + width / 2, top + 16),
        (panel.left + width / 2, top + tall - 8),
    )
    pairs = zip(panel.letters, places, strict=True)
    return "".join(f'<text class="side" x="{x:.0f}" y="{y:.0f}">{letter}</text>' for letter, (x, y) in pairs)


def _path(panel: _Panel, mask: np.ndarray, left: float, top: float) -> str:
    """The outlines of a slice as SVG path data."""
    wide, high = panel.step
    loops = (" ".join(f"{left + x * wide:.1f},{top + y * high:.1f}" for y, x in loop) for loop in outlines(mask))
    return "".join(f"M{loop}Z" for loop in loops)


def outlines(mask: np.ndarray) -> list[list[tuple[float, float]]]:
    """Closed outlines of a (row, column) mask: the midpoints of the voxel faces between inside and outside, in order.

    Faces are walked with the inside on the right; voxels that touch only at a corner have outlines of their own.
    """
    padded = np.pad(mask.astype(bool), 1)
    inside = padded[1:-1, 1:-1]
    faces: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (down, right), start, end in (
        ((-1, 0), (0, 0), (0, 1)),
        ((0, 1), (0, 1), (1, 1)),
        ((1, 0), (1, 1), (1, 0)),
        ((0, -1), (1, 0), (0, 0)),
    ):
        neighbour = np.roll(padded, (-down, -right), axis=(0, 1))[1:-1, 1:-1]
        for row, column in np.argwhere(inside & ~neighbour).tolist():
            faces.setdefault((row + start[0], column + start[1]), []).append((row + end[0], column + end[1]))
    loops = []
    while faces:
        start = here = next(iter(faces))
        loop: list[tuple[float, float]] = []
        before = (0, 0)
        while here != start or not loop:
            there = _turn(faces[here], here, before)
            faces[here].remove(there)
            if not faces[here]:
                del faces[here]
            before = (there[0] - here[0], there[1] - here[1])
            loop.append(((here[0] + there[0]) / 2, (here[1] + there[1]) / 2))
            here = there
        loops.append(loop)
    return loops


def _turn(ends: Sequence[tuple[int, int]], here: tuple[int, int], before: tuple[int, int]) -> tuple[int, int]:
    """Of two ways on, the right turn: it stays with the same voxel."""
    right = (here[0] + before[1], here[1] - before[0])
    return right if right in ends else ends[0]


def _pixels(panel: _Panel) -> tuple[bytes, float, float]:
    """A slice as PNG, at most `_MOST_PIXELS` a side (means of blocks), and its width and height in SVG units."""
    grey = panel.grey
    block = -(-max(grey.shape) // _MOST_PIXELS)
    grey = np.pad(grey, [(0, -size % block) for size in grey.shape])
    rows, columns = grey.shape
    small = grey.reshape(rows // block, block, columns // block, block).mean(axis=(1, 3)).round().astype(np.uint8)
    return grey_png(small), columns * panel.step[0], rows * panel.step[1]


def grey_png(grey: np.ndarray) -> bytes:
    """An 8-bit grey PNG file (rows filtered by 'up')."""
    rows, columns = grey.shape
    lines = np.diff(grey, axis=0, prepend=np.zeros((1, columns), np.uint8))
    data = b"".join(b"\x02" + line.tobytes() for line in lines)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(data, 9)),
        (b"IEND", b""),
    )
    body = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)
