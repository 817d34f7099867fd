"""Hidden sequences: every patch is shown whole and with some of its sequences hidden, and what is said of the part agrees with what is said of the whole.

Source: ours. Kin: distillation from all sequences to fewer (Hu et al. 2020, KD-Net, arXiv 2003.11216; Liu et al. 2023, M3AE, arXiv 2303.05302, which
    draws two subsets and lets them agree).
Deviates: one network is both teacher and pupil, without gradient into what it says of the whole, so the whole is shown as often and taught the same as without this; where
    nobody looked, the whole teaches as well; which sequences are hidden is drawn anew for each patch, any number of them as often.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from oligovox import settings as base
from oligovox.losses.consistency import ramp
from oligovox.losses.masked import mean_over_samples
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.encoder import Encoder
from oligovox.sample.batch import Batch
from oligovox.sample.masks import by_sequence, in_channels, some_of
from oligovox.tasks import segmentation


class Settings(base.Settings):
    """Choices of training with hidden sequences."""

    task: segmentation.Settings = Field(segmentation.Settings(), description="of the supervised part")
    hidden: float = Field(1.0, ge=0, description="weight of the supervised terms of what is shown in part")
    weight: float = Field(1.0, ge=0, description="of the agreement with the whole, once it has risen")
    ramp: float = Field(1.0, ge=0, le=1, description="share of the training in which that weight rises")


@dataclass(frozen=True)
class Views:
    """What is shown, twice.

    Attributes:
        image: augmented before.
        present: acquired sequences.
        shown: those of them that the second pass is shown; one of them at least, and not all where there are two or more.
        label: -1 where nobody looked.
        foreground: voxels on which part and whole are to agree.
    """

    image: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    shown: Bool[Tensor, "b m"]
    label: Int[Tensor, "b x y z"]
    foreground: Bool[Tensor, "b x y z"]


@final
class HiddenSequences(Method[Views]):
    """The supervised task on the whole and on a part, and what the one says of the other."""

    needs = Needs(labels=True)

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.task = segmentation.Segmentation(encoder, settings.task)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Draw which sequences stay."""
        seen = self.task.views(batch, rng)
        there = by_sequence(seen.present, batch.modalities)
        score = torch.rand(there.shape, generator=rng, device=rng.device)
        share = torch.rand(len(score), generator=rng, device=rng.device)
        shown = in_channels(some_of(there, score, share), seen.present, batch.modalities)
        return Views(seen.image, seen.present, shown, seen.label, batch.foreground[:, 0])

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Supervised terms of both passes, and the divergence of the part from the whole with a weight that rises."""
        chosen = self.settings
        whole = self.task.scales(views.image, views.present)
        part = self.task.scales(views.image * views.shown[:, :, None, None, None], views.shown)
        terms = self.task.supervised(whole, views.label)
        hidden = {f"hidden_{name}": term for name, term in self.task.supervised(part, views.label).items()}
        terms |= hidden | {
            "agreement": mean_over_samples(self._divergence(whole[0].detach(), part[0]), views.foreground)
        }
        rising = chosen.weight * ramp(clock.progress, chosen.ramp)
        return Losses(terms, dict.fromkeys(hidden, chosen.hidden) | {"agreement": rising})

    def _divergence(
        self, whole: Float[Tensor, "b k x y z"], part: Float[Tensor, "b k x y z"]
    ) -> Float[Tensor, "b x y z"]:
        """KL(whole ‖ part) of each voxel in nats; of several regions, each a question with two answers, the mean."""
        whole, part = whole.float(), part.float()
        if self.settings.task.mode == "classes":
            p = whole.softmax(1)
            return (p * (whole.log_softmax(1) - part.log_softmax(1))).sum(1)
        p = whole.sigmoid()
        yes, no = logsigmoid(whole) - logsigmoid(part), logsigmoid(-whole) - logsigmoid(-part)
        return (p * yes + (1.0 - p) * no).mean(1)

    def export(self) -> nn.Module:
        """The network of the task."""
        return self.task.network


METHOD = HiddenSequences
