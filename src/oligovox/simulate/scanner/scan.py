"""What a scanner does to the ideal signal: its own timing, resolution, gain, uneven fields, texture, ghosts and noise.

Scans of one site have much in common (`Site`); each `Scan` is plain values, drawn before anything is computed; `acquire` is what happens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from oligovox.settings import Settings, ascending
from oligovox.simulate.fields import Spacing, Volume
from oligovox.simulate.physics.sequences import FLAIR, GRE, MPRAGE, Sequence, signal
from oligovox.simulate.physics.tissues import typical
from oligovox.simulate.scanner.coils import bias_field, texture, transmit_field
from oligovox.simulate.scanner.kspace import Placement, averaged, ghost_lines, read_out, slice_profile, window

Range: TypeAlias = tuple[float, float]

MODALITIES = ("T1w", "T1wGd", "T2w", "PDw", "FLAIR", "T2starw", "QSM", "T1in", "T1out", "T2spir")
"""Names of what can be scanned."""

_QUIET = ("T1w", "T1wGd")  # inversion-prepared gradient echo: strong signal
_VOLUMES = ("T1w", "T1wGd", "T2starw", "QSM")  # 3-D scans, with thin slices wherever they are made
_SAME = {"T1wGd": "T1w", "T1out": "T1in"}  # acquired with the settings of another
_TIMES = ("tr", "te", "ti", "flip")
_ULTRA = 5.0  # T; from here on the fields of the coils are those of 7 T
_KNOT = 0.25  # signals are computed at transmit fields no further apart


class Acquisition(Settings):
    """How scans of a cohort are made; ranges are (lowest, highest), drawn anew for each site or scan.

    Noise is the standard deviation in one channel of the delivered image on a 1 mm grid; on another grid it is what that image would
    have, averaged to it. "Measured" defaults are those of multiple sclerosis patients (Lesjak et al. 2018, Neuroinformatics 16:51); "fitted"
    ones make simulated white matter as uneven as theirs, in strength and in spectrum; all others are chosen.
    """

    noise_t1w: Range = Field((0.014, 0.028), description="noise of T1w, fraction of white matter (fitted)")
    noise_t2w: Range = Field(
        (0.036, 0.06),
        description="noise of everything else, fraction of white matter (fitted on T2w and FLAIR); T2starw and QSM have their own, `qsm`",
    )
    texture_t1w: Range = Field((0.03, 0.055), description="variation within a tissue on T1w, relative (fitted)")
    texture_t2w: Range = Field(
        (0.035, 0.07), description="the same on everything else (fitted); T2starw and QSM have their own, `qsm`"
    )
    bias: Range = Field(
        (0.03, 0.15), description="half the 5-95 % range of the smooth field around 1, below 5 T (measured)"
    )
    bias_7t: Range = Field((0.1, 0.35), description="the same from 5 T on, brightest in the middle")
    transmit_3t: Range = Field((0.85, 1.1), description="least and greatest flip angle over nominal in the head at 3 T")
    transmit_7t: Range = Field((0.5, 1.25), description="the same from 5 T on; below 2 T every flip angle is nominal")
    plane_mm: Range = Field((0.8, 1.2), description="acquired resolution within the slice, mm")
    slice_mm: Range = Field((0.9, 1.4), description="thickness of thin slices, mm")
    thick_mm: Range = Field((3.0, 5.0), description="thickness of thick slices, mm")
    gap_mm: Range = Field((0.0, 0.5), description="gap between thick slices, mm")
    thick: float = Field(
        0.3, ge=0, le=1, description="probability that a site scans T2w, PDw, FLAIR and abdomens in thick slices"
    )
    ringing: Range = Field((0.0, 0.7), description="0 = k-space filtered smooth, 1 = not filtered, full Gibbs ringing")
    ghosts: float = Field(0.15, ge=0, le=1, description="probability that a scan has motion ghosts")
    ghost: Range = Field((0.01, 0.04), description="brightness of the first ghost, fraction of the image")
    shift_mm: float = Field(
        0.3, ge=0, le=20, description="standard deviation of a scan's displacement along each axis, mm"
    )
    turn_deg: float = Field(
        0.3, ge=0, le=20, description="standard deviation of a scan's rotation about each axis, degrees"
    )
    timing: float = Field(
        0.06, ge=0, le=0.15, description="standard deviation of TR, TE, TI, flip angle between sites, relative"
    )
    csf: Range = Field((0.1, 0.4), description="pure CSF over white matter on FLAIR (measured 0.18-0.44)")
    gain: Range = Field((200.0, 1200.0), description="what a site's images show white matter as, arbitrary units")
    sites: int = Field(1, ge=1, le=1000, description="sites the cohort is scanned at")
    scanners: int = Field(0, ge=0, le=1000000, description="another number: other sites with other protocols")
    site_spread: float = Field(
        0.5,
        ge=0,
        le=1,
        description="part of the differences in noise and resolution that lies between sites, not between scans",
    )

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Acquisition:
        for names, least, most in (
            (("noise_t1w", "noise_t2w", "texture_t1w", "texture_t2w", "bias", "bias_7t", "ghost"), 0, 0.5),
            (("ringing", "csf"), 0, 1),
            (("transmit_3t", "transmit_7t"), 0.1, 2),
            (("plane_mm", "slice_mm", "thick_mm", "gap_mm"), 0, 20),
            (("gain",), 10, 3000),  # images are written as 16-bit integers
        ):
            for name in names:
                ascending(name, getattr(self, name), least, most)
        return self


@dataclass(frozen=True)
class Site:
    """What all scans of one site share.

    Attributes:
        timing: modality → TR, TE, TI and flip angle relative to the usual protocol.
        noise: 0 (the quietest scanner) to 1.
        sharpness: 0 (the finest in-plane resolution) to 1.
        slice_mm: thickness of thin slices.
        thick_mm: thickness of thick slices, or None where there are none.
        gap_mm: gap between thick slices.
        ringing: 0 = k-space filtered smooth, 1 = not filtered.
        csf: pure CSF over white matter on FLAIR.
        gain: what white matter is shown as, arbitrary units.
    """

    timing: Mapping[str, Mapping[str, float]]
    noise: float
    sharpness: float
    slice_mm: float
    thick_mm: float | None
    gap_mm: float
    ringing: float
    csf: float
    gain: float


@dataclass(frozen=True)
class Scan:
    """How one sequence of one person is acquired. The defaults are a perfect scanner: the image is the ideal signal's magnitude.

    Attributes:
        sequence: its settings.
        gain: what white matter is shown as, arbitrary units.
        noise: standard deviation per channel as a fraction of white matter, on a 1 mm grid.
        texture: standard deviation of the variation within a tissue, relative.
        bias: half the 5-95 % range of the smooth receive field around 1.
        centre: 0 to 1, how much of the receive field is brightness in the middle.
        transmit: least and greatest flip angle over nominal.
        plane_mm: acquired resolution within the slice.
        slice_mm: thickness.
        gap_mm: gap between slices.
        axis: slice axis, 0 to 2.
        phase: phase-encoding axis; not the slice axis.
        ringing: 0 = k-space filtered smooth, 1 = not filtered.
        ghost: brightness of the first ghost, fraction of the image.
        ghost_shift: how far it is displaced, fraction of the field of view.
        shift_mm: displacement along (x, y, z).
        turn_deg: rotation about (x, y, z).
    """

    sequence: Sequence
    gain: float = 1.0
    noise: float = 0.0
    texture: float = 0.0
    bias: float = 0.0
    centre: float = 0.0
    transmit: Range = (1.0, 1.0)
    plane_mm: float = 0.0
    slice_mm: float = 0.0
    gap_mm: float = 0.0
    axis: int = 2
    phase: int = 1
    ringing: float = 1.0
    ghost: float = 0.0
    ghost_shift: float = 0.0
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def facts(self) -> dict[str, Any]:
        """Everything as plain JSON values, units in the names; `sequence` in ms and degrees."""
        renamed = {
            "gain": "white_matter_units",
            "noise": "noise_at_1mm_of_white_matter",
            "texture": "texture_relative",
            "bias": "receive_half_range",
            "centre": "receive_centre",
            "transmit": "transmit_of_nominal",
            "axis": "slice_axis",
            "phase": "phase_axis",
            "ghost": "ghost_relative",
            "ghost_shift": "ghost_shift_of_field_of_view",
        }
        settings = {name: _rounded(value) for name, value in self.sequence.model_dump().items()}
        rest = [field.name for field in fields(self) if field.name != "sequence"]
        return {"kind": type(self.sequence).__name__, "sequence": settings} | {
            renamed.get(name, name): _rounded(getattr(self, name)) for name in rest
        }


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_rounded(v) for v in value]
    return round(float(value), 4) if isinstance(value, float | np.floating) else value


def draw_site(rng: np.random.Generator, settings: Acquisition, field_T: float) -> Site:
    """A site with a scanner of `field_T` tesla."""
    factors = 1 + settings.timing * rng.standard_normal((len(MODALITIES), len(_TIMES))).clip(-2.5, 2.5)
    timing = {m: dict(zip(_TIMES, map(float, f), strict=True)) for m, f in zip(MODALITIES, factors, strict=True)}
    thick = rng.random() < settings.thick
    return Site(
        timing={m: timing[_SAME.get(m, m)] for m in MODALITIES},
        noise=float(rng.random()),
        sharpness=float(rng.random()),
        slice_mm=float(rng.uniform(*settings.slice_mm)),
        thick_mm=float(rng.uniform(*settings.thick_mm)) if thick else None,
        gap_mm=float(rng.uniform(*settings.gap_mm)),
        ringing=float(rng.uniform(*settings.ringing)),
        csf=float(rng.uniform(*settings.csf)),
        gain=float(np.exp(rng.uniform(*np.log(settings.gain)))),
    )


def draw_scan(
    rng: np.random.Generator, site: Site, settings: Acquisition, modality: str, sequence: Sequence, field_T: float
) -> Scan:
    """One scan at a site.

    Args:
        rng: the only source of chance.
        site: where.
        settings: ranges.
        modality: one of `MODALITIES`.
        sequence: the usual protocol of the modality.
        field_T: field strength, T.
    """
    quiet, ultra = modality in _QUIET, field_T >= _ULTRA
    thick = site.thick_mm is not None and modality not in _VOLUMES
    axis = 2 if thick or rng.random() < 0.6 else int(rng.integers(2))
    ghosted = rng.random() < settings.ghosts
    transmit = settings.transmit_7t if ultra else settings.transmit_3t if field_T >= 2 else (1.0, 1.0)
    spread = float(rng.uniform(0.7, 1.0))
    share = settings.site_spread
    return Scan(
        sequence=at_site(sequence, site, modality, field_T),
        gain=site.gain * float(rng.lognormal(0, 0.15)),
        noise=_between(settings.noise_t1w if quiet else settings.noise_t2w, _mixed(rng, site.noise, share)),
        texture=float(rng.uniform(*(settings.texture_t1w if quiet else settings.texture_t2w))),
        bias=float(rng.uniform(*(settings.bias_7t if ultra else settings.bias))),
        centre=float(rng.uniform(0.4, 0.8)) if ultra else 0.0,
        transmit=(1 + (transmit[0] - 1) * spread, 1 + (transmit[1] - 1) * spread),
        plane_mm=_between(settings.plane_mm, _mixed(rng, site.sharpness, share)),
        slice_mm=site.thick_mm if thick and site.thick_mm is not None else site.slice_mm,
        gap_mm=site.gap_mm if thick else 0.0,
        axis=axis,
        phase=int(rng.choice([a for a in range(3) if a != axis])),
        ringing=site.ringing,
        ghost=float(rng.uniform(*settings.ghost)) if ghosted else 0.0,
        ghost_shift=float(rng.uniform(0.08, 0.5)),
        shift_mm=_three(rng, settings.shift_mm),
        turn_deg=_three(rng, settings.turn_deg),
    )


def _mixed(rng: np.random.Generator, site: float, share: float) -> float:
    return share * site + (1 - share) * float(rng.random())


def _between(ends: Range, position: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * position


def _three(rng: np.random.Generator, deviation: float) -> tuple[float, float, float]:
    x, y, z = (deviation * rng.standard_normal(3).clip(-2.5, 2.5)).tolist()
    return x, y, z


def at_site(sequence: Sequence, site: Site, modality: str, field_T: float) -> Sequence:
    """The protocol as the site runs it: TR, TE, TI and flip angle each a few per cent off, and FLAIR's CSF as dark as the site has it.

    A FLAIR's TI is set past the null point, so that CSF is left positive, as inflow and imperfect inversion leave it in patients. Where
    the times do not fit each other, they are changed no more than needed: see `_possible`.
    """
    factors = site.timing[modality]
    changed: dict[str, float] = {}
    for name in _TIMES:
        usual = getattr(sequence, name, None)
        if isinstance(usual, float):  # the echo times of a gradient echo, a tuple, stay: they set the phase of fat
            changed[name] = round(usual * factors[name], 2)
    varied = sequence.model_copy(update=changed)
    return _possible(_with_csf(varied, site.csf, field_T) if isinstance(varied, FLAIR) else varied)


def _possible(s: Sequence) -> Sequence:
    """The nearest settings that a sequence can be run with, in whole ms; what is possible stays as it is.

    An MPRAGE's TI leaves half a train before and after it, a FLAIR's is shorter than TR, the TR of a gradient echo holds its last echo
    and half the reading of it, and no excitation is beyond 90 degrees.
    """
    changed: dict[str, float] = {}
    match s:
        case MPRAGE():
            half = s.excitations / 2 * s.echo_spacing
            if s.ti < half:
                changed["ti"] = float(math.ceil(half))
            elif s.tr - s.ti < half:
                changed["ti"] = float(math.floor(s.tr - half))
        case FLAIR():
            if s.ti >= s.tr:
                changed["ti"] = float(math.ceil(s.tr) - 1)
        case GRE():
            if s.tr <= s.te[-1]:
                changed["tr"] = float(math.ceil(s.te[-1] + 500 / s.bandwidth))
    if isinstance(s, MPRAGE | GRE) and s.flip > 90:
        changed["flip"] = 90.0
    return s.model_copy(update=changed)


def _with_csf(sequence: FLAIR, wanted: float, field_T: float) -> FLAIR:
    """The TI at which CSF has `wanted` times the signal of white matter, by bisection between TI 0 and TR."""
    csf, white = typical("csf", field_T), typical("white_matter", field_T)
    low, high = 0.0, sequence.tr
    for _ in range(40):
        tried = sequence.model_copy(update={"ti": (low + high) / 2})
        ratio = float(signal(csf, tried, field_T)) / abs(float(signal(white, tried, field_T)))
        low, high = (tried.ti, high) if ratio < wanted else (low, tried.ti)
    return sequence.model_copy(update={"ti": round(high, 1)})


def acquire(
    rng: np.random.Generator,
    scan: Scan,
    ideal: Callable[[float], Volume],
    where: NDArray[np.bool_],
    spacing: Spacing,
    white: float,
    *,
    stripped: bool = True,
) -> Volume:
    """One image as a site delivers it.

    In order: flip angles as the transmit field has them, texture, receive field, slices, k-space (resolution, ringing, ghosts, noise),
    magnitude, linear interpolation from where the head lay to the delivered grid, gain. Noise thus has the smoothness of the image.

    Args:
        rng: the only source of chance.
        scan: how.
        ideal: signed signal (x, y, z) without noise, where every flip angle is multiplied by the argument.
        where: (x, y, z) brain or body; fields are scaled in it.
        spacing: voxel size, mm, one number or one for each axis.
        white: signal of white matter (in an abdomen of another tissue), above 0; the image shows it as `scan.gain`.
        stripped: zero outside `where`; else air has noise.

    Returns:
        (x, y, z), arbitrary units, not negative.
    """
    image = _transmitted(rng, scan, ideal, where, spacing)
    shape = image.shape
    if scan.texture:
        image *= texture(rng, shape, spacing, scan.texture)
    if scan.bias:
        image *= bias_field(rng, shape, spacing, scan.bias, where, scan.centre)
    axis, first = scan.axis, scan.phase
    axes = (first, 3 - axis - first)
    size = [float(v) for v in np.broadcast_to(spacing, 3)]
    profile = slice_profile(shape[axis], size[axis], scan.slice_mm, scan.gap_mm)
    pitch = max(scan.slice_mm, size[axis]) + scan.gap_mm
    if pitch > size[axis]:
        image = np.moveaxis(np.tensordot(profile, image, (1, axis)), 0, axis)
    place = Placement(shape, size, axis, len(profile), pitch, scan.shift_mm, scan.turn_deg)
    sigma = (
        scan.noise
        * white
        / place.smoothing()
        * averaged(size, axis, scan.plane_mm, scan.ringing, scan.slice_mm + scan.gap_mm)
    )
    windows = (window(shape[a], size[a], scan.plane_mm, scan.ringing) for a in axes)
    lines = ghost_lines(shape[first], scan.ghost_shift * shape[first], scan.ghost)
    image = place.deliver(read_out(rng, image, (*windows,), lines, axes, sigma))
    image *= np.float32(scan.gain / white)
    if stripped:
        image[~where] = 0
    return image


def _transmitted(
    rng: np.random.Generator, scan: Scan, ideal: Callable[[float], Volume], where: NDArray[np.bool_], spacing: Spacing
) -> Volume:
    """The signed image with flip angles as the transmit field has them: computed at a few, a polynomial through them in each voxel."""
    low, high = scan.transmit
    if high - low < 1e-6:
        return np.array(ideal(low), dtype=np.float32)
    field = transmit_field(rng, where.shape, spacing, (low, high), where)
    knots = np.linspace(low, high, 1 + math.ceil((high - low) / _KNOT - 1e-6))
    image = np.zeros(where.shape, np.float32)
    for knot in knots:
        others = [other for other in knots if other != knot]
        weight = np.full(where.shape, 1 / math.prod(knot - other for other in others), np.float32)
        for other in others:
            weight *= field - np.float32(other)
        weight *= ideal(float(knot))
        image += weight
    return image
