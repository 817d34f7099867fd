"""ResNet-18 in three dimensions: a 7³ convolution over all sequences, max pooling, four stages of two residual blocks.

Source: He et al. 2016 (arXiv 1512.03385); in three dimensions, with the last stage not strided, the convolutional branch of QSMRim-Net
    (Zhang et al. 2022, NeuroImage: Clinical 34:102979) and its public code (tinymilky/QSMRim-Net).
Deviates: group norm where the papers have batch norm, which lets samples see each other; no norm behind the first convolution, which would
    take off what the availability channels say.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.networks.blocks import group_norm, initialise
from oligovox.networks.encoder import Encoder, with_availability

Preset = Literal["paper", "cpu", "nano"]
PRESETS: dict[Preset, tuple[int, int, int, int]] = {
    "paper": (64, 128, 256, 512),
    "cpu": (16, 32, 64, 128),
    "nano": (8, 16, 32, 64),
}
"""Channels of the four stages. paper: 33 million weights. cpu: a sixteenth of them, for two cores. nano: tests."""


class Settings(base.Settings):
    """Sizes of the network."""

    preset: Preset = Field("paper", description="channels of the four stages, see PRESETS")
    last_stride: Literal[1, 2] = Field(
        1, description="of the last stage: 1 is QSMRim-Net's, deepest stride 16; 2 is ResNet's, 32"
    )


class Basic(nn.Module):
    """Two 3³ convolutions with group norm beside a skip, which is a 1³ convolution with norm where the shape changes; then ReLU."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(channels_in, channels_out, 3, stride, padding=1, bias=False),
            group_norm(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv3d(channels_out, channels_out, 3, padding=1, bias=False),
            group_norm(channels_out),
        )
        self.skip = nn.Sequential()
        if stride > 1 or channels_in != channels_out:
            self.skip.append(nn.Conv3d(channels_in, channels_out, 1, stride, bias=False))
            self.skip.append(group_norm(channels_out))

    def forward(self, x: Float[Tensor, "b i x y z"]) -> Float[Tensor, "b o u v w"]:
        """(b, channels_in, x, y, z) → (b, channels_out, x / stride, y / stride, z / stride)."""
        return nn.functional.relu(self.skip(x) + self.body(x), inplace=True)


class ResNet18(Encoder):
    """Features: the four stages, at strides 4, 8, 16, and 16 or 32."""

    normalised = True

    def __init__(self, modalities: tuple[str, ...], settings: Settings) -> None:
        super().__init__()
        widths = PRESETS[settings.preset]
        self.modalities = modalities
        self.channels = widths
        self.strides = (4, 8, 16, 16 * settings.last_stride)
        self.modality_weights = {"stem.weight": 2}
        self.stem = nn.Conv3d(2 * len(modalities), widths[0], 7, stride=2, padding=3)
        self.pool = nn.MaxPool3d(3, stride=2, padding=1)
        jumps = (1, 2, 2, settings.last_stride)
        self.stages = nn.ModuleList(
            nn.Sequential(Basic(before, width, stride), Basic(width, width))
            for (before, width), stride in zip(pairwise((widths[0], *widths)), jumps, strict=True)
        )
        self.apply(initialise)

    def forward(self, image: Float[Tensor, "b m x y z"], present: Bool[Tensor, "b m"]) -> tuple[Tensor, ...]:
        """Features, shallow to deep; see `Encoder.forward`.

        Raises:
            GeometryError: a side is not a multiple of the deepest stride, or a single voxel would be left there.
        """
        self.check_sides(image.shape[2:])
        stemmed = self.stem(with_availability(image, present))
        x: Tensor = self.pool(nn.functional.relu(stemmed, inplace=True))
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return tuple(features)


NETWORK = ResNet18
