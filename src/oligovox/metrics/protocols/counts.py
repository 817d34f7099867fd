"""What the organ and MS protocols share: voxels that two masks have in common, and one row for each lesion.

| prediction | reference | Dice, Jaccard | PPV | TPR | volume error |
| --- | --- | --- | --- | --- | --- |
| some | some | as usual | as usual | as usual | (predicted − reference) / reference |
| empty | some | 0 | NaN | 0 | −1 |
| some | empty | 0 | 0 | NaN | NaN |
| empty | empty | NaN | NaN | NaN | NaN |

A protocol that gives a value to one of these NaN says so in its own table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from oligovox.metrics.lesions import LesionMatch, PredictedLesion, ReferenceLesion
from oligovox.metrics.overlap import Mask
from oligovox.metrics.protocols.result import Row

LESION = "lesion"
"""The one region of a protocol without classes."""


@dataclass(frozen=True)
class Voxels:
    """Voxel counts of two masks and what follows from them; NaN where undefined, see the table above.

    Attributes:
        common: in both masks.
        predicted: in the prediction.
        reference: in the reference.
    """

    common: int
    predicted: int
    reference: int

    @property
    def dice(self) -> float:
        """Dice coefficient, in [0, 1]."""
        return share(2 * self.common, self.predicted + self.reference)

    @property
    def jaccard(self) -> float:
        """Intersection over union, in [0, 1]."""
        return share(self.common, self.predicted + self.reference - self.common)

    @property
    def ppv(self) -> float:
        """Share of the predicted voxels that lie in the reference, in [0, 1]."""
        return share(self.common, self.predicted)

    @property
    def tpr(self) -> float:
        """Share of the reference voxels that are predicted, in [0, 1]."""
        return share(self.common, self.reference)

    @property
    def volume_error(self) -> float:
        """(predicted − reference) / reference, ≥ −1; positive means too much was predicted."""
        return share(self.predicted - self.reference, self.reference)


def count_voxels(prediction: Mask, truth: Mask) -> Voxels:
    """Counts of two masks (x, y, z) of one shape."""
    counts = (int(np.count_nonzero(mask)) for mask in (prediction & truth, prediction, truth))
    return Voxels(*counts)


def share(part: float, whole: float) -> float:
    """The quotient, NaN where the whole is 0."""
    return part / whole if whole else math.nan


def lesion_rows(match: LesionMatch, region: str = LESION) -> tuple[Row, ...]:
    """One row for each counted lesion, those of the reference first; `overlap` is the share of it in the other mask, in [0, 1]."""
    reference = [_row(region, "reference", x, "found" if x.found else "missed", x.covered) for x in match.reference]
    predicted = [_row(region, "predicted", x, "true" if x.true else "false", x.inside) for x in match.predicted]
    return (*reference, *predicted)


def _row(region: str, side: str, lesion: ReferenceLesion | PredictedLesion, outcome: str, overlap: float) -> Row:
    place = dict(zip("xyz", lesion.centre, strict=True))
    size = {"number": lesion.number, "volume_mm3": lesion.volume_mm3}
    return {"region": region, "side": side, **size, **place, "outcome": outcome, "overlap": overlap}
