"""Cross-consistency training: where nobody looked, decoders that see disturbed features learn to say what the main decoder says.

Source: Ouali et al. 2020 (Semi-supervised semantic segmentation with cross-consistency training, CVPR, arXiv 2003.09005): feature noise, feature
    drop and spatial dropout; that skips are disturbed as well, weight and ramp as in the public 2-D code SSL4MIS (Luo et al., HiLab-git/SSL4MIS).
Deviates: in 3-D; one decoder for each of three disturbances, where the paper's release has up to six for each of seven; noise and dropout differ
    from sample to sample; what is active is scaled between a feature's lowest and highest mean, which may be negative; voxels that nobody looked
    at are counted; the supervised part is a sum of Dice and cross-entropy where the release has their mean, so a weight counts half; the ramp is
    a share of the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, field_validator
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.losses.consistency import ramp, samples_with, squared_difference
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.decoder import Decoder
from oligovox.networks.encoder import Encoder
from oligovox.sample.batch import Batch
from oligovox.tasks import segmentation


class Settings(base.Settings):
    """Choices of cross-consistency training."""

    task: segmentation.Settings = Field(segmentation.Settings(), description="of the supervised part")
    weight: float = Field(0.1, ge=0, description="of the difference from the main decoder, once it has risen")
    ramp: float = Field(1.0, ge=0, le=1, description="share of the training in which the weight rises")
    noise: float = Field(0.3, ge=0, description="feature noise: largest change of a value, as a share of it")
    drop_above: tuple[float, float] = Field(
        (0.7, 0.9), description="feature drop: range of the level, from 0 to 1, above which active voxels are hidden"
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="spatial dropout: probability that a channel is hidden")

    @field_validator("drop_above")
    @classmethod
    def _in_order(cls, limits: tuple[float, float]) -> tuple[float, float]:
        base.ascending("drop_above", limits, 0.0, 1.0)
        return limits


@dataclass(frozen=True)
class Views:
    """What is shown, and how features will be disturbed. Of b samples, u have voxels that nobody looked at; the other decoders see these only.

    Attributes:
        image: augmented before.
        present: acquired sequences.
        label: -1 where nobody looked.
        rows: which samples the other decoders see.
        unlooked: voxels on which they are compared with the main one.
        noise: factor of each value of each feature, (u, channels, x / stride, …), shallow to deep.
        drop_above: level of activity above which a voxel is hidden.
        kept: factor of each channel of each feature, (u, channels, 1, 1, 1), shallow to deep: 0, or what keeps the mean.
    """

    image: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    label: Int[Tensor, "b x y z"]
    rows: Int[Tensor, " u"]
    unlooked: Bool[Tensor, "u x y z"]
    noise: tuple[Tensor, ...]
    drop_above: Float[Tensor, "u 1 1 1 1"]
    kept: tuple[Tensor, ...]


@final
class CrossConsistency(Method[Views]):
    """The supervised task, and three more decoders on its encoder, which learn where nobody looked and stay behind."""

    needs = Needs(labels=True, unlabelled=True)

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.task = segmentation.Segmentation(encoder, settings.task)
        self.decoders = nn.ModuleList(Decoder(encoder.channels, encoder.strides) for _ in range(3))
        channels = self.task.network.head.in_channels
        self.heads = nn.ModuleList(self.task.new_head(channels) for _ in range(3))

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """The batch, and the draws for the features of its unlabelled part."""
        seen, chosen = self.task.views(batch, rng), self.settings
        rows, encoder, sides = samples_with(batch.unlooked), self.task.network.encoder, batch.image.shape[2:]

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(len(rows), *shape, generator=rng, device=rng.device)

        grids = [[side // stride for side in sides] for stride in encoder.strides]
        levels = list(zip(encoder.channels, grids, strict=True))
        noise = tuple(uniform(1.0 - chosen.noise, 1.0 + chosen.noise, channels, *grid) for channels, grid in levels)
        drop_above = uniform(*chosen.drop_above, 1, 1, 1, 1)
        kept = tuple((uniform(0.0, 1.0, c, 1, 1, 1) >= chosen.dropout) / (1.0 - chosen.dropout) for c, _ in levels)
        return Views(seen.image, seen.present, seen.label, rows, batch.unlooked[rows], noise, drop_above, kept)

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Supervised terms of the main decoder, and mean (p_k − p)² of the others with a weight that rises; p is not taught by it."""
        network = self.task.network
        features = network.encoder(views.image, views.present)
        scales = self.task.told(network.decoder(features))
        target = self.task.probability(scales[0].detach()[views.rows])
        shown = _disturbed([feature[views.rows] for feature in features], views)
        differ = [
            squared_difference(self.task.probability(head(decoder(disturbed)[0])), target, views.unlooked)
            for decoder, head, disturbed in zip(self.decoders, self.heads, shown, strict=True)
        ]
        terms = self.task.supervised(scales, views.label) | {"consistency": torch.stack(differ).mean()}
        return Losses(terms, {"consistency": self.settings.weight * ramp(clock.progress, self.settings.ramp)})

    def export(self) -> nn.Module:
        """Encoder, main decoder and its head."""
        return self.task.network


def _disturbed(features: Sequence[Tensor], views: Views) -> list[list[Tensor]]:
    """The features with noise, without what is most active, and without some channels."""
    return [
        [feature * factor for feature, factor in zip(features, views.noise, strict=True)],
        [_without_most_active(feature, views.drop_above) for feature in features],
        [feature * factor for feature, factor in zip(features, views.kept, strict=True)],
    ]


def _without_most_active(
    feature: Float[Tensor, "u c x y z"], level: Float[Tensor, "u 1 1 1 1"]
) -> Float[Tensor, "u c x y z"]:
    """0 at voxels of which the mean over channels lies above `level`, between its lowest (0) and its highest (1) in the sample."""
    activity = feature.detach().float().mean(1, keepdim=True)
    low, high = activity.amin((2, 3, 4), keepdim=True), activity.amax((2, 3, 4), keepdim=True)
    return feature.where(activity <= low.lerp(high, level), 0.0)


METHOD = CrossConsistency
