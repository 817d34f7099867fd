"""What a cohort is, from file headers or from the tables of a store; no voxel is read."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from oligovox.cohort.manifest import Case, Cohort
from oligovox.cohort.modalities import sequence_of
from oligovox.cohort.reading import who
from oligovox.errors import ImageError
from oligovox.prepare.geometry import ras_grid, spacing_of
from oligovox.prepare.store import Store, StoredCase

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Grid:
    """Voxels of an image, turned to R, A, S.

    Attributes:
        shape: along R, A, S.
        spacing: mm along R, A, S.
    """

    shape: Shape
    spacing: Spacing

    def at(self, spacing: Spacing) -> Shape:
        """Voxels of the same field of view at another spacing, before anything is cropped."""
        return ras_grid(np.diag([*self.spacing, 1.0]), self.shape, spacing)[1]


@dataclass(frozen=True, kw_only=True)
class Exam:
    """One case.

    Attributes:
        name: unique in the cohort.
        person: what splits are drawn on.
        grids: sequence → its grid; in a store all of them have the prepared one.
        labelled: somebody drew a mask.
        sparse: of a part only.
        drawn_on: sequences on whose grid the mask lies.
        lesion_mm3: volume of lesion; None where it is not known without reading voxels, or nobody labelled.
    """

    name: str
    person: str
    grids: Mapping[str, Grid]
    labelled: bool = False
    sparse: bool = False
    drawn_on: tuple[str, ...] = ()
    lesion_mm3: float | None = None


@dataclass(frozen=True)
class Facts:
    """A cohort in numbers.

    Attributes:
        exams: every case, in order of name.
        prepared: the grids are those of a store.
    """

    exams: tuple[Exam, ...]
    prepared: bool = False

    @property
    def people(self) -> int:
        """How many."""
        return len({exam.person for exam in self.exams})

    @property
    def sequences(self) -> dict[str, int]:
        """Sequence → cases that have it, most frequent first."""
        counts = Counter(name for exam in self.exams for name in exam.grids)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    @property
    def labelled(self) -> int:
        """People with a mask."""
        return len({exam.person for exam in self.exams if exam.labelled})

    @property
    def scorable(self) -> int:
        """People of whom every mask is a whole one."""
        partly = {exam.person for exam in self.exams if exam.sparse}
        return len({exam.person for exam in self.exams if exam.labelled} - partly)

    def grids(self, reference: Sequence[str]) -> list[Grid]:
        """Of every case the grid it is brought to: that of the first of these sequences that it has."""
        return [
            exam.grids[next((name for name in reference if name in exam.grids), next(iter(exam.grids)))]
            for exam in self.exams
        ]

    def summary(self, reference: Sequence[str]) -> dict[str, Any]:
        """The numbers as plain JSON."""
        grids = self.grids(reference)
        shape, spacing = _medians([g.shape for g in grids]), _medians([g.spacing for g in grids])
        lesions = sorted(exam.lesion_mm3 for exam in self.exams if exam.lesion_mm3 is not None)
        found = {
            "people": self.people,
            "cases": len(self.exams),
            "labelled_people": self.labelled,
            "sequences": self.sequences,
            "median_shape": [round(side) for side in shape],
            "median_spacing_mm": [round(side, 3) for side in spacing],
            "anisotropy": round(max(spacing) / min(spacing), 2),
        }
        if lesions:
            found["lesion_mm3"] = {"lowest": lesions[0], "median": median(lesions), "highest": lesions[-1]}
        return found


def facts_of_cohort(cohort: Cohort) -> Facts:
    """From the header of every file.

    Raises:
        ImageError: a file is no NIfTI volume.
    """
    return Facts(tuple(_exam(case) for case in cohort.cases))


def facts_of_store(store: Store) -> Facts:
    """From the tables of a store."""
    return Facts(tuple(_stored(case, store) for case in store.cases), prepared=True)


def sources_of_store(store: Store) -> Cohort | None:
    """The cohort a store was prepared from; None where one of its files is gone."""
    files = [Path(path) for case in store.cases for path in case.sources.values()]
    if not all(path.is_file() for path in files):
        return None
    cases = []
    for case in store.cases:
        images = {key: Path(path) for key, path in case.sources.items()}
        label, brain = images.pop("label", None), images.pop("brain", None)
        repeats: dict[str, tuple[Path, ...]] = {}
        for key in [key for key in images if sequence_of(key) != key]:  # runs, in the order of their numbers
            repeats[sequence_of(key)] = (*repeats.get(sequence_of(key), ()), images.pop(key))
        dataset, subject, session = who(case.name)
        cases.append(Case(subject=subject, session=session, dataset=dataset, images=images, repeats=repeats, label=label,
                          sparse=case.sparse, brain=brain))  # fmt: skip
    return Cohort(cases=tuple(cases), labels=store.labels, name=store.root.name)


def grid_of(path: Path) -> tuple[Grid, np.ndarray]:
    """The grid of a file and its affine, from its header.

    Raises:
        ImageError: not a NIfTI volume of three dimensions.
    """
    try:
        image: Any = nib.load(path)
        shape, affine = tuple(image.shape), np.asarray(image.affine, dtype=float)
        turn = nib.orientations.io_orientation(affine)
    except (OSError, ValueError, EOFError, zlib.error, ImageFileError, AttributeError) as error:
        raise ImageError(path, f"its header cannot be read ({error})", "copy it again, or leave it out") from None
    if len(shape) < 3 or any(side != 1 for side in shape[3:]) or np.isnan(turn).any():
        raise ImageError(path, f"has the shape {shape}, expected one 3-D volume", "split it, or leave it out")
    order = np.argsort(turn[:, 0])
    spacing = spacing_of(affine)
    sides, sizes = [int(shape[axis]) for axis in order], [float(spacing[axis]) for axis in order]
    return Grid((sides[0], sides[1], sides[2]), (sizes[0], sizes[1], sizes[2])), affine


def _exam(case: Case) -> Exam:
    found = {name: grid_of(path) for name, path in case.images.items()}
    drawn_on: tuple[str, ...] = ()
    if case.label:
        grid, affine = grid_of(case.label)
        drawn_on = tuple(
            name
            for name, (own, other) in found.items()
            if own.shape == grid.shape and np.allclose(affine, other, atol=1e-2)
        )
    return Exam(
        name=case.name,
        person=case.person,
        grids={name: grid for name, (grid, _) in found.items()},
        labelled=case.label is not None,
        sparse=case.sparse,
        drawn_on=drawn_on,
    )


def _stored(case: StoredCase, store: Store) -> Exam:
    grid = Grid(case.shape, case.spacing)
    names = store.plan.held(case.present)
    return Exam(
        name=case.name,
        person=case.person,
        grids=dict.fromkeys(names, grid),
        labelled=case.labelled,
        sparse=case.sparse,
        drawn_on=(case.reference,),
        lesion_mm3=round(case.lesion_voxels * float(np.prod(case.spacing)), 1) if case.labelled else None,
    )


def _medians(rows: Sequence[tuple[float, float, float]]) -> Spacing:
    x, y, z = (float(median(column)) for column in zip(*rows, strict=True))
    return x, y, z
