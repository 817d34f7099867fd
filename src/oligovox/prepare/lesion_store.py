"""The lesion store: one patch of QSM and one of FLAIR around every lesion, on disk, read through memory maps.

    LESIONS/lesions.json                 plan, format version, names of the exams, finished or not
    LESIONS/lesions.tsv                  one row a lesion: where it is, how large, its grade
    LESIONS/cases/<exam>/image.npy       float16 (n, 2, s, s, s): QSM and FLAIR in [0, 1], x, y, z in RAS; 0.5 outside what is seen
                         seen.npy        uint8 (n, s, s, s): 0 outside, 1 around the lesion, 2 the lesion
                         lesions.nii.gz  int16, the lesions' numbers on the exam's own grid
                         case.json       the rows of the table, hashes of the files, what was done

An exam without lesions has no arrays. Why patches and not whole volumes: every step reads a lesion in one piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from oligovox.cohort.reading import who
from oligovox.errors import CohortError, nearest
from oligovox.files import read_json, write_json, write_tsv
from oligovox.prepare.arrays import mapped
from oligovox.prepare.lesion_grades import GradeRule
from oligovox.prepare.lesion_masks import LesionRule
from oligovox.prepare.susceptibility import Units
from oligovox.settings import Settings, parse

FORMAT = 3
"""Version of the layout above and of what is computed; another number means: extract again."""

SEQUENCES = ("QSM", "FLAIR")
"""Channels of a patch, in order."""

COLUMNS = (
    *("lesion", "number", "exam", "dataset", "subject", "session", "x", "y", "z"),
    *("volume_mm3", "around_mm", "grade", "uncertain"),
)
"""Of lesions.tsv; x, y, z in mm (world, RAS), grade 1 Rim+, 0 Rim−, -1 unknown."""


class LesionPlan(Settings):
    """How lesions become patches."""

    spacing: float = Field(1.0, gt=0, description="isotropic voxel size of the patches, mm")
    patch: int = Field(64, ge=4, multiple_of=2, description="side of a patch, voxels")
    lesions: LesionRule = LesionRule()
    grades: GradeRule = GradeRule()
    masked: bool = Field(True, description="show nothing but the lesion and what is around it")
    outside: Literal["neutral", "zero"] = Field(
        "neutral",
        description="what is not seen, between 0 and 1: neutral: 0.5, which is 0 ppb; zero: 0 as in FRODO's release, an edge ten times as strong as a rim",
    )
    qsm_ppb: float = Field(300.0, gt=0, description="QSM from minus to plus this becomes 0 to 1, ppb")
    qsm_units: Units = Field("auto", description="of the QSM files; auto: by the sidecar, else by the values")
    flair_percentiles: tuple[float, float] = Field(
        (0.5, 99.5), description="of the FLAIR in all patches of an exam that become 0 and 1"
    )


@dataclass(frozen=True, eq=False)
class StoredLesion:
    """One lesion; arrays are opened when asked for.

    Attributes:
        exam: name of the exam.
        dataset: which cohort it is from, '' where there is one only.
        subject: without 'sub-'.
        session: '' where there is one only.
        number: within the exam, from 1; the value in lesions.nii.gz.
        position_mm: centre of mass, world coordinates (RAS).
        volume_mm3: of the lesion itself.
        around_mm: radius of what is seen around it.
        grade: 1 Rim+, 0 Rim−, -1 unknown.
        uncertain: somebody doubted the grade.
        folder: where the arrays of the exam lie.
    """

    exam: str
    dataset: str
    subject: str
    session: str
    number: int
    position_mm: tuple[float, float, float]
    volume_mm3: float
    around_mm: float
    grade: int
    uncertain: bool
    folder: Path

    @property
    def name(self) -> str:
        """Unique in the store."""
        return f"{self.exam}_lesion-{self.number:03d}"

    @property
    def person(self) -> str:
        """What folds are drawn on."""
        return f"{self.dataset}_{self.subject}" if self.dataset else self.subject

    def image(self) -> np.ndarray:
        """float16 (2, s, s, s), memory-mapped: QSM and FLAIR."""
        return self._load("image")

    def seen(self) -> np.ndarray:
        """uint8 (s, s, s), memory-mapped: 0 outside, 1 around the lesion, 2 the lesion."""
        return self._load("seen")

    def row(self) -> dict[str, object]:
        """Its line of lesions.tsv."""
        x, y, z = self.position_mm
        return {
            "lesion": self.name, "number": self.number, "exam": self.exam, "dataset": self.dataset,
            "subject": self.subject, "session": self.session, "x": x, "y": y, "z": z, "volume_mm3": self.volume_mm3,
            "around_mm": self.around_mm, "grade": self.grade, "uncertain": int(self.uncertain),
        }  # fmt: skip

    def _load(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            array: np.ndarray = mapped(path)[self.number - 1]
        except (OSError, EOFError, ValueError, IndexError) as error:
            raise CohortError(
                f"{path}: cannot be read ({error}); delete the folder {self.folder} and extract again"
            ) from error
        return array


@dataclass(frozen=True)
class LesionStore:
    """All lesions of a cohort.

    Attributes:
        root: its folder.
        plan: how they were made.
        exams: names of all exams, also of those without a lesion.
        lesions: in order of exam and number.
        content: hash of everything in it: files, plan, grades.
        simulated: every exam says of itself that it is simulated.
    """

    root: Path
    plan: LesionPlan
    exams: tuple[str, ...]
    lesions: tuple[StoredLesion, ...]
    content: str
    simulated: bool = False

    @classmethod
    def open(cls, root: Path) -> LesionStore:
        """Open a finished store; reads its tables, no voxel.

        Raises:
            CohortError: not a lesion store, of another format version, not finished, or damaged.
        """
        table = root / "lesions.json"
        if not table.is_file():
            raise CohortError(f"{root}: no lesions.json in it; make a lesion store with `oligovox classify extract`")
        content = read_json(table)
        try:
            if content["format"] != FORMAT:
                raise CohortError(
                    f"{table}: lesion store of format {content['format']}, expected {FORMAT}; extract again"
                )
            if not content["finished"]:
                raise CohortError(
                    f"{root}: extraction was not finished; run the same `oligovox classify extract` again, it goes on where it stopped"
                )
            names, plan = tuple(content["exams"]), parse(LesionPlan, content["plan"], f"{table}: plan")
            lesions = tuple(lesion for name in names for lesion in read_exam(root / "cases" / name))
            return cls(root, plan, names, lesions, content["content"], content["simulated"])
        except (KeyError, TypeError, AttributeError) as error:
            raise CohortError(f"{table}: not the table of a lesion store ({error!r}); extract again") from error

    def __len__(self) -> int:
        return len(self.lesions)

    @property
    def people(self) -> tuple[str, ...]:
        """Everyone with a lesion, sorted."""
        return tuple(sorted({lesion.person for lesion in self.lesions}))

    @property
    def missed_rims(self) -> int | None:
        """Rim+ lesions of the grades that are not here, since the masks miss them or they are too small; None: cut before this was counted."""
        return None if (counts := self.missed_by_exam) is None else sum(counts.values())

    @property
    def missed_by_exam(self) -> dict[str, int] | None:
        """The same of each exam, also of those without a lesion."""
        about = {exam: read_json(self.root / "cases" / exam / "case.json") for exam in self.exams}
        counts = {exam: content.get("rims_without_lesion") for exam, content in about.items()}
        return None if None in counts.values() else counts

    @property
    def graded(self) -> tuple[StoredLesion, ...]:
        """Lesions of known grade."""
        return tuple(lesion for lesion in self.lesions if lesion.grade >= 0)

    def of(self, people: Iterable[str]) -> tuple[StoredLesion, ...]:
        """All lesions of these people.

        Raises:
            CohortError: someone has none here; says the nearest name.
        """
        wanted = set(people)
        if missing := sorted(wanted - set(self.people)):
            raise CohortError(
                f"{self.root}: nobody called '{missing[0]}' has a lesion; {nearest(missing[0], self.people)}"
            )
        return tuple(lesion for lesion in self.lesions if lesion.person in wanted)

    def named(self, name: str) -> StoredLesion:
        """The lesion of this name.

        Raises:
            CohortError: there is none; says the nearest one.
        """
        if name not in self._by_name:
            raise CohortError(f"{self.root}: no lesion '{name}'; {nearest(name, self._by_name)}")
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, StoredLesion]:
        return {lesion.name: lesion for lesion in self.lesions}


def person_of(exam: str) -> str:
    """What folds are drawn on, from the name of an exam (`Case.name`): of one without lesions nothing else says it."""
    dataset, subject, _ = who(exam)
    return f"{dataset}_{subject}" if dataset else subject


def read_exam(folder: Path) -> tuple[StoredLesion, ...]:
    """The lesions of one exam.

    Raises:
        CohortError: case.json is missing or malformed.
    """
    content: dict[str, Any] = read_json(folder / "case.json")
    try:
        return tuple(_lesion(row, folder) for row in content["lesions"])
    except (KeyError, TypeError, ValueError) as error:
        raise CohortError(
            f"{folder / 'case.json'}: not an exam of a lesion store ({error!r}); extract again"
        ) from error


def write_tables(
    root: Path, plan: LesionPlan, exams: Sequence[str], lesions: Sequence[StoredLesion] | None, **about: object
) -> None:
    """Write lesions.json and, with the lesions, lesions.tsv; without them the store is not finished."""
    if lesions is not None:
        write_tsv(root / "lesions.tsv", [lesion.row() for lesion in lesions], COLUMNS)
    table = {"format": FORMAT, "finished": lesions is not None, "plan": plan.model_dump(mode="json")}
    write_json(root / "lesions.json", table | {"exams": list(exams)} | about)


def _lesion(row: Mapping[str, Any], folder: Path) -> StoredLesion:
    return StoredLesion(
        exam=row["exam"],
        dataset=row["dataset"],
        subject=row["subject"],
        session=row["session"],
        number=int(row["number"]),
        position_mm=(float(row["x"]), float(row["y"]), float(row["z"])),
        volume_mm3=float(row["volume_mm3"]),
        around_mm=float(row["around_mm"]),
        grade=int(row["grade"]),
        uncertain=bool(row["uncertain"]),
        folder=folder,
    )
