"""Distance between the surfaces of two masks, in mm.

Definition: the surface is the mask minus its 6-neighbour erosion (what lies beyond the array is background); a distance runs
from each surface voxel centre to the nearest one of the other mask; HD95 is the larger of the two directed 95th percentiles
(linear interpolation), not the percentile of the pooled distances, which is smaller.

An empty mask has no surface: HD95 is NaN where either one is empty. A miss shows in Dice 0 and lesion sensitivity 0; a penalty in
mm for it is a challenge's rule, not a distance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from oligovox.metrics.overlap import Mask, bounding_box, same_grid, voxel_mm3


def hd95_mm(prediction: NDArray[Any], truth: NDArray[Any], spacing_mm: Sequence[float]) -> float:
    """95 % Hausdorff distance in mm, ≥ 0; NaN where either mask is empty.

    Raises:
        GeometryError: the shapes differ, or the spacing is not three positive numbers.
    """
    prediction, truth = same_grid(prediction, truth)
    voxel_mm3(spacing_mm)
    if not prediction.any() or not truth.any():
        return math.nan
    box = bounding_box(prediction | truth)
    forward, backward = surface_distances(prediction[box], truth[box], spacing_mm)
    return float(max(np.percentile(forward, 95), np.percentile(backward, 95)))


def surface_distances(
    first: Mask, second: Mask, spacing_mm: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance in mm from each surface voxel of one mask to the surface of the other, in both directions; neither empty."""
    points = [np.argwhere(surface(mask)) * np.asarray(spacing_mm, dtype=float) for mask in (first, second)]
    trees = [cKDTree(cloud, balanced_tree=False, compact_nodes=False) for cloud in points]
    return np.asarray(trees[1].query(points[0])[0]), np.asarray(trees[0].query(points[1])[0])


def surface(mask: Mask) -> Mask:
    """Voxels of the mask with at least one of their six neighbours outside it."""
    padded = np.pad(mask, 1)
    inner = mask.copy()
    for axis in range(3):
        for side in (slice(None, -2), slice(2, None)):
            inner &= padded[tuple(side if other == axis else slice(1, -1) for other in range(3))]
    return mask & ~inner
