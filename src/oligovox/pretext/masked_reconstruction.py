"""Masked reconstruction: hide most of the blocks of a volume and restore them from what is left.

Source: He et al. 2022 (masked autoencoders, arXiv 2111.06377), carried to 3-D convolutional networks as in Wald et al. 2024
    (revisiting MAE pre-training for 3D medical image segmentation, arXiv 2410.23132). The learned mask value is that of Xie et al.
    2022 (SimMIM, arXiv 2111.09886), the restoring of intensities that of Munk et al. 2024 (AMAES, arXiv 2408.00640).
Deviates: hidden blocks are zeros (or one learned value a sequence) for an ordinary encoder, not left out of a token list; only hidden
    voxels of the foreground and of acquired sequences are counted; blocks may be hidden in each sequence apart (`shared: false`);
    intensities are changed after hiding, so that no effect carries hidden voxels out; the term for visible voxels is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.losses.masked import masked_mean
from oligovox.losses.outliers import slope_note
from oligovox.method import Clock, Losses, Method
from oligovox.networks.compose import EncoderDecoder
from oligovox.networks.decoder import Decoder
from oligovox.networks.encoder import Encoder
from oligovox.networks.heads import ReconstructionHead
from oligovox.sample.augment import Augmentation, augment
from oligovox.sample.batch import Batch
from oligovox.sample.masks import check_random_blocks, random_blocks


class Settings(base.Settings):
    """Choices of masked reconstruction."""

    ratio: float = Field(0.75, gt=0, le=1, description="share of the blocks that are hidden")
    block: int = Field(16, ge=1, description="edge of a block in voxels")
    shared: bool = Field(
        True, description="the same blocks are hidden in every sequence; false: blocks of each sequence apart"
    )
    loss: Literal["l1", "l2"] = Field("l2", description="error of a hidden voxel: absolute or squared difference")
    mask_value: Literal["zero", "learned"] = Field(
        "zero", description="what stands in a hidden block: 0, or a number learned for each sequence (SimMIM)"
    )
    restore: Literal["augmented", "clean"] = Field(
        "augmented", description="clean: intensities are changed before showing and restored, too (AMAES)"
    )
    effect: float = Field(
        0.3, ge=0, le=1, description="restore: clean: probability of each intensity effect, for each sequence"
    )
    visible_weight: float = Field(0.0, ge=0, description="weight of the error of visible voxels; 0 leaves it out")


@dataclass(frozen=True)
class Views:
    """What is shown, and what it is compared with.

    Attributes:
        visible: the image with zeros where blocks are hidden; with `restore: clean` its intensities are changed.
        present: sequences that were acquired.
        target: the image.
        counted: hidden voxels of the foreground and of acquired sequences.
        beside: visible voxels of the foreground and of acquired sequences.
        hidden: voxels of hidden blocks of acquired sequences, air among them.
    """

    visible: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    target: Float[Tensor, "b m x y z"]
    counted: Bool[Tensor, "b m x y z"]
    beside: Bool[Tensor, "b m x y z"]
    hidden: Bool[Tensor, "b m x y z"]


@final
class MaskedReconstruction(Method[Views]):
    """Encoder, decoder and a 1 × 1 × 1 head that restores every sequence."""

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.modalities = encoder.modalities
        self.network = EncoderDecoder(encoder, Decoder(encoder.channels, encoder.strides))
        self.restore = ReconstructionHead(self.network.decoder.channels[0], len(encoder.modalities))
        learned = settings.mask_value == "learned"
        self.mask_value = nn.Parameter(torch.zeros(len(encoder.modalities), 1, 1, 1)) if learned else None
        effects = ("gamma", "contrast", "brightness", "bias", "blur", "low_resolution", "noise")
        self.effects = Augmentation.only(**dict.fromkeys(effects, settings.effect))

    def check_patch(self, sides: tuple[int, int, int]) -> None:
        """Some blocks are hidden."""
        check_random_blocks(sides, self.settings.block, self.settings.ratio)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Hide blocks, change the intensities of what is left where asked for; count the voxels that can be known."""
        chosen = self.settings
        b, m, x, y, z = batch.image.shape
        hidden = random_blocks((b, m, x, y, z), chosen.block, chosen.ratio, rng, shared=chosen.shared)
        present = batch.present[:, :, None, None, None]
        known = batch.foreground & present
        visible = batch.image.masked_fill(hidden, 0.0)
        if chosen.restore == "clean":
            visible = augment(replace(batch, image=visible), self.effects, rng).image.masked_fill(hidden, 0.0)
        return Views(visible, batch.present, batch.image, hidden & known, known & ~hidden, hidden & present)

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Mean error over the counted voxels, and over the visible ones where they have a weight."""
        shown = views.visible
        if self.mask_value is not None:
            shown = torch.where(views.hidden, self.mask_value, shown)
        restored = self.restore(self.network(shown, views.present)).float()
        difference = restored - views.target
        error = difference.abs() if self.settings.loss == "l1" else difference.square()
        terms, weights = {"restore": masked_mean(error, views.counted)}, {}
        if self.settings.visible_weight > 0:
            terms["visible"] = masked_mean(error, views.beside)
            weights["visible"] = self.settings.visible_weight
        return Losses(terms, weights, slope_note(restored, views.target, views.counted, self.modalities))

    def export(self) -> nn.Module:
        """Encoder and decoder; head and mask value stay behind."""
        return self.network


METHOD = MaskedReconstruction
