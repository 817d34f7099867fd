"""BrainMVP: restore one sequence whose blocks were taken out twice, once filled with a learnt template, once with another sequence.

Source: Rui et al. 2025 (BrainMVP: multi-modal vision pre-training for medical image analysis, arXiv 2410.10604), its pre-training:
    cross-modal reconstruction, modality-wise templates, modality-aware contrast.
Deviates: the sequence is shown in its own channel of the encoder, with all others marked absent, where the paper's network has one
    channel; templates are coarse lattices over the patch; only the foreground is counted; parts of the schedule are shares of the run; a sample without a second sequence gets the template; template distillation later on is not offered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.losses.contrast import info_nce
from oligovox.losses.masked import masked_mean
from oligovox.losses.outliers import slope_note
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.compose import EncoderDecoder
from oligovox.networks.decoder import Decoder
from oligovox.networks.encoder import Encoder
from oligovox.networks.heads import ReconstructionHead
from oligovox.networks.substitute import Substitute
from oligovox.sample.batch import Batch
from oligovox.sample.masks import check_random_blocks, random_blocks


class Settings(base.Settings):
    """Choices of BrainMVP."""

    ratio: float = Field(0.8, gt=0, le=1, description="share of the blocks taken out of each view")
    block: int = Field(8, ge=1, description="edge of a block in voxels")
    counted: Literal["all", "hidden"] = Field("all", description="voxels in the errors: all of them, or hidden ones")
    lattice: int = Field(8, ge=1, description="points of a template along each side of the patch; 1: one value")
    exchange_from: float = Field(
        0.2, ge=0, le=1, description="share of the run after which the second view is filled from another sequence"
    )
    contrast_from: float = Field(
        0.67, ge=0, le=1, description="share of the run after which the two views are contrasted"
    )
    temperature: float = Field(1.0, gt=0, description="of the contrast")
    template_weight: float = Field(10.0, ge=0, description="weight of the error of the view filled with the template")
    exchange_weight: float = Field(1.0, ge=0, description="weight of the error of the other view")
    contrast_weight: float = Field(1.0, ge=0, description="weight of the contrast")


@dataclass(frozen=True)
class Views:
    """One sequence of each sample, and what is taken out of it. The templates come in with the losses.

    Attributes:
        target: the sequence.
        which: its channel.
        other: another acquired sequence of the sample, where there is one.
        has_other: whether there is.
        hidden: voxels taken out, for the view that the template fills and for the other one.
        counted: voxels in the error of each view.
    """

    target: Float[Tensor, "b 1 x y z"]
    which: Int[Tensor, "b"]
    other: Float[Tensor, "b 1 x y z"]
    has_other: Bool[Tensor, "b"]
    hidden: Bool[Tensor, "b 2 x y z"]
    counted: Bool[Tensor, "b 2 x y z"]


@final
class BrainMVP(Method[Views]):
    """Encoder, decoder, a 1 × 1 × 1 head that restores the sequence shown, and a template for each sequence."""

    needs = Needs(apart=True)

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.network = EncoderDecoder(encoder, Decoder(encoder.channels, encoder.strides))
        self.restore = ReconstructionHead(self.network.decoder.channels[0], 1)
        self.template = Substitute(len(encoder.modalities), settings.lattice)

    def check_patch(self, sides: tuple[int, int, int]) -> None:
        """Some blocks are hidden."""
        check_random_blocks(sides, self.settings.block, self.settings.ratio)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Draw two acquired sequences, the same for all samples that have them, and the blocks of two views."""
        b, m, x, y, z = batch.image.shape
        draw = torch.rand(m, generator=rng, device=rng.device).expand(b, m).where(batch.present, 2.0)
        order = draw.argsort(1)
        which, second = order[:, 0], order[:, min(1, m - 1)]
        rows = torch.arange(b, device=rng.device)
        hidden = random_blocks((b, 2, x, y, z), self.settings.block, self.settings.ratio, rng)
        known = batch.foreground & batch.present[rows, which][:, None, None, None, None]
        return Views(
            target=batch.image[rows, which][:, None],
            which=which,
            other=batch.image[rows, second][:, None],
            has_other=batch.present.sum(1) > 1,
            hidden=hidden,
            counted=known.expand_as(hidden) if self.settings.counted == "all" else known & hidden,
        )

    def fill(self, views: Views, clock: Clock) -> Float[Tensor, "b 2 x y z"]:
        """Both views: the sequence with its hidden voxels filled from the template, and from the other sequence when it is time."""
        template = self.template(views.target.shape[2:])[views.which][:, None]
        exchange = (
            views.has_other if clock.progress >= self.settings.exchange_from else torch.zeros_like(views.has_other)
        )
        other = torch.where(exchange[:, None, None, None, None], views.other, template)
        return torch.where(views.hidden, torch.cat([template, other], dim=1), views.target)

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Squared errors of both views, and the contrast of their deepest features as they are, in both directions."""
        chosen, m = self.settings, len(self.network.encoder.modalities)
        shown = nn.functional.one_hot(views.which, m).bool().repeat(2, 1)
        both = torch.cat(self.fill(views, clock).chunk(2, dim=1))
        features = self.network.encoder(both * shown[:, :, None, None, None], shown)
        restored = torch.cat(self.restore(self.network.decoder(features)[0]).float().chunk(2), dim=1)
        error = masked_mean((restored - views.target).square(), views.counted, dim=(0, 2, 3, 4))
        first, second = features[-1].flatten(1).chunk(2)
        contrast = info_nce(first, second, chosen.temperature) + info_nce(second, first, chosen.temperature)
        terms = {
            "template": error[0],
            "exchange": error[1],
            "contrast": contrast / 2,
        }
        own = nn.functional.one_hot(views.which, m).bool()[:, :, None, None, None]
        made, true = (values[:, :1].detach().expand(-1, m, -1, -1, -1) for values in (restored, views.target))
        hidden = (views.counted & views.hidden)[:, :1] & own
        contrast_weight = chosen.contrast_weight if clock.progress >= chosen.contrast_from else 0.0
        return Losses(
            terms,
            {"template": chosen.template_weight, "exchange": chosen.exchange_weight, "contrast": contrast_weight},
            slope_note(made, true, hidden, self.network.encoder.modalities),
        )

    def export(self) -> nn.Module:
        """Encoder and decoder; the head and the templates stay behind."""
        return self.network


METHOD = BrainMVP
