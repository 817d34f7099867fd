"""Masked reconstruction: hide most of the blocks of a volume and restore them from what is left.

Source: He et al. 2022 (masked autoencoders, arXiv 2111.06377), carried to 3-D convolutional networks as in Wald et al. 2024
    (revisiting MAE pre-training for 3D medical image segmentation, arXiv 2410.23132).
Deviates: hidden blocks are zeros for an ordinary encoder, not left out of a token list; only hidden voxels of the foreground and of
    acquired sequences are counted; blocks may be hidden in each sequence apart (`shared: false`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.losses.masked import masked_mean
from oligovox.method import Clock, Losses, Method
from oligovox.networks.compose import EncoderDecoder
from oligovox.networks.decoder import Decoder
from oligovox.networks.encoder import Encoder
from oligovox.networks.heads import ReconstructionHead
from oligovox.sample.batch import Batch
from oligovox.sample.masks import random_blocks


class Settings(base.Settings):
    """Choices of masked reconstruction."""

    ratio: float = Field(0.75, gt=0, le=1, description="share of the blocks that are hidden")
    block: int = Field(16, ge=1, description="edge of a block in voxels")
    shared: bool = Field(
        True, description="the same blocks are hidden in every sequence; false: blocks of each sequence apart"
    )
    loss: Literal["l1", "l2"] = Field("l2", description="error of a hidden voxel: absolute or squared difference")


@dataclass(frozen=True)
class Views:
    """What is shown, and what it is compared with.

    Attributes:
        visible: the image with zeros where blocks are hidden.
        present: sequences that were acquired.
        target: the image.
        counted: hidden voxels of the foreground and of acquired sequences.
    """

    visible: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    target: Float[Tensor, "b m x y z"]
    counted: Bool[Tensor, "b m x y z"]


@final
class MaskedReconstruction(Method[Views]):
    """Encoder, decoder and a 1 × 1 × 1 head that restores every sequence."""

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.network = EncoderDecoder(encoder, Decoder(encoder.channels, encoder.strides))
        self.restore = ReconstructionHead(self.network.decoder.channels[0], len(encoder.modalities))

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Hide blocks; count the hidden voxels that can be known."""
        chosen = self.settings
        b, m, x, y, z = batch.image.shape
        hidden = random_blocks((b, m, x, y, z), chosen.block, chosen.ratio, rng, shared=chosen.shared)
        counted = hidden & batch.foreground & batch.present[:, :, None, None, None]
        return Views(batch.image.masked_fill(hidden, 0.0), batch.present, batch.image, counted)

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Mean error over the counted voxels."""
        difference = self.restore(self.network(views.visible, views.present)).float() - views.target
        error = difference.abs() if self.settings.loss == "l1" else difference.square()
        return Losses({"restore": masked_mean(error, views.counted)})

    def export(self) -> nn.Module:
        """Encoder and decoder; the head stays behind."""
        return self.network


METHOD = MaskedReconstruction
