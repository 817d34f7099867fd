"""From raw exams to analysis-ready ones: register, find the brain, correct the bias, one grid; and the way back to every original grid.

A sequence has one transform, from its own space to the ready one, made of up to three: to the reference of its exam, to the person's first exam,
to a template. Voxels are interpolated once. A transform changes affines only, so it can be undone without loss.
"""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.cohort.annotate import DECLARED, NOBODY_LOOKED
from oligovox.cohort.manifest import Case
from oligovox.errors import GeometryError, ImageError
from oligovox.files import atomic_folder, hash_file, hash_json, sweep, write_json
from oligovox.prepare import brain as brains
from oligovox.prepare import geometry
from oligovox.prepare.bias import correct_bias
from oligovox.prepare.brain import Brain, Doubts, Own, find_brain
from oligovox.prepare.geometry import Order, Shape, Volume, read_volume, resample_to
from oligovox.prepare.pipeline import IMAGE_ORDER
from oligovox.prepare.ready_exam import Exam, Ready, bring_onward, bring_together, compare_runs, load
from oligovox.prepare.ready_files import (
    Record,
    folder_of,
    image_name,
    label_kind,
    plain,
    record_of,
    stem_of,
    write_image,
    write_values,
)
from oligovox.prepare.registration import Matrix, moved, write_itk
from oligovox.prepare.repeats import average

__all__ = ["Ready", "ready_person"]

_FORMAT = 2  # raise it when the same files and settings give other exams
_SIGNED = ("QSM",)  # no magnitude: no bias field, and little to register by


@dataclass(eq=False)
class _Placed:
    """An exam whose transforms are known, before its grid is.

    Attributes:
        exam: without its images while it waits.
        record: what is known so far.
        seconds: of work.
    """

    exam: Exam
    record: Record
    seconds: float


def ready_person(
    cases: Sequence[Case],
    settings: Ready,
    labels: Mapping[str, int],
    out: Path,
    *,
    own: Own | None = None,
    doubts: Doubts | None = None,
) -> list[Record]:
    """Make all exams of one person ready, the first one first; what is there already and has not changed is kept.

    The grid of a person's exams is cut around the brains and lesions of all of them, so later ones are placed before the first is written.

    Args:
        cases: the person's exams.
        settings: what to do.
        labels: class → value in the label files.
        out: folder of the derivatives.
        own: our network for brain masks.
        doubts: what makes a brain mask implausible; its sentences are stored.

    Returns:
        The record of each exam, in time's order as far as the names of sessions tell.

    Raises:
        InputError: a file is missing or unusable, or SimpleITK is needed and not installed.
        GeometryError: a brain mask lies outside the ready grid.
        OutputError: `out` cannot be written.
    """
    taken = [case if settings.average else replace(case, repeats={}) for case in cases]
    ordered = sorted(taken, key=lambda case: _natural(case.session))
    inputs = {case.name: _inputs(case, settings) for case in ordered}
    shared = [inputs[case.name][1] for case in ordered] if settings.visits and settings.template is None else []
    records: dict[str, Record] = {}
    waiting: list[_Placed] = []
    for case in ordered:
        first = next(iter(records.values()), None) if settings.visits else None
        sources, hashes = inputs[case.name]
        sweep(folder_of(case, out).parent)
        content = _content(case, settings, labels, hashes, shared, first)
        record = None if waiting else _there(folder_of(case, out), content, sources)
        if record is None or _wants_brain(record, settings, own):
            placed = _place(case, settings, labels, inputs[case.name], content, first, own, doubts)
            if shared and len(ordered) > 1 and (waiting or first is None):
                placed.exam.images.clear()
                waiting.append(placed)
                record = placed.record
            else:
                record = _finish(placed, settings, labels, out, _grid([placed], settings, first))
        records[case.name] = record
    if waiting:
        grid = _grid(waiting, settings, None)
        records |= {placed.record["name"]: _finish(placed, settings, labels, out, grid) for placed in waiting}
    return list(records.values())


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key: '2' before '10'."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.findall(r"\d+|\D+", name)]


