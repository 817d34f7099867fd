"""Lesions of two masks matched one by one.

The core (`find_lesions`, `overlap_table`) only counts; a protocol is a rule on top of it. `match_lesions` is ours:

* A lesion is a connected component. It counts where its volume is strictly larger than `min_volume_mm3` (MSSEG 2016: 4 voxels at
  1 mm). Smaller components count neither as lesions nor as false positives, but their voxels still cover the other mask's lesions.
* A reference lesion is found where more than `min_overlap` of its voxels are predicted.
* A predicted lesion is a true positive where more than `min_overlap` of its voxels lie in the reference.

| counted lesions | sensitivity | precision | F1 |
| --- | --- | --- | --- |
| in both | found / reference | true / predicted | 2·S·P / (S + P), 0 where both are 0 |
| reference only | 0 (or found / reference by uncounted voxels) | NaN | 0 |
| prediction only | NaN | 0 (or true / predicted) | 0 |
| none | NaN | NaN | NaN |

Source: volume and overlap thresholds as in the MSSEG 2016 challenge (Commowick et al. 2018), without its two rules on outside shares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage, sparse

from oligovox.metrics.overlap import Mask, bounding_box, same_grid, voxel_mm3
from oligovox.settings import Settings

_REACH: dict[int, int] = {6: 1, 18: 2, 26: 3}


class LesionRule(Settings):
    """When a component is a lesion, and when it is found; the defaults are those of the MSSEG 2016 volume and overlap thresholds."""

    connectivity: Literal[6, 18, 26] = Field(26, description="neighbours that join voxels into one lesion")
    min_volume_mm3: float = Field(3.0, ge=0, description="mm³; a lesion counts where it is strictly larger")
    min_overlap: float = Field(0.1, ge=0, lt=1, description="share that must be exceeded; 0 means any common voxel")


DEFAULT_RULE = LesionRule()


@dataclass(frozen=True)
class Lesions:
    """Connected components of one mask.

    Attributes:
        labels: (x, y, z); 0 outside, components numbered from 1.
        voxels: (n,) size of each component.
        counted: (n,) larger than the smallest volume that counts.
    """

    labels: NDArray[np.int32]
    voxels: NDArray[np.int64]
    counted: Mask


@dataclass(frozen=True)
class ReferenceLesion:
    """One lesion of the reference.

    Attributes:
        number: from 1, in array order.
        volume_mm3: its volume.
        centre: the voxel (x, y, z) of the lesion nearest to its centre of mass.
        covered: share of its voxels that is predicted, in [0, 1].
        found: covered enough.
    """

    number: int
    volume_mm3: float
    centre: tuple[int, int, int]
    covered: float
    found: bool


@dataclass(frozen=True)
class PredictedLesion:
    """One predicted lesion.

    Attributes:
        number: from 1, in array order.
        volume_mm3: its volume.
        centre: the voxel (x, y, z) of the lesion nearest to its centre of mass.
        inside: share of its voxels that lies in the reference, in [0, 1].
        true: inside enough; False is a false positive.
    """

    number: int
    volume_mm3: float
    centre: tuple[int, int, int]
    inside: float
    true: bool


@dataclass(frozen=True)
class LesionMatch:
    """All counted lesions of a case and what the module's table makes of them."""

    reference: tuple[ReferenceLesion, ...]
    predicted: tuple[PredictedLesion, ...]

    @property
    def found(self) -> int:
        """Number of reference lesions found."""
        return sum(lesion.found for lesion in self.reference)

    @property
    def missed(self) -> int:
        """Number of reference lesions not found."""
        return len(self.reference) - self.found

    @property
    def true_positives(self) -> int:
        """Number of predicted lesions that are true; differs from `found` where lesions split or merge."""
        return sum(lesion.true for lesion in self.predicted)

    @property
    def false_positives(self) -> int:
        """Number of predicted lesions that are false."""
        return len(self.predicted) - self.true_positives

    @property
    def sensitivity(self) -> float:
        """Found / reference lesions, in [0, 1] or NaN."""
        return self.found / len(self.reference) if self.reference else math.nan

    @property
    def precision(self) -> float:
        """True / predicted lesions, in [0, 1] or NaN."""
        return self.true_positives / len(self.predicted) if self.predicted else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of sensitivity and precision, in [0, 1] or NaN."""
        if not self.reference and not self.predicted:
            return math.nan
        if not self.found or not self.true_positives:
            return 0.0
        return 2 * self.sensitivity * self.precision / (self.sensitivity + self.precision)


def match_lesions(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    spacing_mm: Sequence[float],
    rule: LesionRule = DEFAULT_RULE,
) -> LesionMatch:
    """Match the lesions of two masks (x, y, z) on one grid.

    Args:
        prediction: voxels above 0 are predicted lesion.
        truth: voxels above 0 are reference lesion.
        spacing_mm: voxel sides.
        rule: what counts, and what is found.

    Raises:
        GeometryError: the shapes differ, or the spacing is not three positive numbers.
    """
    prediction, truth = same_grid(prediction, truth)
    box = bounding_box(prediction | truth)
    smallest = smallest_lesion(spacing_mm, rule.min_volume_mm3)
    reference = find_lesions(truth[box], smallest, rule.connectivity)
    predicted = find_lesions(prediction[box], smallest, rule.connectivity)
    common = overlap_table(reference, predicted)[1:, 1:]
    covered = common.sum(axis=1) / reference.voxels
    inside = common.sum(axis=0) / predicted.voxels
    unit, corner = voxel_mm3(spacing_mm), np.array([side.start for side in box])
    return LesionMatch(
        tuple(
            ReferenceLesion(
                number, float(voxels * unit), centre, float(covered[i]), bool(covered[i] > rule.min_overlap)
            )
            for number, (i, voxels, centre) in enumerate(_counted(reference, spacing_mm, corner), start=1)
        ),
        tuple(
            PredictedLesion(number, float(voxels * unit), centre, float(inside[i]), bool(inside[i] > rule.min_overlap))
            for number, (i, voxels, centre) in enumerate(_counted(predicted, spacing_mm, corner), start=1)
        ),
    )


def smallest_lesion(spacing_mm: Sequence[float], min_volume_mm3: float) -> int:
    """Voxels of the smallest lesion that is strictly larger than a volume: 4 at 1 mm and 3 mm³, 2 at 1 x 1 x 3 mm.

    Rounding of spacings stored as float32 (1e-6) does not count as larger.
    """
    return math.floor(min_volume_mm3 / voxel_mm3(spacing_mm) * (1 + 1e-6)) + 1


def find_lesions(mask: Mask, smallest: int = 1, connectivity: Literal[6, 18, 26] = 26) -> Lesions:
    """Connected components of a mask (x, y, z); those of at least `smallest` voxels count."""
    structure = ndimage.generate_binary_structure(3, _REACH[connectivity])
    labels: NDArray[np.int32] = np.empty(mask.shape, dtype=np.int32)
    number = ndimage.label(mask, structure=structure, output=labels)
    voxels = np.bincount(labels[mask], minlength=number + 1)[1:]
    return Lesions(labels, voxels, voxels >= smallest)


def overlap_table(reference: Lesions, predicted: Lesions) -> sparse.csr_array:
    """Voxels that reference component i and predicted component j share, sparse (n + 1, m + 1); row and column 0 are outside."""
    either = (reference.labels > 0) | (predicted.labels > 0)
    rows, columns = reference.labels[either], predicted.labels[either]
    shape = (len(reference.voxels) + 1, len(predicted.voxels) + 1)
    return sparse.csr_array((np.ones(len(rows), dtype=np.int64), (rows, columns)), shape=shape)


def centre_voxels(
    where: NDArray[np.int64], owner: NDArray[np.integer[Any]], voxels: NDArray[np.int64], spacing_mm: Sequence[float]
) -> NDArray[np.int64]:
    """The voxel of each component nearest to its centre of mass.

    Args:
        where: (f, 3) the voxels of all components.
        owner: (f,) the component of each, from 0.
        voxels: (n,) their sizes, none 0.
        spacing_mm: voxel sides.

    Returns:
        (n, 3) indices.
    """
    sums = [np.bincount(owner, weights=axis, minlength=len(voxels)) for axis in where.T]
    offset = (where - (np.stack(sums, axis=1) / voxels[:, None])[owner]) * np.asarray(spacing_mm, dtype=float)
    nearest_first = np.lexsort((np.square(offset).sum(axis=1), owner))
    nearest: NDArray[np.int64] = where[nearest_first[np.cumsum(voxels) - voxels]]
    return nearest


def _counted(
    lesions: Lesions, spacing_mm: Sequence[float], corner: NDArray[np.int64]
) -> list[tuple[int, int, tuple[int, int, int]]]:
    """(index, voxels, centre voxel) of each counted component."""
    flat = np.flatnonzero(lesions.labels > 0)
    owner = lesions.labels.ravel()[flat] - 1
    where = np.stack(np.unravel_index(flat, lesions.labels.shape), axis=1)
    centres = centre_voxels(where, owner, lesions.voxels, spacing_mm) + corner
    found = []
    for index in np.flatnonzero(lesions.counted):
        x, y, z = (int(v) for v in centres[index])
        found.append((int(index), int(lesions.voxels[index]), (x, y, z)))
    return found
