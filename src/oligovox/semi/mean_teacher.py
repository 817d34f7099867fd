"""Mean teacher: a slowly averaged copy of the network says, under other noise, what is where nobody looked.

Source: Tarvainen and Valpola 2017 (Mean teachers are better role models, arXiv 1703.01780); noise, momentum, weight and ramp as in the
    public 3-D code SSL4MIS (Luo et al., HiLab-git/SSL4MIS).
Deviates: the difference counts foreground voxels that nobody looked at, so sparsely labelled exams teach in both ways; the supervised part is
    that of `segmentation`, deep supervision included, a sum of Dice and cross-entropy where the release has their mean, so a weight counts half;
    the ramp is a share of the training; noise is in standard deviations of the foreground.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.losses.consistency import ramp, squared_difference
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.encoder import Encoder
from oligovox.networks.teacher import Teacher, warm_momentum
from oligovox.sample.batch import Batch
from oligovox.sample.disturb import small_noise
from oligovox.tasks import segmentation


class Settings(base.Settings):
    """Choices of the mean teacher."""

    task: segmentation.Settings = Field(segmentation.Settings(), description="of the supervised part")
    weight: float = Field(0.1, ge=0, description="of the difference from the teacher, once it has risen")
    ramp: float = Field(1.0, ge=0, le=1, description="share of the training in which the weight rises")
    noise: float = Field(
        0.1, ge=0, description="standard deviation of the noise on what the teacher sees, cut at twice that"
    )
    momentum: float = Field(0.99, ge=0, le=1, description="of the teacher's weights, once it has risen")
    predict_with: Literal["student", "teacher"] = Field("student", description="which of the two leaves training")


@dataclass(frozen=True)
class Views:
    """What both see.

    Attributes:
        image: what the student sees.
        noisy: what the teacher sees.
        present: acquired sequences.
        label: -1 where nobody looked.
        unlooked: voxels on which the two are compared.
    """

    image: Float[Tensor, "b m x y z"]
    noisy: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    label: Int[Tensor, "b x y z"]
    unlooked: Bool[Tensor, "b x y z"]


@final
class MeanTeacher(Method[Views]):
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
        """The batch, and the same with noise."""
        seen = self.task.views(batch, rng)
        noisy = small_noise(batch, self.settings.noise, rng)
        return Views(seen.image, noisy, seen.present, seen.label, batch.unlooked)

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Supervised terms, and mean (p − p')² with a weight that rises."""
        scales = self.task.scales(views.image, views.present)
        target = self.task.probability(self.teacher(views.noisy, views.present))
        differs = squared_difference(self.task.probability(scales[0]), target, views.unlooked)
        weight = self.settings.weight * ramp(clock.progress, self.settings.ramp)
        return Losses(self.task.supervised(scales, views.label) | {"consistency": differs}, {"consistency": weight})

    def after_step(self, losses: Losses, clock: Clock) -> None:
        """Let the teacher follow."""
        self.teacher.update(self.task.network, warm_momentum(clock.step, self.settings.momentum))

    def export(self) -> nn.Module:
        """The student's network, or the teacher's."""
        return self.teacher.module if self.settings.predict_with == "teacher" else self.task.network


METHOD = MeanTeacher
