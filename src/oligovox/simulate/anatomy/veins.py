"""Veins of the brain as lines, and how much of each voxel they fill.

Deep medullary veins run from the wall of the lateral ventricles outwards through white matter; the veins they drain into and the sinuses are
placed by hand in template space. Sizes: medullary veins 0.2 to 0.3 mm wide on SWI (Chen et al. 2016, Acta Anat Sin 47:796), of which
only the wider are drawn; internal cerebral vein 1.5 to 2 mm wide, 37 mm long (Int J Med Sci 2021, 18:1699). The rest is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.simulate.anatomy.template import STRAIGHT_SINUS
from oligovox.simulate.fields import Volume

Places: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Template RAS mm (n, 3) → the person's voxel coordinates."""

_MEDULLARY = (60, 150)  # how many a person has
_LENGTH = (15.0, 45.0)  # mm
_RADIUS = (0.2, 0.5)  # mm; most are narrow
_CORTICAL = (20, 40)  # veins on the cortex, both sides
_CORTICAL_RADIUS = (0.5, 1.2)  # mm
_WIGGLE = 0.25  # how far a step turns aside, radian

_PAIRED = {  # right side, template mm, with the radius in mm; the left side is its mirror image
    "internal_cerebral": (0.9, ((3, 1, 9), (2.5, -4, 13), (2.5, -12, 15.5), (2.5, -20, 16), (2.5, -28, 13), (1.5, -36, 10), (0.4, -41, 8))),
    "thalamostriate": (0.6, ((21, -26, 19), (17.5, -20, 19), (16, -15, 19.5), (15, -10, 19), (13, -5, 15.5), (9, -1, 11.5), (3, 1, 9))),
    "septal": (0.4, ((8, 27, 6), (4, 20, 11), (2.5, 10, 13), (2.5, 4, 12), (3, 1, 9))),
    "atrial": (0.5, ((25, -36, 22), (18, -37, 17), (12, -37, 13), (6, -38, 10), (1, -40, 8))),
    "basal": (0.8, ((13, -3, -15), (17, -11, -15), (20.5, -19, -13), (18, -26, -9), (12, -34, -3), (5, -40, 3), (0.5, -43, 6))),
}  # fmt: skip
_GALEN = (1.6, ((0, -40, 8), (0, -43, 6), (0, -46, 9), (0, -48, 14)))
_STRAIGHT = (1.8, STRAIGHT_SINUS)
_SAGITTAL = 2.2  # radius of the superior sagittal sinus, mm


@dataclass(frozen=True)
class Vein:
    """A vein inside the brain.

    Attributes:
        points: (n, 3) its middle line in voxel coordinates, from the ventricle (or sinus) outwards, about one voxel apart.
        radius: mm.
    """

    points: NDArray[np.float32]
    radius: float


def draw_veins(
    rng: np.random.Generator,
    wm: Volume,
    csf: Volume,
    to_ventricle: Volume,
    cover: Volume,
    spacing: float,
    places: Places,
) -> tuple[Vein, ...]:
    """The veins of one person.

    Args:
        rng: the only source of chance.
        wm: (x, y, z) fraction of white matter.
        csf: (x, y, z) fraction of CSF.
        to_ventricle: (x, y, z) distance to the lateral ventricles, mm.
        cover: (x, y, z) 1 in the brain, 0 outside.
        spacing: voxel size, mm.
        places: template mm → voxel coordinates.
    """
    medullary = _medullary(rng, wm, to_ventricle, spacing)
    deep = [_placed(rng, radius, line, sign, places) for radius, line in _PAIRED.values() for sign in (-1, 1)]
    middle = [_placed(rng, radius, line, 1, places) for radius, line in (_GALEN, _STRAIGHT)]
    sagittal = _sagittal(cover, places)
    return (*medullary, *deep, *middle, sagittal, *_cortical(rng, csf, cover, sagittal, spacing, places))


