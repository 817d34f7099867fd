"""Residual-encoder U-Net encoder: stages of residual blocks, each halving the grid.

Source: Isensee et al. 2024, "nnU-Net Revisited", arXiv 2404.09556.
Deviates: the stem has no norm, because an instance norm takes a constant off its input and with it what the availability
  channels say; no block starts as the identity, so that every weight learns from the first step. With fusion `stems` each sequence
  has a stem of its own (`stems.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.networks.blocks import SLOPE, ResidualBlock, initialise
from oligovox.networks.encoder import Encoder, with_availability
from oligovox.networks.fusion import Bottleneck, bottleneck
from oligovox.networks.stems import Fusion, Stems, stem_weights

Preset = Literal["nano", "tiny", "S", "M", "L"]


@dataclass(frozen=True)
class Stages:
    """Sizes of one preset, shallow to deep.

    Attributes:
        channels: of each stage.
        blocks: residual blocks in each stage.
    """

    channels: tuple[int, ...]
    blocks: tuple[int, ...]


PRESETS: dict[Preset, Stages] = {
    "nano": Stages((8, 16, 32), (1, 1, 1)),
    "tiny": Stages((8, 16, 32, 64), (1, 1, 1, 1)),
    "S": Stages((16, 32, 64, 128, 160), (1, 2, 2, 2, 2)),
    "M": Stages((32, 64, 128, 256, 320, 320), (1, 3, 4, 6, 6, 6)),
    "L": Stages((48, 96, 192, 384, 480, 480), (1, 3, 4, 6, 6, 6)),
}
"""nano: tests. tiny: two CPU cores. S: a long CPU run or a small GPU. M: nnU-Net's own sizes. L: half as wide again."""


class Settings(base.Settings):
    """Sizes of the residual encoder."""

    preset: Preset = Field("tiny", description="channels and blocks of each stage, see PRESETS")
    stem_stride: Literal[1, 2] = Field(
        1, description="2 halves the grid in the first layer: several times cheaper, coarser"
    )
    bottleneck: Bottleneck = Field(
        "plain", description="what lies on the deepest feature: nothing, or the contextual fusion block of SLeM"
    )
    fusion: Fusion = base.silent(
        "early",
        description="early: one stem reads all sequences beside availability channels; stems: one a sequence, and the mean of those "
        "that are there",
    )


class ResEnc(Encoder):
    """Stem, then stages; the features are the output of each stage, the deepest one after the bottleneck.

    Strides are `stem_stride · (1, 2, 4, …)`.
    """

    normalised, flat_mean = True, True

    def __init__(self, modalities: tuple[str, ...], settings: Settings) -> None:
        super().__init__()
        sizes = PRESETS[settings.preset]
        self.modalities = modalities
        self.channels = sizes.channels
        self.strides = tuple(settings.stem_stride * 2**level for level in range(len(sizes.channels)))
        self.stem: nn.Module
        if settings.fusion == "stems":
            self.modality_weights, self.by_sequence = stem_weights("stem"), True
            self.stem = Stems(modalities, sizes.channels[0], settings.stem_stride)
        else:
            self.modality_weights = {"stem.weight": 2}
            self.stem = nn.Conv3d(2 * len(modalities), sizes.channels[0], 3, settings.stem_stride, padding=1)
        entering = (sizes.channels[0], *sizes.channels[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(
                ResidualBlock(before, width, stride=1 if level == 0 else 2),
                *(ResidualBlock(width, width) for _ in range(blocks - 1)),
            )
            for level, (before, width, blocks) in enumerate(zip(entering, sizes.channels, sizes.blocks, strict=True))
        )
        self.bottleneck = bottleneck(settings.bottleneck, sizes.channels[-1])
        self.apply(initialise)

    def forward(self, image: Float[Tensor, "b m x y z"], present: Bool[Tensor, "b m"]) -> tuple[Tensor, ...]:
        """Features, shallow to deep; see `Encoder.forward`.

        Raises:
            GeometryError: a side is not a multiple of the deepest stride, or a single voxel would be left there.
        """
        self.check_sides(image.shape[2:])
        x: Tensor
        if isinstance(self.stem, Stems):
            x = self.stem(image, present)
        else:
            x = nn.functional.leaky_relu(self.stem(with_availability(image, present)), SLOPE, inplace=True)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return (*features[:-1], self.bottleneck(x))


NETWORK = ResEnc
