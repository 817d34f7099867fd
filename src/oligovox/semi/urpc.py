"""URPC, uncertainty rectified pyramid consistency: every resolution of the decoder says what is where nobody looked, and each agrees with their mean.

Source: Luo et al. 2022 (URPC, Medical Image Analysis 80, 102517; arXiv 2012.07042); the formula and its weight as in the public 3-D code
    SSL4MIS (Luo et al., HiLab-git/SSL4MIS).
Deviates: the resolutions are those that `segmentation` supervises, three instead of four, and its supervised part is kept: coarser labels, halved
    weights; voxels that nobody looked at are counted, in each sample apart; each of several regions is a question of its own; no dropout in the
    decoder; the supervised part is a sum of Dice and cross-entropy where the release has their mean, so a weight counts half; the ramp is a share
    of the training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.errors import SettingsError
from oligovox.losses.consistency import ramp
from oligovox.losses.masked import masked_mean
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.encoder import Encoder
from oligovox.sample.batch import Batch
from oligovox.tasks import segmentation


class Settings(base.Settings):
    """Choices of the pyramid consistency; how many resolutions there are is `task.deep_supervision`."""

    task: segmentation.Settings = Field(
        segmentation.Settings(), description="of the supervised part; deep_supervision: 2 or more, release: 4"
    )
    weight: float = Field(0.1, ge=0, description="of the difference between the resolutions, once it has risen")
    ramp: float = Field(1.0, ge=0, le=1, description="share of the training in which the weight rises")


@dataclass(frozen=True)
class Views:
    """What is shown, as it is.

    Attributes:
        image: augmented before.
        present: acquired sequences.
        label: -1 where nobody looked.
        unlooked: voxels on which the resolutions are compared.
    """

    image: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    label: Int[Tensor, "b x y z"]
    unlooked: Bool[Tensor, "b x y z"]


@final
class URPC(Method[Views]):
    """The supervised task, of which the resolutions agree.

    Raises:
        SettingsError: a single resolution is supervised, so that there is nothing to compare.
    """

    needs = Needs(labels=True, unlabelled=True)

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.task = segmentation.Segmentation(encoder, settings.task)
        if len(self.task.strides) < 2:
            raise SettingsError(
                f"urpc: compares the decoder's resolutions and finds one (task.deep_supervision = {settings.task.deep_supervision}); "
                "set it to 2 or more, and take a network with at least three levels"
            )

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """The batch; nothing is drawn."""
        seen = self.task.views(batch, rng)
        return Views(seen.image, seen.present, seen.label, batch.unlooked)

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Supervised terms, and the rectified difference from the mean with a weight that rises."""
        scales = self.task.scales(views.image, views.present)
        differ = rectified_difference(self._log_probability(scales), views.unlooked)
        weight = self.settings.weight * ramp(clock.progress, self.settings.ramp)
        return Losses(self.task.supervised(scales, views.label) | {"consistency": differ}, {"consistency": weight})

    def _log_probability(self, scales: Sequence[Tensor]) -> Float[Tensor, "s b q a x y z"]:
        """Of the answers a to each question q, at full resolution: one question, which class, or for each region whether it is there."""
        size = scales[0].shape[2:]
        full = [scales[0].float(), *(nn.functional.interpolate(s.float(), size, mode="trilinear") for s in scales[1:])]
        logits = torch.stack(full)
        if self.settings.task.mode == "regions":
            asked = torch.stack([torch.zeros_like(logits), logits], dim=3)
        else:
            asked = logits[:, :, None]
        return asked.log_softmax(3)

    def export(self) -> nn.Module:
        """The network at full resolution."""
        return self.task.network


def rectified_difference(
    log_probability: Float[Tensor, "s b q a x y z"], counted: Bool[Tensor, "b x y z"]
) -> Float[Tensor, ""]:
    """Mean over resolutions of Σ e⁻ᴰ (p̄ − p)² / Σ e⁻ᴰ + mean D with D = KL(p̄ ‖ p): where a resolution is far off, its difference counts less.

    Both parts are taken over a sample's counted voxels, then averaged over questions and over the samples that have any; 0 where all agree.

    Args:
        log_probability: of each resolution s, sample b, question q and answer a, at full resolution.
        counted: False where the difference does not matter.
    """
    log_mean = log_probability.logsumexp(0) - math.log(len(log_probability))
    mean, inside = log_mean.exp(), counted[:, None].expand(-1, log_mean.shape[1], -1, -1, -1)
    parts = []
    for each in log_probability:
        divergence = (mean * (log_mean - each)).sum(2)
        distance = (mean - each.exp()).square().mean(2)
        trust = (-divergence).exp() * inside
        parts.append(masked_mean(distance, trust, (2, 3, 4)) + masked_mean(divergence, inside, (2, 3, 4)))
    return masked_mean(torch.stack(parts).mean((0, 2)), counted.flatten(1).any(1))


METHOD = URPC
