from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oligovox.metrics.bootstrap import Interval, bootstrap_mean, paired_difference

numbers = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12)


@given(numbers, st.integers(0, 5))
def test_the_interval_lies_within_the_values_and_holds_for_the_seed(values, seed):
    interval = bootstrap_mean(values, seed=seed, resamples=200)
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= interval.low <= interval.high <= max(values) + slack
    assert interval == bootstrap_mean(values, seed=seed, resamples=200)


def test_two_values_have_three_possible_means():
    """Resampling 0 and 1 gives 0, 0.5, 1 with shares 1/4, 1/2, 1/4: the 95 % interval is all of it, the 40 % one the middle."""
    assert bootstrap_mean([0, 1], seed=0) == Interval(0.5, 0.0, 1.0, 2, 0)
    assert bootstrap_mean([0, 1], seed=0, level=0.4) == Interval(0.5, 0.5, 0.5, 2, 0)


def test_close_to_the_normal_interval_for_many_subjects():
    values = np.random.default_rng(1).normal(3, 2, 400)
    half = 1.96 * values.std() / math.sqrt(400)
    interval = bootstrap_mean(values, seed=0)
    assert (interval.low, interval.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05 * half)


def test_blocks_do_not_change_the_draws(monkeypatch):
    values = list(range(10))
    whole = bootstrap_mean(values, seed=3, resamples=100)
    monkeypatch.setattr("oligovox.metrics.bootstrap._BLOCK", 70)
    assert bootstrap_mean(values, seed=3, resamples=100) == whole


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (math.nan, math.nan, math.nan, 0, 0)),
        ([math.nan, None], (math.nan, math.nan, math.nan, 0, 2)),
        ([0.7, math.inf], (0.7, math.nan, math.nan, 1, 1)),
        ([0.5, None, 0.5], (0.5, 0.5, 0.5, 2, 1)),
    ],
)
def test_undefined_values_are_skipped_and_counted(values, expected):
    interval = bootstrap_mean(values, seed=0)
    found = (interval.mean, interval.low, interval.high, interval.n, interval.skipped)
    assert found == pytest.approx(expected, nan_ok=True)


def test_rows_have_none_where_undefined():
    assert bootstrap_mean([0.7], seed=0).as_row() == {"mean": 0.7, "low": None, "high": None, "n": 1, "skipped": 0}


def test_paired_difference_uses_common_subjects_only():
    a = {"01": 0.9, "02": 0.8, "03": math.nan, "04": 0.1}
    b = {"02": 0.6, "01": 0.6, "03": 0.5, "05": 0.2}
    interval = paired_difference(a, b, seed=0)
    assert (interval.n, interval.skipped) == (2, 3)
    assert interval.mean == pytest.approx(0.25)
    assert (interval.low, interval.high) == pytest.approx((0.2, 0.3))


def test_pairing_removes_what_subjects_share():
    """Subjects differ much, the arms by exactly 0.1: the interval of the difference has no width."""
    b = {str(i): i / 10 for i in range(9)}
    interval = paired_difference({s: v + 0.1 for s, v in b.items()}, b, seed=0)
    assert (interval.low, interval.high) == pytest.approx((0.1, 0.1))
