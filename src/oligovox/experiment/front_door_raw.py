"""Whether `oligovox run` makes exams ready first, and why: what the data doctor found, and a look at what it says nothing about.

The doctor compares all sequences of an exam with each other and says where they differ; of an exam whose sequences agree one picture tells
whether they show a head or a brain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from oligovox.cohort.manifest import Case, Cohort
from oligovox.doctor.seen import Seen
from oligovox.doctor.stripped import outline
from oligovox.files import read_json
from oligovox.prepare.geometry import read_volume

_OF_BODIES = {"T1in", "T1out", "T2spir"}
"""Sequences of the abdomen, where no brain is looked for."""


def why_raw(table: Path, out: Path, progress: Callable[[int, int, str], None]) -> str:
    """Why exams have to be made ready, in a line; '' where all show the brain alone and their sequences lie on each other.

    Args:
        table: the exams as they would be used.
        out: folder of the run; what the doctor found lies in its check/.
        progress: called with (looked at, exams, name).
    """
    if apart := not_aligned(table, out):
        return f"{apart[0]['case']}: {apart[0]['found']}" + _others(len(apart) - 1, "pair")
    brains = [case for case in Cohort.load(table).cases if not _is_body(case)]
    if mixed := _findings(table, out, "stripped_differs"):
        return f"{mixed[0]['case']}: {mixed[0]['found']}" + _others(len(mixed) - 1, "exam")
    odd = {row["case"] for row in _findings(table, out, "stripped_in_cohort")}
    return _first_head(sorted(brains, key=lambda case: case.name not in odd), progress)


def not_aligned(table: Path, out: Path) -> list[dict[str, Any]]:
    """What the doctor found of sequences that do not lie on each other, in exams of heads or brains."""
    return _findings(table, out, "not_aligned")


def _findings(table: Path, out: Path, check: str) -> list[dict[str, Any]]:
    """What one check found, but for abdomens; the doctor was shown the exams as given."""
    file, given = out / "check" / "check.json", out / "tables" / "given" / table.name
    if not (file.is_file() and given.is_file()):
        return []
    bodies = {case.name for case in Cohort.load(given).cases if _is_body(case)}
    return [row for row in read_json(file)["findings"] if row["check"] == check and row["case"] not in bodies]


def _first_head(cases: Sequence[Case], progress: Callable[[int, int, str], None]) -> str:
    """The first exam that shows more than a brain, in words; '' where none does."""
    for number, case in enumerate(cases, start=1):
        name, path = min(case.images.items(), key=lambda item: item[1].stat().st_size)
        head = outline(Seen.of(name, path, read_volume(path))).covering == "head"
        progress(len(cases) if head else number, len(cases), case.name)
        if head:
            return f"{case.name}: {name} shows more than a brain"
    return ""


def _is_body(case: Case) -> bool:
    return set(case.images) <= _OF_BODIES


def _others(number: int, what: str) -> str:
    return f", and {number} more such {what}{'s' if number > 1 else ''}" if number else ""
