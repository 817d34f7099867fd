"""Shapes of lesions. A shape is a depth: how far inside a voxel lies, in mm; a threshold then gives it the volume that is wanted.

The same shape at another volume is the same lesion larger or smaller, which is how a second visit is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.simulate.anatomy.brain import Anatomy
from oligovox.simulate.anatomy.veins import Vein
from oligovox.simulate.fields import Volume, smooth_field, smoothstep

Box: TypeAlias = tuple[slice, slice, slice]
Mask: TypeAlias = NDArray[np.bool_]
Place: TypeAlias = Literal["periventricular", "juxtacortical", "deep", "infratentorial"]

NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)
"""26 neighbours: faces, edges and corners."""

_LOBED = 150.0  # mm³; larger ovoids may have several lobes
_REACH, _FADE = 1.8, 15.0  # reach of a band, in cube roots of its volume; how far beyond it may go, mm
_VEIN_RADIUS = (0.15, 0.35)  # mm, chosen
_TOUCH = 1.2  # mm; the least distance kept at which the cortex counts as touched
_ENOUGH = (
    0.9  # part of the wanted volume that a connected piece must have before the search for a better threshold stops
)
_HALVINGS = 10
_DEEPER = 6  # of so many times the voxels wanted the piece is made at most


@dataclass(frozen=True)
class Shape:
    """Where a lesion may be.

    Attributes:
        box: the part of the volume it lies in.
        depth: (x, y, z) of the box, mm; larger further inside. Only differences count: `cut` sets the border.
    """

    box: Box
    depth: Volume


def cut(shape: Shape, free: Mask, count: int) -> tuple[float, Mask]:
    """The border that gives a connected piece of at most `count` voxels and as near to it as the shape allows.

    Args:
        shape: the depth.
        free: (x, y, z) of the box; voxels that may be taken.
        count: voxels wanted, at least 1.

    Returns:
        The depth at the border, and the piece (x, y, z) of the box that holds the deepest free voxel; empty where nothing is free.
    """
    found = np.zeros_like(free)
    values = np.sort(shape.depth[free])[::-1]
    if values.size == 0:
        return 0.0, found
    high = min(_DEEPER * count, values.size)
    box = bounds(free & (shape.depth >= values[high - 1]))
    depth, free = shape.depth[box], free[box]
    deepest = np.flatnonzero((free & (depth == values[0])).ravel())[0]

    def piece(rank: int) -> tuple[float, Mask]:
        level = float(values[rank - 1] + values[rank]) / 2 if rank < values.size else float(values[-1]) - 0.5
        parts, _ = ndimage.label(free & (depth > level), NEIGHBOURS)
        number = parts.ravel()[deepest]
        return level, (parts == number) & (number > 0)

    low = min(count, values.size)
    level, part = piece(low)
    for _ in range(_HALVINGS):
        if np.count_nonzero(part) >= _ENOUGH * count or high - low < 2:
            break
        middle = (low + high) // 2
        tried = piece(middle)
        if np.count_nonzero(tried[1]) <= count:
            low, (level, part) = middle, tried
        else:
            high = middle
    found[box] = part
    return level, found


def bounds(mask: Mask, more: int = 0) -> Box:
    """The smallest box around a mask that is not empty, with `more` voxels on each side."""
    found = ndimage.find_objects(mask.astype(np.int8))[0]
    x, y, z = (slice(max(s.start - more, 0), min(s.stop + more, n)) for s, n in zip(found, mask.shape, strict=True))
    return x, y, z


def allowed(anatomy: Anatomy) -> Volume:
    """The part of each voxel (x, y, z) a lesion may take: white matter, and grey matter in a voxel that both share."""
    return np.asarray(anatomy.wm + anatomy.gm * np.clip(2 * anatomy.wm, 0, 1), dtype=np.float32)


def ovoid(
    rng: np.random.Generator,
    anatomy: Anatomy,
    centre: NDArray[np.intp],
    axis: NDArray[np.float64] | None,
    volume: float,
    noise: Volume,
) -> Shape:
    """An ellipsoid with an uneven border, drawn out along `axis` where one is given; several of them in a larger lesion.

    Args:
        rng: the only source of chance.
        anatomy: of the person.
        centre: voxel.
        axis: direction of its long axis in voxels, of any length; None: random and rounder.
        volume: mm³, roughly; the box leaves room to grow.
        noise: (x, y, z) unit noise that moves the border in and out.
    """
    spacing = anatomy.spacing
    ratio = rng.uniform(1.4, 2.6) if axis is not None else rng.uniform(1.0, 1.7)
    flat = rng.uniform(1.0, 1.3)
    radii = np.cbrt(0.75 * volume / np.pi / ratio) * np.array([ratio, flat, 1 / flat])
    turn = _rotation(rng, axis)
    size = float(np.cbrt(radii.prod()))
    box, place = _around(centre, 2.0 * float(radii.max()) + 2 * spacing, noise.shape, spacing)
    rough = np.exp(0.25 * noise[box])
    depth = np.full(rough.shape, -np.inf, dtype=np.float32)
    lobes = 1 + int(volume > _LOBED) * int(rng.integers(0, 4))
    for lobe in range(lobes):
        shift = np.zeros(3) if lobe == 0 else turn.T @ (rng.uniform(-0.8, 0.8, 3) * radii)
        shrink = 1.0 if lobe == 0 else rng.uniform(0.5, 0.9)
        moved = [line - s for line, s in zip(place, shift, strict=True)]
        rows = (turn / (shrink * radii[:, None])).astype(np.float32)
        q = np.sqrt(sum((r[0] * moved[0] + r[1] * moved[1] + r[2] * moved[2]) ** 2 for r in rows))
        depth = np.maximum(depth, shrink * size * (1 - q * rough), dtype=np.float32)
    return Shape(box, depth)


def sheet(rng: np.random.Generator, anatomy: Anatomy, centre: NDArray[np.intp], volume: float, noise: Volume) -> Shape:
    """A lesion on the cortex: flat along it, as the U-fibres under the sulcus are, and as thick as half its width or more."""
    spacing, to_cortex = anatomy.spacing, anatomy.to_cortex
    ratio = rng.uniform(0.9, 2.0)
    thick = float(np.cbrt(volume / (0.6 * np.pi * ratio**2)))
    box, place = _around(centre, 2.2 * ratio * thick + 2 * spacing, noise.shape, spacing)
    height = np.clip(to_cortex[box] - _TOUCH, 0, None) / thick
    along = sum(line**2 for line in place) / (ratio * thick) ** 2
    q = np.sqrt(height**2 + along) * np.exp(0.25 * noise[box])
    return Shape(box, np.asarray((1 - q) * thick * np.sqrt(ratio), dtype=np.float32))


def band(rng: np.random.Generator, anatomy: Anatomy, centre: NDArray[np.intp], volume: float, noise: Volume) -> Shape:
    """Confluent lesions along the ventricles around a voxel: the white matter nearest to them, by an uneven distance in mm."""
    spacing, shape = anatomy.spacing, noise.shape
    reach = _REACH * float(np.cbrt(volume))
    box, place = _around(centre, reach + _FADE, shape, spacing)
    score = 5.5 * smooth_field(rng, shape, spacing, 14.0)[box] + 1.8 * noise[box] - 0.6 * anatomy.to_ventricle[box]
    score += 5.0 * horns(anatomy)[:, box[1]]
    score -= 4.0 * np.clip(2.0 - anatomy.to_cortex[box], 0, None) + 12.0 * (anatomy.deep + anatomy.below)[box]
    score -= 8.0 * (1 - beside(anatomy)[box[0]])
    score -= 0.7 * np.clip(np.sqrt(sum(line**2 for line in place)) - reach, 0, None)
    return Shape(box, np.asarray(score, dtype=np.float32))


def pieces(mask: Mask, spacing: float) -> tuple[tuple[Shape, int], ...]:
    """The connected pieces of a mask as shapes, each with its number of voxels, largest first."""
    parts, _ = ndimage.label(mask, NEIGHBOURS)
    found = []
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        x, y, z = (slice(max(s.start - 4, 0), min(s.stop + 4, n)) for s, n in zip(box, mask.shape, strict=True))
        own = parts[x, y, z] == number
        inside = ndimage.distance_transform_edt(own, sampling=spacing)
        outside = ndimage.distance_transform_edt(~own, sampling=spacing)
        found.append((Shape((x, y, z), np.asarray(inside - outside, dtype=np.float32)), int(own.sum())))
    return tuple(sorted(found, key=lambda item: -item[1]))


def beside(anatomy: Anatomy) -> Volume:
    """0 in the middle, where the corpus callosum crosses, 1 from 14 mm beside it: (x, 1, 1)."""
    x = np.arange(anatomy.wm.shape[0]) * anatomy.spacing + anatomy.affine[0, 3]
    return smoothstep(np.abs(x).astype(np.float32), 4.0, 14.0)[:, None, None]


def outward(anatomy: Anatomy, centre: NDArray[np.intp], place: Place) -> NDArray[np.float64]:
    """The direction a small vein takes: away from the ventricle, or away from the cortex under it; of any length, in voxels."""
    distance = anatomy.to_cortex if place == "juxtacortical" else anatomy.to_ventricle
    near = tuple(slice(max(int(c) - 1, 0), int(c) + 2) for c in centre)
    return np.array([slope.mean() for slope in np.gradient(distance[near])], dtype=np.float64)


def small_vein(
    rng: np.random.Generator, centre: NDArray[np.intp], axis: NDArray[np.float64], volume: float, spacing: float
) -> Vein:
    """A straight vein through the middle of a lesion of `volume` mm³ and somewhat beyond it."""
    half = 1.4 * float(np.cbrt(volume)) / spacing
    at = np.linspace(-half, half, max(int(2 * half) + 1, 3))[:, None]
    direction = axis / max(float(np.linalg.norm(axis)), 1e-6)
    return Vein((centre + at * direction).astype(np.float32), float(rng.uniform(*_VEIN_RADIUS)))


def horns(anatomy: Anatomy) -> Volume:
    """1 at the frontal and occipital horns and trigones of the lateral ventricles, less along their bodies: (1, y, 1)."""
    y = np.arange(anatomy.wm.shape[1]) * anatomy.spacing + anatomy.affine[1, 3]
    bumps = np.exp(-(((y - 24) / 14) ** 2)) + np.exp(-(((y + 42) / 14) ** 2))
    return np.asarray(0.3 + 0.7 * bumps, dtype=np.float32)[None, :, None]


def _around(
    centre: NDArray[np.intp], reach: float, shape: tuple[int, ...], spacing: float
) -> tuple[Box, tuple[Volume, Volume, Volume]]:
    """The box within `reach` mm of a voxel, and the place along x, y, z from that voxel in mm, ready to broadcast."""
    steps = int(np.ceil(reach / spacing))
    x, y, z = (slice(max(int(c) - steps, 0), min(int(c) + steps + 1, n)) for c, n in zip(centre, shape, strict=True))
    lines = [
        np.float32(spacing) * np.arange(s.start - int(c), s.stop - int(c), dtype=np.float32)
        for s, c in zip((x, y, z), centre, strict=True)
    ]
    return (x, y, z), (lines[0][:, None, None], lines[1][None, :, None], lines[2][None, None, :])


def _rotation(rng: np.random.Generator, first: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """A random rotation; its first row points along `first` where that is given."""
    rows = rng.standard_normal((3, 3))
    if first is not None:
        rows[0] = first
    return np.asarray(np.linalg.qr(rows.T)[0].T)
