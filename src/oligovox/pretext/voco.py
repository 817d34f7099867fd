"""VoCo: tell how much a random crop overlaps each of the crops that tile the patch.

Source: Wu, Zhuang, Chen 2024 (VoCo: a simple-yet-effective volume contrastive learning framework for 3D medical image analysis,
    arXiv 2402.17300), with the two networks and the losses of its public code.
Deviates: 2 × 2 × 2 base crops of half the patch's side by default (4 × 4 × 1 in the release); crops of air do not count, and embeddings are
    pooled over the foreground of the deepest feature; a smaller projector, with batch norm that keeps no running statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, final

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool3d, cosine_similarity

from oligovox import settings as base
from oligovox.errors import SettingsError
from oligovox.losses.masked import masked_mean
from oligovox.method import Clock, Losses, Method
from oligovox.networks.encoder import Encoder
from oligovox.networks.teacher import Teacher
from oligovox.sample.batch import Batch
from oligovox.sample.crops import cut
from oligovox.sample.pieces import Triple, framed, layout

Count = Annotated[int, Field(ge=1, le=8)]
_FLOOR = 1e-6  # of the logarithm, as in the release


class Settings(base.Settings):
    """Choices of VoCo."""

    grid: tuple[Count, Count, Count] = Field((2, 2, 2), description="base crops along x, y, z; they tile the patch")
    targets: int = Field(4, ge=1, description="random crops of a base's size in each patch")
    tissue: float = Field(0.1, gt=0, le=1, description="crops with a smaller share of foreground do not count")
    teacher: bool = Field(
        True, description="compare with a slowly following copy as well; false: with the network's own, fixed bases"
    )
    momentum: float = Field(0.9, ge=0, le=1, description="of the copy")
    spread: Literal["squared", "plain"] = Field(
        "squared", description="similarity of two bases in the regulariser: squared as in the release, or as it is"
    )
    hidden: int = Field(512, ge=1, description="units of the projector's two hidden layers; 2048 in the release")
    embedding: int = Field(512, ge=1, description="size of the embedding; 2048 in the release")


@dataclass(frozen=True)
class Views:
    """The crops of every patch, n bases, then t targets; c = n + t.

    Attributes:
        image: of each crop, amid zeros where the network needs a larger one.
        present: sequences that were acquired.
        foreground: head or brain.
        overlap: share of a target's volume that each base covers; sums to 1 over the bases.
        counted: crops with enough foreground.
    """

    image: Float[Tensor, "b c m x y z"]
    present: Bool[Tensor, "b m"]
    foreground: Bool[Tensor, "b c 1 x y z"]
    overlap: Float[Tensor, "b t n"]
    counted: Bool[Tensor, "b c"]


class Embedding(nn.Module):
    """Encoder and projector: what both the network and its copy are."""

    def __init__(self, encoder: Encoder, hidden: int, size: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.project = nn.Sequential(
            nn.Linear(encoder.channels[-1], hidden, bias=False),
            nn.BatchNorm1d(hidden, track_running_stats=False),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden, bias=False),
            nn.BatchNorm1d(hidden, track_running_stats=False),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, size),
        )

    def forward(self, views: Views) -> Float[Tensor, "b c d"]:
        """One embedding a crop, pooled over its foreground."""
        b, c = views.counted.shape
        deep = self.encoder(views.image.flatten(0, 1), views.present.repeat_interleave(c, 0))[-1]
        tissue = adaptive_avg_pool3d(views.foreground.flatten(0, 1).float(), deep.shape[2:])
        pooled = masked_mean(deep, tissue.expand_as(deep), dim=(2, 3, 4))
        embedding: Tensor = self.project(pooled).float().reshape(b, c, -1)
        return embedding


@final
class VoCo(Method[Views]):
    """Encoder and projector; beside them, if asked for, their copy.

    Raises:
        SettingsError: a grid of a single base.
    """

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        if math.prod(settings.grid) < 2:
            raise SettingsError(f"voco: grid {settings.grid} has one base crop; expected two or more to tell apart")
        self.settings = settings
        self.multiple = encoder.strides[-1]
        self.student = Embedding(encoder, settings.hidden, settings.embedding)
        self.teacher = Teacher(self.student) if settings.teacher else None

    def begin(self, load: Callable[[nn.Module], None]) -> None:
        """The network takes over the start, its copy the network."""
        load(self.export())
        if self.teacher is not None:
            self.teacher.update(self.student, 0.0)

    def check_patch(self, sides: Triple) -> None:
        """Every base crop has two voxels along each axis."""
        layout(sides, self.settings.grid, 0.0)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Cut bases and targets; say how they overlap. What the grid cannot divide is left over at both borders."""
        device = batch.image.device
        sides, grid = (torch.tensor(three, device=device) for three in (batch.image.shape[2:], self.settings.grid))
        crop = sides // grid
        corner = (sides - grid * crop) // 2
        bases = corner + crop * torch.cartesian_prod(*(torch.arange(n, device=device) for n in self.settings.grid))
        draw = torch.rand(len(batch), self.settings.targets, 3, generator=rng, device=rng.device)
        targets = corner + (draw * (grid * crop - crop + 1)).long()
        starts = torch.cat([bases.expand(len(batch), -1, -1), targets], 1)
        image, foreground = (
            framed(torch.stack([cut(values, start, crop.tolist()) for start in starts.unbind(1)], 1), self.multiple)
            for values in (batch.image, batch.foreground)
        )
        apart = (targets[:, :, None] - bases).abs()
        return Views(
            image=image,
            present=batch.present,
            foreground=foreground,
            overlap=((crop - apart).clamp_min(0) / crop).prod(-1),
            counted=foreground.sum((2, 3, 4, 5)) >= self.settings.tissue * crop.prod(),
        )

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Overlaps foretold by similarity; bases that do not overlap a target, and each other, pushed apart."""
        n = views.overlap.shape[2]
        bases, targets = self.student(views).split([n, views.overlap.shape[1]], 1)
        if self.teacher is None:
            similarity = _similarity(targets, bases.detach())
        else:
            still_bases, still_targets = self.teacher(views).split([n, views.overlap.shape[1]], 1)
            similarity = (_similarity(targets, still_bases) + _similarity(still_targets, bases)) / 2
        pairs = views.counted[:, n:, None] & views.counted[:, None, :n]
        surprise = -(1.0 - (views.overlap - similarity).abs() + _FLOOR).log()
        alike = _similarity(bases, bases)
        above = torch.ones(n, n, dtype=torch.bool, device=alike.device).triu(1)
        return Losses(
            {
                "overlap": masked_mean(surprise, views.overlap * pairs),
                "apart": masked_mean(similarity.square(), pairs & (views.overlap == 0)),
                "spread": masked_mean(
                    alike.square() if self.settings.spread == "squared" else alike,
                    views.counted[:, :n, None] & views.counted[:, None, :n] & above,
                ),
            }
        )

    def after_step(self, losses: Losses, clock: Clock) -> None:
        """The copy follows."""
        if self.teacher is not None:
            self.teacher.update(self.student, self.settings.momentum)

    def export(self) -> nn.Module:
        """The encoder; projector and copy stay behind."""
        return nn.ModuleDict({"encoder": self.student.encoder})


def _similarity(first: Float[Tensor, "b i d"], second: Float[Tensor, "b j d"]) -> Float[Tensor, "b i j"]:
    """Cosine, 0 where it is negative."""
    return cosine_similarity(first[:, :, None], second[:, None], dim=-1).relu()


METHOD = VoCo
