"""Curves of a classifier of lesions: ROC, precision and recall, reliability, net benefit. Lesions of all patients pooled.

| curve | points |
| --- | --- |
| ROC | false positive rate, sensitivity at each distinct probability, from (0, 0) to (1, 1) |
| precision-recall | recall, precision at each distinct probability, the strictest first |
| decision | at each threshold probability t: TP/n − FP/n · t/(1 − t), for the classifier, for calling every lesion, and 0 for calling none |

Reliability is `metrics.calibration`, with lesions for voxels. A decision curve says at which exchange of false alarms for found lesions a classifier
is of use: t is the probability at which somebody would act. Here "acting" means that an expert looks at the lesion again; whether that helps
a patient is another question.

Source: Vickers and Elkin 2006, Medical Decision Making 26:565 (net benefit; from memory).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oligovox.errors import InputError
from oligovox.metrics.calibration import Calibration, calibration

Floats = NDArray[np.float64]
Points = tuple[Floats, Floats]

BINS = 10
"""Of the reliability curve: lesions are fewer than voxels."""


def roc_points(probability: ArrayLike, truth: ArrayLike) -> Points:
    """False positive rate and sensitivity, ascending; NaN where a class is missing."""
    hits, alarms = _counts(probability, truth)
    with np.errstate(invalid="ignore"):
        return alarms / alarms[-1], hits / hits[-1]


def precision_recall_points(probability: ArrayLike, truth: ArrayLike) -> Points:
    """Recall and precision, recall ascending; recall is NaN without Rim+."""
    hits, alarms = (counted[1:] for counted in _counts(probability, truth))
    with np.errstate(invalid="ignore"):
        return hits / hits[-1], hits / (hits + alarms)


def reliability(probability: ArrayLike, truth: ArrayLike) -> Calibration:
    """Calibration over lesions, in `BINS` bins of equal width."""
    given, rim = _checked(probability, truth)
    shape = (-1, 1, 1)
    return calibration(given.reshape(shape), rim.reshape(shape), np.ones((len(given), 1, 1), np.uint8), bins=BINS)


def net_benefit(probability: ArrayLike, truth: ArrayLike, thresholds: ArrayLike) -> Points:
    """Net benefit of the classifier, and of calling every lesion, at each threshold probability in (0, 1).

    Raises:
        InputError: a threshold outside (0, 1), or no lesion.
    """
    given, rim = _checked(probability, truth)
    limit = np.asarray(thresholds, dtype=np.float64)
    if ((limit <= 0) | (limit >= 1)).any():
        raise InputError("a decision curve has a threshold outside (0, 1); expected probabilities between them")
    odds, called = limit / (1 - limit), given > limit[:, None]
    hits, alarms = (called & (rim > 0)).mean(axis=1), (called & (rim == 0)).mean(axis=1)
    return hits - alarms * odds, rim.mean() - (1 - rim.mean()) * odds


def _counts(probability: ArrayLike, truth: ArrayLike) -> Points:
    """Rim+ and Rim− lesions at or above each distinct probability, the highest first, with 0 before them."""
    given, rim = _checked(probability, truth)
    order = np.argsort(-given, kind="stable")
    last = np.flatnonzero(np.diff(given[order], append=-1.0))
    hits, alarms = (np.cumsum(part[order])[last] for part in (rim, 1 - rim))
    return np.concatenate([[0.0], hits]), np.concatenate([[0.0], alarms])


def _checked(probability: ArrayLike, truth: ArrayLike) -> tuple[Floats, NDArray[np.int64]]:
    given, rim = np.asarray(probability, dtype=np.float64), np.asarray(truth, dtype=np.int64)
    if given.ndim != 1 or given.shape != rim.shape or not given.size:
        raise InputError(
            f"probabilities of shape {given.shape}, labels {rim.shape}; expected one of each, and at least one lesion"
        )
    return given, rim
