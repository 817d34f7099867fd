"""SLeM: say which block of a patch was taken from which sequence.

Source: Wang, Lin, Qi, Chen, Li, Shen, Ma 2025 (SLeM), J. Computer-Aided Design & Computer Graphics 37(3), 474–483,
    doi 10.3724/SP.J.1089.2023-00339, of which only the abstract is public: four modalities cut into four blocks, put together at random,
    and a classification of the composition; a contextual fusion block (`bottleneck: contextual_fusion` of the network).
Deviates: everything below those words is ours: 3-D blocks that span the depth, the class sets, histograms made equal with random
    gamma, scale and shift, gap and jittered borders, pooling by block, standardised, head; the composite is shown in every channel of an M-channel encoder
    with all sequences present, which stands for a one-channel stem inflated later (its M kernels start apart, not as copies).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.errors import GeometryError, SettingsError
from oligovox.losses.masked import masked_mean
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.encoder import Encoder
from oligovox.networks.heads import ProjectionHead, Standardised
from oligovox.sample.batch import Batch
from oligovox.sample.pieces import Layout, Triple, cut, distant_orders, join, layout, reorder

_MOST_MAPS = 2**20  # maps from blocks to sequences that are looked at
_HIDDEN = 256  # units of each head
_SPAN = 4.0  # standard deviations either side of the mean that gamma curves


class Settings(base.Settings):
    """Choices of SLeM."""

    blocks: tuple[int, int, int] = Field((2, 2, 1), description="blocks along x, y, z")
    classes: Literal["every_sequence", "all", "hamming"] = Field(
        "every_sequence", description="compositions: of as many sequences as possible, all, or some that differ much"
    )
    hamming_classes: int = Field(12, ge=2, description="compositions that `hamming` chooses, if there are as many")
    per_block: bool = Field(False, description="a classifier for each block, not one for all of them")
    shuffle_positions: int = Field(0, ge=0, description="orders of the blocks that a second head tells apart; 0: none")
    pool: Literal["global", "blocks"] = Field(
        "blocks", description="the head sees the deepest feature's mean over the patch or each block"
    )
    intensity: Literal["histogram", "moments", "none"] = Field(
        "histogram", description="what is made equal in every block; moments: mean and standard deviation"
    )
    gamma: tuple[float, float] = Field((0.7, 1.5), description="smallest and largest exponent of a block")
    scale: tuple[float, float] = Field((0.75, 1.25), description="smallest and largest factor of a block")
    shift: tuple[float, float] = Field((-0.25, 0.25), description="smallest and largest summand of a block")
    gap: int = Field(4, ge=0, description="width of the empty strip between blocks in voxels")
    jitter: int = Field(2, ge=0, description="largest displacement of a strip in voxels; at most half a gap")
    foreground: float = Field(0.05, ge=0, lt=1, description="a block of no larger share is not asked for")
    label_smoothing: float = Field(0.05, ge=0, lt=1, description="of the cross-entropy")

    @model_validator(mode="after")
    def _possible(self) -> Settings:
        if min(self.blocks) < 1 or prod(self.blocks) < 2:
            raise ValueError(f"blocks {self.blocks}: expected 1 or more along each axis, at least two in all")
        if self.jitter > self.gap // 2:
            raise ValueError(f"jitter {self.jitter} is more than half of gap {self.gap}; widen the gap")
        if self.shuffle_positions == 1:
            raise ValueError("shuffle_positions 1 leaves nothing to tell apart; expected 0, or 2 or more")
        if any(low > high for low, high in (self.gamma, self.scale, self.shift)) or min(*self.gamma, *self.scale) <= 0:
            raise ValueError("gamma, scale and shift are (smallest, largest), gamma and scale above 0")
        return self


@dataclass(frozen=True)
class Views:
    """One composite a sample, and what it is made of. Blocks are counted along x, y, z, the last fastest.

    Attributes:
        composite: every block from one sequence; 0 between blocks and outside the foreground.
        composition: the sequence each block was taken from.
        number: of that composition in the class set.
        order: number of the order the blocks lie in; 0 where they are not shuffled.
        asked: blocks with enough foreground, of samples that have a class whose sequences were all acquired.
    """

    composite: Float[Tensor, "b 1 x y z"]
    composition: Int[Tensor, "b g"]
    number: Int[Tensor, "b"]
    order: Int[Tensor, "b"]
    asked: Bool[Tensor, "b g"]


@final
class SLeM(Method[Views]):
    """Encoder, pooling and a classifier of compositions; no decoder.

    Raises:
        SettingsError: too many compositions to choose from.
    """

    needs = Needs(modalities=2)
    maps: Tensor
    uses: Tensor
    orders: Tensor

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = encoder
        sequences, blocks = len(encoder.modalities), prod(settings.blocks)
        self.register_buffer("maps", class_set(sequences, blocks, settings), persistent=False)
        self.register_buffer("uses", nn.functional.one_hot(self.maps, sequences).amax(1) > 0, persistent=False)
        cells = blocks if settings.pool == "blocks" else 1
        outputs = blocks * sequences if settings.per_block else len(self.maps)
        self.standard = Standardised(cells * encoder.channels[-1])
        self.compositions = ProjectionHead(cells * encoder.channels[-1], outputs, _HIDDEN)
        if settings.shuffle_positions:
            self.register_buffer("orders", distant_orders(blocks, settings.shuffle_positions), persistent=False)
            self.positions = ProjectionHead(cells * encoder.channels[-1], settings.shuffle_positions, _HIDDEN)

    def check_patch(self, sides: Triple) -> None:
        """Strips leave something of every block."""
        _check_strips(layout(sides, self.settings.blocks, 0.0), self.settings.gap, self.settings.jitter)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Draw compositions, take the blocks, make them equal, put them together."""
        chosen = self.settings
        x, y, z = batch.image.shape[2:]
        where = layout((x, y, z), chosen.blocks, 0.0)
        _check_strips(where, chosen.gap, chosen.jitter)
        number, known = self._draw(batch.present, rng)
        starts = torch.zeros(len(batch), where.count, 3, dtype=torch.long, device=rng.device)
        shown = cut(_strips(where, len(batch), chosen.gap, chosen.jitter, rng), where, starts)
        pieces, inside = cut(batch.image, where, starts), cut(batch.foreground, where, starts)
        order = torch.zeros_like(number)
        if chosen.shuffle_positions:
            order = torch.randint(chosen.shuffle_positions, order.shape, generator=rng, device=rng.device)
            pieces, inside = (reorder(values, self.orders[order]) for values in (pieces, inside))
        seen = (inside & shown)[:, :, 0]
        values = _recoloured(compose(pieces, self.maps[number]), seen, chosen, rng)
        return Views(
            composite=join(values.where(seen & known[:, None, None, None, None], 0.0)[:, :, None], where),
            composition=self.maps[number],
            number=number,
            order=order,
            asked=(seen.flatten(2).sum(2) > chosen.foreground * shown.flatten(2).sum(2)) & known[:, None],
        )

    def _draw(self, present: Bool[Tensor, "b m"], rng: torch.Generator) -> tuple[Int[Tensor, "b"], Bool[Tensor, "b"]]:
        """A class of acquired sequences for each sample, all of them equally likely, and whether there is one."""
        allowed = ~(self.uses & ~present[:, None]).any(2)
        if self.settings.classes == "every_sequence":
            allowed &= self.uses.sum(1) == present.sum(1, keepdim=True).clamp(max=self.maps.shape[1])
        draw = torch.rand(allowed.shape, generator=rng, device=rng.device)
        return draw.where(allowed, -1.0).argmax(1), allowed.any(1)

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Cross-entropy over the samples whose every block can be known; over the blocks that can be with `per_block`."""
        chosen, m = self.settings, len(self.encoder.modalities)
        present = torch.ones(len(views.number), m, dtype=torch.bool, device=views.number.device)
        feature = self.encoder(views.composite.expand(-1, m, -1, -1, -1), present)[-1]
        means = _means(feature.float(), chosen.blocks if chosen.pool == "blocks" else (1, 1, 1))
        pooled = self.standard(means)[:, :, None, None, None]
        whole = views.asked.all(1)
        logits = self.compositions(pooled).float()
        target, asked = views.number, whole
        if chosen.per_block:  # the class axis is the second one, the blocks follow
            logits, target, asked = logits.reshape(len(logits), m, -1), views.composition, views.asked
        right = (logits.argmax(1) == target).view(len(logits), -1).all(1)
        error = partial(nn.functional.cross_entropy, reduction="none", label_smoothing=chosen.label_smoothing)
        terms = {"composition": masked_mean(error(logits, target), asked)}
        if chosen.shuffle_positions:
            terms["position"] = masked_mean(error(self.positions(pooled).float(), views.order), whole)
        notes = {"composition accuracy": float(masked_mean(right.float(), whole)), "asked": float(whole.float().mean())}
        return Losses(terms, notes=notes, carry={"means": self.standard.seen(means)})

    def after_step(self, losses: Losses, clock: Clock) -> None:
        """Remember what was pooled."""
        self.standard.follow(losses.carry["means"])

    def export(self) -> nn.Module:
        """The encoder, with its fusion block where it has one."""
        return nn.ModuleDict({"encoder": self.encoder})


def class_set(sequences: int, blocks: int, settings: Settings) -> Int[Tensor, "k g"]:
    """The compositions that are told apart; all maps for classifiers by block, where samples may lack sequences."""
    if sequences**blocks > _MOST_MAPS:
        found = f"slem: {sequences} sequences in {blocks} blocks make {sequences**blocks} compositions"
        raise SettingsError(f"{found}; expected at most {_MOST_MAPS}: use fewer blocks")
    maps = np.indices((sequences,) * blocks).reshape(blocks, -1).T
    if settings.classes == "hamming" or (settings.classes == "every_sequence" and not settings.per_block):
        maps = maps[1 + (np.diff(np.sort(maps)) > 0).sum(1) == min(sequences, blocks)]
    if settings.classes == "hamming":
        chosen, distance = [0], np.full(len(maps), blocks + 1)
        while len(chosen) < min(settings.hamming_classes, len(maps)):
            distance = np.minimum(distance, (maps != maps[chosen[-1]]).sum(1))
            chosen.append(int(distance.argmax()))
        maps = maps[chosen]
    return torch.from_numpy(maps.copy())


def compose(pieces: Float[Tensor, "b g m u v w"], composition: Int[Tensor, "b g"]) -> Float[Tensor, "b g u v w"]:
    """Each block as its sequence shows it."""
    index = composition[:, :, None, None, None, None].expand(-1, -1, 1, *pieces.shape[3:])
    return pieces.gather(2, index)[:, :, 0]


def _check_strips(where: Layout, gap: int, jitter: int) -> None:
    """Refuse strips that may take a whole block."""
    for cell, number in zip(where.cell, where.grid, strict=True):
        lost = min(number - 1, 2) * ((gap + 1) // 2 + jitter)
        if cell <= lost:
            found = f"a block has a side of {cell} voxels, and strips take up to {lost} of it"
            raise GeometryError(f"{found}; use larger patches, fewer blocks or a narrower gap")


def _strips(where: Layout, samples: int, gap: int, jitter: int, rng: torch.Generator) -> Bool[Tensor, "b 1 x y z"]:
    """False in the strips between blocks. A strip covers the border between two cells, wherever the jitter puts it."""
    shown = torch.ones(samples, 1, *where.sides, dtype=torch.bool, device=rng.device)
    for axis, (side, cells) in enumerate(zip(where.sides, where.cells, strict=True)):
        place = torch.arange(side, device=rng.device)
        for border in range(cells.start + where.cell[axis], cells.stop, where.cell[axis]):
            moved = torch.randint(-jitter, jitter + 1, (samples, 1), generator=rng, device=rng.device)
            first = border + moved - gap // 2
            free = (place < first) | (place >= first + gap)
            shown &= free.view(samples, 1, *(side if other == axis else 1 for other in range(3)))
    return shown


def _means(feature: Float[Tensor, "b c x y z"], blocks: tuple[int, int, int]) -> Float[Tensor, "b d"]:
    """Mean over each block's part of the grid; parts share voxels where the grid cannot be divided."""
    for axis, n in enumerate(blocks, start=2):
        side = feature.shape[axis]
        parts = [(i * side // n, -(-(i + 1) * side // n)) for i in range(n)]
        feature = torch.cat([feature.narrow(axis, lo, hi - lo).mean(axis, keepdim=True) for lo, hi in parts], axis)
    return feature.flatten(1)


def _recoloured(
    values: Float[Tensor, "b g u v w"], seen: Bool[Tensor, "b g u v w"], chosen: Settings, rng: torch.Generator
) -> Float[Tensor, "b g u v w"]:
    """What is seen of each block, without its own histogram, mean and spread, with random ones instead."""
    if chosen.intensity == "none":
        return values
    limits = torch.tensor([chosen.gamma, chosen.scale, chosen.shift], device=rng.device).T[:, :, None, None]
    drawn = torch.rand(3, *values.shape[:2], generator=rng, device=rng.device)
    gamma, scale, shift = torch.lerp(limits[0], limits[1], drawn)[..., None]
    flat, counted = values.float().flatten(2), seen.flatten(2)
    if chosen.intensity == "histogram":  # rank in its block → quantile of the normal distribution
        rank = flat.where(counted, torch.inf).argsort(dim=2, stable=True).argsort(2)
        flat = torch.special.ndtri(((rank + 0.5) / counted.sum(2, keepdim=True).clamp(min=1)).clamp(max=1.0))
    curved = (_standardised(flat, counted) / (2 * _SPAN) + 0.5).clamp(0, 1).pow(gamma)
    recoloured: Tensor = _standardised(curved, counted) * scale + shift
    return recoloured.view_as(values)


def _standardised(values: Float[Tensor, "b g n"], counted: Bool[Tensor, "b g n"]) -> Float[Tensor, "b g n"]:
    """Mean 0 and standard deviation 1 over what counts."""
    mean = masked_mean(values, counted, dim=(2,))[..., None]
    spread = masked_mean((values - mean).square(), counted, dim=(2,))[..., None].sqrt()
    return (values - mean) / spread.clamp(min=1e-3)


METHOD = SLeM
