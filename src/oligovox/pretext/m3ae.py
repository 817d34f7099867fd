"""M3AE: drop whole sequences and most blocks of the others, let a learnt image stand in for them, and restore everything.

Source: Liu, Wei, Lu, Sun, Wang, Zheng 2023 (M3AE: multimodal representation learning for brain tumor segmentation with missing
    modalities, arXiv 2303.05302), first stage: the multimodal masked autoencoder with its substitute image.
Deviates: only the foreground of acquired sequences is counted; the substitute is a coarse lattice over the patch, since patches carry
    no place in an atlas; a dropped sequence is shown as an absent one, zeros and "absent", unless `substitute_dropped` (the paper's
    way), because fine-tuning shows absent sequences so; its size is held down by the mean of each sequence; any encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.errors import SettingsError
from oligovox.losses.masked import masked_mean
from oligovox.losses.outliers import slope_note
from oligovox.method import Clock, Losses, Method
from oligovox.networks.compose import EncoderDecoder
from oligovox.networks.decoder import Decoder
from oligovox.networks.encoder import Encoder
from oligovox.networks.heads import ReconstructionHead
from oligovox.networks.stems import Stems
from oligovox.networks.substitute import Substitute
from oligovox.sample.batch import Batch
from oligovox.sample.masks import block_voxels, check_hidden, spread


class Settings(base.Settings):
    """Choices of M3AE."""

    ratio: float = Field(
        0.875, ge=0, lt=1, description="hidden share of the blocks of all acquired sequences, dropped ones included"
    )
    block: int = Field(16, ge=1, description="edge of a block in voxels")
    max_dropped: int = Field(
        3, ge=0, description="largest number of whole sequences dropped; one always stays; 0: blocks only"
    )
    counted: Literal["all", "hidden"] = Field("all", description="voxels in the error: all of them, or hidden ones")
    lattice: int = Field(
        8, ge=1, description="points of the substitute image along each side of the patch; 1: one value"
    )
    rate: float = Field(
        17.0,
        gt=0,
        description="how much faster than the weights the substitute learns under Adam; the paper: 0.005 / 0.0003",
    )
    spread_weight: float = Field(0.005, ge=0, description="weight of the norm of substitute - its mean")
    substitute_dropped: bool = Field(
        False, description="the substitute also fills dropped and absent sequences, as in the paper; false: zeros"
    )


@dataclass(frozen=True)
class Views:
    """What is shown, and what it is compared with. The learnt image comes in with the losses.

    Attributes:
        image: the whole image.
        shown: sequences the network may rely on: acquired and not dropped.
        hidden: voxels that are not shown; all those of a sequence that is not.
        filled: sequences in which the substitute stands where they are hidden; in the others zeros do.
        counted: voxels in the error.
    """

    image: Float[Tensor, "b m x y z"]
    shown: Bool[Tensor, "b m"]
    hidden: Bool[Tensor, "b m x y z"]
    filled: Bool[Tensor, "b m"]
    counted: Bool[Tensor, "b m x y z"]


@final
class M3AE(Method[Views]):
    """Encoder, decoder, a 1 × 1 × 1 head that restores every sequence, and the substitute image.

    Raises:
        SettingsError: the substitute is to fill dropped sequences, and the encoder does not read those.
    """

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        if settings.substitute_dropped and any(isinstance(layer, Stems) for layer in encoder.modules()):
            raise SettingsError(
                "m3ae: substitute_dropped fills dropped sequences, which a network with fusion stems does not read; "
                "use fusion early, or leave substitute_dropped out"
            )
        self.settings = settings
        self.network = EncoderDecoder(encoder, Decoder(encoder.channels, encoder.strides))
        self.restore = ReconstructionHead(self.network.decoder.channels[0], len(encoder.modalities))
        self.substitute = Substitute(len(encoder.modalities), settings.lattice, settings.rate)

    def check_patch(self, sides: tuple[int, int, int]) -> None:
        """Some blocks are hidden in an exam that has every sequence."""
        blocks = prod(-(-side // self.settings.block) for side in sides) * len(self.network.encoder.modalities)
        check_hidden(blocks - max(1, round((1 - self.settings.ratio) * blocks)), blocks)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Drop sequences, then hide blocks of the others until the whole share is hidden."""
        present = batch.present
        shown = present & ~self._drop(present, rng)
        hidden = ~self._visible(present, shown, batch.image.shape[2:], rng)
        known = batch.foreground & spread(present)
        return Views(
            image=batch.image,
            shown=shown,
            hidden=hidden,
            filled=torch.ones_like(shown) if self.settings.substitute_dropped else shown,
            counted=known if self.settings.counted == "all" else known & hidden,
        )

    def _drop(self, present: Bool[Tensor, "b m"], rng: torch.Generator) -> Bool[Tensor, "b m"]:
        """0 … max_dropped acquired sequences, each number as likely; never all of a sample's."""
        most = (present.sum(1, keepdim=True) - 1).clamp(0, self.settings.max_dropped)
        draw = torch.rand(len(present), 1 + present.shape[1], generator=rng, device=rng.device)
        number = (draw[:, :1] * (most + 1)).long()
        rank = draw[:, 1:].where(present, 2.0).argsort(1).argsort(1)
        return present & (rank < number)

    def _visible(
        self, present: Bool[Tensor, "b m"], shown: Bool[Tensor, "b m"], sides: torch.Size, rng: torch.Generator
    ) -> Bool[Tensor, "b m x y z"]:
        """Exactly round((1 - ratio) · blocks of acquired sequences) blocks of the shown ones; all of these where they are fewer."""
        grid = [-(-side // self.settings.block) for side in sides]
        scores = torch.rand(*present.shape, prod(grid), generator=rng, device=rng.device).where(shown[:, :, None], 2.0)
        number = ((1 - self.settings.ratio) * prod(grid) * present.sum(1, keepdim=True)).round().clamp(min=1)
        visible = (scores.flatten(1).argsort(1).argsort(1) < number).view_as(scores) & shown[:, :, None]
        return block_voxels(visible.reshape(*present.shape, *grid), self.settings.block, sides)

    def visible(self, views: Views) -> Float[Tensor, "b m x y z"]:
        """The image with the substitute, or zeros, where it is hidden."""
        stands_in = self.substitute(views.image.shape[2:]) * spread(views.filled)
        return torch.where(views.hidden, stands_in, views.image)

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Mean squared error of the counted voxels, and what holds the substitute down."""
        restored = self.restore(self.network(self.visible(views), views.shown)).float()
        terms = {
            "restore": masked_mean((restored - views.image).square(), views.counted),
            "spread": self.substitute.spread(),
        }
        note = slope_note(restored.detach(), views.image, views.counted & views.hidden, self.network.encoder.modalities)
        return Losses(terms, {"spread": self.settings.spread_weight}, note)

    def export(self) -> nn.Module:
        """Encoder and decoder; the head and the substitute stay behind."""
        return self.network


METHOD = M3AE
