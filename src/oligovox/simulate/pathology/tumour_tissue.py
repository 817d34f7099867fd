"""What a tumour is made of: necrosis, enhancing rim and solid tumour of an untreated one, cavity and residue of a treated one.

All functions give shares: tissue → (x, y, z) part of the room in each voxel, 0 to 1, which sum to at most 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import ndtri

from oligovox.simulate.anatomy.brain import Anatomy
from oligovox.simulate.fields import Volume, smooth_field, smoothstep
from oligovox.simulate.pathology.tumour_shapes import Front, coarsen, distance_from, factor_of, front, radius_of
from oligovox.simulate.physics.tissues import TissueName

Shares: TypeAlias = Mapping[TissueName, Volume]

THIN = 0.35  # share of the voxel that the thin line of enhancement along any cavity takes: seen, and not labelled
THINNEST = 1.5  # the enhancing rim is nowhere thinner, mm
_REACH = 42.0  # a cavity deeper than this under the skull has no way out, mm


def high_grade(rng: np.random.Generator, core: Front, spacing: float, rim: float) -> Shares:
    """Necrosis behind a rim of enhancing tumour of uneven thickness, with gaps that do not enhance and strands across.

    Args:
        rng: the only source of chance.
        core: the whole of it.
        spacing: mm.
        rim: usual thickness of the rim, mm.
    """
    shape = core.extent.shape
    thick = np.float32(rim) * np.exp(0.4 * smooth_field(rng, shape, spacing, 12.0))
    rough = (0.15 * rim + 0.6) * smooth_field(rng, shape, spacing, max(4.5, spacing))
    rough += 0.3 * rim * smooth_field(rng, shape, spacing, 8.0)
    near = 1 - smoothstep(core.depth - thick, 2.0, 12.0)  # strands and islands hang on the rim, the middle is fluid
    strands = rng.uniform(0.2, 1.0) * (1 - smoothstep(np.abs(smooth_field(rng, shape, spacing, 10.0)), 0.1, 0.35))
    islands = _patches(rng, shape, spacing, 6.0, rng.uniform(0.0, 0.25))
    inner = front(np.minimum(core.depth - thick + rough, core.depth - THINNEST), spacing).extent
    necrosis = np.minimum(inner * (1 - near * np.maximum(strands, islands)), core.extent)
    gaps = _patches(rng, shape, spacing, 14.0, rng.uniform(0.0, 0.25))
    solid = (core.extent - necrosis) * gaps
    return {"necrosis": necrosis, "solid_tumour": solid, "enhancing_tumour": core.extent - necrosis - solid}


def low_grade(core: Front) -> Shares:
    """Solid tumour that does not enhance and fades into what is around."""
    return {"solid_tumour": smoothstep(core.depth, -2.0, 2.0)}


def cavity_front(rng: np.random.Generator, anatomy: Anatomy, seed: NDArray[np.intp], volume: float) -> Front:
    """What a surgeon took: `volume` mL about `seed`, smooth, whatever the tissue, with the way in from the nearest surface."""
    shape, spacing, radius = anatomy.wm.shape, anatomy.spacing, radius_of(volume)
    far = np.full(shape, np.inf, dtype=np.float32)
    for _ in range(int(rng.integers(2, 5))):  # bitten out piece by piece
        middle = seed + rng.normal(0, 0.4 * radius / spacing, 3)
        axes = np.exp(rng.normal(0, 0.25, 3))
        x, y, z = (
            (np.arange(n, dtype=np.float32) - c) * spacing / a for n, c, a in zip(shape, middle, axes, strict=True)
        )
        far = np.minimum(far, np.sqrt(x[:, None, None] ** 2 + y[:, None] ** 2 + z**2))
    surface = _way_out(anatomy, seed)
    if surface is not None:
        line, along = _to_line(seed, surface, shape, spacing)
        far = np.minimum(far, line / (0.45 + 0.35 * along))  # the opening is wider than the way
    far = far + np.float32(0.13 * radius) * smooth_field(rng, shape, spacing, 0.7 * radius)
    far += np.float32(0.05 * radius + 0.3) * smooth_field(rng, shape, spacing, 6.0)
    far += 6 * smoothstep(3 - anatomy.to_ventricle, 0.0, 3.0)
    near = np.sort(far[anatomy.brain & (far < 3 * radius)])
    level = near[min(round(volume * 1000 / spacing**3), len(near) - 1)]
    return front((level - far).astype(np.float32), spacing, 1.0)


def treated(rng: np.random.Generator, anatomy: Anatomy, cavity: Front, residual: bool) -> Shares:
    """A cavity with a thin enhancing line along its wall and, if `residual`, thick or nodular tumour in places.

    The thin line takes less than half of a voxel: it is seen but not labelled. Source: a review of de Verdier et al. 2024,
    arXiv:2405.18368, says that raters of BraTS 2024 leave thin linear enhancement along a cavity out.
    """
    shape, spacing = cavity.extent.shape, anatomy.spacing
    outside = 1 - cavity.extent
    nodules, cores = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    wall = np.argwhere((np.abs(cavity.depth) < 1.5 + spacing) & (anatomy.wm + anatomy.gm > 0.5))
    uneven = smooth_field(rng, shape, spacing, 6.0)
    if residual and len(wall):
        for at in rng.choice(wall, int(rng.integers(1, 4))):
            radius = float(np.exp(rng.uniform(np.log(1.5), np.log(11.0))))
            ball = radius + 0.18 * radius * uneven - distance_from(at, shape, spacing)
            nodules = np.maximum(nodules, front(ball, spacing).extent)
            cores = np.maximum(cores, front(ball - rng.uniform(2.5, 4.5), spacing).extent)
        thick = np.float32(rng.uniform(1.5, 4.0)) * np.exp(0.4 * uneven)
        shell = smoothstep(cavity.depth + thick, -0.6, 0.6) * _patches(rng, shape, spacing, 13.0, rng.uniform(0.1, 0.6))
        nodules = np.maximum(nodules, shell)
    line = THIN * smoothstep(cavity.depth, -1.8, -0.6)
    solid = 0 * nodules
    if len(wall) and rng.random() < 0.4:
        radius = rng.uniform(4.0, 11.0)
        solid = front(radius * (1 + 0.25 * uneven) - distance_from(rng.choice(wall), shape, spacing), spacing).extent
    necrosis = cores * outside
    enhancing = np.maximum(nodules * (1 - cores), np.minimum(line, 1 - cores)) * outside
    solid = solid * (outside - necrosis - enhancing)
    blood = np.zeros_like(nodules)
    if rng.random() < 0.4:
        blood = 0.7 * smoothstep(2.2 - np.abs(cavity.depth - 0.8), 0.0, 2.0) * cavity.extent
        blood *= _patches(rng, shape, spacing, 10.0, rng.uniform(0.2, 0.6))
    return {
        "resection_cavity": cavity.extent - blood,
        "blood_products": blood,
        "necrosis": necrosis,
        "solid_tumour": solid,
        "enhancing_tumour": enhancing,
    }


def _patches(rng: np.random.Generator, shape: tuple[int, ...], spacing: float, scale: float, share: float) -> Volume:
    """1 in patches `scale` mm across that take about this share of the volume, soft at their border, 0 between."""
    level = float(ndtri(1 - max(share, 1e-3)))
    return smoothstep(smooth_field(rng, shape, spacing, scale), level - 0.15, level + 0.15)


def _way_out(anatomy: Anatomy, seed: NDArray[np.intp]) -> NDArray[np.float64] | None:
    """The nearest voxel of the surface, preferably not under the seed, or None where all are too far."""
    factor = factor_of(anatomy.spacing)
    brain = coarsen(anatomy.brain.astype(np.float32), factor) > 0.5
    inner = ndimage.binary_erosion(brain, border_value=1)  # where the box ends there is no surface
    places = np.argwhere(brain & ~inner) * factor + (factor - 1) / 2
    if not len(places):
        return None
    offsets = (places - seed) * anatomy.spacing
    cost = np.linalg.norm(offsets, axis=1) + np.maximum(-offsets[:, 2], 0)
    return places[cost.argmin()] if cost.min() < _REACH else None


def _to_line(
    start: NDArray[np.intp], end: NDArray[np.float64], shape: tuple[int, ...], spacing: float
) -> tuple[Volume, Volume]:
    """Distance of each voxel to the line between two, which goes on a little behind the second, mm; 0 to 1 along it."""
    way = (end - start) * spacing
    length = max(float(np.linalg.norm(way)), 1e-6)
    x, y, z = ((np.arange(n, dtype=np.float32) - s) * spacing for n, s in zip(shape, start, strict=True))
    u = (way / length).astype(np.float32)
    reached = x[:, None, None] * u[0] + y[:, None] * u[1] + z * u[2]
    nearest = np.clip(reached, 0, length + 10)
    square = x[:, None, None] ** 2 + y[:, None] ** 2 + z**2 - 2 * nearest * reached + nearest**2
    return np.sqrt(np.maximum(square, 0)).astype(np.float32), np.clip(nearest / length, 0, 1).astype(np.float32)
