"""One image as the checks of voxels look at it: turned to RAS, with a small copy, its background value and its foreground."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.prepare.geometry import Spacing, Volume, spacing_of, to_ras

COARSE_MM = 2.0
"""Voxel size that the small copy comes near to; axes with larger voxels stay as they are."""

_SHARED = 0.3  # a value that so many of the outermost voxels share is the background's
_SAMPLE = 200_000  # voxels a histogram is made of, at most


@dataclass(frozen=True, eq=False)
class Seen:
    """One image.

    Attributes:
        sequence: canonical name.
        path: its file.
        volume: axes (x, y, z) = RAS.
    """

    sequence: str
    path: Path
    volume: Volume

    @classmethod
    def of(cls, sequence: str, path: Path, volume: Volume) -> Seen:
        """`volume` in any axis order, turned to RAS."""
        return cls(sequence, path, to_ras(volume))

    @property
    def array(self) -> NDArray[np.float32]:
        """Values (x, y, z)."""
        return self.volume.array

    @cached_property
    def spacing(self) -> Spacing:
        """Voxel size, mm."""
        return spacing_of(self.volume.affine)

    @cached_property
    def background(self) -> float | None:
        """The one value of the voxels around the subject (0, or what a normalisation made of it); None where there is no such value."""
        array = self.array
        faces = np.concatenate([array.take(end, axis).ravel() for axis in range(3) for end in (0, -1)])
        values, counts = np.unique(faces, return_counts=True)
        most = int(counts.argmax())
        return float(values[most]) if counts[most] >= _SHARED * faces.size else None

    @cached_property
    def coarse(self) -> Volume:
        """Means of blocks of about `COARSE_MM`, float32."""
        x, y, z = (max(1, round(COARSE_MM / step)) for step in self.spacing)
        blocks = (x, y, z)
        return Volume(_block_means(self.array, blocks), _blocked(self.volume.affine, blocks))

    @cached_property
    def coarse_foreground(self) -> NDArray[np.bool_]:
        """(x, y, z) of `coarse`: the largest piece above Otsu's threshold (above the background where all else is subject), holes filled."""
        array = self.coarse.array
        level = self.level
        mask = ndimage.binary_opening(array > level)
        pieces, count = ndimage.label(mask)
        if not count:
            return array > level
        largest = pieces == 1 + int(np.bincount(pieces.ravel())[1:].argmax())
        return np.asarray(ndimage.binary_fill_holes(ndimage.binary_closing(largest, iterations=2) | largest))

    @cached_property
    def level(self) -> float:
        """The value above which a voxel is subject rather than air: half of Otsu's threshold over the darkest value that is common."""
        values = self.array.ravel()[:: max(1, self.array.size // _SAMPLE)]
        low = self.background if self.background is not None else float(np.percentile(values, 2))
        high = float(np.percentile(values, 99.5))
        return low + 0.5 * (otsu(values.clip(low, high)) - low)


def otsu(values: NDArray[Any], bins: int = 128) -> float:
    """The threshold that parts the values best in two classes (Otsu 1979); the value itself where all are equal."""
    low, high = float(values.min()), float(values.max())
    if high - low <= bins * np.spacing(max(abs(low), abs(high))):  # too close to each other to be told apart
        return low
    counts, edges = np.histogram(values.astype(np.float64), bins)
    middle = (edges[1:] + edges[:-1]) / 2
    below = counts.cumsum().astype(np.float64)
    mass = (counts * middle).cumsum()
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    return float(middle[int(np.nan_to_num(between).argmax())])


def _block_means(array: NDArray[Any], blocks: tuple[int, int, int]) -> NDArray[np.float32]:
    if blocks == (1, 1, 1):
        return array.astype(np.float32, copy=False)
    shape = [size // block for size, block in zip(array.shape, blocks, strict=True)]
    cut = array[tuple(slice(0, n * block) for n, block in zip(shape, blocks, strict=True))]
    split = cut.reshape(shape[0], blocks[0], shape[1], blocks[1], shape[2], blocks[2])
    return np.asarray(split.mean(axis=(1, 3, 5), dtype=np.float32))


def _blocked(affine: NDArray[np.float64], blocks: tuple[int, int, int]) -> NDArray[np.float64]:
    change = np.diag([*map(float, blocks), 1.0])
    change[:3, 3] = [(block - 1) / 2 for block in blocks]
    return np.asarray(affine @ change)
