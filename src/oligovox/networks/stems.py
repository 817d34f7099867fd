"""Stems: one small convolution for each sequence, and the mean of what those that are there say.

Source: Havaei et al. 2016, "HeMIS: Hetero-Modal Image Segmentation", arXiv 1607.05194: layers of each modality apart, then moments over
  those that are there.
Deviates: the mean alone, without the variance, after one layer; an offset of each sequence, so that an absent one is told from a dark one;
  several acquisitions of one sequence share its stem.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from oligovox.cohort.modalities import places_of, sequences_of
from oligovox.networks.blocks import SLOPE

Fusion = Literal["early", "stems"]
"""How sequences meet: as channels beside availability channels in one convolution, or each through a stem of its own."""


class Stems(nn.Module):
    """Leaky ReLU of a 3³ convolution of each sequence; of those that are there the mean, times the number of sequences known.

    That is the sum over stems, scaled by known / there as dropout scales what it keeps: the size of a feature does not depend on how many
    sequences are there, and `transfer`, which scales sums by old m / new m, leaves the mean of the same stems as it was. What an absent
    sequence's channel holds is not read. Without any sequence the feature is 0. Stems are added in the order of their names, so that the
    order of the plan changes no bit. Several acquisitions of a sequence (`FLAIR`, `FLAIR_run-2`) go through one stem and count as one: the mean of
    those that are there is what the sequence says.

    Args:
        modalities: names of the input channels, in order.
        channels: of the feature.
        stride: 2 halves the grid.
    """

    def __init__(self, modalities: tuple[str, ...], channels: int, stride: int = 1) -> None:
        super().__init__()
        m = len(sequences_of(modalities))
        self.stride = stride
        self.order = sorted(range(len(modalities)), key=lambda index: modalities[index])
        self.stem_of = places_of(modalities)
        self.filters = nn.Parameter(nn.init.kaiming_normal_(torch.empty(channels, m, 3, 3, 3), a=SLOPE))
        self.offsets = nn.Parameter(torch.randn(channels, m) * m**-0.5)  # as loud as availability channels at the start

    def forward(self, image: Float[Tensor, "b m x y z"], present: Bool[Tensor, "b m"]) -> Float[Tensor, "b c u v w"]:
        """(b, m, x, y, z) → (b, channels, x / stride, y / stride, z / stride)."""
        m = self.filters.shape[1]
        own = [[present[:, n] for n, other in enumerate(self.stem_of) if other == stem] for stem in range(m)]
        runs = torch.stack([torch.stack(acquired, dim=1).sum(1) for acquired in own], dim=1)
        told = (runs > 0).sum(1)
        said: list[Tensor] = []
        for index in self.order:
            stem = self.stem_of[index]
            share = m * present[:, index] / (told * runs[:, stem]).clamp_min(1)
            filters, offset = self.filters[:, stem : stem + 1], self.offsets[:, stem]
            heard = nn.functional.conv3d(image[:, index : index + 1], filters, offset, self.stride, padding=1)
            heard = nn.functional.leaky_relu(heard, SLOPE, inplace=True)
            weight = share[:, None, None, None, None].to(heard.dtype)
            said.append(torch.where(weight > 0, weight * heard, 0.0))  # whatever an absent channel holds
        return sum(said[1:], start=said[0])


def stem_weights(name: str) -> dict[str, int]:
    """`Encoder.modality_weights` of an encoder that holds its stems under this name."""
    return {f"{name}.filters": 1, f"{name}.offsets": 1}
