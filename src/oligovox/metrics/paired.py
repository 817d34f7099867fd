"""Two arms on the same draws and the same subjects: differences with intervals, tests, and labels saved.

A draw is one choice of labelled subjects; every draw is tested on the same subjects. So draws and subjects are crossed, and both are a
sample: another draw would have chosen other labels, another hospital would have sent other patients. The bootstrap draws both with
replacement, independently, and averages the pairs (draw, subject) that it meets.

| draws left | subjects left | mean | interval |
| --- | --- | --- | --- |
| none | none | NaN | NaN |
| one | any | mean of the pairs | NaN: one draw says nothing about the spread over draws; `bootstrap.paired_difference` holds for that draw |
| any | one | mean of the pairs | NaN, as above |
| more | more | mean of the pairs | percentiles of the resampled means |

A pair counts where both arms have a finite value; each pair weighs the same. Average over training seeds first: a seed is no draw.

The interval is too narrow where draws are few and matter. Share of simulated 95 % intervals that hold the truth, 16 subjects, normal effects of
standard deviation 1 for each pair and for what is named (2000 trials; ours):

| effects of | 3 draws | 5 draws | 8 draws |
| --- | --- | --- | --- |
| draws | 0.80 | 0.88 | 0.92 |
| draws and subjects | 0.85 | 0.91 | 0.94 |
| subjects | 0.96 | 0.96 | 0.95 |

Source: Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1 (2007) 386-411. Drawing subjects anew within each draw, as for nested
data, would count the same test subjects as many times as there are draws, and be too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from itertools import pairwise
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from oligovox.errors import InputError
from oligovox.metrics.bootstrap import Interval

Draw = TypeVar("Draw", bound=Hashable)
Values: TypeAlias = Mapping[str, float | None]
"""Subject → value; None, NaN or infinite where undefined."""

_Table: TypeAlias = NDArray[np.float64]

_DIGITS = 12  # differences are rounded to these decimals before ranking, so that rounding errors break no tie


def mean_over_draws(a: Mapping[Draw, Values], *, seed: int, resamples: int = 10_000, level: float = 0.95) -> Interval:
    """Mean over draws and subjects, with an interval that holds the spread of both.

    Args:
        a: draw → subject → value.
        seed: of the resampling; the same seed gives the same interval, whatever the order of draws and subjects.
        resamples: number of times draws and subjects are drawn with replacement.
        level: share of the resampled means inside the interval, in (0, 1).

    Returns:
        The interval; `n` are the subjects with a value in some draw, `skipped` those without.
    """
    draws, subjects = _sorted(a), _subjects(a.values())
    return _crossed(_table(a, draws, subjects), seed, resamples, level)


def difference_over_draws(
    a: Mapping[Draw, Values], b: Mapping[Draw, Values], *, seed: int, resamples: int = 10_000, level: float = 0.95
) -> Interval:
    """Mean of a − b over the pairs (draw, subject) that both have, with an interval that holds the spread of draws and subjects.

    Args:
        a: draw → subject → value of one arm.
        b: the same of the other; a draw that only one of them has is left out.
        seed: of the resampling; the same seed gives the same interval, whatever the order of draws and subjects.
        resamples: number of times draws and subjects are drawn with replacement.
        level: share of the resampled means inside the interval, in (0, 1).

    Returns:
        The interval; `n` are the subjects with a pair in some draw, `skipped` those without.
    """
    draws, subjects = _sorted(a.keys() & b.keys()), _subjects([*a.values(), *b.values()])
    return _crossed(_table(a, draws, subjects) - _table(b, draws, subjects), seed, resamples, level)


def wilcoxon(a: Values, b: Values) -> float:
    """Two-sided p of the Wilcoxon signed-rank test over the subjects with a finite value in both.

    Zero differences are discarded; 1 where all are zero, NaN where no subject is left. The p-value is exact up to 50 subjects without ties and
    up to 13 with them, else from the normal distribution. Five subjects cannot go below 0.0625, six not below 0.03125. Give one value a
    subject: average over draws first; the test then holds for these draws only.

    Source: Wilcoxon, Individual comparisons by ranking methods, Biometrics Bulletin 1 (1945) 80-83; computed by scipy.
    """
    subjects = _subjects([a, b])
    differences = _row(a, subjects) - _row(b, subjects)
    differences = np.round(differences[np.isfinite(differences)], _DIGITS)
    if not differences.size:
        return math.nan
    changed = differences[differences != 0]
    return float(stats.wilcoxon(changed).pvalue) if changed.size else 1.0


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p of a family of tests: below α means rejected with a family-wise error of at most α.

    Args:
        p: comparison → p in [0, 1]; NaN was not tested, stays NaN and does not count in the family.

    Returns:
        comparison → adjusted p, in the order given.

    Raises:
        InputError: a p outside [0, 1].

    Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979) 65-70.
    """
    for name, value in p.items():
        if not (math.isnan(value) or 0 <= value <= 1):
            raise InputError(
                f"comparison '{name}': p = {value}; expected a number in [0, 1], or NaN where there was no test"
            )
    tested = sorted((name for name in p if not math.isnan(p[name])), key=lambda name: p[name])
    adjusted, highest = dict(p), 0.0
    for rank, name in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * p[name]))
        adjusted[name] = highest
    return adjusted


