"""JiGen: shuffle the tiles of a patch and say in which of a few known orders they lie.

Source: Carlucci et al. 2019 (domain generalization by solving jigsaw puzzles, arXiv 1903.06864), its jigsaw term.
Deviates: pre-training alone, so there is no supervised term beside it; 3-D patches in columns, all sequences at once; a gap with jitter
    between tiles; orders are scored tile by tile, from the mean of every tile at every depth; patches with less than two tiles of tissue
    are not counted.
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
from oligovox.sample.pieces import Triple, cut, distant_orders, jitter, join, layout, reorder


class Settings(base.Settings):
    """Choices of the jigsaw term."""

    grid: Triple = Field((3, 3, 1), description="tiles along each axis")
    permutations: int = Field(30, ge=1, le=1000, description="orders to tell apart, beside the right one")
    ordered: float | None = Field(
        None, ge=0, le=1, description="probability that tiles stay in order; 1 / (permutations + 1) where none"
    )
    gap: float = Field(0.125, ge=0, le=0.5, description="space between tiles, as a share of a cell's side")
    grey: float = Field(0.1, ge=0, le=1, description="probability that a tile shows the mean of its sequences in each")

    head: Literal["each", "joint"] = Field(
        "each", description="an order's score is the sum of its tiles' scores, or one linear layer's of all tiles"
    )

    @field_validator("grid")
    @classmethod
    def _several(cls, grid: Triple) -> Triple:
        if min(grid) < 1 or prod(grid) < 2:
            raise ValueError("expected at least 1 tile along each axis and 2 in all")
        return grid


@dataclass(frozen=True)
class Views:
    """What is shown, and what it is compared with.

    Attributes:
        image: the tiles in their new order.
        present: sequences that were acquired.
        order: class of the order; 0 is the right one.
        counted: patches with two tiles of tissue or more.
    """

    image: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    order: Int[Tensor, "b"]
    counted: Bool[Tensor, "b"]


@final
class JiGen(Method[Views]):
    """Encoder and linear scores of orders.

    Raises:
        SettingsError: there are not as many orders of so few tiles.
    """

    orders: Tensor

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = encoder
        tiles = prod(settings.grid)
        self.register_buffer("orders", distant_orders(tiles, settings.permutations + 1))
        inputs, outputs = (1, tiles) if settings.head == "each" else (tiles, settings.permutations + 1)
        self.score = nn.Linear(inputs * sum(encoder.channels), outputs)

    def check_patch(self, sides: Triple) -> None:
        """Every tile has two voxels along each axis."""
        layout(sides, self.settings.grid, self.settings.gap)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Cut, make some tiles grey, shuffle, put together."""
        _, _, x, y, z = batch.image.shape
        where = layout((x, y, z), self.settings.grid, self.settings.gap)
        starts = jitter(where, len(batch), rng)
        tissue = cut(batch.foreground, where, starts).flatten(2).any(2)
        tiles = self._some_grey(cut(batch.image, where, starts), batch.present, rng)
        order = self._draw(len(batch), rng)
        return Views(
            image=join(reorder(tiles, self.orders[order]), where),
            present=batch.present,
            order=order,
            counted=(tissue.sum(1) >= 2) & batch.present.any(1),
        )

    def _draw(self, samples: int, rng: torch.Generator) -> Int[Tensor, "b"]:
        """A class for each sample."""
        number = self.settings.permutations
        ordered = 1 / (number + 1) if self.settings.ordered is None else self.settings.ordered
        stays = torch.rand(samples, generator=rng, device=rng.device) < ordered
        shuffled = torch.randint(1, number + 1, (samples,), generator=rng, device=rng.device)
        return torch.where(stays, 0, shuffled)

    def _some_grey(
        self, tiles: Float[Tensor, "b n m u v w"], present: Bool[Tensor, "b m"], rng: torch.Generator
    ) -> Float[Tensor, "b n m u v w"]:
        """Some tiles with the mean of the acquired sequences in each of these; absent ones stay 0."""
        acquired = present[:, None, :, None, None, None]
        mean = tiles.sum(2, keepdim=True) / acquired.sum(2, keepdim=True).clamp(min=1)
        grey = torch.rand(tiles.shape[:2], generator=rng, device=rng.device) < self.settings.grey
        return torch.where(grey[:, :, None, None, None, None] & acquired, mean, tiles)

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
        features = self.encoder(views.image, views.present)
        means = torch.cat([adaptive_avg_pool3d(feature, self.settings.grid).flatten(2) for feature in features], 1)
        if self.settings.head == "joint":
            joint: Tensor = self.score(means.flatten(1))
            return joint.float()
        scores: Tensor = self.score(means.mT).float()  # (b, place, tile that it may show)
        return scores[:, torch.arange(scores.shape[1], device=scores.device), self.orders].sum(2)

    def export(self) -> nn.Module:
        """The encoder; the scores stay behind."""
        return nn.ModuleDict({"encoder": self.encoder})


METHOD = JiGen
