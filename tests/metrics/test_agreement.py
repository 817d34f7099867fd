from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oligovox.metrics.agreement import agreement

numbers = st.integers(-500, 500).map(lambda n: n / 10)
tables = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=12)


@settings(max_examples=60, deadline=None)
@given(tables)
def test_equals_the_textbook(pairs):
    found = agreement(pairs)
    measured, reference = zip(*pairs, strict=True)
    differences = [m - r for m, r in pairs]
    bias, spread = statistics.fmean(differences), 1.96 * statistics.stdev(differences)
    assert (found.n, found.bias) == (len(pairs), pytest.approx(bias))
    assert (found.low, found.high) == (pytest.approx(bias - spread), pytest.approx(bias + spread))
    shift = statistics.fmean(measured) - statistics.fmean(reference)
    both = np.cov(measured, reference, bias=True)
    if both[0, 0] + both[1, 1] + shift**2 > 1e-9:
        assert found.concordance == pytest.approx(2 * both[0, 1] / (both[0, 0] + both[1, 1] + shift**2), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(tables, st.randoms())
def test_roles_and_order(pairs, random):
    found, exchanged = agreement(pairs), agreement([(r, m) for m, r in pairs])
    assert exchanged.bias == pytest.approx(-found.bias)
    assert exchanged.low == pytest.approx(-found.high)
    assert exchanged.concordance == pytest.approx(found.concordance, nan_ok=True)
    assert math.isnan(found.concordance) or -1 - 1e-9 <= found.concordance <= 1 + 1e-9
    shuffled = random.sample(pairs, len(pairs))
    assert vars(agreement(shuffled)) == pytest.approx(vars(found), nan_ok=True)


def test_concordance_sees_bias_and_scale_that_a_correlation_does_not():
    reference = [1.0, 2.0, 3.0, 4.0]
    assert agreement(zip(reference, reference, strict=True)).concordance == pytest.approx(1)
    assert agreement((v + 1, v) for v in reference).concordance == pytest.approx(2 * 1.25 / (2.5 + 1))
    assert agreement((2 * v, v) for v in reference).concordance == pytest.approx(2 * 2.5 / (1.25 + 5 + 6.25))


def test_too_few_pairs_are_undefined():
    nothing = agreement([])
    assert nothing.n == 0
    assert math.isnan(nothing.bias)
    one = agreement([(3, 1), (None, 4), (2, math.nan)])
    assert (one.n, one.bias) == (1, 2)
    assert all(math.isnan(value) for value in (one.low, one.high, one.concordance))
    alike = agreement([(2, 2), (2, 2)])
    assert (alike.bias, alike.low, alike.high) == (0, 0, 0)
    assert math.isnan(alike.concordance)
