"""Paramagnetic rim lesions: lesions of known place, each with a probability of a rim (Rim+), scored by lesion and by patient.

A lesion is called Rim+ where its probability is strictly larger than the threshold. Region "lesion":

| metric | definition | undefined (None) |
| --- | --- | --- |
| roc_auc | area under the ROC curve, straight lines through ties, in [0, 1] | no Rim+ or no Rim− |
| partial_auc_raw | the same area up to `max_fpr`, in [0, max_fpr] | as above |
| partial_auc | McClish: ½ (1 + (raw − ½ max_fpr²) / (max_fpr − ½ max_fpr²)): 0.5 by chance, 1 at best | as above |
| pr_auc | average precision Σ (R_k − R_{k−1}) P_k over distinct probabilities; by chance the prevalence | no Rim+ |
| sensitivity, specificity | called / Rim+, not called / Rim− | no Rim+, no Rim− |
| ppv | Rim+ / called | none called |
| balanced_accuracy | mean of sensitivity and specificity | no Rim+ or no Rim− |
| accuracy | right / all | never |
| f1 | 2 TP / (2 TP + FP + FN) | no Rim+ and none called |
| prevalence | Rim+ / all | never |

Region "patient_n", for each n of `categories`: patients with at least n lesions called Rim+ against those with at least n Rim+ lesions; the last
six rows above with patients for lesions. Region "count", Rim+ lesions a patient: pearson_r between called and true (None where either is the same
for all), mse, and bias = called − true. A patient without any lesion is not in the list, so is not counted.

Source: lesions, "at least one", r: evaluate.py of veronicapignedoli/FRODO (arXiv 2606.16756); mse, partial area and bootstrap over participants:
earlier scripts there; FPR < 0.1 also in Zhang et al. 2022, QSMRim-Net, NeuroImage Clin 34:102979; category of 4: Barquero et al. 2020, RimNet,
NeuroImage Clin 28:102412; standardised partial area: McClish 1989, Medical Decision Making 9:190 (from memory). Which of the two partial areas
QSMRim-Net printed is not known: compare with neither alone.

Deviates: undefined numbers are None (FRODO: 0, but NaN for the areas); 2000 resamples (FRODO: 500); balanced accuracy, bias and prevalence are added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from oligovox import settings as base
from oligovox.errors import InputError, LabelError
from oligovox.metrics.bootstrap import defined
from oligovox.metrics.protocols.result import CaseResult, Number

Least = Annotated[int, Field(ge=1)]

_Floats: TypeAlias = NDArray[np.float64]
_Ints: TypeAlias = NDArray[np.int64]
_Regions: TypeAlias = dict[str, dict[str, _Floats]]

_BLOCK = 200_000  # lesions drawn at once: 1.6 MB an array, which stays in the cache
_GRID = np.arange(101) / 100

MAIN: tuple[str, ...] = (
    "roc_auc",
    "partial_auc",
    "partial_auc_raw",
    "pr_auc",
    "balanced_accuracy",
    "f1",
    "sensitivity",
    "specificity",
)

BEST: Mapping[str, Literal["high", "low"]] = {
    **dict.fromkeys((*MAIN, "ppv", "accuracy", "pearson_r"), "high"),
    "mse": "low",
}


class Settings(base.Settings):
    """What is called Rim+, and which patients are alike."""

    threshold: float = Field(0.5, ge=0, le=1, description="a lesion is called Rim+ where its probability is larger")
    max_fpr: float = Field(0.1, gt=0, le=1, description="false positive rate at which the partial area ends")
    categories: tuple[Least, ...] = Field((1, 4), description="Rim+ lesions from which a patient belongs to a category")


DEFAULT = Settings()


@dataclass(frozen=True)
class Estimate:
    """A metric of a cohort, and its interval over patients.

    Attributes:
        value: of the cohort as it is; NaN where undefined.
        low: lower end; NaN below two patients.
        high: upper end; NaN below two patients.
        resamples: cohorts drawn in which the metric is defined; the others are left out.
    """

    value: float
    low: float
    high: float
    resamples: int

    def as_row(self) -> dict[str, float | int | None]:
        """Plain values for JSON and tables; None where undefined."""
        ends = {"value": self.value, "low": self.low, "high": self.high}
        return {name: defined(value) for name, value in ends.items()} | {"resamples": self.resamples}


@dataclass(frozen=True)
class _Cohort:
    """Lesions by falling probability.

    `last`: index of the last lesion of each distinct probability; `person`: index of the patient; counts are per patient.
    """

    truth: _Ints
    called: _Ints
    person: _Ints
    last: _Ints
    count: _Ints
    called_count: _Ints


def score_lesions(
    probability: ArrayLike,
    truth: ArrayLike,
    patient: Sequence[str],
    settings: Settings = DEFAULT,
    *,
    thresholds: ArrayLike | None = None,
) -> CaseResult:
    """Scores of a cohort of lesions.

    Args:
        probability: (n,) of a rim, in [0, 1].
        truth: (n,) 1 for Rim+, 0 for Rim−.
        patient: (n,) whose lesion it is.
        settings: threshold, partial area, categories.
        thresholds: (n,) in place of `settings.threshold`, where each fold chose its own. The areas pool the folds all the same; for the mean
            over folds, score each alone.

    Returns:
        The metrics of the module's tables in the regions "lesion", "patient_n" and "count"; no rows.

    Raises:
        InputError: no lesion, not one number of each for every lesion, or a probability outside [0, 1].
        LabelError: a truth other than 0 and 1.
    """
    cohort = _cohort(probability, truth, patient, settings, thresholds)
    scores = _scores(cohort, np.ones((1, len(cohort.count)), dtype=np.int64), settings)
    plain: dict[str, dict[str, Number]] = {
        region: {metric: defined(float(values[0])) for metric, values in metrics.items()}
        for region, metrics in scores.items()
    }
    return CaseResult(plain)


def lesion_intervals(
    probability: ArrayLike,
    truth: ArrayLike,
    patient: Sequence[str],
    settings: Settings = DEFAULT,
    *,
    seed: int,
    thresholds: ArrayLike | None = None,
    resamples: int = 2000,
    level: float = 0.95,
) -> dict[str, dict[str, Estimate]]:
    """The scores of `score_lesions` with percentile intervals: patients are drawn with replacement, each with all lesions.

    Lesions of one patient are alike, so drawing lesions would be too narrow. With few Rim+ patients the interval is too narrow all the same.

    Args:
        probability: (n,) of a rim, in [0, 1].
        truth: (n,) 1 for Rim+, 0 for Rim−.
        patient: (n,) whose lesion it is.
        settings: threshold, partial area, categories.
        seed: of the resampling; the same seed gives the same intervals, whatever the order of lesions.
        thresholds: (n,) in place of `settings.threshold`, where each fold chose its own.
        resamples: number of cohorts drawn.
        level: share of the resampled metrics inside the interval, in (0, 1).

    Returns:
        region → metric → estimate.

    Raises:
        InputError: no lesion, not one number of each for every lesion, or a probability outside [0, 1].
        LabelError: a truth other than 0 and 1.
    """
    cohort = _cohort(probability, truth, patient, settings, thresholds)
    patients = len(cohort.count)
    whole = _scores(cohort, np.ones((1, patients), dtype=np.int64), settings)
    drawn = [_scores(cohort, times, settings) for times in _resampled(cohort, seed, resamples)] if patients > 1 else []
    return {
        region: {
            metric: _estimate(float(value[0]), [block[region][metric] for block in drawn], level)
            for metric, value in metrics.items()
        }
        for region, metrics in whole.items()
    }


def lesion_differences(
    probability: ArrayLike,
    against: ArrayLike,
    truth: ArrayLike,
    patient: Sequence[str],
    settings: Settings = DEFAULT,
    *,
    seed: int,
    thresholds: tuple[ArrayLike, ArrayLike] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
) -> dict[str, dict[str, Estimate]]:
    """Scores of one classifier minus those of another on the same lesions, with intervals of the difference: both see each drawn cohort.

    In place of DeLong's test, which takes lesions for independent: those of one patient are not.

    Args:
        probability: (n,) of a rim by the one, in [0, 1].
        against: (n,) by the other.
        truth: (n,) 1 for Rim+, 0 for Rim−.
        patient: (n,) whose lesion it is.
        settings: threshold, partial area, categories.
        seed: of the resampling; the same seed gives the same intervals, whatever the order of lesions.
        thresholds: (n,) of each classifier in place of `settings.threshold`.
        resamples: number of cohorts drawn.
        level: share of the resampled differences inside the interval, in (0, 1).

    Returns:
        region → metric → estimate of the difference; undefined where one of the two is.

    Raises:
        InputError: as `score_lesions`.
        LabelError: a truth other than 0 and 1.
    """
    limits = thresholds or (None, None)
    pair = [
        _cohort(chance, truth, patient, settings, limit)
        for chance, limit in zip((probability, against), limits, strict=True)
    ]
    patients = len(pair[0].count)

    def differences(times: _Ints) -> _Regions:
        one, other = (_scores(cohort, times, settings) for cohort in pair)
        return {region: {m: values - other[region][m] for m, values in found.items()} for region, found in one.items()}

    whole = differences(np.ones((1, patients), dtype=np.int64))
    drawn = [differences(times) for times in _resampled(pair[0], seed, resamples)] if patients > 1 else []
    return {
        region: {
            metric: _estimate(float(value[0]), [block[region][metric] for block in drawn], level)
            for metric, value in metrics.items()
        }
        for region, metrics in whole.items()
    }


def best_threshold(probability: ArrayLike, truth: ArrayLike) -> float:
    """The threshold with the highest F1 of lesions among 0, 0.01, …, 1; the lowest of equals. Choose it on validation lesions only.

    Args:
        probability: (n,) of a rim, in [0, 1].
        truth: (n,) 1 for Rim+, 0 for Rim−.

    Raises:
        InputError: as `score_lesions`.
        LabelError: a truth other than 0 and 1, or no Rim+ lesion.

    Source: evaluate.py of veronicapignedoli/FRODO; deviates where no lesion is Rim+ (0 there, which calls every lesion).
    """
    chance, rim = _checked(probability, truth)
    if not rim.any():
        raise LabelError("no Rim+ lesion among those given; choose the threshold on validation patients with one")
    called = chance > _GRID[:, None]
    common = (called & (rim > 0)).sum(axis=1)
    return float(_GRID[np.argmax(2 * common / (called.sum(axis=1) + rim.sum()))])


def _checked(probability: ArrayLike, truth: ArrayLike) -> tuple[_Floats, _Ints]:
    chance, rim = np.asarray(probability, dtype=float), np.asarray(truth)
    if chance.ndim != 1 or chance.shape != rim.shape or not chance.size:
        raise InputError(
            f"probabilities of shape {chance.shape}, labels {rim.shape}; expected one of each for every lesion, and at least one lesion"
        )
    wrong = chance[~((chance >= 0) & (chance <= 1))]
    if wrong.size:
        raise InputError(f"a lesion has probability {wrong[0]}; expected numbers in [0, 1]")
    unknown = rim[~np.isin(rim, (0, 1))]
    if unknown.size:
        raise LabelError(
            f"a lesion has label {unknown[0]!s}; expected 1 (Rim+) or 0 (Rim−), decide uncertain lesions first"
        )
    return chance, rim.astype(np.int64)


def _cohort(
    probability: ArrayLike, truth: ArrayLike, patient: Sequence[str], settings: Settings, thresholds: ArrayLike | None
) -> _Cohort:
    chance, rim = _checked(probability, truth)
    limit = np.asarray(settings.threshold if thresholds is None else thresholds, dtype=float)
    if len(patient) != len(chance) or limit.shape not in ((), chance.shape):
        raise InputError(
            f"{len(chance)} lesions, {len(patient)} patients, thresholds of shape {limit.shape}; expected one of each for every lesion"
        )
    order = np.argsort(-chance, kind="stable")
    names, person = np.unique(np.asarray(patient, dtype=str), return_inverse=True)
    called = (chance > limit).astype(np.int64)
    return _Cohort(
        truth=rim[order],
        called=called[order],
        person=person[order],
        last=np.flatnonzero(np.diff(chance[order], append=-1.0)),
        count=np.bincount(person, weights=rim, minlength=len(names)).astype(np.int64),
        called_count=np.bincount(person, weights=called, minlength=len(names)).astype(np.int64),
    )


def _resampled(cohort: _Cohort, seed: int, resamples: int) -> list[_Ints]:
    """How many times each patient is drawn, in blocks (rows, patients) of bounded size."""
    rng, patients = np.random.default_rng(seed), len(cohort.count)
    rows = max(1, _BLOCK // len(cohort.truth))
    blocks = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    return [rng.multinomial(patients, np.full(patients, 1 / patients), block) for block in blocks]


def _estimate(value: float, drawn: list[_Floats], level: float) -> Estimate:
    values = np.concatenate(drawn) if drawn else np.empty(0)
    kept = values[np.isfinite(values)]
    if not kept.size:
        return Estimate(value, math.nan, math.nan, 0)
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), len(kept))


def _scores(cohort: _Cohort, times: _Ints, settings: Settings) -> _Regions:
    """Every metric for each row of `times` (rows, patients): how often each patient is in the cohort."""
    weight = times[:, cohort.person]
    lesion = _areas(cohort, weight, settings.max_fpr) | _confusion(cohort.called > 0, cohort.truth > 0, weight)
    patient = {
        f"patient_{least}": _confusion(cohort.called_count >= least, cohort.count >= least, times)
        for least in settings.categories
    }
    return {"lesion": lesion, **patient, "count": _counts(cohort.called_count, cohort.count, times)}


def _areas(cohort: _Cohort, weight: _Ints, max_fpr: float) -> dict[str, _Floats]:
    hits = np.cumsum(weight * cohort.truth, axis=1)[:, cohort.last]
    alarms = np.cumsum(weight * (1 - cohort.truth), axis=1)[:, cohort.last]
    start = np.zeros((len(weight), 1), dtype=np.int64)
    hits, alarms = np.hstack([start, hits]), np.hstack([start, alarms])
    tpr, fpr = _share(hits, hits[:, -1:]), _share(alarms, alarms[:, -1:])
    raw, chance = _area(fpr, tpr, max_fpr), max_fpr**2 / 2
    precision = np.nan_to_num(_share(hits, hits + alarms))
    return {
        "roc_auc": _area(fpr, tpr, 1.0),
        "partial_auc": (1 + (raw - chance) / (max_fpr - chance)) / 2,
        "partial_auc_raw": raw,
        "pr_auc": np.sum(np.diff(tpr, axis=1) * precision[:, 1:], axis=1),
    }


def _area(fpr: _Floats, tpr: _Floats, end: float) -> _Floats:
    """Area under each row's curve for a false positive rate from 0 to `end`, by trapezoids."""
    left, right = fpr[:, :-1], fpr[:, 1:]
    width = np.minimum(right, end) - np.minimum(left, end)
    rise = np.diff(tpr, axis=1) * np.nan_to_num(_share(width, right - left))
    area: _Floats = np.sum(width * (tpr[:, :-1] + rise / 2), axis=1)
    return area


