"""Strong and weak: what an averaged copy is sure of in an image as it is, the network learns to say of the same image strongly changed.

Source: Sohn et al. 2020 (FixMatch, arXiv 2001.07685) for the threshold; Yang et al. 2023 (UniMatch: Revisiting weak-to-strong consistency in
    semi-supervised semantic segmentation, CVPR, arXiv 2208.09910) for several strong views, boxes of another image, the view whose channels are
    hidden, and how these are weighed; Yang et al. 2024 (UniMatch V2, arXiv 2410.10777) for the averaged copy.
Deviates: in 3-D; strong views differ by the intensity effects of nnU-Net, not by jittered colours; the loss is cross-entropy and, by the part
    that is sure, Dice; all of it rises with the training, as our heads begin sure of background everywhere; only voxels that nobody looked at teach, each overlapping region by its own certainty; boxes go between samples with the
    same sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from oligovox import settings as base
from oligovox.losses.consistency import ramp, samples_with
from oligovox.losses.dice import dice_loss
from oligovox.losses.masked import masked_mean, mean_over_samples
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.encoder import Encoder
from oligovox.networks.teacher import Teacher, warm_momentum
from oligovox.sample.augment import EFFECTS, Augmentation, augment
from oligovox.sample.batch import Batch
from oligovox.sample.masks import random_box, spread
from oligovox.tasks import segmentation

_BOX = (0.272, 0.736)
"""Shortest and longest side of a box as a share of the patch's: 2 % and 40 % of its volume, as UniMatch has it of the area."""


class Settings(base.Settings):
    """Choices of strong and weak."""

    task: segmentation.Settings = Field(segmentation.Settings(), description="of the supervised part")
    weight: float = Field(1.0, ge=0, description="of all that is learned from the teacher")
    ramp: float = Field(1.0, ge=0, le=1, description="share of the training in which the weight rises; papers: 0")
    threshold: float = Field(0.95, ge=0, le=1, description="probability from which the teacher is sure")
    strong_views: int = Field(2, ge=1, description="strong views of an image in each step")
    strength: float = Field(
        4.0, ge=0, description="factor on the probability of each of nnU-Net's intensity effects in a strong view"
    )
    boxes: float = Field(0.5, ge=0, le=1, description="probability that a strong view has a box of another image")
    dropout: float = Field(
        0.5, ge=0, lt=1, description="probability that a channel of a feature is hidden in the dropout view"
    )
    dropout_share: float = Field(
        0.5, ge=0, le=1, description="part of the weight that the dropout view has; the strong views share the rest"
    )
    momentum: float = Field(
        0.99, ge=0, le=1, description="of the teacher's weights, once it has risen; 0: it is the network itself"
    )
    predict_with: Literal["student", "teacher"] = Field("student", description="which of the two leaves training")


@dataclass(frozen=True)
class Views:
    """The batch, and v strong views of its u samples with voxels that nobody looked at.

    Attributes:
        image: as it came: the weak view.
        present: acquired sequences.
        label: -1 where nobody looked.
        rows: which samples are to be learned from the teacher.
        unlooked: their voxels that count.
        strong: their strong views.
        boxes: where a strong view shows the sample before it.
        kept: of each feature, shallow to deep, a factor of each channel: 0, or what keeps the mean.
    """

    image: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    label: Int[Tensor, "b x y z"]
    rows: Int[Tensor, " u"]
    unlooked: Bool[Tensor, "u x y z"]
    strong: Float[Tensor, "v u m x y z"]
    boxes: Bool[Tensor, "v u x y z"]
    kept: tuple[Tensor, ...]


