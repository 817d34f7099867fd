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
for all), mse, and bias = called − true.

Rim+ lesions that the masks miss are in no list of lesions, so in no row of "lesion". Given as `missed`, they count as Rim+ and never called in
"patient_n" and "count", also of patients who have no lesion in the list, and these are drawn with the others. A patient with neither is not counted.

Of people who came more than once each visit is a patient of these tables, for a rim that is seen twice is one rim: `patient` then names visits, and
`people` says whose they are. What is drawn are people, with all their visits.

Source: lesions, "at least one", r: evaluate.py of veronicapignedoli/FRODO (arXiv 2606.16756); mse, partial area and bootstrap over participants:
earlier scripts there; FPR < 0.1 also in Zhang et al. 2022, QSMRim-Net, NeuroImage Clin 34:102979; category of 4: Barquero et al. 2020, RimNet,
NeuroImage Clin 28:102412; standardised partial area: McClish 1989, Medical Decision Making 9:190 (from memory). Which of the two partial areas
QSMRim-Net printed is not known: compare with neither alone.

Deviates: undefined numbers are None (FRODO: 0, but NaN for the areas); 2000 resamples (FRODO: 500); balanced accuracy, bias, prevalence and missed rims are added.
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
from oligovox.metrics.lesion_curves import areas, share
from oligovox.metrics.protocols.result import CaseResult, Number

Least = Annotated[int, Field(ge=1)]

_Floats: TypeAlias = NDArray[np.float64]
_Ints: TypeAlias = NDArray[np.int64]
_Regions: TypeAlias = dict[str, dict[str, _Floats]]

_BLOCK = 200_000  # lesions drawn at once: 1.6 MB an array, which stays in the cache
_DIGITS = 12  # what rounding errors leave beside 0 is 0
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
        rarer: those of them on the side of 0 where fewer are; those at 0 are on both.
    """

    value: float
    low: float
    high: float
    resamples: int
    rarer: int = 0

    @property
    def p(self) -> float:
        """Of a difference: two-sided bootstrap p, 2 (rarer + 1) / (resamples + 1), at most 1; NaN without resamples."""
        return min(1.0, 2 * (self.rarer + 1) / (self.resamples + 1)) if self.resamples else math.nan

    def as_row(self) -> dict[str, float | int | None]:
        """Plain values for JSON and tables; None where undefined."""
        ends = {"value": self.value, "low": self.low, "high": self.high}
        return {name: defined(value) for name, value in ends.items()} | {"resamples": self.resamples}


@dataclass(frozen=True)
class _Cohort:
    """Lesions by falling probability.

    `last`: index of the last lesion of each distinct probability; `person`: index of the patient; counts are per patient, `count` with missed ones;
    `owner`: of each patient, index of whom is drawn.
    """

    truth: _Ints
    called: _Ints
    person: _Ints
    last: _Ints
    count: _Ints
    called_count: _Ints
    owner: _Ints


def score_lesions(
    probability: ArrayLike,
    truth: ArrayLike,
    patient: Sequence[str],
    settings: Settings = DEFAULT,
    *,
    thresholds: ArrayLike | None = None,
    missed: Mapping[str, int] | None = None,
    people: Mapping[str, str] | None = None,
) -> CaseResult:
    """Scores of a cohort of lesions.

    Args:
        probability: (n,) of a rim, in [0, 1].
        truth: (n,) 1 for Rim+, 0 for Rim−.
        patient: (n,) whose lesion it is.
        settings: threshold, partial area, categories.
        thresholds: (n,) in place of `settings.threshold`, where each fold chose its own. The areas pool the folds all the same; for the mean
            over folds, score each alone.
        missed: patient → Rim+ lesions that the masks miss, see above; a patient with 0 is as one who is not named.
        people: patient → person, where patients are visits, see above; who is not named is a person.

    Returns:
        The metrics of the module's tables in the regions "lesion", "patient_n" and "count"; no rows.

    Raises:
        InputError: no lesion, not one number of each for every lesion, a probability outside [0, 1], or fewer than 0 missed.
        LabelError: a truth other than 0 and 1.
    """
    cohort = _cohort(probability, truth, patient, settings, thresholds, missed, people)
    scores = _scores(cohort, _everyone(cohort), settings)
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
    missed: Mapping[str, int] | None = None,
    people: Mapping[str, str] | None = None,
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
        missed: patient → Rim+ lesions that the masks miss.
        people: patient → person, where patients are visits.
        resamples: number of cohorts drawn.
        level: share of the resampled metrics inside the interval, in (0, 1).

    Returns:
        region → metric → estimate.

    Raises:
        InputError: no lesion, not one number of each for every lesion, a probability outside [0, 1], or fewer than 0 missed.
        LabelError: a truth other than 0 and 1.
    """
    cohort = _cohort(probability, truth, patient, settings, thresholds, missed, people)
    whole = _scores(cohort, _everyone(cohort), settings)
    return _estimates(whole, [_scores(cohort, times, settings) for times in _resampled(cohort, seed, resamples)], level)


