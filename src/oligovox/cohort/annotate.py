"""Labels of a part only: how such a label is derived from a full mask, and how a file says that it is one.

| kind | what somebody looked at |
| --- | --- |
| every, random, largest | whole slices: every n-th from a random offset; some at random; those with the largest labelled area |
| slices | every n-th slice, and the one with the largest labelled area |
| lesions | some lesions, and background: near them, or all that is not near a lesion that was left out |
| scribbles | a thin stroke in each lesion, and strokes of background in the same slices |
| boxes | all that is outside a box around each lesion, which is background; what is inside a box is not known |

Where nobody looked is -1 in memory (int8) and 255 in a NIfTI of uint8. Neither is a class, and neither is background. A file may hold 255 where
its name has desc-sparse or label-sparse, or where the JSON beside it has `"Unlabelled": 255`: it is said, never guessed.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy import ndimage

from oligovox.errors import CohortError, LabelError
from oligovox.files import read_json
from oligovox.settings import Settings

Mask: TypeAlias = NDArray[np.bool_]
Box: TypeAlias = tuple[slice, ...]
Spacing: TypeAlias = float | Sequence[float]
"""Voxel size in mm, one number or one for each axis."""

NOT_LOOKED = -1
"""In memory: nobody looked here."""

NOBODY_LOOKED = 255
"""The same in a file."""

SPARSE = "sparse"
"""Name of a mask that may hold `NOBODY_LOOKED`."""

DECLARED = "Unlabelled"
"""Key of a sidecar that says the same of a mask of any name."""

_USED: Mapping[str, tuple[str, ...]] = {
    "every": ("axis", "every"),
    "random": ("axis", "slices"),
    "largest": ("axis", "slices"),
    "slices": ("axis", "every"),
    "lesions": ("share", "margin_mm", "background"),
    "scribbles": ("axis", "stroke_mm", "length_mm", "strokes"),
    "boxes": ("box_mm",),
}
"""Kind → its settings."""

_NEIGHBOURS = np.ones((3, 3, 3), bool)


class Sparse(Settings):
    """Which part of a label somebody has drawn; the rest is not known to be anything."""

    kind: Literal["every", "random", "largest", "slices", "lesions", "scribbles", "boxes"] = Field(
        "every",
        description="every n-th slice; some slices at random; those with the largest area; every n-th and the one with the largest area; "
        "some lesions; thin strokes in lesions and background; boxes around lesions, of which only the outside is known",
    )
    axis: int = Field(
        2, ge=0, le=2, description="for slices of any choice and scribbles: axis across the slices, 2 = axial"
    )
    every: int = Field(10, ge=1, description="for every and slices: distance between labelled slices, slices")
    slices: int = Field(5, ge=1, description="for random and largest: how many")
    share: float = Field(0.3, gt=0, le=1, description="for lesions: part of the lesions that was drawn, at least one")
    margin_mm: float = Field(
        5.0, ge=0, le=50, description="for lesions: around each drawn one this far is known to be background, mm"
    )
    background: Literal["near", "trusted"] = Field(
        "near",
        description="for lesions: near: only margin_mm around drawn ones is known to be background; trusted: all but margin_mm around "
        "those that were not drawn, as if somebody knew where they are",
    )
    stroke_mm: float = Field(1.0, gt=0, le=20, description="for scribbles: width of a stroke, mm")
    length_mm: float = Field(30.0, gt=0, le=200, description="for scribbles: length of a stroke at most, mm")
    strokes: int = Field(1, ge=0, description="for scribbles: strokes of background in each slice with a lesion's")
    box_mm: float = Field(2.0, ge=0, le=50, description="for boxes: how far a box reaches beyond its lesion, mm")

    @model_validator(mode="after")
    def _of_kind(self) -> Sparse:
        """A setting of another kind would have no effect. What spells out every key was resolved before, and is read as it stands."""
        if self.model_fields_set == {*type(self).model_fields}:
            return self
        for key in sorted(self.model_fields_set - {"kind", *_USED[self.kind]}):
            if getattr(self, key) != type(self).model_fields[key].default:
                kinds = [kind for kind, used in _USED.items() if key in used]
                raise ValueError(
                    f"{key} = {getattr(self, key)} has no effect on {self.kind}, it is for {', '.join(kinds)}; leave it out, or choose another kind"
                )
        return self

    @property
    def words(self) -> str:
        """What somebody looked at: 'one axial slice in 10, and the one with the largest lesion area'."""
        plane = ("sagittal", "coronal", "axial")[self.axis]
        nth = f"one {plane} slice in {self.every}"
        match self.kind:
            case "every":
                return nth
            case "slices":
                return f"{nth}, and the one with the largest lesion area"
            case "random":
                return f"{self.slices} {plane} slices at random"
            case "largest":
                return f"the {self.slices} {plane} slices with the largest lesion area"
            case "lesions":
                around = f"{self.margin_mm:g} mm of background around them"
                trusted = f"all background but {self.margin_mm:g} mm around the others"
                return f"{100 * self.share:g} % of the lesions, and {around if self.background == 'near' else trusted}"
            case "scribbles":
                return "strokes in lesions and in background"
            case "boxes":
                return "all outside of boxes around lesions"


def says_sparse(mask: Path) -> bool:
    """Whether a mask file says of itself that it may hold `NOBODY_LOOKED`; no voxel is read.

    Raises:
        CohortError: the JSON beside it cannot be read, or names another value.
    """
    stem = mask.name.removesuffix(".gz").removesuffix(".nii")
    if re.search(rf"_(desc|label)-{SPARSE}(_|$)", stem):
        return True
    sidecar = mask.parent / f"{stem}.json"
    content = read_json(sidecar) if sidecar.is_file() else None
    if not isinstance(content, dict) or DECLARED not in content:
        return False
    if content[DECLARED] != NOBODY_LOOKED:
        raise CohortError(
            f"{sidecar}: {DECLARED} is {content[DECLARED]!r}, expected {NOBODY_LOOKED}; write that value where nobody looked"
        )
    return True


def chance_of(seed: int, case: str) -> np.random.Generator:
    """The chance of one case: a function of the seed and its name, whoever else there is and in whatever order."""
    name = int.from_bytes(hashlib.sha256(case.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, name])))


def sparsify(
    labels: NDArray[np.uint8],
    rng: np.random.Generator,
    settings: Sparse,
    spacing: Spacing,
    inside: Mask | None = None,
) -> NDArray[np.int8]:
    """The label as it is known when only a part was drawn.

    Args:
        labels: (x, y, z) class of each voxel, 0 = none, at most 127.
        rng: the only source of chance.
        settings: which part.
        spacing: voxel size, mm.
        inside: (x, y, z) where strokes of background may lie, the brain for example; None: anywhere.

    Returns:
        (x, y, z) class where somebody looked, -1 elsewhere.

    Raises:
        LabelError: a class above 127, or more slices than there are.
    """
    if labels.size and labels.max() > 127:
        raise LabelError(f"a label has class {labels.max()}; classes up to 127 can be made sparse")
    size = sizes(spacing)
    match settings.kind:
        case "lesions":
            looked = _lesions(labels, rng, settings, size)
        case "scribbles":
            looked = _scribbles(labels, rng, settings, size, np.ones(labels.shape, bool) if inside is None else inside)
        case "boxes":
            looked = _outside_boxes(labels, settings, size)
        case _:
            looked = _slices(labels, rng, settings)
    return np.where(looked, labels, NOT_LOOKED).astype(np.int8)


def as_file(known: NDArray[np.int8]) -> NDArray[np.uint8]:
    """The label as a file can hold it: 255 where nobody looked."""
    return np.where(known < 0, NOBODY_LOOKED, known).astype(np.uint8)


def _slices(labels: NDArray[np.uint8], rng: np.random.Generator, settings: Sparse) -> Mask:
    """Whole slices."""
    count = labels.shape[settings.axis]
    if settings.kind in ("random", "largest") and settings.slices > count:
        raise LabelError(f"{settings.slices} slices to be labelled, the volume has {count}; ask for fewer")
    area = np.count_nonzero(labels, axis=tuple(a for a in range(3) if a != settings.axis))
    match settings.kind:
        case "random":
            chosen = rng.choice(count, settings.slices, replace=False)
        case "largest":
            chosen = np.argsort(-area, kind="stable")[: settings.slices]
        case _:
            chosen = np.arange(int(rng.integers(min(settings.every, count))), count, settings.every)
            chosen = np.append(chosen, area.argmax()) if settings.kind == "slices" else chosen
    along = np.isin(np.arange(count), chosen)
    return np.broadcast_to(along.reshape([-1 if a == settings.axis else 1 for a in range(3)]), labels.shape)


def _lesions(labels: NDArray[np.uint8], rng: np.random.Generator, settings: Sparse, size: Sequence[float]) -> Mask:
    """Some lesions and background; one that was not drawn is not looked at, however near it is to one that was."""
    parts, count = ndimage.label(labels > 0, _NEIGHBOURS)
    order = 1 + rng.permutation(count)
    drawn, left_out = (part.tolist() for part in np.split(order, [max(1, round(settings.share * count))]))
    kept = np.isin(parts, drawn)
    if settings.background == "trusted":
        return np.asarray(kept | ~_near(parts, left_out, settings.margin_mm, size))
    return np.asarray(kept | (_near(parts, drawn, settings.margin_mm, size) & (labels == 0)))


def _near(parts: NDArray[np.int32], numbers: Sequence[int], reach: float, size: Sequence[float]) -> Mask:
    """Voxels at most `reach` mm from these parts, themselves included."""
    near = np.zeros(parts.shape, bool)
    found = ndimage.find_objects(parts)
    for number in numbers:
        box = grown(found[number - 1], parts.shape, reach, size)
        near[box] |= ndimage.distance_transform_edt(~(parts[box] == number), sampling=size) <= reach
    return near


def _scribbles(
    labels: NDArray[np.uint8], rng: np.random.Generator, settings: Sparse, size: Sequence[float], inside: Mask
) -> Mask:
    """One stroke in each connected part of each class, in its slice of the largest area; background in the same slices.

    Without any lesion, background is drawn in one slice.
    """
    looked = np.zeros(labels.shape, bool)
    axis, in_plane = settings.axis, [v for a, v in enumerate(size) if a != settings.axis]
    classes, drawn, free = (np.moveaxis(volume, axis, 0) for volume in (labels, looked, inside & (labels == 0)))
    levels = set()
    for value in np.unique(classes[classes > 0]):
        parts, _ = ndimage.label(classes == value, _NEIGHBOURS)
        for number, box in enumerate(ndimage.find_objects(parts), start=1):
            part = parts[box] == number
            level = int(part.sum((1, 2)).argmax())
            levels.add(box[0].start + level)
            drawn[box][level] |= _stroke(part[level], rng, settings, in_plane)
    usable = np.flatnonzero(free.any((1, 2)))
    for level in sorted(levels) or rng.permutation(usable)[:1].tolist():
        for _ in range(settings.strokes if level in usable else 0):
            drawn[level] |= _stroke(free[level], rng, settings, in_plane)
    return looked


def _stroke(region: Mask, rng: np.random.Generator, settings: Sparse, size: Sequence[float]) -> Mask:
    """A straight stroke in a region of a slice, away from its border where there is room, and nowhere outside it."""
    core = ndimage.binary_erosion(region)
    points = np.argwhere(core if core.any() else region)
    start = points[rng.integers(len(points))]
    away = np.linalg.norm((points - start) * size, axis=1)
    longest = away[away <= settings.length_mm].max()
    ends = points[(away <= longest) & (away >= 0.8 * longest)]
    along = (ends[rng.integers(len(ends))] - start) * size
    to = (np.moveaxis(np.indices(region.shape), 0, -1) - start) * size
    part = ((to @ along) / max(float(along @ along), 1e-9)).clip(0, 1)
    apart = np.linalg.norm(to - part[..., None] * along, axis=-1)
    return np.asarray(region & (apart <= max(settings.stroke_mm, float(np.linalg.norm(size))) / 2))


def _outside_boxes(labels: NDArray[np.uint8], settings: Sparse, size: Sequence[float]) -> Mask:
    """All that no box around a lesion holds."""
    parts, _ = ndimage.label(labels > 0, _NEIGHBOURS)
    looked = np.ones(labels.shape, bool)
    more = [round(settings.box_mm / v) for v in size]
    for box in ndimage.find_objects(parts):
        looked[tuple(slice(max(s.start - m, 0), s.stop + m) for s, m in zip(box, more, strict=True))] = False
    return looked


def grown(box: Box, shape: tuple[int, ...], reach: float, size: Sequence[float]) -> Box:
    """The box with at least `reach` mm and a voxel more on every side, as far as there are voxels."""
    more = [math.ceil(reach / v) + 1 for v in size]
    return tuple(slice(max(s.start - m, 0), min(s.stop + m, n)) for s, m, n in zip(box, more, shape, strict=True))


def sizes(spacing: Spacing) -> tuple[float, ...]:
    """The voxel size along each of three axes, mm."""
    return tuple(float(v) for v in np.broadcast_to(spacing, 3))
