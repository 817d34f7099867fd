"""SimCLR: two crops of one patch must recognise each other among the crops of all other patches.

Source: Chen et al. 2020 (a simple framework for contrastive learning of visual representations, arXiv 2002.05709), carried to 3-D crops
    that overlap by half or more.
Deviates: embeddings are pooled over the foreground only, and standardised; views differ by the flips, movements and intensity changes of nnU-Net, not by
    colour distortion; a sequence may be hidden in one view and shown in the other (`hide`); batches are small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.losses.contrast import nt_xent
from oligovox.losses.masked import masked_mean
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.encoder import Encoder
from oligovox.networks.heads import ProjectionHead, Standardised
from oligovox.sample.batch import Batch
from oligovox.sample.crops import crop_sides, view_pair


class Settings(base.Settings):
    """Choices of SimCLR."""

    crop: float = Field(0.67, gt=0, le=1, description="side of a crop as a share of the patch's; 64 voxels of 96")
    overlap: float = Field(0.5, ge=0, le=1, description="smallest share of a crop's volume that both crops show")
    augment: float = Field(
        1.0, ge=0, description="factor on the probability of each of nnU-Net's effects; 0 leaves plain crops"
    )
    hide: float = Field(
        0.0, ge=0, le=1, description="probability that a sequence is hidden in a view; one always stays"
    )
    hidden: int = Field(512, ge=1, description="units between the two layers of the projector")
    embedding: int = Field(128, ge=1, description="size of the embedding that is compared")
    temperature: float = Field(0.5, gt=0, description="of the comparison")


@dataclass(frozen=True)
class Views:
    """Both views of every sample, first all the first ones: v = 2 b.

    Attributes:
        image: of the crop, augmented; 0 in hidden sequences.
        present: sequences that were acquired and are not hidden.
        foreground: head or brain, moved with the image.
    """

    image: Float[Tensor, "v m x y z"]
    present: Bool[Tensor, "v m"]
    foreground: Bool[Tensor, "v 1 x y z"]


@final
class SimCLR(Method[Views]):
    """Encoder and a projector on its deepest feature."""

    needs = Needs(together=2, apart=True)

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = encoder
        self.standard = Standardised(encoder.channels[-1])
        self.project = ProjectionHead(encoder.channels[-1], settings.embedding, settings.hidden)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Two overlapping crops of each sample, each changed on its own."""
        chosen = self.settings
        crop = crop_sides(batch.image.shape[2:], chosen.crop, self.encoder.strides[-1])
        pair = view_pair(batch, crop, chosen.overlap, chosen.augment, chosen.hide, rng)
        fields = ((view.image, view.present, view.foreground) for view in pair)
        return Views(*(torch.cat(both) for both in zip(*fields, strict=True)))

    def losses(self, views: Views, clock: Clock) -> Losses:
        """NT-Xent over the 2 b views of the batch, and of all processes."""
        deep = self.encoder(views.image, views.present)[-1]
        tissue = nn.functional.adaptive_avg_pool3d(views.foreground.float(), deep.shape[2:])
        means = masked_mean(deep.float(), tissue.expand_as(deep), dim=(2, 3, 4))
        first, second = self.project(self.standard(means)[..., None, None, None]).chunk(2)
        loss = nt_xent(first, second, self.settings.temperature)
        return Losses({"contrast": loss}, carry={"means": self.standard.seen(means)})

    def after_step(self, losses: Losses, clock: Clock) -> None:
        """Remember what was pooled."""
        self.standard.follow(losses.carry["means"])

    def export(self) -> nn.Module:
        """The encoder; the projector stays behind."""
        return nn.ModuleDict({"encoder": self.encoder})


METHOD = SimCLR