def labels_needed(curve: Mapping[int, float], score: float) -> float | None:
    """Labels at which a curve first reaches a score, by straight lines over log2(labels).

    Args:
        curve: number of labels → mean score, higher is better; points without a finite score are left out.
        score: the score to reach.

    Returns:
        Labels, between the fewest and the most of the curve. None where the curve never reaches the score, and where it is above it from the
        first point on: how many labels less would do is not known.

    Raises:
        InputError: a number of labels below 1.
    """
    for labels in curve:
        if labels < 1:
            raise InputError(f"a label curve has a point at {labels} labels; expected whole numbers from 1")
    points = [(labels, value) for labels, value in sorted(curve.items()) if math.isfinite(value)]
    if not points or not math.isfinite(score) or points[0][1] > score:
        return None
    if points[0][1] == score:
        return float(points[0][0])
    for (fewer, below), (more, above) in pairwise(points):
        if above >= score:  # below < score here: the first crossing
            share = (score - below) / (above - below)
            return float(2 ** (math.log2(fewer) + share * math.log2(more / fewer)))
    return None


def labels_saved(curve: Mapping[int, float], against: Mapping[int, float]) -> dict[int, float | None]:
    """Labels that an arm saves: what `against` needs to reach the arm's score at n labels, minus n.

    Args:
        curve: number of labels → mean score of the arm, higher is better (turn the sign of distances).
        against: the same of what it is compared with, usually scratch.

    Returns:
        n → labels saved, negative where the arm needs more than `against`; None beyond the range of `against`, see `labels_needed`.
    """
    needed = {labels: labels_needed(against, score) for labels, score in curve.items()}
    return {labels: None if other is None else other - labels for labels, other in needed.items()}


def _crossed(table: _Table, seed: int, resamples: int, level: float) -> Interval:
    """Mean of a table (draws, subjects) with NaN where a pair is undefined, and its interval."""
    known = np.isfinite(table)
    skipped = int((~known.any(axis=0)).sum())
    table, known = (part[known.any(axis=1)][:, known.any(axis=0)] for part in (np.where(known, table, 0), known))
    draws, subjects = table.shape
    if not table.size:
        return Interval(math.nan, math.nan, math.nan, 0, skipped)
    mean = float(table.sum() / known.sum())
    if min(draws, subjects) < 2:
        return Interval(mean, math.nan, math.nan, subjects, skipped)
    rng = np.random.default_rng(seed)
    times_drawn = rng.multinomial(draws, np.full(draws, 1 / draws), resamples)
    times_tested = rng.multinomial(subjects, np.full(subjects, 1 / subjects), resamples)
    total = np.einsum("rs,rs->r", times_drawn @ table, times_tested)
    pairs = np.einsum("rs,rs->r", times_drawn @ known, times_tested)
    means = total[pairs > 0] / pairs[pairs > 0]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), subjects, skipped)


def _table(values: Mapping[Draw, Values], draws: list[Draw], subjects: list[str]) -> _Table:
    rows = [_row(values[draw], subjects) for draw in draws]
    return np.array(rows).reshape(len(draws), len(subjects))


def _row(values: Values, subjects: list[str]) -> _Table:
    given = (values.get(subject) for subject in subjects)
    return np.array([math.nan if value is None else value for value in given], dtype=float)


def _subjects(values: Iterable[Values]) -> list[str]:
    return sorted({subject for row in values for subject in row})


def _sorted(draws: Iterable[Draw]) -> list[Draw]:
    return sorted(draws, key=str)
