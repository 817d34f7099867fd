"""Lesions of multiple sclerosis at one or two visits: voxel by voxel what is lesion, how severe, and what enhances; and a table of them.

How many there are, how large and where was fitted to expert masks: see `lesion_plan`. How severe they are is chosen, together with the
tissue table, so that lesions stand out as they do in patients: see docs/explanation/realism.md.

Sources, read as abstracts: a vein through 80 % of 901 lesions at 7 T, Tallantyre et al. 2011, Neurology 76:534, and through 68 % of 233 new
ones, Al-Louzi et al. 2022, Neurol Neuroimmunol Neuroinflamm 9:e1120. Of 34 enhancing lesions 65 % are closed rings, 18 % open, 18 % nodules,
which are smaller; open rings lie at ventricle or cortex, Gaitán et al. 2011, PMC3143223. Enhancing share by region, Pongratz et al.
2023, NeuroImage Clin 37:103311.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from oligovox.settings import Settings, ascending
from oligovox.simulate.anatomy.brain import Anatomy
from oligovox.simulate.anatomy.veins import Vein, rasterise
from oligovox.simulate.fields import Volume, smooth_field
from oligovox.simulate.pathology.implants import Donor, implant
from oligovox.simulate.pathology.lesion_canvas import SPECK, Canvas, Enhancement, Lesion
from oligovox.simulate.pathology.lesion_plan import CONFLUENT, Sites, draw_load, draw_place, draw_volumes
from oligovox.simulate.pathology.lesion_shapes import (
    Mask,
    Place,
    Shape,
    allowed,
    band,
    outward,
    ovoid,
    pieces,
    sheet,
    small_vein,
)
from oligovox.simulate.pathology.lesion_table import describe
from oligovox.simulate.physics.scene import Part, Parts, paint
from oligovox.simulate.physics.tissues import TissueName

_TRIES = 60  # centres tried for one lesion
_BAND_TRIES = 4
_CROWDED = 0.03  # part of its surroundings that may belong to other lesions
_MORE = 400  # lesions added at most to meet the load
_NODULE = 100.0  # mm³; larger enhancing lesions are rings
_ENHANCING = (20.0, CONFLUENT)  # mm³; volumes of lesions that may enhance
_ENHANCING_SHARE: dict[Place, float] = {
    "periventricular": 5.3,
    "juxtacortical": 4.3,
    "deep": 3.1,
    "infratentorial": 7.2,
}
_OPEN = 0.22  # of the rings are open, at ventricle or cortex: 18 / (65 + 18)
_NEW = (3.6, 0.9)  # mean and standard deviation of ln(volume / mm³) of new lesions, chosen
_CHANGE = (
    1.4,
    2.2,
)  # ratio of volumes of a lesion that changes between visits, chosen; a fourth of it in confluent ones
_RIM = (1.0, 2.0)  # mm; thickness of enhancing rings


class MSLesions(Settings):
    """What the lesions of a cohort are like; ranges are (lowest, highest), drawn anew for each person."""

    load_ml: tuple[float, float] = Field((0.3, 52.0), description="load, mL: the patients' distribution cut to this")
    severity: tuple[float, float] = Field(
        (0.15, 0.7), description="mean severity of a person's lesions, 0 mild, 1 severe"
    )
    severity_spread: float = Field(0.2, ge=0, le=0.5, description="standard deviation of severity between lesions")
    heterogeneity: float = Field(0.25, ge=0, le=0.5, description="standard deviation of severity in confluent lesions")
    black_holes: tuple[float, float] = Field((0.0, 0.3), description="share of lesions that are black holes on T1w")
    diffuse: tuple[float, float] = Field((0.1, 0.6), description="share of lesions with faint surroundings")
    central_vein: tuple[float, float] = Field((0.6, 0.95), description="probability that a lesion lies around a vein")
    enhancing_people: float = Field(0.35, ge=0, le=1, description="probability that a person has enhancing lesions")
    enhancing_lesions: tuple[int, int] = Field((1, 5), description="number of enhancing lesions of such a person")
    new_lesions: tuple[int, int] = Field((0, 6), description="number of new lesions at a later visit")
    enlarging: float = Field(0.12, ge=0, le=1, description="probability that a lesion is larger at a later visit")
    shrinking: float = Field(0.06, ge=0, le=1, description="probability that a lesion is smaller at a later visit")
    gone: float = Field(0.03, ge=0, le=1, description="probability that a small lesion is gone at a later visit")

    @model_validator(mode="after")
    def _possible(self) -> MSLesions:
        limits: dict[str, tuple[float, float]] = {
            "load_ml": (0.05, 100),
            "enhancing_lesions": (1, 50),
            "new_lesions": (0, 50),
        }
        limits |= dict.fromkeys(("severity", "black_holes", "diffuse", "central_vein"), (0, 1))
        for name, (least, most) in limits.items():
            ascending(name, getattr(self, name), least, most)
        if (total := self.enlarging + self.shrinking + self.gone) > 1:
            raise ValueError(f"enlarging + shrinking + gone = {total:g}; expected at most 1: a lesion does one of them")
        return self


@dataclass(frozen=True)
class Lesions:
    """What is labelled, at one visit.

    Attributes:
        fraction: (x, y, z) part of each voxel that is lesion, 0 to 1; soft at the border.
        severity: (x, y, z) 0 (mild) to 1 (severe) where the fraction is above 0.
        enhancing: (x, y, z) part of each voxel that takes up contrast agent, at most `fraction`.
        instances: (x, y, z) number of the 26-connected component of `mask`, from 1; 0 = none.
        rows: row k − 1 describes instance k: id, volume_mm3, x_mm, y_mm, z_mm (RAS, centre of mass), region, severity (mean, 0 to 1),
            black_hole (0 or 1), enhancing_mm3, central_vein (0 or 1; never in confluent lesions), change (since the visit before).
        veins: small veins through the middle of lesions that no vein of the anatomy passes.
        spacing: voxel size, mm.
        gone: rows of the visit before that have no lesion any more; empty at the first visit.
    """

    fraction: Volume
    severity: Volume
    enhancing: Volume
    instances: NDArray[np.int32]
    rows: tuple[dict[str, Any], ...]
    veins: tuple[Vein, ...]
    spacing: float
    gone: tuple[dict[str, Any], ...] = ()

    @property
    def mask(self) -> Mask:
        """More than half of the voxel is lesion."""
        return np.asarray(self.fraction > 0.5)

    def paint(self, parts: Parts) -> Parts:
        """Lay the lesions over a brain; they take no room from CSF, nor from veins, which stay visible in their middle."""
        spared: tuple[TissueName, ...] = ("csf", "venous_blood")
        plain = Part("lesion_mild", self.fraction - self.enhancing, "lesion_severe", self.severity)
        if self.veins:
            drawn = rasterise(self.veins, self.fraction.shape, self.spacing)
            parts = paint(parts, Part("venous_blood", drawn), sparing=spared)
        parts = paint(parts, plain, sparing=spared)
        return paint(parts, Part("lesion_enhancing", self.enhancing), sparing=(*spared, "lesion_mild"))


def grow_lesions(
    rng: np.random.Generator, anatomy: Anatomy, settings: MSLesions, *, visit: int = 1, donor: Donor | None = None
) -> Lesions:
    """The lesions of one person at a visit.

    They stay in white matter and in grey matter that shares a voxel with it. The mask's volume is the drawn load to within a very small
    lesion, unless the brain has no room for so much. A later visit takes the lesions of the one before and lets some grow, shrink or go
    and new ones come; the first visit is the same whether or not there is a later one.

    Args:
        rng: the only source of chance; streams are spawned from it, so give a fresh one of the same seed for each visit.
        anatomy: the same at each visit.
        settings: what the lesions of the cohort are like.
        visit: 1 or later.
        donor: a real mask to take the place of drawn lesions; its load counts, not that of the settings.
    """
    first, later = rng.spawn(2)
    person = _Person(first, anatomy, settings)
    canvas = person.draw() if donor is None else person.implant(donor)
    instances, rows, gone = describe(anatomy, canvas)
    for stream in later.spawn(visit - 1):
        canvas = person.age(stream, canvas)
        instances, rows, gone = describe(anatomy, canvas, (instances, rows))
    veins = tuple(lesion.own_vein for lesion in canvas.lesions if lesion.own_vein is not None)
    return Lesions(canvas.fraction, canvas.severity, canvas.enhancing, instances, rows, veins, anatomy.spacing, gone)


class _Person:
    """What all lesions of one person share."""

    def __init__(self, rng: np.random.Generator, anatomy: Anatomy, settings: MSLesions) -> None:
        shape, spacing = anatomy.wm.shape, anatomy.spacing
        person, rng = rng.spawn(
            2
        )  # what does not depend on the grid has a stream of its own: the same load at every voxel size
        self._rng, self._anatomy, self._settings = rng, anatomy, settings
        ranges = (settings.severity, settings.black_holes, settings.diffuse, settings.central_vein)
        self._severity, self._black_holes, self._diffuse, self._vein = (person.uniform(*limits) for limits in ranges)
        self._active = person.random() < settings.enhancing_people
        self._load = 1000 * draw_load(person, *settings.load_ml)  # mm³
        self._volumes = draw_volumes(person, self._load)
        self._voxel = spacing**3
        self._least = max(int(np.ceil(SPECK / self._voxel)), 1)  # voxels
        self._allowed = allowed(anatomy)
        self._noise = 0.85 * smooth_field(rng, shape, spacing, 5.0)
        self._noise += 0.35 * smooth_field(rng, shape, spacing, max(2.5, spacing))
        self._patches = 0.85 * smooth_field(rng, shape, spacing, 7.0)
        self._patches += 0.5 * smooth_field(rng, shape, spacing, max(3.0, spacing))

    def draw(self) -> Canvas:
        """Lesions drawn one after another, the largest first, until their mask has the load."""
        rng, voxel, least = self._rng, self._voxel, self._least
        canvas, sites = self._canvas(), Sites(rng, self._anatomy, self._allowed)
        self._banded = bool(self._volumes[0] >= CONFLUENT)
        for volume in self._volumes:
            self._place(rng, canvas, sites, int(volume / voxel + rng.random()))
        for _ in range(_MORE):
            left = round(self._load / voxel) - sum(lesion.voxels for lesion in canvas.lesions)
            if left < least and canvas.lesions:
                break
            self._place(rng, canvas, sites, left if left < 3 * least else int(rng.integers(least, left // 2 + 1)))
        if self._active:
            self._enhance(rng, canvas, range(1, len(canvas.lesions) + 1))
        return canvas

    def implant(self, donor: Donor) -> Canvas:
        """The lesions of a real mask."""
        rng, canvas = self._rng, self._canvas()
        self._banded = True
        for shape, count in pieces(implant(donor, self._anatomy, rng) > 0.5, self._anatomy.spacing):
            canvas.stamp(self._lesion(rng, shape, count, "deep", on_vein=False))
        if self._active:
            self._enhance(rng, canvas, range(1, len(canvas.lesions) + 1))
        return canvas

    def age(self, rng: np.random.Generator, before: Canvas) -> Canvas:
        """The next visit: some lesions larger, smaller or gone, and new ones; only new ones enhance."""
        settings, canvas = self._settings, self._canvas()
        shares = np.cumsum([settings.gone, settings.enlarging, settings.shrinking])
        for number, lesion in enumerate(before.lesions, start=1):
            volume, ratio = lesion.voxels * self._voxel, rng.uniform(*_CHANGE)
            if volume >= CONFLUENT:
                ratio = 1 + (ratio - 1) / 4
            fate = int(np.searchsorted(shares, rng.random(), side="right"))
            gone = 0.0 if volume < _NODULE else 1.0
            count = round(lesion.count * (gone, ratio, 1 / ratio, 1.0)[fate])
            if count >= self._least:
                canvas.stamp(replace(lesion, count=count), over=before.owner[lesion.shape.box] == number)
        old, sites = len(canvas.lesions), Sites(rng, self._anatomy, self._allowed)
        for volume in rng.lognormal(*_NEW, int(rng.integers(settings.new_lesions[0], settings.new_lesions[1] + 1))):
            self._place(rng, canvas, sites, max(round(volume / self._voxel), self._least))
        if self._active:
            self._enhance(rng, canvas, range(old + 1, len(canvas.lesions) + 1))
        return canvas

    def _canvas(self) -> Canvas:
        return Canvas(self._anatomy, self._allowed, self._patches)

    def _place(self, rng: np.random.Generator, canvas: Canvas, sites: Sites, count: int) -> None:
        """Draw a lesion of `count` voxels where there is room for it."""
        volume = count * self._voxel
        if count == 0:
            return
        place: Place = "periventricular" if volume >= CONFLUENT else draw_place(rng, volume, banded=self._banded)
        on_vein = volume < CONFLUENT and bool(rng.random() < self._vein)
        tries = _TRIES if volume < CONFLUENT else _BAND_TRIES
        for attempt in range(tries):
            site = sites.draw(place, volume, on_vein)
            if site is None:  # a brain without such a place
                place = "deep"
                continue
            centre, axis = site
            joined = volume >= CONFLUENT and attempt == tries - 1  # no room apart: it joins what is there
            if canvas.fraction[tuple(centre)] > 0.1 and not joined:
                continue
            own = None
            if on_vein and axis is None:
                axis = outward(self._anatomy, centre, place)
                own = small_vein(rng, centre, axis, volume, self._anatomy.spacing)
            shape = self._shape(rng, place, centre, axis, volume)
            lesion = self._lesion(rng, shape, count, place, on_vein=on_vein, own_vein=own)
            if canvas.stamp(replace(lesion, joined=joined), crowded=_CROWDED):
                return

    def _shape(
        self,
        rng: np.random.Generator,
        place: Place,
        centre: NDArray[np.intp],
        axis: NDArray[np.float64] | None,
        volume: float,
    ) -> Shape:
        if volume >= CONFLUENT:
            return band(rng, self._anatomy, centre, volume, self._noise)
        if place == "juxtacortical":
            return sheet(rng, self._anatomy, centre, volume, self._noise)
        if place == "periventricular" and axis is None:  # Dawson's fingers point away from the ventricle
            axis = outward(self._anatomy, centre, place)
        return ovoid(rng, self._anatomy, centre, axis, volume, self._noise)

    def _lesion(
        self,
        rng: np.random.Generator,
        shape: Shape,
        count: int,
        place: Place,
        *,
        on_vein: bool,
        own_vein: Vein | None = None,
    ) -> Lesion:
        volume = count * self._voxel
        black_hole = bool(rng.random() < self._black_holes) and volume < CONFLUENT
        usual = float(rng.normal(self._severity, self._settings.severity_spread))
        diffuse = rng.random() < self._diffuse
        return Lesion(
            shape=shape,
            count=count,
            place=place,
            severity=float(rng.uniform(0.85, 1.0)) if black_hole else usual,
            patchy=self._settings.heterogeneity * min(1.0, float(np.sqrt(volume / CONFLUENT))),
            black_hole=black_hole,
            on_vein=on_vein,
            own_vein=own_vein,
            edge=float(rng.uniform(1.0, 1.6 if volume < _NODULE else 3.0)),
            halo=float(rng.uniform(0.12, 0.38)) if diffuse else 0.0,
        )

    def _enhance(self, rng: np.random.Generator, canvas: Canvas, numbers: range) -> None:
        """Let a few of the lesions of these numbers (from 1) enhance."""
        chances = np.zeros(len(numbers))
        for index, number in enumerate(numbers):
            lesion = canvas.lesions[number - 1]
            if _ENHANCING[0] <= lesion.voxels * self._voxel < _ENHANCING[1]:
                chances[index] = _ENHANCING_SHARE[lesion.place]
        low, high = self._settings.enhancing_lesions
        wanted = min(int(rng.integers(low, high + 1)), int(np.count_nonzero(chances)))
        if not wanted:
            return
        for index in rng.choice(len(numbers), wanted, replace=False, p=chances / chances.sum()):
            lesion = canvas.lesions[numbers[index] - 1]
            outside = lesion.place in ("periventricular", "juxtacortical")
            ring: Enhancement = "open ring" if outside and rng.random() < _OPEN else "ring"
            kind: Enhancement = "nodule" if lesion.voxels * self._voxel < _NODULE else ring
            canvas.enhance(numbers[index], kind, float(rng.uniform(*_RIM)))
