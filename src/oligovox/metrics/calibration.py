"""Calibration of a map of lesion probability: do 30 % of the voxels given 30 % turn out to be lesion?

Voxels inside a foreground mask fall in `bins` bins of equal width by their probability, [k/bins, (k + 1)/bins), the last one closed.

| quantity | definition |
| --- | --- |
| reliability curve | of each bin: mean probability, share of lesion, number of voxels |
| ECE | Σ over bins of voxels / all voxels · abs(mean probability − share of lesion) |
| Brier | mean of (probability − truth)², truth 0 or 1 |

| voxels | in a bin | in all |
| --- | --- | --- |
| none | mean probability and share NaN, weight 0 in the ECE | ECE and Brier NaN |

The probability is that of the lesion (or of one class of several: once a class), not that of the more likely answer, so the curve
runs over [0, 1]. The foreground decides the numbers: air is certain and right, and a whole grid of it makes any map look calibrated. Take the
brain, or a margin around lesions, and say which.

Source: ECE: Naeini et al. 2015, AAAI; Guo et al. 2017, ICML; score: Brier 1950, Mon Weather Rev 78:1 (all from memory).

Deviates: Guo et al. bin the probability of the chosen class; for two classes that folds the curve at 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oligovox.errors import GeometryError, SettingsError
from oligovox.metrics.overlap import as_mask, probability_and_mask

DEFAULT_BINS = 15
"""As in Guo et al. 2017."""


@dataclass(frozen=True)
class Calibration:
    """What is kept of the voxels of one or many cases: sums, one a bin.

    Attributes:
        voxels: (bins,) number of voxels.
        probability: (bins,) sum of their probabilities.
        lesion: (bins,) number of them that are lesion.
        squared: sum of (probability − truth)² over all voxels.
    """

    voxels: NDArray[np.int64]
    probability: NDArray[np.float64]
    lesion: NDArray[np.int64]
    squared: float

    @property
    def total(self) -> int:
        """Number of voxels in all bins."""
        return int(self.voxels.sum())

    @property
    def mean_probability(self) -> NDArray[np.float64]:
        """(bins,) mean probability, NaN in an empty bin."""
        return _share(self.probability, self.voxels)

    @property
    def lesion_share(self) -> NDArray[np.float64]:
        """(bins,) share of voxels that are lesion, in [0, 1], NaN in an empty bin."""
        return _share(self.lesion, self.voxels)

    @property
    def ece(self) -> float:
        """Expected calibration error, in [0, 1] or NaN."""
        return float(np.abs(self.probability - self.lesion).sum() / self.total) if self.total else math.nan

    @property
    def brier(self) -> float:
        """Brier score, in [0, 1] or NaN; smaller is better."""
        return self.squared / self.total if self.total else math.nan


def calibration(
    probability: NDArray[Any], truth: NDArray[Any], foreground: NDArray[Any], *, bins: int = DEFAULT_BINS
) -> Calibration:
    """Calibration of one case.

    Args:
        probability: (x, y, z) probability of lesion, in [0, 1].
        truth: (x, y, z), voxels above 0 are lesion, on the same grid.
        foreground: (x, y, z), voxels above 0 are looked at, on the same grid.
        bins: number of bins, ≥ 1.

    Raises:
        GeometryError: the shapes differ.
        LabelError: values that are not probabilities, or not labels.
        SettingsError: no bins.
    """
    if bins < 1:
        raise SettingsError(f"bins = {bins}; expected at least 1")
    probability, truth = probability_and_mask(probability, truth)
    inside = as_mask(foreground)
    if inside.shape != truth.shape:
        raise GeometryError(
            f"the foreground has shape {inside.shape}, the reference {truth.shape}; bring both to one grid first"
        )
    given, lesion = probability[inside].astype(np.float64), truth[inside]
    bin_of = np.minimum((given * bins).astype(np.int64), bins - 1)
    return Calibration(
        voxels=np.bincount(bin_of, minlength=bins),
        probability=np.bincount(bin_of, weights=given, minlength=bins).astype(np.float64),
        lesion=np.bincount(bin_of[lesion], minlength=bins),
        squared=float(np.square(given - lesion).sum()),
    )


def pooled(cases: Iterable[Calibration]) -> Calibration:
    """All voxels of many cases as one; a large foreground weighs more. The cases have the same number of bins.

    Raises:
        SettingsError: no case, or cases of different numbers of bins.
    """
    counted = list(cases)
    sizes = sorted({len(case.voxels) for case in counted})
    if len(sizes) != 1:
        raise SettingsError(f"cases with {sizes or 'no'} bins; expected one or more cases with the same number of bins")
    return Calibration(
        voxels=np.sum([case.voxels for case in counted], axis=0),
        probability=np.sum([case.probability for case in counted], axis=0),
        lesion=np.sum([case.lesion for case in counted], axis=0),
        squared=sum(case.squared for case in counted),
    )


def _share(part: NDArray[Any], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    share = np.full(len(whole), np.nan)
    np.divide(part, whole, out=share, where=whole > 0)
    return share