def _inputs(case: Case, settings: Ready) -> tuple[dict[str, Path], dict[str, str]]:
    """The files of an exam, and the hash of each and of the brain masks that other derivatives have for it."""
    sources = case.files
    for key, path in sources.items():
        if not path.is_file():
            raise ImageError(
                path, f"the {key} file of {case.name} is missing (or is a link to nowhere)", "bring it back"
            )
    hashes = {key: hash_file(path) for key, path in sources.items()}
    if (folder := settings.derivatives) is not None:
        masks = [path for path in brains.masks_in(folder, case) if path.is_file()]
        hashes |= {path.relative_to(folder).as_posix(): hash_file(path) for path in masks}
    return sources, hashes


def _place(
    case: Case,
    settings: Ready,
    labels: Mapping[str, int],
    inputs: tuple[Mapping[str, Path], Mapping[str, str]],
    content: str,
    first: Record | None,
    own: Own | None,
    doubts: Doubts | None,
) -> _Placed:
    """Read an exam, bring its sequences together and onward, and find the brain."""
    begun = time.monotonic()
    exam = load(case, settings, labels)
    compare_runs(exam, settings)
    bring_together(exam, settings)
    exam.brain = find_brain(
        case, exam.images, exam.reference,
        wanted=settings.brain, derivatives=settings.derivatives, own=own, lay=lambda name: moved(exam.images[name], exam.within[name]),
    )  # fmt: skip
    space = bring_onward(exam, settings, first)
    record = {
        "name": case.name,
        "person": case.person,
        "subject": case.subject,
        "session": case.session,
        "content": content,
        "space": space,
        "reference": exam.reference,
        "first": first["name"] if first else None,
        "sequences": {
            name: {
                "source": str(path.absolute()),
                "file": image_name(stem_of(case), space, name),
                "native_shape": exam.images[name].shape,
                "native_affine": exam.images[name].affine,
                "matrix": exam.total(name),
                **exam.about_runs(name),
            }
            for name, path in case.images.items()
        },
        "brain": None if exam.brain is None else _about_brain(exam.brain, doubts),
        "sources": {key: str(path.absolute()) for key, path in inputs[0].items()},
        "inputs_sha256": inputs[1],
        "steps": exam.steps,
        "versions": _versions(),
    }
    return _Placed(exam, record, time.monotonic() - begun)


def _finish(
    placed: _Placed, settings: Ready, labels: Mapping[str, int], out: Path, grid: tuple[Matrix, Shape]
) -> Record:
    """Resample and write an exam on its grid."""
    begun = time.monotonic() - placed.seconds
    exam, record, (affine, shape) = placed.exam, placed.record, grid
    for name, path in exam.case.images.items():
        if name not in exam.images:
            exam.images[name] = read_volume(path)
    mask = None
    if exam.brain is not None:
        mask = exam.mask_on(affine, shape)
        if not mask.any():
            raise GeometryError(
                f"{record['name']}: the brain mask ({exam.brain.origin}) lies outside the grid of {record['space']}; look at the headers, or leave the exam out"
            )
        record["brain"]["mL"] = float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)
    exam.steps.append({"step": "grid", "orientation": "RAS", "spacing_mm": geometry.spacing_of(affine), "shape": shape})
    images = {name: _image(exam, name, settings, mask, affine, shape) for name in exam.images}
    folder = folder_of(exam.case, out)
    _write(folder, exam, record | {"shape": shape, "affine": affine}, images, mask, labels, begun)
    exam.images.clear()
    made = record_of(folder)
    assert made is not None, folder
    return made


