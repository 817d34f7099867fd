"""Decoder: the features of any encoder, back to full resolution."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from oligovox.errors import SettingsError
from oligovox.networks.blocks import SLOPE, ConvNormAct, initialise


class Decoder(nn.Module):
    """U-Net decoder: upsample, join the skip, convolve; once for each level but the deepest.

    Grids are doubled by a transposed convolution; across a larger jump of strides, trilinearly with a 1³ convolution.
    Where the encoder's first stride is not 1, a last step without skip goes to full resolution, and stays cheap there: one
    upsampling with norm and leaky ReLU.

    Source: Ronneberger et al. 2015; one convolution a level as in Isensee et al. 2024, arXiv 2404.09556.

    Attributes:
        channels: of the decoder's features, full resolution first.
        strides: of the decoder's features against the image, full resolution (1) first.

    Args:
        channels: of the encoder's features, shallow to deep.
        strides: of the encoder's features, shallow to deep.
        convolutions: 3³ convolutions on each level.

    Raises:
        SettingsError: fewer than two levels, or a stride that does not divide the next.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], *, convolutions: int = 1) -> None:
        super().__init__()
        if (
            len(channels) != len(strides)
            or len(strides) < 2
            or any(deep % shallow for shallow, deep in pairwise(strides))
        ):
            raise SettingsError(
                f"decoder for channels {tuple(channels)} and strides {tuple(strides)}: "
                "expected as many strides as channels, at least two, each dividing the next"
            )
        jumps = [deep // shallow for shallow, deep in pairwise(strides)]
        self.ups = nn.ModuleList(
            _upsample(deep, shallow, jump) for (shallow, deep), jump in zip(pairwise(channels), jumps, strict=True)
        )
        self.joins = nn.ModuleList(
            nn.Sequential(ConvNormAct(2 * width, width), *(ConvNormAct(width, width) for _ in range(convolutions - 1)))
            for width in channels[:-1]
        )
        self.channels = tuple(channels[:-1])
        self.strides = tuple(strides[:-1])
        self.full: nn.Sequential | None = None
        if strides[0] > 1:
            width = channels[0]
            self.full = nn.Sequential(
                _upsample(width, width, strides[0]),
                nn.InstanceNorm3d(width, affine=True),
                nn.LeakyReLU(SLOPE, inplace=True),
            )
            self.channels, self.strides = (width, *self.channels), (1, *self.strides)
        self.apply(initialise)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Decoder features `(b, channels[i], x / strides[i], …)`, full resolution first, so that heads can be put on each.

        Args:
            features: the encoder's, shallow to deep.
        """
        x = features[-1]
        decoded: list[Tensor] = []
        for level in reversed(range(len(self.ups))):
            x = self.joins[level](torch.cat([self.ups[level](x), features[level]], dim=1))
            decoded.append(x)
        if self.full is not None:
            decoded.append(self.full(x))
        return tuple(reversed(decoded))


def _upsample(channels_in: int, channels_out: int, factor: int) -> nn.Module:
    if factor == 2:
        return nn.ConvTranspose3d(channels_in, channels_out, 2, stride=2, bias=False)
    return nn.Sequential(
        nn.Conv3d(channels_in, channels_out, 1, bias=False),
        nn.Upsample(scale_factor=float(factor), mode="trilinear", align_corners=False),
    )
