"""Labels as people make them: outlines too wide or too narrow, small lesions missed, others imagined.

A rater's threshold on partial volume is not a setting of its own: who outlines a voxel less than half filled draws too wide, by less
than a voxel. Labels of a part only are derived in `cohort/annotate.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy import ndimage
from scipy.special import expit

from oligovox.cohort.annotate import Mask, grown, sizes
from oligovox.errors import LabelError
from oligovox.settings import Settings, ascending
from oligovox.simulate.fields import Spacing, Volume, smooth_field

L = TypeVar("L", np.bool_, np.uint8)

_WOBBLE = 3.0  # scale on which an outline wanders, mm (chosen)
_FALSE = (2.7, 0.6)  # mean and standard deviation of ln(volume / mm³) of a false lesion (chosen)
_ALIKE = 1.0  # standard deviation of how hard a lesion is to see, shared by all raters, in ln(volume) (chosen)


class Raters(Settings):
    """People who draw the same lesions; ranges are (lowest, highest), drawn anew for each rater and person. All values are chosen so that
    raters agree as well as published ones."""

    raters: int = Field(3, ge=1, le=9, description="people who label each scan")
    bias_mm: tuple[float, float] = Field(
        (-0.3, 0.5), description="how far outside (+) or inside (-) of the border a rater draws, mm"
    )
    wobble_mm: float = Field(0.35, ge=0, le=5, description="standard deviation of an outline around that, mm")
    half_seen_mm3: tuple[float, float] = Field(
        (3.0, 12.0), description="volume of lesions that a rater finds half of, mm³"
    )
    steepness: float = Field(0.6, gt=0, le=5, description="width of the change from missed to found, in ln(volume)")
    doubt: float = Field(2.0, ge=0, le=20, description="ln(volume) that a lesion in full doubt seems smaller by")
    false_lesions: float = Field(
        2.0, ge=0, le=100, description="places a person has that look like a lesion; each rater marks half of them"
    )

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Raters:
        for name, least, most in (("bias_mm", -5.0, 5.0), ("half_seen_mm3", 0.001, 1e5)):
            ascending(name, getattr(self, name), least, most)
        return self


def draw_raters(
    rng: np.random.Generator,
    fraction: Volume,
    instances: NDArray[np.int32],
    spacing: Spacing,
    settings: Raters,
    *,
    doubt: Volume | None = None,
) -> tuple[Mask, ...]:
    """What each rater draws.

    A lesion is found with a chance that rises with ln(volume); some are harder to see than others of their size, for every rater.
    The outline of a found one is moved by the rater's bias and wanders.

    Args:
        rng: the only source of chance.
        fraction: (x, y, z) part of each voxel that is lesion, 0 to 1.
        instances: (x, y, z) number of the lesion where the fraction is above a half, 0 = none.
        spacing: voxel size, mm.
        settings: how good the raters are.
        doubt: (x, y, z) 0 to 1: in a lesion how little it stands out; elsewhere how much it looks like one. None: nowhere, and nobody
            marks what is no lesion.

    Returns:
        One mask (x, y, z) a rater.
    """
    size = sizes(spacing)
    people = range(settings.raters)
    bias = rng.uniform(settings.bias_mm[0], settings.bias_mm[1], settings.raters)
    half = np.log(rng.uniform(settings.half_seen_mm3[0], settings.half_seen_mm3[1], settings.raters))
    masks = tuple(np.zeros(instances.shape, bool) for _ in people)
    reach = max(abs(v) for v in settings.bias_mm) + 3 * settings.wobble_mm
    for number, found in enumerate(ndimage.find_objects(instances), start=1):
        if found is None:
            continue
        box = grown(found, instances.shape, reach, size)
        here = instances[box]
        lesion = here == number
        volume = math.log(np.count_nonzero(lesion) * math.prod(size)) - _ALIKE * rng.standard_normal()
        if doubt is not None:
            volume -= settings.doubt * float(doubt[box][lesion].mean())
        seen = rng.random(settings.raters) < expit((volume - half) / settings.steepness)
        depth = np.where(lesion | (here == 0), _depth(lesion, fraction[box], size), -np.inf)
        for person in people:
            line = depth + np.float32(bias[person])
            if settings.wobble_mm:
                line += np.float32(settings.wobble_mm) * smooth_field(rng, lesion.shape, size, _WOBBLE)
            if seen[person]:
                masks[person][box] |= line > 0
    if doubt is not None:
        _imagine(rng, masks, np.where(fraction > 0, 0, doubt), size, settings)
    return masks


def _depth(lesion: Mask, fraction: Volume, size: Sequence[float]) -> Volume:
    """Distance inside (+) or outside (-) of the lesion's border, mm.

    Within the voxels on both sides of the border the fraction says where it runs; elsewhere it is the distance to the nearest of them,
    and what that one has. Infinite where there is no border.
    """
    edge = lesion ^ ndimage.binary_erosion(lesion, border_value=1) | lesion ^ ndimage.binary_dilation(lesion)
    sign = np.where(lesion, np.float32(1), np.float32(-1))
    if not edge.any():
        return np.asarray(sign * np.inf)
    part = sign * (np.abs(fraction.clip(0, 1) - np.float32(0.5)) * min(size)).clip(1e-3)
    away, nearest = ndimage.distance_transform_edt(~edge, sampling=size, return_indices=True)
    return np.asarray(part[tuple(nearest)] + sign * away, dtype=np.float32)


def _imagine(
    rng: np.random.Generator, masks: Sequence[Mask], doubt: Volume, size: Sequence[float], settings: Raters
) -> None:
    """Add small round lesions, in place, where something looks like one; the same places tempt every rater."""
    total = np.cumsum(doubt, dtype=np.float64)
    if total[-1] <= 0:
        return
    for _ in range(int(rng.poisson(settings.false_lesions))):
        flat = int(np.searchsorted(total, rng.random() * total[-1], side="right"))
        centre = np.unravel_index(min(flat, doubt.size - 1), doubt.shape)
        radius = float(np.cbrt(0.75 * rng.lognormal(*_FALSE) / np.pi))
        box = grown(tuple(slice(int(c), int(c) + 1) for c in centre), doubt.shape, radius, size)
        away = [((np.arange(s.start, s.stop) - c) * v) ** 2 for s, c, v in zip(box, centre, size, strict=True)]
        ball = away[0][:, None, None] + away[1][None, :, None] + away[2] <= radius**2
        ball &= doubt[box] > 0
        for mask in masks:
            if rng.random() < 0.5:
                mask[box] |= ball


def consensus(labels: Sequence[NDArray[L]]) -> NDArray[L]:
    """The class that most raters gave each voxel; of one class, what at least half of them marked.

    A class wins a tie against nothing, because raters miss more than they invent, and the lower of two classes wins theirs. It is a plain vote,
    not STAPLE, which weighs raters by an estimate of their quality: a vote can be checked by hand, and needs no model of the raters that made
    the very masks.

    Args:
        labels: one mask or label map (x, y, z) a rater.

    Raises:
        LabelError: there are none, or they differ in shape.
    """
    if len({one.shape for one in labels}) != 1:
        raise LabelError(
            f"a consensus of masks of shapes {[one.shape for one in labels]}; give at least one mask, all of one shape"
        )
    chosen = np.zeros_like(labels[0])
    most = np.zeros(chosen.shape, np.uint8)
    for value in sorted({int(v) for one in labels for v in np.unique(one)} - {0}):
        votes = np.sum([one == value for one in labels], axis=0, dtype=np.uint8)
        chosen[votes > most] = value
        np.maximum(most, votes, out=most)
    chosen[np.sum([one == 0 for one in labels], axis=0, dtype=np.uint8) > most] = 0
    return chosen


def draw_rater_labels(
    rng: np.random.Generator, labels: NDArray[np.uint8], spacing: Spacing, settings: Raters
) -> tuple[NDArray[np.uint8], ...]:
    """What each rater draws of several classes (a tumour's compartments, organs): every border wanders, nothing is missed.

    A voxel goes to the class it lies deepest in, after each class was made wider or narrower: all together against the background by
    the rater's bias, each against the others by half of another draw of it.

    Args:
        rng: the only source of chance.
        labels: (x, y, z) class of each voxel, 0 = none.
        spacing: voxel size, mm.
        settings: bias and wobble are used.

    Returns:
        One label map (x, y, z) a rater.
    """
    size = sizes(spacing)
    drawn = tuple(labels.copy() for _ in range(settings.raters))
    found = ndimage.find_objects((labels > 0).astype(np.int8))
    if not found:
        return drawn
    box = grown(found[0], labels.shape, max(abs(v) for v in settings.bias_mm) + 3 * settings.wobble_mm, size)
    here = labels[box]
    classes = np.unique(here)
    depths = [_depth(here == c, (here == c).astype(np.float32), size) for c in classes]
    for result in drawn:
        outward = rng.uniform(*settings.bias_mm)
        best = np.full(here.shape, -np.inf, np.float32)
        chosen = here.copy()
        for value, depth in zip(classes, depths, strict=True):
            moved = -outward if value == 0 else 0.5 * rng.uniform(*settings.bias_mm)
            line = depth + np.float32(moved)
            if settings.wobble_mm:
                line += np.float32(settings.wobble_mm) * smooth_field(rng, here.shape, size, _WOBBLE)
            chosen[line > best] = value
            np.maximum(best, line, out=best)
        result[box] = chosen
    return drawn
