"""Reading a cohort by its path, and showing how far something is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from oligovox.cohort.bids import read_bids
from oligovox.cohort.manifest import Cohort

Show = Callable[[str], Callable[[int, int, str], None]]
"""Title → a progress callback (done, total, name of the case)."""


def quiet(title: str) -> Callable[[int, int, str], None]:
    """No progress shown."""
    return lambda done, total, name: None


def read_cohort(data: Path | str, *, mask: str | None = "lesion") -> Cohort:
    """A cohort from a BIDS folder (mask None: without labels) or from a table written by `Cohort.save`."""
    data = Path(data)
    return Cohort.load(data) if data.suffix == ".tsv" else read_bids(data, mask=mask)
