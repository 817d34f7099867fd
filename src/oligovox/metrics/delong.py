"""DeLong's test of two classifiers' ROC areas where lesions come by people: those of one person are alike, and are no independent witnesses.

M Rim+ lesions X, N Rim− lesions Y; person i has m_i and n_i of them. ψ(X, Y) is 1 where X has the higher probability, ½ where both have the same, else
0; of two classifiers ψ is the one's minus the other's, so that all that follows is about their difference.

| symbol | what it is |
| --- | --- |
| V10(X), V01(Y) | structural components: mean of ψ(X, ·) over all Y, of ψ(·, Y) over all X |
| θ | mean of V10 over all X, which is that of V01 over all Y: the area; of two classifiers the difference |
| a_i, b_i | (sum of person i's V10 − m_i θ) / M, (sum of their V01 − n_i θ) / N |
| se² | I10 / (I10 − 1) Σ a_i² + I01 / (I01 − 1) Σ b_i² + 2 I / (I − 1) Σ a_i b_i |
| p | two-sided, of θ / se in the standard normal distribution |

I10, I01 and I are the people with a Rim+ lesion, with a Rim− one, and with any. The last term is that of people who have both; without it a test
takes what one person adds to both classes for independent. Where everybody has one lesion, this is DeLong's test as it is.

| what there is | difference | se, p |
| --- | --- | --- |
| no Rim+ or no Rim− | NaN | NaN |
| fewer than two people with one of them | θ | NaN |
| else, the same order of lesions by both | 0 | 0, 1 |
| else, a difference that is the same for everybody: se = 0 | θ | 0, NaN |

The normal distribution is for many people: p is too small with few. Share of p below 0.05 where both classifiers are equally good, half of the people
have Rim+ lesions and those of one person are alike (12 000 draws of `cohort` in tests/metrics/test_delong.py; ours):

| people | 10 | 20 | 40 | 88 |
| --- | --- | --- | --- | --- |
| this test | 0.11 | 0.08 | 0.06 | 0.06 |
| DeLong's, lesion by lesion | 0.14 | 0.12 | 0.12 | 0.12 |

Source: Obuchowski 1997, Nonparametric analysis of clustered ROC curve data, Biometrics 53:567-578; DeLong, DeLong, Clarke-Pearson 1988, Biometrics
44:837-845 (both from memory; tested against a bootstrap over people).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oligovox.errors import InputError
from oligovox.metrics.bootstrap import defined

_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class AreaTest:
    """A difference of two ROC areas and its test; NaN where undefined.

    Attributes:
        difference: area of the one minus that of the other, in [-1, 1].
        se: its standard error.
        p: two-sided.
    """

    difference: float
    se: float
    p: float

    def as_row(self) -> dict[str, float | None]:
        """Plain values for JSON; None where undefined."""
        return {"difference": defined(self.difference), "se": defined(self.se), "p": defined(self.p)}


def roc_area_test(probability: ArrayLike, against: ArrayLike, truth: ArrayLike, person: Sequence[str]) -> AreaTest:
    """Test whether two classifiers of the same lesions have the same ROC area.

    Args:
        probability: (n,) of a rim by the one; only the order counts.
        against: (n,) by the other.
        truth: (n,) 1 for Rim+, 0 for Rim−.
        person: (n,) whose lesion it is.

    Raises:
        InputError: not one of each for every lesion.
    """
    one, other, rim = np.asarray(probability, float), np.asarray(against, float), np.asarray(truth, np.int64)
    if not (one.ndim == 1 and one.shape == other.shape == rim.shape == (len(person),)):
        raise InputError(
            f"probabilities of shape {one.shape} and {other.shape}, labels {rim.shape}, {len(person)} people; expected one of each for every lesion"
        )
    positives, negatives = int(rim.sum()), int((1 - rim).sum())
    if not positives or not negatives:
        return AreaTest(math.nan, math.nan, math.nan)
    points = _half_points(one, rim) - _half_points(other, rim)
    total = int(points[rim > 0].sum())
    whose = np.unique(np.asarray(person, dtype=str), return_inverse=True)[1]
    has_plus, plus = _by_person(points, rim, whose, total)
    has_minus, minus = _by_person(points, 1 - rim, whose, total)
    people = (int(has_plus.sum()), int(has_minus.sum()), len(has_plus))
    difference = total / (2 * positives * negatives)
    if min(people) < 2:
        return AreaTest(difference, math.nan, math.nan)
    sums = (plus @ plus, minus @ minus, 2 * plus @ minus)
    variance = sum(n / (n - 1) * float(part) for n, part in zip(people, sums, strict=True))
    se = math.sqrt(max(variance, 0.0)) / (2 * positives * negatives)
    return AreaTest(difference, se, _p(difference, se))


def _half_points(chance: NDArray[np.float64], rim: _Ints) -> _Ints:
    """(n,) twice the sum of ψ of each lesion with all of the other class, in whole numbers so that equal is equal."""
    points: _Ints = np.empty(len(rim), np.int64)
    for own, other in ((rim > 0, rim == 0), (rim == 0, rim > 0)):
        theirs = np.sort(chance[other])
        points[own] = sum(np.searchsorted(theirs, chance[own], side) for side in ("left", "right"))
    points[rim == 0] = 2 * int(rim.sum()) - points[rim == 0]
    return points


def _by_person(points: _Ints, own: _Ints, whose: _Ints, total: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Who has lesions of a class, and a_i or b_i of everybody, times 2 M N."""
    count, size = np.bincount(whose, weights=own), int(own.sum())
    return count > 0, (size * np.bincount(whose, weights=points * own) - count * total) / size


def _p(difference: float, se: float) -> float:
    if se == 0:
        return 1.0 if difference == 0 else math.nan
    return math.erfc(abs(difference / se) / math.sqrt(2))
