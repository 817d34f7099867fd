"""Folds of a cross-validation over people: nobody is in two, and those with what is rare are dealt out evenly.

Everyone's place is a hash of (seed, name), as in `splits`, so that folds are the same on every machine. People with Rim+ lesions are dealt first,
those with most of them first, forth and back; the others fill up the smallest fold. Sizes differ by one at most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from oligovox.errors import CohortError

_DRAWS = 300
"""Of an inner split, of which the most even one is kept."""


@dataclass(frozen=True)
class Fold:
    """Who is in which part; everyone is in one at most.

    Attributes:
        train: whose labels are learned from.
        validation: on whom the checkpoint and the threshold are chosen.
        test: whom nobody looks at before.

    Raises:
        CohortError: somebody is in two of them.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        everyone = [*self.train, *self.validation, *self.test]
        if len(set(everyone)) < len(everyone):
            twice = next(person for person in everyone if everyone.count(person) > 1)
            raise CohortError(f"fold: '{twice}' is in two parts of it; everyone belongs to one only")


def draw_folds(
    positives: Mapping[str, int], *, folds: int, validation: float, seed: int, labels: int | None = None
) -> tuple[Fold, ...]:
    """Outer folds by person, and in each an inner split of the others.

    Args:
        positives: person → number of their Rim+ lesions; everyone who has a graded lesion.
        folds: how many.
        validation: share of a fold's other people that is validated on: of many draws with a Rim+ person on both sides, the one where
            this share of the Rim+ people and of their Rim+ lesions is nearest to that of all people.
        seed: any integer; the same seed gives the same folds.
        labels: of each fold's other people only so many, for training and validation together; nested: a smaller number is the
            start of a larger one, and two people with a Rim+ lesion come first. None: all.

    Raises:
        CohortError: too few people, or too few with a Rim+ lesion.
    """
    rare = [person for person in _order(positives, f"folds {seed}") if positives[person]]
    if not 2 <= folds <= len(positives):
        raise CohortError(
            f"{folds} folds of {len(positives)} people with graded lesions; ask for 2 to {len(positives)}"
        )
    dealt: list[list[str]] = [[] for _ in range(folds)]
    for place, person in enumerate(sorted(rare, key=lambda person: -positives[person])):
        turn, column = divmod(place, folds)
        dealt[column if turn % 2 == 0 else folds - 1 - column].append(person)
    for person in _order(positives, f"folds {seed}"):
        if not positives[person]:
            min(dealt, key=len).append(person)
    result = []
    for number, test in enumerate(dealt):
        others = [person for person in positives if person not in test]
        if sum(positives[person] > 0 for person in others) < 2:
            raise CohortError(
                f"fold {number + 1} of {folds} leaves fewer than 2 people with a Rim+ lesion to train and validate on ({len(rare)} of "
                f"{len(positives)} have one); grade more people, or use fewer folds"
            )
        if labels is not None:
            others = _budget(others, positives, labels, seed)
        train, held_out = _inner(others, positives, validation, f"{seed} {number}")
        result.append(Fold(train, held_out, tuple(sorted(test))))
    return tuple(result)


def _budget(people: Sequence[str], positives: Mapping[str, int], labels: int, seed: int) -> list[str]:
    order = _order(people, f"budget {seed}")
    first = [person for person in order if positives[person]][:2]
    if not 3 <= labels <= len(order):
        raise CohortError(f"labels of {labels} people; expected 3 to {len(order)}, which is what a fold leaves")
    return [*first, *(person for person in order if person not in first)][:labels]


def _inner(people: Sequence[str], positives: Mapping[str, int], share: float, salt: str) -> tuple[tuple[str, ...], ...]:
    count = min(max(1, round(share * len(people))), len(people) - 1)
    draws = [_order(people, f"inner {salt} {draw}") for draw in range(_DRAWS)]
    even = min(draws, key=lambda order: _unevenness(order, count, positives))
    if _unevenness(even, count, positives) == inf:
        raise CohortError(
            f"no draw of {count} of {len(people)} people leaves a Rim+ person on both sides; choose another validation share"
        )
    return tuple(sorted(even[count:])), tuple(sorted(even[:count]))


def _unevenness(people: Sequence[str], count: int, positives: Mapping[str, int]) -> float:
    """How far the shares of Rim+ people and of Rim+ lesions among the first `count` are from the share of all people; inf where one side has none."""
    share, found = count / len(people), 0.0
    for worth in ([positives[person] > 0 for person in people], [positives[person] for person in people]):
        of_part = sum(worth[:count])
        if not 0 < of_part < sum(worth):
            return inf
        found += abs(of_part / sum(worth) - share)
    return found


def _order(people: Iterable[str], salt: str) -> list[str]:
    return sorted(people, key=lambda person: hashlib.sha256(f"{salt} {person}".encode()).digest())
