"""Which layout a folder has, and the cohort in it: every reader is asked, in this order, and the first that fits reads.

| layout | what it is |
| --- | --- |
| bids | BIDS, raw and derivatives |
| nnunet | nnU-Net raw dataset |
| brats | folders of BraTS 2018 to 2024 |
| isbi2015, msseg2016, ljubljana, chaos | challenges and open data of that name |
| series | series that were made of DICOM, with their table |
| datalist | a JSON list of MSD or MONAI |
| table | a CSV or TSV table |
| dicom | DICOM files, to be converted first |
| named | files that are called by their sequence: a guess, so asked last |
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from oligovox.cohort import (
    bids,
    brats,
    chaos,
    datalist,
    dicom,
    isbi2015,
    ljubljana,
    msseg2016,
    named_files,
    nnunet,
    series,
    table,
)  # fmt: skip
from oligovox.cohort.manifest import Cohort
from oligovox.cohort.reading import AS_IT_IS, Asked, Look, entries
from oligovox.errors import CohortError, SettingsError, nearest

_BY_NAME = {".json": datalist.LAYOUT, ".csv": table.LAYOUT, ".tsv": table.LAYOUT}
_TRIED = 20  # folders below that are looked into where the one that was given has no layout


class Reader(Protocol):
    """What a module of a layout has."""

    LAYOUT: str

    def look(self, root: Path) -> Look:
        """What speaks for the layout."""

    def read(self, root: Path, asked: Asked = ...) -> Cohort:
        """The cohort."""


def readers() -> Mapping[str, Reader]:
    """Layout → its module, in the order in which they are asked."""
    modules: tuple[Reader, ...] = (
        *(bids, nnunet, brats, isbi2015, msseg2016, ljubljana, chaos, series, datalist, table, dicom, named_files),
    )
    return {module.LAYOUT: module for module in modules}


def looks(root: Path) -> tuple[Look, ...]:
    """What every reader says about a folder or file, those that see nothing left out.

    Raises:
        CohortError: there is no such folder or file.
    """
    must_exist(root)
    return tuple(look for module in readers().values() if (look := module.look(root)).found)


def detect(root: Path) -> Look:
    """The layout of a folder or file.

    Raises:
        CohortError: it has none that is known; says which it nearly has, what is missing, and whether a folder below it has one.
    """
    must_exist(root)
    seen = []
    for module in readers().values():
        if (look := module.look(root)).fits:
            return look
        seen += [look] if look.found else []
    below = [path for path in entries(root)[:_TRIED] if path.is_dir() and _is_known(path)]
    nearly = "; ".join(
        f"nearly {look.layout} ({', '.join(look.found)}), without {' and '.join(look.missing)}" for look in seen
    )
    todo = (
        f"did you mean {below[0]}?"
        if below
        else "mend the folder, or list its files in a table (subject,FLAIR,T1w,label)"
    )
    raise CohortError(
        f"{root}: no layout that is known: {nearly or 'nothing in it looks like one'}; known are {', '.join(readers())}; {todo}"
    )


def _is_known(folder: Path) -> bool:
    """Whether a folder has a layout without a guess: one below the folder of a person would take visits for people."""
    return any(look.fits and look.layout != named_files.LAYOUT for look in looks(folder))


def read(root: Path, layout: str = "", asked: Asked = AS_IT_IS) -> Cohort:
    """The cohort in a folder or file.

    Args:
        root: the folder, or the file of a list or table.
        layout: name of the layout; '': as it looks.
        asked: how it is to be read.

    Raises:
        SettingsError: no such layout.
        CohortError: it has none that is known, or is not usable.
    """
    known = readers()
    if layout and layout not in known:
        raise SettingsError(f"unknown layout '{layout}'; {nearest(layout, known)}")
    must_exist(root)
    by_name = _BY_NAME.get(root.suffix.lower(), "") if root.is_file() else ""
    return known[layout or by_name or detect(root).layout].read(root, asked)


def must_exist(root: Path) -> None:
    """Refuse a folder or file that is not there.

    Raises:
        CohortError: it is not.
    """
    try:
        found = root.exists()
    except (OSError, ValueError):  # a name too long, or with a NUL in it
        found = False
    if not found:
        raise CohortError(f"{root}: no such folder; expected one with images, or a list or table of them")
