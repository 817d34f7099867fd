"""A simulated cohort on disk, in BIDS: images at the top; masks, label maps and truth tables under derivatives/oligovox-simulate.

Every visit is made alone, in a worker of its own memory, from a seed that depends on the cohort's seed and the subject's number only.
The note `sub-XXX_desc-simulation.json` is written last: a visit is complete when its note is there and names the same recipe and seed,
so a killed run goes on where it stopped. However many subjects there are, only a few are in memory.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from oligovox.cohort.annotate import SPARSE
from oligovox.cohort.bids import DERIVED_SEQUENCES, SUFFIXES
from oligovox.errors import InputError, OutputError, SettingsError, WorkerError
from oligovox.files import atomic_file, check_writable, hash_file, hash_json, read_json, sweep, write_json, write_tsv
from oligovox.processes import end_with_parent
from oligovox.simulate.body import RIM_CLASSES
from oligovox.simulate.recipe import BrainRecipe, Recipe
from oligovox.simulate.subject import SimulatedSubject, simulate_subject, subject_seed

_FORMAT = 3  # raise it when the same recipe and seed give other files
_BIDS = "1.10.0"
_PIPELINE = "oligovox-simulate"
_COMPRESSION = 4


_INT16 = np.iinfo(np.int16)
_INSIDE = {"brain": "brain", "abdomen": "body"}  # name of the mask of what was scanned
_SEVERAL = (SPARSE, "change", "rims")  # these have more values than 0 and 1
_UNITS = {
    "age": {"Description": "age", "Units": "year"},
    "site": {"Description": "scanner; all scans of one site share their settings"},
    "field_T": {"Description": "field strength", "Units": "T"},
    "labelled": {"Description": "whether label files were written", "Levels": {"yes": "yes", "no": "no"}},
    "brain_mL": {"Description": "volume of the brain mask", "Units": "mL"},
    "lesion_mL": {"Description": "volume of the lesion mask, at the first visit", "Units": "mL"},
    "lesions": {"Description": "26-connected lesions at the first visit; of tumours with their resection cavity"},
}
"""Columns of participants.tsv after participant_id; those that no subject of a cohort has are left out."""


@dataclass(frozen=True)
class _Job:
    """One visit of one subject."""

    out: Path
    recipe: Recipe
    seed: int
    number: int  # from 1
    visit: int  # from 1
    labelled: bool
    donors: str = ""  # hash of the masks that are implanted

    @property
    def subject(self) -> str:
        return f"sub-{self.number:03d}"

    @property
    def name(self) -> str:
        return f"{self.subject}_ses-{self.visit}" if _visits(self.recipe) > 1 else self.subject

    @property
    def below(self) -> str:
        return f"{self.subject}/ses-{self.visit}/anat" if _visits(self.recipe) > 1 else f"{self.subject}/anat"

    @property
    def anat(self) -> Path:
        return self.out / self.below

    @property
    def derived(self) -> Path:
        return self.out / "derivatives" / _PIPELINE / self.below

    @property
    def note(self) -> Path:
        return self.derived / f"{self.name}_desc-simulation.json"

    @property
    def fingerprint(self) -> str:
        """Of everything the files of this visit depend on."""
        return hash_json(
            {
                "format": _FORMAT,
                "version": _release(),
                "recipe": self.recipe.model_dump(mode="json"),
                "donors": self.donors,
                "seed": self.seed,
                "number": self.number,
                "label": self.labelled,
            }
        )


def simulate_cohort(
    out: Path,
    recipe: Recipe,
    *,
    subjects: int,
    seed: int,
    labelled: int | None = None,
    workers: int = 2,
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Write a simulated cohort.

    Args:
        out: folder of the BIDS dataset; made where absent.
        recipe: what the subjects are like.
        subjects: how many, from sub-001 on.
        seed: seed of the cohort, 0 or more; sub-007 is the same whatever the number of subjects.
        labelled: only the first so many subjects get labels and truth tables; None: all of them.
        workers: processes, each with one subject in memory; 1 works in this process.
        progress: called with (visits done, visits, name) after each.

    Returns:
        `out`.

    Raises:
        SettingsError: a number is out of range.
        OutputError: the folder cannot be written, or holds subjects that this call would not make.
        WorkerError: a subject failed; those already complete stay.
    """
    labelled = subjects if labelled is None else labelled
    for name, value, least in (
        ("subjects", subjects, 1),
        ("seed", seed, 0),
        ("labelled", labelled, 0),
        ("workers", workers, 1),
    ):
        if value < least:
            raise SettingsError(f"{name} = {value}; expected at least {least}")
    check_writable(out)
    sweep(out)
    visits = _visits(recipe)
    total = subjects * visits
    donors = _donor_hash(recipe.donors) if isinstance(recipe, BrainRecipe) else ""

    def jobs() -> Iterator[_Job]:
        for number in range(1, subjects + 1):
            for visit in range(1, visits + 1):
                yield _Job(out, recipe, seed, number, visit, number <= labelled, donors)

    _check_folder(out, recipe, seed, subjects)
    _describe(out, recipe, seed)
    for done, job in enumerate(_run(jobs(), workers), start=1):
        if progress:
            progress(done, total, job.name)
    rows = [_row(job, read_json(job.note)) for job in jobs() if job.visit == 1]
    columns = [name for name in _UNITS if any(name in row for row in rows)]
    write_tsv(out / "participants.tsv", rows, ("participant_id", *columns))
    write_json(out / "participants.json", {name: _UNITS[name] for name in columns})
    facts = read_json(_Job(out, recipe, seed, 1, 1, labelled > 0).note)["facts"]
    _write_lookup(out, facts["labels"], facts["classes"])
    if recipe.sparse:
        _write_lookup(out, SPARSE, facts["classes"])
    if isinstance(recipe, BrainRecipe) and recipe.rims:
        _write_lookup(out, "rims", RIM_CLASSES)
    return out


