"""Paramagnetic rims of chronic active lesions, and what is taken for them: iron in the whole lesion, and veins along its border.

How often, from abstracts: 56 % of 192 people have a rim lesion (Absinta et al. 2019, JAMA Neurol 76:1474); 177 of 4163 lesions of 172
people are Rim+ (QSMRim-Net: Zhang et al. 2022, NeuroImage Clin 34:102979). Of
140 lesions above 3 mm at 3 T 6 % have a rim, of mean diameter 11.9 mm, and 11 % are paramagnetic throughout, of 6.4 mm (AJR 2022, 219:120,
doi 10.2214/AJR.21.26777). Thickness, arcs, the limits of volume and the share of veins are chosen. Small lesions are not graded, so that
the share among graded lesions is higher than that among all. Grades are drawn anew at each visit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy import ndimage

from oligovox.settings import Settings, ascending, silent
from oligovox.simulate.anatomy.brain import Anatomy
from oligovox.simulate.fields import Volume, smooth_field, smoothstep
from oligovox.simulate.pathology.lesions import Lesions
from oligovox.simulate.physics.scene import Part, Parts, paint
from oligovox.simulate.physics.tissues import TissueName, typical

Mimic: TypeAlias = Literal["none", "core", "vein"]
Box: TypeAlias = tuple[slice, slice, slice]

_FINE, _TIMES = 0.5, 4  # mm; rims are drawn on a grid this fine, but at most 4 times finer than the voxels
_SOFT = 0.25  # half width of a rim's own border, mm
_NEAR, _FAR = 2.5, 6.0  # mm around a lesion in which a rim, and a vein, may lie
_ROOM = 0.55  # a rim takes at most this part of the way to the middle
_UNEVEN = 0.12  # standard deviation of the strength along a rim
_WEAK, _THIN = 0.5, 0.75  # rims below this strength or coverage may be graded uncertain


class Rims(Settings):
    """Rims of a cohort; ranges are (lowest, highest), drawn anew for each person or lesion."""

    people: float = Field(0.55, ge=0, le=1, description="probability that a person has a propensity to rims at all")
    share: tuple[float, float] = Field((0.05, 0.35), description="share of such a person's graded lesions with a rim")
    volume_mm3: tuple[float, float] = Field((80.0, 3000.0), description="volume of a lesion that can be graded, mm³")
    thickness_mm: tuple[float, float] = Field((1.0, 2.0), description="thickness of a rim, mm")
    beyond_mm: tuple[float, float] = Field((0.0, 0.5), description="how far a rim reaches out of the lesion, mm")
    strength: tuple[float, float] = Field((0.3, 1.0), description="iron, 0 (tissue rim_weak) to 1 (rim_strong)")
    partial: float = Field(0.35, ge=0, le=1, description="share of rims that are not closed")
    coverage: tuple[float, float] = Field((0.5, 0.9), description="part of its course that a partial rim covers")
    core_mimics: float = Field(0.12, ge=0, le=1, description="share of other graded lesions with iron throughout")
    vein_mimics: float = Field(
        0.06, ge=0, le=1, description="share of other graded lesions with a vein along the border"
    )
    vein_radius_mm: tuple[float, float] = Field((0.5, 0.9), description="radius of such a vein, mm")
    core_strength: tuple[float, float] = silent(
        (0.35, 0.8), description="iron throughout a lesion, on the scale of `strength`"
    )
    core_fade_mm: tuple[float, float] = silent(
        (0.5, 3.0), description="over how many mm it fades in from the border, mm"
    )
    volume_power: float = silent(
        2 / 3, ge=0, le=2, description="a lesion's chance of a rim grows with this power of its volume"
    )
    uncertain: float = Field(
        0.3, ge=0, le=1, description="share of weak or partial rims and of mimics graded uncertain"
    )

    @model_validator(mode="after")
    def _possible(self) -> Rims:
        limits = dict.fromkeys(("share", "strength", "coverage", "core_strength"), (0.0, 1.0))
        limits |= {
            "volume_mm3": (1.0, 1e5),
            "thickness_mm": (0.3, 5.0),
            "beyond_mm": (0.0, 2.0),
            "core_fade_mm": (0.0, 10.0),
        }
        for name, (least, most) in (limits | {"vein_radius_mm": (0.1, 3.0)}).items():
            ascending(name, getattr(self, name), least, most)
        if self.core_mimics + self.vein_mimics > 1:
            raise ValueError("core_mimics + vein_mimics is above 1; a lesion is one of them at most")
        return self


class Grade(TypedDict):
    """What a rater with perfect eyes would say of a lesion.

    Attributes:
        rim: 1 with a paramagnetic rim.
        coverage: part of the lesion's border, where tissue meets it, along which the rim runs; 0 without.
        strength_ppb: susceptibility of the iron-laden tissue of rim or core relative to CSF in a typical person; 0 without.
        thickness_mm: of the rim; 0 without.
        mimic: what a lesion without a rim has that looks like one.
        uncertain: 1 where raters would mark it so.
    """

    rim: int
    coverage: float
    strength_ppb: float
    thickness_mm: float
    mimic: Mimic
    uncertain: int


@dataclass(frozen=True)
class RimMap:
    """Iron and veins of one person's lesions; all maps (x, y, z), float32.

    Attributes:
        fraction: part of each voxel that is a rim, 0 to 1.
        position: strength of rims and cores, 0 (rim_weak) to 1 (rim_strong).
        solid: part of each voxel that is a lesion with iron throughout.
        veins: part of each voxel that is a vein along a lesion's border.
        grades: number of the lesion → its grade; every lesion has one.
    """

    fraction: Volume
    position: Volume
    solid: Volume
    veins: Volume
    grades: dict[int, Grade]

    def paint(self, parts: Parts) -> Parts:
        """Lay rims, cores and veins over a brain with its lesions; CSF keeps its room, and veins theirs under rims."""
        for iron in (self.fraction, self.solid):
            new = Part("rim_weak", iron, "rim_strong", self.position)
            parts = paint(parts, new, sparing=("csf", "venous_blood"))
        spared: tuple[TissueName, ...] = ("csf",)
        return paint(parts, Part("venous_blood", self.veins), sparing=spared)


def draw_rims(rng: np.random.Generator, anatomy: Anatomy, lesions: Lesions, settings: Rims) -> RimMap:
    """Grade the lesions of one person and draw what the grades say.

    A lesion can be graded if its volume is within the limits and it does not enhance; larger ones have rims more often, in proportion to
    their surface unless the settings say otherwise. A rim follows the border of the lesion's own mask from inside.

    Args:
        rng: the only source of chance.
        anatomy: of the person.
        lesions: of the person.
        settings: of the cohort.
    """
    shape = lesions.fraction.shape
    fraction, position, solid, veins = np.zeros((4, *shape), np.float32)
    drawn = RimMap(fraction, position, solid, veins, {})
    boxes = ndimage.find_objects(lesions.instances)
    volumes = np.bincount(lesions.instances.ravel(), minlength=len(boxes) + 1)[1:] * anatomy.spacing**3
    taking = np.bincount(lesions.instances[lesions.enhancing > 0], minlength=len(boxes) + 1)[1:]
    low, high = settings.volume_mm3
    graded = (volumes >= low) & (volumes <= high) & (taking == 0)
    share = rng.uniform(*settings.share) * (rng.random() < settings.people)
    rims = _choose(rng, np.flatnonzero(graded) + 1, volumes[graded] ** settings.volume_power, share)
    for number, box in enumerate(boxes, start=1):
        if box is None:
            continue
        drawn.grades[number] = _no_rim()
        luck = rng.random()
        if number in rims:
            drawn.grades[number] = _Lesion(rng, anatomy, lesions, number, box, _NEAR).rim(drawn, settings)
        elif graded[number - 1] and luck < settings.core_mimics:
            drawn.grades[number] = _Lesion(rng, anatomy, lesions, number, box, _NEAR).core(drawn, settings)
        elif graded[number - 1] and luck < settings.core_mimics + settings.vein_mimics:
            drawn.grades[number] = _Lesion(rng, anatomy, lesions, number, box, _FAR).vein(drawn, settings)
    return drawn


class _Lesion:
    """One lesion on a fine grid: how deep each point lies inside its border."""

    def __init__(
        self,
        rng: np.random.Generator,
        anatomy: Anatomy,
        lesions: Lesions,
        number: int,
        box: tuple[slice, ...],
        around: float,
    ) -> None:
        margin = math.ceil(around / anatomy.spacing)
        shape = lesions.fraction.shape
        x, y, z = (slice(max(s.start - margin, 0), min(s.stop + margin, n)) for s, n in zip(box, shape, strict=True))
        self._rng, self._box, self._spacing = rng, (x, y, z), anatomy.spacing
        self._times = min(math.ceil(anatomy.spacing / _FINE), _TIMES)
        self._step = anatomy.spacing / self._times
        near = lesions.instances[self._box]
        own = self._refined(np.where((near == number) | (near == 0), lesions.fraction[self._box], 0)) > 0.5
        inside, outside = (ndimage.distance_transform_edt(part) for part in (own, ~own))
        self._depth = np.where(own, inside - 0.5, 0.5 - outside).astype(np.float32) * np.float32(self._step)
        self._tissue = np.clip(self._refined(1 - anatomy.csf[self._box]), 0, 1)

    def rim(self, drawn: RimMap, settings: Rims) -> Grade:
        """A shell along the border, closed or not."""
        rng = self._rng
        thickness = min(float(rng.uniform(*settings.thickness_mm)), _ROOM * float(self._depth.max()))
        start = -rng.uniform(*settings.beyond_mm)
        end = start + thickness
        shell = smoothstep(self._depth, start - _SOFT, start + _SOFT) * self._tissue
        shell *= 1 - smoothstep(self._depth, end - _SOFT, end + _SOFT)
        whole = float(shell.sum())
        if not whole or self._depth.max() <= 0:  # a speck, or all of its border in fluid: no room for a rim
            return _no_rim(mimic="none", uncertain=0)
        if rng.random() < settings.partial:
            shell *= self._arc(shell, float(rng.uniform(*settings.coverage)))
        coverage = float(shell.sum()) / max(whole, 1e-6)
        strength = float(rng.uniform(*settings.strength))
        self._add(drawn.fraction, drawn.position, shell, strength)
        weak = strength < _WEAK or coverage < _THIN
        return Grade(
            rim=1,
            coverage=round(coverage, 3),
            strength_ppb=_ppb(strength),
            thickness_mm=round(thickness, 2),
            mimic="none",
            uncertain=int(weak and rng.random() < settings.uncertain),
        )

    def core(self, drawn: RimMap, settings: Rims) -> Grade:
        """Iron throughout: most in the middle, fading over some mm to the border."""
        rng = self._rng
        deepest = float(self._depth.max())
        fade = min(rng.uniform(*settings.core_fade_mm), deepest)
        solid = smoothstep(self._depth, -_SOFT, fade) * self._tissue
        strength = float(rng.uniform(*settings.core_strength))
        self._add(drawn.solid, drawn.position, solid, strength)
        grade = _no_rim(mimic="core", uncertain=int(rng.random() < settings.uncertain))
        grade["strength_ppb"] = _ppb(strength)
        return grade

    def vein(self, drawn: RimMap, settings: Rims) -> Grade:
        """A vein that meets the border at a tangent and bends with it for a while."""
        rng, step = self._rng, self._step
        border = np.argwhere((np.abs(self._depth) < step) & (self._tissue > 0.5))
        if not len(border):  # a speck in fluid: nothing to run along
            return _no_rim(mimic="none", uncertain=0)
        at = border[rng.integers(len(border))]
        around = tuple(slice(max(c - 2, 0), c + 3) for c in at)
        inwards = np.array([slope.mean() for slope in np.gradient(self._depth[around])])
        inwards /= max(float(np.linalg.norm(inwards)), 1e-6)
        along = np.cross(inwards, rng.standard_normal(3))
        along /= np.linalg.norm(along)
        radius = rng.uniform(*settings.vein_radius_mm)
        voxels = int((self._depth > 0).sum())
        size = float(np.cbrt(max(voxels, 1) * 3 / 4 / np.pi)) * step  # mm
        ends = size * rng.uniform(0.6, 1.3, 2) + 2.0
        way = np.arange(-ends[0], ends[1], step / 2)[:, None]
        line = at + (way * along + (way**2 / (2 * size * rng.uniform(1.0, 3.0)) - radius / 2) * inwards) / step
        line = np.round(line).astype(int)
        line = line[np.all((line >= 0) & (line < self._depth.shape), axis=1)]
        free = np.ones(self._depth.shape, bool)
        free[tuple(line.T)] = False
        tube = smoothstep((radius - step * ndimage.distance_transform_edt(free)).astype(np.float32), -step, step)
        self._add(drawn.veins, None, tube * self._tissue, 1.0)
        return _no_rim(mimic="vein", uncertain=int(rng.random() < settings.uncertain))

    def _arc(self, shell: Volume, coverage: float) -> Volume:
        """1 on the part of a shell that faces one side, with an uneven end, 0 elsewhere; the part is `coverage` of it."""
        rng = self._rng
        middle = np.argwhere(self._depth > 0).mean(axis=0)
        away = np.stack(
            np.meshgrid(*(np.arange(n) - c for n, c in zip(shell.shape, middle, strict=True)), indexing="ij")
        )
        side = rng.standard_normal(3)
        side /= np.linalg.norm(side)
        score = np.tensordot(side, away, 1) / np.maximum(np.linalg.norm(away, axis=0), 1)
        score = score.astype(np.float32) + np.float32(0.2) * smooth_field(rng, shell.shape, self._step, 3.0)
        on = shell > 0
        order = np.argsort(-score[on])
        reached = np.cumsum(shell[on][order])
        limit = score[on][order][np.searchsorted(reached, coverage * reached[-1]).clip(0, len(order) - 1)]
        return smoothstep(score, limit - 0.15, limit + 0.15)

    def _add(self, where: Volume, position: Volume | None, fine: Volume, strength: float) -> None:
        """Average over the voxels and put on the map, the stronger where two meet."""
        n = self._times
        shape = tuple(part for length in fine.shape for part in (length // n, n))
        coarse = fine.reshape(shape).mean(axis=(1, 3, 5))
        if position is not None:
            uneven = strength + _UNEVEN * smooth_field(self._rng, coarse.shape, self._spacing, 4.0)
            wins = coarse > where[self._box]
            position[self._box][wins] = np.clip(uneven, 0, 1)[wins]
        np.maximum(where[self._box], coarse, out=where[self._box])

    def _refined(self, volume: Volume) -> Volume:
        return np.asarray(ndimage.zoom(volume, self._times, order=1, mode="nearest", grid_mode=True), dtype=np.float32)


def _choose(
    rng: np.random.Generator, numbers: NDArray[np.intp], weight: NDArray[np.float64], share: float
) -> frozenset[int]:
    """Some of the lesions: on average this share of them, each with a chance that grows with its weight."""
    count = int(rng.binomial(len(numbers), share))
    if count == 0:
        return frozenset()
    return frozenset(int(n) for n in rng.choice(numbers, count, replace=False, p=weight / weight.sum()))


def _no_rim(mimic: Mimic = "none", uncertain: int = 0) -> Grade:
    return Grade(rim=0, coverage=0.0, strength_ppb=0.0, thickness_mm=0.0, mimic=mimic, uncertain=uncertain)


def _ppb(strength: float) -> float:
    weak, strong = float(typical("rim_weak", 3.0).chi), float(typical("rim_strong", 3.0).chi)  # the same at every field
    return round(weak + strength * (strong - weak), 1)
