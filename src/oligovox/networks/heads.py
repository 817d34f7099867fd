"""Heads: what turns features into logits, intensities or an embedding."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class SegmentationHead(nn.Conv3d):
    """1³ convolution: features (b, channels, x, y, z) → logits (b, classes, x, y, z), background first."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes, kernel_size=1)


class ReconstructionHead(nn.Conv3d):
    """1³ convolution: features (b, channels, x, y, z) → z-scored intensities (b, modalities, x, y, z)."""

    def __init__(self, channels: int, modalities: int) -> None:
        super().__init__(channels, modalities, kernel_size=1)


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
