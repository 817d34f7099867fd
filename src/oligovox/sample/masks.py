"""Masks: which blocks of which sequence a pretext hides, which units a dropout."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from oligovox.cohort.modalities import places_of, sequences_of
from oligovox.errors import GeometryError, SettingsError


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


def check_hidden(hidden: int, blocks: int) -> None:
    """Refuse blocks of which none is hidden or none is left, so that nothing could be learned.

    Args:
        hidden: how many are.
        blocks: how many there are.

    Raises:
        GeometryError: there is one block, or none is hidden.
    """
    if blocks < 2 or hidden < 1:
        raise GeometryError(
            f"{hidden} of {blocks} {'block' if blocks == 1 else 'blocks'} of a patch would be hidden, expected at least 1 of 2; "
            "use smaller blocks or larger patches, or hide a larger share"
        )


def check_random_blocks(sides: Sequence[int], block: int, ratio: float) -> None:
    """Refuse a patch that `random_blocks` would hide nothing of, wherever its grid lies, or that is smaller than a block.

    Raises:
        GeometryError: it is.
    """
    most = math.prod((block + side - 2) // block + 1 for side in sides) if max(sides) >= block else 1
    check_hidden(round(ratio * most), most)


def by_sequence(present: Bool[Tensor, "b m"], modalities: Sequence[str]) -> Bool[Tensor, "b s"]:
    """Whether some acquisition of each sequence is there; `present` itself where each has one channel."""
    places = torch.tensor(places_of(modalities), device=present.device)
    runs = torch.zeros(len(present), len(sequences_of(modalities)), dtype=torch.int32, device=present.device)
    return runs.index_add(1, places, present.int()) > 0


def in_channels(
    kept: Bool[Tensor, "b s"], present: Bool[Tensor, "b m"], modalities: Sequence[str]
) -> Bool[Tensor, "b m"]:
    """What is said of sequences, said of those of their acquisitions that are there."""
    return present & kept[:, places_of(modalities)]


def drop_sequences(
    present: Bool[Tensor, "b m"], modalities: Sequence[str], probability: float, rng: torch.Generator
) -> Bool[Tensor, "b m"]:
    """Channels that stay: each acquired sequence is dropped with this probability, all its acquisitions, but never all of a sample's.

    Args:
        present: acquired or not.
        modalities: names of the channels.
        probability: in [0, 1]; at 1 one sequence stays.
        rng: on the device of `present`.
    """
    there = by_sequence(present, modalities)
    draw = torch.rand(there.shape, generator=rng, device=rng.device).where(there, -1.0)
    return in_channels((draw >= probability) | (draw == draw.amax(1, keepdim=True)), present, modalities)


def some_of(
    present: Bool[Tensor, "b m"], score: Float[Tensor, "b m"], share: Float[Tensor, " b"]
) -> Bool[Tensor, "b m"]:
    """Of the acquired sequences those with the largest scores: one, and of the others this share, rounded down.

    Even scores and shares below 1 give every number from one to all but one, and every choice of so many, the same chance.

    Args:
        present: acquired or not.
        score: of each sequence.
        share: in [0, 1]; 1 keeps all.
    """
    place = score.where(present, -math.inf).argsort(1, descending=True).argsort(1)
    most = 1 + (share * (present.sum(1) - 1)).floor()
    return present & (place < most[:, None])


def kept_units(shape: tuple[int, int], dropout: float, rng: torch.Generator) -> Float[Tensor, "b d"]:
    """Dropout as a factor that is part of the views: 0 for the share that is left out, 1 / (1 - dropout) for the others.

    Args:
        shape: (b, d).
        dropout: probability that a unit of a sample is left out, in [0, 1).
        rng: on the device where the factor is wanted.
    """
    drawn = torch.rand(shape, generator=rng, device=rng.device)
    return (drawn >= dropout).float() / (1 - dropout)


def block_voxels(blocks: Bool[Tensor, "b m i j k"], block: int, sides: Sequence[int]) -> Bool[Tensor, "b m x y z"]:
    """What is said of the blocks of a grid, said of their voxels; the grid starts at the patch's first corner.

    Args:
        blocks: one flag a block; blocks cut by the far border count as blocks.
        block: side in voxels.
        sides: of the patch, at most `block` times those of the grid.
    """
    voxels = blocks
    for axis, side in enumerate(sides, start=2):
        voxels = voxels.repeat_interleave(block, axis).narrow(axis, 0, side)
    return voxels


def random_box(
    shape: tuple[int, int, int, int],
    smallest: Int[Tensor, "#b 3"],
    largest: Int[Tensor, "#b 3"],
    rng: torch.Generator,
) -> Bool[Tensor, "b x y z"]:
    """One box in each sample; True inside. Sides, then place, are uniform axis by axis; the box lies inside the volume.

    Args:
        shape: (b, x, y, z).
        smallest: sides in voxels, at least 1; rows for each sample, or one row for all.
        largest: likewise, at least `smallest` and at most the sides of the volume.
        rng: on the device where the boxes are wanted.
    """
    samples, *sides = shape
    draw = torch.rand(samples, 2, 3, generator=rng, device=rng.device)
    side = smallest + (draw[:, 0] * (largest - smallest + 1)).long()
    start = (draw[:, 1] * (torch.tensor(sides, device=rng.device) - side + 1)).long()
    box = torch.ones(shape, dtype=torch.bool, device=rng.device)
    for axis, length in enumerate(sides):
        place = torch.arange(length, device=rng.device)
        inside = (place >= start[:, axis, None]) & (place < (start + side)[:, axis, None])
        box &= inside.view(samples, *(length if other == axis else 1 for other in range(3)))
    return box


def thrown_blocks(
    shape: tuple[int, int, int, int, int],
    blocks: int,
    ratio: float,
    rng: torch.Generator,
    *,
    shared: bool = False,
    even: bool = True,
) -> Bool[Tensor, "b m x y z"]:
    """Hide each block of a grid of `blocks`³ by a throw of its own, so that their number varies; True = hidden.

    Args:
        shape: (b, m, x, y, z).
        blocks: along each side.
        ratio: probability that a block is hidden, in [0, 1].
        rng: on the device where the mask is wanted.
        shared: the same throws for all channels of a sample.
        even: sides of equal length, to a voxel; otherwise those at the border have about half the length of the others,
            as in an enlargement of the grid by nearest neighbour whose first and last points lie on the border.
    """
    samples, channels, *sides = shape
    grid = torch.rand((samples, 1 if shared else channels, *[blocks] * 3), generator=rng, device=rng.device)
    hidden = grid < ratio
    for axis, side in enumerate(sides, start=2):
        voxel = torch.arange(side, device=rng.device)
        nearest = (voxel * (blocks - 1) / max(1, side - 1) + 0.5).long()
        hidden = hidden.index_select(axis, voxel * blocks // side if even else nearest)
    return hidden.expand(shape)


def spread(flags: Bool[Tensor, "b m"]) -> Bool[Tensor, "b m 1 1 1"]:
    """A flag for each sequence, in the shape that holds for each voxel."""
    return flags[:, :, None, None, None]