def lesion_differences(
    probability: ArrayLike,
    against: ArrayLike,
    truth: ArrayLike,
    patient: Sequence[str],
    settings: Settings = DEFAULT,
    *,
    seed: int,
    thresholds: tuple[ArrayLike, ArrayLike] | None = None,
    missed: Mapping[str, int] | None = None,
    people: Mapping[str, str] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
) -> dict[str, dict[str, Estimate]]:
    """Scores of one classifier minus those of another on the same lesions, with intervals of the difference: both see each drawn cohort.

    `Estimate.p` tests such a difference; of ROC areas `metrics.delong` does. Adjust the p of several comparisons, `metrics.paired.holm`.

    Args:
        probability: (n,) of a rim by the one, in [0, 1].
        against: (n,) by the other.
        truth: (n,) 1 for Rim+, 0 for Rim−.
        patient: (n,) whose lesion it is.
        settings: threshold, partial area, categories.
        seed: of the resampling; the same seed gives the same intervals, whatever the order of lesions.
        thresholds: (n,) of each classifier in place of `settings.threshold`.
        missed: patient → Rim+ lesions that the masks miss: the same for both.
        people: patient → person, where patients are visits.
        resamples: number of cohorts drawn.
        level: share of the resampled differences inside the interval, in (0, 1).

    Returns:
        region → metric → estimate of the difference; undefined where one of the two is.

    Raises:
        InputError: as `score_lesions`.
        LabelError: a truth other than 0 and 1.
    """
    both = zip((probability, against), thresholds or (None, None), strict=True)
    pair = [_cohort(chance, truth, patient, settings, limit, missed, people) for chance, limit in both]

    def differences(times: _Ints) -> _Regions:
        one, other = (_scores(cohort, times, settings) for cohort in pair)
        return {region: {m: values - other[region][m] for m, values in found.items()} for region, found in one.items()}

    drawn = [differences(times) for times in _resampled(pair[0], seed, resamples)]
    return _estimates(differences(_everyone(pair[0])), drawn, level)


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
    probability: ArrayLike,
    truth: ArrayLike,
    patient: Sequence[str],
    settings: Settings,
    thresholds: ArrayLike | None,
    missed: Mapping[str, int] | None,
    people: Mapping[str, str] | None,
) -> _Cohort:
    chance, rim = _checked(probability, truth)
    limit = np.asarray(settings.threshold if thresholds is None else thresholds, dtype=float)
    if len(patient) != len(chance) or limit.shape not in ((), chance.shape):
        raise InputError(
            f"{len(chance)} lesions, {len(patient)} patients, thresholds of shape {limit.shape}; expected one of each for every lesion"
        )
    order = np.argsort(-chance, kind="stable")
    lost = _checked_missed(missed or {})
    names, everyone = np.unique(np.array([*patient, *lost], dtype=str), return_inverse=True)
    person = everyone[: len(chance)]
    called = (chance > limit).astype(np.int64)
    return _Cohort(
        truth=rim[order],
        called=called[order],
        person=person[order],
        last=np.flatnonzero(np.diff(chance[order], append=-1.0)),
        count=np.bincount(everyone, weights=np.append(rim, list(lost.values()))).astype(np.int64),
        called_count=np.bincount(person, weights=called, minlength=len(names)).astype(np.int64),
        owner=np.unique([(people or {}).get(name, name) for name in names.tolist()], return_inverse=True)[1],
    )


