"""FROC: how many lesions are found, against false positives a case, as the threshold on a map of lesion probability falls.

At each threshold the map becomes a mask (probability ≥ threshold), whose components are matched as everywhere (`lesions`). Counts are
summed over cases before they are divided, so every lesion weighs the same; a case without lesions adds only its false positives.

| reference lesions in all cases | sensitivity | false positives a case |
| --- | --- | --- |
| some | found / reference | false predicted lesions / cases |
| none | NaN | the same |
| no cases | NaN | NaN |

Sensitivity at a rate is the best one among the thresholds with no more false positives a case than that: steps, nothing interpolated.
Predicting nothing finds 0 at no false positive, so it is never undefined where there are lesions. The score is its mean over `rates`.

Source: the seven rates and their mean as in the LUNA16 challenge (Setio et al. 2017, Med Image Anal 42:1; from memory).

Deviates: LUNA16 ranks candidates that each have one probability, so none merge; here components grow and merge as the threshold falls,
and false positives may fall with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from oligovox.metrics.lesions import DEFAULT_RULE, LesionRule, Lesions, find_lesions, smallest_lesion
from oligovox.metrics.overlap import Mask, bounding_box, probability_and_mask
from oligovox.settings import Settings


class FrocRule(Settings):
    """Where to cut the map, and what counts as a lesion."""

    thresholds: tuple[float, ...] = Field(
        tuple(step / 20 for step in range(1, 20)), min_length=1, description="ascending, in (0, 1]"
    )
    rates: tuple[float, ...] = Field(
        (0.125, 0.25, 0.5, 1, 2, 4, 8), min_length=1, description="false positives a case, of the score"
    )
    rule: LesionRule = Field(DEFAULT_RULE, description="which components are lesions, and when one is found")

    @field_validator("thresholds")
    @classmethod
    def _thresholds_ascend(cls, thresholds: tuple[float, ...]) -> tuple[float, ...]:
        if thresholds[-1] > 1 or not all(low < high for low, high in pairwise((0.0, *thresholds))):
            raise ValueError(f"thresholds = {thresholds}; expected probabilities above 0, up to 1, that ascend")
        return thresholds


DEFAULT_FROC = FrocRule()


@dataclass(frozen=True)
class CaseCounts:
    """Lesions of one case at each threshold.

    Attributes:
        reference: lesions of the reference.
        found: (t,) those found.
        false: (t,) predicted lesions that are false.
    """

    reference: int
    found: tuple[int, ...]
    false: tuple[int, ...]


@dataclass(frozen=True)
class Froc:
    """The curve of a cohort, one point a threshold.

    Attributes:
        cases: number of cases.
        thresholds: (t,) ascending.
        sensitivity: (t,) share of all reference lesions found, in [0, 1] or NaN.
        false_per_case: (t,) mean number of false positives.
    """

    cases: int
    thresholds: tuple[float, ...]
    sensitivity: tuple[float, ...]
    false_per_case: tuple[float, ...]

    def sensitivity_at(self, rate: float) -> float:
        """Best sensitivity with at most this many false positives a case, in [0, 1]; NaN without reference lesions."""
        if any(math.isnan(found) for found in self.sensitivity):
            return math.nan
        points = zip(self.sensitivity, self.false_per_case, strict=True)
        return max((found for found, false in points if false <= rate), default=0.0)

    def score(self, rates: Sequence[float] = DEFAULT_FROC.rates) -> float:
        """Mean of `sensitivity_at` over rates."""
        return fmean(self.sensitivity_at(rate) for rate in rates)


def count_case(
    probability: NDArray[Any], truth: NDArray[Any], spacing_mm: Sequence[float], rule: FrocRule = DEFAULT_FROC
) -> CaseCounts:
    """Count the lesions of one case at every threshold.

    Args:
        probability: (x, y, z) probability of lesion, in [0, 1].
        truth: (x, y, z), voxels above 0 are lesion, on the same grid.
        spacing_mm: voxel sides.
        rule: thresholds and the lesion rule.

    Raises:
        GeometryError: the shapes differ, or the spacing is not three positive numbers.
        LabelError: values that are not probabilities, or not labels.
    """
    probability, truth = probability_and_mask(probability, truth)
    box = bounding_box(truth | (probability >= rule.thresholds[0]))
    probability, truth = probability[box], truth[box]
    smallest = smallest_lesion(spacing_mm, rule.rule.min_volume_mm3)
    reference = find_lesions(truth, smallest, rule.rule.connectivity)
    found, false = [], []
    for threshold in rule.thresholds:
        mask = probability >= threshold
        predicted = find_lesions(mask, smallest, rule.rule.connectivity)
        found.append(int(np.sum(reference.counted & (_covered(reference, mask) > rule.rule.min_overlap))))
        false.append(int(np.sum(predicted.counted & (_covered(predicted, truth) <= rule.rule.min_overlap))))
    return CaseCounts(int(reference.counted.sum()), tuple(found), tuple(false))


def froc(cases: Iterable[CaseCounts], rule: FrocRule = DEFAULT_FROC) -> Froc:
    """The curve over cases, counted with the same rule. Count the cases one by one: the counts are small, the maps are not."""
    counted = list(cases)
    n, lesions = len(counted), sum(case.reference for case in counted)
    found, false = (np.sum(counts, axis=0) for counts in ([c.found for c in counted], [c.false for c in counted]))
    undefined = (math.nan,) * len(rule.thresholds)
    return Froc(
        cases=n,
        thresholds=rule.thresholds,
        sensitivity=tuple((found / lesions).tolist()) if lesions else undefined,
        false_per_case=tuple((false / n).tolist()) if n else undefined,
    )


def _covered(lesions: Lesions, other: Mask) -> NDArray[np.float64]:
    """(n,) share of each component's voxels inside the other mask, in [0, 1]."""
    common: NDArray[np.int64] = np.bincount(lesions.labels[other], minlength=len(lesions.voxels) + 1)
    return common[1:] / lesions.voxels
