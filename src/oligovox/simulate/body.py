"""What lies in the scanner: the tissues of one person in each voxel, and the truth about them, before any image is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from oligovox.cohort.annotate import SPARSE, Sparse, as_file, sparsify
from oligovox.simulate.anatomy.abdomen import draw_abdomen
from oligovox.simulate.anatomy.brain import Anatomy, draw_anatomy, template
from oligovox.simulate.anatomy.head import draw_head
from oligovox.simulate.fields import Spacing, Volume
from oligovox.simulate.pathology.confounders import grow_confounders
from oligovox.simulate.pathology.glioma import Tumour, grow_glioma
from oligovox.simulate.pathology.implants import read_donors
from oligovox.simulate.pathology.lesions import Lesions, grow_lesions
from oligovox.simulate.pathology.rims import RimMap, draw_rims
from oligovox.simulate.physics.scene import Parts
from oligovox.simulate.raters import Raters, consensus, draw_rater_labels, draw_raters
from oligovox.simulate.recipe import AbdomenRecipe, BrainRecipe, Recipe

_BRAIN_MARGIN = 8.0  # mm of air around a stripped brain
_HEAD_MARGIN = (25.0, 25.0, 30.0, 40.0, 75.0, 25.0)  # mm: left, right, back, front, below, above
RIM_CLASSES = {"lesion": 1, "rim": 2}
"""Of the label map `rims`: lesions without and with a paramagnetic rim."""

_ADULT = 40.0  # years; nothing in an abdomen depends on it

Rng: TypeAlias = Callable[[str], np.random.Generator]
"""Name of a room → its stream of chance."""


@dataclass(frozen=True)
class Truth:
    """What is known to the voxel.

    Attributes:
        labels: (x, y, z) class of each voxel, 0 = none.
        classes: name → value in `labels`.
        name: what the labels are of: lesion, tumour or organs.
        lesions: (x, y, z) whole lesions, or None where the classes are organs.
        instances: (x, y, z) number of the lesion (26-connected), 0 = none.
        rows: one a lesion, `id` is its number; units are in the keys.
        told: keys of a subject's facts that give the labels away.
        others: further label maps by name: rater1 …, consensus, sparse (255: nobody looked), change (1 new, 2 larger, 3 smaller), rims
            (1 lesion without, 2 lesion with a paramagnetic rim).
    """

    labels: NDArray[np.uint8]
    classes: Mapping[str, int]
    name: str
    lesions: NDArray[np.bool_] | None = None
    instances: NDArray[np.int32] | None = None
    rows: tuple[Mapping[str, Any], ...] = ()
    others: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    told: tuple[str, ...] = ("lesion_mL", "lesions")


@dataclass(frozen=True)
class Body:
    """One person in the scanner.

    Attributes:
        parts: what is in each voxel.
        truth: labels.
        inside: (x, y, z) brain and the CSF around it; the body in an abdomen.
        stripped: images end where `inside` ends.
        affine: voxel → RAS mm.
        spacing: voxel size along (x, y, z), mm.
        age: years.
        facts: what was drawn, plain JSON values, units in the keys.
    """

    parts: Parts
    truth: Truth
    inside: NDArray[np.bool_]
    stripped: bool
    affine: NDArray[np.float64]
    spacing: tuple[float, float, float]
    age: float
    facts: Mapping[str, Any]


def draw_body(recipe: Recipe, rng: Rng, visit: int) -> Body:
    """A new person; of the same person's visits only the lesions differ."""
    match recipe:
        case BrainRecipe():
            return _brain(recipe, rng, visit)
        case AbdomenRecipe():
            return _abdomen(recipe, rng)


def _brain(recipe: BrainRecipe, rng: Rng, visit: int) -> Body:
    person = rng("person")
    age, atrophy = float(person.uniform(*recipe.age)), float(person.uniform(*recipe.atrophy))
    average = template(recipe.spacing, _HEAD_MARGIN if recipe.head else _BRAIN_MARGIN)
    anatomy = draw_anatomy(person, average, age=age, atrophy=atrophy)
    if recipe.glioma:
        tumour = grow_glioma(rng("tumour"), anatomy, recipe.glioma)
        anatomy = tumour.anatomy
        others = grow_confounders(rng("confounders"), anatomy, recipe.confounders, age)
        parts = tumour.paint(others.paint(anatomy.parts()))
        truth = _tumour_truth(recipe, rng, tumour, anatomy.brain)
    else:
        lesions = _lesions(recipe, rng, anatomy, visit)
        others = grow_confounders(rng("confounders"), anatomy, recipe.confounders, age)
        parts = lesions.paint(others.paint(anatomy.parts()))
        rims = draw_rims(rng("rims"), anatomy, lesions, recipe.rims) if recipe.rims else None
        parts = rims.paint(parts) if rims else parts
        before = _lesions(recipe, rng, anatomy, visit - 1).mask if visit > 1 else None
        truth = _lesion_truth(recipe, rng, lesions, rims, before, anatomy.brain, doubt=others.dirty)
    if recipe.head:
        parts = (*parts, *draw_head(rng("head"), anatomy, recipe.head))
    assert truth.lesions is not None
    voxel = recipe.spacing**3 / 1000
    facts: dict[str, Any] = {
        "age_years": round(age, 1),
        "atrophy": round(atrophy, 3),
        "brain_mL": round(float(np.count_nonzero(anatomy.brain) * voxel), 1),
        "lesion_mL": round(float(np.count_nonzero(truth.lesions) * voxel), 4),
        "lesions": len(truth.rows),
        "labels": truth.name,
        "classes": dict(truth.classes),
    }
    spacing = (recipe.spacing,) * 3
    return Body(parts, truth, anatomy.brain, recipe.head is None, anatomy.affine, spacing, age, facts)


