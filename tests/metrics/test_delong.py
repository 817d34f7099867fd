"""DeLong's test by people against DeLong's of a few lines, against people drawn again, and by how often it rejects what is true."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oligovox.errors import InputError
from oligovox.metrics.delong import roc_area_test

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def cohort(rng: np.random.Generator, people: int, share: float = 0.3) -> Arrays:
    """Two equally good classifiers; half of the people have rims, and what a classifier says of one person's lesions is alike."""
    person = np.repeat(np.arange(people), rng.integers(1, 16, people))
    truth = ((rng.random(len(person)) < share) & (rng.random(people) < 0.5)[person]).astype(int)
    common = rng.normal(size=people)[person]
    one, other = (
        truth + 0.7 * common + 0.7 * rng.normal(size=people)[person] + rng.normal(size=len(person)) for _ in range(2)
    )
    return one, other, truth, person.astype(str)


def wins(chance: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(Rim+, Rim−): 1, ½ or 0."""
    apart = chance[truth == 1][:, None] - chance[truth == 0]
    return (apart > 0) + (apart == 0) / 2


def delong(one: np.ndarray, other: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Difference and standard error from the covariances of structural components, as in 1988."""
    both = [wins(chance, truth) for chance in (one, other)]
    plus, minus = np.cov([w.mean(1) for w in both]), np.cov([w.mean(0) for w in both])
    covariance = plus / both[0].shape[0] + minus / both[0].shape[1]
    sign = np.array([1, -1])
    return float(both[0].mean() - both[1].mean()), math.sqrt(max(float(sign @ covariance @ sign), 0))


@given(st.integers(0, 5000), st.sampled_from([3, 10**6]))
def test_with_one_lesion_a_person_it_is_delongs(seed: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.concatenate([[0, 0, 1, 1], rng.integers(0, 2, rng.integers(0, 30))])
    one, other = (rng.integers(0, steps + 1, len(truth)) / steps for _ in range(2))
    found = roc_area_test(one, other, truth, [f"{i}" for i in range(len(truth))])
    assert (found.difference, found.se) == pytest.approx(delong(one, other, truth), abs=1e-9)
    turned = roc_area_test(other, one, truth, [f"{i}" for i in range(len(truth))])
    assert (turned.difference, turned.se) == pytest.approx((-found.difference, found.se))
    if found.se > 1e-9:
        z = abs(found.difference) / found.se
        assert found.p == pytest.approx(1 + math.erf(-z / math.sqrt(2)))


def by_the_equations(one: np.ndarray, other: np.ndarray, truth: np.ndarray, person: np.ndarray) -> float:
    """Variance by sums over people, one by one."""
    psi = wins(one, truth) - wins(other, truth)
    v10, v01, theta = psi.mean(1), psi.mean(0), psi.mean()
    of_plus, of_minus = person[truth == 1], person[truth == 0]
    a = np.array([(v10[of_plus == name] - theta).sum() for name in np.unique(person)]) / len(v10)
    b = np.array([(v01[of_minus == name] - theta).sum() for name in np.unique(person)]) / len(v01)
    i, i10, i01 = (len(np.unique(names)) for names in (person, of_plus, of_minus))
    return i10 / (i10 - 1) * (a @ a) + i01 / (i01 - 1) * (b @ b) + 2 * i / (i - 1) * (a @ b)


@pytest.mark.parametrize("seed", range(3))
def test_the_standard_error_is_that_of_people_drawn_again(seed: int) -> None:
    """Ties too: one classifier says whole numbers. Lesions taken one by one would have a smaller error."""
    rng = np.random.default_rng(seed)
    one, other, truth, person = cohort(rng, 120)
    one = one.round()
    found = roc_area_test(one, other, truth, person)
    assert found.difference == pytest.approx(wins(one, truth).mean() - wins(other, truth).mean())
    assert found.se == pytest.approx(math.sqrt(by_the_equations(one, other, truth, person)))
    lesions = [np.flatnonzero(person == name) for name in np.unique(person)]
    drawn = []
    for _ in range(400):
        rows = np.concatenate([lesions[who] for who in rng.integers(0, 120, 120)])
        drawn.append(wins(one[rows], truth[rows]).mean() - wins(other[rows], truth[rows]).mean())
    assert found.se == pytest.approx(np.std(drawn), rel=0.15)
    assert delong(one, other, truth)[1] < 0.9 * found.se


@pytest.mark.parametrize(("people", "share", "of_lesions"), [(20, 0.08, 0.12), (88, 0.06, 0.12)])
def test_how_often_equally_good_classifiers_are_told_apart(people: int, share: float, of_lesions: float) -> None:
    """The table of the module, with fewer draws."""
    rng, told = np.random.default_rng(people), []
    for _ in range(500):
        one, other, truth, person = cohort(rng, people)
        alone = np.arange(len(person)).astype(str)
        told.append([roc_area_test(one, other, truth, names).p < 0.05 for names in (person, alone)])
    assert np.mean(told, axis=0) == pytest.approx([share, of_lesions], abs=0.035)


def test_a_person_said_twice_tells_nothing_new() -> None:
    one, other, truth, person = cohort(np.random.default_rng(1), 30)
    found = roc_area_test(one, other, truth, person)
    twice = roc_area_test(*(np.tile(part, 2) for part in (one, other, truth)), np.tile(person, 2))
    assert (twice.difference, twice.se, twice.p) == pytest.approx((found.difference, found.se, found.p))


def test_only_the_order_counts() -> None:
    one, other, truth, person = cohort(np.random.default_rng(2), 30)
    back = np.random.default_rng(3).permutation(len(truth))
    assert roc_area_test(np.exp(one), other**3, truth, person) == roc_area_test(one, other, truth, person)
    moved = roc_area_test(one[back], other[back], truth[back], person[back])
    assert moved.p == pytest.approx(roc_area_test(one, other, truth, person).p)


def test_where_it_is_undefined() -> None:
    same = roc_area_test([0.9, 0.1, 0.4, 0.2], [0.8, 0.2, 0.7, 0.3], [1, 0, 1, 0], list("abcd"))
    assert same.as_row() == {"difference": 0, "se": 0, "p": 1}
    one_class = roc_area_test([0.9, 0.1], [0.1, 0.9], [1, 1], list("ab"))
    assert one_class.as_row() == {"difference": None, "se": None, "p": None}
    one_person = roc_area_test([0.9, 0.1, 0.2], [0.1, 0.9, 0.0], [1, 0, 0], list("aab"))  # all Rim+ are of a
    assert one_person.as_row() == {"difference": 0.5, "se": None, "p": None}
    everybody = roc_area_test([0.9, 0.9, 0.1, 0.1], [0.1, 0.1, 0.9, 0.9], [1, 1, 0, 0], list("abab"))
    assert everybody.as_row() == {"difference": 1, "se": 0, "p": None}
    with pytest.raises(InputError, match="3 people; expected one of each for every lesion"):
        roc_area_test([0.9, 0.1], [0.1, 0.9], [1, 0], list("abc"))
