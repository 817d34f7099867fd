"""Jigsaw 3D: encode the pieces of a shuffled volume one by one and say in which of a few known orders they lie.

Source: Taleb et al. 2020 (3D self-supervised methods for medical imaging, arXiv 2006.03829), after Noroozi and Favaro 2016
    (arXiv 1603.09246).
Deviates: eight pieces by default, not 27; all sequences at once; orders are chosen far apart, the right one among them; orders are scored
    piece by piece; a piece is encoded amid zeros and read as eighths at every depth; patches with less than two pieces of tissue are
    not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool3d, cross_entropy

from oligovox import settings as base
from oligovox.losses.masked import masked_mean
from oligovox.method import Clock, Losses, Method
from oligovox.networks.encoder import Encoder
from oligovox.sample.batch import Batch
from oligovox.sample.pieces import Triple, cut, distant_orders, framed, jitter, layout, reorder


class Settings(base.Settings):
    """Choices of the jigsaw of pieces."""

    grid: Triple = Field((2, 2, 2), description="pieces along each axis; the public code has 3, 3, 3")
    permutations: int = Field(100, ge=2, le=1000, description="orders to tell apart, the right one among them")
    gap: float = Field(0.07, ge=0, le=0.5, description="space between pieces, as a share of a cell's side")
    head: Literal["each", "joint"] = Field(
        "each", description="an order's score is the sum of its pieces' scores, or comes from all embeddings at once"
    )
    embedding: int = Field(64, ge=1, description="units that stand for a piece")
    hidden: int = Field(256, ge=1, description="units between embeddings and scores")

    @field_validator("grid")
    @classmethod
    def _several(cls, grid: Triple) -> Triple:
        if min(grid) < 1 or prod(grid) < 2:
            raise ValueError("expected at least 1 piece along each axis and 2 in all")
        return grid


@dataclass(frozen=True)
class Views:
    """What is shown, and what it is compared with.

    Attributes:
        pieces: in their new order, amid zeros.
        present: sequences that were acquired.
        order: class of the order; 0 is the right one.
        counted: patches with two pieces of tissue or more.
    """

    pieces: Float[Tensor, "b n m u v w"]
    present: Bool[Tensor, "b m"]
    order: Int[Tensor, "b"]
    counted: Bool[Tensor, "b"]


@final
class Jigsaw3D(Method[Views]):
    """Encoder of pieces, embedding of a piece, scores of orders.

    Raises:
        SettingsError: there are not as many orders of so few pieces.
    """

    orders: Tensor

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = encoder
        self.stride = encoder.strides[-1]
        count = prod(settings.grid)
        self.register_buffer("orders", distant_orders(count, settings.permutations))
        self.embed = nn.Sequential(nn.Linear(8 * sum(encoder.channels), settings.embedding), nn.ReLU(inplace=True))
        inputs, outputs = (2, count) if settings.head == "each" else (count, settings.permutations)
        self.score = nn.Sequential(
            nn.Linear(inputs * settings.embedding, settings.hidden),
            nn.ReLU(inplace=True),
            nn.Linear(settings.hidden, outputs),
        )

    def check_patch(self, sides: Triple) -> None:
        """Every piece has two voxels along each axis."""
        layout(sides, self.settings.grid, self.settings.gap)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Cut and shuffle."""
        _, _, x, y, z = batch.image.shape
        where = layout((x, y, z), self.settings.grid, self.settings.gap)
        starts = jitter(where, len(batch), rng)
        tissue = cut(batch.foreground, where, starts).flatten(2).any(2)
        order = torch.randint(self.settings.permutations, (len(batch),), generator=rng, device=rng.device)
        return Views(
            pieces=framed(reorder(cut(batch.image, where, starts), self.orders[order]), self.stride),
            present=batch.present,
            order=order,
            counted=(tissue.sum(1) >= 2) & batch.present.any(1),
        )

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Cross-entropy of the order."""
        logits = self._logits(views)
        right = (logits.detach().argmax(1) == views.order).float()
        return Losses(
            {"order": masked_mean(cross_entropy(logits, views.order, reduction="none"), views.counted)},
            notes={"accuracy": masked_mean(right, views.counted).item()},
        )

    def _logits(self, views: Views) -> Float[Tensor, "b orders"]:
        """Of each known order, in float32."""
        b, n = views.pieces.shape[:2]
        features = self.encoder(views.pieces.flatten(0, 1), views.present.repeat_interleave(n, 0))
        eighths = torch.cat([adaptive_avg_pool3d(feature, 2).flatten(1) for feature in features], 1)
        embedding = self.embed(eighths).reshape(b, n, -1)
        if self.settings.head == "joint":
            joint: Tensor = self.score(embedding.flatten(1))
            return joint.float()
        beside = torch.cat([embedding, embedding.mean(1, keepdim=True).expand_as(embedding)], 2)
        scores: Tensor = self.score(beside).float()  # (b, place where it is shown, piece that it may be)
        return scores[:, torch.arange(n, device=scores.device), self.orders].sum(2)

    def export(self) -> nn.Module:
        """The encoder; embedding and scores stay behind."""
        return nn.ModuleDict({"encoder": self.encoder})


METHOD = Jigsaw3D
