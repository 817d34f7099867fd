"""R-Drop: two networks with different first weights, and their Kullback-Leibler divergence, both ways, where nobody looked.

Source: Wu et al. 2021 (R-Drop: regularized dropout for neural networks, NeurIPS, arXiv 2106.14448); two networks in place of two passes with
    dropout, weight and ramp as in the public 3-D code SSL4MIS (Luo et al., HiLab-git/SSL4MIS).
Deviates: softmax and divergence run over the classes; in the release the softmax runs over the last axis, which is one of space, a bug. Voxels
    that nobody looked at are counted; both networks draw their first weights from the same distribution, where the release takes Kaiming's for
    one and Xavier's for the other; the supervised part is that of `segmentation`, a sum of Dice and cross-entropy where the release has their
    mean, so a weight counts half; one optimiser; the ramp is a share of the training.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.losses.consistency import ramp
from oligovox.losses.masked import mean_over_samples
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.encoder import Encoder
from oligovox.networks.redraw import redraw
from oligovox.sample.batch import Batch
from oligovox.tasks import segmentation


class Settings(base.Settings):
    """Choices of R-Drop."""

    task: segmentation.Settings = Field(segmentation.Settings(), description="of the supervised part of both networks")
    weight: float = Field(4.0, ge=0, description="of the divergence, once it has risen")
    ramp: float = Field(1.0, ge=0, le=1, description="share of the training in which the weight rises")


@dataclass(frozen=True)
class Views:
    """What both see.

    Attributes:
        image: augmented before.
        present: acquired sequences.
        label: -1 where nobody looked.
        unlooked: voxels on which the two are compared.
    """

    image: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    label: Int[Tensor, "b x y z"]
    unlooked: Bool[Tensor, "b x y z"]


@final
class RDrop(Method[Views]):
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
        return Views(seen.image, seen.present, seen.label, batch.unlooked)

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Supervised terms of both networks, and their divergence with a weight that rises; both learn from it."""
        first, second = (task.scales(views.image, views.present) for task in (self.task, self.other))
        terms = self.task.supervised(first, views.label)
        terms |= {f"other_{name}": term for name, term in self.other.supervised(second, views.label).items()}
        terms["divergence"] = mean_over_samples(self._divergence(first[0], second[0]), views.unlooked)
        return Losses(terms, {"divergence": self.settings.weight * ramp(clock.progress, self.settings.ramp)})

    def _divergence(
        self, first: Float[Tensor, "b k x y z"], second: Float[Tensor, "b k x y z"]
    ) -> Float[Tensor, "b x y z"]:
        """½ (KL(p ‖ q) + KL(q ‖ p)) of each voxel, in nats; of several regions the mean.

        It is ½ Σ (p − q)(a − b), with a and b the logits: what softmax or sigmoid take off them cancels in the sum.
        """
        p, q = self.task.probability(first), self.other.probability(second)
        parts = 0.5 * (p - q) * (first.float() - second.float())
        return parts.mean(1) if self.settings.task.mode == "regions" else parts.sum(1)

    def export(self) -> nn.Module:
        """The first network."""
        return self.task.network


METHOD = RDrop
