"""Entropy minimisation: the network makes up its mind where nobody looked.

Source: Grandvalet and Bengio 2004 (Semi-supervised learning by entropy minimization, NeurIPS 17); divided by its largest value as in Vu et al.
    2019 (ADVENT, arXiv 1811.12833); weight and ramp as in the public 3-D code SSL4MIS (Luo et al., HiLab-git/SSL4MIS).
Deviates: the entropy counts foreground voxels that nobody looked at (`over: all` counts every voxel of every sample, as SSL4MIS does); where
    regions may overlap it is the mean of theirs, each over ln 2; the supervised part is that of `segmentation`, a sum of Dice and cross-entropy
    where the release has their mean, so a weight counts half; the ramp is a share of the training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.losses.consistency import entropy, ramp
from oligovox.losses.masked import mean_over_samples
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.encoder import Encoder
from oligovox.sample.batch import Batch
from oligovox.tasks import segmentation


class Settings(base.Settings):
    """Choices of entropy minimisation."""

    task: segmentation.Settings = Field(segmentation.Settings(), description="of the supervised part")
    weight: float = Field(0.1, ge=0, description="of the entropy, once it has risen")
    ramp: float = Field(1.0, ge=0, le=1, description="share of the training in which the weight rises")
    over: Literal["unlooked", "all"] = Field(
        "unlooked", description="voxels that count: foreground where nobody looked, or all, labelled ones as well"
    )


@dataclass(frozen=True)
class Views:
    """What the network sees.

    Attributes:
        image: augmented before.
        present: acquired sequences.
        label: -1 where nobody looked.
        counted: voxels of which the entropy is to fall.
    """

    image: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    label: Int[Tensor, "b x y z"]
    counted: Bool[Tensor, "b x y z"]


@final
class EntropyMinimisation(Method[Views]):
    """The supervised task, and the entropy of what its network says."""

    needs = Needs(labels=True, unlabelled=True)

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.task = segmentation.Segmentation(encoder, settings.task)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """The batch as it is; nothing is drawn."""
        seen = self.task.views(batch, rng)
        every = torch.ones_like(batch.unlooked)
        return Views(seen.image, seen.present, seen.label, every if self.settings.over == "all" else batch.unlooked)

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Supervised terms, and the mean entropy, in [0, 1], with a weight that rises."""
        scales = self.task.scales(views.image, views.present)
        undecided = entropy(self.task.probability(scales[0]), exclusive=self.settings.task.mode == "classes")
        terms = {"entropy": mean_over_samples(undecided.mean(1), views.counted)}
        weight = self.settings.weight * ramp(clock.progress, self.settings.ramp)
        return Losses(self.task.supervised(scales, views.label) | terms, {"entropy": weight})

    def export(self) -> nn.Module:
        """The task's network."""
        return self.task.network


METHOD = EntropyMinimisation