def _content(
    case: Case,
    settings: Ready,
    labels: Mapping[str, int],
    hashes: Mapping[str, str],
    shared: Sequence[Mapping[str, str]],
    first: Record | None,
) -> str:
    """Changes with everything that the ready exam depends on, but not with where its files lie.

    Args:
        case: the exam.
        settings: what to do.
        labels: class → value in the label files.
        hashes: of its files.
        shared: of the files of all exams that share its grid.
        first: the person's first exam.
    """
    chosen = settings.model_dump(mode="json", exclude={"template", "derivatives", "average"})  # the hashes say those
    template = hash_file(settings.template) if settings.template and settings.template.is_file() else None
    sparse = case.unlooked if case.sparse else None
    before = [first["content"], first["brain"] is not None] if first else None
    files = [dict(hashes), [dict(other) for other in shared]]
    return hash_json([_FORMAT, case.name, files, chosen, template, dict(labels), sparse, before])


def _there(folder: Path, content: str, sources: Mapping[str, Path]) -> Record | None:
    """The record of this very exam where all its files are there; where only the originals moved, their new places are noted."""
    record = record_of(folder)
    if record is None or record.get("content") != content:
        return None
    if not all((folder / "anat" / name).is_file() for name in record["files"]):
        return None
    places = {key: str(path.absolute()) for key, path in sources.items()}
    if record["sources"] != places:
        sequences = {name: about | {"source": places[name]} for name, about in record["sequences"].items()}
        record |= {"sources": places, "sequences": sequences}
        write_json(folder / "anat" / record["record"], record)
    return record


def _wants_brain(record: Record, settings: Ready, own: Own | None) -> bool:
    """Whether an exam that had no brain mask could get one now."""
    return settings.brain == "auto" and record["brain"] is None and brains.could_find(own)


def _grid(placed: Sequence[_Placed], settings: Ready, first: Record | None) -> tuple[Matrix, Shape]:
    """The ready grid: of the first exam, of the template, or of the first one's reference, turned to RAS and cut around all brains."""
    if first is not None:
        x, y, z = first["shape"]
        return np.array(first["affine"]), (x, y, z)
    exam = placed[0].exam
    base = read_volume(settings.template or exam.case.images[exam.reference])
    turned = geometry.to_ras(base)
    spacing = settings.spacing or geometry.spacing_of(turned.affine)
    affine, shape = geometry.ras_grid(turned.affine, turned.shape, spacing)
    if settings.template is not None or exam.brain is None:
        return affine, shape
    kept = exam.mask_on(affine, shape)
    if not kept.any():
        raise GeometryError(f"{exam.case.name}: the brain mask ({exam.brain.origin}) lies outside the reference image")
    for other in (one.exam for one in placed):
        if other.brain is not None and other is not exam:
            kept |= other.mask_on(affine, shape)
        if other.label is not None:
            kept |= other.label_on(affine, shape) > 0
    box = ndimage.find_objects(kept.astype(np.int8))[0]
    low, high = zip(
        *((max(0, part.start - settings.margin), min(size, part.stop + settings.margin))
          for part, size in zip(box, shape, strict=True)),
        strict=True,
    )  # fmt: skip
    return geometry.shifted(affine, low), (high[0] - low[0], high[1] - low[1], high[2] - low[2])


def _image(
    exam: Exam, name: str, settings: Ready, mask: NDArray[np.bool_] | None, affine: Matrix, shape: Shape
) -> Volume:
    """One sequence on the ready grid."""
    source = moved(exam.images[name], exam.total(name))
    whole = geometry.whole_voxels_apart(source.affine, affine, shape)
    order: Order = IMAGE_ORDER
    volume = resample_to(source, affine, shape, order, smooth=True)
    if runs := exam.used(name):
        others = ((moved(read_volume(r.path), exam.total(name) @ r.matrix), r.ratio) for r in runs.values())
        volume = average(volume, source, others, order)
        exam.steps.append({"step": "average", "sequence": name, "runs": [name, *runs]})
    step: dict[str, Any] = {
        "step": "resample",
        "sequence": name,
        "spline_order": None if whole else order,
        "blur_sigma_voxels": None if whole else geometry.blur_of(source.affine, affine),
    }
    if mask is not None:
        step["brain_covered"] = float((mask & geometry.inside(source, affine, shape)).sum() / max(1, int(mask.sum())))
    exam.steps.append(step)
    if settings.bias and mask is not None and name not in _SIGNED and volume.array.min() >= 0:
        volume, found = correct_bias(volume, mask)
        exam.steps.append({"step": "bias", "sequence": name, "low": found.low, "high": found.high, "sd": found.sd})
    if settings.strip and mask is not None:
        volume = Volume(np.where(mask, volume.array, 0), affine)
    return volume


