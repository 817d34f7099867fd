"""Contextual fusion: several receptive fields side by side at the bottleneck, gated by channel.

Source: Wang et al. 2025, "SLeM", J. Computer-Aided Design & Computer Graphics 37(3), 474–483, of which only the abstract is public:
  a contextual fusion block that extracts features of tumours of various sizes.
Deviates: the abstract says no more than that; branches, dilations, gate and residual sum are ours.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from oligovox.networks.blocks import SLOPE

Bottleneck = Literal["plain", "contextual_fusion"]


class ContextualFusion(nn.Module):
    """F + s ⊙ U: branches with four receptive fields and the mean of the grid, joined; s is one gate a channel and sample.

    Branches of channels / 4: a 1³ convolution, 3³ convolutions with dilation 1, 2 and 3, and a 1³ convolution of the mean over
    the grid. The grid must be larger than one voxel, as for every instance norm.

    Source: Hu et al. 2018, "Squeeze-and-excitation networks", arXiv 1709.01507, for the gate; Chen et al. 2017, arXiv 1706.05587,
    for the parallel dilations.

    Args:
        channels: of the feature, kept.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        width, hidden = max(1, channels // 4), max(1, channels // 8)
        self.near = nn.ModuleList(
            [
                _branch(channels, width, kernel=1, dilation=1),
                *(_branch(channels, width, kernel=3, dilation=d) for d in (1, 2, 3)),
            ]
        )
        self.whole = nn.Sequential(nn.Conv3d(channels, width, 1), nn.LeakyReLU(SLOPE, inplace=True))
        self.join = nn.Conv3d(5 * width, channels, 1)
        self.gate = nn.Sequential(
            nn.Conv3d(channels, hidden, 1),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv3d(hidden, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, feature: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b c x y z"]:
        """Same shape."""
        whole: Tensor = self.whole(feature.mean(dim=(2, 3, 4), keepdim=True))
        branches = [branch(feature) for branch in self.near]
        joined: Tensor = self.join(torch.cat([*branches, whole.expand(-1, -1, *feature.shape[2:])], dim=1))
        gate: Tensor = self.gate(joined.mean(dim=(2, 3, 4), keepdim=True))
        return feature + gate * joined


def bottleneck(kind: Bottleneck, channels: int) -> nn.Module:
    """What an encoder puts on its deepest feature; `plain` has no parameters and changes nothing."""
    return ContextualFusion(channels) if kind == "contextual_fusion" else nn.Identity()


def _branch(channels_in: int, channels_out: int, *, kernel: int, dilation: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(channels_in, channels_out, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False),
        nn.InstanceNorm3d(channels_out, affine=True),
        nn.LeakyReLU(SLOPE, inplace=True),
    )