@final
class StrongWeak(Method[Views]):
    """The supervised task, and a teacher that follows its network and speaks where it is sure."""

    needs = Needs(labels=True, unlabelled=True)

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.task = segmentation.Segmentation(encoder, settings.task)
        self.teacher = Teacher(self.task.network)
        often = {name: min(1.0, settings.strength * getattr(Augmentation(), name)) for name in EFFECTS[4:]}
        self.effects = Augmentation.only(**often)

    def begin(self, load: Callable[[nn.Module], None]) -> None:
        """The student takes over the start, the teacher the student."""
        load(self.task.network)
        self.teacher.update(self.task.network, 0.0)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """The batch, its unlabelled part strongly changed, with boxes cut in, and the channels to hide."""
        seen, rows = self.task.views(batch, rng), samples_with(batch.unlooked)
        part = replace(batch.samples(rows.tolist()), label=None)
        boxes = self._boxes(part, rng)
        changed = torch.stack([augment(part, self.effects, rng).image for _ in boxes])
        strong = torch.stack([_cut_in(image, box) for image, box in zip(changed, boxes, strict=True)])
        return Views(
            seen.image, seen.present, seen.label, rows, batch.unlooked[rows], strong, boxes, self._kept(part, rng)
        )

    def _boxes(self, part: Batch, rng: torch.Generator) -> Bool[Tensor, "v u x y z"]:
        """A box or none in each strong view; none where the sample before has other sequences."""
        views, (samples, _, x, y, z) = self.settings.strong_views, part.image.shape
        shortest, longest = (
            torch.tensor([[max(1, int(share * side)) for side in (x, y, z)]], device=rng.device) for share in _BOX
        )
        box = random_box((views * samples, x, y, z), shortest, longest, rng).view(views, samples, x, y, z)
        drawn = torch.rand(views, samples, generator=rng, device=rng.device) < self.settings.boxes
        alike = (part.present == part.present.roll(1, 0)).all(1)
        return box & spread(drawn & alike)

    def _kept(self, part: Batch, rng: torch.Generator) -> tuple[Tensor, ...]:
        channels, hidden = self.task.network.encoder.channels, self.settings.dropout
        draws = [torch.rand(len(part), width, 1, 1, 1, generator=rng, device=rng.device) for width in channels]
        return tuple((draw >= hidden) / (1.0 - hidden) for draw in draws)

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Supervised terms; what the teacher is sure of, in the mean strong view and in the view with hidden channels."""
        network, weak, present = self.task.network, views.image[views.rows], views.present[views.rows]
        scales = self.task.scales(views.image, views.present)
        said = self.task.probability(self.teacher(weak, present))
        strong = [
            self._follow(network(image, present), _cut_in(said, box), _cut_in(views.unlooked[:, None], box)[:, 0])
            for image, box in zip(views.strong, views.boxes, strict=True)
        ]
        features = [f * kept for f, kept in zip(network.encoder(weak, present), views.kept, strict=True)]
        dropout = self._follow(network.head(network.decoder(features)[0]), said, views.unlooked)
        terms = {"strong": torch.stack(strong).mean(), "dropout": dropout}
        weight, share = self.settings.weight * ramp(clock.progress, self.settings.ramp), self.settings.dropout_share
        sure, answer = self._decided(said)
        found = answer if self.settings.task.mode == "regions" else answer[:, 1:]
        notes = {"sure": sure, "sure_lesion": (sure & found).any(1, keepdim=True)}
        return Losses(
            self.task.supervised(scales, views.label) | terms,
            {"strong": weight * (1.0 - share), "dropout": weight * share},
            notes={
                name: masked_mean(of.float(), views.unlooked[:, None].expand_as(of)).item()
                for name, of in notes.items()
            },
        )

    def _follow(
        self, logits: Float[Tensor, "u k x y z"], said: Float[Tensor, "u k x y z"], counted: Bool[Tensor, "u x y z"]
    ) -> Float[Tensor, ""]:
        """Dice loss and cross-entropy against what the teacher is sure of; little is learned while little is sure.

        Elsewhere a voxel costs 0 in the mean cross-entropy and has no part in Dice, which weighs as much as the part of the sample that has.
        """
        sure, target = self._decided(said)
        probability, regions = self.task.probability(logits), self.settings.task.mode == "regions"
        compare = F.binary_cross_entropy_with_logits if regions else F.cross_entropy
        error = compare(logits.float(), target.float(), reduction="none").view(len(sure), -1, *sure.shape[2:])
        outputs = slice(None) if regions else slice(1, None)  # background has no Dice of its own
        known, right = probability.where(sure, 0.0)[:, outputs], (target & sure)[:, outputs]
        dice = torch.stack([dice_loss(known[[i]], right[[i]], counted[[i]]) for i in range(len(sure))])
        part = masked_mean(sure.float().mean(1), counted, dim=(1, 2, 3))
        return masked_mean(part * dice, counted.flatten(1).any(1)) + mean_over_samples((error * sure).mean(1), counted)

    def _decided(
        self, said: Float[Tensor, "u k x y z"]
    ) -> tuple[Bool[Tensor, "u #k x y z"], Bool[Tensor, "u k x y z"]]:
        """Where the teacher is sure, of the class or of each region, and what it takes to be there."""
        if self.settings.task.mode == "regions":
            return torch.maximum(said, 1.0 - said) >= self.settings.threshold, said > 0.5
        likely = F.one_hot(said.argmax(1), said.shape[1]).movedim(-1, 1).bool()
        return said.amax(1, keepdim=True) >= self.settings.threshold, likely

    def after_step(self, losses: Losses, clock: Clock) -> None:
        """Let the teacher follow."""
        self.teacher.update(self.task.network, warm_momentum(clock.step, self.settings.momentum))

    def export(self) -> nn.Module:
        """The student's network, or the teacher's."""
        return self.teacher.module if self.settings.predict_with == "teacher" else self.task.network


def _cut_in(values: Tensor, box: Bool[Tensor, "u x y z"]) -> Tensor:
    """Values (u, c, x, y, z), inside the box those of the sample before."""
    return values.roll(1, 0).where(box[:, None], values)


METHOD = StrongWeak
