"""Voxel overlap and volumes of two masks, and what every metric does to its masks first.

| prediction | reference | Dice | volume difference |
| --- | --- | --- | --- |
| some | some | 2·common / (predicted + reference) | predicted − reference |
| empty | some | 0 | −reference |
| some | empty | 0 | predicted |
| empty | empty | NaN: undefined, skipped and counted by `bootstrap` | 0 |

Source: the convention for MS, where a scan without lesions says nothing about overlap; brain-tumour challenges count the last row as 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oligovox.errors import GeometryError, LabelError

Mask = NDArray[np.bool_]
Box = tuple[slice, slice, slice]

_HALF = 1e-3  # rounding of probabilities stored as float16


def dice(prediction: NDArray[Any], truth: NDArray[Any]) -> float:
    """Dice coefficient in [0, 1]; the table above has the empty cases.

    Raises:
        GeometryError: the shapes differ.
        LabelError: values that are not labels.
    """
    prediction, truth = same_grid(prediction, truth)
    size = np.count_nonzero(prediction) + np.count_nonzero(truth)
    return float(2 * np.count_nonzero(prediction & truth) / size) if size else math.nan


def volume_ml(mask: NDArray[Any], spacing_mm: Sequence[float]) -> float:
    """Volume of a mask in mL."""
    return float(np.count_nonzero(as_mask(mask)) * voxel_mm3(spacing_mm) / 1000)


def volume_difference(prediction: NDArray[Any], truth: NDArray[Any], spacing_mm: Sequence[float]) -> float:
    """Predicted minus reference volume in mL; positive means too much was predicted.

    Raises:
        GeometryError: the shapes differ.
    """
    prediction, truth = same_grid(prediction, truth)
    return volume_ml(prediction, spacing_mm) - volume_ml(truth, spacing_mm)


def voxel_mm3(spacing_mm: Sequence[float]) -> float:
    """Volume of one voxel in mm³.

    Raises:
        GeometryError: not three positive finite numbers.
    """
    if len(spacing_mm) != 3 or not all(math.isfinite(side) and side > 0 for side in spacing_mm):
        raise GeometryError(f"spacing {tuple(spacing_mm)}: expected three positive voxel sides in mm (x, y, z)")
    return math.prod(float(side) for side in spacing_mm)


def as_mask(array: NDArray[Any]) -> Mask:
    """Voxels above 0: background 0 and unknown -1 are both outside.

    Raises:
        GeometryError: not three axes.
        LabelError: values between whole numbers (a probability map, an image) or NaN.
    """
    array = np.asarray(array)
    if array.ndim != 3:
        raise GeometryError(f"a mask has shape {array.shape}; expected three axes (x, y, z)")
    if array.dtype == np.bool_:
        return array
    if not np.issubdtype(array.dtype, np.integer) and not np.array_equal(array, np.trunc(array)):
        raise LabelError("a mask holds values that are not whole numbers; threshold probabilities before scoring them")
    return array > 0


def same_grid(prediction: NDArray[Any], truth: NDArray[Any]) -> tuple[Mask, Mask]:
    """Both as masks of one shape.

    Raises:
        GeometryError: the shapes differ.
    """
    _same_shape(prediction, truth)
    return as_mask(prediction), as_mask(truth)


def probability_and_mask(probability: NDArray[Any], truth: NDArray[Any]) -> tuple[NDArray[Any], Mask]:
    """A map of probabilities (x, y, z) clipped to [0, 1], and the reference as a mask of the same shape.

    Raises:
        GeometryError: the shapes differ, or are not three axes.
        LabelError: probabilities that are NaN or outside [0, 1] by more than the rounding of float16 (1e-3).
    """
    _same_shape(probability, truth)
    probability, truth = np.asarray(probability), as_mask(truth)
    low, high = (float(probability.min()), float(probability.max())) if probability.size else (0.0, 0.0)
    if not (low >= -_HALF and high <= 1 + _HALF):
        raise LabelError(
            f"a map of probabilities runs from {low:g} to {high:g}; expected 0 to 1, so apply the softmax or sigmoid first"
        )
    return (probability if low >= 0 and high <= 1 else np.clip(probability, 0, 1)), truth


def bounding_box(mask: Mask) -> Box:
    """The smallest box with every voxel of the mask; empty slices where it is empty."""
    sides = []
    for axis in range(3):  # each axis looks only at what the ones before it left
        inside = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        side = slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0)
        mask = mask[(*[slice(None)] * axis, side)]
        sides.append(side)
    return sides[0], sides[1], sides[2]


def _same_shape(prediction: NDArray[Any], truth: NDArray[Any]) -> None:
    if np.shape(prediction) != np.shape(truth):
        raise GeometryError(
            f"the prediction has shape {np.shape(prediction)}, the reference {np.shape(truth)}; bring both to one grid first"
        )
