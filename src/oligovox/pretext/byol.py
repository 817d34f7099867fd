"""BYOL: foretell what a slowly following copy of the network makes of another crop of the same patch.

Source: Grill et al. 2020 (bootstrap your own latent, arXiv 2006.07733), carried to 3-D crops that overlap by half or more.
Deviates: layer norm instead of batch norm in the heads, whose statistics would be those of two samples (`norm: batch` is the paper's; that
    it works without is Richemond et al. 2020, arXiv 2010.10241); heads of 1024 hidden units, the paper has 4096; embeddings are pooled over
    the foreground only; views differ by the effects of nnU-Net, and a sequence may be hidden in one of them (`hide`); in a training of less than 2500
    steps the copy forgets faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.losses.masked import masked_mean
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.encoder import Encoder
from oligovox.networks.teacher import Teacher, rising_momentum
from oligovox.sample.batch import Batch
from oligovox.sample.crops import crop_sides, view_pair


class Settings(base.Settings):
    """Choices of BYOL."""

    crop: float = Field(0.67, gt=0, le=1, description="side of a crop as a share of the patch's; 64 voxels of 96")
    overlap: float = Field(0.5, ge=0, le=1, description="smallest share of a crop's volume that both crops show")
    augment: float = Field(
        1.0, ge=0, description="factor on the probability of each of nnU-Net's effects; 0 leaves plain crops"
    )
    hide: float = Field(
        0.0, ge=0, le=1, description="probability that a sequence is hidden in a view; one always stays"
    )
    hidden: int = Field(1024, ge=1, description="units between the two layers of the heads; 4096 in the paper")
    embedding: int = Field(256, ge=1, description="size of the embedding")
    norm: Literal["layer", "batch"] = Field("layer", description="norm in the heads; batch is the paper's")
    momentum: float = Field(
        0.996,
        ge=0,
        le=1,
        description="of the copy at the first step, at most 1 − 10 / steps; rises to 1 along a cosine",
    )


@dataclass(frozen=True)
class Views:
    """Both views of every sample, first all the first ones: v = 2 b.

    Attributes:
        image: of the crop, augmented; 0 in hidden sequences.
        present: sequences that were acquired and are not hidden.
        foreground: head or brain, moved with the image.
    """

    image: Float[Tensor, "v m x y z"]
    present: Bool[Tensor, "v m"]
    foreground: Bool[Tensor, "v 1 x y z"]


class Embedding(nn.Module):
    """Encoder and projector: what both the network and its copy are."""

    def __init__(self, encoder: Encoder, project: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.project = project

    def forward(self, views: Views) -> Float[Tensor, "v d"]:
        """One embedding a view, pooled over its foreground."""
        deep = self.encoder(views.image, views.present)[-1]
        tissue = nn.functional.adaptive_avg_pool3d(views.foreground.float(), deep.shape[2:])
        embedding: Tensor = self.project(masked_mean(deep, tissue.expand_as(deep), dim=(2, 3, 4)))
        return embedding


@final
class BYOL(Method[Views]):
    """Encoder, projector and predictor; beside them the copy of the first two."""

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.needs = Needs(batch=2 if settings.norm == "batch" else 1)
        self.settings = settings
        self.online = Embedding(encoder, self._head(encoder.channels[-1]))
        self.predict = self._head(settings.embedding)
        self.target = Teacher(self.online)

    def _head(self, size: int) -> nn.Module:
        hidden, norm = self.settings.hidden, self.settings.norm
        return nn.Sequential(
            nn.Linear(size, hidden, bias=norm == "layer"),  # a batch norm would take the bias off again
            nn.LayerNorm(hidden) if norm == "layer" else nn.BatchNorm1d(hidden, track_running_stats=False),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, self.settings.embedding),
        )

    def begin(self, load: Callable[[nn.Module], None]) -> None:
        """The network takes over the start, its copy the network."""
        load(self.export())
        self.target.update(self.online, 0.0)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Two overlapping crops of each sample, each changed on its own."""
        chosen = self.settings
        crop = crop_sides(batch.image.shape[2:], chosen.crop, self.online.encoder.strides[-1])
        pair = view_pair(batch, crop, chosen.overlap, chosen.augment, chosen.hide, rng)
        fields = ((view.image, view.present, view.foreground) for view in pair)
        return Views(*(torch.cat(both) for both in zip(*fields, strict=True)))

    def losses(self, views: Views, clock: Clock) -> Losses:
        """2 - 2 cos of each view's prediction and the copy's embedding of the other view; both directions added."""
        prediction = self.predict(self.online(views)).float()
        other = self.target(views).float().roll(len(views.image) // 2, 0)
        distance = 2 - 2 * nn.functional.cosine_similarity(prediction, other)
        known = views.foreground.flatten(1).any(1)
        return Losses({"foretell": 2 * masked_mean(distance, known & known.roll(len(known) // 2))})

    def after_step(self, losses: Losses, clock: Clock) -> None:
        """Let the copy follow."""
        self.target.update(self.online, rising_momentum(clock.step, clock.total, self.settings.momentum))

    def export(self) -> nn.Module:
        """The trained encoder, not the copy's; heads stay behind."""
        return nn.ModuleDict({"encoder": self.online.encoder})


METHOD = BYOL
