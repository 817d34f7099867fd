"""Heads: what turns features into logits, intensities or an embedding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

RARE = 0.01
"""Probability of a lesion at a voxel, before anything is known of it."""

_NARROW = 1e-4  # smallest variance that is divided by: that of the first two samples may be nothing


class SegmentationHead(nn.Conv3d):
    """1³ convolution: features (b, channels, x, y, z) → logits (b, classes, x, y, z), background first."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes, kernel_size=1)

    def expect(self, prior: float, *, background: bool) -> SegmentationHead:
        """Set the bias so that each foreground output has this probability where the features say nothing.

        From a half, the first hundreds of steps only teach the network to be silent; of small lesions the gradient then is next to nothing.

        Source: Lin et al. 2017, "Focal loss", arXiv 1708.02002, section 4.1.

        Args:
            prior: in (0, 1); where outputs exclude each other at most that of even chances.
            background: the first output is background (softmax); else every output is foreground (sigmoid).

        Returns:
            The head.
        """
        assert self.bias is not None, "a convolution has a bias unless it is told otherwise"
        share = min(prior, 1.0 / self.out_channels) if background else prior
        others = (self.out_channels - 1) * share if background else share
        nn.init.constant_(self.bias, math.log(share / (1.0 - others)))
        if background:
            nn.init.zeros_(self.bias[:1])
        return self


class ReconstructionHead(nn.Conv3d):
    """1³ convolution: features (b, channels, x, y, z) → z-scored intensities (b, modalities, x, y, z)."""

    def __init__(self, channels: int, modalities: int) -> None:
        super().__init__(channels, modalities, kernel_size=1)


class Standardised(nn.Module):
    """(value − mean) / spread of each channel, over the samples of the steps before.

    For what is pooled from a map that went through an instance norm: its mean over space is nearly the same number whatever was shown
    (directions of two patches have a cosine of 0.99), and a head on it learns slowly or not at all. A batch norm would know the samples of one batch only,
    which are two or four here. Before the first step nothing is known, and values stay as they are.

    Args:
        channels: of the pooled feature.
        ceiling: largest share of mean and spread so far that a step keeps.
    """

    moments: Tensor
    steps: Tensor

    def __init__(self, channels: int, ceiling: float = 0.99) -> None:
        super().__init__()
        self.ceiling = ceiling
        self.register_buffer("moments", torch.stack([torch.zeros(channels), torch.ones(channels)]))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, pooled: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        """In float32. Changes nothing on self."""
        mean, square = self.moments
        standardised: Tensor = (pooled.float() - mean) / (square - mean.square()).clamp(min=_NARROW).sqrt()
        return standardised

    @staticmethod
    def seen(pooled: Float[Tensor, "b c"]) -> Float[Tensor, "2 c"]:
        """Mean and mean square of a batch: to be carried to `follow`, once after each step."""
        values = pooled.detach().float()
        return torch.stack([values.mean(0), values.square().mean(0)])

    @torch.no_grad()
    def follow(self, seen: Float[Tensor, "2 c"]) -> None:
        """Count a step's samples in: the plain mean of the first steps, then an exponential one."""
        self.moments.lerp_(seen, (1.0 / (self.steps + 1.0)).clamp(min=1.0 - self.ceiling))
        self.steps += 1


class ProjectionHead(nn.Module):
    """Mean over space, then linear, ReLU, linear: one embedding a sample.

    Source: Chen et al. 2020, "SimCLR", arXiv 2002.05709.

    Args:
        channels: of the features.
        size: of the embedding.
        hidden: units between the two linear layers; as many as `channels` where None.
    """

    def __init__(self, channels: int, size: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or channels
        self.layers = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, size))

    def forward(self, feature: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b d"]:
        """(b, channels, x, y, z) → (b, size), not normalised."""
        embedding: Tensor = self.layers(feature.mean(dim=(2, 3, 4)))
        return embedding


class ClassificationHead(nn.Module):
    """Mean over space, or over the cells of a coarse grid, then linear layers with ReLU: an embedding; from it, one logit a sample.

    Attributes:
        standard: `Standardised`, whose `follow` is called after each step, or nothing.

    Args:
        channels: of the feature.
        hidden: units of the linear layers before the last; the last of them is the size of the embedding.
        grid: cells a side; 1 is the mean over all of space.
        standardised: what is pooled is standardised first.
    """

    def __init__(self, channels: int, hidden: Sequence[int], grid: int = 1, *, standardised: bool = False) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool3d(grid)
        self.standard = Standardised(channels * grid**3) if standardised else nn.Identity()
        self.embed = nn.Sequential()
        for before, after in pairwise((channels * grid**3, *hidden)):
            self.embed.extend([nn.Linear(before, after), nn.ReLU(inplace=True)])
        self.score = nn.Linear(hidden[-1], 1)

    def pooled(self, feature: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b p"]:
        """(b, channels, x, y, z) → (b, channels · grid³)."""
        pooled: Tensor = self.pool(feature).flatten(1)
        return pooled

    def embedding(self, pooled: Float[Tensor, "b p"]) -> Float[Tensor, "b d"]:
        """(b, channels · grid³) → (b, hidden[-1]), not normalised."""
        embedding: Tensor = self.embed(self.standard(pooled))
        return embedding

    def forward(self, feature: Float[Tensor, "b c x y z"]) -> Float[Tensor, " b"]:
        """(b, channels, x, y, z) → (b,)."""
        logit: Tensor = self.score(self.embedding(self.pooled(feature)))[:, 0]
        return logit
