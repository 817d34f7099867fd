"""What makes one brain differ from the average in shape: an affine map and the flow of a smooth random velocity field.

Source: Arsigny et al. 2006, A log-Euclidean framework for statistics on diffeomorphisms, MICCAI: a stationary velocity field is
exponentiated by scaling and squaring (paper known from memory and summaries, not re-read). The flow of a smooth field can be inverted and
folds nowhere. It is computed on a grid of 5 mm and read between its points with cubic B-splines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.simulate.fields import Volume, smooth_field

COARSE = 5.0
"""Spacing of the grid on which flows are computed, mm."""

_SCALES = ((60.0, 3.0), (28.0, 1.8), (14.0, 0.8))  # velocity: lattice mm, standard deviation mm; chosen
_SHRINK = 1.13  # mean linear scale, template / person: the template is larger than people are
_STRETCH, _SHEAR = 0.04, 0.03  # standard deviations of the affine part; chosen
_HALVINGS = 5  # 2⁵ small steps
_EDGE = 2  # coarse points around the grid


@dataclass(frozen=True)
class Deformation:
    """A one-to-one map between a person and the template, both on the template's grid.

    Attributes:
        where: (3, x, y, z) template voxel coordinates of each voxel of the person.
        matrix: (3, 3) its affine part, about `middle`.
        middle: voxel coordinates.
        back: (3, x', y', z') the inverse flow on the coarse grid, displacements in mm.
        spacing: voxel size, mm.
    """

    where: Volume
    matrix: NDArray[np.float64]
    middle: NDArray[np.float64]
    back: Volume
    spacing: float

    @property
    def scale(self) -> float:
        """Mean length in the person of 1 mm of the template, mm."""
        return float(1 / np.cbrt(np.linalg.det(self.matrix)))

    def carry(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Template voxel coordinates (n, 3) → the person's voxel coordinates (n, 3), to about half a millimetre."""
        flat = (np.asarray(points, dtype=float) - self.middle) @ np.linalg.inv(self.matrix).T + self.middle
        at = flat.T * self.spacing / COARSE + _EDGE
        moved = [ndimage.map_coordinates(u, at, order=1, mode="nearest") for u in self.back]
        return np.asarray(flat + np.stack(moved, axis=1) / self.spacing)


def deformation(
    rng: np.random.Generator, shape: Sequence[int], spacing: float, push: Volume, widening: float = 0.0
) -> Deformation:
    """Draw a shape: affine scale and shear about the middle after the flow of a random velocity field.

    Args:
        rng: the only source of chance.
        shape: voxels of the grid along (x, y, z).
        spacing: voxel size, mm.
        push: (3, x', y', z') template velocity that widens the ventricles, on the coarse grid with the same first voxel centre.
        widening: how much of `push` is added to the velocity, mm; below 0 it narrows the ventricles.
    """
    matrix = _SHRINK * np.eye(3) + np.diag(rng.normal(0, _STRETCH, 3).clip(-2 * _STRETCH, 2 * _STRETCH))
    matrix += np.triu(rng.normal(0, _SHEAR, (3, 3)).clip(-2 * _SHEAR, 2 * _SHEAR), 1)
    middle = (np.array(shape) - 1) / 2
    coarse = tuple(int(np.ceil((n - 1) * spacing / COARSE)) + 1 + 2 * _EDGE for n in shape)
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in coarse), indexing="ij"))
    centre = (middle * spacing / COARSE + _EDGE)[:, None, None, None]
    there = np.tensordot(matrix, grid - centre, 1) + centre - _EDGE
    velocity = np.stack([np.float32(widening) * ndimage.map_coordinates(p, there, order=1) for p in push])
    for scale, amplitude in _SCALES:
        for axis in range(3):
            velocity[axis] += np.float32(amplitude) * smooth_field(rng, coarse, COARSE, scale)
    moved = _upsample(exponential(velocity, COARSE), shape, spacing)
    moved /= spacing
    for axis, n in enumerate(shape):
        moved[axis] += (np.arange(n, dtype=np.float32) - middle[axis]).reshape(
            [-1 if a == axis else 1 for a in range(3)]
        )
    where = np.tensordot(matrix.astype(np.float32), moved, 1) + middle[:, None, None, None].astype(np.float32)
    return Deformation(where.astype(np.float32), matrix, middle, exponential(-velocity, COARSE), spacing)


def exponential(velocity: Volume, spacing: float) -> Volume:
    """The flow of a stationary velocity field after unit time: displacements (3, x, y, z), mm.

    Args:
        velocity: (3, x, y, z) mm per unit time.
        spacing: mm.
    """
    moved = (velocity / np.float32(2**_HALVINGS)).astype(np.float32)
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in velocity.shape[1:]), indexing="ij"))
    for _ in range(_HALVINGS):
        at = grid + moved / np.float32(spacing)
        moved = moved + np.stack([ndimage.map_coordinates(u, at, order=1, mode="nearest") for u in moved])
    return np.asarray(moved)


def jacobian(where: Volume) -> Volume:
    """Determinant of the derivative of a coordinate map (3, x, y, z) by central differences: (x, y, z)."""
    d = [np.gradient(component) for component in where]
    return np.asarray(
        d[0][0] * (d[1][1] * d[2][2] - d[1][2] * d[2][1])
        - d[0][1] * (d[1][0] * d[2][2] - d[1][2] * d[2][0])
        + d[0][2] * (d[1][0] * d[2][1] - d[1][1] * d[2][0])
    )


def _upsample(field: Volume, shape: Sequence[int], spacing: float) -> Volume:
    """From the coarse grid to the fine one: cubic B-splines with the coarse values as weights, (3, x, y, z)."""
    for count, knots in zip(shape, field.shape[1:], strict=True):  # each turn contracts axis 1 and appends the fine one
        distance = np.abs(np.arange(count)[:, None] * spacing / COARSE + _EDGE - np.arange(knots))
        near = 2 / 3 - distance**2 + distance**3 / 2
        weights = np.where(distance < 1, near, np.clip(2 - distance, 0, None) ** 3 / 6)
        field = np.tensordot(field, weights.astype(np.float32), axes=(1, 1))
    return field
