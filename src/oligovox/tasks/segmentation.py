"""Supervised segmentation of lesions from the cases that are labelled.

Source: Isensee et al. 2021 (nnU-Net, doi 10.1038/s41592-020-01008-z): Dice + cross-entropy, deep supervision.
Deviates: voxels nobody looked at (-1) are left out one by one; losses are means over labelled samples; Dice leaves out
    classes that a patch does not have, where theirs is a constant; see `losses/dice.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.errors import LabelError
from oligovox.losses.dice import binary_cross_entropy, cross_entropy, dice_loss
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.compose import SegmentationNetwork
from oligovox.networks.decoder import Decoder
from oligovox.networks.encoder import Encoder
from oligovox.networks.heads import RARE, SegmentationHead
from oligovox.sample.batch import Batch


class Settings(base.Settings):
    """Choices of supervised segmentation."""

    mode: Literal["classes", "regions"] = Field(
        "classes", description="classes exclude each other (softmax, background first); regions may overlap (sigmoid)"
    )
    labels: dict[str, tuple[int, ...]] = Field(
        {"lesion": (1,)},
        min_length=1,
        description="output → label values it stands for; a list of names stands for 1, 2, …",
    )
    deep_supervision: int = Field(
        3,
        ge=1,
        description="decoder resolutions that are supervised, with weights 1, 1/2, 1/4, … of their sum; 1 is full only",
    )
    prior: float = base.silent(
        RARE,
        gt=0,
        lt=1,
        description="probability of each output before training; 0.5, as without this, lets small lesions wait for hundreds of steps",
    )

    @field_validator("labels", mode="before")
    @classmethod
    def _spelled_out(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            return {name: (values,) if isinstance(values, int) else values for name, values in given.items()}
        return (
            {name: (value,) for value, name in enumerate(given, start=1)} if isinstance(given, (list, tuple)) else given
        )

    @model_validator(mode="after")
    def _sensible(self) -> Settings:
        values = [value for group in self.labels.values() for value in group]
        if not all(self.labels.values()) or min(values) < 1:
            raise ValueError("labels: every output needs a label value, and values start at 1 (0 is background)")
        if self.mode == "classes" and len(set(values)) < len(values):
            raise ValueError(
                "labels: a label value stands in two classes; let classes exclude each other or set mode to regions"
            )
        return self


@dataclass(frozen=True)
class Views:
    """What is shown, and the label (-1 where nobody looked)."""

    image: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    label: Int[Tensor, "b x y z"]


@final
class Segmentation(Method[Views]):
    """Encoder, decoder, a 1 × 1 × 1 head, and one more head for each coarser resolution that is supervised."""

    needs = Needs(labels=True)

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        decoder = Decoder(encoder.channels, encoder.strides)
        self.network = SegmentationNetwork(encoder, decoder, self.new_head(decoder.channels[0]))
        self.strides = decoder.strides[: settings.deep_supervision]
        self.coarser = nn.ModuleList(
            self.new_head(channels) for channels in decoder.channels[1 : settings.deep_supervision]
        )

    def new_head(self, channels: int) -> SegmentationHead:
        """A head for features of so many channels, before training."""
        background = self.settings.mode == "classes"
        head = SegmentationHead(channels, len(self.settings.labels) + background)
        return head.expect(self.settings.prior, background=background)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """The batch as it is; augmentation happened before.

        Raises:
            LabelError: the batch carries no label at all.
        """
        if batch.label is None:
            raise LabelError(
                f"segmentation: no label in the batch of {', '.join(batch.cases)}; mark unlabelled voxels with -1"
            )
        return Views(batch.image, batch.present, batch.label)

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Dice and cross-entropy, each the weighted mean over resolutions; 0 where no voxel is labelled."""
        return Losses(self.supervised(self.scales(views.image, views.present), views.label))

    def scales(self, image: Float[Tensor, "b m x y z"], present: Bool[Tensor, "b m"]) -> tuple[Tensor, ...]:
        """Logits (b, k, x / stride, …) at every supervised resolution, full first. Strategies of `semi/` look at them as well."""
        return self.told(self.network.decoder(self.network.encoder(image, present)))

    def told(self, decoded: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """`scales`, from the decoder's features, full resolution first."""
        heads = [self.network.head, *self.coarser]
        return tuple(head(feature) for head, feature in zip(heads, decoded, strict=False))

    def supervised(self, scales: Sequence[Tensor], label: Int[Tensor, "b x y z"]) -> dict[str, Tensor]:
        """The two terms of `losses`, from logits; voxels of label -1 change neither.

        Args:
            scales: what `scales` gave.
            label: at full resolution; -1 where nobody looked.
        """
        weights = [0.5**level for level in range(len(scales))]
        parts = [
            weight * self._compare(logits, _every(label, stride))
            for weight, logits, stride in zip(weights, scales, self.strides, strict=True)
        ]
        dice, entropy = torch.stack(parts).sum(0) / sum(weights)
        return {"dice": dice, "cross_entropy": entropy}

    def probability(self, logits: Float[Tensor, "b k x y z"]) -> Float[Tensor, "b k x y z"]:
        """In float32: of classes, background first, which sum to 1; or of each region by itself."""
        logits = logits.float()
        return logits.sigmoid() if self.settings.mode == "regions" else logits.softmax(1)

    def _compare(self, logits: Float[Tensor, "b c x y z"], label: Int[Tensor, "b x y z"]) -> Tensor:
        """Dice loss and cross-entropy at one resolution, stacked."""
        counted = label >= 0
        groups = self.settings.labels.values()
        target = torch.stack([torch.isin(label, torch.tensor(g, device=label.device)) for g in groups], dim=1)
        probability = self.probability(logits)
        if self.settings.mode == "regions":
            pair = dice_loss(probability, target, counted), binary_cross_entropy(logits, target, counted)
        else:
            channel = target.long().argmax(1) + 1
            channel = channel.where(target.any(1), 0)
            pair = dice_loss(probability[:, 1:], target, counted), cross_entropy(logits, channel, counted)
        return torch.stack(pair)

    def export(self) -> nn.Module:
        """(image, present) → logits, without the coarser heads."""
        return self.network


def _every(label: Int[Tensor, "b x y z"], stride: int) -> Int[Tensor, "b u v w"]:
    """The label on a coarser grid: of each cube of voxels the one beside its centre, without mixing; where nobody looked at that one, the nearest that somebody did."""
    places = sorted(product(range(stride), repeat=3), key=lambda place: sum((n - stride // 2) ** 2 for n in place))
    found, *others = (label[:, x::stride, y::stride, z::stride] for x, y, z in places)
    for other in others if (label < 0).any() else ():
        found = found.where(found >= 0, other)
    return found


METHOD = Segmentation
