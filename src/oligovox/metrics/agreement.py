"""Agreement of a measured number with its reference over a cohort: volumes, lesion counts.

| quantity | definition | undefined (NaN) |
| --- | --- | --- |
| bias | mean of measured − reference | no pair |
| limits | bias ± 1.96 standard deviations of the differences (n − 1) | below two pairs |
| concordance | 2·cov / (var + var + bias²), all with n | below two pairs, or all numbers alike |

A correlation is blind to bias and scale; concordance is 1 only where every pair agrees. Both depend on the range of the cohort.

Source: limits: Bland, Altman 1986, Lancet 327:307; concordance: Lin 1989, Biometrics 45:255 (both from memory).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_LIMIT = 1.96  # standard deviations that hold 95 % of a normal distribution


@dataclass(frozen=True)
class Agreement:
    """How far measured numbers lie from their reference, in the unit of the numbers.

    Attributes:
        n: pairs with two finite numbers.
        bias: mean of measured − reference.
        low: lower limit of agreement.
        high: upper limit of agreement.
        concordance: Lin's coefficient, in [-1, 1].
    """

    n: int
    bias: float
    low: float
    high: float
    concordance: float


def agreement(pairs: Iterable[tuple[float | None, float | None]]) -> Agreement:
    """Agreement of (measured, reference) pairs, one a person; pairs with None or NaN are left out."""
    table = np.array([[math.nan if v is None else v for v in pair] for pair in pairs], dtype=float).reshape(-1, 2)
    measured, reference = table[np.isfinite(table).all(axis=1)].T
    n = len(measured)
    if n < 2:
        return Agreement(n, float(measured[0] - reference[0]) if n else math.nan, math.nan, math.nan, math.nan)
    difference = measured - reference
    bias, spread = float(difference.mean()), _LIMIT * float(difference.std(ddof=1))
    apart = float(measured.var() + reference.var() + bias**2)
    together = 2 * float(np.mean((measured - measured.mean()) * (reference - reference.mean())))
    return Agreement(n, bias, bias - spread, bias + spread, together / apart if apart else math.nan)
