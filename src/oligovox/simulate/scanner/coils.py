"""What makes one tissue look different in different places: the fields of the coils, and its own texture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oligovox.simulate.fields import Spacing, Volume, smooth_field


def transmit_field(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    spacing: Spacing,
    ends: tuple[float, float],
    where: NDArray[np.bool_],
) -> Volume:
    """Flip angle over nominal (x, y, z): greatest in the middle of the head, falling outwards and unevenly to the least."""
    field = _hill(where) + 0.25 * smooth_field(rng, shape, spacing, 90.0)
    low, high = np.percentile(field[where][::17], (1, 99))
    return np.asarray(ends[0] + (ends[1] - ends[0]) * ((field - low) / (high - low)).clip(0, 1), dtype=np.float32)


def bias_field(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    spacing: Spacing,
    strength: float,
    where: NDArray[np.bool_],
    centre: float = 0.0,
) -> Volume:
    """Smooth positive factor (x, y, z) whose 5-95 % range within `where` is 1 - strength … 1 + strength, about; `centre` 0 to 1 of it is
    brightness in the middle."""
    field = smooth_field(rng, shape, spacing, 90.0) + 0.35 * smooth_field(rng, shape, spacing, 45.0)
    if centre:
        field = (1 - centre) * field + 4 * centre * _hill(where)
    low, middle, high = np.percentile(field[where][::17], (5, 50, 95))
    return np.asarray(np.exp(2 * np.float32(strength) * (field - middle) / (high - low)), dtype=np.float32)


def _hill(where: NDArray[np.bool_]) -> Volume:
    """1 in the middle of the box around `where`, 0 at its faces' middles, falling as a parabola and flat beyond: (x, y, z)."""
    total: Volume = np.ones((1, 1, 1), np.float32)
    for axis in range(3):
        taken = np.flatnonzero(where.any(axis=tuple(a for a in range(3) if a != axis)))
        middle, half = (taken[0] + taken[-1]) / 2, max((taken[-1] - taken[0]) / 2, 1)
        distance = (np.arange(where.shape[axis], dtype=np.float32) - np.float32(middle)) / np.float32(half)
        total = total - (distance**2).reshape([-1 if a == axis else 1 for a in range(3)])
    return np.maximum(total, -1)


_TEXTURE = ((3.0, 1.0), (9.0, 1.0), (25.0, 1.5))
"""Scale in mm and weight: fitted to the residuals of white matter in patients, and to its spread over the whole brain."""


def texture(rng: np.random.Generator, shape: tuple[int, ...], spacing: Spacing, strength: float) -> Volume:
    """Factor (x, y, z) of mean 1 and standard deviation `strength`: variation within a tissue, from millimetres to regions."""
    field = np.zeros(shape, np.float32)
    for scale, weight in _TEXTURE:
        field += np.float32(weight) * smooth_field(rng, shape, spacing, scale)
    field *= np.float32(strength / np.sqrt(sum(weight**2 for _, weight in _TEXTURE)))
    return field + np.float32(1)
