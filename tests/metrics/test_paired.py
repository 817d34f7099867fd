from __future__ import annotations

import math
from itertools import chain, combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from oligovox.errors import InputError
from oligovox.metrics.bootstrap import Interval, bootstrap_mean, paired_difference
from oligovox.metrics.paired import (
    difference_over_draws,
    holm,
    labels_needed,
    labels_saved,
    mean_over_draws,
    wilcoxon,
)

values = st.one_of(st.none(), st.just(math.nan), st.floats(-100, 100))
arms = st.dictionaries(st.integers(0, 4), st.dictionaries(st.sampled_from("uvwxyz"), values, min_size=1), min_size=1)


def as_arm(table):
    """Rows are draws, columns subjects."""
    return {draw: {f"{subject:02}": value for subject, value in enumerate(row)} for draw, row in enumerate(table)}


def every_resample(table):
    """Means of all equally likely choices of draws and subjects, by enumeration."""
    draws, subjects = len(table), len(table[0])
    means = []
    for rows in product(range(draws), repeat=draws):
        for columns in product(range(subjects), repeat=subjects):
            met = [table[row][column] for row in rows for column in columns if table[row][column] is not None]
            means += [sum(met) / len(met)] if met else []
    return np.array(means)


def test_one_pair_of_draws_and_subjects_worked_by_hand():
    """Draws 0 and 1, subjects add nothing: the mean is 0, 0.5 or 1 with shares 1/4, 1/2, 1/4."""
    arm = as_arm([[0, 0], [1, 1]])
    assert mean_over_draws(arm, seed=0) == Interval(0.5, 0.0, 1.0, 2, 0)
    assert mean_over_draws(arm, seed=0, level=0.4) == Interval(0.5, 0.5, 0.5, 2, 0)


@pytest.mark.parametrize(
    "table", [[[0.0, 1, 5], [2, 9, 3]], [[0.3, None, 5], [None, 0.9, None]], [[0, 4], [1, 2], [7, 3]]]
)
def test_the_interval_is_that_of_all_resamples(table):
    means = every_resample(table)
    interval = mean_over_draws(as_arm(table), seed=1, resamples=40_000, level=0.7)
    near = np.sort(means)  # within 1 % of the resamples on both sides
    for end, share in ((interval.low, 0.15), (interval.high, 0.85)):
        assert np.quantile(near, share - 0.01) <= end <= np.quantile(near, share + 0.01)


def test_what_every_draw_shares_is_not_averaged_away():
    """The same subjects are tested after every draw: more draws of equal values tell nothing new about subjects."""
    row = np.random.default_rng(0).normal(size=12)
    of_subjects = bootstrap_mean(row, seed=0)
    interval = mean_over_draws(as_arm([row] * 6), seed=5)
    assert interval.mean == pytest.approx(of_subjects.mean)
    assert interval.high - interval.low == pytest.approx(of_subjects.high - of_subjects.low, rel=0.05)


def test_what_every_subject_shares_is_the_spread_of_draws():
    column = np.random.default_rng(0).normal(size=8)
    of_draws = bootstrap_mean(column, seed=0)
    interval = mean_over_draws(as_arm([[value] * 20 for value in column]), seed=5)
    assert interval.high - interval.low == pytest.approx(of_draws.high - of_draws.low, rel=0.05)


def test_the_interval_holds_the_truth_about_as_often_as_documented():
    """Five draws, sixteen subjects, equal effects: 0.91 in the long run, and far from the 0.84 of nested resampling."""
    rng, inside = np.random.default_rng(0), 0
    for trial in range(400):
        table = rng.normal(size=(5, 1)) + rng.normal(size=(1, 16)) + rng.normal(size=(5, 16))
        interval = mean_over_draws(as_arm(table), seed=trial, resamples=500)
        inside += interval.low <= 0 <= interval.high
    assert 0.875 < inside / 400 < 0.96


@settings(deadline=None)
@given(arms, arms, st.integers(0, 3))
def test_turning_the_difference_turns_the_sign(a, b, seed):
    there = difference_over_draws(a, b, seed=seed, resamples=50)
    back = difference_over_draws(b, a, seed=seed, resamples=50)
    assert (back.n, back.skipped) == (there.n, there.skipped)
    assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low), nan_ok=True)


