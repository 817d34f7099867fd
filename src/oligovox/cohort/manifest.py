"""Case and Cohort: who there is, with which sequences and labels, and where the files are. No voxel is read here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from oligovox.cohort.annotate import NOBODY_LOOKED, says_sparse
from oligovox.cohort.modalities import canonical
from oligovox.errors import CohortError
from oligovox.files import inside, read_json, read_tsv, write_json, write_tsv


@dataclass(frozen=True, kw_only=True)
class Case:
    """One imaging session of one person.

    Attributes:
        subject: pseudonymous identifier without 'sub-'; splits are drawn on this, never on the session.
        session: label of the visit without 'ses-', '' where there is only one.
        images: modality (canonical name) → NIfTI file; any non-empty subset of the sequences.
        label: lesion mask on the grid of one of the images, or None where nobody drew one.
        sparse: the label says of a part only what is there, and holds `unlooked` elsewhere; such a case trains and is never scored.
        unlooked: value of a sparse label where nobody looked; 255 but for folders of other tools that say another.
        brain: brain mask, or None.
        repeats: modality → further runs of that image, with the same settings in the same session. `ready` averages them with it; a
            plan may name them as channels of their own (`FLAIR_run-2`).
        dataset: which cohort the case comes from ('' in a cohort of one source).
        info: further columns of participants.tsv (age, site, …), as text.

    Raises:
        CohortError: no image is given, or a name could escape from a folder.
        SettingsError: a modality name is not known.
    """

    subject: str
    session: str = ""
    images: Mapping[str, Path]
    label: Path | None = None
    sparse: bool = False
    unlooked: int = NOBODY_LOOKED
    brain: Path | None = None
    repeats: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    dataset: str = ""
    info: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in (self.subject, self.session, self.dataset):
            if not all(c.isascii() and (c.isalnum() or c in "+-_.") for c in part) or part.startswith("."):
                raise CohortError(
                    f"'{part}' cannot be a subject, session or dataset name; use letters, digits, '-', '+', '_', '.'"
                )
        if not self.subject:
            raise CohortError("a case has no subject name")
        if not self.images:
            raise CohortError(f"{self.name}: no image; every case needs at least one sequence")
        images = {canonical(name): path for name, path in self.images.items()}
        if len(images) < len(self.images):
            raise CohortError(
                f"{self.name}: {', '.join(self.images)} name the same sequence twice; keep one file for each"
            )
        object.__setattr__(self, "images", images)
        repeats = {canonical(name): tuple(paths) for name, paths in self.repeats.items() if paths}
        object.__setattr__(self, "repeats", {name: repeats[name] for name in images if name in repeats})

    @property
    def name(self) -> str:
        """'sub-01' or 'sub-01_ses-1', with the dataset before it where there is one: unique in a cohort."""
        session = f"_ses-{self.session}" if self.session else ""
        dataset = f"{self.dataset}_" if self.dataset else ""
        return f"{dataset}sub-{self.subject}{session}"

    @property
    def runs(self) -> dict[str, dict[str, Path]]:
        """Sequence → the runs beside its image, as {"FLAIR": {"FLAIR_run-2": path}}; those that were repeated only."""
        return {
            name: {f"{name}_run-{number}": path for number, path in enumerate(paths, start=2)}
            for name, paths in self.repeats.items()
        }

    @property
    def acquisitions(self) -> dict[str, Path]:
        """Every image: sequence or run → path."""
        return {**self.images, **{key: path for found in self.runs.values() for key, path in found.items()}}

    @property
    def files(self) -> dict[str, Path]:
        """Every file: sequence, run, 'label' or 'brain' → path."""
        return self.acquisitions | {key: path for key, path in (("label", self.label), ("brain", self.brain)) if path}

    @property
    def person(self) -> str:
        """What a split is drawn on: the subject, with the dataset before it where there is one."""
        return f"{self.dataset}_{self.subject}" if self.dataset else self.subject


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Cases with one label scheme; on disk a TSV (one row a case) and a JSON sidecar of the same stem.

    Attributes:
        cases: in order of name; names are unique.
        labels: foreground class name → value in the label files; 0 is background and not listed.
        regions: region name → classes it is made of, where the folder speaks of regions that overlap; empty elsewhere.
        name: for messages and the report.

    Raises:
        CohortError: empty, two cases of the same name, or a region of classes that there are not.
    """

    cases: tuple[Case, ...]
    labels: Mapping[str, int] = field(default_factory=lambda: {"lesion": 1})
    regions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    name: str = "cohort"

    def __post_init__(self) -> None:
        object.__setattr__(self, "cases", tuple(sorted(self.cases, key=lambda case: case.name)))
        if not self.cases:
            raise CohortError(f"{self.name}: no case; expected at least one session with a NIfTI image")
        names = [case.name for case in self.cases]
        for first, second in pairwise(names):
            if first == second:
                raise CohortError(f"{self.name}: '{first}' is listed twice; every session needs a name of its own")
        for region, classes in self.regions.items():
            if unknown := [name for name in classes if name not in self.labels]:
                raise CohortError(f"{self.name}: region '{region}' holds '{unknown[0]}', which is no class")

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Every sequence that some case has, sorted."""
        return tuple(sorted({name for case in self.cases for name in case.images}))

    @property
    def people(self) -> tuple[str, ...]:
        """Everyone in the cohort, sorted; one person can have several cases."""
        return tuple(sorted({case.person for case in self.cases}))

    @property
    def labelled(self) -> tuple[Case, ...]:
        """Cases with a label file."""
        return tuple(case for case in self.cases if case.label)

    def of(self, people: Iterable[str]) -> tuple[Case, ...]:
        """The cases of these people.

        Raises:
            CohortError: someone is not in the cohort.
        """
        wanted = set(people)
        if missing := sorted(wanted - set(self.people)):
            raise CohortError(f"{self.name}: no subject '{missing[0]}'; there are {', '.join(self.people[:8])} …")
        return tuple(case for case in self.cases if case.person in wanted)

    def save(self, path: Path) -> None:
        """Write `path` (.tsv) and its .json sidecar; file paths relative to the table where they lie below it."""
        home = path.parent.resolve()
        unlooked = {c.name: c.unlooked for c in self.cases if c.sparse and c.unlooked != NOBODY_LOOKED}
        runs = {name: max((case.runs.get(name, {}) for case in self.cases), key=len) for name in self.modalities}
        repeats = {name: list(found) for name, found in runs.items() if found}
        columns = [
            "subject",
            "session",
            "dataset",
            *self.modalities,
            *(key for found in repeats.values() for key in found),
        ]
        columns += ["label", *["unlooked"][: len(unlooked)], "brain"]
        keys = sorted({key for case in self.cases for key in case.info})
        extra = {key: f"info_{key}" if key in (*columns, "unlooked") else key for key in keys}
        rows = [
            {"subject": c.subject, "session": c.session, "dataset": c.dataset, "unlooked": unlooked.get(c.name)}
            | {extra[key]: value for key, value in c.info.items()}
            | {key: _relative(file, home) for key, file in c.files.items()}
            for c in self.cases
        ]
        write_tsv(path, rows, [*columns, *extra.values()])
        write_json(
            path.with_suffix(".json"),
            {
                "Name": self.name,
                "Labels": dict(self.labels),
                **(
                    {"Regions": {name: list(classes) for name, classes in self.regions.items()}} if self.regions else {}
                ),
                "Modalities": list(self.modalities),
                **({"Repeats": repeats} if repeats else {}),
                "Info": extra,
            },
        )

    @classmethod
    def load(cls, path: Path) -> Cohort:
        """Read what `save` wrote; the table may point to files below its own folder or, with absolute paths, elsewhere.

        Raises:
            CohortError: table or sidecar missing or malformed; a listed file is missing.
        """
        sidecar = read_json(path.with_suffix(".json"))
        try:
            cases = tuple(_read_row(path, row, sidecar) for row in read_tsv(path))
            regions = {name: tuple(classes) for name, classes in sidecar.get("Regions", {}).items()}
            return cls(cases=cases, labels=sidecar["Labels"], regions=regions, name=sidecar["Name"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CohortError(f"{path}: table or sidecar lacks {error}; expected what `Cohort.save` writes") from error


def merge(cohorts: Mapping[str, Cohort]) -> Cohort:
    """One cohort of several: each case keeps the key of its cohort as `dataset`, so that names stay unique.

    Raises:
        CohortError: the label schemes differ.
    """
    schemes = {key: dict(cohort.labels) for key, cohort in cohorts.items()}
    first = next(iter(schemes.values()))
    regions = next(iter(cohorts.values())).regions
    for key, scheme in schemes.items():
        if scheme != first:
            raise CohortError(f"cohort '{key}' has the labels {scheme}, the first one {first}; they must be the same")
    cases = tuple(replace(case, dataset=key) for key, cohort in cohorts.items() for case in cohort.cases)
    return Cohort(cases=cases, labels=first, regions=regions, name=" + ".join(cohorts))


def _read_row(table: Path, row: Mapping[str, str], sidecar: Mapping[str, Any]) -> Case:
    runs = sidecar.get("Repeats", {})
    keys = (*sidecar["Modalities"], *(key for found in runs.values() for key in found), "label", "brain")
    files = {key: _resolve(table, row[key]) for key in keys if row.get(key)}
    repeats = {name: tuple(files.pop(key) for key in found if key in files) for name, found in runs.items()}
    label = files.pop("label", None)
    return Case(
        subject=row["subject"],
        session=row["session"],
        dataset=row["dataset"],
        label=label,
        sparse=label is not None and (bool(row.get("unlooked")) or says_sparse(label)),
        unlooked=int(row.get("unlooked") or NOBODY_LOOKED),
        brain=files.pop("brain", None),
        repeats=repeats,
        images=files,
        info={key: row[column] for key, column in sidecar["Info"].items() if row.get(column)},
    )


def _relative(path: Path, home: Path) -> str:
    path = path.resolve()
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else path.as_posix()


def _resolve(table: Path, text: str) -> Path:
    path = Path(text) if Path(text).is_absolute() else inside(table.parent, text)
    if not path.is_file():
        raise CohortError(f"{table}: {path} is listed but is not there; mend the table or bring the file back")
    return path
