"""Raw exams made ready, and what was predicted on them brought back to the images as the scanner gave them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from oligovox.cohort.bids import REGIONS
from oligovox.cohort.manifest import Case, Cohort
from oligovox.errors import CohortError, ImageError, InputError, OutputError
from oligovox.experiment.cohorts import Show, quiet, read_cohort
from oligovox.experiment.recipe import nested
from oligovox.files import check_writable, sweep, write_json, write_tsv
from oligovox.infer.brain import WEIGHTS, brain_mask, doubts
from oligovox.prepare.brain import Own
from oligovox.prepare.ready import Ready, ready_person
from oligovox.prepare.ready_back import back
from oligovox.prepare.ready_files import Record, begin, folder_of, label_kind, record_of, stem_of
from oligovox.prepare.registration import simple_itk
from oligovox.prepare.workers import run_cases
from oligovox.report.ready import draw_ready, warnings_of, write_ready_page
from oligovox.settings import parse

_log = logging.getLogger(__name__)

_PICTURES = "figures"
_RECORDS = "sub-*_desc-ready.json"
_LABEL_MAP = re.compile(r"_(mask|dseg)\.nii(\.gz)?$")


def ready(
    data: Path | str,
    out: Path | str,
    *,
    changes: Sequence[str] = (),
    mask: str = "lesion",
    layout: str = "",
    sequences: Sequence[str] = (),
    labels: Sequence[str] = (),
    workers: int = 2,
    show: Show = quiet,
) -> dict[str, Any]:
    """Register the sequences of every exam, find the brain, and write BIDS derivatives on one grid, with a page to look at.

    Args:
        data: a folder of any layout that is known, or a list or table of files.
        out: folder to write, outside of `data`; a killed run goes on there, and exams that have not changed are skipped.
        changes: settings of `prepare.ready.Ready`, as "bias=true".
        mask: which label, in the words of the layout.
        layout: name of the layout; '': as it looks.
        sequences: what the folder calls a sequence whose name is not known, as NAME=FLAIR.
        labels: value of each class in the label files, as hole=2; empty: as the folder says.
        workers: processes, each with the exams of one person.
        show: progress.

    Returns:
        ready (folder), page, exams, registered (sequences that were moved), look (what a person should look at).

    Raises:
        SettingsError: a wrong setting, or SimpleITK is needed and not installed.
        InputError: a file that cannot be used; exams that were finished stay.
        OutputError: `out` cannot be written, or lies in `data`.
    """
    data, out = Path(data), Path(out)
    settings = parse(Ready, nested(changes), "ready")
    if data.is_dir() and out.resolve().is_relative_to(data.resolve()):
        raise OutputError(
            f"{out}: lies in {data}, where its masks would be taken for masks of the raw images; choose a folder beside it"
        )
    if settings.template and not settings.template.is_file():
        raise ImageError(settings.template, "the template is missing", "name a NIfTI file")
    cohort = read_cohort(data, mask=mask, layout=layout, sequences=sequences, labels=labels)
    if (
        settings.align != "never"
        or settings.bias
        or settings.template
        or (settings.visits and len(cohort.people) < len(cohort))
    ):
        simple_itk()
    check_writable(out)
    people = _people(cohort, out)
    begin(out, settings.model_dump(mode="json"), cohort.labels)
    if cohort.regions:
        regions = {name: list(classes) for name, classes in cohort.regions.items()}
        write_json(out / f"{label_kind(cohort.labels)}.json", {REGIONS: regions})
    _participants(cohort, out)
    progress, count = show("ready"), 0

    def done(name: str) -> None:
        nonlocal count
        count += 1
        progress(count, len(people), name)

    job = partial(_ready_person, settings=settings, labels=dict(cohort.labels), out=out, own=_network())
    found = run_cases(job, people, workers, done)
    records = [record for person in found.values() for record in person]
    pictures = {record["name"]: place for record in records if (place := _picture(record, out)).is_file()}
    page = write_ready_page(out / "ready.html", records, pictures, settings.model_dump(mode="json"))
    steps = [step for record in records for step in record["steps"] if step["step"] != "repeat"]
    moved = sum(step.get("improved", False) for step in steps)
    look = [warning for record in records for warning in warnings_of(record)]
    return {"ready": str(out), "page": str(page), "exams": len(records), "registered": moved, "look": look}


def ready_back(predictions: Path | str, ready: Path | str, out: Path | str, *, show: Show = quiet) -> dict[str, Any]:
    """Bring label maps that were predicted on ready exams to the grids of the original images.

    Args:
        predictions: folder of `oligovox predict`, or one label map of a folder with one exam.
        ready: folder that `ready` wrote.
        out: folder to write.
        show: progress.

    Returns:
        back (folder), exams, files.

    Raises:
        CohortError: no ready exams there, none has a prediction, or one has several.
        GeometryError: a prediction lies on another grid.
    """
    predictions, ready, out = Path(predictions), Path(ready), Path(out)
    records = {
        path.parent.parent: record for path in _whole(ready, _RECORDS) if (record := record_of(path.parent.parent))
    }
    if not records:
        raise CohortError(f"{ready}: no ready exams in it; name the folder that `oligovox ready` wrote")
    chosen = _of_exams(predictions, records)
    progress, files = show("back"), 0
    for number, (folder, path) in enumerate(chosen.items(), start=1):
        files += len(back(path, folder, out / folder.relative_to(ready)))
        progress(number, len(chosen), records[folder]["name"])
    return {"back": str(out), "exams": len(chosen), "files": files}


def _of_exams(predictions: Path, records: Mapping[Path, Record]) -> dict[Path, Path]:
    """Folder of each exam → its prediction, by the beginning of the file's name."""
    if predictions.is_file():
        if len(records) > 1:
            starts = {folder: _start(record) for folder, record in records.items()}
            named = [folder for folder, start in starts.items() if _is_of(predictions, start)]
            if len(named) != 1:
                raise CohortError(
                    f"{predictions}: its name begins as no exam of the folder; call it {next(iter(starts.values()))}_dseg.nii.gz"
                )
            return {named[0]: predictions}
        return dict.fromkeys(records, predictions)
    found = {}
    for folder, record in records.items():
        start = _start(record)
        there = _whole(predictions, f"{start}_*.nii*")
        files = [path for path in there if _is_of(path, start) and _LABEL_MAP.search(path.name)]
        if len(files) > 1:
            raise CohortError(f"{files[0]} and {files[1]}: two predictions of one exam; keep one, or name one file")
        if files:
            found[folder] = files[0]
    if not found:
        raise CohortError(
            f"{predictions}: no prediction of any of the {len(records)} ready exams; expected {_start(next(iter(records.values())))}_….nii.gz"
        )
    return found


