"""A plain table (CSV or TSV, with ',', ';' or tabs) that names the files of each exam; and the tables that `Cohort.save` writes.

    subject,session,T1w,FLAIR,label,brain,age
    p01,1,p01/t1.nii.gz,p01/flair.nii.gz,p01/mask.nii.gz,,44

Columns that are called as a sequence hold images, FLAIR_run-2 a further acquisition of FLAIR; an empty field, n/a or nan means that there is none. `label` and `brain` hold masks. All other
columns are kept as what is known about the person. Paths are relative to the table; those that lead elsewhere are read, and said.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from oligovox.cohort.annotate import says_sparse
from oligovox.cohort.manifest import Case, Cohort
from oligovox.cohort.modalities import channel
from oligovox.cohort.reading import (
    AS_IT_IS,
    OWN,
    Asked,
    Look,
    entries,
    existing,
    is_sequence,
    outside,
    plain_names,
    the_only,
)
from oligovox.errors import CohortError, SettingsError
from oligovox.files import read_json

_log = logging.getLogger(__name__)

LAYOUT = "table"
_SUFFIXES = (".csv", ".tsv")
_SUBJECT = (
    "subject",
    "participant_id",
    "subjectid",
    "subject_id",
    "patient",
    "patientid",
    "patient_id",
    "case",
    "case_id",
    "id",
)
_SESSION = ("session", "session_id", "visit", "timepoint")
_LABEL = ("label", "mask", "seg", "segmentation", "lesion")
_BRAIN = ("brain", "brain_mask", "brainmask")
_NONE = ("", "n/a", "na", "nan", "none", "null")


def look(root: Path) -> Look:
    """A table with a column of subjects and at least one of a sequence: the one that is given, or the only one in the folder.

    Raises:
        CohortError: the file that is given cannot be read as a table.
    """
    if root.is_file() and root.suffix.lower() not in _SUFFIXES:
        return Look(LAYOUT)
    files = [root] if root.is_file() else [p for p in entries(root) if p.suffix.lower() in _SUFFIXES and p.is_file()]
    seen = [(file, *_columns(file)) for file in files]
    fits = [(file, subject, images) for file, subject, images in seen if subject and images]
    if len(fits) > 1:
        return Look(
            LAYOUT,
            (f"tables {', '.join(file.name for file, _, _ in fits)}",),
            ("a choice: give the path of one of them",),
        )
    if fits:
        file, subject, images = fits[0]
        return Look(LAYOUT, (f"{file.name} has the columns {subject} and {', '.join(images)}",))
    for file, subject, images in seen if root.is_file() or len(files) == 1 else ():
        try:
            _rows(file, limit=1)
        except CohortError as error:
            if root.is_file():
                raise
            return Look(LAYOUT, (f"a table {file.name}",), (f"a table that can be read ({error})",))
        lacking = [] if subject else ["a column subject"]
        return Look(
            LAYOUT,
            (f"a table {file.name}",),
            (*lacking, *([] if images else ["a column called as a sequence, such as FLAIR"])),
        )
    return Look(LAYOUT)


def read(root: Path, asked: Asked = AS_IT_IS) -> Cohort:
    """Read a table.

    Args:
        root: the table, or the folder that holds it and no other.
        asked: mask: 'lesion' for the column label (also mask, seg, segmentation), or the name of another column.

    Raises:
        CohortError: the table cannot be understood, names the same exam twice or two files of one sequence, or a file is not there.
    """
    file = root if root.is_file() else _only_table(root)
    if is_own(file):
        own = Cohort.load(file)
        return replace(own, labels=asked.labels, regions={}) if asked.labels else own
    header, rows = _rows(file)
    subject, session, brain = (_first(header, names) for names in (_SUBJECT, _SESSION, _BRAIN))
    label = _first(header, _LABEL) if asked.mask in (None, OWN) else next((n for n in header if n == asked.mask), None)
    images = {name: asked.sequence(name, file) for name in header if asked.is_sequence(name)}
    runs = _runs(header, set(images.values()))
    if subject is None or not images or (label is None and asked.mask not in (None, OWN)):
        what = (
            "a column subject"
            if subject is None
            else "a column called as a sequence"
            if not images
            else f"a column {asked.mask}"
        )
        raise CohortError(
            f"{file}: has the columns {', '.join(header)}, expected {what}; rename one, or say --sequence COLUMN=FLAIR"
        )
    used = {subject, session, label, brain, *images, *runs}
    people = plain_names((row[subject] for _, row in rows), file)
    cases = []
    for number, row in rows:
        where = f"{file}: line {number}"
        files = {
            name: existing(file.parent, row[name], where)
            for name in (*images, *runs, label, brain)
            if name and row.get(name)
        }
        mask = files.get(label) if label and asked.mask else None
        found = _by_sequence({name: files[name] for name in images if name in files}, images, where)
        if not row[subject] or not found:
            raise CohortError(
                f"{where}: names no {'subject' if not row[subject] else 'image'}; fill it in, or take the line out"
            )
        visit = row[session] if session else ""
        cases.append(
            Case(
                subject=people[row[subject]].removeprefix("sub-"),
                session=plain_names([visit], where)[visit].removeprefix("ses-") if visit else "",
                images=found, repeats={s: tuple(files[n] for n, of in runs.items() if of == s and n in files) for s in found}, label=mask, sparse=mask is not None and says_sparse(mask),
                brain=files.get(brain) if brain else None,
                info={key: value for key, value in row.items() if key not in used and value},
            )
        )  # fmt: skip
    listed = [path for case in cases for path in (*case.images.values(), case.label) if path]
    if elsewhere := outside(file.parent, listed):
        _log.warning(
            "%s: %d of %d files lie elsewhere, first %s; they are only read",
            file,
            len(elsewhere),
            len(listed),
            elsewhere[0],
        )
    return Cohort(cases=tuple(cases), labels=asked.labels or {"lesion": 1}, name=file.stem)


def _only_table(root: Path) -> Path:
    """The table in a folder that holds one and no other."""
    tables = [path for path in entries(root) if all(_columns(path))]
    return the_only(tables, root, "table", "one with a column subject and one called as a sequence")


def _by_sequence(files: Mapping[str, Path], images: Mapping[str, str], where: str) -> dict[str, Path]:
    """Sequence → file of one line, from column → file and column → sequence."""
    column: dict[str, str] = {}
    for name in files:
        if (first := column.setdefault(images[name], name)) != name:
            raise CohortError(f"{where}: {first} and {name} are both {images[name]}; keep one of each sequence")
    return {sequence: files[name] for sequence, name in column.items()}


def _runs(header: Sequence[str], images: Collection[str]) -> dict[str, str]:
    """Column → the sequence that it holds a further acquisition of (FLAIR_run-2), in the order of their numbers; of sequences that have a column."""
    found: dict[str, tuple[int, str]] = {}
    for name in header:
        with suppress(SettingsError):
            sequence, _, number = channel(name).partition("_run-")
            if number and sequence in images:
                found[name] = int(number), sequence
    return {name: found[name][1] for name in sorted(found, key=lambda name: found[name][0])}


def is_own(file: Path) -> bool:
    """Whether `Cohort.save` wrote a table: it has a sidecar that says so."""
    sidecar = file.with_suffix(".json")
    if file.suffix != ".tsv" or not sidecar.is_file():
        return False
    try:
        content = read_json(sidecar)
    except CohortError:
        return False
    return isinstance(content, dict) and {"Labels", "Modalities", "Info"} <= set(content)


def _columns(file: Path) -> tuple[str, list[str]]:
    """(column of subjects, columns of sequences); empty where the file is no table."""
    if file.suffix.lower() not in _SUFFIXES or not file.is_file():
        return "", []
    try:
        header, _ = _rows(file, limit=1)
    except CohortError:
        return "", []
    return _first(header, _SUBJECT) or "", [name for name in header if is_sequence(name)]


def _first(header: Sequence[str], names: Sequence[str]) -> str | None:
    """The column that is called one of these, whatever its capital letters."""
    lower = {name.lower(): name for name in reversed(header)}
    return next((lower[name] for name in names if name in lower), None)


_Rows = list[tuple[int, dict[str, str]]]
"""(number of the line, column → field); '' where there is none."""


def _rows(file: Path, limit: int | None = None) -> tuple[list[str], _Rows]:
    """(header, rows), by the separator that the header has most of; of the rows only so many, where a limit is given."""
    lines: list[tuple[int, list[str]]] = []
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            first = text.readline()
            text.seek(0)
            reader = csv.reader(text, delimiter=max("\t;,", key=first.count))
            for fields in reader:
                if line := [field.strip() for field in fields] if any(map(str.strip, fields)) else []:
                    lines.append((reader.line_num, line))
                if limit is not None and len(lines) > limit:
                    break
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CohortError(
            f"{file}: cannot be read as a table ({error}); expected CSV or TSV in UTF-8 (Excel: save as 'CSV UTF-8')"
        ) from error
    if not lines:
        raise CohortError(f"{file}: the table is empty; expected a header line")
    (_, header), *body = lines
    if twice := [name for name in header if header.count(name) > 1]:
        raise CohortError(f"{file}: has the column '{twice[0]}' twice; rename one")
    for number, line in body:
        if len(line) != len(header):
            raise CohortError(f"{file}: line {number} has {len(line)} fields, expected {len(header)} as in the header")
    if not body and limit is None:
        raise CohortError(f"{file}: has a header and no line; expected one for each exam")
    return header, [
        (n, dict(zip(header, ("" if v.lower() in _NONE else v for v in line), strict=True))) for n, line in body
    ]
