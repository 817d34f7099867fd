"""`oligovox cohort annotate`: labels of a part, derived from full masks and put beside them, never over them.

    OUT/dataset_description.json                     kind, settings, seed, and which masks of whom; the folder belongs to them
    OUT/sub-01/anat/sub-01_desc-sparse_dseg.nii.gz   class where somebody looked, 255 where nobody did
    OUT/sub-01/anat/sub-01_desc-sparse_dseg.json     what was done, and how much is known; written last
    OUT/desc-sparse_dseg.tsv                         names of the values, where there are several classes
    OUT/cohort.tsv, cohort.json                      everyone, with the new labels in place of the old ones: what to prepare
    OUT/labels.png                                   on request: what is labelled, of the first people

Three kinds write no mask, but only the table: `full` leaves people as they are, `none` takes their label away, and `rater` takes the mask of
one of several raters, drawn for each exam.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from oligovox.cohort.annotate import DECLARED, NOBODY_LOOKED, SPARSE, Sparse, as_file, chance_of, sparsify
from oligovox.cohort.bids import read_bids
from oligovox.cohort.manifest import Case, Cohort
from oligovox.errors import CohortError, LabelError, OutputError, SettingsError, nearest
from oligovox.experiment.cohorts import Show, quiet, read_cohort
from oligovox.experiment.recipe import nested
from oligovox.files import atomic_file, check_writable, hash_file, hash_json, read_json, sweep, write_json, write_tsv
from oligovox.prepare.geometry import Volume, read_volume, resample_to, same_grid, spacing_of, to_ras
from oligovox.report.labels import labels_png, read_view
from oligovox.settings import Settings, parse

_FORMAT = 1  # raise it when the same mask, settings and seed give another label
_TITLE = "oligovox labels of a part"
_SHOWN = 3  # exams in the picture
_ROUNDING = 1e-3  # what the scale factors of a header may leave beside a whole number


class _AsItIs(Settings):
    """Of full and none: nothing to choose."""


class OneRater(Settings):
    """Of rater: whose masks there are."""

    raters: tuple[str, ...] = Field(
        ("rater1", "rater2", "rater3"),
        min_length=1,
        description="names of the masks; one that is there is drawn for each exam",
    )


_OTHER = {
    "Kind": "another kind",
    "Settings": "other settings",
    "Seed": "another seed",
    "Data": "other data",
    "Mask": "another mask",
    "People": "other people",
}
"""What a folder of labels belongs to, and how a message says that it is another."""

_Choice = Sparse | OneRater | _AsItIs
_SPARSE_KINDS: tuple[str, ...] = get_args(Sparse.model_fields["kind"].annotation)
_OTHER_KINDS: Mapping[str, type[OneRater | _AsItIs]] = {"full": _AsItIs, "none": _AsItIs, "rater": OneRater}
KINDS = (*_SPARSE_KINDS, *_OTHER_KINDS)
"""What a label can be made into."""


def annotate(
    data: Path | str,
    out: Path | str,
    *,
    kind: str = "slices",
    changes: Sequence[str] = (),
    people: Sequence[str] = (),
    seed: int = 0,
    mask: str = "lesion",
    picture: bool = False,
    show: Show = quiet,
) -> dict[str, Any]:
    """Derive labels of a part from full masks, for some people or for all; `data` is only read.

    The table that comes out is a cohort like any other: annotate it again, to give other people another kind.

    Args:
        data: BIDS folder or cohort table with full masks.
        out: folder to write.
        kind: slices, every, random, largest, lesions, scribbles, boxes; or full, none, rater.
        changes: settings of `cohort.annotate.Sparse` (of rater: raters) that differ from the defaults, as key=value.
        people: whose labels are made sparse; empty: everyone's. The others stay as they are.
        seed: of the chance; each exam has its own, whoever else there is.
        mask: name of the full masks in derivatives.
        picture: also draw labels.png.
        show: progress.

    Returns:
        "cohort" (the table), "annotated" (exams), "kind", and "looked_at": mean share of the voxels that somebody looked at.

    Raises:
        SettingsError: no such kind or setting.
        CohortError: somebody is not in the cohort.
        LabelError: somebody named has no label or a part of one, or nothing would be labelled.
        OutputError: `out` cannot be written, or holds something else.
    """
    data, out = Path(data), Path(out)
    settings = _settings(kind, changes)
    if seed < 0:
        raise SettingsError(f"seed = {seed}; expected at least 0")
    if picture and kind == "none":
        raise SettingsError("annotate none leaves no label to draw; leave the picture out")
    cohort = read_cohort(data, mask=mask)
    chosen = _chosen(cohort, people, data)
    check_writable(out)
    about = {
        "Kind": kind,
        "Settings": settings.model_dump(mode="json"),
        "Seed": seed,
        "Data": str(data.resolve()),
        "Mask": mask,
        "People": sorted({*people}) or "everyone",
    }
    _check_folder(out, about)
    jobs = {case.name: _Job(case, out, settings, seed) for case in chosen if isinstance(settings, Sparse)}
    for job in jobs.values():  # all of it is tried before anything is written
        if not job.finished():
            job.derive()
    relabelled = {} if jobs else {case.name: case for case in _without_job(chosen, kind, settings, seed, data)}
    _describe(out, about)
    if jobs and len(cohort.labels) > 1:
        rows = [{"index": value, "name": name} for name, value in cohort.labels.items()]
        write_tsv(out / f"desc-{SPARSE}_dseg.tsv", rows, ("index", "name"))
    tick, shares = show(f"annotate {kind}"), []
    for done, (name, job) in enumerate(jobs.items(), start=1):
        shares.append(job.write())
        relabelled[name] = replace(job.case, label=job.label, sparse=True)
        tick(done, len(jobs), name)
    cases = tuple(relabelled.get(case.name, case) for case in cohort.cases)
    replace(cohort, cases=cases).save(out / "cohort.tsv")
    found: dict[str, Any] = {"cohort": str(out / "cohort.tsv"), "annotated": len(chosen), "kind": kind}
    if shares:
        found["looked_at"] = round(fmean(shares), 4)
    if picture:
        found["picture"] = str(_picture([relabelled[case.name] for case in chosen], out / "labels.png"))
    return found


@dataclass(frozen=True)
class _Job:
    """One exam."""

    case: Case
    out: Path
    settings: Sparse
    seed: int

    @property
    def full(self) -> Path:
        assert self.case.label is not None, "only labelled cases are chosen"
        return self.case.label

    @property
    def label(self) -> Path:
        """Where the derived label lies."""
        name = self.case.name.removeprefix(f"{self.case.dataset}_") if self.case.dataset else self.case.name
        session = f"ses-{self.case.session}" if self.case.session else ""
        home = self.out / self.case.dataset / f"sub-{self.case.subject}" / session / "anat"
        return home / f"{name}_desc-{SPARSE}_dseg.nii.gz"

    @property
    def sidecar(self) -> Path:
        return self.label.with_name(f"{self.label.name.removesuffix('.nii.gz')}.json")

    @property
    def fingerprint(self) -> str:
        """Of everything the label depends on."""
        files = [self.full] + ([self.case.brain] if self.case.brain and self.settings.kind == "scribbles" else [])
        made = [self.settings.model_dump(mode="json"), self.seed, [hash_file(file) for file in files]]
        return hash_json([_FORMAT, self.case.name, made])

    def finished(self) -> bool:
        """Whether this very label is there."""
        if not (self.sidecar.is_file() and self.label.is_file() and self.full.is_file()):
            return False
        return bool(read_json(self.sidecar).get("Fingerprint") == self.fingerprint)

    def derive(self) -> tuple[NDArray[np.uint8], Volume]:
        """The label as it is written, and the full one; slices are those of RAS axes, whatever the axes of the file.

        Raises:
            ImageError: a mask cannot be read.
            LabelError: its values are no classes, it has fewer slices than are asked for, or nothing would be labelled.
        """
        full = read_volume(self.full, empty_ok=True)
        values = np.rint(full.array)
        if np.abs(full.array - values).max() > _ROUNDING or values.min() < 0 or values.max() > 127:
            raise LabelError(
                f"{self.full}: has values from {full.array.min():g} to {full.array.max():g}; expected whole numbers from 0 to 127, as a full mask has"
            )
        ras = to_ras(Volume(values.astype(np.uint8), full.affine))
        try:
            known = sparsify(
                ras.array,
                chance_of(self.seed, self.case.name),
                self.settings,
                spacing_of(ras.affine),
                self._brain(full),
            )
        except LabelError as error:
            raise LabelError(f"{self.case.name}: {error}") from None
        if not (known >= 0).any():
            raise LabelError(
                f"{self.case.name}: {self.full} has no lesion, so nothing of it would be labelled as {self.settings.kind}; choose another kind, or name "
                "the people to annotate"
            )
        return resample_to(Volume(as_file(known), ras.affine), full.affine, full.shape, 0).array, full

    def _brain(self, full: Volume) -> NDArray[np.bool_] | None:
        """The brain mask on RAS axes; None without one on the grid of the label."""
        if self.case.brain is None or self.settings.kind != "scribbles":
            return None
        brain = read_volume(self.case.brain, empty_ok=True)
        return to_ras(Volume(brain.array >= 0.5, brain.affine)).array if same_grid(brain, full) else None

    def write(self) -> float:
        """Write the label and its sidecar, unless they are there; returns the share of the voxels that somebody looked at."""
        if self.finished():
            return float(read_json(self.sidecar)["LookedAt"])
        sweep(self.label.parent)
        label, full = self.derive()
        looked, lesion = label != NOBODY_LOOKED, full.array > 0
        image = nib.Nifti1Image(label, full.affine)
        image.header.set_xyzt_units("mm")
        with atomic_file(self.label) as temporary:
            temporary.write_bytes(gzip.compress(image.to_bytes(), 4, mtime=0))
        content = {
            "Description": "Label of a part, derived from a full mask",
            DECLARED: NOBODY_LOOKED,
            "Kind": self.settings.kind,
            "Settings": self.settings.model_dump(mode="json"),
            "Seed": self.seed,
            "Sources": [str(self.full.absolute())],
            "LookedAt": round(float(looked.mean()), 6),
            "LesionLookedAt": round(float((looked & lesion).sum() / lesion.sum()), 6) if lesion.any() else None,
            "Fingerprint": self.fingerprint,
        }
        write_json(self.sidecar, content)
        return float(looked.mean())


def _settings(kind: str, changes: Sequence[str]) -> _Choice:
    if kind not in KINDS:
        raise SettingsError(f"annotate: unknown kind '{kind}'; {nearest(kind, KINDS)}")
    given = nested(changes)
    if "kind" in given:
        raise SettingsError(
            f"annotate {kind}: kind = {given['kind']!r} among the settings; name one kind, by --kind only"
        )
    return (
        parse(_OTHER_KINDS[kind], given, f"annotate {kind}")
        if kind in _OTHER_KINDS
        else parse(Sparse, {**given, "kind": kind}, f"annotate {kind}")
    )


def _chosen(cohort: Cohort, people: Sequence[str], data: Path) -> tuple[Case, ...]:
    """Whose labels are changed; each of them has a full one."""
    chosen = tuple(case for case in (cohort.of(people) if people else cohort.cases) if case.label)
    if missing := sorted(set(people) - {case.person for case in chosen}):
        raise LabelError(f"{data}: '{missing[0]}' has no label to derive another from; name people with a full mask")
    if not chosen:
        raise LabelError(f"{data}: nobody has a label; annotate a cohort with full masks")
    if sparse := [case for case in chosen if case.sparse]:
        raise LabelError(
            f"{sparse[0].name}: only a part of it is labelled already ({sparse[0].label}); name people with a full mask"
        )
    return chosen


def _without_job(cases: Sequence[Case], kind: str, settings: _Choice, seed: int, data: Path) -> list[Case]:
    """The cases of a kind that writes no mask."""
    if kind == "none":
        return [replace(case, label=None) for case in cases]
    if not isinstance(settings, OneRater):
        return list(cases)
    if data.suffix == ".tsv":
        raise SettingsError(
            f"{data}: a table names one mask for each exam; give the BIDS folder with the masks of all raters"
        )
    drawn: dict[str, list[Path]] = {}
    for rater in settings.raters:
        for case in read_bids(data, mask=rater).labelled:
            assert case.label is not None, "labelled"
            drawn.setdefault(case.name, []).append(case.label)
    if missing := [case.name for case in cases if case.name not in drawn]:
        raise LabelError(
            f"{missing[0]}: has no mask of {', '.join(settings.raters)}; say whose there are (--set 'raters=[A,B]')"
        )
    return [
        replace(case, label=drawn[case.name][int(chance_of(seed, case.name).integers(len(drawn[case.name])))])
        for case in cases
    ]


def _check_folder(out: Path, about: Mapping[str, Any]) -> None:
    """Whether the folder is new, or holds what this very call makes; another one would take its labels out of the table."""
    description = out / "dataset_description.json"
    if not out.is_dir() or not any(out.iterdir()):
        return
    before = read_json(description) if description.is_file() else None
    if not isinstance(before, dict) or before.get("Name") != _TITLE:
        raise OutputError(f"{out}: holds files that are not labels made here; choose an empty or a new folder")
    if other := [key for key, value in about.items() if before.get(key) != value]:
        there = before.get(other[0], "not written down by an earlier version")
        raise OutputError(
            f"{out}: holds labels made with {_OTHER[other[0]]} ({there if isinstance(there, str | int) else json.dumps(there)}); "
            f"choose another folder, with {out / 'cohort.tsv'} as the data to keep these labels as well, or remove it"
        )


def _describe(out: Path, about: Mapping[str, Any]) -> None:
    generator = {"Name": "oligovox", "Version": version("oligovox")}
    content = {"Name": _TITLE, "BIDSVersion": "1.10.0", "DatasetType": "derivative", "GeneratedBy": [generator]}
    write_json(out / "dataset_description.json", {**content, **about})


def _picture(cases: Sequence[Case], path: Path) -> Path:
    """The first exams that have a label, each on an image of its grid."""
    views = []
    for case in [case for case in cases if case.label][:_SHOWN]:
        assert case.label is not None, "asked for"
        label = read_volume(case.label, empty_ok=True)
        if image := next((path for path in case.images.values() if same_grid(read_volume(path), label)), None):
            views.append(read_view(case.name, image, case.label))
    if not views:
        raise CohortError(f"{path}: no label to draw lies on the grid of an image of its exam; leave the picture out")
    with atomic_file(path) as temporary:
        temporary.write_bytes(labels_png(views))
    return path
