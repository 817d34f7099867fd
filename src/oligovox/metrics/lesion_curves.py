"""Curves of a classifier of lesions: ROC, precision and recall, reliability, net benefit. Lesions of all patients pooled.

| curve | points |
| --- | --- |
| ROC | false positive rate, sensitivity at each distinct probability, from (0, 0) to (1, 1) |
| precision-recall | recall, precision at each distinct probability, the strictest first |
| decision | at each threshold probability t: TP/n − FP/n · t/(1 − t), for the classifier, for calling every lesion, and 0 for calling none |

`areas` has the areas under the first two, for many cohorts at once; their definitions are in `protocols.prl`.

Reliability is `metrics.calibration`, with lesions for voxels. A decision curve says at which exchange of false alarms for found lesions a classifier
is of use: t is the probability at which somebody would act. Here "acting" means that an expert looks at the lesion again; whether that helps
a patient is another question.

Source: Vickers and Elkin 2006, Medical Decision Making 26:565 (net benefit; from memory).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oligovox.errors import InputError
from oligovox.metrics.calibration import Calibration, calibration

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
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


def areas(truth: Ints, last: Ints, weight: Ints, max_fpr: float) -> dict[str, Floats]:
    """Areas under the curves of many cohorts of the same lesions.

    Args:
        truth: (n,) 1 for Rim+, 0 for Rim−, by falling probability.
        last: (k,) index of the last lesion of each distinct probability.
        weight: (cohorts, n) how often each lesion is in each cohort.
        max_fpr: false positive rate at which the partial area ends, in (0, 1].

    Returns:
        "roc_auc", "partial_auc", "partial_auc_raw", "pr_auc": (cohorts,), NaN where a class is missing.
    """
    hits = np.cumsum(weight * truth, axis=1)[:, last]
    alarms = np.cumsum(weight * (1 - truth), axis=1)[:, last]
    start = np.zeros((len(weight), 1), dtype=np.int64)
    hits, alarms = np.hstack([start, hits]), np.hstack([start, alarms])
    tpr, fpr = share(hits, hits[:, -1:]), share(alarms, alarms[:, -1:])
    raw, chance = _area(fpr, tpr, max_fpr), max_fpr**2 / 2
    precision = np.nan_to_num(share(hits, hits + alarms))
    return {
        "roc_auc": _area(fpr, tpr, 1.0),
        "partial_auc": (1 + (raw - chance) / (max_fpr - chance)) / 2,
        "partial_auc_raw": raw,
        "pr_auc": np.sum(np.diff(tpr, axis=1) * precision[:, 1:], axis=1),
    }


def share(part: NDArray[np.number], whole: NDArray[np.number]) -> Floats:
    """part / whole, NaN where whole is 0."""
    found: Floats = np.full(part.shape, math.nan)
    np.divide(part, whole, out=found, where=np.broadcast_to(whole > 0, part.shape))
    return found


def _area(fpr: Floats, tpr: Floats, end: float) -> Floats:
    """Area under each row's curve for a false positive rate from 0 to `end`, by trapezoids."""
    left, right = fpr[:, :-1], fpr[:, 1:]
    width = np.minimum(right, end) - np.minimum(left, end)
    rise = np.diff(tpr, axis=1) * np.nan_to_num(share(width, right - left))
    area: Floats = np.sum(width * (tpr[:, :-1] + rise / 2), axis=1)
    return area


def _counts(probability: ArrayLike, truth: ArrayLike) -> Points:
    """Rim+ and Rim− lesions at or above each distinct probability, the highest first, with 0 before them."""
    given, rim = _checked(probability, truth)
    order = np.argsort(-given, kind="stable")
    last = np.flatnonzero(np.diff(given[order], append=-1.0))
    hits, alarms = (np.cumsum(part[order])[last] for part in (rim, 1 - rim))
    return np.concatenate([[0.0], hits]), np.concatenate([[0.0], alarms])


def _checked(probability: ArrayLike, truth: ArrayLike) -> tuple[Floats, Ints]:
    given, rim = np.asarray(probability, dtype=np.float64), np.asarray(truth, dtype=np.int64)
    if given.ndim != 1 or given.shape != rim.shape or not given.size:
        raise InputError(
            f"probabilities of shape {given.shape}, labels {rim.shape}; expected one of each, and at least one lesion"
        )
    return given, rim
