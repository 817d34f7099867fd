"""Every score of one case: overlap, surface, volumes and lesions, from two label maps on one grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oligovox.metrics.bootstrap import defined
from oligovox.metrics.lesions import DEFAULT_RULE, LesionMatch, LesionRule, match_lesions
from oligovox.metrics.overlap import dice, same_grid, volume_ml
from oligovox.metrics.surface import hd95_mm


@dataclass(frozen=True)
class CaseScore:
    """Scores of one case; NaN where undefined (see the tables in `overlap`, `surface`, `lesions`).

    Attributes:
        dice: in [0, 1].
        hd95_mm: larger of the two directed 95th percentiles.
        volume_ml: predicted volume.
        reference_ml: volume of the reference.
        lesions: the lesions, one by one.
    """

    dice: float
    hd95_mm: float
    volume_ml: float
    reference_ml: float
    lesions: LesionMatch

    @property
    def volume_difference_ml(self) -> float:
        """Predicted minus reference volume."""
        return self.volume_ml - self.reference_ml

    def as_row(self) -> dict[str, float | int | None]:
        """One flat row for a table or JSON; None where undefined."""
        lesions = self.lesions
        return {
            "dice": defined(self.dice),
            "hd95_mm": defined(self.hd95_mm),
            "volume_ml": self.volume_ml,
            "reference_ml": self.reference_ml,
            "volume_difference_ml": self.volume_difference_ml,
            "lesions_reference": len(lesions.reference),
            "lesions_predicted": len(lesions.predicted),
            "lesions_found": lesions.found,
            "lesions_false": lesions.false_positives,
            "lesion_sensitivity": defined(lesions.sensitivity),
            "lesion_precision": defined(lesions.precision),
            "lesion_f1": defined(lesions.f1),
        }


def score_case(
    prediction: NDArray[Any], truth: NDArray[Any], spacing_mm: Sequence[float], *, rule: LesionRule = DEFAULT_RULE
) -> CaseScore:
    """Score a mask against the reference; any value above 0 is lesion.

    Args:
        prediction: (x, y, z).
        truth: (x, y, z), on the same grid.
        spacing_mm: voxel sides.
        rule: which components are lesions, and when one is found.

    Raises:
        GeometryError: the shapes differ, or the spacing is not three positive numbers.
        LabelError: values that are not labels.
    """
    prediction, truth = same_grid(prediction, truth)
    return CaseScore(
        dice=dice(prediction, truth),
        hd95_mm=hd95_mm(prediction, truth, spacing_mm),
        volume_ml=volume_ml(prediction, spacing_mm),
        reference_ml=volume_ml(truth, spacing_mm),
        lesions=match_lesions(prediction, truth, spacing_mm, rule),
    )


def score_classes(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    spacing_mm: Sequence[float],
    classes: Mapping[str, int | Sequence[int]],
    *,
    rule: LesionRule = DEFAULT_RULE,
) -> dict[str, CaseScore]:
    """Score each class of two label maps on its own.

    Args:
        prediction: (x, y, z) label map.
        truth: (x, y, z) label map on the same grid.
        spacing_mm: voxel sides.
        classes: name → label value, or the values that make up a region (whole tumour = 1, 2, 3).
        rule: which components are lesions, and when one is found.

    Raises:
        GeometryError: the shapes differ, or the spacing is not three positive numbers.
    """
    return {
        name: score_case(np.isin(prediction, values), np.isin(truth, values), spacing_mm, rule=rule)
        for name, values in classes.items()
    }