def _lesions(recipe: BrainRecipe, rng: Rng, anatomy: Anatomy, visit: int) -> Lesions:
    assert recipe.lesions is not None
    donor = None
    if recipe.donors:
        donors = read_donors(Path(recipe.donors))
        donor = donors[int(rng("donor").integers(len(donors)))]
    return grow_lesions(rng("lesions"), anatomy, recipe.lesions, visit=visit, donor=donor)


def _lesion_truth(
    recipe: BrainRecipe,
    rng: Rng,
    lesions: Lesions,
    rims: RimMap | None,
    before: NDArray[np.bool_] | None,
    brain: NDArray[np.bool_],
    *,
    doubt: Volume,
) -> Truth:
    """The lesions, their grades, and what people make of them."""
    mask = lesions.mask
    rows: list[Mapping[str, Any]] = [*lesions.rows]
    if rims:
        rows = [{**row, **rims.grades.get(row["id"], {})} for row in rows]
    others: dict[str, NDArray[np.uint8]] = {}
    if rims:
        others["rims"] = _with_rims(mask, lesions.instances, rows)
    if recipe.raters:
        masks = draw_raters(
            rng("raters"), lesions.fraction, lesions.instances, recipe.spacing, recipe.raters, doubt=doubt
        )
        others |= {f"rater{k}": drawn.astype(np.uint8) for k, drawn in enumerate(masks, start=1)}
        others["consensus"] = consensus(masks).astype(np.uint8)
    if before is not None:
        others["change"] = _change(before, mask, lesions.instances)
    labels = mask.astype(np.uint8)
    others |= _sparse(recipe.sparse, rng, labels, recipe.spacing, brain)
    return Truth(labels, {"lesion": 1}, "lesion", mask, lesions.instances, tuple(rows), others)


def _tumour_truth(recipe: BrainRecipe, rng: Rng, tumour: Tumour, brain: NDArray[np.bool_]) -> Truth:
    """The tumour's compartments; a resection cavity is no lesion, but belongs to its tumour's row and number."""
    labels, cavity = tumour.labels, tumour.classes.get("RC", 0)
    whole = (labels > 0) & (labels != cavity)
    others = _several_raters(recipe.raters, rng, labels, recipe.spacing)
    others |= _sparse(recipe.sparse, rng, labels, recipe.spacing, brain)
    return Truth(labels, tumour.classes, "tumour", whole, tumour.instances, tuple(tumour.rows), others)


def _abdomen(recipe: AbdomenRecipe, rng: Rng) -> Body:
    drawn = draw_abdomen(rng("person"), recipe.anatomy)
    others = _several_raters(recipe.raters, rng, drawn.labels, drawn.spacing)
    others |= _sparse(recipe.sparse, rng, drawn.labels, drawn.spacing, drawn.body)
    told = tuple(f"{name}_mL" for name in drawn.classes)
    truth = Truth(drawn.labels, drawn.classes, "organs", others=others, told=told)
    facts = {"labels": "organs", "classes": dict(drawn.classes), **drawn.facts}
    return Body(drawn.parts, truth, drawn.body, False, drawn.affine, drawn.spacing, _ADULT, facts)


def _several_raters(
    raters: Raters | None, rng: Rng, labels: NDArray[np.uint8], spacing: Spacing
) -> dict[str, NDArray[np.uint8]]:
    if raters is None:
        return {}
    drawn = draw_rater_labels(rng("raters"), labels, spacing, raters)
    return {f"rater{k}": one for k, one in enumerate(drawn, start=1)} | {"consensus": consensus(drawn)}


def _sparse(
    sparse: Sparse | None, rng: Rng, labels: NDArray[np.uint8], spacing: Spacing, inside: NDArray[np.bool_]
) -> dict[str, NDArray[np.uint8]]:
    """The sparse label as a file can hold it."""
    return {SPARSE: as_file(sparsify(labels, rng("sparse"), sparse, spacing, inside))} if sparse else {}


def _with_rims(
    mask: NDArray[np.bool_], instances: NDArray[np.int32], rows: Sequence[Mapping[str, Any]]
) -> NDArray[np.uint8]:
    """The class of each lesion, all of it; those too small to be graded have no rim."""
    rimmed = [row["id"] for row in rows if row.get("rim")]
    classes = np.where(np.isin(instances, rimmed), RIM_CLASSES["rim"], RIM_CLASSES["lesion"])
    return np.asarray(classes * mask, dtype=np.uint8)


def _change(before: NDArray[np.bool_], after: NDArray[np.bool_], instances: NDArray[np.int32]) -> NDArray[np.uint8]:
    """1 new lesion, 2 a known lesion grown, 3 lesion no more, 0 no change."""
    known = np.zeros(int(instances.max()) + 1, dtype=bool)
    known[np.unique(instances[before])] = True
    grown = np.where(known[instances], 2, 1) * (after & ~before)
    return np.asarray(grown + 3 * (before & ~after), dtype=np.uint8)
