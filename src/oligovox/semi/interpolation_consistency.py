"""Interpolation consistency: of a mixture of two images the network says the same mixture of what its averaged copy says of each.

Source: Verma et al. 2019 (Interpolation consistency training for semi-supervised learning, arXiv 1903.03825); shares, momentum, weight and ramp
    as in the public 3-D code SSL4MIS (Luo et al., HiLab-git/SSL4MIS).
Deviates: the difference counts foreground voxels where nobody looked at the first of the two; a single such sample is mixed with another of the
    batch; a mixture has the sequences that both have; the supervised part is that of `segmentation`, a sum of Dice and cross-entropy where the
    release has their mean, so a weight counts half; the ramp is a share of the training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from scipy.special import betaincinv
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.losses.consistency import ramp, samples_with, squared_difference
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.encoder import Encoder
from oligovox.networks.teacher import Teacher, warm_momentum
from oligovox.sample.batch import Batch
from oligovox.sample.masks import spread
from oligovox.tasks import segmentation


class Settings(base.Settings):
    """Choices of interpolation consistency."""

    task: segmentation.Settings = Field(segmentation.Settings(), description="of the supervised part")
    weight: float = Field(0.1, ge=0, description="of the difference from the mixed targets, once it has risen")
    ramp: float = Field(1.0, ge=0, le=1, description="share of the training in which the weight rises")
    beta: float = Field(
        0.2, gt=0, description="both parameters of the beta distribution of shares; small: hardly mixed"
    )
    momentum: float = Field(0.99, ge=0, le=1, description="of the teacher's weights, once it has risen")
    predict_with: Literal["student", "teacher"] = Field("student", description="which of the two leaves training")


@dataclass(frozen=True)
class Views:
    """The batch, and a mixture for each of its u samples with voxels that nobody looked at.

    Attributes:
        image: what the teacher sees, and the student for the supervised part.
        present: acquired sequences.
        label: -1 where nobody looked.
        first: sample of each mixture …
        second: … and the one that is mixed into it.
        share: of the second one, in [0, 1].
        mixed: what the student sees for the difference.
        shared: sequences of the mixture.
        unlooked: voxels of the first sample on which the two are compared.
    """

    image: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    label: Int[Tensor, "b x y z"]
    first: Int[Tensor, " u"]
    second: Int[Tensor, " u"]
    share: Float[Tensor, "u 1 1 1 1"]
    mixed: Float[Tensor, "u m x y z"]
    shared: Bool[Tensor, "u m"]
    unlooked: Bool[Tensor, "u x y z"]


@final
class InterpolationConsistency(Method[Views]):
    """The supervised task, and a teacher that follows its network."""

    needs = Needs(labels=True, unlabelled=True)

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.task = segmentation.Segmentation(encoder, settings.task)
        self.teacher = Teacher(self.task.network)

    def begin(self, load: Callable[[nn.Module], None]) -> None:
        """The student takes over the start, the teacher the student."""
        load(self.task.network)
        self.teacher.update(self.task.network, 0.0)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Mix each sample that nobody looked at with the one before it; a single one with the next of the batch.

        Sequences that only one of the two has are left out; where they have none in common, nothing is mixed in.
        """
        seen = self.task.views(batch, rng)
        first = samples_with(batch.unlooked)
        second = first.roll(1) if len(first) > 1 else (first + 1) % len(batch)
        both = seen.present[first] & seen.present[second]
        alike = both.any(1, keepdim=True)
        shared = both.where(alike, seen.present[first])
        share = self._shares(len(first), rng).where(alike, 0.0)[:, :, None, None, None]
        mixed = torch.lerp(seen.image[first], seen.image[second], share) * spread(shared)
        unlooked = batch.unlooked[first]
        return Views(seen.image, seen.present, seen.label, first, second, share, mixed, shared, unlooked)

    def _shares(self, count: int, rng: torch.Generator) -> Float[Tensor, "u 1"]:
        """From the beta distribution: its quantiles at uniform draws, because torch draws it from no generator of ours."""
        level = torch.rand(count, 1, generator=rng, device=rng.device)
        quantile = betaincinv(self.settings.beta, self.settings.beta, level.double().cpu().numpy())
        return torch.from_numpy(quantile).to(level)

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Supervised terms, and mean (p(mixture) − mixture of p')² with a weight that rises."""
        scales = self.task.scales(views.image, views.present)
        said = self.task.probability(self.teacher(views.image, views.present))
        target = torch.lerp(said[views.first], said[views.second], views.share)
        found = self.task.probability(self.task.network(views.mixed, views.shared))
        terms = {"consistency": squared_difference(found, target, views.unlooked)}
        weight = self.settings.weight * ramp(clock.progress, self.settings.ramp)
        return Losses(self.task.supervised(scales, views.label) | terms, {"consistency": weight})

    def after_step(self, losses: Losses, clock: Clock) -> None:
        """Let the teacher follow."""
        self.teacher.update(self.task.network, warm_momentum(clock.step, self.settings.momentum))

    def export(self) -> nn.Module:
        """The student's network, or the teacher's."""
        return self.teacher.module if self.settings.predict_with == "teacher" else self.task.network


METHOD = InterpolationConsistency