@settings(deadline=None)
@given(arms, arms, st.randoms(use_true_random=False))
def test_the_order_of_draws_and_subjects_does_not_matter(a, b, random):
    def shuffled(arm):
        rows = {draw: dict(random.sample(list(row.items()), len(row))) for draw, row in arm.items()}
        return dict(random.sample(list(rows.items()), len(rows)))

    first = difference_over_draws(a, b, seed=0, resamples=20)
    second = difference_over_draws(shuffled(a), shuffled(b), seed=0, resamples=20)
    assert str(first) == str(second)
    assert str(mean_over_draws(a, seed=0, resamples=20)) == str(mean_over_draws(shuffled(a), seed=0, resamples=20))


@settings(deadline=None)
@given(arms, arms)
def test_mean_and_counts_by_a_loop(a, b):
    pairs, subjects = [], {subject for row in chain(a.values(), b.values()) for subject in row}
    for draw in a.keys() & b.keys():
        for subject in subjects:
            first, second = a[draw].get(subject), b[draw].get(subject)
            if None not in (first, second) and math.isfinite(first) and math.isfinite(second):
                pairs.append((subject, first - second))
    found = difference_over_draws(a, b, seed=0, resamples=20)
    named = {subject for subject, _ in pairs}
    assert (found.n, found.skipped) == (len(named), len(subjects - named))
    assert found.mean == pytest.approx(np.mean([value for _, value in pairs]) if pairs else math.nan, nan_ok=True)
    if math.isfinite(found.low):
        lowest, highest = min(value for _, value in pairs), max(value for _, value in pairs)
        assert lowest - 1e-9 <= found.low <= found.high <= highest + 1e-9


@pytest.mark.parametrize(
    ("table", "mean", "n", "skipped"),
    [
        ([[]], math.nan, 0, 0),
        ([[None, math.nan], [math.inf, None]], math.nan, 0, 2),
        ([[1, 2, None]], 1.5, 2, 1),
        ([[1, 2], [None, None]], 1.5, 2, 0),
        ([[1, None], [4, None]], 2.5, 1, 1),
    ],
)
def test_one_draw_or_one_subject_has_no_interval(table, mean, n, skipped):
    found = mean_over_draws(as_arm(table), seed=0)
    assert (found.mean, found.n, found.skipped) == (pytest.approx(mean, nan_ok=True), n, skipped)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_arms_without_a_common_draw_have_nothing_to_compare():
    found = difference_over_draws({0: {"01": 1.0, "02": 0.5}}, {1: {"01": 1.0}}, seed=0)
    assert math.isnan(found.mean)
    assert (found.n, found.skipped) == (0, 2)


def test_pairing_removes_what_draws_and_subjects_share():
    b = as_arm(np.random.default_rng(0).normal(size=(4, 6)))
    a = {draw: {subject: value + 0.1 for subject, value in row.items()} for draw, row in b.items()}
    found = difference_over_draws(a, b, seed=0)
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert paired_difference(a[0], b[0], seed=0).mean == pytest.approx(found.mean)


def by_signs(differences):
    """Exact two-sided p: every choice of signs for the mid-ranks of the non-zero differences."""
    ranks = rankdata(np.abs(differences))
    sums = np.array(
        [sum(r for r, up in zip(ranks, ups, strict=True) if up) for ups in product((0, 1), repeat=len(ranks))]
    )
    seen = ranks[np.array(differences) > 0].sum()
    return min(1.0, 2 * min((sums <= seen + 1e-9).mean(), (sums >= seen - 1e-9).mean()))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-6, 6), min_size=1, max_size=8))
def test_wilcoxon_is_exact_for_few_subjects_with_ties_and_zeros(differences):
    a = {f"{i}": 0.1 * value + i for i, value in enumerate(differences)}
    b = {f"{i}": float(i) for i in range(len(differences))}
    changed = [value for value in differences if value]
    assert wilcoxon(a, b) == pytest.approx(by_signs(changed) if changed else 1.0)
    assert wilcoxon(b, a) == pytest.approx(wilcoxon(a, b))


def test_wilcoxon_worked_values():
    """All of n differences on one side: 2 / 2ⁿ."""
    for n, p in ((1, 1.0), (5, 0.0625), (6, 0.03125), (16, 2 / 2**16)):
        assert wilcoxon({str(i): 1.0 + i for i in range(n)}, {str(i): 0.0 for i in range(n)}) == pytest.approx(p)


def test_wilcoxon_leaves_out_who_has_no_pair():
    a = {"01": 0.9, "02": 0.8, "03": None, "04": 0.1, "06": math.nan}
    b = {"02": 0.6, "01": 0.6, "03": 0.5, "05": 0.2, "06": 0.3}
    assert wilcoxon(a, b) == 0.5  # two subjects, both up
    assert math.isnan(wilcoxon({"01": None}, {"01": 0.5}))
    assert math.isnan(wilcoxon({}, {}))


