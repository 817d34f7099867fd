"""One exam on its way to be ready: the settings, its images and masks in memory, and the transforms that bring them together."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from oligovox.cohort.manifest import Case
from oligovox.cohort.modalities import canonical
from oligovox.errors import GeometryError
from oligovox.prepare import brain as brains
from oligovox.prepare import geometry
from oligovox.prepare.brain import Brain, Wanted, looks_stripped
from oligovox.prepare.geometry import Shape, Volume, read_volume
from oligovox.prepare.pipeline import class_indices
from oligovox.prepare.ready_files import Record, plain
from oligovox.prepare.registration import Fit, Matrix, Registration, moved, register, shift_and_turn
from oligovox.prepare.repeats import Run, compared
from oligovox.settings import Settings

_GUIDES = {"QSM": "T2starw"}  # made of the same echoes, so what moves one moves the other

_log = logging.getLogger(__name__)


class Ready(Settings):
    """What is done to raw exams."""

    reference: tuple[str, ...] = Field(
        ("FLAIR", "T1w", "T2w", "T1wGd"), min_length=1, description="whose space and grid: the first that an exam has"
    )
    align: Literal["auto", "always", "never"] = Field(
        "auto", description="register the sequences of an exam: those on another grid than the reference, all, or none"
    )
    average: bool = Field(
        True, description="average the runs of a sequence that was acquired several times alike; else take the first"
    )
    visits: bool = Field(True, description="bring later exams of a person to the space and grid of the first one")
    brain: Wanted = Field(
        "auto",
        description="brain mask: the first source that has one; none; or one of given, derivatives, stripped, hd-bet, mri_synthstrip, own",
    )
    derivatives: Path | None = Field(None, description="another folder of BIDS derivatives with brain masks")
    strip: bool = Field(True, description="set voxels outside the brain mask to 0")
    bias: bool = Field(False, description="divide out the bias field (N4) within the brain mask")
    spacing: tuple[float, float, float] | None = Field(
        None, description="voxel size along R, A, S in mm; null: the reference's"
    )
    margin: int = Field(
        4, ge=0, description="voxels kept around brain and lesions; nothing is cut without a brain mask"
    )
    template: Path | None = Field(None, description="NIfTI file whose space and grid every exam is brought to")
    template_fit: Fit = Field("rigid", description="how: rigid keeps sizes; affine fits the template's")

    @field_validator("reference")
    @classmethod
    def _canonical(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(canonical(name) for name in names)

    @field_validator("spacing")
    @classmethod
    def _possible(cls, spacing: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        if spacing and not all(0.1 <= step <= 20 for step in spacing):
            raise ValueError("expected three voxel sizes from 0.1 to 20 mm")
        return spacing


@dataclass
class Exam:
    """One exam while it is worked on; `steps` grows."""

    case: Case
    images: dict[str, Volume]
    reference: str
    label: Volume | None = None  # class indices
    labelled_on: str = ""
    within: dict[str, Matrix] = field(default_factory=dict)  # space of each sequence → that of the reference
    onward: Matrix = field(default_factory=lambda: np.eye(4))  # space of the reference → ready
    brain: Brain | None = None
    runs: dict[str, dict[str, Run]] = field(default_factory=dict)  # sequence → further runs of it
    steps: list[dict[str, Any]] = field(default_factory=list)

    def total(self, sequence: str) -> Matrix:
        """Space of a sequence → ready."""
        return np.asarray(self.onward @ self.within[sequence])

    def used(self, sequence: str) -> dict[str, Run]:
        """The further runs that are averaged with a sequence."""
        return {key: run for key, run in self.runs.get(sequence, {}).items() if run.used}

    def about_runs(self, sequence: str) -> dict[str, Any]:
        """Where the further runs of a sequence lie in the ready space; empty for one that has none."""
        runs = self.runs.get(sequence, {})
        about = {key: {"matrix": self.total(sequence) @ run.matrix, "used": run.used} for key, run in runs.items()}
        return {"runs": about} if about else {}

    def mask_on(self, affine: Matrix, shape: Shape) -> NDArray[np.bool_]:
        """The brain mask on a grid of the ready space."""
        assert self.brain is not None
        return brains.on_grid(self.brain, self.total(self.brain.sequence), affine, shape)

    def label_on(self, affine: Matrix, shape: Shape) -> NDArray[np.int8]:
        """Class indices on a grid of the ready space."""
        assert self.label is not None
        label = moved(self.label, self.total(self.labelled_on))
        return geometry.resample_labels(label, affine, shape, max(1, int(self.label.array.max())))


def load(case: Case, settings: Ready, labels: Mapping[str, int]) -> Exam:
    """Read every image and the label of an exam.

    Raises:
        ImageError, LabelError, GeometryError: a file that cannot be used.
    """
    images = {name: read_volume(path) for name, path in case.images.items()}
    reference = next((name for name in settings.reference if name in images), next(iter(images)))
    exam = Exam(case, images, reference)
    exam.steps.append({"step": "reference", "sequence": reference})
    if case.label:
        label = read_volume(case.label, empty_ok=True)
        exam.labelled_on = _on_grid_of(case.label, label, exam)
        values = class_indices(case.label, label.array, labels, case.unlooked if case.sparse else None)
        exam.label = Volume(values, label.affine)
    return exam


def _on_grid_of(path: Path, mask: Volume, exam: Exam) -> str:
    for name in (exam.reference, *exam.images):
        if geometry.same_grid(mask, exam.images[name]):
            return name
    raise GeometryError(
        f"{path}: label of shape {mask.shape} lies on the grid of no image of the exam; draw or resample it on one of them"
    )


def compare_runs(exam: Exam, settings: Ready) -> None:
    """Further runs of a sequence over the first one; those that show something else are left out, and said."""
    for name, paths in exam.case.runs.items():
        first = exam.images[name]
        exam.runs[name] = compared(first, paths, align=settings.align != "never")
        for key, run in exam.runs[name].items():
            step = {"step": "repeat", "sequence": key, "to": name, "file": run.path.name, "used": run.used}
            numbers = _numbers(run.found, first) if run.found else {}
            exam.steps.append(step | {"correlation": run.correlation, "ratio": run.ratio} | numbers)
            if not run.used:
                _log.warning("%s: %s", exam.case.name, left_out(exam.steps[-1]))


def left_out(step: Mapping[str, Any]) -> str:
    """Why a run is not averaged, in a line."""
    return (
        f"{step['file']} is left out of the average of {step['to']}: its correlation with the first run is {step['correlation']:.2f}; "
        "look for motion, or for another sequence"
    )


def bring_together(exam: Exam, settings: Ready) -> None:
    """Every sequence over the reference of its exam."""
    reference = exam.images[exam.reference]
    exam.within[exam.reference] = np.eye(4)
    for name in sorted(exam.images, key=lambda name: name in _GUIDES):
        image, guide = exam.images[name], _GUIDES.get(name, "")
        if name == exam.reference:
            continue
        if settings.align == "never" or (settings.align == "auto" and geometry.same_grid(image, reference)):
            exam.within[name] = np.eye(4)
            why = "not asked for" if settings.align == "never" else "on the grid of the reference"
            exam.steps.append({"step": "not registered", "sequence": name, "to": exam.reference, "why": why})
        elif guide in exam.within and geometry.same_grid(image, exam.images[guide]):
            exam.within[name] = exam.within[guide]
            exam.steps.append({"step": "follows", "sequence": name, "guide": guide})
        else:
            found = register(image, reference, near=True)
            exam.within[name] = found.matrix
            _note(exam, "register", name, exam.reference, found, reference)


def _note(exam: Exam, step: str, name: str, to: str, found: Registration, fixed: Volume, **more: Any) -> None:
    if not found.improved:
        reason = "nothing better than the headers was found" if found.overlap else "the images do not overlap"
        _log.warning("%s: %s stays where its header puts it against %s: %s", exam.case.name, name, to, reason)
    exam.steps.append({"step": step, "sequence": name, "to": to} | _numbers(found, fixed) | more)


def _numbers(found: Registration, fixed: Volume) -> dict[str, Any]:
    shift, turn = shift_and_turn(found.matrix, fixed.affine, fixed.shape)
    return {
        "moved_mm": shift,
        "turned_deg": turn,
        "information_before": found.before,
        "information_after": found.after,
        "improved": found.improved,
        "start": found.start,
        "overlap": found.overlap,
    }


def bring_onward(exam: Exam, settings: Ready, first: Record | None) -> str:
    """From the reference to the ready space; its name."""
    image = exam.images[exam.reference]
    if first is not None:
        name = exam.reference if exam.reference in first["sequences"] else first["reference"]
        about = first["sequences"][name]
        fixed, there = read_volume(Path(about["source"])), np.array(about["matrix"])
        found = register(image, fixed)
        exam.onward = there @ found.matrix
        _note(exam, "register to the first exam", exam.reference, f"{name} of {first['name']}", found, fixed)
        return str(first["space"]) if settings.template else f"ses{plain(first['session'])}{plain(first['reference'])}"
    if settings.template is None:
        return plain(exam.reference)
    template = read_volume(settings.template)
    if exam.brain is not None and looks_stripped(template):
        mask = exam.mask_on(image.affine, image.shape)
        image = Volume(np.where(mask, image.array, 0), image.affine)
    found = register(image, template, fit=settings.template_fit)
    exam.onward = found.matrix
    file = settings.template.name
    scale = float(np.cbrt(np.linalg.det(found.matrix[:3, :3])))
    _note(
        exam, "register to the template", exam.reference, file, found, template, fit=settings.template_fit, scale=scale
    )
    return plain(file.removesuffix(".gz").removesuffix(".nii")) or "template"
