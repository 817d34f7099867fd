"""Signal equations: what a voxel of one tissue gives in a sequence. Pure functions; times in ms, angles in degrees.

Signals are relative to a proton density of 1, without coil or gain. They are signed: an inversion can leave them negative. Those of a
gradient echo are complex, since fat turns against water. The scanner takes the magnitude after the tissues of a voxel have been
mixed, as a real one does; so fat and water cancel where their echo is opposed.

`b1` is the ratio of the true to the nominal flip angle. It may be an array, if it broadcasts with the values of the tissue.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from oligovox.errors import SettingsError, nearest
from oligovox.settings import Settings, parse
from oligovox.simulate.physics.tissues import Tissue, Value, known_field, with_gadolinium

Signal: TypeAlias = NDArray[np.float64]

_GAMMA = 0.042577  # gyromagnetic ratio of the proton, kHz per ppm and T
_FAT_SHIFT = 3.4  # fat precesses slower than water by this, ppm


class MPRAGE(Settings):
    """Inversion, then a train of small-flip gradient echoes with the centre of k-space in its middle."""

    tr: float = Field(2300.0, gt=0, description="from one inversion to the next, ms")
    ti: float = Field(900.0, gt=0, description="inversion to the middle of the train, ms")
    te: float = Field(3.0, ge=0, description="echo time, ms")
    flip: float = Field(9.0, gt=0, le=90, description="excitation angle, degrees")
    echo_spacing: float = Field(7.0, gt=0, description="between two excitations, ms")
    excitations: int = Field(176, ge=2, description="excitations in one train")
    inversion: float = Field(0.97, gt=0, le=1, description="part of the magnetisation that the pulse inverts")
    adiabatic: bool = Field(True, description="the inversion does not depend on B1")
    dose: float = Field(0.0, ge=0, description="contrast agent given before, standard doses of 0.1 mmol/kg")

    @model_validator(mode="after")
    def _fits(self) -> MPRAGE:
        half = self.excitations / 2 * self.echo_spacing
        if half > min(self.ti, self.tr - self.ti):
            raise ValueError(
                f"half a train takes {half:g} ms, more than there is before the middle (TI {self.ti:g} ms) or after it "
                f"({self.tr - self.ti:g} ms); take fewer excitations or a longer TI or TR"
            )
        return self


class TSE(Settings):
    """Turbo spin echo."""

    tr: float = Field(5000.0, gt=0, description="repetition time, ms")
    te: float = Field(85.0, gt=0, description="effective echo time, ms")
    fat_suppression: float = Field(0.0, ge=0, le=1, description="part of the fat signal that is suppressed (SPIR)")
    dose: float = Field(0.0, ge=0, description="contrast agent given before, standard doses of 0.1 mmol/kg")


class FLAIR(Settings):
    """Turbo spin echo after an inversion that all but nulls CSF."""

    tr: float = Field(9000.0, gt=0, description="repetition time, ms")
    ti: float = Field(2600.0, gt=0, description="inversion time, ms")
    te: float = Field(80.0, gt=0, description="effective echo time, ms")
    fat_suppression: float = Field(0.0, ge=0, le=1, description="part of the fat signal that is suppressed (SPIR)")
    inversion: float = Field(0.95, gt=0, le=1, description="part of the magnetisation that the pulse inverts")
    adiabatic: bool = Field(True, description="the inversion does not depend on B1")
    dose: float = Field(0.0, ge=0, description="contrast agent given before, standard doses of 0.1 mmol/kg")

    @model_validator(mode="after")
    def _fits(self) -> FLAIR:
        if self.ti >= self.tr:
            raise ValueError(f"TI {self.ti:g} ms is not shorter than TR {self.tr:g} ms; take a longer TR")
        return self


class GRE(Settings):
    """Spoiled gradient echo with one or more echoes."""

    tr: float = Field(35.0, gt=0, description="repetition time, ms")
    te: tuple[float, ...] = Field((20.0,), min_length=1, description="echo times, ms")
    flip: float = Field(15.0, gt=0, le=90, description="excitation angle, degrees")
    bandwidth: float = Field(200.0, gt=0, description="Hz per pixel")
    dose: float = Field(0.0, ge=0, description="contrast agent given before, standard doses of 0.1 mmol/kg")

    @model_validator(mode="after")
    def _ascend(self) -> GRE:
        if not all(early < late for early, late in pairwise((0.0, *self.te, self.tr))):
            raise ValueError(
                f"echo times {self.te} ms do not ascend from 0 to TR {self.tr:g} ms; sort them or take a longer TR"
            )
        return self


Sequence: TypeAlias = MPRAGE | TSE | FLAIR | GRE


def signal(tissue: Tissue, sequence: Sequence, field: float, b1: Value = 1.0) -> NDArray[Any]:
    """Signal of a tissue (its values may be arrays) in a sequence: float64, or complex128 for the first echo of a GRE.

    Raises:
        SettingsError: the sequence has contrast agent and there is no relaxivity for this field strength.
    """
    if isinstance(sequence, GRE):
        return gre_signal(tissue, sequence, field, b1)[..., 0]
    tissue = with_gadolinium(tissue, sequence.dose, field)
    match sequence:
        case MPRAGE():
            return mprage(tissue, sequence, b1)
        case TSE():
            return tse(tissue, sequence, b1)
        case FLAIR():
            return flair(tissue, sequence, b1)


def mprage(tissue: Tissue, s: MPRAGE, b1: Value = 1.0) -> Signal:
    """Steady state of the MPRAGE cycle, read in the middle of the train.

    One cycle is linear in the magnetisation m before the inversion: m becomes -efficiency m, recovers over TI - N/2 echo spacings, N
    pulses each take m to m cos(flip) E + 1 - E, and it recovers over what is left of TR. Its fixed point is the steady state.
    """
    t1, alpha = np.asarray(tissue.t1, dtype=np.float64), np.radians(s.flip * np.asarray(b1))
    before = s.ti - s.excitations / 2 * s.echo_spacing
    after = s.tr - before - s.excitations * s.echo_spacing
    e, ea, ed = np.exp(-s.echo_spacing / t1), np.exp(-before / t1), np.exp(-after / t1)
    mu = np.cos(alpha) * e  # per pulse, m approaches `driven` by this factor
    driven = (1 - e) / (1 - mu)
    half, full = mu ** (s.excitations / 2), mu**s.excitations
    inverted = _inverted(s, b1)
    m = (1 - ed + ed * (driven * (1 - full) + full * (1 - ea))) / (1 + ed * full * ea * inverted)
    centre = driven * (1 - half) + half * (1 - ea - ea * inverted * m)
    return np.asarray(tissue.pd * centre * np.sin(alpha) * np.exp(-s.te / np.asarray(tissue.t2s)))


def tse(tissue: Tissue, s: TSE, b1: Value = 1.0) -> Signal:
    """PD (1 - exp(-TR/T1)) exp(-TE/T2), times what the flip angles leave and without suppressed fat."""
    echo = np.exp(-s.te / np.asarray(tissue.t2)) * _refocused(b1) * (1 - s.fat_suppression * tissue.fat)
    return np.asarray(tissue.pd * (1 - np.exp(-s.tr / np.asarray(tissue.t1))) * echo)


def flair(tissue: Tissue, s: FLAIR, b1: Value = 1.0) -> Signal:
    """PD (1 - (1 + f) exp(-TI/T1) + f exp(-TR/T1)) exp(-TE/T2) for an inversion of efficiency f, times what the flip angles leave.

    Each echo train leaves no longitudinal magnetisation behind.
    """
    t1, f = np.asarray(tissue.t1), _inverted(s, b1)
    echo = np.exp(-s.te / np.asarray(tissue.t2)) * _refocused(b1) * (1 - s.fat_suppression * tissue.fat)
    return np.asarray(tissue.pd * (1 - (1 + f) * np.exp(-s.ti / t1) + f * np.exp(-s.tr / t1)) * echo)


def gre_signal(tissue: Tissue, gre: GRE, field: float, b1: Value = 1.0) -> NDArray[np.complex128]:
    """Spoiled steady state (Ernst) at each echo: (..., echo), ... the shape of the tissue's values.

    PD sin a (1 - E) / (1 - E cos a) exp(-TE/T2*), E = exp(-TR/T1); water is real, fat is turned by -2 pi 3.4 ppm gamma B0 TE. What a
    field map does to the phase is not in it.

    Deviates: fat and water of one tissue share T1 and T2*, and fat is one line, not the spectrum of several that it has.
    """
    tissue = with_gadolinium(tissue, gre.dose, field)
    alpha = np.radians(gre.flip * np.asarray(b1))
    e = np.exp(-gre.tr / np.asarray(tissue.t1))
    start = tissue.pd * np.sin(alpha) * (1 - e) / (1 - e * np.cos(alpha))
    te = np.asarray(gre.te)
    turn = np.exp(-2j * np.pi * _FAT_SHIFT * _GAMMA * field * te)
    fat = np.asarray(tissue.fat)[..., None]
    decay = np.exp(-te / np.asarray(tissue.t2s)[..., None])
    return np.asarray(np.asarray(start)[..., None] * decay * (1 - fat + fat * turn))


def null_time(t1: float, tr: float, inversion_efficiency: float = 1.0) -> float:
    """Inversion time, ms, after which a tissue of this T1 gives no signal in a FLAIR of this TR (both ms)."""
    f = inversion_efficiency
    return float(t1 * np.log((1 + f) / (1 + f * np.exp(-tr / t1))))


def _inverted(s: MPRAGE | FLAIR, b1: Value) -> NDArray[np.float64]:
    """Efficiency of the inversion: 1 turns m into -m."""
    return np.asarray(s.inversion * (1.0 if s.adiabatic else -np.cos(np.pi * np.asarray(b1))))


def _refocused(b1: Value) -> NDArray[np.float64]:
    """What 90 b1 and 180 b1 degree pulses leave of an echo: sin(90 b1), and sin(180 b1 / 2) for a long train of refocusing pulses.

    The latter is the largest steady echo of such a train (Alsop 1997, Magn Reson Med 37:176; from memory).
    """
    return np.asarray(np.sin(np.pi / 2 * np.asarray(b1)) ** 2)


_TIMES: Mapping[str, Mapping[float, Sequence]] = {
    "T1w": {
        1.5: MPRAGE(tr=2400, ti=1000, te=3.6, flip=8, echo_spacing=8.6, excitations=160),
        3.0: MPRAGE(),
        7.0: MPRAGE(tr=2600, ti=1100, te=2.8, flip=7, echo_spacing=6.5, excitations=192),
    },
    "T2w": {1.5: TSE(tr=4500, te=95), 3.0: TSE(), 7.0: TSE(tr=7000, te=60)},
    "PDw": {1.5: TSE(tr=3000, te=28), 3.0: TSE(tr=3500, te=25), 7.0: TSE(tr=5000, te=18)},
    "FLAIR": {
        1.5: FLAIR(te=95),
        3.0: FLAIR(te=88, fat_suppression=0.9),
        7.0: FLAIR(tr=10000, ti=2750, te=60, fat_suppression=0.9),
    },
    "T2starw": {
        1.5: GRE(tr=50, te=(35,), flip=15, bandwidth=120),
        3.0: GRE(tr=35, te=(20,), flip=15, bandwidth=160),
        7.0: GRE(tr=32, te=(14,), flip=12, bandwidth=240),
    },
    "QSM": {
        1.5: GRE(tr=60, te=(8, 18, 28, 38, 48), flip=20, bandwidth=150),
        3.0: GRE(tr=40, te=(5, 11, 17, 23, 29), flip=12, bandwidth=250),
        7.0: GRE(tr=30, te=(3, 7, 11, 15, 19), flip=12, bandwidth=400),
    },
    "T1in": {
        1.5: GRE(tr=150, te=(4.6,), flip=80, bandwidth=450),
        3.0: GRE(tr=180, te=(2.3,), flip=75, bandwidth=900),
        7.0: GRE(tr=200, te=(1.974,), flip=65, bandwidth=1500),
    },
    "T1out": {
        1.5: GRE(tr=150, te=(2.3,), flip=80, bandwidth=450),
        3.0: GRE(tr=180, te=(1.15,), flip=75, bandwidth=900),
        7.0: GRE(tr=200, te=(1.481,), flip=65, bandwidth=1500),
    },
    "T2spir": {
        1.5: TSE(tr=1600, te=70, fat_suppression=0.9),
        3.0: TSE(tr=1800, te=70, fat_suppression=0.9),
        7.0: TSE(tr=2200, te=55, fat_suppression=0.9),
    },
}


def protocol(modality: str, field: float, changes: Mapping[str, Any] | None = None) -> Sequence:
    """Typical settings of a modality at 1.5, 3 or 7 T: chosen, within the range of common protocols.

    TI of FLAIR is some 13 % longer than what nulls CSF, as CSF is not black on real scanners. At 7 T, MPRAGE stands for MP2RAGE.
    T1in and T1out have the echo times at which fat and water point the same and the opposite way.

    Raises:
        SettingsError: no such modality (says the nearest), no such field strength, or changes that do not fit.
    """
    strength = known_field(field)
    if modality not in (*_TIMES, "T1wGd"):
        raise SettingsError(f"modality '{modality}' has no protocol; {nearest(modality, (*_TIMES, 'T1wGd'))}")
    usual = (
        _TIMES["T1w"][strength].model_copy(update={"dose": 1.0}) if modality == "T1wGd" else _TIMES[modality][strength]
    )
    return parse(type(usual), usual.model_dump() | dict(changes), f"protocols.{modality}") if changes else usual
