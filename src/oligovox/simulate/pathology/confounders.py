"""What looks like a lesion and is not labelled. How much of it there is differs widely between people, so that what one labelled person
teaches is not enough.

- Caps at the horns of the ventricles, a thin rim along them, and dirty white matter: faint, without a border.
- Hyperintensities of age: smooth, about the same on both sides, spreading outwards from the ventricles as they grow (DeCarli et al. 2005,
  Stroke 36(1), PMC3816357), and small spots in deep white matter. Their volume begins to rise in the forties (inflection at 43 years in 486 healthy
  adults, PMC6901174). Bright on FLAIR as mild lesions are, hardly dark on T1w. Volumes and spread between people are chosen.
- Perivascular spaces: thin and full of fluid, along veins where the brain has any, bright on T2w and dark on FLAIR.
- Small arteries: dots in which flowing blood gives hardly any signal on spin echoes.

The two sources were read as abstracts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from oligovox.settings import Settings
from oligovox.simulate.anatomy.brain import Anatomy
from oligovox.simulate.anatomy.veins import Vein, rasterise
from oligovox.simulate.fields import Volume, smooth_field, smoothstep
from oligovox.simulate.pathology.lesion_shapes import allowed, horns, ovoid
from oligovox.simulate.physics.scene import Part, Parts, paint
from oligovox.simulate.physics.tissues import TissueName

_ONSET = 43.0  # years
_YOUNG, _GROWTH = 0.2, 0.085  # mL before the onset; growth per year after it (of the logarithm)
_BETWEEN = 0.9  # standard deviation of ln volume between people
_MOST = 60.0  # mL
_SPOTS = 0.25  # part of the volume that is small spots, at most
_SPOT = (2.6, 0.7)  # mean and standard deviation of ln(volume of a spot / mm³)
_SMALL_VEIN = 0.6  # mm; radius of veins that have such spaces around them, at most
_SPACE_LENGTH, _SPACE_RADIUS = (3.0, 9.0), (0.35, 0.8)  # perivascular spaces, mm
_ARTERY_LENGTH, _ARTERY_RADIUS = (4.0, 15.0), (0.3, 0.7)  # mm


class Confounders(Settings):
    """Amounts of what looks like a lesion; 0 = none, 1 = as is usual. Each person draws between hardly any and about twice as much."""

    caps: float = Field(1.0, ge=0, le=3, description="caps and rims at the ventricles, relative to usual")
    dirty: float = Field(1.0, ge=0, le=3, description="diffuse dirty white matter, relative to usual")
    age_related: float = Field(
        1.0, ge=0, le=5, description="hyperintensities of age, volume relative to usual at that age"
    )
    perivascular: float = Field(
        1.0, ge=0, le=5, description="number of perivascular spaces, relative to usual (about 40)"
    )
    arteries: float = Field(1.0, ge=0, le=5, description="number of small arteries, relative to usual (about 20)")


@dataclass(frozen=True)
class Lookalikes:
    """The confounders of one person; all (x, y, z), float32.

    Attributes:
        dirty: part of each voxel that is abnormal white matter: caps, rims, dirty white matter and hyperintensities of age.
        perivascular: part of each voxel that is fluid around a small vessel.
        arteries: part of each voxel that is arterial blood.
    """

    dirty: Volume
    perivascular: Volume
    arteries: Volume

    def paint(self, parts: Parts) -> Parts:
        """Lay them over a brain; abnormal white matter takes room from white matter only, fluid and blood spare veins."""
        veins: tuple[TissueName, ...] = ("venous_blood",)
        rest = {part.tissue for part in parts} - {"white_matter"}
        parts = paint(parts, Part("dirty_white_matter", self.dirty), sparing=rest)
        parts = paint(parts, Part("perivascular_space", self.perivascular), sparing=("csf", *veins))
        return paint(parts, Part("arterial_blood", self.arteries), sparing=veins)


def grow_confounders(rng: np.random.Generator, anatomy: Anatomy, settings: Confounders, age: float) -> Lookalikes:
    """The confounders of one person; each kind has a stream of chance of its own.

    Args:
        rng: the only source of chance; streams are spawned from it.
        anatomy: of the person.
        settings: how much of each kind; 0 leaves it out and changes nothing else.
        age: years.
    """
    faint, aged, spaces, flow = rng.spawn(4)
    white = smoothstep(anatomy.wm, 0.4, 0.9) * anatomy.wm
    dirty = np.maximum(_faint(faint, anatomy, settings), _of_age(aged, anatomy, settings.age_related, age)) * white
    return Lookalikes(
        np.asarray(dirty, dtype=np.float32),
        _perivascular(spaces, anatomy, settings.perivascular),
        _arteries(flow, anatomy, settings.arteries),
    )


def _person(rng: np.random.Generator) -> float:
    """How much of a kind a person has, relative to usual: from hardly any to about twice."""
    return float(2 * rng.beta(1.0, 1.2))


def _faint(rng: np.random.Generator, anatomy: Anatomy, settings: Confounders) -> Volume:
    """Caps, rims and dirty white matter: how abnormal white matter is, 0 to 1."""
    shape, spacing = anatomy.wm.shape, anatomy.spacing
    near = np.clip(anatomy.to_ventricle - 0.5 * spacing, 0, None)
    uneven = 1 + 0.3 * smooth_field(rng, shape, spacing, 12.0)
    reach = (rng.uniform(1.0, 3.5) * horns(anatomy) ** 2 + rng.uniform(0.4, 1.2)) * uneven.clip(0.3)
    caps = np.float32(0.45 * settings.caps * _person(rng)) * np.exp(-near / reach)
    patches = smoothstep(
        smooth_field(rng, shape, spacing, 10.0) + 0.5 * smooth_field(rng, shape, spacing, 4.0), -0.5, 2.5
    )
    posterior = 0.6 + 0.8 * horns(anatomy)  # dirty white matter lies mostly around the horns, above them too
    middle = np.exp(-anatomy.to_ventricle / 12) * (1 - anatomy.below)
    dirty = np.float32(0.4 * settings.dirty * _person(rng)) * patches * posterior * middle
    return np.asarray((caps + dirty).clip(0, 0.85), dtype=np.float32)


def _of_age(rng: np.random.Generator, anatomy: Anatomy, amount: float, age: float) -> Volume:
    """Hyperintensities of age: how abnormal white matter is, 0 to 1."""
    spacing, shape = anatomy.spacing, anatomy.wm.shape
    usual = _YOUNG * np.exp(_GROWTH * max(age - _ONSET, 0)) * np.exp(_BETWEEN * rng.standard_normal())
    volume = 1000 * float(min(amount * usual, _MOST))
    strength, spots = rng.uniform(0.55, 0.95), volume * rng.uniform(0, _SPOTS)
    result = np.zeros(shape, dtype=np.float32)
    room = allowed(anatomy)
    own = smooth_field(rng, shape, spacing, 9.0)
    score = (
        2.5 * (own + own[::-1]) + smooth_field(rng, shape, spacing, 6.0) + 6.0 * horns(anatomy) - anatomy.to_ventricle
    )
    score -= 30 * anatomy.below + 6 * anatomy.deep + 4 * np.clip(4 - anatomy.to_cortex, 0, None)
    free = (room > 0.5) & anatomy.brain
    wanted = min(round((volume - spots) / spacing**3), int(free.sum()) - 1)
    if wanted > 0:
        level = np.partition(score[free], -wanted)[-wanted]
        result = np.float32(strength) * smoothstep(score - level, -2.0, 1.5)
    noise = smooth_field(rng, shape, spacing, 4.0)
    weight = (room > 0.8) * (1 - anatomy.below) * smoothstep(anatomy.to_cortex, 2.5, 6) * (1 - anatomy.deep)
    number = rng.poisson(spots / float(np.exp(_SPOT[0] + _SPOT[1] ** 2 / 2)))
    for centre, size in zip(_draw_voxels(rng, weight, number), rng.lognormal(*_SPOT, number), strict=True):
        spot = ovoid(rng, anatomy, centre, None, float(size), noise)
        thin = min(1.0, float(size) / spacing**3)
        drawn = np.float32(strength * thin) * smoothstep(spot.depth, -0.6 * spacing, 0.6 * spacing)
        result[spot.box] = np.maximum(result[spot.box], drawn)
    return result


def _perivascular(rng: np.random.Generator, anatomy: Anatomy, amount: float) -> Volume:
    """Fluid around small vessels: along veins in white matter where there are any, and in the basal ganglia."""
    number = rng.poisson(40 * amount * _person(rng))
    solid = np.minimum(anatomy.wm + anatomy.gm, 1)
    weight = smoothstep(anatomy.to_cortex, 2, 6) * (solid > 0.95) * (1 - anatomy.below)
    weight *= np.clip(smoothstep(anatomy.to_ventricle, 3, 8) * (0.4 + anatomy.deep), 0, 1)
    lines = [vein.points for vein in anatomy.veins if len(vein.points) > 4 and vein.radius < _SMALL_VEIN]
    found = []
    for centre in _draw_voxels(rng, weight, number):
        length, radius = rng.uniform(*_SPACE_LENGTH) / anatomy.spacing, float(rng.uniform(*_SPACE_RADIUS))
        if lines and rng.random() < 0.5:
            line = lines[int(rng.integers(len(lines)))]
            start = int(rng.integers(0, len(line) - 2))
            found.append(Vein(line[start : start + max(round(length), 3)], radius))
        else:
            found.append(_straight(rng, centre, length, radius))
    return np.asarray(np.minimum(rasterise(found, solid.shape, anatomy.spacing), solid), dtype=np.float32)


def _arteries(rng: np.random.Generator, anatomy: Anatomy, amount: float) -> Volume:
    """Short pieces of small arteries, in sulci and in the tissue below them."""
    weight = ((anatomy.csf > 0.3) & (anatomy.to_ventricle > 6) & anatomy.brain).astype(np.float32)
    found = []
    for centre in _draw_voxels(rng, weight, rng.poisson(20 * amount * _person(rng))):
        length, radius = rng.uniform(*_ARTERY_LENGTH) / anatomy.spacing, float(rng.uniform(*_ARTERY_RADIUS))
        found.append(_straight(rng, centre, length, radius))
    return np.asarray(rasterise(found, weight.shape, anatomy.spacing) * anatomy.brain, dtype=np.float32)


def _draw_voxels(rng: np.random.Generator, weight: Volume, count: int) -> NDArray[np.intp]:
    """Voxels (count, 3), drawn with a chance proportional to `weight` (x, y, z), which is not 0 everywhere."""
    where = np.flatnonzero(weight)
    total = np.cumsum(weight.ravel()[where], dtype=np.float64)
    flat = where[np.searchsorted(total, rng.random(count) * total[-1], side="right").clip(max=where.size - 1)]
    return np.stack(np.unravel_index(flat, weight.shape), axis=1)


def _straight(rng: np.random.Generator, centre: NDArray[np.intp], length: float, radius: float) -> Vein:
    """A straight vessel of `length` voxels in a random direction."""
    direction = rng.standard_normal(3)
    direction /= np.linalg.norm(direction)
    at = np.linspace(-length / 2, length / 2, max(int(length) + 1, 3))[:, None]
    return Vein((centre + at * direction).astype(np.float32), radius)
