"""Volume fusion: say how much of which of two exams is in each voxel of their mixture.

Source: Wang et al. 2023 (MIS-FM, arXiv 2306.16925): boxes of one volume are fused into another with a few discrete coefficients, and a
    segmentation network predicts the coefficient of each voxel. Number and sides of the boxes as in nnssl (MIC-DKFZ/nnssl).
Deviates: the partner is the next sample of the batch, or the sample's own mirror image where the batch has one; all sequences are
    fused alike, and only those that both have are shown; only the foreground of either is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.losses.dice import cross_entropy, dice_loss
from oligovox.method import Clock, Losses, Method
from oligovox.networks.compose import EncoderDecoder
from oligovox.networks.decoder import Decoder
from oligovox.networks.encoder import Encoder
from oligovox.networks.heads import SegmentationHead
from oligovox.sample.batch import Batch
from oligovox.sample.masks import random_box


def _ordered(limits: tuple[int, int]) -> tuple[int, int]:
    base.ascending("boxes", limits, 1, 1000)
    return limits


class Settings(base.Settings):
    """Choices of volume fusion."""

    steps: int = Field(4, ge=1, description="K: a coefficient is one of 0, 1/K, … 1")
    boxes: Annotated[tuple[int, int], AfterValidator(_ordered)] = Field(
        (10, 40), description="fewest and most boxes in a patch; a later box overwrites an earlier one"
    )
    smallest: int = Field(8, ge=1, description="smallest side of a box in voxels, as far as `largest` allows")
    largest: float = Field(0.625, gt=0, le=1, description="largest side of a box as a share of the patch's side")
    dice_weight: float = Field(1.0, ge=0, description="weight of the Dice loss beside cross-entropy")


@dataclass(frozen=True)
class Views:
    """What is shown, and what is asked for.

    Attributes:
        fused: the mixture; 0 in sequences that not both have.
        present: sequences that both have.
        step: K times the share of the sample itself; the rest is its partner.
        counted: voxels in the foreground of either, in samples that share a sequence with their partner.
    """

    fused: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    step: Int[Tensor, "b x y z"]
    counted: Bool[Tensor, "b x y z"]


@final
class VolumeFusion(Method[Views]):
    """Encoder, decoder and a 1 × 1 × 1 head with a class for each coefficient."""

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.network = EncoderDecoder(encoder, Decoder(encoder.channels, encoder.strides))
        self.classify = SegmentationHead(self.network.decoder.channels[0], settings.steps + 1)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Fuse each sample into its partner, box by box."""
        image, present, foreground = (_partner(v) for v in (batch.image, batch.present, batch.foreground))
        step = self._boxes(batch.foreground[:, 0].shape, rng)
        both = batch.present & present
        share = step[:, None].to(image.dtype) / self.settings.steps
        fused = share * batch.image + (1 - share) * image
        return Views(
            fused=fused.where(both[:, :, None, None, None], 0.0),
            present=both,
            step=step,
            counted=(batch.foreground | foreground)[:, 0] & both.any(1)[:, None, None, None],
        )

    def _boxes(self, shape: torch.Size, rng: torch.Generator) -> Int[Tensor, "b x y z"]:
        """0 outside all boxes; in a box one of 0 … K, the last box wins."""
        chosen, (b, x, y, z) = self.settings, shape
        low, high = chosen.boxes
        draw = torch.rand(1 + high, b, 1, 1, 1, generator=rng, device=rng.device)
        count = low + (draw[0] * (high - low + 1)).long()
        largest = (chosen.largest * torch.tensor([[x, y, z]], device=rng.device)).long().clamp(min=1)
        smallest = largest.clamp(max=chosen.smallest)
        step = torch.zeros((b, x, y, z), dtype=torch.int64, device=rng.device)
        for number, level in enumerate((draw[1:] * (chosen.steps + 1)).long()):
            box = random_box((b, x, y, z), smallest, largest, rng) & (number < count)
            step = level.where(box, step)
        return step

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Cross-entropy and Dice over the K + 1 coefficients."""
        logits = self.classify(self.network(views.fused, views.present)).float()
        truth = F.one_hot(views.step, logits.shape[1]).movedim(-1, 1).bool()
        terms = {
            "cross_entropy": cross_entropy(logits, views.step, views.counted),
            "dice": dice_loss(logits.softmax(1), truth, views.counted),
        }
        return Losses(terms, {"dice": self.settings.dice_weight})

    def export(self) -> nn.Module:
        """Encoder and decoder; the head stays behind."""
        return self.network


def _partner(value: Tensor) -> Tensor:
    """The next sample's; where there is one sample, its own, mirrored along every spatial axis."""
    return value.roll(-1, 0) if len(value) > 1 else value.flip(tuple(range(2, value.ndim)))


METHOD = VolumeFusion