def _is_of(path: Path, start: str) -> bool:
    """Whether a file's name begins as that of an exam; sub-1_ses-2_dseg.nii.gz is not of sub-1, which has no session."""
    return path.name.startswith(f"{start}_") and ("_ses-" in start or not path.name.startswith(f"{start}_ses-"))


def _whole(folder: Path, pattern: str) -> list[Path]:
    """The files below a folder that match, without what a killed run left."""
    found = sorted(folder.rglob(pattern))
    return [path for path in found if not any(part.startswith(".tmp-") for part in path.relative_to(folder).parts)]


def _start(record: Record) -> str:
    return str(record["record"]).removesuffix("_desc-ready.json")


def _network() -> Own | None:
    """Our own network for brain masks, where its weights are there."""
    return brain_mask if WEIGHTS.is_file() else None


def _people(cohort: Cohort, out: Path) -> dict[str, tuple[Case, ...]]:
    """Person → exams; no two persons or exams may get the same name, and `out` may hold nobody else."""
    persons: dict[str, str] = {}
    exams: dict[str, str] = {}
    for case in cohort.cases:
        stem = stem_of(case)
        for names, name, what in ((persons, stem.split("_")[0], case.person), (exams, stem, case.name)):
            if (other := names.setdefault(name, what)) != what:
                raise CohortError(f"'{other}' and '{what}' would both be called {name} in BIDS; rename one")
    wanted = {folder_of(case, out) for case in cohort.cases}
    for folder in (out, *out.glob("sub-*")):
        sweep(folder)
    for path in _whole(out, _RECORDS):
        if path.parent.parent not in wanted:
            raise OutputError(
                f"{path.parent.parent}: an exam that is not in this cohort; remove it, or choose another folder"
            )
    people: dict[str, tuple[Case, ...]] = {}
    for case in cohort.cases:
        people[case.person] = (*people.get(case.person, ()), case)
    return people


def _participants(cohort: Cohort, out: Path) -> None:
    """participants.tsv with what is known about each person."""
    rows: dict[str, dict[str, str]] = {}
    for case in cohort.cases:
        person = stem_of(case).split("_")[0]
        rows.setdefault(
            person,
            {"participant_id": person}
            | {k: " ".join(v.split()) for k, v in case.info.items() if k != "participant_id"},
        )
    columns = sorted({key for row in rows.values() for key in row} - {"participant_id"})
    write_tsv(out / "participants.tsv", list(rows.values()), ["participant_id", *columns])


def _ready_person(
    cases: Sequence[Case], settings: Ready, labels: Mapping[str, int], out: Path, own: Own | None
) -> list[Record]:
    """One person in a worker: exams and their pictures."""
    records = ready_person(cases, settings, labels, out, own=own, doubts=doubts)
    by_name = {record["name"]: record for record in records}
    for case, record in ((case, by_name[case.name]) for case in cases):
        target, first = _picture(record, out), by_name.get(record["first"])
        if target.is_file():
            continue
        for older in target.parent.glob(f"{stem_of(case)}-*.png"):
            older.unlink()
        masks = [name for name in record["files"] if name.endswith("_desc-brain_mask.nii.gz")]
        mask = folder_of(case, out) / "anat" / masks[0] if masks else None
        template = settings.template if first is None else None
        try:
            draw_ready(record, mask, target, first=first, template=template)
        except InputError as error:  # a page never fails because of a picture
            _log.warning("%s: no picture: %s", case.name, error)
    return records


def _picture(record: Record, out: Path) -> Path:
    """Its name changes with the exam."""
    return out / _PICTURES / f"{_start(record)}-{record['content'][:8]}.png"
