"""Lesions of multiple sclerosis: how much, how large, where, how bright; and what looks like them but is not labelled.

The distributions follow the expert masks of 30 patients (Lesjak et al. 2018, Neuroinformatics 16:51): the load is bimodal, volumes are
log-normal with a heavy tail of confluent bands along the ventricles, density falls with the distance to the ventricles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import ndtr, ndtri

from oligovox.simulate.anatomy import Anatomy
from oligovox.simulate.fields import Volume, smooth_field, smoothstep

Box: TypeAlias = tuple[slice, slice, slice]

_LOADS = ((0.3, np.log(1.1), 0.5), (0.7, np.log(20.0), 0.6))  # share, mean and standard deviation of ln(load / mL)
_SMALL = (3.1, 1.2)  # mean and standard deviation of ln(volume / mm³)
_LARGE = (6.2, 0.8)  # the same for the few larger lesions of a high load
_LARGE_SHARE = 0.1
_HIGH_LOAD = 4.0  # mL; from here on there are confluent bands
_SMALLEST = 4.0  # mm³
_SPECK = 3.0  # mm³; experts mark nothing smaller
_BORDER = 1.2  # width of the soft border, mm, at least one voxel
_TRIES = 3000  # lesions placed at most; many fall on one another


@dataclass(frozen=True)
class Lesions:
    """What is labelled.

    Attributes:
        fraction: (x, y, z) part of each voxel that is lesion, 0 to 1; soft at the border.
        severity: (x, y, z) 0 (mild) to 1 (severe) where the fraction is above 0.
    """

    fraction: Volume
    severity: Volume

    @property
    def mask(self) -> NDArray[np.bool_]:
        """More than half of the voxel is lesion."""
        return np.asarray(self.fraction > 0.5)


@dataclass(frozen=True)
class Confounders:
    """What looks like a lesion and is not labelled.

    Attributes:
        dirty: (x, y, z) part of the white matter that is mildly abnormal: caps at the horns, a faint rim, diffuse patches.
        perivascular: (x, y, z) part of each voxel that is a fluid-filled space around a small vessel.
    """

    dirty: Volume
    perivascular: Volume


def draw_load(rng: np.random.Generator, low: float, high: float) -> float:
    """A lesion load in mL: the bimodal mixture measured in patients, cut to [low, high]."""
    a, b = np.log(low), np.log(high)
    cuts = [(ndtr((a - mean) / sd), ndtr((b - mean) / sd)) for _, mean, sd in _LOADS]
    weights = np.array([share * (top - bottom) for (share, _, _), (bottom, top) in zip(_LOADS, cuts, strict=True)])
    chosen, level = rng.random(2)
    if weights.sum() < 1e-9:  # so far out in the tails that the mixture says nothing
        return float(np.exp(a + (b - a) * level))
    which = int(chosen * weights.sum() > weights[0])
    (bottom, top), (_, mean, sd) = cuts[which], _LOADS[which]
    return float(np.exp(mean + sd * ndtri(bottom + (top - bottom) * level)).clip(low, high))


def grow_lesions(rng: np.random.Generator, anatomy: Anatomy, load: float) -> Lesions:
    """Lesions whose mask has about `load` mL: confluent bands first where the load is high, then single lesions.

    Lesions stay in white matter and what borders it. The mask's volume is met to within a very small lesion, unless the
    brain has no room for so much.
    """
    allowed = _allowed(anatomy)
    noise = 0.75 * smooth_field(rng, allowed.shape, anatomy.spacing, 5.0)
    noise += 0.5 * smooth_field(rng, allowed.shape, anatomy.spacing, max(2.5, anatomy.spacing))
    lesions = Lesions(np.zeros_like(allowed), np.zeros_like(allowed))
    usual = rng.uniform(0.25, 0.5)  # severity of this person's lesions
    if load > _HIGH_LOAD:
        share = rng.beta(2.0, 2.5) * 0.7 + 0.25 * min(load / 50, 1)
        lesions.fraction[:] = _bands(rng, anatomy, allowed, noise, load * share)
        uneven = 0.18 * smooth_field(rng, allowed.shape, anatomy.spacing, 8.0)
        lesions.severity[:] = (usual + uneven).clip(0, 1)
    _scatter(rng, anatomy, allowed, noise, load, usual, lesions)
    _fade_specks(lesions.fraction, anatomy.spacing)
    return lesions


def grow_confounders(rng: np.random.Generator, anatomy: Anatomy) -> Confounders:
    """Caps, rims, dirty white matter and perivascular spaces of one person; some people have hardly any."""
    shape, spacing = anatomy.wm.shape, anatomy.spacing
    horns = _horns(anatomy)
    reach = rng.uniform(1.0, 4.0) * horns + rng.uniform(0.3, 1.2)
    caps = rng.uniform(0.1, 0.45) * np.exp(-anatomy.to_ventricle / reach)
    patches = rng.uniform(0.05, 0.35) * smoothstep(smooth_field(rng, shape, spacing, 10.0), -0.5, 2.0)
    dirty = ((caps + patches) * smoothstep(anatomy.wm, 0.3, 0.8)).astype(np.float32)
    perivascular = np.zeros(shape, dtype=np.float32)
    deep = smoothstep(anatomy.to_cortex, 5, 9) * smoothstep(anatomy.to_ventricle, 4, 8) * anatomy.brain
    still = np.zeros_like(deep)
    for centre in _draw_voxels(rng, deep, int(rng.integers(5, 40))):
        length, radius = rng.uniform(2.0, 4.5), rng.uniform(0.35, 0.75)
        box, drawn = _ellipsoid(centre, np.array([length, radius, radius]), _rotation(rng, None), still, spacing)
        thin = min(1.0, (2 * radius / max(spacing, _BORDER)) ** 2)  # thinner than a voxel: partial volume
        perivascular[box] = np.maximum(perivascular[box], drawn * thin)
    return Confounders(dirty, np.minimum(perivascular, anatomy.wm + anatomy.gm).astype(np.float32))


def _allowed(anatomy: Anatomy) -> Volume:
    """The part of each voxel a lesion may take: white matter, and grey matter in a voxel that both share."""
    return np.asarray(anatomy.wm + anatomy.gm * np.clip(2 * anatomy.wm, 0, 1), dtype=np.float32)


def _horns(anatomy: Anatomy) -> Volume:
    """1 at the frontal and occipital horns and trigones of the lateral ventricles, less along their bodies: (1, y, 1)."""
    y = np.arange(anatomy.wm.shape[1]) * anatomy.spacing + anatomy.affine[1, 3]
    bumps = np.exp(-(((y - 24) / 14) ** 2)) + np.exp(-(((y + 42) / 14) ** 2))
    return np.asarray(0.3 + 0.7 * bumps, dtype=np.float32)[None, :, None]


def _bands(rng: np.random.Generator, anatomy: Anatomy, allowed: Volume, noise: Volume, volume: float) -> Volume:
    """Confluent bands along the ventricles of `volume` mL: the white matter nearest to them, by a perturbed distance in mm."""
    shape, spacing = allowed.shape, anatomy.spacing
    score = 4.0 * smooth_field(rng, shape, spacing, 14.0) + 2.5 * noise + 5.0 * _horns(anatomy) - anatomy.to_ventricle
    score -= 4.0 * np.clip(2.0 - anatomy.to_cortex, 0, None) + 12.0 * anatomy.deep  # off the cortex and the deep nuclei
    free = (allowed > 0.5) & (anatomy.to_ventricle < 30)
    wanted = min(round(volume * 1000 / spacing**3), int(free.sum()) - 1)
    level = np.partition(score[free], -wanted - 1)[-wanted - 1]
    return np.minimum(_soft(score - level, spacing), allowed)


def _scatter(
    rng: np.random.Generator,
    anatomy: Anatomy,
    allowed: Volume,
    noise: Volume,
    load: float,
    usual: float,
    lesions: Lesions,
) -> None:
    """Add single lesions, in place, until the mask has `load` mL; those near a ventricle point away from it (Dawson's fingers)."""
    spacing, distance = anatomy.spacing, anatomy.to_ventricle
    room = allowed * (lesions.fraction < 0.1) * _supratentorial(anatomy) * (1 - 0.8 * anatomy.deep)
    small = _draw_voxels(rng, room * (0.5 + 3 * np.exp(-distance / 7) + 0.4 * (anatomy.to_cortex < 3)), _TRIES)
    large = _draw_voxels(rng, room * np.exp(-distance / 6) * (anatomy.to_cortex > 2), _TRIES)
    slopes = [np.asarray(slope) for slope in np.gradient(distance)]
    left = load * 1000 - np.count_nonzero(lesions.mask) * spacing**3
    for near, anywhere in zip(large, small, strict=True):
        if left < max(_SMALLEST, spacing**3 / 2):
            break
        big = load > _HIGH_LOAD and rng.random() < _LARGE_SHARE
        centre = near if big else anywhere
        volume = np.clip(rng.lognormal(*(_LARGE if big else _SMALL)), _SMALLEST, left)
        outward = np.array([slope[tuple(centre)] for slope in slopes])
        finger = distance[tuple(centre)] < 12 and np.linalg.norm(outward) > 0.1
        ratio = rng.uniform(1.4, 2.4) if finger else rng.uniform(1.0, 1.6)
        radii = np.cbrt(0.75 * volume / np.pi / ratio) * np.array([ratio, 1.15, 1 / 1.15])
        box, drawn = _ellipsoid(centre, radii, _rotation(rng, outward if finger else None), noise, spacing)
        drawn = np.minimum(drawn, allowed[box])
        fraction, severity = lesions.fraction[box], lesions.severity[box]
        grown = np.count_nonzero((drawn > 0.5) & (fraction <= 0.5)) * spacing**3
        if grown > left + spacing**3:
            continue
        left -= grown
        wins = drawn > fraction
        severity[wins] = np.clip(rng.normal(usual, 0.17), 0, 1)
        fraction[wins] = drawn[wins]


def _fade_specks(fraction: Volume, spacing: float) -> None:
    """Bits of less than 3 mm³, cut off by the cortex or by noise, fall below the half that is labelled."""
    parts, _ = ndimage.label(fraction > 0.5, np.ones((3, 3, 3)))
    small = np.bincount(parts.ravel()) * spacing**3 < _SPECK
    small[0] = False
    fraction[small[parts]] = 0.5


def _supratentorial(anatomy: Anatomy) -> Volume:
    """Fewer lesions in the brain stem and the cerebellum: 0.35 below the tentorium, 1 above, (1, 1, z)."""
    z = np.arange(anatomy.wm.shape[2]) * anatomy.spacing + anatomy.affine[2, 3]
    return 0.35 + 0.65 * smoothstep(z.astype(np.float32), -26, -14)[None, None, :]


def _ellipsoid(
    centre: NDArray[np.intp], radii: NDArray[np.float64], rotation: NDArray[np.float64], noise: Volume, spacing: float
) -> tuple[Box, Volume]:
    """A soft ellipsoid (radii in mm) with a border moved in and out by `noise`, in the box of voxels it touches."""
    reach = int(np.ceil((1.6 * radii.max() + _BORDER) / spacing))
    x, y, z = (
        slice(max(int(c) - reach, 0), min(int(c) + reach + 1, n)) for c, n in zip(centre, noise.shape, strict=True)
    )
    offsets = np.stack(
        np.meshgrid(*(np.arange(s.start, s.stop) - c for s, c in zip((x, y, z), centre, strict=True)), indexing="ij")
    )
    turned = np.tensordot(rotation, offsets * spacing, 1) / radii[:, None, None, None]
    q = np.linalg.norm(turned, axis=0) * np.exp(0.25 * noise[x, y, z])
    size = np.cbrt(radii.prod())
    return (x, y, z), _soft(((1 - q) * size).astype(np.float32), spacing)


def _soft(depth: Volume, spacing: float) -> Volume:
    """Fraction of a voxel whose middle lies `depth` mm inside the border."""
    half = max(_BORDER, spacing) / 2
    return smoothstep(depth, -half, half)


def _rotation(rng: np.random.Generator, first: NDArray[np.float32] | None) -> NDArray[np.float64]:
    """A random rotation; its first row points along `first` where that is given."""
    rows = rng.standard_normal((3, 3))
    if first is not None:
        rows[0] = first
    return np.asarray(np.linalg.qr(rows.T)[0].T)


def _draw_voxels(rng: np.random.Generator, weight: Volume, count: int) -> NDArray[np.intp]:
    """Voxels (count, 3), drawn with a chance proportional to `weight`."""
    total = np.cumsum(weight, dtype=np.float64)
    flat = np.searchsorted(total, rng.random(count) * total[-1], side="right")
    return np.stack(np.unravel_index(flat, weight.shape), axis=1)


def count_lesions(mask: NDArray[np.bool_]) -> int:
    """Connected components with 26 neighbours."""
    return int(ndimage.label(mask, np.ones((3, 3, 3)))[1])