def _check_folder(out: Path, recipe: Recipe, seed: int, subjects: int) -> None:
    """Whether the folder is new, or holds this very cohort."""
    description = out / "dataset_description.json"
    for found in sorted(out.glob("sub-*")):
        number = found.name.removeprefix("sub-")
        if not (number.isdigit() and found.name == f"sub-{int(number):03d}" and 1 <= int(number) <= subjects):
            raise OutputError(
                f"{out}: has {found.name}, which this run of {subjects} subjects does not make; choose another folder"
            )
    if any(out.glob("[!.]*")) and not _is_ours(description):
        raise OutputError(f"{out}: holds files that were not simulated here; choose an empty or a new folder")
    if description.is_file():
        before, now = read_json(description), _description(recipe, seed)
        other = [key for key in ("Recipe", "Seed", "GeneratedBy") if before.get(key) != now[key]]
        if other:
            what = {"Recipe": "recipe", "Seed": "seed", "GeneratedBy": "version of oligovox"}[other[0]]
            raise OutputError(f"{out}: holds a cohort made with another {what}; choose another folder, or remove it")


def _visits(recipe: Recipe) -> int:
    return recipe.visits if isinstance(recipe, BrainRecipe) else 1


def _run(jobs: Iterator[_Job], workers: int) -> Iterator[_Job]:
    """Complete every job, in any order; at most twice as many as there are workers wait their turn."""
    if workers == 1:
        for job in jobs:
            if not _complete(job):
                with _blamed(job):
                    _make(job)
            yield job
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        futures: dict[Future[None], _Job] = {}
        try:
            for job in jobs:
                if _complete(job):
                    yield job
                    continue
                futures[pool.submit(_make, job)] = job
                if len(futures) >= 2 * workers:
                    yield from _finished(futures, FIRST_COMPLETED)
            yield from _finished(futures, ALL_COMPLETED)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _finished(futures: dict[Future[None], _Job], until: str) -> Iterator[_Job]:
    """Wait, and take out those that are done."""
    done, _ = wait(futures, return_when=until)
    for future in done:
        job = futures.pop(future)
        with _blamed(job):
            future.result()
        yield job


