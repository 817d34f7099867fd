"""The MS lesion challenge MSSEG of MICCAI 2016, with the lesion detection of Anima.

A lesion is a 6-connected component strictly larger than `min_volume_mm3`; smaller components are background for everything said of
lesions (voxel metrics keep them). A reference lesion is found where

1. more than `min_overlap` (α) of its voxels lie in predicted lesions, and
2. of the predicted lesions that overlap it, taken by decreasing overlap until they make up at least `enough` (γ) of what is covered,
   none has more than `max_outside` (β) of its own voxels outside the reference lesions.

A predicted lesion is true by the same test with the roles exchanged. `lesion_sensitivity` (SensL) = found / reference,
`lesion_precision` (PPVL) = true / predicted, `lesion_f1` (F1_score) is their harmonic mean.

| voxels of reference | lesions in reference | predicted lesions | SensL | PPVL | F1 | Dice, distance, volume error |
| --- | --- | --- | --- | --- | --- | --- |
| some | some | some | as above | as above | as above, 0 where both are 0 | as usual |
| some | some | none | 0 | 0 | 0 | as usual; distance undefined if no voxel |
| some | none | some | undefined | 0 | 0 | as usual |
| some | none | none | undefined | 0 | undefined | as usual |
| none | none | any | undefined | undefined | undefined | undefined: only number and volume of predicted lesions |

Source: Commowick et al. 2018, Scientific Reports, s41598-018-31911-7; rules, defaults and edge cases read in Anima-Public
(animaSegPerfAnalyzer, version of March 2026), which calls α, β, γ MinOverlapRatio, MaxFalsePositiveRatio and
MaxFalsePositiveRatioModerator.

Deviates:

* Of predicted lesions with the same overlap the larger comes first, then the one further outside. Anima leaves their order
  to its sort, which keeps larger ones first at least up to 16 predicted lesions (inferred from the code).
* Cumulative shares are quotients of counts, where Anima adds up rounded quotients: they may differ where a share is exactly γ.
* Rounding of spacings stored as float32 does not change the smallest size.
* F1 is undefined, not 0, where neither mask has a lesion.
* The mean surface distance takes each distance on its own. Anima's SurfaceDistance never resets its running minimum, so every distance
  there is the least one so far, and its mean is too small. The face of a mask at the end of the array is surface here (in Anima not checked).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import sparse

from oligovox import settings as base
from oligovox.metrics.bootstrap import defined
from oligovox.metrics.lesions import (
    LesionMatch,
    LesionRule,
    find_lesions,
    match_lesions,
    overlap_table,
    smallest_lesion,
)
from oligovox.metrics.overlap import Mask, bounding_box, same_grid, voxel_mm3
from oligovox.metrics.protocols.counts import LESION, Voxels, count_voxels, lesion_rows
from oligovox.metrics.protocols.result import CaseResult, Number
from oligovox.metrics.surface import assd_mm

MAIN: tuple[str, ...] = (
    "lesion_f1",
    "lesion_sensitivity",
    "lesion_precision",
    "dice",
    "assd_mm",
    "volume_error_percent",
)

BEST: Mapping[str, Literal["high", "low"]] = {
    "lesion_f1": "high",
    "lesion_sensitivity": "high",
    "lesion_precision": "high",
    "dice": "high",
    "jaccard": "high",
    "sensitivity": "high",
    "ppv": "high",
    "assd_mm": "low",
    "lesions_false": "low",
}
"""The volume error has a sign: neither high nor low is best."""


class Settings(base.Settings):
    """The rule's parameters; the defaults are the challenge's."""

    min_volume_mm3: float = Field(3.0, ge=0, description="mm³; a lesion counts where it is strictly larger")
    min_overlap: float = Field(0.10, ge=0, lt=1, description="α: share of a lesion that must be exceeded")
    max_outside: float = Field(0.70, ge=0, le=1, description="β: share of an overlapping lesion that may lie outside")
    enough: float = Field(0.65, gt=0, le=1, description="γ: share of what is covered at which the test of β ends")
    connectivity: Literal[6, 18, 26] = Field(6, description="neighbours that join voxels into one lesion")


DEFAULT = Settings()


def score(
    prediction: NDArray[Any], truth: NDArray[Any], spacing_mm: Sequence[float], settings: Settings = DEFAULT
) -> CaseResult:
    """Score one image; any value above 0 is lesion.

    Args:
        prediction: (x, y, z).
        truth: (x, y, z), on the same grid.
        spacing_mm: voxel sides.
        settings: the rule.

    Raises:
        GeometryError: the shapes differ, or the spacing is not three positive numbers.
        LabelError: values that are not labels.
    """
    prediction, truth = same_grid(prediction, truth)
    match = detect(prediction, truth, spacing_mm, settings)
    voxels = count_voxels(prediction, truth)
    unit_ml = voxel_mm3(spacing_mm) / 1000
    counts: dict[str, Number] = {
        "volume_ml": voxels.predicted * unit_ml,
        "reference_ml": voxels.reference * unit_ml,
        "lesions_reference": len(match.reference),
        "lesions_predicted": len(match.predicted),
        "lesions_predicted_ml": sum(lesion.volume_mm3 for lesion in match.predicted) / 1000,
        "lesions_found": match.found,
        "lesions_false": match.false_positives,
    }
    distance = assd_mm(prediction, truth, spacing_mm)
    return CaseResult({LESION: _metrics(voxels, match, distance) | counts}, lesion_rows(match))


def known_labels(settings: Settings = DEFAULT) -> frozenset[int] | None:
    """None: any value above 0 is lesion."""
    return None


def detect(prediction: Mask, truth: Mask, spacing_mm: Sequence[float], settings: Settings = DEFAULT) -> LesionMatch:
    """The lesions of two masks (x, y, z) of one shape, found and true by both rules.

    Args:
        prediction: predicted mask.
        truth: reference mask.
        spacing_mm: voxel sides.
        settings: the rule.
    """
    smallest = smallest_lesion(spacing_mm, settings.min_volume_mm3)
    prediction, truth = (_large_enough(mask, smallest, settings) for mask in (prediction, truth))
    enough_covered = LesionRule(connectivity=settings.connectivity, min_volume_mm3=0, min_overlap=settings.min_overlap)
    match = match_lesions(prediction, truth, spacing_mm, enough_covered)
    box = bounding_box(prediction | truth)  # the same masks in the same box: components are numbered as in the match
    reference, predicted = (find_lesions(mask[box], connectivity=settings.connectivity) for mask in (truth, prediction))
    table = overlap_table(reference, predicted)
    found = _covered_by_fitting(table, settings)
    true = _covered_by_fitting(sparse.csr_array(table.T), settings)
    return LesionMatch(
        tuple(replace(lesion, found=lesion.found and ok) for lesion, ok in zip(match.reference, found, strict=True)),
        tuple(replace(lesion, true=lesion.true and ok) for lesion, ok in zip(match.predicted, true, strict=True)),
    )


def _large_enough(mask: Mask, smallest: int, settings: Settings) -> Mask:
    """The mask without its small components."""
    box = bounding_box(mask)
    lesions = find_lesions(mask[box], smallest, settings.connectivity)
    kept = np.zeros_like(mask)
    kept[box] = np.append(False, lesions.counted)[lesions.labels]
    return kept


def _covered_by_fitting(table: sparse.csr_array, settings: Settings) -> list[bool]:
    """Rule 2 for each component of the rows: what mostly covers it does not lie mostly outside.

    Args:
        table: voxels that components i (rows) and j (columns) share; row and column 0 are background.
        settings: the rule.
    """
    sizes = table.sum(axis=0)
    outside = table[[0]].toarray()[0] / np.maximum(sizes, 1)
    fits = []
    for start, stop in zip(table.indptr[1:-1], table.indptr[2:], strict=True):
        others, common = table.indices[start:stop], table.data[start:stop]
        others, common = others[others > 0], common[others > 0]
        order = np.lexsort((-outside[others], -sizes[others], -common))
        reached = np.cumsum(common[order]) / max(common.sum(), 1)
        needed = int(np.searchsorted(reached, settings.enough)) + 1
        fits.append(bool((outside[others[order[:needed]]] <= settings.max_outside).all()))
    return fits


def _metrics(voxels: Voxels, match: LesionMatch, distance: float) -> dict[str, Number]:
    """Everything Anima leaves out where the reference is empty."""
    precision = match.precision if match.predicted else 0.0
    metrics = {
        "lesion_f1": match.f1,
        "lesion_sensitivity": match.sensitivity,
        "lesion_precision": precision,
        "dice": voxels.dice,
        "jaccard": voxels.jaccard,
        "sensitivity": voxels.tpr,
        "ppv": voxels.ppv,
        "assd_mm": distance,
        "volume_error_percent": 100 * voxels.volume_error,
    }
    return {name: defined(value) if voxels.reference else None for name, value in metrics.items()}
