"""Multimodal puzzle: put shuffled pieces, each of a sequence drawn at random, back in their places.

Source: Taleb et al. 2019 (multimodal self-supervised learning for medical image analysis, arXiv 1912.05396).
Deviates: 3-D pieces; a piece is written into every channel of the encoder, so that the same network is fine-tuned; only tissue is counted
    in the error; a cross-entropy of the places beside it; one head scores each piece, not one all of them; a piece is encoded amid
    zeros and read as eighths at every depth; no generated images.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, field_validator
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool3d, one_hot

from oligovox import settings as base
from oligovox.losses.masked import masked_mean
from oligovox.losses.sinkhorn import log_sinkhorn
from oligovox.method import Clock, Losses, Method
from oligovox.networks.encoder import Encoder
from oligovox.sample.batch import Batch
from oligovox.sample.pieces import Triple, cut, framed, jitter, layout, reorder


class Settings(base.Settings):
    """Choices of the multimodal puzzle."""

    grid: Triple = Field((2, 2, 2), description="pieces along each axis")
    gap: float = Field(0.125, ge=0, le=0.5, description="space between pieces, as a share of a cell's side")
    channel: Literal["every", "own"] = Field(
        "every", description="a piece is written into every channel, or into that of its sequence alone"
    )
    temperature: float = Field(0.5, gt=0, description="scores are divided by it before the Sinkhorn operator")
    iterations: int = Field(20, ge=1, description="row and column steps of the Sinkhorn operator")
    assign_weight: float = Field(0.1, ge=0, description="weight of the cross-entropy of the places; 0 is off")
    head: Literal["each", "joint"] = Field(
        "each",
        description="scores of a piece from its embedding beside the mean of all, or all scores from all embeddings",
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
        pieces: P, the shuffled pieces.
        sequence: which one each of them shows.
        acquired: that it shows one at all.
        target: P*, the pieces in their places.
        tissue: voxels of the target in the foreground.
        place: where each shuffled piece belongs.
    """

    pieces: Float[Tensor, "b n u v w"]
    sequence: Int[Tensor, "b n"]
    acquired: Bool[Tensor, "b"]
    target: Float[Tensor, "b n u v w"]
    tissue: Bool[Tensor, "b n u v w"]
    place: Int[Tensor, "b n"]


@final
class MultimodalPuzzle(Method[Views]):
    """Encoder of pieces, embedding of a piece, scores of every piece in every place."""

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = encoder
        self.stride = encoder.strides[-1]
        count = prod(settings.grid)
        self.embed = nn.Sequential(nn.Linear(8 * sum(encoder.channels), settings.embedding), nn.ReLU(inplace=True))
        inputs, outputs = (2, count) if settings.head == "each" else (count, count**2)
        self.score = nn.Sequential(
            nn.Linear(inputs * settings.embedding, settings.hidden),
            nn.ReLU(inplace=True),
            nn.Linear(settings.hidden, outputs),
        )

    def check_patch(self, sides: Triple) -> None:
        """Every piece has two voxels along each axis."""
        layout(sides, self.settings.grid, self.settings.gap)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Cut, draw a sequence for each place, shuffle."""
        b, m, x, y, z = batch.image.shape
        where = layout((x, y, z), self.settings.grid, self.settings.gap)
        starts = jitter(where, b, rng)
        draw = torch.rand((b, where.count, m), generator=rng, device=rng.device)
        sequence = draw.where(batch.present[:, None], -1.0).argmax(2)
        stack = cut(batch.image, where, starts)
        target = stack.take_along_dim(sequence[:, :, None, None, None, None], 2)[:, :, 0]
        acquired = batch.present.any(1)
        place = torch.rand((b, where.count), generator=rng, device=rng.device).argsort(1)
        return Views(
            pieces=reorder(target, place),
            sequence=reorder(sequence, place),
            acquired=acquired,
            target=target,
            tissue=cut(batch.foreground, where, starts)[:, :, 0] & acquired[:, None, None, None, None],
            place=place,
        )

    def losses(self, views: Views, clock: Clock) -> Losses:
        """‖P* − Sᵀ P‖² over tissue, and − log S at the true places of pieces that hold any."""
        logarithm = log_sinkhorn(self._scores(views) / self.settings.temperature, self.settings.iterations)
        soft = logarithm.exp()
        solid = reorder(views.tissue.flatten(2).any(2), views.place)
        terms = {"restore": masked_mean((views.target.float() - _arranged(soft, views.pieces)).square(), views.tissue)}
        weights = {}
        if self.settings.assign_weight > 0:
            at_place = logarithm.take_along_dim(views.place[:, :, None], 2)[:, :, 0]
            terms["assign"] = masked_mean(-at_place, solid)
            weights["assign"] = self.settings.assign_weight
        right = (_hungarian(soft) == views.place).float()
        return Losses(terms, weights, notes={"placed": masked_mean(right, solid).item()})

    def _scores(self, views: Views) -> Float[Tensor, "b n n"]:
        """How well each piece (row) fits each place (column), in float32."""
        b, n = views.sequence.shape
        m = len(self.encoder.modalities)
        filled = one_hot(views.sequence, m).bool() if self.settings.channel == "own" else views.tissue.new_ones(b, n, m)
        filled = filled & views.acquired[:, None, None]
        image = views.pieces[:, :, None].where(filled[..., None, None, None], 0.0)
        features = self.encoder(framed(image, self.stride).flatten(0, 1), filled.flatten(0, 1))
        eighths = torch.cat([adaptive_avg_pool3d(feature, 2).flatten(1) for feature in features], 1)
        embedding = self.embed(eighths).reshape(b, n, -1)
        if self.settings.head == "each":
            given = torch.cat([embedding, embedding.mean(1, keepdim=True).expand_as(embedding)], 2)
        else:
            given = embedding.flatten(1)
        scores: Tensor = self.score(given).reshape(b, n, n)
        return scores.float()

    def export(self) -> nn.Module:
        """The encoder; embedding and scores stay behind."""
        return nn.ModuleDict({"encoder": self.encoder})


def _arranged(soft: Float[Tensor, "b n n"], pieces: Float[Tensor, "b n u v w"]) -> Float[Tensor, "b n u v w"]:
    """Sᵀ P, in float32 whatever the precision around it."""
    with torch.autocast(soft.device.type, enabled=False):
        return (soft.mT @ pieces.float().flatten(2)).view(pieces.shape)


def _hungarian(soft: Float[Tensor, "b n n"]) -> Int[Tensor, "b n"]:
    """The place of each piece in the best hard arrangement."""
    found = [linear_sum_assignment(scores, maximize=True)[1] for scores in soft.detach().cpu().numpy()]
    return torch.stack([torch.from_numpy(places) for places in found]).to(soft.device)


METHOD = MultimodalPuzzle