def _checked_missed(missed: Mapping[str, int]) -> dict[str, int]:
    for name, count in missed.items():
        if count < 0:
            raise InputError(f"patient '{name}' has {count} missed Rim+ lesions; expected a whole number from 0")
    return {name: count for name, count in missed.items() if count}


def _everyone(cohort: _Cohort) -> _Ints:
    """(1, patients): each of them once."""
    return np.ones((1, len(cohort.count)), dtype=np.int64)


def _resampled(cohort: _Cohort, seed: int, resamples: int) -> list[_Ints]:
    """How many times each patient is drawn, in blocks (rows, patients) of bounded size; none below two people."""
    rng, people = np.random.default_rng(seed), int(cohort.owner.max()) + 1
    if people < 2:
        return []
    rows = max(1, _BLOCK // len(cohort.truth))
    blocks = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    return [rng.multinomial(people, np.full(people, 1 / people), block)[:, cohort.owner] for block in blocks]


def _estimates(whole: _Regions, drawn: Sequence[_Regions], level: float) -> dict[str, dict[str, Estimate]]:
    return {
        region: {
            metric: _estimate(float(value[0]), [block[region][metric] for block in drawn], level)
            for metric, value in metrics.items()
        }
        for region, metrics in whole.items()
    }


def _estimate(value: float, drawn: list[_Floats], level: float) -> Estimate:
    values = np.concatenate(drawn) if drawn else np.empty(0)
    kept = values[np.isfinite(values)]
    if not kept.size:
        return Estimate(value, math.nan, math.nan, 0)
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    side = np.sign(np.round(kept, _DIGITS))
    rarer = min(int((side <= 0).sum()), int((side >= 0).sum()))
    return Estimate(value, float(low), float(high), len(kept), rarer)


def _scores(cohort: _Cohort, times: _Ints, settings: Settings) -> _Regions:
    """Every metric for each row of `times` (rows, patients): how often each patient is in the cohort."""
    weight = times[:, cohort.person]
    lesion = areas(cohort.truth, cohort.last, weight, settings.max_fpr)
    lesion |= _confusion(cohort.called > 0, cohort.truth > 0, weight)
    patient = {
        f"patient_{least}": _confusion(cohort.called_count >= least, cohort.count >= least, times)
        for least in settings.categories
    }
    return {"lesion": lesion, **patient, "count": _counts(cohort.called_count, cohort.count, times)}


def _confusion(called: NDArray[np.bool_], truth: NDArray[np.bool_], weight: _Ints) -> dict[str, _Floats]:
    both, positive, predicted = weight @ (called & truth), weight @ truth, weight @ called
    everyone = weight.sum(axis=1)
    neither = everyone - positive - predicted + both
    sensitivity, specificity = share(both, positive), share(neither, everyone - positive)
    return {
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "f1": share(2 * both, positive + predicted),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": share(both, predicted),
        "accuracy": share(both + neither, everyone),
        "prevalence": share(positive, everyone),
    }


def _counts(called: _Ints, truth: _Ints, times: _Ints) -> dict[str, _Floats]:
    n, x, y = times.sum(axis=1), times @ called, times @ truth
    spread = (n * (times @ called**2) - x**2) * (n * (times @ truth**2) - y**2)  # whole numbers: 0 is exact
    return {
        "pearson_r": share(n * (times @ (called * truth)) - x * y, np.sqrt(spread)),
        "mse": share(times @ (called - truth) ** 2, n),
        "bias": share(x - y, n),
    }
