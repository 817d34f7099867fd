"""How much, how many, how large and where: the statistics of lesions, fitted to expert masks.

Fitted to the masks (not the images) of 29 patients: Lesjak et al. 2018, Neuroinformatics 16:51.

- load: two log-normals; a third of the patients have about 1 mL, the others about 20.
- number: ln n = 3.2 + 0.46 ln(load / mL), residual standard deviation 0.58.
- body: lesions below 0.4 mL are log-normal in every patient, mean 3.1 ± 0.3 and standard deviation 1.15 of ln(volume / mm³).
- tail: what the body leaves of the load is broken into pieces: one mass, two of about the same size, or several.
- place: larger lesions lie nearer to the ventricles; bands (above 1.5 mL) always start there, four fifths of the patients' above 2 mL do.

The weights of places are chosen so that distances to ventricles and cortex match, measured alike after scaling each brain to the average one.
Kolmogorov-Smirnov distances of 40 simulated masks (1 mm, 8 brains) to the 29 real ones, and in brackets of random halves of the real ones to
each other (mean; 95 %): number 0.17 (0.29; 0.45), load 0.14 (0.29; 0.44), largest share 0.28 (0.29; 0.44), ln volume 0.04 (0.06; 0.12), median
distance of lesion voxels to the ventricles 0.22 (0.30; 0.46), nearest distance of lesions 0.05 (0.06; 0.10), infratentorial share 0.19 (0.30;
0.45). The halves are smaller samples, and the same masks served the fit: this shows that it fits, not that it holds for other patients.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree
from scipy.special import ndtr, ndtri

from oligovox.simulate.anatomy.brain import Anatomy
from oligovox.simulate.fields import Volume, smoothstep
from oligovox.simulate.pathology.lesion_shapes import Place, beside

PLACES: tuple[Place, ...] = ("periventricular", "juxtacortical", "deep", "infratentorial")
SMALLEST = 4.0
"""mm³; no lesion is drawn smaller."""
CONFLUENT = 1500.0
"""mm³; from here on a lesion is a band along the ventricles."""

_LOADS = ((0.3, np.log(1.1), 0.5), (0.7, np.log(20.0), 0.6))  # share, mean and standard deviation of ln(load / mL)
_NUMBER = (
    3.2,
    0.46,
    0.5,
)  # intercept, slope on ln(load / mL), standard deviation of ln n; the rest comes with the load
_BODY = (3.1, 0.3, 1.15)  # of ln(volume / mm³): mean, its standard deviation between people, standard deviation
_BODY_TOP = 450.0  # mm³
_LEAST_EXCESS = 600.0  # mm³; less than this is not a tail
_TAIL = ((0.3, "one mass"), (0.4, "two masses"), (0.3, "several"))
_SHARES = (  # of places, for lesions up to so many mm³
    (30.0, (0.06, 0.45, 0.42, 0.07)),
    (100.0, (0.10, 0.48, 0.35, 0.07)),
    (400.0, (0.18, 0.46, 0.28, 0.08)),
    (np.inf, (0.42, 0.42, 0.11, 0.05)),
)


_UNBANDED = 2.5  # how much more often a single lesion lies at the ventricles where there are no bands
_PULL = (0.05, 80.0)  # chance of a centre falls by exp(−d · 0.05 ln(1 + volume / 80 mm³)) at d mm from the ventricles
_DRAWS = 50
_TO_VEIN = 5.0  # mm; a vein this near draws a lesion onto it
_FIT = 0.1  # relative chance from which a vein is in the right place


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


def draw_volumes(rng: np.random.Generator, load: float) -> NDArray[np.float64]:
    """Volumes of the lesions of a load, both in mm³, largest first; their sum is the load, but for less than the smallest lesion."""
    intercept, slope, sd = _NUMBER
    number = max(int(np.exp(intercept + slope * np.log(load / 1000) + sd * rng.standard_normal())), 3)
    mean = rng.normal(_BODY[0], _BODY[1])
    body = np.exp(rng.normal(mean, _BODY[2], number)).clip(SMALLEST, _BODY_TOP)
    excess = load - body.sum()
    if excess > _LEAST_EXCESS:
        return np.sort(np.concatenate([body, _pieces(rng, float(excess))]))[::-1]
    body = (body * load / body.sum()).clip(SMALLEST)
    kept = body[np.cumsum(body) <= load]
    left = load - kept.sum()
    return np.sort(np.append(kept, left) if left >= SMALLEST else kept)[::-1]


def draw_place(rng: np.random.Generator, volume: float, *, banded: bool) -> Place:
    """Where a lesion of this volume in mm³ lies; single lesions are more often at the ventricles in brains without bands there."""
    shares = np.array(next(shares for top, shares in _SHARES if volume <= top))
    shares[0] *= 1.0 if banded else _UNBANDED
    return PLACES[int(rng.choice(len(PLACES), p=shares / shares.sum()))]


class Sites:
    """Centres of lesions of one person: drawn by place, and moved onto a vein where one is wanted and near."""

    def __init__(self, rng: np.random.Generator, anatomy: Anatomy, allowed: Volume) -> None:
        self._rng, self._reach = rng, _TO_VEIN / anatomy.spacing
        self._to_ventricle = anatomy.to_ventricle
        self._voxels = np.argwhere(allowed > 0.5)
        points, axes = _vein_points(anatomy, allowed)
        self._sums: dict[Place, NDArray[np.float64]] = {}
        self._veins: dict[Place, tuple[NDArray[np.float64], NDArray[np.float64], KDTree]] = {}
        for place in PLACES:
            self._sums[place] = np.cumsum(_weight(anatomy, self._voxels, place), dtype=np.float64)
            fit = _weight(anatomy, np.rint(points).astype(np.intp), place) > _FIT
            if fit.any():
                self._veins[place] = points[fit], axes[fit], KDTree(points[fit])

    def draw(
        self, place: Place, volume: float, on_vein: bool
    ) -> tuple[NDArray[np.intp], NDArray[np.float64] | None] | None:
        """A voxel, and the direction of the vein through it (None: no vein); None where there is no such place.

        A lesion of a larger `volume`, mm³, is drawn nearer to the ventricles.
        """
        sums = self._sums[place]
        if not sums.size or sums[-1] == 0:
            return None
        pull = _PULL[0] * np.log1p(volume / _PULL[1])
        for _ in range(_DRAWS):
            index = int(np.searchsorted(sums, self._rng.random() * sums[-1], side="right"))
            voxel = self._voxels[min(index, sums.size - 1)]
            if self._rng.random() < np.exp(-pull * self._to_ventricle[tuple(voxel)]) or place == "infratentorial":
                break
        if on_vein and place in self._veins:
            points, axes, tree = self._veins[place]
            distance, nearest = tree.query(voxel, distance_upper_bound=self._reach)
            if np.isfinite(distance):
                return np.rint(points[nearest]).astype(np.intp), axes[nearest]
        return voxel, None


def _pieces(rng: np.random.Generator, excess: float) -> NDArray[np.float64]:
    """Break the volume of the tail: mm³ → volumes in mm³ with this sum."""
    kind = _TAIL[int(rng.choice(len(_TAIL), p=[share for share, _ in _TAIL]))][1]
    found: list[float] = []
    if kind == "one mass":
        found = [excess * rng.uniform(0.85, 0.99)]
    elif kind == "two masses":
        both, part = excess * rng.uniform(0.55, 0.96), rng.beta(8, 8)
        found = [both * part, both * (1 - part)]
    left = excess - sum(found)
    while left > 2 * _BODY_TOP:
        found.append(max(left * rng.beta(1.6, 3.2), _BODY_TOP))
        left -= found[-1]
    return np.array([*found, left])


def _weight(anatomy: Anatomy, voxels: NDArray[np.intp], place: Place) -> NDArray[np.float32]:
    """Relative chance (n,) that a lesion of this place is centred at each of the voxels (n, 3)."""
    at = tuple(voxels.T)
    ventricle, cortex, below = anatomy.to_ventricle[at], anatomy.to_cortex[at], anatomy.below[at]
    chance = (1 - below) * (1 - 0.85 * anatomy.deep[at])
    match place:
        case "periventricular":
            chance *= np.exp(-np.clip(ventricle - 3, 0, None) / 2.5) * (0.3 + 0.7 * beside(anatomy)[at[0], 0, 0])
        case "juxtacortical":
            chance *= cortex < 2.5
        case "deep":
            chance *= smoothstep(cortex, 1.5, 4) * smoothstep(ventricle, 2, 6)
        case "infratentorial":
            chance = below * (0.3 + smoothstep(cortex, 1, 4))
    return np.asarray(chance, dtype=np.float32)


def _vein_points(anatomy: Anatomy, allowed: Volume) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points of veins in white matter (n, 3), in voxels, and the direction of the vein there (n, 3)."""
    veins = [vein.points for vein in anatomy.veins if len(vein.points) > 1]
    if not veins:
        return np.empty((0, 3)), np.empty((0, 3))
    points = np.concatenate(veins).astype(np.float64)
    axes = np.concatenate([np.gradient(line, axis=0) for line in veins]).astype(np.float64)
    voxels = np.rint(points).astype(np.intp)
    inside = np.all((voxels >= 0) & (voxels < np.array(allowed.shape)), axis=1) & (np.linalg.norm(axes, axis=1) > 0)
    inside[inside] = allowed[tuple(voxels[inside].T)] > 0.5
    return points[inside], axes[inside]
