"""Supervoxel inpainting: hide a piece of tissue with its own borders, rather one that looks abnormal, and restore it.

Source: Kayal, Chen, de Bruijne 2020 (Region-of-interest guided supervoxel inpainting for self-supervision, arXiv 2006.15186), of which
    only the summary was at hand.
Deviates: sizes, losses and the guide are ours: a mean intensity stands for the region of interest, where the paper guides by the area
    that will be segmented; supervoxels are drawn anew at every step, in the patch and from all sequences; no labels are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from pydantic import Field, field_validator
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.cohort.modalities import canonical
from oligovox.errors import SettingsError
from oligovox.losses.masked import masked_mean
from oligovox.losses.outliers import slope_note
from oligovox.method import Clock, Losses, Method
from oligovox.networks.compose import EncoderDecoder
from oligovox.networks.decoder import Decoder
from oligovox.networks.encoder import Encoder
from oligovox.networks.heads import ReconstructionHead
from oligovox.sample.batch import Batch
from oligovox.sample.supervoxels import supervoxels


class Settings(base.Settings):
    """Choices of supervoxel inpainting."""

    width: float = Field(15.0, gt=0, description="width of a supervoxel in mm; 15 makes about 400 of a brain")
    compactness: float = Field(
        0.5, gt=0, description="difference of z-score that weighs as much as one width; large gives plain cubes"
    )
    hide: int = Field(1, ge=1, description="supervoxels hidden in each patch")
    guide: tuple[str, ...] = Field(
        ("FLAIR", "T2w"), description="the first of these that is acquired says what looks abnormal; none: chance"
    )
    temperature: float = Field(
        1.0, gt=0, description="of the softmax over mean guide z-scores; small hides only the brightest, large any"
    )
    outside_weight: float = Field(0.1, ge=0, description="weight of the error of what is not hidden")

    @field_validator("guide")
    @classmethod
    def _known(cls, guide: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(canonical(name) for name in guide)
        except SettingsError as error:
            raise ValueError(str(error)) from None


@dataclass(frozen=True)
class Views:
    """What is shown, and what it is compared with.

    Attributes:
        visible: the image with zeros in the hidden supervoxels.
        present: sequences that were acquired.
        target: the image.
        hidden: voxels of hidden supervoxels in acquired sequences.
        beside: the other voxels of the foreground in acquired sequences.
    """

    visible: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    target: Float[Tensor, "b m x y z"]
    hidden: Bool[Tensor, "b m x y z"]
    beside: Bool[Tensor, "b m x y z"]


@final
class Supervoxel(Method[Views]):
    """Encoder, decoder and a 1 × 1 × 1 head that restores every sequence."""

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.modalities = encoder.modalities
        self.network = EncoderDecoder(encoder, Decoder(encoder.channels, encoder.strides))
        self.restore = ReconstructionHead(self.network.decoder.channels[0], len(encoder.modalities))

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Hide supervoxels in all sequences at once."""
        hidden = torch.stack([self._hide(batch, sample, rng) for sample in range(len(batch))])[:, None]
        known = batch.foreground & batch.present[:, :, None, None, None]
        return Views(
            visible=batch.image.masked_fill(hidden, 0.0),
            present=batch.present,
            target=batch.image,
            hidden=known & hidden,
            beside=known & ~hidden,
        )

    def _hide(self, batch: Batch, sample: int, rng: torch.Generator) -> Bool[Tensor, "x y z"]:
        """Supervoxels of one sample, drawn without replacement by the softmax of their mean guide intensity."""
        chosen, inside = self.settings, batch.foreground[sample, 0] & batch.present[sample].any()
        if not inside.any():
            return inside
        present = batch.present[sample]
        width = [max(1.0, chosen.width / mm) for mm in batch.spacing[sample].tolist()]
        number = supervoxels(batch.image[sample, present], inside, width, chosen.compactness, rng)
        names, of = torch.unique(number[inside], return_inverse=True)
        acquired = [name for name, there in zip(self.modalities, present.tolist(), strict=True) if there]
        guide = next((self.modalities.index(name) for name in chosen.guide if name in acquired), None)
        seen = torch.zeros_like(inside, dtype=torch.float32) if guide is None else batch.image[sample, guide].float()
        score = torch.zeros(len(names), device=of.device).index_add_(0, of, seen[inside]) / of.bincount()
        odds = (score / chosen.temperature).softmax(0).clamp_min(1e-12)  # every supervoxel can be drawn
        drawn = torch.multinomial(odds, min(chosen.hide, len(names)), generator=rng)
        return torch.isin(number, names[drawn])

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Mean squared error over what is hidden, and over what is not."""
        restored = self.restore(self.network(views.visible, views.present)).float()
        error = (restored - views.target).square()
        return Losses(
            {"restore": masked_mean(error, views.hidden), "beside": masked_mean(error, views.beside)},
            {"beside": self.settings.outside_weight},
            slope_note(restored.detach(), views.target, views.hidden, self.modalities),
        )

    def export(self) -> nn.Module:
        """Encoder and decoder; the head stays behind."""
        return self.network


METHOD = Supervoxel
