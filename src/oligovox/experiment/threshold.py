"""The classical arm: one threshold on one sequence, fitted on the labelled people. It costs nothing, so a network has to beat it.

A voxel of the foreground is lesion where the z-score of the sequence, smoothed or not, is above the limit. Limit and smoothing are the pair with
the highest mean Dice over the labelled people (sessions of a person are averaged first), of voxels that somebody looked at; of equal pairs the
first, with less smoothing and a lower limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from oligovox.errors import LabelError
from oligovox.prepare.store import Plan, StoredCase
from oligovox.settings import Settings

_LIMITS = np.round(np.arange(0.0, 6.0, 0.05), 2)
NotNegative = Annotated[float, Field(ge=0)]


class ThresholdSettings(Settings):
    """Choices of the threshold."""

    sequence: str = Field("FLAIR", description="sequence that is looked at")
    smoothing_mm: tuple[NotNegative, ...] = Field(
        (0.0, 1.0), min_length=1, description="standard deviations of a Gaussian to choose from; 0: as measured"
    )


@dataclass(frozen=True)
class Threshold:
    """A fitted threshold.

    Attributes:
        channel: number of the sequence in the plan.
        limit: z-score above which a voxel is lesion.
        smoothing_mm: standard deviation of the Gaussian before it.
    """

    channel: int
    limit: float
    smoothing_mm: float

    def mask(self, case: StoredCase) -> NDArray[np.bool_]:
        """(x, y, z); empty where the case lacks the sequence."""
        if not case.present[self.channel]:
            return np.zeros(case.shape, dtype=bool)
        found: NDArray[np.bool_] = (_values(case, self.channel, self.smoothing_mm) > self.limit) & case.foreground()
        return found


def fit_threshold(cases: Sequence[StoredCase], plan: Plan, settings: ThresholdSettings) -> Threshold:
    """The best limit and smoothing for these labelled cases.

    Args:
        cases: prepared and labelled.
        plan: of their store; it has the sequence.
        settings: what to choose from.

    Raises:
        LabelError: no labelled case has the sequence.
    """
    channel = plan.modalities.index(settings.sequence)
    usable = [case for case in cases if case.labelled and case.present[channel]]
    if not usable:
        raise LabelError(f"none of {len(cases)} cases has a label and {settings.sequence}; a threshold needs one")
    best = Threshold(channel, float(_LIMITS[0]), settings.smoothing_mm[0])
    highest = -1.0
    for smoothing in settings.smoothing_mm:
        people: dict[str, list[NDArray[np.float64]]] = {}
        for case in usable:
            people.setdefault(case.person, []).append(_dice_of_limits(case, channel, smoothing))
        scores = np.mean([np.mean(sessions, axis=0) for sessions in people.values()], axis=0)
        if scores.max() > highest:
            highest = float(scores.max())
            best = Threshold(channel, float(_LIMITS[scores.argmax()]), smoothing)
    return best


def _dice_of_limits(case: StoredCase, channel: int, smoothing_mm: float) -> NDArray[np.float64]:
    """Dice at each limit; 0 where mask and label are empty, since such a case does not tell one limit from another."""
    label = case.known_label()
    assert label is not None, "a labelled case"
    inside, lesion = case.foreground() & (label >= 0), np.asarray(label) > 0
    values = _values(case, channel, smoothing_mm)
    predicted = _above(values[inside])
    hit = _above(values[inside & lesion])
    both = predicted + np.count_nonzero(lesion)
    return np.asarray(np.divide(2.0 * hit, both, out=np.zeros(len(_LIMITS)), where=both > 0))


def _above(values: NDArray[Any]) -> NDArray[np.int64]:
    """How many values are above each limit."""
    return len(values) - np.searchsorted(np.sort(values), _LIMITS.astype(values.dtype), side="right")


def _values(case: StoredCase, channel: int, smoothing_mm: float) -> NDArray[np.float32]:
    place = sum(case.present[:channel])  # absent sequences are not stored
    image: NDArray[np.float32] = np.asarray(case.image()[place], dtype=np.float32)
    if smoothing_mm:
        image = ndimage.gaussian_filter(image, [smoothing_mm / side for side in case.spacing])
    return image
