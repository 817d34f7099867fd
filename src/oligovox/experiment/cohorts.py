"""Reading a cohort by its path, several as one, one that is still to be simulated; and showing how far something is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from oligovox.cohort.annotate import SPARSE
from oligovox.cohort.bids import read_bids
from oligovox.cohort.manifest import Case, Cohort, merge

Show = Callable[[str], Callable[[int, int, str], None]]
"""Title → a progress callback (done, total, name of the case)."""


def quiet(title: str) -> Callable[[int, int, str], None]:
    """No progress shown."""
    return lambda done, total, name: None


def read_cohort(data: Path | str, *, mask: str | None = "lesion") -> Cohort:
    """A cohort from a BIDS folder (mask None: without labels) or from a table written by `Cohort.save`."""
    data = Path(data)
    return Cohort.load(data) if data.suffix == ".tsv" else read_bids(data, mask=mask)


def planned(subjects: int, mask: str = "lesion") -> Cohort:
    """A simulated cohort before it is made: names only, enough to draw a split."""
    nowhere, sparse = Path("not-yet"), mask == SPARSE
    cases = [
        Case(subject=f"{n:03d}", images={"FLAIR": nowhere}, label=nowhere, sparse=sparse)
        for n in range(1, subjects + 1)
    ]
    return Cohort(cases=tuple(cases))


def together(cohorts: Mapping[str, Cohort]) -> Cohort:
    """One cohort, in the order given; people carry the name of their cohort where there are several."""
    if len(cohorts) > 1:
        return merge(dict(cohorts))
    ((name, cohort),) = cohorts.items()
    return replace(cohort, name=name)
