"""Disturb: noise, blur, brightness, contrast and gamma on crops scaled to [0, 1], all samples and channels at once.

Source: the public release of Vox-MMSD (HiLab, 2025): its order, its ranges, and the probabilities it has in effect.
Deviates: the blur's weights sum to 1 at the border.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from oligovox.sample.batch import Batch


def disturb(image: Float[Tensor, "v m x y z"], rng: torch.Generator) -> Float[Tensor, "v m x y z"]:
    """A disturbed copy, no longer within [0, 1].

    Args:
        image: about 0 to 1; zeros are disturbed like anything else.
        rng: on the image's device.
    """
    v, m = image.shape[:2]

    def chance(of_a_sample: float, of_a_channel: float) -> Bool[Tensor, "v m 1 1 1"]:
        draw = torch.rand(2, v, m, 1, 1, 1, generator=rng, device=rng.device)
        return (draw[0, :, :1] < of_a_sample) & (draw[1] < of_a_channel)

    def between(low: float, high: float, channels: int = m) -> Float[Tensor, "v k 1 1 1"]:
        return low + (high - low) * torch.rand(v, channels, 1, 1, 1, generator=rng, device=rng.device)

    image = image + 0.05 * torch.randn(image.shape, generator=rng, device=rng.device)
    blurred, sd = chance(0.2, 0.5).flatten(1), between(0.1, 2.0).flatten(1)
    image[blurred] = _blur(image[blurred], sd[blurred]).to(image.dtype)
    image = image * between(0.75, 1.25, channels=1).where(chance(0.15, 0.5), 1.0)
    image = image + between(0.0, 0.4).where(chance(0.5, 0.8), 0.0)
    low, high = _range(image)
    mean = image.mean((2, 3, 4), keepdim=True)
    image = (mean + between(0.75, 1.25).where(chance(0.5, 1.0), 1.0) * (image - mean)).clamp(low, high)
    low, high = _range(image)
    width = (high - low).clamp(min=1e-6)
    return low + width * ((image - low) / width) ** between(0.7, 1.5).where(chance(1.0, 0.8), 1.0)


def _range(image: Float[Tensor, "v m x y z"]) -> tuple[Tensor, Tensor]:
    return image.amin((2, 3, 4), keepdim=True), image.amax((2, 3, 4), keepdim=True)


def _blur(image: Float[Tensor, "k x y z"], sd: Float[Tensor, " k"]) -> Float[Tensor, "k x y z"]:
    """Gaussian, sd in voxels."""
    for axis in (1, 2, 3):
        ticks = torch.arange(image.shape[axis], device=image.device)
        kernel = torch.softmax(-((ticks[:, None] - ticks) ** 2) / (2 * sd[:, None, None] ** 2), dim=2)
        moved = image.movedim(axis, 1)
        image = (kernel @ moved.flatten(2)).view_as(moved).movedim(1, axis)
    return image


def small_noise(batch: Batch, sd: float, rng: torch.Generator) -> Float[Tensor, "b m x y z"]:
    """The image with normal noise, cut at ± 2 sd, on the foreground of acquired sequences.

    Args:
        batch: not changed.
        sd: in standard deviations of the foreground; 0 draws nothing.
        rng: on the batch's device.
    """
    if sd == 0:
        return batch.image
    noise = torch.randn(batch.image.shape, generator=rng, device=rng.device).mul_(sd).clamp_(-2 * sd, 2 * sd)
    return batch.image + noise * (batch.foreground & batch.present[:, :, None, None, None])
