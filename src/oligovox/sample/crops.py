"""Crops: two windows of each patch that overlap, so that both show some of the same tissue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from oligovox.errors import SettingsError
from oligovox.sample.augment import EFFECTS, Augmentation, augment
from oligovox.sample.batch import Batch
from oligovox.sample.masks import drop_sequences


def crop_sides(sides: Sequence[int], share: float, multiple: int) -> tuple[int, ...]:
    """The multiple of `multiple` nearest to `share` of each side, but at least two of it, and at most the side.

    Args:
        sides: of the patch, in voxels; multiples of `multiple`.
        share: of a side, in (0, 1].
        multiple: the deepest stride of the network that is to read the crop.
    """
    return tuple(min(side, multiple * max(2, round(share * side / multiple))) for side in sides)


def overlapping_starts(
    samples: int, sides: Sequence[int], crop: Sequence[int], share: float, rng: torch.Generator
) -> tuple[Int[Tensor, "b 3"], Int[Tensor, "b 3"]]:
    """First voxels of two crops of each patch whose overlap is at least `share` of a crop's volume.

    Every allowed pair of places is equally likely. Drawn in two parts: how far apart, then where.

    Args:
        samples: number of patches, b.
        sides: of the patch, in voxels.
        crop: sides of the crop.
        share: of the crop's volume, in [0, 1]; 1 gives the same place twice.
        rng: on the device where the starts are wanted.

    Raises:
        SettingsError: a crop larger than its patch, or share outside [0, 1].
    """
    if not 0 <= share <= 1 or any(not 1 <= c <= s for c, s in zip(crop, sides, strict=True)):
        raise SettingsError(
            f"crops of {tuple(crop)} voxels with overlap {share} in a patch of {tuple(sides)}; "
            "expected sides from 1 to the patch's and overlap in [0, 1]"
        )
    places = torch.tensor([side - length + 1 for side, length in zip(sides, crop, strict=True)])
    shared = torch.ones(1, 1, 1, dtype=torch.int64)  # voxels that both crops see, by distance along x, y, z
    ways = torch.ones(1, 1, 1, dtype=torch.float64)  # ordered pairs of places at that distance
    for axis, (count, length) in enumerate(zip(places.tolist(), crop, strict=True)):
        distance = torch.arange(count).view([-1 if a == axis else 1 for a in range(3)])
        shared = shared * (length - distance).clamp_min(0)
        ways = ways * (count - distance) * torch.where(distance > 0, 2.0, 1.0)
    ladder = ways.where(shared >= share * prod(crop) - 1e-6, 0.0).flatten().cumsum(0)
    draw = torch.rand(samples, 7, generator=rng, device=rng.device, dtype=torch.float64).cpu()
    rung = torch.searchsorted(ladder, draw[:, 0] * ladder[-1], right=True).clamp_max(len(ladder) - 1)
    distance = torch.stack(torch.unravel_index(rung, ways.shape), 1)
    lower = (draw[:, 1:4] * (places - distance)).long()
    first_is_lower = draw[:, 4:] < 0.5
    first, second = lower + distance.where(~first_is_lower, 0), lower + distance.where(first_is_lower, 0)
    return first.to(rng.device), second.to(rng.device)


def cut(
    values: Shaped[Tensor, "b c x y z"], starts: Int[Tensor, "b 3"], crop: Sequence[int]
) -> Shaped[Tensor, "b c u v w"]:
    """A copy of the window of `crop` voxels that begins at its own place in each sample."""
    u, v, w = crop
    windows = [values[i, :, x : x + u, y : y + v, z : z + w] for i, (x, y, z) in enumerate(starts.tolist())]
    return torch.stack(windows)


def view_pair(
    batch: Batch, crop: Sequence[int], share: float, often: float, hide: float, rng: torch.Generator
) -> tuple[Batch, Batch]:
    """Two overlapping crops of each sample, without labels, each augmented and robbed of sequences on its own.

    Args:
        batch: is not changed.
        crop: sides of the crops.
        share: of a crop's volume that both show at least; see `overlapping_starts`.
        often: factor on the probability of each of nnU-Net's effects (see `Augmentation`); 0 leaves the crops as they are.
        hide: probability with which a sequence is hidden in a crop; see `drop_sequences`.
        rng: on the batch's device.
    """
    effects = Augmentation.only(**{name: min(1.0, often * getattr(Augmentation(), name)) for name in EFFECTS})

    def view(starts: Int[Tensor, "b 3"]) -> Batch:
        image, foreground = cut(batch.image, starts, crop), cut(batch.foreground, starts, crop)
        changed = augment(replace(batch, image=image, foreground=foreground, label=None), effects, rng)
        kept = drop_sequences(batch.present, batch.modalities, hide, rng)
        return replace(changed, image=changed.image.where(kept[:, :, None, None, None], 0.0), present=kept)

    first, second = overlapping_starts(len(batch), batch.image.shape[2:], crop, share, rng)
    return view(first), view(second)