@contextmanager
def _blamed(job: _Job) -> Iterator[None]:
    """Turn an error into one that names the subject; errors about input stay what they are."""
    try:
        yield
    except InputError:
        raise
    except BrokenProcessPool as error:
        raise WorkerError(
            job.name,
            "a worker process was killed (out of memory?); run again with fewer workers "
            "(in a script of your own: start below `if __name__ == '__main__':`)",
        ) from error
    except Exception as error:
        raise WorkerError(job.name, f"{type(error).__name__}: {error}") from error


def _make(job: _Job) -> None:
    """Simulate one visit and write its files; the note comes last."""
    for folder in (job.anat, job.derived):
        sweep(folder)
        for stale in folder.glob(f"{job.name}_*"):
            stale.unlink()
    person = simulate_subject(job.recipe, subject_seed(job.seed, job.number), visit=job.visit)
    files = _write_images(job, person) + (_write_truth(job, person) if job.labelled else [])
    inside = job.derived / f"{job.name}_desc-{_INSIDE[job.recipe.body]}_mask.nii.gz"
    files.append(_write(inside, person.brain.astype(np.uint8), person))
    sizes = {path.relative_to(job.out).as_posix(): path.stat().st_size for path in files}
    told = {k: v for k, v in person.facts.items() if job.labelled or k not in person.truth.told}
    write_json(job.note, {"fingerprint": job.fingerprint, "files": sizes, "facts": told})


def _write_images(job: _Job, person: SimulatedSubject) -> list[Path]:
    """Images and their sidecars."""
    files = []
    for modality, image in person.images.items():
        sidecar = _sidecar(job, person, modality)
        if modality == "T2starw" and person.phase is not None:
            stem = job.anat / f"{job.name}_part-mag_T2starw"
            phase = job.anat / f"{job.name}_part-phase_T2starw"
            files += _write_image(phase, person.phase, person, sidecar | {"Units": "rad"})
        else:
            home = job.derived if modality in DERIVED_SEQUENCES else job.anat
            stem = home / f"{job.name}_{SUFFIXES.get(modality, modality)}"
        whole = np.rint(image).clip(_INT16.min, _INT16.max).astype(np.int16)
        files += _write_image(stem, whole, person, sidecar)
    return files


def _write_image(stem: Path, array: NDArray[Any], person: SimulatedSubject, sidecar: dict[str, Any]) -> list[Path]:
    beside = stem.with_name(f"{stem.name}.json")
    write_json(beside, sidecar)
    return [_write(stem.with_name(f"{stem.name}.nii.gz"), array, person), beside]


def _write_truth(job: _Job, person: SimulatedSubject) -> list[Path]:
    """Label maps, the lesion mask, the numbered lesions and their table."""
    truth, stem = person.truth, f"{job.name}_"
    several = len(truth.classes) > 1
    maps = {
        f"desc-{name}_{'dseg' if several or name in _SEVERAL else 'mask'}": array
        for name, array in truth.others.items()
    }
    if truth.lesions is not None:
        maps["label-lesion_mask"] = truth.lesions.astype(np.uint8)
    if several:
        maps[f"desc-{truth.name}_dseg"] = truth.labels
    if truth.instances is not None:
        maps["desc-instances_dseg"] = truth.instances.astype(np.uint16)
    files = [_write(job.derived / f"{stem}{name}.nii.gz", array, person) for name, array in maps.items()]
    if truth.instances is not None:
        table = job.derived / f"{stem}desc-instances_dseg.tsv"
        columns = list(dict.fromkeys(key for row in truth.rows for key in row)) or ["id"]
        write_tsv(table, list(truth.rows), tuple(columns))
        files.append(table)
    return files


