"""Reading a cohort by its path, several as one, one that is still to be simulated; and showing how far something is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from oligovox.cohort import layouts
from oligovox.cohort.annotate import SPARSE
from oligovox.cohort.manifest import Case, Cohort, merge
from oligovox.cohort.modalities import canonical
from oligovox.cohort.reading import Asked, whole_number
from oligovox.errors import SettingsError

Show = Callable[[str], Callable[[int, int, str], None]]
"""Title → a progress callback (done, total, name of the case)."""


def quiet(title: str) -> Callable[[int, int, str], None]:
    """No progress shown."""
    return lambda done, total, name: None


def read_cohort(
    data: Path | str,
    *,
    mask: str | None = "lesion",
    layout: str = "",
    sequences: Sequence[str] = (),
    labels: Sequence[str] = (),
    work: Path | None = None,
) -> Cohort:
    """A cohort from a folder of any layout that is known, or from a list or table of files.

    Args:
        data: the folder or file.
        mask: which label, in the words of the layout; None: labels are not looked at.
        layout: name of the layout; '': as it looks.
        sequences: what the folder calls a sequence whose name is not known, as NAME=FLAIR.
        labels: value of each class in the label files, as hole=2; empty: as the folder says.
        work: folder for images that must become NIfTI files first; None: such a layout is refused.
    """
    asked = Asked(mask=mask, sequences=renamed(sequences), labels=valued(labels), work=work)
    return layouts.read(Path(data), layout, asked)


def renamed(sequences: Sequence[str]) -> dict[str, str]:
    """'MRI=FLAIR' → {"MRI": "FLAIR"}.

    Raises:
        SettingsError: no '=' in it, or no sequence that is known after it.
    """
    found = {}
    for text in sequences:
        name, equals, sequence = text.rpartition("=")
        if not equals or not name:
            raise SettingsError(f"sequence '{text}': expected the name in the folder and what it is, as MRI=FLAIR")
        found[name.strip()] = canonical(sequence)
    return found


def valued(labels: Sequence[str]) -> dict[str, int] | None:
    """'hole=2' → {"hole": 2}; None where there is nothing.

    Raises:
        SettingsError: no '=' in it, or a class or value that another one has.
        CohortError: what comes after it is no value of a voxel.
    """
    found: dict[str, int] = {}
    for text in labels:
        name, _, value = (part.strip() for part in text.rpartition("="))
        if not name:
            raise SettingsError(f"label '{text}': expected a class and its value in the label files, as lesion=1")
        number = whole_number(value, f"label '{text}'", "the value", least=1)
        if name in found or number in found.values():
            raise SettingsError(f"label '{text}': another one has this class or value; give each once")
        found[name] = number
    return found or None


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
