"""What a sequence is worth, against sums done by hand and against the definition written out."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oligovox.experiment.sequence_price import expected_loss, loss_rows, name_of, price_rows, subset_rows, subsets

SEQUENCES = ("T1w", "FLAIR", "T2w")
DICE = ("lesion", "dice")


def shown(*names: str) -> frozenset[str]:
    return frozenset(names)


def by_hand(**more: float | None) -> dict:
    """One exam with T1w and FLAIR, Dice 0.9 with both, 0.3 and 0.7 alone; one with FLAIR only."""
    return {
        shown("T1w", "FLAIR"): {"a": {DICE: 0.9}},
        shown("T1w"): {"a": {DICE: 0.3} | more},
        shown("FLAIR"): {"a": {DICE: 0.7}, "b": {DICE: 0.1}},
    }


def test_every_combination_once_the_largest_first() -> None:
    found = subsets(SEQUENCES)
    assert len(found) == len(set(found)) == 7
    assert found[0] == SEQUENCES
    assert [len(s) for s in found] == [3, 2, 2, 2, 1, 1, 1]
    assert name_of({"FLAIR", "T1w"}, SEQUENCES) == "T1w+FLAIR"


def test_a_row_says_what_is_shown_and_to_how_many() -> None:
    rows = subset_rows(by_hand(), SEQUENCES, {"a": "A", "b": "B"}, {"dice": "high"}, seed=0)
    assert [(row["subset"], row["T1w"], row["FLAIR"], row["T2w"], row["n"]) for row in rows] == [
        ("T1w+FLAIR", 1, 1, 0, 1),
        ("T1w", 1, 0, 0, 1),
        ("FLAIR", 0, 1, 0, 2),
    ]
    assert rows[2]["mean"] == pytest.approx(0.4)
    assert {row["best"] for row in rows} == {"high"}


def test_a_price_is_what_is_lost_in_the_same_exam() -> None:
    rows = price_rows(by_hand(), ("T1w", "FLAIR"), {"a": "A", "b": "B"}, {}, seed=0)
    prices = {(row["sequence"], row["hidden_from"]): (row["mean"], row["n"]) for row in rows}
    assert prices["T1w", "the whole exam"] == (pytest.approx(0.2), 1)
    assert prices["FLAIR", "the whole exam"] == (pytest.approx(0.6), 1)
    assert prices["FLAIR", "every subset"] == (pytest.approx(0.6), 1), "whoever has nothing else is not counted"


def test_a_loss_is_against_everything_in_the_exams_that_have_everything() -> None:
    rows = loss_rows(by_hand(), ("T1w", "FLAIR"), {"a": "A", "b": "B"}, {"dice": "high"}, seed=0)
    found = {row["subset"]: (row["mean"], row["n"], row["best"]) for row in rows}
    assert found == {"T1w": (pytest.approx(0.6), 1, "high"), "FLAIR": (pytest.approx(0.2), 1, "high")}
    assert loss_rows(by_hand(), SEQUENCES, {"a": "A", "b": "B"}, {}, seed=0) == [], "no exam has all three"
    assert [row["mean"] for row in expected_loss(rows, {"FLAIR"}, ("T1w", "FLAIR"))] == [pytest.approx(0.2)]
    assert expected_loss(rows, {"T1w", "FLAIR"}, ("T1w", "FLAIR")) == []


def test_an_undefined_score_has_no_price() -> None:
    scores = by_hand()
    scores[shown("T1w")]["a"][DICE] = None
    row = price_rows(scores, ("FLAIR",), {"a": "A", "b": "B"}, {}, seed=0)[0]
    assert (row["mean"], row["n"], row["skipped"]) == (None, 0, 1)


def test_sessions_are_averaged_before_people() -> None:
    scores = {
        shown("T1w", "FLAIR"): {"a1": {DICE: 1.0}, "a2": {DICE: 0.6}, "b": {DICE: 0.5}},
        shown("T1w"): {"a1": {DICE: 0.5}, "a2": {DICE: 0.5}, "b": {DICE: 0.5}},
    }
    row = price_rows(scores, ("FLAIR",), {"a1": "A", "a2": "A", "b": "B"}, {}, seed=0)[0]
    assert (row["n"], row["mean"]) == (2, pytest.approx((0.3 + 0.0) / 2))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_of_an_additive_score_the_price_is_the_weight(seed: int, number: int) -> None:
    """Where each sequence adds its own amount, both ways of hiding give that amount; with interactions they differ."""
    rng, names = np.random.default_rng(seed), tuple("TFPQ"[:number])
    weights = dict(zip(names, rng.uniform(-1, 1, number), strict=True))
    everyone = {case: case for case in "abc"}
    scores = {
        frozenset(chosen): {case: {DICE: sum(weights[name] for name in chosen) + i} for i, case in enumerate(everyone)}
        for size in range(1, number + 1)
        for chosen in combinations(names, size)
    }
    for row in price_rows(scores, names, everyone, {}, seed=0):
        assert row["mean"] == pytest.approx(weights[row["sequence"]], abs=1e-9)
        assert row["n"] == 3


def test_every_subset_averages_all_pairs() -> None:
    rng = np.random.default_rng(0)
    scores = {frozenset(chosen): {"a": {DICE: float(rng.random())}} for chosen in subsets(SEQUENCES)}
    rows = price_rows(scores, ("T1w",), {"a": "A"}, {}, seed=0)
    others = [shown("FLAIR"), shown("T2w"), shown("FLAIR", "T2w")]
    expected = np.mean([scores[rest | {"T1w"}]["a"][DICE] - scores[rest]["a"][DICE] for rest in others])
    assert rows[1]["hidden_from"] == "every subset"
    assert rows[1]["mean"] == pytest.approx(expected)
