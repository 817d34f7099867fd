"""Cross pseudo supervision: two networks with different first weights, each taught by what the other calls a voxel that nobody looked at.

Source: Chen et al. 2021 (Semi-supervised semantic segmentation with cross pseudo supervision, CVPR, arXiv 2106.01226); weight and ramp as in the
    public 3-D code SSL4MIS (Luo et al., HiLab-git/SSL4MIS).
Deviates: voxels that nobody looked at are counted (`over: all` is the paper's); both networks draw their first weights from the same
    distribution, where the release takes Kaiming's for one and Xavier's for the other; regions are told at a probability of one half; the
    supervised part is that of `segmentation`, a sum of Dice and cross-entropy where the release has their mean, so a weight counts half; one
    optimiser; the ramp is a share of the training.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.losses.consistency import ramp
from oligovox.losses.dice import binary_cross_entropy, cross_entropy
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.encoder import Encoder
from oligovox.networks.redraw import redraw
from oligovox.sample.batch import Batch
from oligovox.tasks import segmentation


class Settings(base.Settings):
    """Choices of cross pseudo supervision."""

    task: segmentation.Settings = Field(segmentation.Settings(), description="of the supervised part of both networks")
    weight: float = Field(0.1, ge=0, description="of what each learns from the other, once it has risen")
    ramp: float = Field(1.0, ge=0, le=1, description="share of the training in which the weight rises")
    over: Literal["unlooked", "all"] = Field(
        "unlooked", description="where each learns from the other: foreground where nobody looked, or all; paper: all"
    )


@dataclass(frozen=True)
class Views:
    """What both see.

    Attributes:
        image: augmented before.
        present: acquired sequences.
        label: -1 where nobody looked.
        told: voxels at which each learns from the other.
    """

    image: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    label: Int[Tensor, "b x y z"]
    told: Bool[Tensor, "b x y z"]


@final
class CrossPseudo(Method[Views]):
    """The supervised task twice. The first network leaves training."""

    needs = Needs(labels=True, unlabelled=True)

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.task = segmentation.Segmentation(encoder, settings.task)
        self.other = segmentation.Segmentation(deepcopy(encoder), settings.task)
        redraw(self.other.network.encoder)

    def begin(self, load: Callable[[nn.Module], None]) -> None:
        """The first network takes over the start, the other one its encoder only, so that the two still differ."""
        load(self.task.network)
        load(nn.ModuleDict({"encoder": self.other.network.encoder}))

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """The batch; nothing is drawn."""
        seen = self.task.views(batch, rng)
        told = torch.ones_like(batch.unlooked) if self.settings.over == "all" else batch.unlooked
        return Views(seen.image, seen.present, seen.label, told)

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Supervised terms of both networks, and what each learns from the other, with a weight that rises."""
        first, second = (task.scales(views.image, views.present) for task in (self.task, self.other))
        terms = self.task.supervised(first, views.label)
        terms |= {f"other_{name}": term for name, term in self.other.supervised(second, views.label).items()}
        terms["pseudo"] = self._from_other(first[0], second[0], views) + self._from_other(second[0], first[0], views)
        return Losses(terms, {"pseudo": self.settings.weight * ramp(clock.progress, self.settings.ramp)})

    def _from_other(
        self, logits: Float[Tensor, "b k x y z"], other: Float[Tensor, "b k x y z"], views: Views
    ) -> Float[Tensor, ""]:
        """Cross-entropy with the other's answer, made hard: the likeliest class, or every region with p > 1/2."""
        if self.settings.task.mode == "regions":
            return binary_cross_entropy(logits, other.detach() > 0, views.told)
        return cross_entropy(logits, other.detach().argmax(1), views.told)

    def export(self) -> nn.Module:
        """The first network."""
        return self.task.network


METHOD = CrossPseudo
