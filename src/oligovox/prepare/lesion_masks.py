"""Lesions of one mask: components, confluent ones split, small ones left out, and the ground around each.

A lesion is a connected component (26 neighbours). Confluent lesions can be split where they narrow: the distance to the border (mm) has a
maximum in the middle of each part; maxima at least `split_mm` apart become seeds, and a watershed on the distance gives every voxel to one of
them. Volumes are those of the lesion itself, never of what lies around it.

The ground around a lesion is what a classifier sees of it, the perilesional mask: the lesion dilated r times by its 6 neighbours, which makes
a diamond. With V the volume in mm³ and ρ = (3 V / 4 π)^⅓ its radius in mm,

    r = round(clip(0.75 ρ, 5, 16) / spacing)

steps on the grid of the patches, `spacing` in mm. At 1 mm that is the rule of the paper's code, which counts voxels and not mm.

Source: earlier scripts (patches_extraction.py) of veronicapignedoli/FRODO, arXiv 2606.16756.
Deviates: small lesions are left out by their own volume, where the released code measures the dilated mask; volumes and radii are in mm;
    splitting is ours.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy import ndimage

from oligovox.settings import Settings, ascending

Numbers = NDArray[np.int32]
"""(x, y, z) number of the lesion of each voxel from 1; 0 outside."""

_NEIGHBOURS = np.ones((3, 3, 3), bool)
_BLUR_MM = 0.7  # of the depth, so that a rough border has no maxima of its own
_DEPTHS = 60_000  # steps of the depth in a watershed, which wants whole numbers


class LesionRule(Settings):
    """Which components of a mask are lesions, and how much around them is seen."""

    min_volume_mm3: float = Field(110.0, ge=0, description="volume of the smallest lesion that is kept, mm³")
    split: Literal["off", "watershed"] = Field(
        "off", description="of confluent lesions: left whole, or cut where they narrow"
    )
    split_mm: float = Field(8.0, gt=0, description="watershed: least distance between the middles of two parts, mm")
    around_factor: float = Field(0.75, ge=0, description="radius around a lesion, as a share of the lesion's own")
    around_mm: tuple[float, float] = Field((5.0, 16.0), description="least and largest radius around a lesion, mm")

    @model_validator(mode="after")
    def _radii_ascend(self) -> LesionRule:
        ascending("around_mm", self.around_mm, 0.0, 100.0)
        return self


def find_lesions(mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float], rule: LesionRule) -> Numbers:
    """All lesions of a mask (x, y, z), the small ones too, numbered in array order.

    Args:
        mask: where there is lesion.
        spacing_mm: voxel sides.
        rule: whether confluent ones are split.
    """
    numbers: Numbers = np.zeros(mask.shape, np.int32)
    found = ndimage.label(mask, structure=_NEIGHBOURS, output=numbers)
    if rule.split == "off":
        return numbers
    for number, box in enumerate(ndimage.find_objects(numbers), start=1):
        own = numbers[box] == number
        parts = _split(own, spacing_mm, rule.split_mm)
        further = parts > 1
        numbers[box][further] = found + parts[further] - 1
        found += int(parts.max()) - 1
    return numbers


def kept_lesions(
    numbers: Numbers, spacing_mm: tuple[float, float, float], rule: LesionRule
) -> tuple[Numbers, NDArray[np.float64]]:
    """Those large enough, numbered anew from 1 in the same order, and their volumes in mm³."""
    volumes = np.bincount(numbers.ravel())[1:] * math.prod(spacing_mm)
    kept = volumes >= rule.min_volume_mm3 * (1 - 1e-6)  # spacings are stored as float32
    place = np.zeros(len(kept) + 1, np.int32)
    place[1:][kept] = np.arange(1, kept.sum() + 1)
    return place[numbers], np.asarray(volumes[kept], np.float64)


def radius_steps(volume_mm3: float, spacing_mm: float, rule: LesionRule) -> int:
    """Steps of dilation around a lesion of this volume."""
    radius = math.cbrt(3 * volume_mm3 / (4 * math.pi))
    low, high = rule.around_mm
    return round(min(max(rule.around_factor * radius, low), high) / spacing_mm)


def dilated(lesion: NDArray[np.bool_], steps: int) -> NDArray[np.bool_]:
    """A mask (x, y, z) dilated so many times by its 6 neighbours; what would leave the array is lost."""
    if not lesion.any() or not steps:
        return lesion.copy()
    box = tuple(
        slice(max(side.start - steps, 0), side.stop + steps) for side in ndimage.find_objects(lesion.astype(np.int8))[0]
    )
    away: NDArray[Any] = ndimage.distance_transform_cdt(~lesion[box], metric="taxicab")
    result = np.zeros_like(lesion)
    result[box] = away <= steps
    return result


def _split(own: NDArray[np.bool_], spacing_mm: tuple[float, float, float], apart_mm: float) -> Numbers:
    """Parts of one lesion, from 1; one part where it does not narrow."""
    padded = np.pad(own, 1)
    depth = ndimage.distance_transform_edt(padded, sampling=spacing_mm)
    depth = ndimage.gaussian_filter(depth, [_BLUR_MM / side for side in spacing_mm]) * padded
    depth += np.linspace(0, 1e-6, depth.size).reshape(depth.shape) * padded  # of equal maxima one is a little higher
    reach = [math.ceil(apart_mm / side) for side in spacing_mm]
    axes = np.meshgrid(*(np.arange(-n, n + 1) * side for n, side in zip(reach, spacing_mm, strict=True)), indexing="ij")
    ball = np.sum(np.square(axes), axis=0) <= apart_mm**2
    highest = ndimage.maximum_filter(depth, footprint=ball, mode="constant")
    markers: Numbers = np.zeros(padded.shape, np.int32)
    count = ndimage.label(padded & (depth >= highest), structure=_NEIGHBOURS, output=markers)
    if count < 2:
        return own.astype(np.int32)
    markers[~padded] = -1
    height = np.rint((1 - depth / depth.max()) * _DEPTHS).astype(np.uint16)
    flooded: Numbers = ndimage.watershed_ift(height, markers, structure=_NEIGHBOURS)
    inner = (slice(1, -1),) * 3
    return np.where(own, flooded[inner].clip(1), 0).astype(np.int32)
