"""A prediction and its reference, and groups of such pairs.

A column of numbers with more than `MOST_CATEGORIES` different values is split at the tertiles of the people; any other column gives one group a
value. Those without a value are a group of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from oligovox.cohort.annotate import says_sparse
from oligovox.cohort.manifest import Case
from oligovox.errors import CohortError, LabelError, nearest

SEQUENCES = "sequences"
"""Column that every case of a cohort has: the sequences of the exam, such as 'FLAIR+T1w'."""

MOST_CATEGORIES = 5
"""A column of numbers with more different values than this is split at its tertiles."""

MISSING = "n/a"
"""Group of those without a value."""


@dataclass(frozen=True)
class Pair:
    """A prediction and the reference it is scored against.

    Attributes:
        case: unique name.
        person: whose sessions are averaged before a mean over people.
        prediction: label map.
        truth: label map on the same grid.
        info: columns by which cases can be grouped, as text.

    Raises:
        LabelError: the reference says of itself that nobody looked at a part of it.
    """

    case: str
    person: str
    prediction: Path
    truth: Path
    info: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if says_sparse(self.truth):
            raise LabelError(refusal(self.case, self.truth))

    @classmethod
    def of(cls, case: Case, prediction: Path) -> Pair:
        """The pair of a labelled case."""
        assert case.label is not None, "only labelled cases can be scored"
        info = {**case.info, SEQUENCES: "+".join(sorted(case.images))}
        return cls(case.name, case.person, prediction, case.label, info)


def refusal(case: str, truth: Path) -> str:
    """Why nothing is scored against a label of a part: what is predicted where nobody looked is neither right nor wrong."""
    return f"{case}: only a part of it is labelled ({truth}), so it cannot be scored; give a full mask, or name other people to score"


def strata(pairs: Iterable[Pair], column: str) -> dict[str, list[str]]:
    """Group → cases, by a column of `info`; ascending where the column holds numbers.

    Raises:
        CohortError: nobody has the column; says the nearest one.
    """
    pairs = list(pairs)
    values = {pair.case: pair.info.get(column, "") for pair in pairs}
    if not any(values.values()):
        known = {name for pair in pairs for name in pair.info}
        hint = nearest(column, known) if known else "these cases have no column at all (participants.tsv)"
        raise CohortError(f"cannot group by '{column}': no case has it; {hint}")
    group = _groups({(pair.person, values[pair.case]) for pair in pairs if values[pair.case]})
    found: dict[str, list[str]] = {name: [] for name in (*dict.fromkeys(group.values()), MISSING)}
    for case, value in values.items():
        found[group.get(value, MISSING)].append(case)
    return {name: cases for name, cases in found.items() if cases}


def _groups(given: Set[tuple[str, str]]) -> dict[str, str]:
    """Value → its group, in the order of the groups, from (person, value)."""
    texts = {value for _, value in given}
    numbers = {text: number for text in texts if (number := _number(text)) is not None}
    if len(numbers) < len(texts):
        return {text: text for text in sorted(texts)}
    ascending = sorted(numbers, key=lambda text: (numbers[text], text))
    if len(set(numbers.values())) <= MOST_CATEGORIES:
        return {text: text for text in ascending}
    low, high = (float(cut) for cut in np.quantile([numbers[text] for _, text in given], [1 / 3, 2 / 3]))
    names = f"≤ {low:g}", f"> {low:g}, ≤ {high:g}", f"> {high:g}"
    return {text: names[int(np.searchsorted((low, high), numbers[text]))] for text in ascending}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
