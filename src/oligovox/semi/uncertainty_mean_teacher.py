"""Uncertainty-aware mean teacher: the averaged copy is believed only where it says the same again and again.

Source: Yu et al. 2019 (Uncertainty-aware self-ensembling model for semi-supervised 3D left atrium segmentation, MICCAI, arXiv 1907.07034);
    passes, threshold, noise, momentum, weight and ramp as in its release and in the public 3-D code SSL4MIS (Luo et al., HiLab-git/SSL4MIS).
Deviates: channels of the deepest and the last feature are hidden in the uncertain passes only, because networks here have no dropout layers; the
    difference counts foreground voxels that nobody looked at; entropy is over ln C for C classes, and each region is believed or not by its own,
    over ln 2; the ramp of the weight is a share of the training; the supervised part is that of `segmentation`, a sum of Dice and cross-entropy
    where the release has their mean, so a weight counts half.
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
from oligovox.losses.consistency import entropy, ramp, samples_with
from oligovox.losses.masked import masked_mean
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.compose import SegmentationNetwork
from oligovox.networks.encoder import Encoder
from oligovox.networks.teacher import Teacher, warm_momentum
from oligovox.sample.batch import Batch
from oligovox.sample.disturb import small_noise
from oligovox.tasks import segmentation


class Settings(base.Settings):
    """Choices of the uncertainty-aware mean teacher."""

    task: segmentation.Settings = Field(segmentation.Settings(), description="of the supervised part")
    weight: float = Field(0.1, ge=0, description="of the difference from the teacher, once it has risen")
    ramp: float = Field(1.0, ge=0, le=1, description="share of the training in which the weight rises")
    noise: float = Field(
        0.1, ge=0, description="standard deviation of the noise on what the teacher sees, cut at twice that"
    )
    passes: int = Field(8, ge=1, description="of the teacher, each with other noise and dropout, for its uncertainty")
    dropout: float = Field(
        0.3,
        ge=0,
        lt=1,
        description="probability that a channel of the deepest or the last feature is hidden in such a pass",
    )
    threshold: float = Field(
        0.75, ge=0, description="share of the largest entropy below which the teacher is believed, at first …"
    )
    threshold_last: float = Field(1.0, ge=0, description="… and at last; it moves as the ramp does, over all steps")
    momentum: float = Field(0.99, ge=0, le=1, description="of the teacher's weights, once it has risen")
    predict_with: Literal["student", "teacher"] = Field("student", description="which of the two leaves training")


@dataclass(frozen=True)
class Views:
    """What both see. Of b samples, u have voxels that nobody looked at; the teacher sees these only.

    Attributes:
        image: what the student sees.
        present: acquired sequences.
        label: -1 where nobody looked.
        rows: which samples the teacher sees.
        noisy: what it sees when it says what is there.
        passes: what it sees to find out how certain it is.
        kept: factor of each channel, (t, u, channels, 1, 1, 1), of its deepest and its last feature in these passes: 0, or what keeps the mean.
        unlooked: voxels on which the two are compared where the teacher is certain.
    """

    image: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    label: Int[Tensor, "b x y z"]
    rows: Int[Tensor, " u"]
    noisy: Float[Tensor, "u m x y z"]
    passes: Float[Tensor, "t u m x y z"]
    kept: tuple[Tensor, Tensor]
    unlooked: Bool[Tensor, "u x y z"]


@final
class UncertaintyMeanTeacher(Method[Views]):
    """The supervised task, and a teacher that follows its network and doubts itself."""

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
        """The batch, and its unlabelled part again and again with other noise and dropout."""
        seen, chosen = self.task.views(batch, rng), self.settings
        rows = samples_with(batch.unlooked)
        noisy = small_noise(batch, chosen.noise, rng)[rows]
        part = batch.samples(rows.tolist())
        passes = torch.stack([small_noise(part, chosen.noise, rng) for _ in range(chosen.passes)])
        network = self.task.network
        deep, last = (
            torch.rand(chosen.passes, len(rows), width, 1, 1, 1, generator=rng, device=rng.device) >= chosen.dropout
            for width in (network.encoder.channels[-1], network.decoder.channels[0])
        )
        kept = deep / (1.0 - chosen.dropout), last / (1.0 - chosen.dropout)
        return Views(seen.image, seen.present, seen.label, rows, noisy, passes, kept, batch.unlooked[rows])

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Supervised terms, and mean (p − p')² where the teacher is certain, with a weight that rises."""
        scales = self.task.scales(views.image, views.present)
        target = self.task.probability(self.teacher(views.noisy, views.present[views.rows]))
        first, last = self.settings.threshold, self.settings.threshold_last
        threshold = first + (last - first) * ramp(clock.progress, 1.0)
        certain = (self._uncertainty(views) < threshold) & views.unlooked[:, None]
        squared = (self.task.probability(scales[0][views.rows]) - target).square()
        within = masked_mean(squared, certain.expand_as(squared), dim=(1, 2, 3, 4))
        terms = {"consistency": masked_mean(within, certain.flatten(1).any(1))}
        weight = self.settings.weight * ramp(clock.progress, self.settings.ramp)
        believed = masked_mean(certain.float(), views.unlooked[:, None].expand_as(certain)).item()
        return Losses(
            self.task.supervised(scales, views.label) | terms, {"consistency": weight}, notes={"believed": believed}
        )

    @torch.no_grad()
    def _uncertainty(self, views: Views) -> Float[Tensor, "u #k x y z"]:
        """Entropy of the teacher's mean over the passes, as a share of the largest; one for all classes, or for each region."""
        network, said = self.teacher.module, []
        assert isinstance(network, SegmentationNetwork)
        for image, deep, last in zip(views.passes, *views.kept, strict=True):
            *shallow, deepest = network.encoder(image, views.present[views.rows])
            feature = network.decoder([*shallow, deepest * deep])[0]
            said.append(self.task.probability(network.head(feature * last)))
        return entropy(torch.stack(said).mean(0), exclusive=self.settings.task.mode == "classes")

    def after_step(self, losses: Losses, clock: Clock) -> None:
        """Let the teacher follow."""
        self.teacher.update(self.task.network, warm_momentum(clock.step, self.settings.momentum))

    def export(self) -> nn.Module:
        """The student's network, or the teacher's."""
        return self.teacher.module if self.settings.predict_with == "teacher" else self.task.network


METHOD = UncertaintyMeanTeacher
