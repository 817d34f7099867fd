"""Who trains, who validates, who tests, and nested label budgets: drawn on people, never on sessions, and saved once.

Everyone's place in the order is a hash of (seed, name). The draw is therefore the same on every machine and with every
library version, and someone who joins the cohort changes nobody else's place in the order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oligovox.cohort.manifest import Cohort
from oligovox.errors import CohortError
from oligovox.files import read_json, write_json


@dataclass(frozen=True)
class Split:
    """Three groups of people (`case.person`); all sessions of a person are in the same group.

    Attributes:
        train: people the model learns from, sorted.
        validation: people the best checkpoint is chosen on; may be empty.
        test: people nobody looks at before the end; may be empty.
        seed: what the draw was made with.
        apart: people of the folder's own test part who are in no group; nobody learns from them either.

    Raises:
        CohortError: someone is listed twice, or nobody is left to train on.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    seed: int
    apart: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        place: dict[str, str] = {}
        for group in ("train", "validation", "test", "apart"):
            for person in getattr(self, group):
                if person in place:
                    raise CohortError(
                        f"split: '{person}' is in {place[person]} and in {group}; everyone belongs to one group only"
                    )
                place[person] = group
        if not self.train:
            raise CohortError("split: nobody is left to train on; ask for smaller validation and test groups")

    @property
    def held_out(self) -> frozenset[str]:
        """Everyone whom no training sees, neither with a label nor without."""
        return frozenset({*self.test, *self.validation, *self.apart})

    def save(self, path: Path) -> None:
        """Write the split as JSON, atomically."""
        groups = {"train": self.train, "validation": self.validation, "test": self.test}
        groups |= {"apart": self.apart} if self.apart else {}
        write_json(path, {"seed": self.seed, **{name: list(people) for name, people in groups.items()}})

    @classmethod
    def load(cls, path: Path) -> Split:
        """Read what `save` wrote.

        Raises:
            CohortError: missing, malformed, or someone is listed twice.
        """
        content = read_json(path)
        try:
            train, validation, test = (_names(content[group]) for group in ("train", "validation", "test"))
            return cls(train, validation, test, int(content["seed"]), _names(content.get("apart", [])))
        except (KeyError, TypeError, ValueError) as error:
            raise CohortError(
                f"{path}: not a split ({type(error).__name__}: {error}); "
                "expected lists train, validation and test of subject names, and a seed"
            ) from error
        except CohortError as error:
            raise CohortError(f"{path}: {error}") from error


def set_apart(cohort: Cohort) -> tuple[str, ...]:
    """People whom a folder sets apart to be tested (`part=test`: the test part of a challenge), labelled or not, sorted.

    Nobody where no one else has a label: then that part alone was read, and says nothing about who learns.
    """
    apart = {case.person for case in cohort.cases if case.info.get("part") == "test"}
    return tuple(sorted(apart)) if {case.person for case in cohort.labelled} - apart else ()


def first_drawn(people: Iterable[str], count: int, seed: int) -> tuple[str, ...]:
    """At most so many of these people, in the order in which `draw_split` tests them."""
    return _order(people, f"split {seed}")[: max(0, count)]


def draw_split(
    people: Sequence[str], *, validation: int, test: int, seed: int, rest: int = 1, only_train: Collection[str] = ()
) -> Split:
    """Draw a split.

    Args:
        people: everyone, in any order, each once.
        validation: how many people to validate on.
        test: how many people to keep for the end.
        seed: any integer; the same seed gives the same split.
        rest: fewest people left to train on; 0 where those are chosen elsewhere.
        only_train: people among them who are neither tested nor validated on.

    Raises:
        CohortError: too few people, a negative size, or someone listed twice.
    """
    order = _order(people, f"split {seed}")
    held_out = [person for person in order if person not in only_train][: test + validation]
    if validation < 0 or test < 0 or len(held_out) < test + validation or validation + test + rest > len(people):
        raise CohortError(
            f"cannot take {validation} people to validate and {test} to test from {len(people)}; "
            f"sizes must be 0 or more and leave at least {rest} to train on"
        )
    return Split(
        train=tuple(sorted(set(order) - set(held_out))),
        validation=tuple(sorted(held_out[test:])),
        test=tuple(sorted(held_out[:test])),
        seed=seed,
    )


def nested_budgets(people: Sequence[str], sizes: Sequence[int], seed: int) -> dict[int, tuple[str, ...]]:
    """Draw label budgets: size → people whose labels may be used; each smaller budget is the start of each larger one.

    Args:
        people: the labelled people to draw from, in any order, each once.
        sizes: numbers of people, each between 1 and all of them.
        seed: any integer.

    Returns:
        Budgets in ascending order of size.

    Raises:
        CohortError: a size is out of range, or someone is listed twice.
    """
    order = _order(people, f"budget {seed}")
    for size in sizes:
        if not 1 <= size <= len(order):
            raise CohortError(
                f"cannot draw a budget of {size} from {len(order)} labelled people; ask for 1 to {len(order)}"
            )
    return {size: order[:size] for size in sorted(set(sizes))}


def save_budgets(path: Path, budgets: Mapping[int, Sequence[str]]) -> None:
    """Write budgets as JSON, atomically; the order of the names is kept."""
    write_json(path, {str(size): list(people) for size, people in sorted(budgets.items())})


def load_budgets(path: Path) -> dict[int, tuple[str, ...]]:
    """Read what `save_budgets` wrote.

    Raises:
        CohortError: missing or malformed, a budget of another size than it says, or budgets that are not nested.
    """
    content = read_json(path)
    try:
        budgets = dict(sorted((int(size), _names(people)) for size, people in content.items()))
    except (AttributeError, TypeError, ValueError) as error:
        raise CohortError(f"{path}: not a table of budgets ({error}); expected size: [subject names]") from error
    smaller: tuple[str, ...] = ()
    for size, people in budgets.items():
        if len(set(people)) != size:
            raise CohortError(f"{path}: the budget of {size} lists {len(set(people))} different people")
        if not set(smaller) <= set(people):
            raise CohortError(
                f"{path}: the budget of {size} leaves out someone of a smaller one; budgets must be nested"
            )
        smaller = people
    return budgets


def _order(people: Iterable[str], salt: str) -> tuple[str, ...]:
    """Everyone once, in an order that depends on the salt and the own name only."""
    people = list(people)
    if len(set(people)) != len(people):
        twice = next(person for person in people if people.count(person) > 1)
        raise CohortError(f"'{twice}' is listed twice; draw from people, not from sessions")
    return tuple(sorted(people, key=lambda person: hashlib.sha256(f"{salt} {person}".encode()).digest()))


def _names(people: object) -> tuple[str, ...]:
    if not isinstance(people, list) or not all(isinstance(person, str) for person in people):
        raise TypeError("expected a list of subject names")
    return tuple(people)
