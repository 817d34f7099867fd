"""From lesion masks to a lesion store: patches of QSM and FLAIR around every lesion of every exam, one exam at a time in each worker.

QSM, FLAIR and mask lie on one grid (axis order and flips aside); they are resampled together where the patches have another voxel size, the images
by a cubic spline, the lesions by the nearest voxel. QSM has one fixed scale, since its values mean something; FLAIR is scaled by percentiles pooled
over the patches of the exam, of voxels inside the field of view that are not 0 (neither padding nor a stripped skull). What is not seen, and what lies
outside the volume, becomes 0.5 after that: 0 ppb, and the middle of FLAIR's range.

Source: data/README.md and frodo/dataset.py of veronicapignedoli/FRODO, arXiv 2606.16756, and its earlier patches_extraction.py.
Deviates: FLAIR percentiles are pooled over an exam where the release pools over a participant: a scanner's scale is that of a visit.
    Padding and zeros do not count in them. What is not seen is 0 in the release (`outside: zero`): an edge ten times as strong as a rim, and a network looks at
    it first (docs/methods/lesion_classification.md). See `lesion_masks` and `lesion_grades`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from oligovox.cohort.manifest import Case
from oligovox.errors import CohortError, GeometryError, ImageError, LabelError, OutputError
from oligovox.files import atomic_folder, check_writable, hash_file, hash_json, read_json, sweep, write_json
from oligovox.prepare import geometry
from oligovox.prepare.geometry import Volume
from oligovox.prepare.lesion_grades import Grades, grades_of, grades_of_map, read_grades
from oligovox.prepare.lesion_masks import Numbers, dilated, find_lesions, kept_lesions, radius_steps
from oligovox.prepare.lesion_store import FORMAT, SEQUENCES, LesionPlan, LesionStore, read_exam, write_tables
from oligovox.prepare.pipeline import class_indices
from oligovox.prepare.susceptibility import Scaled, in_ppb, sidecar_of
from oligovox.prepare.workers import run_cases

_log = logging.getLogger(__name__)

Box = tuple[slice, slice, slice]

_WHOLE = 0.99  # share of a resampled voxel that was acquired, for it to be counted


@dataclass(frozen=True)
class Exam:
    """What is cut into lesions.

    Attributes:
        case: has QSM, FLAIR and a mask.
        labels: class name → value in the mask; other values are refused.
        classes: which of these are lesion; empty: all.
        grades: label map or table of grades of this exam; None: nobody graded it.
    """

    case: Case
    grades: Path | None = None
    labels: Mapping[str, int] = field(default_factory=lambda: {"lesion": 1})
    classes: tuple[str, ...] = ()


def extract_lesions(
    exams: Sequence[Exam],
    plan: LesionPlan,
    out: Path,
    *,
    workers: int = 2,
    progress: Callable[[int, int, str], None] | None = None,
    empty_ok: bool = False,
) -> LesionStore:
    """Cut the lesions of all exams.

    Args:
        exams: who there is.
        plan: what is cut, and how.
        out: an empty or new folder, or a lesion store (finished or not) to bring up to date.
        workers: processes; each holds one exam in memory.
        progress: called with (exams done, exams in all, name) after each.
        empty_ok: nobody needs to have a lesion; otherwise that is an error.

    Returns:
        The finished store.

    Raises:
        CohortError: no exam, a sequence or a mask is missing, or nobody has a lesion that is large enough.
        InputError: a file cannot be used; the message starts with the exam.
        OutputError: `out` cannot be written, or holds something else.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / "lesions.json").is_file():
        raise OutputError(f"{out}: holds files that are not a lesion store; choose an empty or a new folder")
    if not exams:
        raise CohortError("no exam to cut lesions from; expected exams with QSM, FLAIR and a lesion mask")
    for exam in exams:
        _check(exam.case)
    check_writable(out)
    sweep(out / "cases")
    named = {exam.case.name: exam for exam in sorted(exams, key=lambda exam: exam.case.name)}
    write_tables(out, plan, list(named), None)
    count = 0

    def done(name: str) -> None:
        nonlocal count
        count += 1
        if progress:
            progress(count, len(named), name)

    told = run_cases(partial(_extract, plan=plan, cases=out / "cases"), named, workers, done)
    lesions = [lesion for name in named for lesion in read_exam(out / "cases" / name)]
    if not lesions and not empty_ok:
        raise CohortError(
            f"none of {len(named)} exams has a lesion of at least {plan.lesions.min_volume_mm3:g} mm³; check the masks, or lower min_volume_mm3"
        )
    write_tables(
        out, plan, list(named), lesions,
        content=hash_json([told[name]["content"] for name in named]), simulated=all(told[n]["simulated"] for n in named),
    )  # fmt: skip
    return LesionStore.open(out)


