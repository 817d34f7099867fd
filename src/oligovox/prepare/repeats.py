"""Several runs of one sequence in one exam: where each lies over the first, whether it shows the same, and the average of those that do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from oligovox.prepare import geometry
from oligovox.prepare.geometry import Order, Volume, read_volume, resample_to
from oligovox.prepare.registration import Matrix, Registration, moved, register

_GRID_MM = 3.0  # runs are compared in voxels of this size: most of the noise is gone, the anatomy is not
_SIGNED = 0.2  # of the brightest: noise around a head is not that dark
_FEW = 500  # voxels of the head in both, below which nothing is compared
_ALIKE = 0.95
"""Tried by hand on one real exam: runs with a signal of 5 times their noise have 0.97, one that moved by 3 mm halfway 0.87, other sequences 0."""


@dataclass(frozen=True, eq=False)
class Run:
    """A further run of a sequence.

    Attributes:
        path: its file.
        found: where it lies over the first run; None: the headers were believed.
        ratio: what its values are multiplied by to be as bright as those of the first run.
        correlation: with the first run, over the head.
    """

    path: Path
    found: Registration | None
    ratio: float
    correlation: float

    @property
    def matrix(self) -> Matrix:
        """4×4, its RAS mm → those of the first run."""
        return self.found.matrix if self.found else np.eye(4)

    @property
    def used(self) -> bool:
        """Whether it shows the same as the first run; another sequence, or a head that moved during the scan, does not."""
        return self.correlation >= _ALIKE


def compared(first: Volume, paths: Mapping[str, Path], *, align: bool) -> dict[str, Run]:
    """Lay every run over the first and compare it.

    Args:
        first: the first run.
        paths: name → file of the others.
        align: register them; else their headers are believed.

    Raises:
        ImageError: one cannot be used.
        SettingsError: SimpleITK is needed and not installed.
    """
    runs = {}
    for name, path in paths.items():
        volume = read_volume(path)
        found = register(volume, first, near=True) if align else None
        over = moved(volume, found.matrix) if found else volume
        runs[name] = Run(path, found, *_likeness(first, over))
    return runs


def _likeness(first: Volume, other: Volume) -> tuple[float, float]:
    """(ratio of the medians, correlation) over the head as both see it."""
    turned = geometry.to_ras(first)
    x, y, z = (max(_GRID_MM, step) for step in geometry.spacing_of(turned.affine))
    affine, shape = geometry.ras_grid(turned.affine, turned.shape, (x, y, z))
    one, two = (resample_to(volume, affine, shape, 1, smooth=True).array for volume in (first, other))
    dark, light = np.percentile(one, (1, 99))
    signed = -dark > _SIGNED * light  # a map of susceptibility, whose values are ppm
    bright = one != 0 if signed else one > np.median(one[one > one.mean()]) / 2
    # without its surface, which is much the same in every image
    head = ndimage.binary_erosion(ndimage.binary_fill_holes(bright), iterations=2, border_value=1)
    head &= geometry.inside(other, affine, shape)
    here, there = one[head], two[head]
    if here.size < _FEW or not here.std() or not there.std():
        return 1.0, 0.0
    low, high = float(np.median(there)), float(np.median(here))
    ratio = 1.0 if signed or low <= 0 else high / low
    return ratio, float(np.corrcoef(here, there)[0, 1])


def average(volume: Volume, first: Volume, others: Iterable[tuple[Volume, float]], order: Order) -> Volume:
    """The mean of all runs, each voxel over those that see it; 0 where the first does not.

    Args:
        volume: the first run on the wanted grid.
        first: the same on its own grid.
        others: each further run on its own grid, lying over the first, and its ratio.
        order: of the splines.
    """
    affine, shape = volume.affine, volume.shape
    total, count = volume.array.astype(np.float32), np.ones(shape, np.float32)
    for other, ratio in others:
        total += np.float32(ratio) * resample_to(other, affine, shape, order, smooth=True).array
        count += geometry.inside(other, affine, shape)
    return Volume(np.where(geometry.inside(first, affine, shape), total / count, 0).astype(np.float32), affine)