def test_wilcoxon_takes_rounding_errors_for_ties():
    """0.3 - 0.2, 0.2 - 0.1 and 0.1 - 0 differ in the last bit; 0.1 + 0.2 - 0.3 is not a change."""
    a, b = {"1": 0.3, "2": 0.2, "3": 0.0, "4": 0.1 + 0.2}, {"1": 0.2, "2": 0.1, "3": 0.1, "4": 0.3}
    assert wilcoxon(a, b) == pytest.approx(by_signs([1, 1, -1]))


def test_holm_worked_values():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({"a": 0.9, "b": 0.6}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closure_of_bonferroni(ps):
    """Rejected where every family that holds the comparison is rejected by Bonferroni."""
    families = list(chain.from_iterable(combinations(range(len(ps)), size) for size in range(1, len(ps) + 1)))
    adjusted = holm({str(i): p for i, p in enumerate(ps)})
    for i in range(len(ps)):
        worst = max(min(1.0, len(family) * min(ps[j] for j in family)) for family in families if i in family)
        assert adjusted[str(i)] == pytest.approx(worst)


def test_holm_does_not_count_what_was_not_tested():
    found = holm({"a": 0.02, "none": math.nan, "b": 0.5})
    assert list(found) == ["a", "none", "b"]
    assert (found["a"], found["b"]) == (0.04, 0.5)
    assert math.isnan(found["none"])


def test_holm_refuses_what_is_no_probability():
    with pytest.raises(InputError, match=r"comparison 'mae': p = 1\.5; expected a number in \[0, 1\]"):
        holm({"mae": 1.5})


SCRATCH = {1: 0.4, 2: 0.5, 4: 0.6, 8: 0.65}


@pytest.mark.parametrize(
    ("score", "labels"),
    [(0.4, 1), (0.5, 2), (0.55, 2**1.5), (0.625, 2**2.5), (0.65, 8), (0.66, None), (0.39, None), (math.nan, None)],
)
def test_labels_needed_worked_values(score, labels):
    assert labels_needed(SCRATCH, score) == pytest.approx(labels)


def test_labels_saved_worked_values():
    """The arm reaches at 1, 2, 4 labels what scratch reaches at 2, 5.66 and beyond 8; below its first point nothing is known."""
    found = labels_saved({1: 0.5, 2: 0.625, 4: 0.7, 8: 0.3}, SCRATCH)
    assert found == pytest.approx({1: 1.0, 2: 2**2.5 - 2, 4: None, 8: None})


def test_a_worse_arm_saves_less_than_nothing():
    assert labels_saved({4: 0.5}, SCRATCH) == {4: -2.0}


def test_a_curve_with_dips_counts_where_it_first_reaches_the_score():
    assert labels_needed({1: 0.2, 2: 0.6, 4: 0.5, 8: 0.7}, 0.6) == 2
    assert labels_needed({1: 0.5, 2: 0.4, 4: 0.6}, 0.55) == pytest.approx(2**1.75)
    assert labels_needed({1: 0.2, 2: math.nan, 4: 0.4}, 0.3) == pytest.approx(2)
    assert labels_needed({}, 0.3) is None


curves = st.dictionaries(st.integers(1, 64), st.floats(0, 1), min_size=1, max_size=6)


@given(curves, st.floats(0, 1))
def test_labels_needed_against_a_scan(curve, score):
    """On a fine grid of labels, the first that reaches the score lies one step above the crossing."""
    grid = np.unique(np.concatenate([np.geomspace(min(curve), max(curve), 2000), list(curve)]))
    counts = sorted(curve)
    reached = grid[np.interp(np.log2(grid), np.log2(counts), [curve[n] for n in counts]) >= score]
    found = labels_needed(curve, score)
    if curve[counts[0]] > score or not reached.size:
        assert found is None
    else:
        assert found is not None
        assert reached[0] * 0.99 <= found <= reached[0] * (1 + 1e-9)


@given(curves)
def test_a_rising_curve_saves_nothing_against_itself(curve):
    rising = dict(zip(sorted(curve), sorted(set(curve.values())), strict=False))
    assert labels_saved(rising, rising) == pytest.approx(dict.fromkeys(rising, 0), abs=1e-9)


def test_labels_start_at_one():
    with pytest.raises(InputError, match="a label curve has a point at 0 labels; expected whole numbers from 1"):
        labels_needed({0: 0.1, 1: 0.2}, 0.15)