def _check(case: Case) -> None:
    """What can be said before any file is read."""
    for sequence in SEQUENCES:
        if sequence not in case.images:
            raise CohortError(
                f"{case.name}: has {', '.join(case.images)} but no {sequence}; lesions are cut from QSM and FLAIR, so bring the file back, "
                "name it so (BIDS: QSM is a _Chimap among the derivatives), or leave the exam out"
            )
    if case.label is None:
        raise CohortError(f"{case.name}: no lesion mask; draw or predict one (oligovox predict), or leave the exam out")
    if case.sparse:
        raise LabelError(f"{case.label}: only a part of {case.name} is labelled; lesions are cut from full masks only")


def _extract(exam: Exam, plan: LesionPlan, cases: Path) -> dict[str, Any]:
    """Cut one exam and write its folder; returns at once where it is already there."""
    case, sources = exam.case, _sources(exam)
    hashes = {key: hash_file(path) for key, path in sources.items()}
    said = {key: sidecar_of(sources[key]) for key in SEQUENCES}  # units, and whether it is simulated
    hashes |= {f"{key}.json": hash_file(path) for key, path in said.items() if path.is_file()}
    content = hash_json(
        [FORMAT, case.name, hashes, plan.model_dump(mode="json"), dict(exam.labels), list(exam.classes)]
    )
    folder, table = cases / case.name, cases / case.name / "case.json"
    if table.is_file() and (about := read_json(table)).get("content") == content:
        return {key: about[key] for key in ("content", "simulated")}
    loaded = _load(exam, sources, plan)
    numbers, volumes = kept_lesions(loaded.numbers, loaded.spacing, plan.lesions)
    before = np.zeros(len(volumes), np.int64)  # each kept lesion's number among all
    np.maximum.at(before, numbers[numbers > 0] - 1, loaded.numbers[numbers > 0])
    grades = Grades(loaded.grades.grade[before - 1], loaded.grades.uncertain[before - 1])
    lost = int((loaded.grades.grade == 1).sum() - (grades.grade == 1).sum())  # too small
    cut = _cut(loaded, numbers, volumes, plan)
    centres = _centres(numbers, len(volumes))
    world = centres @ loaded.affine[:3, :3].T + loaded.affine[:3, 3]
    rows = [
        {
            "exam": case.name, "dataset": case.dataset, "subject": case.subject, "session": case.session, "number": i + 1,
            **dict(zip("xyz", np.round(world[i], 2).tolist(), strict=True)), "volume_mm3": round(float(volumes[i]), 3),
            "around_mm": round(radius_steps(volumes[i], plan.spacing, plan.lesions) * plan.spacing, 3),
            "grade": int(grades.grade[i]), "uncertain": int(grades.uncertain[i]),
        }
        for i in range(len(volumes))
    ]  # fmt: skip
    told = {"content": content, "simulated": _simulated(sources["QSM"]) and _simulated(sources["FLAIR"])}
    about = told | {
        "lesions": rows,
        "sources": {key: str(path.absolute()) for key, path in sources.items()},
        "inputs_sha256": hashes,
        "left_out": int(loaded.numbers.max(initial=0)) - len(rows),
        "grades_without_lesion": loaded.grades.unmatched,
        "rims_without_lesion": lost + loaded.grades.missed,
        "qsm_units": loaded.qsm.units,
        "qsm_units_guessed_from": loaded.qsm.guessed_from,
        "flair_scale": cut.flair_scale,
    }
    with atomic_folder(folder) as temporary:
        if rows:
            np.save(temporary / "image.npy", cut.image, allow_pickle=False)
            np.save(temporary / "seen.npy", cut.seen, allow_pickle=False)
        _write_numbers(temporary / "lesions.nii.gz", numbers, loaded.affine, sources["label"])
        write_json(temporary / "case.json", about)
    if loaded.grades.unmatched:
        _log.warning("%s: %d graded lesions are not in the mask", case.name, loaded.grades.unmatched)
    return told