def _confusion(called: NDArray[np.bool_], truth: NDArray[np.bool_], weight: _Ints) -> dict[str, _Floats]:
    both, positive, predicted = weight @ (called & truth), weight @ truth, weight @ called
    everyone = weight.sum(axis=1)
    neither = everyone - positive - predicted + both
    sensitivity, specificity = _share(both, positive), _share(neither, everyone - positive)
    return {
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "f1": _share(2 * both, positive + predicted),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": _share(both, predicted),
        "accuracy": _share(both + neither, everyone),
        "prevalence": _share(positive, everyone),
    }


def _counts(called: _Ints, truth: _Ints, times: _Ints) -> dict[str, _Floats]:
    n, x, y = times.sum(axis=1), times @ called, times @ truth
    spread = (n * (times @ called**2) - x**2) * (n * (times @ truth**2) - y**2)  # whole numbers: 0 is exact
    return {
        "pearson_r": _share(n * (times @ (called * truth)) - x * y, np.sqrt(spread)),
        "mse": _share(times @ (called - truth) ** 2, n),
        "bias": _share(x - y, n),
    }


def _share(part: NDArray[np.number], whole: NDArray[np.number]) -> _Floats:
    """part / whole, NaN where whole is 0."""
    share: _Floats = np.full(part.shape, math.nan)
    np.divide(part, whole, out=share, where=np.broadcast_to(whole > 0, part.shape))
    return share
