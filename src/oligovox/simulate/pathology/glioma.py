"""Gliomas: high grade, low grade and treated, in the labels of BraTS.

A seed is drawn in a lobe; a core grows from it along white matter, pushes the brain aside, and oedema runs from it into the white
matter around. What is painted is soft; labels are what a rater would draw from it: the class that takes most of the voxel, where tumour
takes more than half of it.

Source of the places: Larjavaara et al. 2007, Neuro-Oncology 9:319 (frontal 40 %, temporal 29 %, parietal 14 %, occipital 3 %, deeper 14 %).
Source of the classes: BraTS 2023 (1 necrotic or non-enhancing core, 2 oedema, 3 enhancing) and, after treatment, BraTS 2024 (de Verdier et
al. 2024, arXiv:2405.18368, read in its abstract and a review: 1 non-enhancing core, 2 FLAIR hyperintensity around, 3 enhancing, 4 cavity).
Volumes and all other numbers are chosen. Seven segmented patients were looked at for ranges only: whole tumours of 24 to 217 mL. The
volumes of BraTS itself (median of the whole about 90 mL; 20 enhancing, 12 necrotic, 55 oedema) are from memory, not re-read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy import ndimage
from scipy.special import ndtr, ndtri

from oligovox.settings import Settings, ascending
from oligovox.simulate.anatomy.brain import Anatomy
from oligovox.simulate.fields import Volume, smooth_field, smoothstep
from oligovox.simulate.pathology.mass_effect import displaced, mass_effect
from oligovox.simulate.pathology.tumour_shapes import (
    Box,
    Front,
    Slowness,
    arrival,
    attached,
    away_from,
    core_front,
    crop,
    distance_from,
    factor_of,
    front,
    oedema_depth,
    put_back,
    radius_of,
    slowness_map,
    total,
)
from oligovox.simulate.pathology.tumour_tissue import THIN, Shares, cavity_front, high_grade, low_grade, treated
from oligovox.simulate.physics.scene import Part, Parts, paint
from oligovox.simulate.physics.tissues import TissueName

_CLASSES = {"NCR": 1, "ED": 2, "ET": 3}
_TREATED_CLASSES = {"NETC": 1, "SNFH": 2, "ET": 3, "RC": 4}
_VALUES: Mapping[TissueName, int] = {
    "necrosis": 1, "solid_tumour": 1, "oedema": 2, "enhancing_tumour": 3, "resection_cavity": 4, "blood_products": 4,
}  # fmt: skip
_SPARED: tuple[TissueName, ...] = ("csf", "venous_blood", "arterial_blood", *_VALUES)
# towards what a tissue varies from place to place, and how far
_VARIES: Mapping[TissueName, tuple[TissueName, float]] = {
    "necrosis": ("resection_cavity", 0.8),
    "enhancing_tumour": ("solid_tumour", 0.55),
    "solid_tumour": ("necrosis", 0.6),
}
_Site: TypeAlias = tuple[float, tuple[float, float, float], float]
_SITES: tuple[_Site, ...] = (  # share, centre (|x|, y, z in RAS mm), standard deviation in mm
    (0.40, (30.0, 30.0, 18.0), 15.0),
    (0.29, (42.0, -14.0, -12.0), 12.0),
    (0.14, (30.0, -38.0, 34.0), 12.0),
    (0.03, (25.0, -66.0, 8.0), 10.0),
    (0.08, (20.0, -6.0, 8.0), 10.0),
    (0.04, (5.0, 12.0, 16.0), 6.0),  # the corpus callosum
    (0.02, (22.0, -54.0, -34.0), 9.0),  # the cerebellum
)
_CORE = (np.log(32.0), 0.9)  # mean and standard deviation of ln(volume / mL), chosen
_OEDEMA = (np.log(70.0), 0.8)
_INFILTRATES = Slowness()
_SEEPS = Slowness(grey=1.5, csf=20.0)  # the border of a low-grade tumour
_RESPECTS = Slowness(white=1.0, grey=6.0, csf=25.0, midline=25.0, commissure=1.0)  # oedema: along white matter only
_FARTHEST = 48.0  # how far oedema runs, mm of white matter
_SPECK = 15.0  # mm³; nobody draws smaller bits
_LEAST = 0.3  # core of a further tumour, mL
_USUAL_CORE = 50.0  # mL; pushes as far as the settings say


class Glioma(Settings):
    """What gliomas are like; ranges are (lowest, highest), drawn anew for each person."""

    core_ml: tuple[float, float] = Field(
        (1.0, 110.0), description="core without oedema, mL: log-normal about 32, cut to this"
    )
    oedema_ml: tuple[float, float] = Field(
        (4.0, 200.0),
        description="oedema, mL: log-normal about 70, cut to this and to the white matter near; low grade: 0.4 to 1.6 cores",
    )
    rim_mm: tuple[float, float] = Field((3.0, 10.0), description="usual thickness of the enhancing rim, mm")
    mass_effect_mm: tuple[float, float] = Field(
        (2.0, 12.0), description="largest displacement by a core of 50 mL, mm; grows with its radius"
    )
    low_grade: float = Field(0.2, ge=0, le=1, description="probability that nothing enhances")
    multifocal: float = Field(
        0.12, ge=0, le=1, description="probability of further tumours that do not touch the first"
    )
    satellites: float = Field(
        0.3, ge=0, le=1, description="probability of tiny enhancing nodules near a high-grade tumour"
    )
    post_treatment: bool = Field(False, description="after surgery and radiation, in the classes of BraTS 2024")
    cavity: float = Field(0.85, ge=0, le=1, description="probability of a resection cavity after treatment")
    residual: float = Field(0.7, ge=0, le=1, description="probability of enhancing tissue after treatment")

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Glioma:
        for name, least, most in (
            ("core_ml", 0.2, 150.0),
            ("oedema_ml", 0.5, 250.0),
            ("rim_mm", 1.0, 20.0),
            ("mass_effect_mm", 0.0, 15.0),
        ):
            ascending(name, getattr(self, name), least, most)
        return self


@dataclass(frozen=True)
class Tumour:
    """A glioma in a brain.

    Attributes:
        anatomy: the brain it has pushed aside; the sulci it has grown around are closed.
        labels: (x, y, z) class, 0 = none.
        classes: name → value in `labels`.
        instances: (x, y, z) number of the 26-connected component of `labels` > 0, largest first, 0 = none.
        rows: one a component: id, volume_mm3, <class>_mm3, x_mm, y_mm, z_mm (centre, RAS).
        tissue: what is painted.
    """

    anatomy: Anatomy
    labels: NDArray[np.uint8]
    classes: Mapping[str, int]
    instances: NDArray[np.int32]
    rows: tuple[Mapping[str, Any], ...]
    tissue: Parts

    def paint(self, parts: Parts) -> Parts:
        """Put the tumour in place of grey and white matter and what was painted on them; CSF and blood stay."""
        for part in self.tissue:
            parts = paint(parts, part, sparing=_SPARED)
        return parts


def grow_glioma(rng: np.random.Generator, anatomy: Anatomy, settings: Glioma) -> Tumour:
    """A glioma with all that belongs to it, in the brain it has displaced; only the first of several tumours displaces.

    Args:
        rng: the only source of chance.
        anatomy: the brain before.
        settings: what gliomas are like; the probability of low grade does not apply after treatment.
    """
    low = bool(rng.random() < settings.low_grade) and not settings.post_treatment
    volume = _log_normal(rng, *_CORE, settings.core_ml) * (0.6 if low or settings.post_treatment else 1.0)
    oedema = volume * rng.uniform(0.4, 1.6) if low else _log_normal(rng, *_OEDEMA, settings.oedema_ml)
    sites = _SITES[:4] if settings.post_treatment else _SITES  # what is deep is not resected
    seed = _draw_seed(rng, anatomy, np.ones_like(anatomy.wm), sites)
    peak = rng.uniform(*settings.mass_effect_mm) * min(radius_of(volume) / radius_of(_USUAL_CORE), 1.3)
    if settings.post_treatment:
        peak *= rng.uniform(-0.4, 0.3)  # most have sunk in
    anatomy = displaced(anatomy, _push(anatomy, seed, volume, peak))
    fractions: dict[TissueName, Volume] = {name: np.zeros_like(anatomy.wm) for name in _VALUES}
    anatomy = _grow(rng, anatomy, settings, fractions, seed, volume, oedema, low)
    if rng.random() < settings.multifocal:
        for _ in range(int(rng.integers(1, 4))):
            anatomy = _grow_another(
                rng, anatomy, settings, fractions, max(volume * rng.uniform(0.03, 0.25), _LEAST), low
            )
    if not low and rng.random() < settings.satellites:
        _scatter_satellites(rng, anatomy, fractions)
    _fade_specks(fractions, anatomy.spacing)
    labels = _labels(fractions)
    classes = _TREATED_CLASSES if settings.post_treatment else _CLASSES
    instances, rows = _components(labels, classes, anatomy)
    return Tumour(anatomy, labels, classes, instances, rows, _with_texture(rng, fractions, anatomy.spacing))


def _log_normal(rng: np.random.Generator, mean: float, sd: float, within: tuple[float, float]) -> float:
    """A log-normal number cut to a range."""
    bottom, top = (float(ndtr((np.log(v) - mean) / sd)) for v in within)
    return float(np.exp(mean + sd * ndtri(rng.uniform(bottom, top))).clip(*within))


def _draw_seed(rng: np.random.Generator, anatomy: Anatomy, free: Volume, sites: tuple[_Site, ...]) -> NDArray[np.intp]:
    """A voxel of white matter, in a region by its share and a random half, where `free` is above 0 if anywhere."""
    shares = np.array([share for share, _, _ in sites])
    _, centre, sd = sites[int(rng.choice(len(sites), p=shares / shares.sum()))]
    place = np.array([centre[0] * rng.choice([-1, 1]), *centre[1:]])
    at = np.linalg.solve(anatomy.affine[:3, :3], place - anatomy.affine[:3, 3])
    weight = np.exp(-(distance_from(at, anatomy.wm.shape, anatomy.spacing) ** 2) / np.float32(2 * sd**2))
    white = anatomy.wm**2 * free
    summed = np.cumsum(weight * white, dtype=np.float64)
    if summed[-1] < 1e-3:  # this region is taken: anywhere else
        summed = np.cumsum(white, dtype=np.float64)
    flat = int(np.searchsorted(summed, rng.random() * summed[-1], side="right"))
    return np.array(np.unravel_index(flat, white.shape))


def _box(seed: NDArray[np.intp], reach: float, shape: tuple[int, ...], spacing: float) -> Box:
    radius = int(np.ceil(reach / spacing))
    x, y, z = (slice(max(int(c) - radius, 0), min(int(c) + radius + 1, n)) for c, n in zip(seed, shape, strict=True))
    return x, y, z


def _push(anatomy: Anatomy, seed: NDArray[np.intp], volume: float, peak: float) -> Volume:
    """The displacement by a core that is not there yet: a smooth front of the same volume from the same seed stands for it."""
    factor = factor_of(anatomy.spacing)
    slow = slowness_map(anatomy, _INFILTRATES, factor, bool(anatomy.below[tuple(seed)] > 0.5))
    start = np.full(slow.shape, np.inf, dtype=np.float32)
    start[tuple(seed // factor)] = 0
    time = arrival(slow, start, anatomy.spacing * factor, 1.5 * radius_of(volume))
    return mass_effect(anatomy, smoothstep(radius_of(volume) - time, -3.0, 3.0), factor, peak)


def _grow(
    rng: np.random.Generator,
    anatomy: Anatomy,
    settings: Glioma,
    fractions: dict[TissueName, Volume],
    seed: NDArray[np.intp],
    volume: float,
    oedema: float,
    low: bool,
) -> Anatomy:
    """Add one tumour to `fractions`, in place; returns the brain with the sulci inside it closed."""
    reach = 1.8 * radius_of(volume) + _FARTHEST + 6
    box = _box(seed, reach, anatomy.wm.shape, anatomy.spacing)
    local = crop(anatomy, box)
    core, shares = _core(rng, local, settings, seed - [s.start for s in box], volume, low)
    local = _closed(local, core)
    anatomy = put_back(anatomy, local, box)
    inside = total(shares.values())
    depth = oedema_depth(
        rng, local, Front(core.depth, np.maximum(core.extent, inside)), oedema, _SEEPS if low else _RESPECTS, _FARTHEST
    )
    solid = 1 - local.vessels
    room = (local.gm + local.wm) * solid
    for name, share in shares.items():
        fractions[name][box] += share * room
    soft = 5.0 if low else 2.5
    strength = smoothstep(depth, -soft / 2, soft / 2) * (0.8 + 0.2 * smoothstep(depth, -1.0, 15.0))
    grey = 0.85 if low else 0.85 * smoothstep(core.depth, -6.0, -1.0)  # next to the core the cortex is infiltrated too
    strength *= (local.wm + grey * local.gm) * solid * (1 - inside)
    fractions["oedema"][box] += attached(strength, inside)
    return anatomy


def _core(
    rng: np.random.Generator, local: Anatomy, settings: Glioma, seed: NDArray[np.intp], volume: float, low: bool
) -> tuple[Front, Shares]:
    if settings.post_treatment and rng.random() < settings.cavity:
        cavity = cavity_front(rng, local, seed, volume)
        return cavity, treated(rng, local, cavity, bool(rng.random() < settings.residual))
    low = bool(rng.random() > settings.residual) if settings.post_treatment else low
    core = core_front(rng, local, seed, volume, _INFILTRATES, 1.5 if low else 1.0)
    if low:
        return core, low_grade(core)
    thinnest, thickest = np.log(settings.rim_mm)
    return core, high_grade(rng, core, local.spacing, float(np.exp(rng.uniform(thinnest, thickest))))


def _closed(local: Anatomy, core: Front) -> Anatomy:
    """Sulci inside the core are pressed shut, and its vessels gone; the ventricles stay."""
    closed = smoothstep(core.depth, -0.5, 2.0) * smoothstep(local.to_ventricle, 1.0, 3.0) * local.csf
    return replace(local, gm=local.gm + closed, csf=local.csf - closed, vessels=local.vessels * (1 - core.extent))


def _grow_another(
    rng: np.random.Generator,
    anatomy: Anatomy,
    settings: Glioma,
    fractions: dict[TissueName, Volume],
    volume: float,
    low: bool,
) -> Anatomy:
    """A further tumour with a little oedema, off those there are."""
    taken = total(fractions.values()) > 0.02
    away = away_from(taken, anatomy.spacing)
    free = (away > radius_of(volume) + 9.0).astype(np.float32)
    if not (free * anatomy.wm > 0.5).any():
        return anatomy
    settings = settings.model_copy(update={"cavity": 0.0})  # one operation, and what has come since
    alone: dict[TissueName, Volume] = {name: np.zeros_like(anatomy.wm) for name in fractions}
    seed = _draw_seed(rng, anatomy, free, _SITES)
    anatomy = _grow(rng, anatomy, settings, alone, seed, volume, volume * rng.uniform(0.5, 1.5), low)
    apart = away > 1.75 * factor_of(anatomy.spacing) * anatomy.spacing  # corners do not touch either
    for name, fraction in alone.items():
        fractions[name] += fraction * apart
    return anatomy


def _scatter_satellites(rng: np.random.Generator, anatomy: Anatomy, fractions: dict[TissueName, Volume]) -> None:
    """One to four enhancing nodules 1.8 to 5 mm in radius, 3 to 25 mm from the core, in place."""
    spacing = anatomy.spacing
    core = total(f for name, f in fractions.items() if name != "oedema") > 0.5
    if not core.any():
        return
    away = away_from(core, spacing)
    places = np.argwhere((away > 8) & (away < 28) & (anatomy.wm > 0.7))
    if not len(places):
        return
    for at in rng.choice(places, int(rng.integers(1, 5))):
        radius = float(np.exp(rng.uniform(np.log(1.8), np.log(5.0))))
        box = _box(at, radius + 6, core.shape, spacing)
        far = distance_from(at - [s.start for s in box], fractions["oedema"][box].shape, spacing)
        room = (anatomy.gm[box] + anatomy.wm[box]) * (1 - anatomy.vessels[box])
        ball = front(radius - far, spacing).extent
        halo = (
            front(radius + rng.uniform(0, 3) - far, spacing, 2.0).extent
            * 0.9
            * anatomy.wm[box]
            / np.maximum(room, 1e-6)
        )
        for fraction in fractions.values():
            fraction[box] *= 1 - ball
        left = np.maximum(room - total(f[box] for f in fractions.values()), 0)
        fractions["enhancing_tumour"][box] += np.minimum(ball * room, left)
        left -= np.minimum(ball * room, left)
        fractions["oedema"][box] += np.minimum(np.maximum(halo - ball, 0) * room, left)


def _fade_specks(fractions: dict[TissueName, Volume], spacing: float) -> None:
    """Bits of less than 15 mm³, cut off by the folds of the cortex, fall below the half that is labelled, in place."""
    pieces, _ = ndimage.label(total(fractions.values()) > 0.5, np.ones((3, 3, 3)))
    small = np.bincount(pieces.ravel()) * spacing**3 < _SPECK
    small[0] = False
    where = np.nonzero(small[pieces])
    for fraction in fractions.values():
        fraction[where] *= np.float32(0.45)


def _labels(fractions: Mapping[TissueName, Volume]) -> NDArray[np.uint8]:
    """The class with the largest fraction, where all together take more than half of the voxel; a thin line of enhancement has no say."""
    enhancing = fractions["enhancing_tumour"]
    named = {**fractions, "enhancing_tumour": np.where(enhancing > THIN, enhancing, 0)}
    labels = np.zeros(fractions["oedema"].shape, dtype=np.uint8)
    where = np.nonzero(total(fractions.values()) > 0.5)
    values = sorted(set(_VALUES.values()))
    by_class = [np.sum([f[where] for name, f in named.items() if _VALUES[name] == v], axis=0) for v in values]
    labels[where] = np.array(values, dtype=np.uint8)[np.argmax(by_class, axis=0)]
    return labels


def _components(
    labels: NDArray[np.uint8], classes: Mapping[str, int], anatomy: Anatomy
) -> tuple[NDArray[np.int32], tuple[Mapping[str, Any], ...]]:
    """Components, largest first, and what each is made of."""
    pieces, count = ndimage.label(labels > 0, np.ones((3, 3, 3)))
    order = np.argsort(-np.bincount(pieces.ravel(), minlength=count + 1)[1:], kind="stable")
    numbers = np.zeros(count + 1, dtype=np.int32)
    numbers[order + 1] = np.arange(1, count + 1)
    instances = numbers[pieces]
    rows = []
    for number, box in enumerate(ndimage.find_objects(instances), 1):
        mine = instances[box] == number
        counts = np.bincount(labels[box][mine], minlength=max(classes.values()) + 1)
        middle = np.argwhere(mine).mean(0) + [s.start for s in box]
        x, y, z = (anatomy.affine @ [*middle, 1])[:3].round(2).tolist()
        voxel = anatomy.spacing**3
        volumes = {f"{name}_mm3": float(counts[value] * voxel) for name, value in classes.items()}
        rows.append({"id": number, "volume_mm3": float(mine.sum() * voxel), **volumes, "x_mm": x, "y_mm": y, "z_mm": z})
    return instances, tuple(rows)


def _with_texture(rng: np.random.Generator, fractions: Mapping[TissueName, Volume], spacing: float) -> Parts:
    """Parts to paint; necrosis, rim and solid tumour are not the same everywhere."""
    parts = []
    for name, fraction in fractions.items():
        found = ndimage.find_objects((fraction > 0).astype(np.int8))
        if not found:
            continue
        if name not in _VARIES:
            parts.append(Part(name, fraction))
            continue
        other, most = _VARIES[name]
        shape = fraction[found[0]].shape
        field = 0.8 * smooth_field(rng, shape, spacing, 9.0) + 0.6 * smooth_field(
            rng, shape, spacing, max(3.5, spacing)
        )
        position = np.zeros_like(fraction)
        position[found[0]] = most * smoothstep(field, rng.uniform(-2.2, 0.2), 2.2)
        parts.append(Part(name, fraction, other, position))
    return tuple(parts)
