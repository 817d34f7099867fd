"""Adversarial: a second network tells from image and segmentation whether the exam was labelled; the first one learns that it cannot.

Source: Zhang et al. 2017 (DAN: Deep adversarial networks for biomedical image segmentation utilizing unannotated images, MICCAI,
    doi 10.1007/978-3-319-66179-7_47); layers, weight and ramp as in the public 3-D code SSL4MIS (Luo et al., HiLab-git/SSL4MIS).
Deviates: both players learn in one step, by one optimiser at one learning rate, where the release alternates; so the discriminator has norms,
    without which its logits run away. It has a quarter as many channels, convolutions of 3³ instead of 4³, so that every patch fits, and no
    dropout. A sample is labelled where one of its voxels is; samples without foreground count for neither; the supervised part is that of
    `segmentation`, a sum of Dice and cross-entropy where the release has their mean, so a weight counts half; the ramp is a share of the
    training.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import binary_cross_entropy_with_logits

from oligovox import settings as base
from oligovox.losses.consistency import ramp
from oligovox.losses.masked import masked_mean
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.encoder import Encoder
from oligovox.sample.batch import Batch
from oligovox.tasks import segmentation


class Settings(base.Settings):
    """Choices of the adversarial strategy."""

    task: segmentation.Settings = Field(segmentation.Settings(), description="of the supervised part")
    weight: float = Field(0.1, ge=0, description="of passing for labelled, once it has risen")
    ramp: float = Field(1.0, ge=0, le=1, description="share of the training in which the weight rises")
    width: int = Field(16, ge=1, description="channels of the discriminator's first layer; release: 64")


@dataclass(frozen=True)
class Views:
    """What is shown, and what the discriminator should say.

    Attributes:
        image: augmented before.
        present: acquired sequences.
        label: -1 where nobody looked.
        labelled: samples with a labelled voxel.
        counted: samples with foreground.
    """

    image: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    label: Int[Tensor, "b x y z"]
    labelled: Bool[Tensor, "b"]
    counted: Bool[Tensor, "b"]


@final
class Adversarial(Method[Views]):
    """The supervised task and a discriminator, which stays behind."""

    needs = Needs(labels=True, unlabelled=True, whole_cases=True)

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.task = segmentation.Segmentation(encoder, settings.task)
        seen = self.task.network.head.out_channels + len(encoder.modalities)
        self.discriminator = _discriminator(seen, settings.width)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """The batch; nothing is drawn."""
        seen = self.task.views(batch, rng)
        labelled, counted = (seen.label >= 0).flatten(1).any(1), batch.foreground.flatten(1).any(1)
        return Views(seen.image, seen.present, seen.label, labelled, counted)

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Supervised terms; what the discriminator gets wrong; and, with a weight that rises, what it does not take for labelled.

        Each player's gradient is that of its own term: the discriminator is shown probabilities without a graph, the network asks
        a discriminator of frozen weights.
        """
        scales = self.task.scales(views.image, views.present)
        probability = self.task.probability(scales[0])
        frozen = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        asked = functional_call(self.discriminator, frozen, torch.cat([probability, views.image], 1))
        told = self.discriminator(torch.cat([probability.detach(), views.image], 1))
        terms = self.task.supervised(scales, views.label) | {
            "tell_apart": _cross_entropy(told, views.labelled, views.counted),
            "pass": _cross_entropy(asked, torch.ones_like(views.labelled), views.counted & ~views.labelled),
        }
        return Losses(terms, {"pass": self.settings.weight * ramp(clock.progress, self.settings.ramp)})

    def export(self) -> nn.Module:
        """The network; the discriminator stays behind."""
        return self.task.network


def _discriminator(channels: int, width: int) -> nn.Sequential:
    """(b, channels, x, y, z) → (b, 1), the logit of being labelled: four convolutions that halve the grid, and the mean over it.

    Norms are over a sample's channels and voxels at once: no sample depends on the others, and a single voxel can be normalised.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise((channels, width, 2 * width, 4 * width, 8 * width)):
        norm = (
            nn.GroupNorm(1, after) if layers else nn.Identity()
        )  # the first layer sees intensities and amounts as they are
        layers += [nn.Conv3d(before, after, 3, stride=2, padding=1), norm, nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8 * width, 1))


def _cross_entropy(
    logit: Float[Tensor, "b 1"], labelled: Bool[Tensor, "b"], counted: Bool[Tensor, "b"]
) -> Float[Tensor, ""]:
    """In nats, mean over counted samples."""
    error = binary_cross_entropy_with_logits(logit[:, 0].float(), labelled.float(), reduction="none")
    return masked_mean(error, counted)


METHOD = Adversarial
