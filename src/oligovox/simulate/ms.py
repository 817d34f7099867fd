"""A cohort of multiple sclerosis at 3 T: T1w, T2w and FLAIR of one person after another, each a pure function of recipe and seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from oligovox.settings import Settings
from oligovox.simulate.anatomy import Anatomy, draw_anatomy, template
from oligovox.simulate.fields import Volume
from oligovox.simulate.lesions import (
    Confounders,
    Lesions,
    count_lesions,
    draw_load,
    grow_confounders,
    grow_lesions,
)
from oligovox.simulate.scanner import Scan, bias_field, blur, rician, texture, vary
from oligovox.simulate.sequences import SEQUENCES, Sequence, signal
from oligovox.simulate.tissues import Tissues, draw_tissues

_KNOTS = np.linspace(0, 1, 9)  # severities at which the lesion signal is computed; in between it is interpolated
_DIRTY = 0.15  # severity of abnormal white matter that nobody labels
_GAINS = {"T1w": 9000.0, "T2w": 2400.0, "FLAIR": 2400.0}  # gives white matter some hundreds of units


class MSRecipe(Settings):
    """What a simulated cohort is like; ranges are (lowest, highest), drawn anew for each person."""

    field: float = Field(3.0, ge=3.0, le=3.0, description="field strength, T; 3 T only, for now")
    spacing: float = Field(1.0, ge=0.8, le=4.0, description="isotropic voxel size, mm")
    modalities: tuple[Literal["T1w", "T2w", "FLAIR"], ...] = Field(("T1w", "T2w", "FLAIR"), min_length=1)
    missing: float = Field(0.0, ge=0, lt=1, description="probability that a sequence was not acquired; one always was")
    load_ml: tuple[float, float] = Field(
        (0.3, 52.0), description="lesion load, mL: the patients' bimodal mixture cut to this"
    )
    noise_t1w: tuple[float, float] = Field((0.02, 0.04), description="noise of T1w, fraction of white matter")
    noise_t2w: tuple[float, float] = Field(
        (0.04, 0.065), description="noise of T2w and FLAIR, fraction of white matter"
    )
    bias: tuple[float, float] = Field((0.03, 0.15), description="half the 5-95 % range of the smooth field around 1")
    texture: float = Field(0.035, ge=0, le=0.2, description="variation within a tissue, relative standard deviation")
    confounders: bool = Field(True, description="unlabelled caps, dirty white matter and perivascular spaces")

    @model_validator(mode="after")
    def _ranges_ascend(self) -> MSRecipe:
        if len(set(self.modalities)) < len(self.modalities):
            raise ValueError(f"modalities {self.modalities} has a name twice; expected each once")
        for name, least, most in (
            ("load_ml", 0.05, 100.0),
            ("noise_t1w", 0.0, 0.5),
            ("noise_t2w", 0.0, 0.5),
            ("bias", 0.0, 0.5),
        ):
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(f"{name} = ({low}, {high}); expected {least} <= lowest <= highest <= {most}")
        return self


@dataclass(frozen=True)
class SimulatedSubject:
    """One person.

    Attributes:
        images: modality → (x, y, z) float32, arbitrary units, at least 1 in the brain and 0 outside.
        lesions: (x, y, z) more than half of the voxel is lesion.
        brain: (x, y, z) brain and the CSF around it.
        affine: voxel → RAS mm.
        facts: what was drawn: load in mL, number of lesions, timing, resolution and noise of each sequence …; plain JSON values.
    """

    images: Mapping[str, Volume]
    lesions: NDArray[np.bool_]
    brain: NDArray[np.bool_]
    affine: NDArray[np.float64]
    facts: dict[str, Any]


def simulate_subject(recipe: MSRecipe, seed: int) -> SimulatedSubject:
    """Make one person; the same recipe and seed give the same arrays, and no global state is read or changed.

    Anatomy, tissues, lesions and each sequence have random streams of their own: another noise level keeps the brain and its lesions.
    """
    person, disease, other, choice, *scanners = (
        np.random.Generator(np.random.Philox(s)) for s in np.random.SeedSequence(seed).spawn(4 + len(SEQUENCES))
    )
    anatomy = draw_anatomy(person, template(recipe.spacing))
    tissues = draw_tissues(person)
    load = draw_load(disease, *recipe.load_ml)
    lesions = grow_lesions(disease, anatomy, load)
    nothing = np.zeros_like(anatomy.wm)
    confounders = grow_confounders(other, anatomy) if recipe.confounders else Confounders(nothing, nothing)
    acquired = _acquired(choice, recipe)
    images, scans = {}, {}
    for modality, rng in zip(SEQUENCES, scanners, strict=True):
        if modality in acquired:
            scans[modality] = _draw_scan(rng, recipe, modality)
            images[modality] = _acquire(rng, scans[modality], anatomy, tissues, lesions, confounders)
    mask = lesions.mask
    return SimulatedSubject(
        images=images,
        lesions=mask,
        brain=anatomy.brain,
        affine=anatomy.affine,
        facts={
            "field_T": recipe.field,
            "load_mL": round(float(np.count_nonzero(mask) * recipe.spacing**3 / 1000), 4),
            "lesions": count_lesions(mask),
            "brain_mL": round(float(np.count_nonzero(anatomy.brain) * recipe.spacing**3 / 1000), 1),
            "scans": {modality: _facts(scan) for modality, scan in scans.items()},
        },
    )


def _acquired(rng: np.random.Generator, recipe: MSRecipe) -> tuple[str, ...]:
    kept = tuple(
        m for m, u in zip(recipe.modalities, rng.random(len(recipe.modalities)), strict=True) if u >= recipe.missing
    )
    return kept or (recipe.modalities[int(rng.integers(len(recipe.modalities)))],)


def _draw_scan(rng: np.random.Generator, recipe: MSRecipe, modality: str) -> Scan:
    plane, slices = rng.uniform(0.8, 1.2), rng.uniform(0.9, 1.4 if modality == "T1w" else 2.0)
    noise = recipe.noise_t1w if modality == "T1w" else recipe.noise_t2w
    return Scan(
        sequence=vary(rng, SEQUENCES[modality]),
        blur=(plane, plane, slices),
        gain=_GAINS[modality] * float(rng.lognormal(0, 0.3)),
        noise=float(rng.uniform(*noise)),
        bias=float(rng.uniform(*recipe.bias)),
        texture=recipe.texture,
    )


def _acquire(
    rng: np.random.Generator, scan: Scan, anatomy: Anatomy, tissues: Tissues, lesions: Lesions, confounders: Confounders
) -> Volume:
    """One image: the ideal signal, then texture, resolution, sensitivity, noise and gain; zero outside the brain."""
    image = _mix(scan.sequence, anatomy, tissues, lesions, confounders)
    shape, spacing = image.shape, anatomy.spacing
    image = np.abs(blur(image * texture(rng, shape, spacing, scan.texture), scan.blur, spacing))
    image *= bias_field(rng, shape, spacing, scan.bias, anatomy.brain)
    white = abs(float(signal(tissues.wm, scan.sequence)))
    image = rician(rng, image, scan.noise * white) * np.float32(scan.gain)
    return np.where(anatomy.brain, np.maximum(image, 1), 0).astype(np.float32)


def _mix(sequence: Sequence, anatomy: Anatomy, tissues: Tissues, lesions: Lesions, confounders: Confounders) -> Volume:
    """Signed signal of each voxel (x, y, z): tissue signals in proportion to their fractions."""
    gm, wm, csf = (np.float32(signal(tissue, sequence)) for tissue in (tissues.gm, tissues.wm, tissues.csf))
    ill = signal(tissues.lesion(_KNOTS), sequence)
    dirty = np.float32(np.interp(_DIRTY, _KNOTS, ill))
    brain = anatomy.gm * gm + anatomy.wm * (wm + (dirty - wm) * confounders.dirty)
    solid = np.maximum(anatomy.gm + anatomy.wm, 1e-6)
    for part, value in (
        (confounders.perivascular, csf),
        (lesions.fraction, np.interp(lesions.severity, _KNOTS, ill).astype(np.float32)),
    ):  # what is added takes its room from grey and white matter alike, never from CSF
        brain = brain * (1 - part / solid) + part * value
    return np.asarray(brain + anatomy.csf * csf)


def _facts(scan: Scan) -> dict[str, Any]:
    return {
        "timing": scan.sequence.model_dump(),
        "blur_mm": [round(float(b), 3) for b in scan.blur],
        "noise_of_wm": round(scan.noise, 4),
        "bias": round(scan.bias, 4),
    }