def _sources(exam: Exam) -> dict[str, Path]:
    assert exam.case.label is not None
    files = {name: exam.case.images[name] for name in SEQUENCES} | {"label": exam.case.label}
    if exam.grades:
        files["grades"] = exam.grades
        if exam.grades.suffix == ".tsv" and (beside := exam.grades.with_suffix(".nii.gz")).is_file():
            files["instances"] = beside
    return files


@dataclass(frozen=True)
class _Loaded:
    """An exam on its own grid, turned to RAS."""

    qsm: Scaled
    flair: NDArray[np.float32]
    numbers: Numbers  # of all lesions
    grades: Grades  # of all lesions
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> tuple[float, float, float]:
        return geometry.spacing_of(self.affine)


@dataclass(frozen=True)
class _Cut:
    image: NDArray[np.float16]
    seen: NDArray[np.uint8]
    flair_scale: list[float]


def _load(exam: Exam, sources: dict[str, Path], plan: LesionPlan) -> _Loaded:
    read = {key: geometry.to_ras(geometry.read_volume(path, empty_ok=key not in SEQUENCES))
            for key, path in sources.items() if path.suffix != ".tsv"}  # fmt: skip
    flair = read["FLAIR"]
    for key, volume in read.items():
        _same_grid(sources[key], key, volume, sources["FLAIR"], flair)
    if np.ptp(flair.array) == 0:
        raise ImageError(
            sources["FLAIR"], f"{flair.array.flat[0]:g} in every voxel", "bring the right file, or leave the exam out"
        )
    qsm = in_ppb(read["QSM"], sources["QSM"], plan.qsm_units)
    if np.abs(read["label"].array - np.rint(read["label"].array)).max() > 1e-3:
        raise LabelError(f"{sources['label']}: holds values between whole numbers, expected a mask; threshold it first")
    indices = class_indices(sources["label"], read["label"].array, exam.labels, None)
    lesion = [i for i, name in enumerate(exam.labels, start=1) if not exam.classes or name in exam.classes]
    numbers = find_lesions(np.isin(indices, lesion), geometry.spacing_of(flair.affine), plan.lesions)
    grades = Grades.none(int(numbers.max(initial=0)))
    if "grades" in read:
        grades = grades_of_map(np.rint(read["grades"].array).astype(np.int32), numbers, plan.grades)
    elif "grades" in sources:
        rows = read_grades(sources["grades"], exam.case.subject, exam.case.session)
        beside = np.rint(read["instances"].array).astype(np.int32) if "instances" in read else None
        grades = grades_of(rows, numbers, flair.affine, beside, plan.grades)
    return _Loaded(qsm, flair.array, numbers, grades, flair.affine)


def _same_grid(path: Path, key: str, volume: Volume, flair_path: Path, flair: Volume) -> None:
    if geometry.same_grid(volume, flair):
        return
    what = {"label": "the lesion mask", "grades": "the map of grades", "instances": "the map of numbers"}.get(key, key)
    apart = geometry.corner_distance(volume.affine, flair.affine, flair.shape)
    raise GeometryError(
        f"{path}: {what} has {volume.shape} voxels of {_mm(volume)}, the FLAIR {flair_path.name} has {flair.shape} of {_mm(flair)}, and their corners "
        f"are {apart:.3g} mm apart; lesions are cut from one grid, so register {what} to the FLAIR and resample it onto its grid "
        f"({'linear or cubic' if key == 'QSM' else 'nearest neighbour'}), or draw the mask on the grid of both"
    )


def _mm(volume: Volume) -> str:
    return " × ".join(f"{side:.3g}" for side in geometry.spacing_of(volume.affine)) + " mm"


