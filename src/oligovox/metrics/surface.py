"""Distances between the surfaces of two masks, in mm: Hausdorff, average and normalised surface distance.

The surface is the mask minus its 6-neighbour erosion; what lies beyond the array is background. A distance runs from each surface
voxel centre to the nearest one of the other mask, so there are two lists, one a direction. All scores are read from these two lists:

| score | definition |
| --- | --- |
| HD95 | larger of the two 95th percentiles (linear interpolation); not the percentile of the pooled list, which is mostly smaller |
| MSSD | the same at the 100th percentile: the Hausdorff distance |
| ASSD | mean of the pooled list |
| NSD at t mm | share of the pooled list that is ≤ t; "surface Dice" |

| surface of | HD95, MSSD, ASSD | NSD |
| --- | --- | --- |
| both | as above | as above |
| one only | NaN | 0 |
| none | NaN | NaN |

A miss shows in Dice 0 and NSD 0; a penalty in mm for it is a challenge's rule, not a distance.

Source: NSD: Nikolov et al. 2021, J Med Internet Res 23(7):e26151; ASSD: Heimann et al. 2009, IEEE TMI 28(8) (both from memory).

Deviates: voxels are counted, all alike. Nikolov's own code weighs each surface element by its area from marching cubes and puts it on
voxel corners, which matters most where voxels are anisotropic or masks a few voxels thin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from oligovox.metrics.overlap import Mask, bounding_box, same_grid, voxel_mm3

_ROUNDING = 1 + 1e-6  # of spacings stored as float32: a distance of 1.0000001 mm is within 1 mm


@dataclass(frozen=True)
class SurfaceScores:
    """All scores of one pair of surfaces; NaN where undefined.

    Attributes:
        hd95_mm: larger of the two directed 95th percentiles, ≥ 0.
        mssd_mm: largest distance of all, ≥ hd95_mm.
        assd_mm: mean over the voxels of both surfaces, ≥ 0.
        nsd: tolerance in mm → share of both surfaces within it, in [0, 1].
    """

    hd95_mm: float
    mssd_mm: float
    assd_mm: float
    nsd: Mapping[float, float]


def surface_scores(
    prediction: NDArray[Any], truth: NDArray[Any], spacing_mm: Sequence[float], tolerances_mm: Sequence[float] = (1.0,)
) -> SurfaceScores:
    """Every score of two masks (x, y, z) from one computation of the distances.

    Args:
        prediction: voxels above 0 are inside.
        truth: the same, on the same grid.
        spacing_mm: voxel sides.
        tolerances_mm: where to read the NSD.

    Raises:
        GeometryError: the shapes differ, or the spacing is not three positive numbers.
        LabelError: values that are not labels.
    """
    forward, backward = _distances(prediction, truth, spacing_mm)
    return SurfaceScores(
        hd95_mm=_larger(forward, backward, 95),
        mssd_mm=_larger(forward, backward, 100),
        assd_mm=_mean(forward, backward),
        nsd={tolerance: _within(forward, backward, tolerance) for tolerance in tolerances_mm},
    )


def hausdorff_mm(
    prediction: NDArray[Any], truth: NDArray[Any], spacing_mm: Sequence[float], percentile: float = 95
) -> float:
    """Hausdorff distance in mm, ≥ 0: the larger of the two directed percentiles, in [0, 100]; NaN where either mask is empty.

    Raises:
        GeometryError: the shapes differ, or the spacing is not three positive numbers.
        LabelError: values that are not labels.
    """
    return _larger(*_distances(prediction, truth, spacing_mm), percentile)


def hd95_mm(prediction: NDArray[Any], truth: NDArray[Any], spacing_mm: Sequence[float]) -> float:
    """`hausdorff_mm` at the 95th percentile."""
    return hausdorff_mm(prediction, truth, spacing_mm)


def assd_mm(prediction: NDArray[Any], truth: NDArray[Any], spacing_mm: Sequence[float]) -> float:
    """Average symmetric surface distance in mm, ≥ 0; NaN where either mask is empty.

    Raises:
        GeometryError: the shapes differ, or the spacing is not three positive numbers.
        LabelError: values that are not labels.
    """
    return _mean(*_distances(prediction, truth, spacing_mm))


def nsd(prediction: NDArray[Any], truth: NDArray[Any], spacing_mm: Sequence[float], tolerance_mm: float = 1.0) -> float:
    """Normalised surface distance in [0, 1]: share of both surfaces within the tolerance; 0 where one mask is empty, NaN where both are.

    Raises:
        GeometryError: the shapes differ, or the spacing is not three positive numbers.
        LabelError: values that are not labels.
    """
    return _within(*_distances(prediction, truth, spacing_mm), tolerance_mm)


def surface_distances(
    first: Mask, second: Mask, spacing_mm: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance in mm from each surface voxel of one mask, in array order, to the surface of the other, in both directions.

    Infinite where the other mask is empty; no distances where the mask itself is.
    """
    edges = surface(first), surface(second)
    return _nearest(*edges, spacing_mm), _nearest(edges[1], edges[0], spacing_mm)


def surface(mask: Mask) -> Mask:
    """Voxels of the mask with at least one of their six neighbours outside it."""
    padded = np.pad(mask, 1)
    inner = mask.copy()
    for axis in range(3):
        for side in (slice(None, -2), slice(2, None)):
            inner &= padded[tuple(side if other == axis else slice(1, -1) for other in range(3))]
    return mask & ~inner


def _distances(
    prediction: NDArray[Any], truth: NDArray[Any], spacing_mm: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    prediction, truth = same_grid(prediction, truth)
    voxel_mm3(spacing_mm)
    box = bounding_box(prediction | truth)
    return surface_distances(prediction[box], truth[box], spacing_mm)


def _nearest(edge: Mask, other: Mask, spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    """Distance from each voxel of an edge to the other; voxels in both are 0 and need no search."""
    apart = ~other[edge]
    distance = np.zeros(len(apart))
    if apart.any():
        tree = cKDTree(_points(other, spacing_mm), leafsize=32, balanced_tree=False, compact_nodes=False)
        distance[apart] = tree.query(_points(edge & ~other, spacing_mm))[0]
    return distance


def _points(mask: Mask, spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    """(n, 3) voxel centres in mm, in array order; `np.argwhere` is many times slower on a sparse mask."""
    where = np.unravel_index(np.flatnonzero(mask), mask.shape)
    return np.stack([axis * float(side) for axis, side in zip(where, spacing_mm, strict=True)], axis=1)


def _larger(forward: NDArray[np.float64], backward: NDArray[np.float64], percentile: float) -> float:
    if not len(forward) or not len(backward):
        return math.nan
    return float(max(np.percentile(forward, percentile), np.percentile(backward, percentile)))


def _mean(forward: NDArray[np.float64], backward: NDArray[np.float64]) -> float:
    if not len(forward) or not len(backward):
        return math.nan
    return float((forward.sum() + backward.sum()) / (len(forward) + len(backward)))


def _within(forward: NDArray[np.float64], backward: NDArray[np.float64], tolerance_mm: float) -> float:
    near = sum(np.count_nonzero(distances <= tolerance_mm * _ROUNDING) for distances in (forward, backward))
    total = len(forward) + len(backward)
    return float(near / total) if total else math.nan
