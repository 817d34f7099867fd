"""Smooth random fields: the one building block of deformations, bias fields, lesion borders and texture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Volume = NDArray[np.float32]
"""Array (x, y, z) in RAS order, float32."""

Spacing: TypeAlias = float | Sequence[float]
"""Voxel size in mm, one number or one for each axis."""

_CLIP = 2.5
"""Lattice values are cut at this many standard deviations, so that no field has an outlier."""


def smooth_field(rng: np.random.Generator, shape: Sequence[int], spacing: Spacing, scale: float) -> Volume:
    """A Gaussian random field, smooth over about `scale` mm: a cubic B-spline over random values on a lattice.

    Args:
        rng: the only source of chance.
        shape: voxels along (x, y, z).
        spacing: voxel size in mm, one number or one for each axis.
        scale: lattice spacing in mm; the field is uncorrelated beyond four of them.

    Returns:
        (x, y, z), mean 0 and variance 1 (a few per cent less for the clipping) at every voxel.
    """
    sizes = np.broadcast_to(np.asarray(spacing, dtype=np.float64), len(shape))
    bases = [_basis(count, float(size) / scale) for count, size in zip(shape, sizes, strict=True)]
    lattice = rng.standard_normal([basis.shape[1] for basis in bases], dtype=np.float32).clip(-_CLIP, _CLIP)
    for basis in bases:  # each turn contracts the first axis and appends the voxel axis at the end
        lattice = np.tensordot(lattice, basis, axes=(0, 1))
    return np.asarray(lattice)


def _basis(count: int, step: float) -> NDArray[np.float32]:
    """Cubic B-spline weights (voxel, knot) at positions 0, step, 2 step …; rows of unit length keep the variance 1."""
    position = np.arange(count) * step
    distance = np.abs(position[:, None] - (np.arange(int(position[-1]) + 4) - 1))
    near = 2 / 3 - distance**2 + distance**3 / 2
    weights = np.where(distance < 1, near, np.clip(2 - distance, 0, None) ** 3 / 6)
    return np.asarray(weights / np.linalg.norm(weights, axis=1, keepdims=True), dtype=np.float32)


def smoothstep(value: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """0 below `low`, 1 above `high`, a cubic with level ends between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), dtype=np.float32)
