"""A simulated cohort on disk, in BIDS: images at the top, brain and lesion masks under derivatives/oligovox-simulate.

Every subject is made alone, in a worker of its own memory, from a seed that depends on the cohort's seed and the subject's number only.
The note `sub-XXX_desc-simulation.json` is written last: a subject is complete when its note is there and names the same recipe and seed,
so a killed run goes on where it stopped.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
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

from oligovox.errors import InputError, OutputError, SettingsError, WorkerError
from oligovox.files import atomic_file, check_writable, hash_json, read_json, sweep, write_json, write_tsv
from oligovox.processes import end_with_parent
from oligovox.simulate.ms import MSRecipe, SimulatedSubject, simulate_subject

_FORMAT = 1  # raise it when the same recipe and seed give other images
_BIDS = "1.10.0"
_PIPELINE = "oligovox-simulate"
_COMPRESSION = 4


@dataclass(frozen=True)
class _Job:
    out: Path
    recipe: MSRecipe
    seed: int
    number: int  # from 1
    labelled: bool

    @property
    def name(self) -> str:
        return f"sub-{self.number:03d}"

    @property
    def anat(self) -> Path:
        return self.out / self.name / "anat"

    @property
    def derived(self) -> Path:
        return self.out / "derivatives" / _PIPELINE / self.name / "anat"

    @property
    def note(self) -> Path:
        return self.derived / f"{self.name}_desc-simulation.json"

    @property
    def fingerprint(self) -> str:
        recipe = self.recipe.model_dump(mode="json")
        return hash_json(
            {"format": _FORMAT, "recipe": recipe, "seed": self.seed, "number": self.number, "label": self.labelled}
        )


def simulate_ms(
    out: Path,
    recipe: MSRecipe,
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
        labelled: only the first so many subjects get a lesion mask; None: all of them.
        workers: processes, each with one subject in memory; 1 works in this process.
        progress: called with (subjects done, subjects, name) after each.

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
    jobs = [_Job(out, recipe, seed, number, number <= labelled) for number in range(1, subjects + 1)]
    known = {job.name for job in jobs}
    for found in sorted(out.glob("sub-*")):
        if found.name not in known:
            raise OutputError(
                f"{out}: has {found.name}, which this run of {subjects} subjects does not make; choose another folder"
            )
    if any(out.glob("[!.]*")) and not _is_ours(out / "dataset_description.json"):
        raise OutputError(f"{out}: holds files that were not simulated here; choose an empty or a new folder")
    _describe(out, recipe, seed)
    for done, job in enumerate(_run(jobs, workers), start=1):
        if progress:
            progress(done, subjects, job.name)
    notes = [read_json(job.note) for job in jobs]
    rows = [_row(job, note) for job, note in zip(jobs, notes, strict=True)]
    write_tsv(out / "participants.tsv", rows, ("participant_id", "labelled", "brain_mL", "lesion_mL", "lesions"))
    return out


def _run(jobs: list[_Job], workers: int) -> Iterator[_Job]:
    """Complete every job, in any order."""
    open_jobs = []
    for job in jobs:
        if _complete(job):
            yield job
        else:
            open_jobs.append(job)
    if workers == 1 or len(open_jobs) < 2:
        for job in open_jobs:
            with _blamed(job):
                _make(job)
            yield job
        return
    count, spawn = min(workers, len(open_jobs)), get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=spawn, initializer=end_with_parent) as pool:
        futures = {pool.submit(_make, job): job for job in open_jobs}
        try:
            for future in as_completed(futures):
                with _blamed(futures[future]):
                    future.result()
                yield futures[future]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


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
    """Simulate one subject and write its files; the note comes last."""
    for folder in (job.anat, job.derived):
        sweep(folder)
        for stale in folder.glob(f"{job.name}_*"):
            stale.unlink()
    seed = np.random.SeedSequence([job.seed, job.number]).generate_state(4, np.uint32)
    person = simulate_subject(job.recipe, int.from_bytes(seed.tobytes(), "little"))
    written = []
    for modality, image in person.images.items():
        written.append(_write(job.anat / f"{job.name}_{modality}.nii.gz", np.rint(image).astype(np.int16), person))
        write_json(job.anat / f"{job.name}_{modality}.json", _sidecar(person, modality))
    masks = {"desc-brain": person.brain} | ({"label-lesion": person.lesions} if job.labelled else {})
    for entity, mask in masks.items():
        written.append(_write(job.derived / f"{job.name}_{entity}_mask.nii.gz", mask.astype(np.uint8), person))
    files = [path.relative_to(job.out).as_posix() for path in written]
    write_json(job.note, {"fingerprint": job.fingerprint, "files": files, "facts": person.facts})


def _complete(job: _Job) -> bool:
    """The note is there, was made from the same recipe and seed, and so are all the files that it lists."""
    if not job.note.is_file():
        return False
    note = read_json(job.note)
    return note.get("fingerprint") == job.fingerprint and all((job.out / file).is_file() for file in note["files"])


def _write(path: Path, array: NDArray[Any], person: SimulatedSubject) -> Path:
    """NIfTI in RAS order, compressed without a time stamp: the same subject is the same bytes."""
    image = nib.Nifti1Image(array, person.affine)
    image.header.set_xyzt_units("mm")
    with atomic_file(path) as temporary:
        temporary.write_bytes(gzip.compress(image.to_bytes(), _COMPRESSION, mtime=0))
    return path


def _sidecar(person: SimulatedSubject, modality: str) -> dict[str, Any]:
    """BIDS names for what is known about a scan; times in seconds, as BIDS wants them."""
    timing = person.facts["scans"][modality]["timing"]
    names = {"tr": "RepetitionTime", "te": "EchoTime", "ti": "InversionTime"}
    times = {bids: round(timing[ours] / 1000, 6) for ours, bids in names.items() if ours in timing}
    flip = {"FlipAngle": timing["flip"]} if "flip" in timing else {}
    return {"Simulated": True, "SkullStripped": True, "MagneticFieldStrength": person.facts["field_T"], **times, **flip}


def _describe(out: Path, recipe: MSRecipe, seed: int) -> None:
    """The dataset_description.json of the dataset and of its derivatives."""
    try:
        release = version("oligovox")
    except PackageNotFoundError:
        release = "unknown"
    maker = [{"Name": "oligovox", "Version": release}]
    write_json(
        out / "dataset_description.json",
        {
            "Name": "Simulated multiple sclerosis at 3 T",
            "BIDSVersion": _BIDS,
            "DatasetType": "raw",
            "GeneratedBy": maker,
            "Recipe": recipe.model_dump(mode="json"),
            "Seed": seed,
        },
    )
    write_json(
        out / "derivatives" / _PIPELINE / "dataset_description.json",
        {
            "Name": "Brain and lesion masks of the simulated subjects",
            "BIDSVersion": _BIDS,
            "DatasetType": "derivative",
            "GeneratedBy": maker,
        },
    )


def _is_ours(description: Path) -> bool:
    """Whether a folder was begun by `_describe`: only there may subjects be written over."""
    return description.is_file() and {"Recipe", "Seed"} <= set(read_json(description))


def _row(job: _Job, note: dict[str, Any]) -> dict[str, object]:
    facts = note["facts"]
    truth = {"lesion_mL": facts["load_mL"], "lesions": facts["lesions"]} if job.labelled else {}
    return {
        "participant_id": job.name,
        "labelled": "yes" if job.labelled else "no",
        "brain_mL": facts["brain_mL"],
        **truth,
    }
