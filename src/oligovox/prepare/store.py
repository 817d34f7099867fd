"""The store: prepared cases on disk, read through memory maps.

    STORE/store.json                    plan, label scheme, format version, names of the cases, finished or not
    STORE/cases/<name>/image.npy             float16 (m, x, y, z), C order: the sequences the case has, in the plan's order
                       label.npy             int8 (x, y, z), class index, -1 where nobody looked; only where someone labelled
                       foreground.npy        bool (x, y, z)
                       foreground_voxels.npy int16 (n, 3), to draw patches from
                       lesion_voxels.npy     int16 (n, 3), only beside label.npy
                       looked_voxels.npy     int16 (n, 3), only beside a label of a part
                       case.json             names, shape, placement, provenance, content hash

A case folder is there whole or not at all. Why this format: docs/decisions/0003-store.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationInfo, field_validator
from scipy import ndimage

from oligovox.cohort.modalities import canonical, channel, sequence_of, sequences_of
from oligovox.errors import CohortError, LabelError, nearest
from oligovox.files import read_json, write_json
from oligovox.prepare.arrays import mapped
from oligovox.prepare.geometry import Placement
from oligovox.settings import Settings, parse

FORMAT = 1
"""Version of the layout above and of what is computed; another number means: prepare again."""

MOST_VOXELS = 20_000
"""At most so many rows in each table of voxels to draw patches from."""

_Millimetres = Annotated[float, Field(gt=0)]


class Plan(Settings):
    """How every case is brought to one form."""

    modalities: tuple[str, ...] = Field(
        min_length=1,
        description="sequences to use, in channel order; FLAIR_run-2 is the second FLAIR of a session that has several",
    )
    spacing: tuple[_Millimetres, _Millimetres, _Millimetres] = Field(
        (1.0, 1.0, 1.0), description="voxel size along R, A, S in mm"
    )
    margin: int = Field(4, ge=0, description="voxels kept around the foreground when cropping")
    reference: tuple[str, ...] = Field(
        ("FLAIR", "T1w", "T2w", "T1wGd"), description="whose grid everything is brought to: the first that a case has"
    )

    @property
    def sequences(self) -> tuple[str, ...]:
        """Each once, whatever the number of its acquisitions."""
        return sequences_of(self.modalities)

    def held(self, present: Sequence[bool]) -> tuple[str, ...]:
        """Sequences of which an acquisition is there, in the order of the channels."""
        return sequences_of(name for name, there in zip(self.modalities, present, strict=True) if there)

    @field_validator("modalities", "reference")
    @classmethod
    def _canonical(cls, names: tuple[str, ...], field: ValidationInfo) -> tuple[str, ...]:
        names = tuple(map(channel if field.field_name == "modalities" else canonical, names))
        if len(set(names)) != len(names):
            raise ValueError("each sequence may be named once only")
        seen: dict[str, int] = {}
        for name in names:
            sequence = sequence_of(name)
            expected = f"{sequence}_run-{seen[sequence] + 1}" if sequence in seen else sequence
            if name != expected:
                raise ValueError(f"{name} is a further acquisition of {sequence}; {expected} has to be named before it")
            seen[sequence] = seen.get(sequence, 0) + 1
        return names


@dataclass(frozen=True, eq=False)
class StoredCase:
    """One prepared case; arrays are opened when asked for, and only what is read leaves the disk.

    Attributes:
        folder: where its arrays lie.
        name: unique in the store.
        person: what splits are drawn on.
        dataset: which cohort it came from, '' where there is one only.
        present: acquired or not, in the order of the plan's modalities.
        shape: voxels along x, y, z (R, A, S).
        spacing: voxel size in mm.
        labelled: whether someone labelled it; a labelled case can be without lesion.
        lesion_voxels: voxels with label > 0 on the prepared grid; 0 where it is not labelled.
        placement: the way back to the native grid.
        sources: modality → path of its file; also 'label' and 'brain' where there are such files.
        reference: the modality whose file gives the native grid.
        unlooked_voxels: voxels that nobody looked at of a case that is labelled in part; 0 where all of it was labelled, or nothing.
    """

    folder: Path
    name: str
    person: str
    dataset: str
    present: tuple[bool, ...]
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    labelled: bool
    lesion_voxels: int
    placement: Placement
    sources: Mapping[str, str]
    reference: str = ""
    unlooked_voxels: int = 0

    @property
    def sparse(self) -> bool:
        """Whether somebody labelled a part of it only."""
        return self.unlooked_voxels > 0

    def image(self) -> np.ndarray:
        """float16 (m, x, y, z), memory-mapped: the present sequences in plan order, z-scored, 0 outside the foreground."""
        return self._load("image")

    def label(self) -> np.ndarray | None:
        """int8 (x, y, z), memory-mapped: 0 background, k the k-th class of the scheme; None where nobody labelled.

        Raises:
            LabelError: only a part was labelled, so nothing can be scored against it; `known_label` is for training.
        """
        if self.sparse:
            raise LabelError(
                f"{self.name}: only a part of it is labelled, so it cannot be scored; give a full mask, or train on this person only"
            )
        return self.known_label()

    def known_label(self) -> np.ndarray | None:
        """The same, with -1 where nobody looked."""
        return self._load("label") if self.labelled else None

    def foreground(self) -> np.ndarray:
        """bool (x, y, z), memory-mapped."""
        return self._load("foreground")

    def foreground_voxels(self) -> np.ndarray:
        """int16 (n, 3), memory-mapped: a random subset of the foreground, n ≤ `MOST_VOXELS`."""
        return self._load("foreground_voxels")

    def lesion_voxels_index(self) -> np.ndarray:
        """int16 (n, 3), memory-mapped: voxels with label > 0, n ≤ `MOST_VOXELS`, n = 0 without lesion or label.

        A row drawn at random hits each class with the same probability, and within it each connected lesion, however small it is.
        """
        return self._load("lesion_voxels") if self.labelled else np.zeros((0, 3), dtype=np.int16)

    def looked_voxels(self) -> np.ndarray:
        """int16 (n, 3), memory-mapped: of a case labelled in part, a random subset of the voxels that somebody looked at, n ≤ `MOST_VOXELS`;
        those in the foreground where there are any."""
        return self._load("looked_voxels")

    def _load(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            return mapped(path)
        except (OSError, EOFError, ValueError) as error:
            raise CohortError(
                f"{path}: cannot be read ({error}); delete the folder {self.folder} and prepare again"
            ) from error


@dataclass(frozen=True)
class Store:
    """All prepared cases of a cohort.

    Attributes:
        root: its folder.
        plan: how every case was prepared.
        labels: foreground class → value in the source files; in the store, class k of this order has the value k from 1.
        cases: in order of name.
    """

    root: Path
    plan: Plan
    labels: Mapping[str, int]
    cases: tuple[StoredCase, ...]

    @classmethod
    def open(cls, root: Path) -> Store:
        """Open a finished store; reads its tables, no voxel.

        Raises:
            CohortError: not a store, of another format version, not finished, or damaged.
        """
        table = root / "store.json"
        if not table.is_file():
            raise CohortError(f"{root}: no store.json in it, so this is not a store; make one with `oligovox prepare`")
        content = read_json(table)
        try:
            found, finished, names = content["format"], content["finished"], tuple(content["cases"])
            given, labels = dict(content["plan"]), dict(content["labels"])
        except (KeyError, TypeError, ValueError) as error:
            raise CohortError(
                f"{table}: not the table of a store ({type(error).__name__}: {error}); prepare it again"
            ) from error
        if found != FORMAT:
            raise CohortError(f"{table}: store format {found}, expected {FORMAT}; prepare it again")
        if not finished:
            ready = sum((root / "cases" / name).is_dir() for name in names)
            raise CohortError(
                f"{root}: preparing was not finished ({ready} of {len(names)} case folders are there); "
                "run the same `prepare` again, it goes on where it stopped"
            )
        cases = tuple(read_case(root / "cases" / name) for name in names)
        return cls(root=root, plan=parse(Plan, given, f"{table}: plan"), labels=labels, cases=cases)

    def __len__(self) -> int:
        return len(self.cases)

    def case(self, name: str) -> StoredCase:
        """The case of this name.

        Raises:
            CohortError: no such case; says the nearest one.
        """
        if name not in self._by_name:
            raise CohortError(f"{self.root}: no case '{name}'; {nearest(name, self._by_name)}")
        return self._by_name[name]

    def of(self, people: Iterable[str]) -> tuple[StoredCase, ...]:
        """All cases of these people, in order of name.

        Raises:
            CohortError: someone is not in the store; says the nearest one.
        """
        wanted = set(people)
        if missing := sorted(wanted - set(self.people)):
            raise CohortError(f"{self.root}: no person '{missing[0]}'; {nearest(missing[0], self.people)}")
        return tuple(case for case in self.cases if case.person in wanted)

    @property
    def labelled(self) -> tuple[StoredCase, ...]:
        """Cases someone labelled."""
        return tuple(case for case in self.cases if case.labelled)

    @property
    def people(self) -> tuple[str, ...]:
        """Everyone in the store, sorted."""
        return tuple(sorted({case.person for case in self.cases}))

    @cached_property
    def _by_name(self) -> dict[str, StoredCase]:
        return {case.name: case for case in self.cases}


def write_table(root: Path, plan: Plan, labels: Mapping[str, int], names: Sequence[str], *, finished: bool) -> None:
    """Write store.json; `finished` is False until the last case has landed."""
    write_json(
        root / "store.json",
        {
            "format": FORMAT,
            "finished": finished,
            "plan": plan.model_dump(mode="json"),
            "labels": dict(labels),
            "cases": sorted(names),
        },
    )


def read_case(folder: Path) -> StoredCase:
    """Read case.json of one case folder.

    Raises:
        CohortError: missing or malformed.
    """
    table = folder / "case.json"
    content: dict[str, Any] = read_json(table)
    try:
        return StoredCase(
            folder=folder,
            name=content["name"],
            person=content["person"],
            dataset=content["dataset"],
            present=tuple(content["present"]),
            shape=tuple(content["shape"]),
            spacing=tuple(content["spacing"]),
            labelled=content["labelled"],
            lesion_voxels=content["lesion_voxels"],
            placement=Placement.from_json(content["placement"]),
            sources=content["sources"],
            reference=content["reference"],
            unlooked_voxels=content.get("unlooked_voxels", 0),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CohortError(f"{table}: not a case of a store ({type(error).__name__}: {error}); prepare again") from error


def some_voxels(mask: np.ndarray, rng: np.random.Generator, most: int = MOST_VOXELS) -> np.ndarray:
    """Coordinates of at most so many voxels of a mask, drawn without replacement: int16 (n, 3)."""
    flat = np.flatnonzero(mask)
    if flat.size > most:
        flat = rng.choice(flat, most, replace=False)
    return np.stack(np.unravel_index(flat, mask.shape), axis=1).astype(np.int16)


def lesion_balanced_voxels(label: np.ndarray, rng: np.random.Generator, most: int = MOST_VOXELS) -> np.ndarray:
    """Coordinates in which every class has as many rows, and within it every connected lesion (26 neighbours, of any class): int16 (n, 3), n ≤ most.

    Rows of a class may differ by less than its number of lesions. Voxels of small lesions are repeated; of a class with more lesions than its share
    of `most`, a random subset is kept. Without the balance of classes a small organ beside a large one is hardly ever seen.
    """
    flat = np.flatnonzero(label > 0)
    if not flat.size:
        return np.zeros((0, 3), dtype=np.int16)
    lesions, _ = ndimage.label(label > 0, structure=np.ones((3, 3, 3)))
    classes, number = label.ravel()[flat], lesions.ravel()[flat]
    present = np.unique(classes)
    parts = [_split(flat[classes == value], number[classes == value]) for value in present]
    share = most // len(present)
    rows = min(share, max(len(own) * max(part.size for part in own) for own in parts))
    chosen = np.concatenate([_rows(own, rows, rng) for own in parts])
    return np.stack(np.unravel_index(chosen, label.shape), axis=1).astype(np.int16)


def _split(flat: np.ndarray, number: np.ndarray) -> list[np.ndarray]:
    """Voxels of each lesion."""
    order = np.argsort(number, kind="stable")
    return np.split(flat[order], np.flatnonzero(np.diff(number[order])) + 1)


def _rows(parts: list[np.ndarray], rows: int, rng: np.random.Generator) -> np.ndarray:
    """About so many voxels, as many of each lesion."""
    kept = np.sort(rng.choice(len(parts), rows, replace=False)) if len(parts) > rows else np.arange(len(parts))
    each = rows // len(kept)
    return np.concatenate([np.resize(rng.permutation(parts[lesion]), each) for lesion in kept])
