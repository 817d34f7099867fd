"""Relaxation times and proton densities of brain tissue at 3 T, and how they vary from person to person.

Sources: Wansapura et al. 1999 (J Magn Reson Imaging 9:531): in vivo T1 832 ms in white and 1331 ms in grey matter, T2 80 ms and 110 ms;
Stanisz et al. 2005 (Magn Reson Med 54:507): in vitro T1 1084 ms and 1820 ms, T2 69 ms and 99 ms.
Values marked "chosen" are ours: plausible, and set so that the simulated contrast matches real 3 T exams of patients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tissue:
    """What the signal equations need to know; values may be arrays of one shape.

    Attributes:
        pd: proton density relative to CSF, 0 to 1.
        t1: ms.
        t2: ms.
    """

    pd: float | NDArray[np.float64]
    t1: float | NDArray[np.float64]
    t2: float | NDArray[np.float64]


@dataclass(frozen=True)
class Tissues:
    """One person's tissues; a lesion of severity 0 … 1 lies on the line from `mild` to `severe`."""

    gm: Tissue
    wm: Tissue
    csf: Tissue
    mild: Tissue
    severe: Tissue

    def lesion(self, severity: NDArray[np.float64]) -> Tissue:
        """Lesion tissue at each severity (any shape, 0 to 1)."""
        a, b = self.mild, self.severe
        return Tissue(*(x + (y - x) * severity for x, y in ((a.pd, b.pd), (a.t1, b.t1), (a.t2, b.t2))))


TYPICAL = Tissues(
    gm=Tissue(pd=0.80, t1=1360.0, t2=98.0),  # T1 near Wansapura, T2 near Stanisz; pd chosen
    wm=Tissue(pd=0.70, t1=832.0, t2=76.0),  # T1 Wansapura, T2 between the two sources; pd chosen
    csf=Tissue(pd=1.00, t1=4000.0, t2=1500.0),  # chosen; published values scatter widely
    mild=Tissue(pd=0.755, t1=1000.0, t2=111.0),  # chosen, see above
    severe=Tissue(pd=0.85, t1=1420.0, t2=162.0),  # chosen, see above
)
"""A typical person at 3 T."""

_SPREAD = np.array([0.015, 0.03, 0.02])
"""Relative standard deviation of pd, t1, t2 between people (chosen; the order of the spread that both sources report)."""


def draw_tissues(rng: np.random.Generator) -> Tissues:
    """A person's tissues: each value of `TYPICAL` times a factor; lesions share the factors of their white matter."""
    gm, wm, csf = 1 + _SPREAD * rng.standard_normal((3, 3)).clip(-2, 2)
    return Tissues(
        gm=_scaled(TYPICAL.gm, gm),
        wm=_scaled(TYPICAL.wm, wm),
        csf=_scaled(TYPICAL.csf, csf),
        mild=_scaled(TYPICAL.mild, wm),
        severe=_scaled(TYPICAL.severe, wm),
    )


def _scaled(tissue: Tissue, factors: NDArray[np.float64]) -> Tissue:
    pd, t1, t2 = (float(f) for f in factors)
    return Tissue(pd=tissue.pd * pd, t1=tissue.t1 * t1, t2=tissue.t2 * t2)
