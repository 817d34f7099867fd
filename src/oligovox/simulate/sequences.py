"""Signal equations: what a voxel of one tissue gives in a sequence. Pure functions; times in ms, angles in degrees.

Signals are signed (an inversion can leave them negative), relative to a proton density of 1, without coil or gain. The scanner
takes the magnitude after the tissues of a voxel have been mixed, as a real one does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from oligovox.settings import Settings
from oligovox.simulate.tissues import Tissue

Signal: TypeAlias = NDArray[np.float64]


class MPRAGE(Settings):
    """Inversion, then a train of small-flip gradient echoes with the centre of k-space in its middle."""

    tr: float = Field(2300.0, gt=0, description="from one inversion to the next, ms")
    ti: float = Field(900.0, gt=0, description="inversion to the middle of the train, ms")
    flip: float = Field(9.0, gt=0, le=90, description="excitation angle, degrees")
    echo_spacing: float = Field(7.0, gt=0, description="between two excitations, ms")
    excitations: int = Field(176, ge=2, description="excitations in one train")


class TSE(Settings):
    """Turbo spin echo."""

    tr: float = Field(5000.0, gt=0, description="repetition time, ms")
    te: float = Field(85.0, gt=0, description="effective echo time, ms")


class FLAIR(Settings):
    """Turbo spin echo after an inversion that all but nulls CSF."""

    tr: float = Field(9000.0, gt=0, description="repetition time, ms")
    ti: float = Field(2500.0, gt=0, description="inversion time, ms")
    te: float = Field(80.0, gt=0, description="effective echo time, ms")


Sequence: TypeAlias = MPRAGE | TSE | FLAIR

SEQUENCES: Mapping[str, Sequence] = {"T1w": MPRAGE(), "T2w": TSE(), "FLAIR": FLAIR()}
"""Modality → typical settings at 3 T (chosen; within the range of common protocols)."""


def signal(tissue: Tissue, sequence: Sequence) -> Signal:
    """Signed signal of a tissue (its values may be arrays) in a sequence."""
    match sequence:
        case MPRAGE():
            return mprage(tissue.pd, tissue.t1, sequence)
        case TSE():
            return tse(tissue.pd, tissue.t1, tissue.t2, sequence)
        case FLAIR():
            return flair(tissue.pd, tissue.t1, tissue.t2, sequence)


def mprage(pd: Signal | float, t1: Signal | float, s: MPRAGE) -> Signal:
    """Steady state of the MPRAGE cycle, read in the middle of the train; T2* decay is left out.

    One cycle is linear in the magnetisation m before the inversion: perfect inversion, recovery over
    TI - N/2 echo spacings, N pulses that each take m to m cos(flip) E + 1 - E, recovery over what is left of TR.
    Its fixed point is the steady state.
    """
    t1 = np.asarray(t1, dtype=np.float64)
    before = s.ti - s.excitations / 2 * s.echo_spacing
    after = s.tr - before - s.excitations * s.echo_spacing
    e, ea, ed = np.exp(-s.echo_spacing / t1), np.exp(-before / t1), np.exp(-after / t1)
    mu = math.cos(math.radians(s.flip)) * e  # per pulse, m approaches `driven` by this factor
    driven = (1 - e) / (1 - mu)
    half, full = mu ** (s.excitations / 2), mu**s.excitations
    m = (1 - ed + ed * (driven * (1 - full) + full * (1 - ea))) / (1 + ed * full * ea)
    centre = driven * (1 - half) + half * (1 - ea - ea * m)
    return np.asarray(pd * centre * math.sin(math.radians(s.flip)))


def tse(pd: Signal | float, t1: Signal | float, t2: Signal | float, s: TSE) -> Signal:
    """PD (1 - exp(-TR/T1)) exp(-TE/T2)."""
    return np.asarray(pd * (1 - np.exp(-s.tr / np.asarray(t1))) * np.exp(-s.te / np.asarray(t2)))


def flair(pd: Signal | float, t1: Signal | float, t2: Signal | float, s: FLAIR) -> Signal:
    """PD (1 - 2 exp(-TI/T1) + exp(-TR/T1)) exp(-TE/T2)."""
    t1 = np.asarray(t1)
    return np.asarray(pd * (1 - 2 * np.exp(-s.ti / t1) + np.exp(-s.tr / t1)) * np.exp(-s.te / np.asarray(t2)))
