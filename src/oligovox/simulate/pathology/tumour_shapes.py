"""How far a tumour has come: fronts that run through the brain at a speed each tissue sets, on a grid of about 3 mm.

A front is known by its arrival time, in mm of white matter travelled; the tumour is where it has arrived before some level. Times are
smooth, so the finer grid takes them by interpolation and adds what the coarse one cannot hold: the folds of the cortex and roughness.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.simulate.anatomy.brain import Anatomy
from oligovox.simulate.fields import Volume, smooth_field, smoothstep

Box: TypeAlias = tuple[slice, slice, slice]

_COARSE = 3.0  # about the spacing on which fronts travel, mm
_NEVER = 500.0  # arrival time where nothing arrives, mm
_MIDLINE = 4.0  # half width of the cleft between the halves, mm
_FASTEST = 1.3  # where chance helps, oedema runs this much faster
_FAINT = 0.15  # less of a voxel than this does not connect
_MAPS = ("gm", "wm", "csf", "brain", "to_ventricle", "to_cortex", "deep", "below", "limbic", "plexus", "vessels")
_BORDER = 1.2  # width of a soft border, mm, at least one voxel


@dataclass(frozen=True)
class Slowness:
    """How many mm of white matter a front could have travelled while it passes 1 mm of something else.

    Attributes:
        white, grey, csf: by tissue.
        midline: added to what is not white matter between the halves of the brain: the falx.
        commissure: added to white matter there: the corpus callosum.
        tentorium: added on the other side of the tentorium.
    """

    white: float = 1.0
    grey: float = 1.3
    csf: float = 12.0
    midline: float = 12.0
    commissure: float = 0.4
    tentorium: float = 20.0


@dataclass(frozen=True)
class Front:
    """A level set.

    Attributes:
        depth: (x, y, z) mm inside the border, negative outside.
        extent: (x, y, z) 0 to 1, soft at the border.
    """

    depth: Volume
    extent: Volume


def factor_of(spacing: float) -> int:
    """How many voxels of `spacing` mm make one on which fronts travel."""
    return max(1, round(_COARSE / spacing))


def coarsen(volume: Volume, factor: int) -> Volume:
    """Means of blocks of `factor` voxels a side; the last ones are completed with the values at the edge."""
    if factor == 1:
        return volume
    padded = np.pad(volume, [(0, -n % factor) for n in volume.shape], mode="edge")
    x, y, z = (n // factor for n in padded.shape)
    return np.asarray(padded.reshape(x, factor, y, factor, z, factor).mean((1, 3, 5), dtype=np.float32))


def refine(volume: Volume, factor: int, shape: Sequence[int]) -> Volume:
    """Back to the fine grid of `shape`, linear in between."""
    if factor == 1:
        return volume
    for axis, count in enumerate(shape):
        position = ((np.arange(count) + 0.5) / factor - 0.5).clip(0, volume.shape[axis] - 1)
        low = position.astype(int).clip(0, max(volume.shape[axis] - 2, 0))
        part = (position - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        high = (low + 1).clip(0, volume.shape[axis] - 1)
        volume = volume.take(low, axis) * (1 - part) + volume.take(high, axis) * part
    return volume


def crop(anatomy: Anatomy, box: Box) -> Anatomy:
    """The part of a brain in a box; its affine tells where it is."""
    affine = anatomy.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [s.start for s in box]
    nuclei = {name: fraction[box] for name, fraction in anatomy.nuclei.items()}
    return replace(anatomy, **{n: getattr(anatomy, n)[box] for n in _MAPS}, nuclei=nuclei, veins=(), affine=affine)


def put_back(anatomy: Anatomy, local: Anatomy, box: Box) -> Anatomy:
    """The brain with what has become of a box of it; veins, which are lines, are dropped."""

    def whole(before: NDArray[Any], after: NDArray[Any]) -> NDArray[Any]:
        if np.array_equal(before[box], after):
            return before
        result = before.copy()
        result[box] = after
        return result

    nuclei = {name: whole(fraction, local.nuclei[name]) for name, fraction in anatomy.nuclei.items()}
    maps: dict[str, Any] = {name: whole(getattr(anatomy, name), getattr(local, name)) for name in _MAPS}
    return replace(anatomy, **maps, nuclei=nuclei, veins=())


def slowness_map(anatomy: Anatomy, slow: Slowness, factor: int, below: bool) -> Volume:
    """Slowness of each coarse voxel.

    Args:
        anatomy: the brain, or a box of it.
        slow: by tissue.
        factor: coarse voxel / voxel.
        below: the tumour sits under the tentorium.
    """
    wm, gm, under = (coarsen(m, factor) for m in (anatomy.wm, anatomy.gm, anatomy.below))
    x = (np.arange(wm.shape[0]) + 0.5) * factor - 0.5
    x = x * anatomy.affine[0, 0] + anatomy.affine[0, 3]
    middle = np.exp(-((x / _MIDLINE) ** 2)).astype(np.float32)[:, None, None]
    slowness = slow.white * wm + slow.grey * gm + slow.csf * np.clip(1 - wm - gm, 0, 1)
    slowness += middle * (slow.commissure * wm + slow.midline * (1 - wm))
    slowness += slow.tentorium * np.abs(under - np.float32(below))
    return np.asarray(slowness)


def arrival(slowness: Volume, start: Volume, spacing: float, limit: float) -> Volume:
    """When a front that starts at `start` (mm, inf where it does not) arrives in each voxel.

    The least cost of a path over 26 neighbours, a step costing its length times the mean slowness of its ends; at most 13 % longer than
    the straight line. Later than `limit` is not worked out exactly.
    """
    slow = np.pad(slowness, 1, constant_values=1e4)
    time = np.pad(start, 1, constant_values=np.inf).astype(np.float32)
    inner = (slice(1, -1),) * 3
    steps = []
    for offset in product((-1, 0, 1), repeat=3):
        if any(offset):
            there: Box = tuple(slice(1 + o, n - 1 + o) for o, n in zip(offset, slow.shape, strict=True))  # type: ignore[assignment]
            steps.append((there, np.float32(np.linalg.norm(offset) * spacing / 2) * (slow[inner] + slow[there])))
    while True:
        earlier = time[inner].copy()
        for there, cost in steps:
            np.minimum(earlier, time[there] + cost, out=earlier)
        changed = (earlier < time[inner]) & (earlier < limit)
        time[inner] = earlier
        if not changed.any():
            return np.minimum(earlier, np.float32(_NEVER))


def level_of(time: Volume, room: Volume, volume: float, spacing: float, most: float) -> float:
    """The level at which what has arrived takes `volume` mL of the room (a fraction of each voxel), or `most` mm if that is less."""
    counts, edges = np.histogram(time, bins=1500, range=(float(time.min()), most), weights=room)
    reached = np.cumsum(counts) * spacing**3 / 1000
    return float(edges[min(int(np.searchsorted(reached, volume)) + 1, len(edges) - 1)])


def front(depth: Volume, spacing: float, width: float = _BORDER) -> Front:
    """The front at depth 0, with a border `width` mm wide, at least one voxel."""
    half = max(width, spacing) / 2
    return Front(depth, smoothstep(depth, -half, half))


def core_front(
    rng: np.random.Generator, anatomy: Anatomy, seed: NDArray[np.intp], volume: float, slow: Slowness, rough: float
) -> Front:
    """A lobulated core of `volume` mL about `seed` (voxel): several fronts from near it that have merged, with a rough border.

    Args:
        rng: the only source of chance.
        anatomy: the box of the brain it grows in.
        seed: voxel in that box.
        volume: mL.
        slow: what holds it back.
        rough: relative roughness; 1 as in glioblastoma, 0 smooth.
    """
    factor, shape = factor_of(anatomy.spacing), anatomy.wm.shape
    spacing, radius = anatomy.spacing * factor, radius_of(volume)
    slowness = slowness_map(anatomy, slow, factor, bool(anatomy.below[tuple(seed)] > 0.5))
    start = np.full(slowness.shape, np.inf, dtype=np.float32)
    middle = np.asarray(seed) // factor
    start[tuple(middle)] = 0
    for _ in range(int(rng.integers(2, 6))):
        direction = rng.standard_normal(3)
        away = rng.uniform(0.35, 0.9) * radius
        at = np.rint(middle + direction / np.linalg.norm(direction) * away / spacing).astype(int)
        at = at.clip(0, np.array(slowness.shape) - 1)
        if slowness[tuple(at)] < 2:
            start[tuple(at)] = min(start[tuple(at)], rng.uniform(0.2, 0.7) * away)
    time = refine(arrival(slowness, start, spacing, 4 * radius), factor, shape)
    for scale, size in ((0.8 * radius, 0.18 * radius), (9.0, 0.09 * radius), (4.5, 0.6)):
        if scale > anatomy.spacing:
            time = time + np.float32(rough * size) * smooth_field(rng, shape, anatomy.spacing, scale)
    room = anatomy.gm + anatomy.wm
    level = level_of(time, room, volume, anatomy.spacing, 4 * radius)
    found = front(np.float32(level) - time, anatomy.spacing)
    return _connected(found, seed)


def oedema_depth(
    rng: np.random.Generator, anatomy: Anatomy, core: Front, volume: float, slow: Slowness, most: float
) -> Volume:
    """How deep in the oedema each voxel lies, mm: it spreads from the core along white matter until it fills `volume` mL of it, and
    at most `most` mm far."""
    factor, shape, spacing = factor_of(anatomy.spacing), anatomy.wm.shape, anatomy.spacing
    inside = coarsen(core.extent, factor)
    below = bool((inside * coarsen(anatomy.below, factor)).sum() > 0.5 * inside.sum())
    slowness = slowness_map(anatomy, slow, factor, below)
    start = np.where(inside > min(0.5, float(inside.max())) - 1e-6, 0, np.inf).astype(np.float32)
    plain = refine(arrival(slowness, start, spacing * factor, 1.3 * most), factor, shape)
    time = plain * np.exp(0.3 * smooth_field(rng, shape, spacing, 28.0))
    for scale, size in ((14.0, 3.0), (6.0, 1.0)):
        time += np.float32(size) * smooth_field(rng, shape, spacing, scale)
    time = np.maximum(time, plain * np.float32(1 / _FASTEST))
    level = level_of(time, anatomy.wm * (1 - core.extent), volume, spacing, most / _FASTEST)
    return np.asarray(np.float32(level) - time)


def radius_of(volume: float) -> float:
    """Radius, mm, of a ball of `volume` mL."""
    return float(np.cbrt(750 * volume / np.pi))


def distance_from(at: NDArray[Any], shape: Sequence[int], spacing: float) -> Volume:
    """Distance of each voxel to a place in voxel coordinates, mm."""
    x, y, z = (np.arange(n, dtype=np.float32) - c for n, c in zip(shape, at, strict=True))
    return np.asarray(np.sqrt(x[:, None, None] ** 2 + y[:, None] ** 2 + z**2) * np.float32(spacing))


def away_from(mask: NDArray[np.bool_], spacing: float) -> Volume:
    """Distance of each voxel to a mask, mm, to within the voxels on which fronts travel."""
    factor = factor_of(spacing)
    near = coarsen(mask.astype(np.float32), factor) > 0
    away = ndimage.distance_transform_edt(~near, sampling=spacing * factor).astype(np.float32)
    return refine(away, factor, mask.shape)


def total(fractions: Iterable[Volume]) -> Volume:
    """Sum of fractions."""
    first, *others = fractions
    result = first.copy()
    for fraction in others:
        result += fraction
    return result


def attached(fraction: Volume, to: Volume) -> Volume:
    """`fraction` without the pieces that do not touch where `to` is above one half."""
    pieces, count = ndimage.label((fraction > _FAINT) | (to > 0.5))
    keep = np.zeros(count + 1, dtype=bool)
    keep[np.unique(pieces[to > 0.5])] = True
    keep[0] = False
    return np.asarray(fraction * ndimage.binary_dilation(keep[pieces], iterations=2))


def _connected(found: Front, seed: NDArray[np.intp]) -> Front:
    """Without what roughness has cut off: the largest piece only."""
    pieces, count = ndimage.label(found.extent > 0.5)
    if count < 2:
        return found
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    main = ndimage.binary_dilation(pieces == sizes.argmax(), iterations=2)
    return Front(np.where(main, found.depth, np.minimum(found.depth, -1)), found.extent * main)
