"""The generic protocol: overlap, surfaces, volumes and lesions of one case, without the rules of any challenge.

For each region (each class named in `classes`, or "lesion": every value above 0):

| metric | definition | undefined (None) |
| --- | --- | --- |
| dice | `overlap.dice` | both empty |
| nsd, hd95_mm, assd_mm | `surface`; nsd at `tolerance_mm` | both empty; hd95 and assd where one is |
| volume_ml, reference_ml | predicted and reference volume | never |
| volume_difference_ml, volume_error_ml | predicted − reference, and its size | never |
| lesions_reference, lesions_predicted, lesions_found, lesions_false | `lesions.match_lesions` | never |
| lesion_count_difference | predicted − reference lesions | never |
| lesion_sensitivity, lesion_precision, lesion_f1 | found / reference, true / predicted, their harmonic mean | see `lesions` |

The last four rows by size: each lesion falls in the bin of its own volume, [low, high) mm³, and of the bin

| metric, with the bin's name behind it | definition | undefined (None) |
| --- | --- | --- |
| lesions_reference, lesions_predicted | lesions in the bin | never |
| lesion_sensitivity | found / reference | no reference lesion in it |
| lesion_precision | true / predicted | no predicted lesion in it |
| lesion_f1 | 2·found / (2·found + missed + false) | no lesion in it |

F1 of a bin counts lesions instead of averaging two shares: a lesion of 99 mm³ predicted with 101 mm³ is found in one bin and leaves
the other without an error, where a harmonic mean would be 0 in both.

Over a cohort: agreement of the volumes and of the lesion counts (`agreement`), keys "region.name". Pass one result a person.

Source: definitions and sources are those of `overlap`, `surface`, `lesions`, `agreement`; the bins are ours, decades of mm³.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from oligovox import settings as base
from oligovox.metrics.agreement import Agreement, agreement
from oligovox.metrics.bootstrap import defined
from oligovox.metrics.lesions import DEFAULT_RULE, LesionMatch, LesionRule, match_lesions
from oligovox.metrics.overlap import Mask, dice, same_grid, volume_ml
from oligovox.metrics.protocols.counts import LESION, lesion_rows
from oligovox.metrics.protocols.result import CaseResult, Number, Row
from oligovox.metrics.surface import surface_scores

Label = Annotated[int, Field(ge=1)]


class Settings(base.Settings):
    """What to score and where to look."""

    classes: dict[str, Annotated[tuple[Label, ...], Field(min_length=1)]] = Field(
        {}, description="region → label values that make it up; none: every value above 0 is lesion"
    )
    tolerance_mm: float = Field(1.0, ge=0, description="mm; the NSD counts surface voxels this close")
    size_edges_mm3: tuple[float, ...] = Field((10.0, 100.0, 1000.0), description="mm³; where a size bin ends")
    rule: LesionRule = Field(DEFAULT_RULE, description="which components are lesions, and when one is found")

    @field_validator("size_edges_mm3")
    @classmethod
    def _edges_ascend(cls, edges: tuple[float, ...]) -> tuple[float, ...]:
        if not all(low < high for low, high in pairwise((0.0, *edges))):
            raise ValueError(f"size_edges_mm3 = {edges}; expected volumes above 0 mm³ that ascend")
        return edges


DEFAULT = Settings()

MAIN: tuple[str, ...] = (
    "dice",
    "nsd",
    "hd95_mm",
    "assd_mm",
    "volume_difference_ml",
    "lesion_f1",
    "lesion_sensitivity",
    "lesion_precision",
)


def size_bins(edges_mm3: Sequence[float]) -> dict[str, tuple[float, float]]:
    """Name of each bin → [low, high) in mm³: "below_10mm3", "10_to_100mm3", "from_100mm3"."""
    if not edges_mm3:
        return {}
    between = {f"{low:g}_to_{high:g}mm3": (low, high) for low, high in pairwise(edges_mm3)}
    first, last = edges_mm3[0], edges_mm3[-1]
    return {f"below_{first:g}mm3": (0.0, first), **between, f"from_{last:g}mm3": (last, math.inf)}


_BY_SIZE = ("lesion_sensitivity", "lesion_precision", "lesion_f1")

BEST: Mapping[str, Literal["high", "low"]] = {
    "dice": "high",
    "nsd": "high",
    "hd95_mm": "low",
    "assd_mm": "low",
    "volume_error_ml": "low",
    "lesions_false": "low",
    **dict.fromkeys(_BY_SIZE, "high"),
    **{f"{metric}_{size}": "high" for metric in _BY_SIZE for size in size_bins(DEFAULT.size_edges_mm3)},
}
"""Which end is better; bins other than the default ones are not named here."""


def score(
    prediction: NDArray[Any], truth: NDArray[Any], spacing_mm: Sequence[float], settings: Settings = DEFAULT
) -> CaseResult:
    """Score one case.

    Args:
        prediction: (x, y, z) label map.
        truth: (x, y, z) label map on the same grid.
        spacing_mm: voxel sides.
        settings: regions, tolerance, size bins and the lesion rule.

    Returns:
        The metrics of the module's tables for each region. A lesion's row adds `overlap`, the share of its voxels inside the other mask.

    Raises:
        GeometryError: the shapes differ, or the spacing is not three positive numbers.
        LabelError: values that are not whole numbers.
    """
    whole = same_grid(prediction, truth)
    regions: dict[str, dict[str, Number]] = {}
    rows: list[Row] = []
    for region, labels in _regions(settings).items():
        predicted, reference = (np.isin(prediction, labels), np.isin(truth, labels)) if labels else whole
        match = match_lesions(predicted, reference, spacing_mm, settings.rule)
        regions[region] = {
            **_voxelwise(predicted, reference, spacing_mm, settings.tolerance_mm),
            **_lesionwise(match),
            **_by_size(match, settings.size_edges_mm3),
        }
        rows += lesion_rows(match, region)
    return CaseResult(regions, tuple(rows))


def over_cohort(results: Mapping[str, CaseResult], settings: Settings = DEFAULT) -> dict[str, float | None]:
    """Agreement of volumes (mL) and lesion counts over people.

    Args:
        results: person → result.
        settings: those the results were scored with.

    Returns:
        "region.volume_bias_ml", "region.volume_low_ml", "region.volume_high_ml", "region.volume_concordance", and the same of "count", without
        a unit; None where undefined.
    """
    found: dict[str, float | None] = {}
    for region in _regions(settings):
        cases = [result.regions[region] for result in results.values()]
        volume = agreement((case["volume_ml"], case["reference_ml"]) for case in cases)
        count = agreement((case["lesions_predicted"], case["lesions_reference"]) for case in cases)
        found |= _plain(volume, f"{region}.volume", unit="_ml") | _plain(count, f"{region}.count", unit="")
    return found


def known_labels(settings: Settings = DEFAULT) -> frozenset[int] | None:
    """Label values that belong to a region, without the background; None: every value is lesion."""
    if not settings.classes:
        return None
    return frozenset(label for labels in settings.classes.values() for label in labels)


def _regions(settings: Settings) -> Mapping[str, tuple[int, ...]]:
    """Region → its labels; none where every value above 0 belongs to it."""
    return settings.classes or {LESION: ()}


def _voxelwise(prediction: Mask, truth: Mask, spacing_mm: Sequence[float], tolerance_mm: float) -> dict[str, Number]:
    surfaces = surface_scores(prediction, truth, spacing_mm, (tolerance_mm,))
    predicted, reference = volume_ml(prediction, spacing_mm), volume_ml(truth, spacing_mm)
    return {
        "dice": defined(dice(prediction, truth)),
        "nsd": defined(surfaces.nsd[tolerance_mm]),
        "hd95_mm": defined(surfaces.hd95_mm),
        "assd_mm": defined(surfaces.assd_mm),
        "volume_ml": predicted,
        "reference_ml": reference,
        "volume_difference_ml": predicted - reference,
        "volume_error_ml": abs(predicted - reference),
    }


def _lesionwise(match: LesionMatch) -> dict[str, Number]:
    return {
        "lesions_reference": len(match.reference),
        "lesions_predicted": len(match.predicted),
        "lesions_found": match.found,
        "lesions_false": match.false_positives,
        "lesion_count_difference": len(match.predicted) - len(match.reference),
        "lesion_sensitivity": defined(match.sensitivity),
        "lesion_precision": defined(match.precision),
        "lesion_f1": defined(match.f1),
    }


def _by_size(match: LesionMatch, edges_mm3: Sequence[float]) -> dict[str, Number]:
    scores: dict[str, Number] = {}
    for size, (low, high) in size_bins(edges_mm3).items():
        part = LesionMatch(
            tuple(lesion for lesion in match.reference if low <= lesion.volume_mm3 < high),
            tuple(lesion for lesion in match.predicted if low <= lesion.volume_mm3 < high),
        )
        counted = 2 * part.found + part.missed + part.false_positives
        scores |= {
            f"lesions_reference_{size}": len(part.reference),
            f"lesions_predicted_{size}": len(part.predicted),
            f"lesion_sensitivity_{size}": defined(part.sensitivity),
            f"lesion_precision_{size}": defined(part.precision),
            f"lesion_f1_{size}": 2 * part.found / counted if counted else None,
        }
    return scores


def _plain(found: Agreement, name: str, unit: str) -> dict[str, float | None]:
    return {
        f"{name}_bias{unit}": defined(found.bias),
        f"{name}_low{unit}": defined(found.low),
        f"{name}_high{unit}": defined(found.high),
        f"{name}_concordance": defined(found.concordance),
    }
