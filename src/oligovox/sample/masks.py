"""Masks: which blocks of which sequence a pretext hides."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool
from torch import Tensor

from oligovox.errors import SettingsError


def random_blocks(
    shape: tuple[int, int, int, int, int],
    block: int,
    ratio: float,
    rng: torch.Generator,
    shared: bool = False,
) -> Bool[Tensor, "b m x y z"]:
    """Hide a random share of the blocks of a grid; True = hidden.

    The grid has cubes of `block` voxels and a random offset for each sample, so that its lines fall anywhere; blocks cut
    by the border count as blocks. In each sample and channel exactly round(ratio · blocks) are hidden.

    Args:
        shape: (b, m, x, y, z).
        block: side in voxels.
        ratio: share of the blocks to hide, in [0, 1].
        rng: on the device where the mask is wanted.
        shared: hide the same blocks in all channels of a sample.

    Raises:
        SettingsError: block below 1, or ratio outside [0, 1].
    """
    if block < 1 or not 0 <= ratio <= 1:
        raise SettingsError(
            f"block masking: block {block}, ratio {ratio}; expected block ≥ 1 voxel and ratio in [0, 1]"
        )
    samples, channels, *sides = shape
    offsets = torch.randint(block, (samples, 3), generator=rng, device=rng.device).tolist()
    hidden = torch.empty(shape, dtype=torch.bool, device=rng.device)
    for sample, offset in enumerate(offsets):
        grid = [(start + side - 1) // block + 1 for start, side in zip(offset, sides, strict=True)]
        number = round(ratio * math.prod(grid))
        scores = torch.rand((1 if shared else channels, math.prod(grid)), generator=rng, device=rng.device)
        blocks = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.argsort(1)[:, :number], True)
        voxels = blocks.reshape(-1, *grid)
        for axis, (start, side) in enumerate(zip(offset, sides, strict=True), start=1):
            voxels = voxels.repeat_interleave(block, axis).narrow(axis, start, side)
        hidden[sample] = voxels
    return hidden