def _complete(job: _Job) -> bool:
    """The note is there, was made from the same recipe and seed, and all files that it lists have the size they were written with."""
    try:
        note = json.loads(job.note.read_text(encoding="utf-8"))
        known, files = note["fingerprint"] == job.fingerprint, note["files"].items()
        return known and all((job.out / file).stat().st_size == size for file, size in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or damaged: made again
        return False


def _write(path: Path, array: NDArray[Any], person: SimulatedSubject) -> Path:
    """NIfTI in RAS order, compressed without a time stamp: the same subject is the same bytes."""
    image = nib.Nifti1Image(array, person.affine)
    image.header.set_xyzt_units("mm")
    with atomic_file(path) as temporary:
        temporary.write_bytes(gzip.compress(image.to_bytes(), _COMPRESSION, mtime=0))
    return path


def _sidecar(job: _Job, person: SimulatedSubject, modality: str) -> dict[str, Any]:
    """BIDS names for what is known about a scan, in BIDS' units: s, degrees, T, mm."""
    scan = person.facts["scans"][modality]
    sequence = scan["sequence"]
    names = {"tr": "RepetitionTime", "te": "EchoTime", "ti": "InversionTime"}
    times = {bids: _seconds(sequence[ours]) for ours, bids in names.items() if ours in sequence}
    if modality == "T2starw":
        times["EchoTime"] = times["EchoTime"][-1]
    elif modality == "QSM":
        times = {"EchoTime": times["EchoTime"], "RepetitionTime": times["RepetitionTime"], "Units": "ppb"}
    return {
        "Simulated": True,
        **({"SkullStripped": job.recipe.head is None} if isinstance(job.recipe, BrainRecipe) else {}),
        "MagneticFieldStrength": person.facts["field_T"],
        "StationName": person.facts["site"],
        **times,
        **({"FlipAngle": sequence["flip"]} if "flip" in sequence else {}),
        **({"PixelBandwidth": sequence["bandwidth"]} if "bandwidth" in sequence else {}),
        "Acquisition": {key: value for key, value in scan.items() if key != "sequence"},
    }


def _seconds(ms: float | list[float] | tuple[float, ...]) -> Any:
    return [round(v / 1000, 6) for v in ms] if isinstance(ms, list | tuple) else round(ms / 1000, 6)


def _release() -> str:
    try:
        return version("oligovox")
    except PackageNotFoundError:
        return "unknown"


def _donor_hash(folder: str | None) -> str:
    """Of the masks that are implanted."""
    return hash_json({path.name: hash_file(path) for path in sorted(Path(folder).glob("*.nii*"))}) if folder else ""


def _description(recipe: Recipe, seed: int) -> dict[str, Any]:
    return {
        "Name": f"Simulated MRI of the {recipe.body}",
        "BIDSVersion": _BIDS,
        "DatasetType": "raw",
        "GeneratedBy": [{"Name": "oligovox", "Version": _release(), "Format": _FORMAT}],
        "Recipe": recipe.model_dump(mode="json"),
        "Seed": seed,
    }


def _describe(out: Path, recipe: Recipe, seed: int) -> None:
    """The dataset_description.json of the dataset and of its derivatives."""
    raw = _description(recipe, seed)
    derived = {"Name": "Truth about the simulated subjects", "DatasetType": "derivative"}
    write_json(out / "dataset_description.json", raw)
    write_json(
        out / "derivatives" / _PIPELINE / "dataset_description.json",
        derived | {key: raw[key] for key in ("BIDSVersion", "GeneratedBy")},
    )


def _write_lookup(out: Path, labels: str, classes: Mapping[str, int]) -> None:
    """BIDS' table of the values in a label map of several classes."""
    if len(classes) > 1:
        rows = [{"index": value, "name": name} for name, value in classes.items()]
        write_tsv(out / "derivatives" / _PIPELINE / f"desc-{labels}_dseg.tsv", rows, ("index", "name"))


def _is_ours(description: Path) -> bool:
    """Whether a folder was begun by `_describe`: only there may subjects be written over."""
    return description.is_file() and {"Recipe", "Seed"} <= set(read_json(description))


def _row(job: _Job, note: dict[str, Any]) -> dict[str, object]:
    """One line of participants.tsv; what only a label tells is left out for people who have none."""
    facts = note["facts"]
    known = {"site": facts["site"], "field_T": facts["field_T"]}
    known |= {"age": facts["age_years"]} if "age_years" in facts else {}
    truth = {key: facts[key] for key in ("lesion_mL", "lesions") if key in facts and job.labelled}
    known |= {"brain_mL": facts["brain_mL"]} if "brain_mL" in facts else {}
    return {"participant_id": job.subject, "labelled": "yes" if job.labelled else "no", **known, **truth}