def rasterise(veins: Sequence[Vein], shape: Sequence[int], spacing: float) -> Volume:
    """The fraction of each voxel that is inside a vein: (x, y, z), 0 to 1.

    A vein is a bundle of lines spread evenly over its cross-section, and each short piece of line gives its volume to the eight voxels
    around it: π r² per length arrives, whatever the size of the voxels, except where veins overlap.
    """
    total = np.zeros(int(np.prod(shape)), dtype=np.float32)
    for vein in veins:
        points, weight = _bundle(vein, spacing)
        low = np.floor(points).astype(np.int64)
        part = points - low
        for corner in np.ndindex(2, 2, 2):
            at = low + corner
            share = np.prod(np.where(corner, part, 1 - part), axis=1) * weight
            ok = ((at >= 0) & (at < shape)).all(axis=1)
            flat = np.ravel_multi_index(tuple(at[ok].T), tuple(shape))
            np.add.at(total, flat, share[ok].astype(np.float32))
    return np.minimum(total, 1).reshape(tuple(shape))


def _bundle(vein: Vein, spacing: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points along parallel lines inside a vein (n, 3) in voxels, and the volume of each, voxels."""
    step = np.linalg.norm(np.diff(vein.points, axis=0), axis=1)
    length = np.concatenate([[0], np.cumsum(step)])
    count = max(int(np.ceil(length[-1] / 0.35)), 1)
    at = (np.arange(count) + 0.5) * length[-1] / count
    line = np.stack([np.interp(at, length, vein.points[:, a]) for a in range(3)], axis=1)
    tangent = np.gradient(line, axis=0) if count > 1 else np.array([[0.0, 0.0, 1.0]])
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    side = np.cross(tangent, np.eye(3)[np.abs(tangent).argmin(axis=1)])
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    other = np.cross(tangent, side)
    radius = vein.radius / spacing
    lines = max(int(np.ceil(np.pi * radius**2 / 0.3)), 1)
    k = np.arange(lines)
    away, turn = (radius * np.sqrt((k + 0.5) / lines) if lines > 1 else np.zeros(1)), k * np.pi * (3 - np.sqrt(5))
    points = (
        line[:, None]
        + side[:, None] * (away * np.cos(turn))[None, :, None]
        + other[:, None] * (away * np.sin(turn))[None, :, None]
    )
    volume = np.pi * radius**2 * length[-1] / (count * lines)
    return points.reshape(-1, 3), np.full(count * lines, volume)


def _medullary(rng: np.random.Generator, wm: Volume, to_ventricle: Volume, spacing: float) -> list[Vein]:
    """Veins that start in white matter beside the ventricles and climb away from them, about a right angle to the wall."""
    start = np.argwhere((to_ventricle > 0.6 * spacing) & (to_ventricle < 2.5 * spacing) & (wm > 0.7))
    if not len(start):
        return []
    count = int(rng.integers(_MEDULLARY[0], _MEDULLARY[1] + 1))
    at = start[rng.integers(len(start), size=6 * count)] + rng.uniform(-0.5, 0.5, (6 * count, 3))
    wanted = rng.uniform(*_LENGTH, len(at)) / spacing
    turn = rng.standard_normal((len(at), 3))
    lines, alive = [at], np.ones(len(at), dtype=bool)
    heading = _slope(to_ventricle, at, 2 / spacing)
    long = np.zeros(len(at))
    for _ in range(int(np.ceil(_LENGTH[1] / spacing))):
        turn = 0.85 * turn + 0.53 * rng.standard_normal(turn.shape)
        heading = _unit(0.8 * heading + 0.35 * _slope(to_ventricle, at, 2 / spacing) + _WIGGLE * 0.4 * turn)
        next_at = at + heading
        alive = alive & (long < wanted) & (_value(wm, next_at) > 0.5)
        at = np.where(alive[:, None], next_at, at)
        long += alive
        lines.append(at)
    paths = np.stack(lines, axis=1)
    radii = _RADIUS[0] + (_RADIUS[1] - _RADIUS[0]) * rng.beta(1, 3, len(at))
    kept = np.flatnonzero(long * spacing >= _LENGTH[0])[:count]
    return [Vein(paths[i, : int(long[i]) + 1].astype(np.float32), float(radii[i])) for i in kept]


def _placed(
    rng: np.random.Generator, radius: float, line: Sequence[Sequence[float]], sign: int, places: Places
) -> Vein:
    """A vein drawn by hand, smooth between its points, a little different in everyone; from the sinus outwards."""
    knots = np.array(line[::-1], dtype=float)
    knots[:, 0] *= sign
    knots[1:-1] += rng.normal(0, 0.4, knots[1:-1].shape)
    points = _dense(places(knots))
    return Vein(points.astype(np.float32), float(radius * rng.uniform(0.8, 1.2)))


def _dense(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """About one voxel apart, corners rounded."""
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    at = np.linspace(0, length[-1], max(int(length[-1]), 2) + 1)
    dense = np.stack([np.interp(at, length, points[:, a]) for a in range(3)], axis=1)
    return np.asarray(ndimage.gaussian_filter1d(dense, 1.5, axis=0, mode="nearest"))


def _sagittal(cover: Volume, places: Places) -> Vein:
    """The superior sagittal sinus: where rays from the middle of the brain, in the plane between its halves, leave the brain."""
    angles = np.deg2rad(np.arange(20, 205, 4))  # from the forehead over the top to the back
    rays = np.stack([0 * angles, np.cos(angles), np.sin(angles)], axis=1)
    reach = np.linspace(40, 110, 141)
    line = []
    for ray in rays:
        at = places(np.array([0.0, -18.0, 0.0]) + reach[:, None] * ray)
        covered = np.flatnonzero(_value(cover, at) > 0.9)
        line.append(at[covered[-1]] if len(covered) else at[0])
    smooth = ndimage.gaussian_filter1d(np.array(line[::-1]), 1.0, axis=0, mode="nearest")
    return Vein(_dense(smooth).astype(np.float32), _SAGITTAL)


def _cortical(
    rng: np.random.Generator, csf: Volume, cover: Volume, sinus: Vein, spacing: float, places: Places
) -> list[Vein]:
    """Veins that leave the sagittal sinus and run down over the cortex, drawn into its sulci."""
    count = int(rng.integers(_CORTICAL[0], _CORTICAL[1] + 1))
    soft = ndimage.gaussian_filter(csf, 1.5 / spacing)
    shell = ndimage.gaussian_filter(cover, 3.0 / spacing)
    at = sinus.points[rng.integers(len(sinus.points) // 8, len(sinus.points), count)].astype(float)
    centre = places(np.array([[0.0, -18.0, 5.0]]))
    heading = np.zeros((count, 3))
    heading[:, 0] = rng.choice([-1.0, 1.0], count)
    heading[:, 1] = rng.normal(0, 0.5, count)
    wanted = rng.uniform(30, 70, count) / spacing
    lines = [at]
    for _ in range(int(70 / spacing)):
        outward = _slope(-shell, at, 2 / spacing)
        outward = np.where(np.linalg.norm(outward, axis=1, keepdims=True) > 0.1, outward, _unit(at - centre))
        heading = heading + 0.15 * rng.standard_normal(heading.shape)
        heading = _unit(heading - (heading * outward).sum(axis=1, keepdims=True) * outward)
        drawn = 0.5 * _slope(soft, at, 1.5 / spacing)
        inward = 1.5 * (0.93 - _value(shell, at))[:, None].clip(-0.5, 0.8)
        at = at + _unit(heading + drawn - inward * outward)
        lines.append(at)
    paths = np.stack(lines, axis=1)
    radii = rng.uniform(*_CORTICAL_RADIUS, count)
    veins = [Vein(paths[i, : int(wanted[i])].astype(np.float32), float(radii[i])) for i in range(count)]
    return [replace(vein, points=ndimage.gaussian_filter1d(vein.points, 1.0, axis=0)) for vein in veins]


def _slope(volume: Volume, at: NDArray[np.float64], reach: float) -> NDArray[np.float64]:
    """Unit vectors (n, 3) along which the map rises, from differences over `reach` voxels to both sides."""
    steps = [_value(volume, at + reach * e) - _value(volume, at - reach * e) for e in np.eye(3)]
    return _unit(np.stack(steps, axis=1))


def _value(volume: Volume, at: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(ndimage.map_coordinates(volume, at.T, order=1, output=np.float64, mode="nearest"))


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9))
