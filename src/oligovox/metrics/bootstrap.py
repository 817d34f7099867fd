"""Means over subjects with percentile bootstrap intervals. Undefined values (NaN, None, infinite) are skipped and counted.

| subjects left | mean | interval |
| --- | --- | --- |
| none | NaN | NaN |
| one | the value | NaN: one subject says nothing about the spread |
| more | their mean | percentiles of the means of resampled subjects |

The interval is that of the test subjects drawn; it does not hold the spread over training seeds. With few subjects (below about
ten) it is too narrow. Give one value a subject: average over sessions first.

Source: Efron, Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BLOCK = 2_000_000  # values drawn at once: 16 MB


@dataclass(frozen=True)
class Interval:
    """A mean and its interval.

    Attributes:
        mean: over the subjects with a value; NaN where there is none.
        low: lower end, NaN below two subjects.
        high: upper end, NaN below two subjects.
        n: subjects with a value.
        skipped: subjects without one.
    """

    mean: float
    low: float
    high: float
    n: int
    skipped: int

    def as_row(self) -> dict[str, float | int | None]:
        """Plain values for JSON and tables; None where undefined."""
        ends = {"mean": self.mean, "low": self.low, "high": self.high}
        return {name: defined(value) for name, value in ends.items()} | {"n": self.n, "skipped": self.skipped}


def bootstrap_mean(
    values: Iterable[float | None], *, seed: int, resamples: int = 10_000, level: float = 0.95
) -> Interval:
    """Mean of one value per subject, with its interval.

    Args:
        values: one a subject; NaN, infinite or None where the metric is undefined.
        seed: of the resampling; the same seed gives the same interval.
        resamples: number of times the subjects are drawn with replacement.
        level: share of the resampled means inside the interval, in (0, 1).
    """
    given = _numbers(values)
    kept = given[np.isfinite(given)]
    skipped = len(given) - len(kept)
    if len(kept) < 2:
        return Interval(float(kept[0]) if len(kept) else math.nan, math.nan, math.nan, len(kept), skipped)
    low, high = np.quantile(_resampled_means(kept, seed, resamples), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(kept.mean()), float(low), float(high), len(kept), skipped)


def paired_difference(
    a: Mapping[str, float | None],
    b: Mapping[str, float | None],
    *,
    seed: int,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """Mean of a − b over the subjects that both name, with its interval; who is only in one of them is skipped and counted.

    Args:
        a: subject → value.
        b: subject → value.
        seed: of the resampling.
        resamples: number of times the subjects are drawn with replacement.
        level: share of the resampled means inside the interval, in (0, 1).
    """
    everyone = sorted({*a, *b})
    differences = _numbers(a.get(subject) for subject in everyone) - _numbers(b.get(subject) for subject in everyone)
    return bootstrap_mean(differences, seed=seed, resamples=resamples, level=level)


def defined(value: float) -> float | None:
    """The value, or None where it is not a finite number: for JSON and tables."""
    return value if math.isfinite(value) else None


def _numbers(values: Iterable[float | None]) -> NDArray[np.float64]:
    return np.array([math.nan if value is None else value for value in values], dtype=float)


def _resampled_means(values: NDArray[np.float64], seed: int, resamples: int) -> NDArray[np.float64]:
    rng, n = np.random.default_rng(seed), len(values)
    rows = max(1, _BLOCK // n)
    blocks = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    return np.concatenate([values[rng.integers(0, n, (block, n))].mean(axis=1) for block in blocks])
