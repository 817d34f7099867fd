"""Grades of lesions: who says which lesion has a paramagnetic rim, and which lesion is meant.

Three ways to say it, each a file of one exam (the table may hold a whole cohort, with the columns participant_id or subject, and session):

| file | a lesion gets |
| --- | --- |
| label map such as `desc-rims_dseg` | Rim+ where at least `rim_share` of its voxels have the value `rim_value`, unknown where all are 0 (nobody drew it), else Rim− |
| table with a numbered map beside it, as `oligovox simulate rim` writes them | the grades of the number it shares most voxels with, and of those that share most with it: confluent lesions have several. Two that share less than `least_shared` of the smaller one are strangers |
| table with positions (x, y, z in mm, RAS) | the grades of the rows whose nearest lesion it is, within `match_mm` |

Columns are `rim` or `grade`, `id` (or lesion, number), `x_mm`, `y_mm`, `z_mm` (or x, y, z) and, if there is one, `uncertain`. A grade is 1, 0, rim+, rim-,
or empty; a question mark after it, or alone, makes it uncertain. Where several rows meet on one lesion, a certain Rim+ wins, then an uncertain
grade, then Rim−.

Source: the release of FRODO (arXiv 2606.16756; earlier scripts) takes '?' as Rim−. Ours: unknown, unless `uncertain` says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage
from scipy.spatial import cKDTree

from oligovox.errors import LabelError
from oligovox.files import read_tsv
from oligovox.prepare.lesion_masks import Numbers
from oligovox.settings import Settings

UNKNOWN = -1
"""A grade that nobody gave."""

_GRADES = {"1": 1, "rim+": 1, "+": 1, "yes": 1, "0": 0, "rim-": 0, "rim−": 0, "-": 0, "no": 0, "": UNKNOWN}
_NAMES: Mapping[str, tuple[str, ...]] = {
    "person": ("participant_id", "subject"),
    "session": ("session", "session_id"),
    "grade": ("rim", "grade"),
    "id": ("id", "lesion", "number"),
    "x": ("x_mm", "x"),
    "y": ("y_mm", "y"),
    "z": ("z_mm", "z"),
}


class GradeRule(Settings):
    """How grades become 1, 0 or -1."""

    uncertain: Literal["unknown", "negative", "as graded"] = Field(
        "unknown", description="a grade with '?': not used, taken as Rim− (the release), or taken as it stands"
    )
    match_mm: float = Field(3.0, ge=0, description="a position in a table may lie so far from its lesion, mm")
    least_shared: float = Field(
        0.1, ge=0, le=1, description="a lesion and a number of a map belong together from this share of the smaller one"
    )
    rim_value: int = Field(2, ge=1, description="value of Rim+ lesions, or of rims, in a label map")
    rim_share: float = Field(
        0.1, gt=0, le=1, description="share of a lesion's voxels with that value from which it is Rim+"
    )


@dataclass(frozen=True)
class Graded:
    """One row of a table: number and position as far as they are known, grade 1, 0 or -1, and whether it is in doubt."""

    number: int | None
    position_mm: tuple[float, float, float] | None
    grade: int
    uncertain: bool


@dataclass(frozen=True)
class Grades:
    """Of the lesions of one exam, by number from 1.

    Attributes:
        grade: (n,) 1 Rim+, 0 Rim−, -1 unknown.
        uncertain: (n,) whether somebody doubted.
        unmatched: graded rows, or parts of a map, that no lesion was found for.
        missed: those of them that are Rim+.
    """

    grade: NDArray[np.int8]
    uncertain: NDArray[np.bool_]
    unmatched: int = 0
    missed: int = 0

    @classmethod
    def none(cls, lesions: int) -> Grades:
        """Nobody graded them."""
        return cls(np.full(lesions, UNKNOWN, np.int8), np.zeros(lesions, bool))


def read_grades(table: Path, subject: str, session: str = "") -> tuple[Graded, ...]:
    """The rows of one exam; all rows where the table has no column for people. A row or exam without a session is of any.

    Raises:
        CohortError: the table cannot be read.
        LabelError: no column of grades, neither numbers nor positions, a grade that is none, or several visits for one exam without a session.
    """
    rows = read_tsv(table)
    columns = _columns(rows)
    if rows and columns["grade"] is None:
        raise LabelError(f"{table}: no column rim or grade (found {', '.join(rows[0])}); name the column of grades so")
    if rows and columns["id"] is None and None in (columns["x"], columns["y"], columns["z"]):
        raise LabelError(f"{table}: neither a column id nor x_mm, y_mm, z_mm; say which lesion each grade belongs to")

    own = [row for row in rows if _is_of(row, columns, subject, session)]
    visits = sorted({visit for row in own if (visit := _visit(row, columns))})
    if not session and len(visits) > 1:
        raise LabelError(
            f"{table}: grades {subject} at {len(visits)} visits ({', '.join(visits)}), but the exam has no session; keep the rows of one"
        )
    return tuple(_graded(table, row, columns) for row in own)


def unclaimed(table: Path, exams: Collection[tuple[str, str]]) -> list[str]:
    """'person' or 'person, session' of each row of a table that belongs to none of these exams (subject, session).

    Raises:
        CohortError: the table cannot be read.
        LabelError: there are rows, and nobody has any.
    """
    rows = read_tsv(table)
    columns = _columns(rows)
    of_nobody = [row for row in rows if not any(_is_of(row, columns, *exam) for exam in exams)]
    alone = [", ".join(filter(None, (row.get(columns["person"] or "", ""), _visit(row, columns)))) for row in of_nobody]
    if rows and len(alone) == len(rows):
        raise LabelError(
            f"{table}: its {len(rows)} rows are of nobody here (first '{alone[0]}'; here is '{min(exams)[0]}'); "
            "write participant_id and session as the folder does"
        )
    return alone


def _columns(rows: Sequence[Mapping[str, str]]) -> dict[str, str | None]:
    return {key: next((n for n in names if rows and n in rows[0]), None) for key, names in _NAMES.items()}


def _is_of(row: Mapping[str, str], columns: Mapping[str, str | None], subject: str, session: str) -> bool:
    named = row[columns["person"]].removeprefix("sub-") if columns["person"] else subject
    visit = _visit(row, columns)
    return named == subject and (visit == session or "" in (visit, session))


def _visit(row: Mapping[str, str], columns: Mapping[str, str | None]) -> str:
    return row[columns["session"]].removeprefix("ses-") if columns["session"] else ""


def grades_of(
    rows: Sequence[Graded], numbers: Numbers, affine: NDArray[np.float64], instances: Numbers | None, rule: GradeRule
) -> Grades:
    """Grades of all lesions from the rows of a table.

    Args:
        rows: of this exam.
        numbers: lesions (x, y, z), from 1.
        affine: 4 × 4, voxel → mm.
        instances: map (x, y, z) of the numbers that the table speaks of, on the same grid; None: by position.
        rule: how far a position may be off, and what becomes of doubts.
    """
    count = int(numbers.max(initial=0))
    found: list[list[Graded]] = [[] for _ in range(count + 1)]
    if count and instances is not None:
        pairs = set(enumerate(_most_shared(numbers, instances, rule.least_shared), start=1))
        back = _most_shared(instances, numbers, rule.least_shared)
        pairs |= {(lesion, number) for number, lesion in enumerate(back, start=1)}
        for lesion, number in pairs:
            if lesion and number:
                found[lesion] += [row for row in rows if row.number == number]
    elif count:
        placed = [row for row in rows if row.position_mm is not None]
        where = np.argwhere(numbers > 0)
        tree = cKDTree(where @ affine[:3, :3].T + affine[:3, 3])
        away, nearest = tree.query([row.position_mm for row in placed] or np.zeros((0, 3)))
        for row, distance, voxel in zip(placed, away, nearest, strict=True):
            if distance <= rule.match_mm:
                found[int(numbers[tuple(where[voxel])])].append(row)
    settled = [_settled(given, rule) for given in found[1:]]
    grades = np.array([grade for grade, _ in settled], np.int8)
    met = {id(row) for given in found for row in given}
    lost = [row for row in rows if id(row) not in met and (row.grade != UNKNOWN or row.uncertain)]
    missed = sum(_settled([row], rule)[0] == 1 for row in lost)
    return Grades(grades, np.array([doubt for _, doubt in settled], bool), len(lost), missed)


def grades_of_map(rims: NDArray[np.int32], numbers: Numbers, rule: GradeRule) -> Grades:
    """Grades of all lesions from a label map (x, y, z) on the same grid; a lesion in which it has nothing but 0 is unknown."""
    count = int(numbers.max(initial=0))
    size = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    rim = np.bincount(numbers[rims == rule.rim_value], minlength=count + 1)[1:]
    drawn = np.bincount(numbers[rims > 0], minlength=count + 1)[1:] > 0
    grade = np.where(drawn, rim >= rule.rim_share * size, UNKNOWN).astype(np.int8)
    parts: Numbers = np.zeros(rims.shape, np.int32)
    found = ndimage.label(rims > 0, structure=np.ones((3, 3, 3), bool), output=parts)
    lost = sorted(set(range(1, found + 1)) - set(parts[numbers > 0].tolist()))
    with_rim = set(parts[rims == rule.rim_value].tolist())
    return Grades(grade, np.zeros(count, bool), len(lost), len(with_rim.intersection(lost)))


def _graded(table: Path, row: Mapping[str, str], columns: Mapping[str, str | None]) -> Graded:
    text = row[columns["grade"] or ""].strip().lower()
    doubt = text.endswith("?")
    grade = _GRADES.get(text.removesuffix("?").strip())
    if grade is None:
        raise LabelError(
            f"{table}: the grade '{row[columns['grade'] or '']}' is none; expected 1, 0, rim+, rim-, '?' after it or alone, or n/a"
        )
    try:
        number = int(row[columns["id"]]) if columns["id"] and row[columns["id"]].isdigit() else None
        x, y, z = (float(row[columns[axis] or ""] or "nan") if columns[axis] else math.nan for axis in "xyz")
    except ValueError as error:
        raise LabelError(f"{table}: a position is no number ({error}); expected mm") from error
    place = (x, y, z) if all(map(math.isfinite, (x, y, z))) else None
    return Graded(number, place, grade, doubt or row.get("uncertain", "").strip() in ("1", "yes", "true"))


def _most_shared(numbers: Numbers, instances: Numbers, least: float) -> list[int]:
    """For each lesion the number in the other map it shares most voxels with; 0 where there is none, or less than `least` of the smaller one."""
    inside = (numbers > 0) & (instances > 0)
    width = int(instances.max(initial=0)) + 1
    pairs, sizes = np.unique(numbers[inside].astype(np.int64) * width + instances[inside], return_counts=True)
    most = [0] * (int(numbers.max(initial=0)) + 1)
    whole = np.bincount(numbers.ravel()), np.bincount(instances.ravel())
    for place in np.argsort(sizes, kind="stable"):  # the largest is written last
        lesion, number = divmod(int(pairs[place]), width)
        if sizes[place] >= least * min(whole[0][lesion], whole[1][number]):
            most[lesion] = number
    return most[1:]


def _settled(rows: Sequence[Graded], rule: GradeRule) -> tuple[int, bool]:
    """What several rows say of one lesion: grade and doubt."""
    sure = [row.grade for row in rows if not row.uncertain]
    if 1 in sure:
        return 1, False
    doubted = [row.grade for row in rows if row.uncertain]
    if doubted:
        return {"unknown": UNKNOWN, "negative": 0, "as graded": max(doubted)}[rule.uncertain], True
    return (max(sure) if sure else UNKNOWN), False
