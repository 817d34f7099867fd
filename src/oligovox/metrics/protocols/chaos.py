"""The abdominal organ challenge CHAOS of ISBI 2019: four metrics an organ, each turned into a score of at most 100.

| metric | definition | score |
| --- | --- | --- |
| DICE | 2·common / (predicted + reference) | 100·DICE, 0 below 0.8 |
| RAVD | 100·abs(predicted − reference) / reference, in % | 100 − 20·RAVD, 0 above 5 % |
| ASSD | mean distance from each border voxel of one mask to the nearest of the other, both directions pooled, in mm | 100 − 20/3·ASSD, 0 above 15 mm |
| MSSD | the largest of these distances, in mm | 100 − 5/3·MSSD, 0 above 60 mm |

The score of an organ is the mean of the four; the final score is the mean over organs and cases. A border voxel has at least one of its
six neighbours outside the mask; where the array ends is no border, so an organ cut by the field of view has none there.

| prediction | reference | DICE | RAVD | ASSD, MSSD | scores |
| --- | --- | --- | --- | --- | --- |
| some | some | as above | as above | as above | as above |
| empty | some | 0 | 100 | undefined | 0 |
| some | empty | 0 | undefined | undefined | 0 |
| empty | empty | undefined | undefined | undefined | undefined: the organ is not there, and not counted |
| a mask without border (it fills the array) | any but empty | as above | as above | undefined | ASSD and MSSD: 0 |

Source: Kavur et al., Medical Image Analysis, arXiv 2001.06535; metrics and thresholds read in the challenge's CHAOS-evaluation (document of
September 2019 and program). Order of the organs: grey values 63, 126, 189, 252 of its MR masks (from memory).

On the sample case of CHAOS-evaluation this module gives what its README prints: DICE 0.978, RAVD 0.665 %, ASSD 0.734 mm, MSSD 14 mm.

Deviates: the document takes 26 neighbours for the border; its Python and MATLAB programs take six, and so do we. An organ in neither mask is
0/0 there. Spacing is that of the grid, where the program reads the slice distance from DICOM headers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator
from scipy import ndimage

from oligovox import settings as base
from oligovox.metrics.bootstrap import defined
from oligovox.metrics.overlap import Box, Mask, bounding_box, same_grid, voxel_mm3
from oligovox.metrics.protocols.counts import count_voxels
from oligovox.metrics.protocols.result import CaseResult, Number
from oligovox.metrics.surface import surface_scores

MAIN: tuple[str, ...] = ("score", "dice", "ravd_percent", "assd_mm", "mssd_mm")

BEST: Mapping[str, Literal["high", "low"]] = {
    "score": "high",
    "dice": "high",
    "ravd_percent": "low",
    "assd_mm": "low",
    "mssd_mm": "low",
    **dict.fromkeys(("dice_score", "ravd_score", "assd_score", "mssd_score"), "high"),
}


class Settings(base.Settings):
    """Organs and thresholds; the defaults are those of task 5 (four organs on MR). For the liver alone: {liver: 1}."""

    organs: dict[str, int] = Field(
        {"liver": 1, "right_kidney": 2, "left_kidney": 3, "spleen": 4}, description="name → label value"
    )
    min_dice: float = Field(0.8, ge=0, le=1, description="DICE below which the score is 0")
    max_ravd_percent: float = Field(5, gt=0, description="%; RAVD above which the score is 0")
    max_assd_mm: float = Field(15, gt=0, description="mm; ASSD above which the score is 0")
    max_mssd_mm: float = Field(60, gt=0, description="mm; MSSD above which the score is 0")

    @field_validator("organs")
    @classmethod
    def _one_value_an_organ(cls, organs: dict[str, int]) -> dict[str, int]:
        values = list(organs.values())
        if not values or min(values) < 1 or len(set(values)) < len(values):
            raise ValueError("expected at least one organ, each with its own label value above 0")
        return organs


DEFAULT = Settings()


def score(
    prediction: NDArray[Any], truth: NDArray[Any], spacing_mm: Sequence[float], settings: Settings = DEFAULT
) -> CaseResult:
    """Score every organ of one case.

    Args:
        prediction: (x, y, z) label map.
        truth: (x, y, z) label map on the same grid.
        spacing_mm: voxel sides.
        settings: organs and thresholds.

    Raises:
        GeometryError: the shapes differ, or the spacing is not three positive numbers.
        LabelError: values that are not labels.
    """
    same_grid(prediction, truth)
    voxel_mm3(spacing_mm)
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    return CaseResult(
        {
            organ: _score_organ(prediction == value, truth == value, spacing_mm, settings)
            for organ, value in settings.organs.items()
        }
    )


def over_cohort(results: Mapping[str, CaseResult], settings: Settings = DEFAULT) -> dict[str, float | None]:
    """The final `score`: mean over all organs of all cases that have one."""
    rows = [row for result in results.values() for row in result.regions.values()]
    scores = [float(row["score"]) for row in rows if row["score"] is not None]
    return {"score": float(np.mean(scores)) if scores else None}


def known_labels(settings: Settings = DEFAULT) -> frozenset[int] | None:
    """The label values of the organs, without the background."""
    return frozenset(settings.organs.values())


def metric_scores(
    dice: float, ravd_percent: float, assd_mm: float, mssd_mm: float, settings: Settings = DEFAULT
) -> dict[str, float]:
    """The four scores of an organ and their mean `score`, all in [0, 100]; an undefined (NaN) metric scores 0.

    Args:
        dice: in [0, 1].
        ravd_percent: ≥ 0.
        assd_mm: ≥ 0.
        mssd_mm: ≥ 0.
        settings: the thresholds.
    """
    scores = {
        "dice_score": 100 * dice if dice >= settings.min_dice else 0.0,
        "ravd_score": _falling(ravd_percent, settings.max_ravd_percent),
        "assd_score": _falling(assd_mm, settings.max_assd_mm),
        "mssd_score": _falling(mssd_mm, settings.max_mssd_mm),
    }
    return {"score": sum(scores.values()) / len(scores)} | scores


def _falling(value: float, most: float) -> float:
    """100 at 0, 0 from `most` on and where the value is NaN."""
    return 100 * (1 - value / most) if value <= most else 0.0


def _score_organ(prediction: Mask, truth: Mask, spacing_mm: Sequence[float], settings: Settings) -> dict[str, Number]:
    box = _one_wider(bounding_box(prediction | truth), prediction.shape)
    prediction, truth = prediction[box], truth[box]
    voxels = count_voxels(prediction, truth)
    surfaces = surface_scores(_border(prediction), _border(truth), spacing_mm)
    dice, ravd = voxels.dice, 100 * abs(voxels.volume_error)
    scores = metric_scores(dice, ravd, surfaces.assd_mm, surfaces.mssd_mm, settings)
    if not voxels.predicted and not voxels.reference:
        scores = dict.fromkeys(scores, math.nan)
    metrics = {"dice": dice, "ravd_percent": ravd, "assd_mm": surfaces.assd_mm, "mssd_mm": surfaces.mssd_mm}
    return {name: defined(value) for name, value in (metrics | scores).items()}


def _one_wider(box: Box, shape: tuple[int, ...]) -> Box:
    """The box with one voxel around it, where the array has one: a side without is the end of the array."""
    x, y, z = (slice(max(side.start - 1, 0), min(side.stop + 1, end)) for side, end in zip(box, shape, strict=True))
    return x, y, z


def _border(mask: Mask) -> Mask:
    """Voxels with one of their six neighbours outside the mask; beyond the array there is no outside.

    A border is its own surface: each of its voxels keeps a neighbour outside the mask, so `surface_scores` of two borders measures from
    border to border.
    """
    border: Mask = mask & ~ndimage.binary_erosion(mask, border_value=1)
    return border
