"""Splits and label budgets."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oligovox.cohort.manifest import Case, Cohort
from oligovox.cohort.splits import Split, draw_split, load_budgets, nested_budgets, save_budgets
from oligovox.errors import CohortError
from oligovox.files import write_json

people = st.lists(st.text("abcdef0123", min_size=1), min_size=1, max_size=30, unique=True)
seeds = st.integers(-5, 10**9)


@given(people, seeds, st.data())
def test_a_split_takes_everyone_once_whatever_their_order(names: list[str], seed: int, data: st.DataObject) -> None:
    test = data.draw(st.integers(0, len(names) - 1))
    validation = data.draw(st.integers(0, len(names) - 1 - test))
    split = draw_split(names, validation=validation, test=test, seed=seed)
    assert sorted([*split.train, *split.validation, *split.test]) == sorted(names)
    assert (len(split.validation), len(split.test)) == (validation, test)
    assert split == draw_split(data.draw(st.permutations(names)), validation=validation, test=test, seed=seed)


@settings(deadline=None)
@given(people, seeds, st.data())
def test_who_only_trains_is_never_held_out(names: list[str], seed: int, data: st.DataObject) -> None:
    only = data.draw(st.sets(st.sampled_from(names), max_size=len(names) - 1))
    test = data.draw(st.integers(0, len(names) - max(1, len(only))))
    split = draw_split(names, validation=0, test=test, seed=seed, only_train=only)
    assert not only & {*split.test}
    assert sorted([*split.train, *split.test]) == sorted(names)
    free = [name for name in names if name not in only]
    if test < len(free):
        assert split.test == draw_split(free, validation=0, test=test, seed=seed).test, (
            "the others are held out as if alone"
        )


@given(people, seeds)
def test_budgets_are_nested(names: list[str], seed: int) -> None:
    sizes = sorted({1, len(names) // 2 or 1, len(names)}, reverse=True)
    budgets = nested_budgets(names, sizes, seed)
    assert list(budgets) == sorted(sizes)
    largest = budgets[len(names)]
    assert all(budget == largest[:size] for size, budget in budgets.items())
    assert budgets == nested_budgets(names[::-1], sizes, seed)


def test_someone_new_moves_nobody_else() -> None:
    names = [f"{i:02d}" for i in range(20)]
    before, after = (nested_budgets(group, [len(group)], 3)[len(group)] for group in (names, [*names, "new"]))
    assert [person for person in after if person != "new"] == list(before)


def test_seeds_differ_and_every_place_is_as_likely() -> None:
    names = [str(i) for i in range(5)]
    drawn = [draw_split(names, validation=0, test=1, seed=seed).test[0] for seed in range(1000)]
    assert all(150 < drawn.count(name) < 250 for name in names)  # 200 expected, sd 12.6


def test_all_sessions_of_a_person_stay_together() -> None:
    image = {"T1w": Path("x.nii.gz")}
    cases = tuple(Case(subject=f"{i}", session=s, images=image) for i in range(6) for s in "ab")
    cohort = Cohort(cases=cases)
    split = draw_split(cohort.people, validation=1, test=2, seed=0)
    groups = [{case.name for case in cohort.of(group)} for group in (split.train, split.validation, split.test)]
    assert [len(group) for group in groups] == [6, 2, 4]
    assert len(set().union(*groups)) == 12


def test_files_bring_both_back(tmp_path: Path) -> None:
    split = draw_split(list("abcdef"), validation=1, test=2, seed=4)
    split.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == split
    budgets = nested_budgets(split.train, [3, 1], 4)
    save_budgets(tmp_path / "budgets.json", budgets)
    assert load_budgets(tmp_path / "budgets.json") == budgets


def test_impossible_draws_are_refused() -> None:
    with pytest.raises(CohortError, match="'b' is in train and in test"):
        Split(("a", "b"), (), ("b",), 0)
    with pytest.raises(CohortError, match="from 3"):
        draw_split(list("abc"), validation=1, test=2, seed=0)
    with pytest.raises(CohortError, match="'a' is listed twice"):
        draw_split(list("aab"), validation=0, test=1, seed=0)
    with pytest.raises(CohortError, match="budget of 4 from 3"):
        nested_budgets(list("abc"), [1, 4], 0)


@pytest.mark.parametrize("content", [{}, {"train": "abc", "validation": [], "test": [], "seed": 0}, [1]])
def test_a_file_that_is_no_split_is_refused(tmp_path: Path, content: object) -> None:
    write_json(tmp_path / "x.json", content)
    with pytest.raises(CohortError, match=r"x\.json: not a split"):
        Split.load(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"2": ["a"]}, "budget of 2"),
        ({"1": ["a"], "2": ["b", "c"]}, "nested"),
        ({"x": ["a"]}, "not a table"),
        ([], "not a"),
    ],
)
def test_budgets_that_are_none_are_refused(tmp_path: Path, content: object, complaint: str) -> None:
    write_json(tmp_path / "x.json", content)
    with pytest.raises(CohortError, match=complaint):
        load_budgets(tmp_path / "x.json")
