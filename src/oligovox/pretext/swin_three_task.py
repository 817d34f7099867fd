"""Swin three-task: restore what was cut out, tell how the patch was turned, and know the other view of it.

Source: Tang et al. 2022 (self-supervised pre-training of Swin transformers for 3D medical image analysis, arXiv 2111.14791), with what its
    released code does where the paper is silent.
Deviates: any encoder; z-scores instead of intensities in [0, 1], so that the noise in the cuts has mean 0 and spread 1; cut-outs only
    change acquired sequences, and a partner's content only goes where both have the sequence; restoration is counted in the foreground;
    pooled and standardised instead of single tokens for the two classifiers. `whole_volume`, `pool` give back the release in the last two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import Field, field_validator
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.errors import GeometryError
from oligovox.losses.contrast import nt_xent
from oligovox.losses.masked import masked_mean
from oligovox.losses.outliers import slope_note
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.blocks import ConvNormAct, check_sides, initialise
from oligovox.networks.compose import EncoderDecoder
from oligovox.networks.decoder import Decoder
from oligovox.networks.encoder import Encoder
from oligovox.networks.heads import ReconstructionHead, Standardised
from oligovox.sample.batch import Batch
from oligovox.sample.masks import spread

_PLANES = ((2, 3), (1, 3), (1, 2))
"""Axes of (m, x, y, z) that a quarter turn about x, y, z exchanges."""


class Settings(base.Settings):
    """Choices of the three tasks."""

    rotations: Literal["one_axis", "three_axes"] = Field(
        "one_axis", description="quarter turns about x (4 classes, the release) or about any one axis (10 classes)"
    )
    cut: float = Field(0.3, ge=0, le=1, description="largest share of a view replaced by noise; drawn from 0 to it")
    exchanged: float = Field(
        0.3, ge=0, le=1, description="largest share then replaced by another sample's content; 0 is the paper's text"
    )
    sides: tuple[float, float] = Field((0.05, 0.25), description="sides of a cuboid as shares of the patch's side")
    pool: Literal["mean", "token"] = Field(
        "mean", description="what the two classifiers read: all deep tokens, or the release's tokens 0 and 1"
    )
    restore_from: Literal["bottleneck", "skips"] = Field(
        "bottleneck", description="restore without skips (the release), or with our U-Net decoder, then exported too"
    )
    whole_volume: bool = Field(False, description="count air in the restoration, as the release does")
    embedding: int = Field(512, ge=1, description="size of the embedding that is compared")
    temperature: float = Field(0.5, gt=0, description="of the comparison")
    rotation_weight: float = Field(
        1.0, ge=0, description="weight of the rotation's cross-entropy; above 0 exams are not flipped before"
    )
    contrast_weight: float = Field(1.0, ge=0, description="weight of NT-Xent; above 0 it takes a batch of two")
    restore_weight: float = Field(1.0, ge=0, description="weight of the absolute error of the restored view")

    @field_validator("sides")
    @classmethod
    def _in_order(cls, sides: tuple[float, float]) -> tuple[float, float]:
        base.ascending("sides", sides, 0.01, 1.0)
        return sides


@dataclass(frozen=True)
class Views:
    """Both views of every sample, first all the first ones: v = 2 b.

    Attributes:
        shown: the turned view with cut-outs.
        present: sequences that were acquired.
        target: the turned view.
        counted: voxels whose restoration counts.
        turn: class of the rotation; 0 is none.
        known: the view has a foreground, so that its rotation can be told.
    """

    shown: Float[Tensor, "v m x y z"]
    present: Bool[Tensor, "v m"]
    target: Float[Tensor, "v m x y z"]
    counted: Bool[Tensor, "v m x y z"]
    turn: Int[Tensor, "v"]
    known: Bool[Tensor, "v"]


@final
class SwinThreeTask(Method[Views]):
    """Encoder with three heads on its deepest feature."""

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        contrast = settings.contrast_weight > 0
        self.needs = Needs(together=2 if contrast else 1, apart=contrast, unflipped=settings.rotation_weight > 0)
        self.encoder = encoder
        skips = settings.restore_from == "skips"
        self.decoder = (Decoder if skips else BottleneckDecoder)(encoder.channels, encoder.strides)
        self.restore = ReconstructionHead(encoder.channels[0], len(encoder.modalities))
        self.standard = Standardised(encoder.channels[-1])
        self.rotation = nn.Linear(encoder.channels[-1], 4 if settings.rotations == "one_axis" else 10)
        self.contrast = nn.Linear(encoder.channels[-1], settings.embedding)

    def check_patch(self, sides: tuple[int, int, int]) -> None:
        """Sides that turns exchange are equal, and the deepest feature, which is restored from, has more than one voxel."""
        check_sides(sides, self.encoder.strides[-1], normalised=True)
        for x, y in _PLANES[:1] if self.settings.rotations == "one_axis" else _PLANES:
            _check_turn(sides, x - 1, y - 1)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Turn each sample twice, then cut noise and another sample's content into the views."""
        chosen = self.settings
        x, y, z = batch.image.shape[2:]
        self.check_patch((x, y, z))
        present = batch.present.repeat(2, 1)
        turn = torch.randint(self.rotation.out_features, (len(present),), generator=rng, device=rng.device)
        target, foreground = (
            torch.stack([turned(values[i % len(batch)], number) for i, number in enumerate(turn.tolist())])
            for values in (batch.image, batch.foreground)
        )
        acquired = spread(present)
        noise = torch.randn(target.shape, generator=rng, device=rng.device, dtype=target.dtype)
        shown = target.where(~(self._cuboids(target, chosen.cut, rng) & acquired), noise)
        own = torch.arange(len(batch), device=rng.device)
        partner = torch.randint(len(batch), (2, len(batch)), generator=rng, device=rng.device)  # itself: no exchange
        other = (partner + torch.tensor([[0], [len(batch)]], device=rng.device)).flatten()
        differs = spread(present & present[other] & (partner != own).flatten()[:, None])
        shown = shown.where(~(self._cuboids(target, chosen.exchanged, rng) & differs), target[other])
        inside = torch.ones_like(foreground) if chosen.whole_volume else foreground
        return Views(shown, present, target, acquired & inside, turn, foreground.flatten(1).any(1))

    def _cuboids(
        self, views: Float[Tensor, "v m x y z"], share: float, rng: torch.Generator
    ) -> Bool[Tensor, "v 1 x y z"]:
        """Cuboids until their volumes sum to a share of the view drawn from 0 to `share`; those that overlap count twice."""
        (low, high), v = self.settings.sides, len(views)
        enough = ceil(2 * share / ((low + high) / 2) ** 3) + 8  # twice as many as are needed on average
        draw = torch.rand(v, enough, 6, generator=rng, device=rng.device)
        wanted = share * torch.rand(v, 1, generator=rng, device=rng.device)
        length = low + (high - low) * draw[..., :3]
        volume = length.prod(2).cumsum(1)
        taken = volume - length.prod(2) < wanted
        start = draw[..., 3:] * (1 - length)
        inside = [
            _between((torch.arange(side, device=rng.device) + 0.5) / side, start[..., a], length[..., a])
            for a, side in enumerate(views.shape[2:])
        ]
        first, second, third = (axis.to(views.dtype) for axis in (inside[0] & taken[..., None], *inside[1:]))
        columns = (first[..., :, None] * second[..., None, :]).flatten(2)  # (v, cuboids, x y)
        return (columns.mT @ third).reshape(v, 1, *views.shape[2:]) > 0

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Cross-entropy of the rotation, NT-Xent of the two views, mean absolute error of the restoration."""
        chosen = self.settings
        features = self.encoder(views.shown, views.present)
        for_rotation, for_contrast = self._pooled(features[-1])
        guess = nn.functional.cross_entropy(self.rotation(for_rotation).float(), views.turn, reduction="none")
        restored = self.restore(self.decoder(features)[0]).float()
        error = (restored - views.target).abs()
        terms = {"rotation": masked_mean(guess, views.known), "restore": masked_mean(error, views.counted)}
        weights = {"rotation": chosen.rotation_weight, "restore": chosen.restore_weight}
        if chosen.contrast_weight > 0:
            first, second = self.contrast(for_contrast).chunk(2)
            terms["contrast"] = nt_xent(first, second, chosen.temperature)
            weights["contrast"] = chosen.contrast_weight
        cut = views.counted & (views.shown != views.target)
        note = slope_note(restored.detach(), views.target, cut, self.encoder.modalities)
        return Losses(terms, weights, note, {"means": self.standard.seen(_means(features[-1]))})

    def after_step(self, losses: Losses, clock: Clock) -> None:
        """Remember what was pooled."""
        self.standard.follow(losses.carry["means"])

    def _pooled(self, deep: Float[Tensor, "v c i j k"]) -> tuple[Float[Tensor, "v c"], Float[Tensor, "v c"]]:
        """What the rotation and the contrast head read."""
        if self.settings.pool == "mean":
            mean = self.standard(_means(deep))
            return mean, mean
        tokens = deep.flatten(2)
        return tokens[..., 0], tokens[..., 1]

    def export(self) -> nn.Module:
        """The encoder; with `restore_from: skips` the decoder as well."""
        if isinstance(self.decoder, Decoder):
            return EncoderDecoder(self.encoder, self.decoder)
        return nn.ModuleDict({"encoder": self.encoder})


def _means(deep: Float[Tensor, "v c i j k"]) -> Float[Tensor, "v c"]:
    """Over all tokens."""
    return deep.flatten(2).float().mean(2)


class BottleneckDecoder(nn.Module):
    """From the deepest feature alone: at each level convolve, normalise, then enlarge; the widths are the encoder's.

    Args:
        channels: of the encoder's features, shallow to deep.
        strides: of the encoder's features, shallow to deep.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        widths, jumps = [channels[0], *channels], [(1, strides[0]), *pairwise(strides)]
        levels = [
            nn.Sequential(ConvNormAct(deep, shallow), nn.Upsample(scale_factor=float(high // low), mode="trilinear"))
            for (shallow, deep), (low, high) in zip(pairwise(widths), jumps, strict=True)
            if high > low
        ]
        self.levels = nn.Sequential(*reversed(levels))
        self.apply(initialise)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor]:
        """The last of the encoder's features → (b, channels[0], x, y, z) at full resolution, as the first of one."""
        return (self.levels(features[-1]),)


def turned(values: Shaped[Tensor, "m x y z"], turn: int) -> Shaped[Tensor, "m u v w"]:
    """Class 0 is none; then 1, 2, 3 quarter turns about x; about y; about z.

    Raises:
        GeometryError: the two sides that are exchanged differ.
    """
    axis, quarters = divmod(turn - 1, 3)
    plane = _PLANES[max(0, axis)]
    _check_turn(values.shape[1:], plane[0] - 1, plane[1] - 1)
    return values.rot90(quarters + 1, plane) if turn else values


def _check_turn(sides: Sequence[int], first: int, second: int) -> None:
    if sides[first] != sides[second]:
        patch = " × ".join(str(side) for side in sides)
        raise GeometryError(f"patch of {patch} voxels: expected equal sides where it is turned; use a cube")


def _between(
    place: Float[Tensor, " s"], start: Float[Tensor, "v n"], length: Float[Tensor, "v n"]
) -> Bool[Tensor, "v n s"]:
    return (place >= start[..., None]) & (place < (start + length)[..., None])


METHOD = SwinThreeTask