def _about_brain(brain: Brain, doubts: Doubts | None) -> dict[str, Any]:
    return {
        "origin": brain.origin,
        "drawn_on": brain.sequence,
        "source": str(brain.source.absolute()) if brain.source else None,
        "doubts": list(doubts(brain.mask.array > 0, brain.mask.affine)) if doubts else [],
    }


def _write(
    folder: Path,
    exam: Exam,
    record: Record,
    images: Mapping[str, Volume],
    mask: NDArray[np.bool_] | None,
    labels: Mapping[str, int],
    begun: float,
) -> None:
    """All files of an exam at once."""
    stem, space = stem_of(exam.case), record["space"]
    start = f"{stem}_space-{space}"
    affine, shape = record["affine"], record["shape"]
    with atomic_folder(folder) as temporary:
        anat = temporary / "anat"
        anat.mkdir()
        for name, volume in images.items():
            source = moved(exam.images[name], exam.total(name))
            stripped = mask is not None and not volume.array[~mask].any()
            seen = mask & geometry.inside(source, affine, shape) if mask is not None and stripped else None
            about = record["sequences"][name]
            write_image(anat / about["file"], volume, seen)
            content = {
                "SkullStripped": stripped,
                "Sources": [about["source"], *(str(run.path.absolute()) for run in exam.used(name).values())],
                "Description": f"on the grid of {space}",
            }
            write_json(anat / about["file"].replace(".nii.gz", ".json"), content)
            matrices = {name: exam.total(name)} | {key: found["matrix"] for key, found in about.get("runs", {}).items()}
            for key, matrix in matrices.items():
                write_itk(matrix, anat / f"{stem}_from-{plain(key)}_to-{space}_mode-image_xfm.txt")
        if mask is not None:
            write_values(anat / f"{start}_desc-brain_mask.nii.gz", mask.astype(np.uint8), affine)
        if exam.label is not None:
            _write_label(anat / f"{start}_{label_kind(labels)}", exam, exam.label_on(affine, shape), labels, affine)
        files = sorted(path.name for path in anat.iterdir())
        own = f"{stem}_desc-ready.json"
        seconds = round(time.monotonic() - begun, 1)
        write_json(anat / own, {"Description": __doc__.splitlines()[0] if __doc__ else ""} | record
                   | {"files": files, "record": own, "seconds": seconds})  # fmt: skip


def _write_label(start: Path, exam: Exam, label: NDArray[np.int8], labels: Mapping[str, int], affine: Matrix) -> None:
    values = np.zeros(label.shape, np.min_scalar_type(max(*labels.values(), NOBODY_LOOKED)))
    for index, value in enumerate(labels.values(), start=1):
        values[label == index] = value
    if exam.case.sparse:
        values[label < 0] = NOBODY_LOOKED
        write_json(start.with_name(start.name + ".json"), {DECLARED: NOBODY_LOOKED})
    write_values(start.with_name(start.name + ".nii.gz"), values, affine)
    assert exam.label is not None
    native = abs(np.linalg.det(exam.label.affine[:3, :3])) * np.count_nonzero(exam.label.array > 0)
    after = abs(np.linalg.det(affine[:3, :3])) * np.count_nonzero(label > 0)
    step = {"step": "label", "sequence": exam.labelled_on}
    exam.steps.append(step | {"lesion_mm3_native": float(native), "lesion_mm3_ready": float(after)})


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("oligovox", "numpy", "scipy", "nibabel", "SimpleITK"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found
