"""Lesions as lists of voxels: what makes a large volume with little in it cheap.

A voxel is its flat index in a volume (x, y, z) in array order. Every function here expects a volume whose outermost voxels, as many
as it looks around, are empty: a neighbour is then a fixed step away, and no step leaves the volume or wraps around. A whole volume
is only ever written and read at such voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from oligovox.metrics.overlap import Mask

Shape = tuple[int, ...]
Voxels = NDArray[np.int64]
Numbers = NDArray[np.int32]

_STEPS = {
    number: np.array([step for step in product((-1, 0, 1), repeat=3) if 0 < np.abs(step).sum() <= most])
    for number, most in ((6, 1), (18, 2))
}
_ROWS = np.array([(0, 1, 0), (1, -1, 0), (1, 0, 0), (1, 1, 0)])  # rows along z that come later and are neighbours


@dataclass(frozen=True)
class Pieces:
    """Numbered lesions.

    Attributes:
        where: (f,) their voxels, ascending.
        number: (f,) the lesion of each voxel, from 1.
        voxels: (n,) size of each lesion.
    """

    where: Voxels
    number: Numbers
    voxels: NDArray[np.int64]

    def renumbered(self, numbers: NDArray[np.int64]) -> Pieces:
        """Lesion i is called numbers[i - 1]: 0 deletes it, equal numbers join."""
        number = np.concatenate([[0], numbers]).astype(np.int32)[self.number]
        return pieces(self.where[number > 0], number[number > 0], int(numbers.max(initial=0)))


def pieces(where: Voxels, number: Numbers, n: int) -> Pieces:
    """Lesions 1 to n from their voxels."""
    return Pieces(where, number, np.bincount(number, minlength=n + 1)[1:])


def strides(shape: Shape) -> NDArray[np.int64]:
    """Flat steps along x, y and z."""
    return np.array([shape[1] * shape[2], shape[2], 1])


def neighbours(shape: Shape, number: Literal[6, 18]) -> NDArray[np.int64]:
    """Flat steps to the neighbours: 6 with a common face, 18 with a common edge at least."""
    return np.asarray(_STEPS[number] @ strides(shape))


def components(where: Voxels, shape: Shape) -> Numbers:
    """Number of the 26-connected component of each voxel (ascending), from 1 in array order.

    Voxels in a row along z are one run; runs in neighbouring rows belong together where they are at most one voxel apart.
    """
    if not len(where):
        return np.zeros(0, dtype=np.int32)
    breaks = np.flatnonzero(np.diff(where) != 1) + 1
    first, last = where[np.concatenate([[0], breaks])], where[np.concatenate([breaks - 1, [-1]])]
    left, right = [], []
    for step in _ROWS @ strides(shape):
        begin = np.searchsorted(last, first + step - 1)
        count = np.searchsorted(first, last + step + 1, side="right") - begin
        run = np.repeat(np.arange(len(first)), count)
        left.append(run)
        right.append(np.arange(len(run)) - np.repeat(np.cumsum(count) - count, count) + begin[run])
    a, b = np.concatenate(left), np.concatenate(right)
    graph = sparse.csr_array((np.ones(len(a), dtype=np.int8), (a, b)), shape=(len(first), len(first)))
    of_run = csgraph.connected_components(graph, directed=False)[1]
    return np.repeat(of_run + 1, last - first + 1).astype(np.int32)


def dilated(where: Voxels, shape: Shape, times: int) -> Voxels:
    """Voxels reached from these in so many steps to the 18 neighbours, ascending."""
    reached = np.zeros(shape, dtype=np.bool_).ravel()
    reached[where] = True
    front = where
    for _ in range(times):
        ahead = [front[:0]]
        for step in neighbours(shape, 18):
            new = front + step
            new = new[~reached[new]]
            reached[new] = True
            ahead.append(new)
        front = np.concatenate(ahead)
    return np.flatnonzero(reached) if times else where


def spread(lesions: Pieces, shape: Shape) -> Numbers:
    """The whole volume, flat: the lesion of each voxel, 0 outside."""
    volume = np.zeros(shape, dtype=np.int32).ravel()
    volume[lesions.where] = lesions.number
    return volume


def touching(own: Pieces, other: Pieces, shape: Shape) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of lesions of two maps with voxels that are 18-neighbours."""
    width, volume = len(other.voxels) + 1, spread(other, shape)
    codes = [np.zeros(0, dtype=np.int64)]
    for step in neighbours(shape, 18):
        near = volume[own.where + step]
        met = near > 0
        codes.append(np.unique(own.number[met] * np.int64(width) + near[met]))
    pairs = np.unique(np.concatenate(codes))
    return pairs // width, pairs % width


def shell(lesions: Pieces, shape: Shape) -> Mask:
    """(f,) which voxels have one of their 6 neighbours outside."""
    inside = np.zeros(shape, dtype=np.bool_).ravel()
    inside[lesions.where] = True
    outer = np.zeros(len(lesions.where), dtype=np.bool_)
    for step in neighbours(shape, 6):
        outer |= ~inside[lesions.where + step]
    return outer
