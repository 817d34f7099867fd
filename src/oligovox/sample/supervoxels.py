"""Supervoxels: a volume cut into compact pieces whose borders follow what is seen.

Source: Achanta et al. 2012 (SLIC superpixels compared to state-of-the-art superpixel methods, doi:10.1109/TPAMI.2012.120).
Deviates: in three dimensions on several sequences; the grid of first centres has a random offset; a 3³ mean is taken first, centres are
    means of some of their voxels, and stray voxels are not joined to their neighbour afterwards.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool3d

from oligovox.errors import SettingsError

_ROUNDS = 5  # of k-means
_ENOUGH = 64  # voxels of a cell that its centre is found from


def supervoxels(
    image: Float[Tensor, "m x y z"],
    inside: Bool[Tensor, "x y z"],
    width: Sequence[float],
    compactness: float,
    rng: torch.Generator,
) -> Int[Tensor, "x y z"]:
    """Number of the supervoxel of each voxel; -1 outside. Some numbers may have no voxel.

    k-means on position and intensity. A voxel goes to the centre of its own cell of a grid or of one of the 26 cells around.

    Args:
        image: acquired sequences only, at least one.
        inside: voxels to be cut up.
        width: of a cell in voxels, along each axis.
        compactness: difference of intensity (root mean square over the sequences) that weighs as much as one width.
        rng: on the image's device; draws the grid's offset.

    Raises:
        SettingsError: a width below 1 voxel, or compactness not above 0.
    """
    if min(width) < 1 or compactness <= 0:
        raise SettingsError(
            f"supervoxels of {tuple(width)} voxels, compactness {compactness}; expected at least 1 voxel and more than 0"
        )
    shift = torch.rand(3, generator=rng, device=rng.device) - 0.5
    grid = [  # less than half a cell at a border belongs to the cell beside it
        max(1, round(side / step + start))
        for side, step, start in zip(inside.shape, width, shift.tolist(), strict=True)
    ]
    place = inside.nonzero() / torch.tensor(tuple(width), device=image.device) + shift
    cell = place.floor().long().clamp_min(0).minimum(torch.tensor(grid, device=place.device) - 1)
    seen = _mean_inside(image, inside)[:, inside].T / (compactness * math.sqrt(len(image)))
    features = torch.cat([place, seen], 1)
    some = slice(None, None, max(1, int(math.prod(width) / _ENOUGH)))
    number = _own(cell[some], grid)
    centre = _means(features[some], number, math.prod(grid))
    for _ in range(_ROUNDS):
        number = _nearest(features[some], cell[some], centre, grid)
        centre = _means(features[some], number, math.prod(grid))
    return torch.full_like(inside, -1, dtype=torch.int64).masked_scatter(inside, _nearest(features, cell, centre, grid))


def _own(cell: Int[Tensor, "n 3"], grid: Sequence[int]) -> Int[Tensor, " n"]:
    """Number of a cell of the grid; of one at the border for a cell beyond it."""
    x, y, z = (place.clamp(0, side - 1) for place, side in zip(cell.T, grid, strict=True))
    number: Tensor = (x * grid[1] + y) * grid[2] + z
    return number


def _means(features: Float[Tensor, "n f"], number: Int[Tensor, " n"], cells: int) -> Float[Tensor, "cells f"]:
    """Infinite, and so nobody's nearest, where a cell has no voxel."""
    count = torch.bincount(number, minlength=cells).to(features.dtype)[:, None]
    total = features.new_zeros(cells, features.shape[1]).index_add_(0, number, features)
    mean: Tensor = total / count.clamp_min(1)
    return mean.masked_fill_(count == 0, torch.inf)


def _nearest(
    features: Float[Tensor, "n f"], cell: Int[Tensor, "n 3"], centre: Float[Tensor, "cells f"], grid: Sequence[int]
) -> Int[Tensor, " n"]:
    number = _own(cell, grid)
    least = features.new_full(number.shape, torch.inf)
    for step in itertools.product((-1, 0, 1), repeat=3):
        candidate = _own(cell + torch.tensor(step, device=cell.device), grid)
        distance = (features - centre[candidate]).square_().sum(1)
        number = torch.where(distance < least, candidate, number)
        least = torch.minimum(distance, least)
    return number


def _mean_inside(image: Float[Tensor, "m x y z"], inside: Bool[Tensor, "x y z"]) -> Float[Tensor, "m x y z"]:
    """Mean of the voxels inside among the 27 around each: noise would fray the borders."""
    share = avg_pool3d(inside[None].to(image.dtype), 3, 1, 1)
    mean: Tensor = avg_pool3d(image * inside, 3, 1, 1) / share.clamp_min(1 / 27)
    return mean
