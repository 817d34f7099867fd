"""Intensities: one scale for every sequence of every scanner."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LIMIT = 20.0
"""z-scores are cut at ±LIMIT: a vessel or an artefact stays bright, and no value leaves float16's precise range."""


@dataclass(frozen=True)
class Scale:
    """What a z-score was made with, in the units of the file.

    Attributes:
        low: 0.5th percentile in the foreground.
        high: 99.5th percentile.
        mean: mean of the foreground values clipped to [low, high].
        sd: their standard deviation; 0 where the image is constant.
    """

    low: float
    high: float
    mean: float
    sd: float


def robust_scale(values: np.ndarray) -> Scale:
    """The scale of these values (any shape, at least one): mean and sd after clipping at percentiles 0.5 and 99.5."""
    low, high = np.percentile(values, [0.5, 99.5])
    clipped = np.clip(values, low, high)
    return Scale(float(low), float(high), float(clipped.mean(dtype=np.float64)), float(clipped.std(dtype=np.float64)))


def robust_zscore(array: np.ndarray, foreground: np.ndarray, scale: Scale | None = None) -> np.ndarray:
    """(value − mean) / sd in the foreground, cut at ±`LIMIT`; 0 outside it.

    Mean and sd are those of `robust_scale`; the values themselves are not clipped at the percentiles, since lesions may lie
    beyond them. An image that is constant in the foreground, and an empty foreground, give zeros.

    Args:
        array: (x, y, z).
        foreground: bool, the same shape.
        scale: use this one instead of the array's own.

    Returns:
        float32, the same shape.
    """
    result = np.zeros(array.shape, dtype=np.float32)
    values = array[foreground].astype(np.float32, copy=False)
    if values.size:
        scale = scale or robust_scale(values)
        if scale.sd > 0:
            result[foreground] = np.clip((values - scale.mean) / scale.sd, -LIMIT, LIMIT)
    return result