def _cut(loaded: _Loaded, numbers: Numbers, volumes: NDArray[np.float64], plan: LesionPlan) -> _Cut:
    """Patches of all kept lesions."""
    affine, shape = geometry.ras_grid(loaded.affine, Volume(numbers, loaded.affine).shape, (plan.spacing,) * 3)
    qsm, flair = (
        geometry.resample_to(Volume(array, loaded.affine), affine, shape, 3, smooth=True).array
        for array in (loaded.qsm.volume.array, loaded.flair)
    )
    there = Volume((loaded.flair != 0).astype(np.float32), loaded.affine)
    acquired = geometry.resample_to(there, affine, shape, 1, smooth=True).array > _WHOLE
    fine: Numbers = geometry.resample_to(Volume(numbers, loaded.affine), affine, shape, 0).array
    back = np.linalg.inv(affine) @ loaded.affine
    centres = np.rint(_centres(numbers, len(volumes)) @ back[:3, :3].T + back[:3, 3]).astype(int)
    side, count = plan.patch, len(volumes)
    seen = np.zeros((count, side, side, side), np.uint8)
    unseen = 0.5 if plan.outside == "neutral" else 0.0
    image = np.full((count, len(SEQUENCES), side, side, side), unseen, np.float16)
    boxes = [_overlap(centre - side // 2, side, fine.shape) for centre in centres]
    scale = _flair_scale(flair, acquired, boxes, plan)
    qsm01 = np.clip(qsm / (2 * plan.qsm_ppb) + 0.5, 0, 1)
    flair01 = np.clip((flair - scale[0]) / max(scale[1] - scale[0], 1e-6), 0, 1)
    for i, (out_of, into) in enumerate(boxes):
        steps = radius_steps(volumes[i], plan.spacing, plan.lesions)
        wide_out, wide_into = _overlap(centres[i] - side // 2 - steps, side + 2 * steps, fine.shape)
        own = np.zeros((side + 2 * steps,) * 3, bool)  # the patch and what reaches into it
        own[wide_into] = fine[wide_out] == i + 1
        patch = (slice(steps, steps + side),) * 3
        own[(steps + side // 2,) * 3] |= not own[patch].any()  # lost between coarser voxels
        seen[i][into] = (dilated(own, steps).astype(np.uint8) + own)[patch][into]
        for channel, array in enumerate((qsm01, flair01)):
            image[i, channel][into] = array[out_of]
        if plan.masked:
            image[i][:, seen[i] == 0] = unseen
    return _Cut(image, seen, scale)


def _flair_scale(
    flair: NDArray[np.float32], acquired: NDArray[np.bool_], boxes: Sequence[tuple[Box, Box]], plan: LesionPlan
) -> list[float]:
    """Lower and upper end. Not counted is what the exam has as 0, which is stripped, and what resampling has mixed with it."""
    values = [flair[out_of][acquired[out_of]] for out_of, _ in boxes]
    if not sum(map(len, values)):
        return [0.0, 1.0]
    return [float(v) for v in np.percentile(np.concatenate(values), plan.flair_percentiles)]


def _centres(numbers: Numbers, count: int) -> NDArray[np.float64]:
    """(n, 3) centre of mass of each lesion, voxels."""
    where = np.nonzero(numbers)
    owner = numbers[where] - 1
    sizes = np.bincount(owner, minlength=count).clip(1)
    return np.stack([np.bincount(owner, weights=axis, minlength=count) / sizes for axis in where], axis=1)


def _overlap(corner: NDArray[np.int_], side: int, shape: Sequence[int]) -> tuple[Box, Box]:
    """A patch's box in the volume, and the same in the patch, where both have voxels."""
    low, size = [int(c) for c in corner], list(shape)
    x, y, z = (slice(max(c, 0), max(min(c + side, n), 0)) for c, n in zip(low, size, strict=True))
    u, v, w = (slice(max(-c, 0), min(n - c, side)) for c, n in zip(low, size, strict=True))
    return (x, y, z), (u, v, w)


def _write_numbers(path: Path, numbers: Numbers, affine: NDArray[np.float64], mask: Path) -> None:
    """The lesions' numbers on the grid of the mask's file, whatever its axes."""
    own = nib.load(mask)
    turned = geometry.resample_to(Volume(numbers.astype(np.int16), affine), own.affine, own.shape[:3], 0).array
    nib.save(nib.Nifti1Image(turned, own.affine), path)


def _simulated(path: Path) -> bool:
    sidecar = sidecar_of(path)
    content = read_json(sidecar) if sidecar.is_file() else {}
    return isinstance(content, dict) and content.get("Simulated") is True
