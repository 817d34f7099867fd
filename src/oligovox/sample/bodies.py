"""Bodies: what is to be implanted, drawn at random: lesions and decoys of one make.

All kinds share one generator of shapes, so that nothing but what makes them decoys tells decoys from lesions: the relation between
sequences (`relations.py`), the shape of vessels, the place and symmetry of caps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from oligovox.sample.batch import Batch
from oligovox.sample.tissue import Tissue, middle_plane

_BROKEN = 1 / 3  # share of large bodies that are decoys
_WAVES = 10  # of the noise of a surface
_FREQUENCY = (1.5, 8.0)  # of a wave, angular, per mean radius, log-uniform
_BEND = 0.25  # largest offset of the ends of the first radius, as a share of it
_VESSEL_BEND = 0.4
_VESSEL_RADIUS = (0.7, 1.3)  # mm, and half a voxel at least
_VESSEL_LENGTH = (4.0, 9.0)  # half of it, mm
_CAP_RADIUS = (5.0, 9.0)  # of the ball in which a band along fluid is seen, mm
_SECOND, _THIRD = (0.45, 1.0), (0.4, 0.8)  # radius of a layer as a share of the layer around it
_CORED = 0.8  # share of large bodies with a third layer


class Kind(IntEnum):
    """What a body is; all after NESTED are decoys."""

    PLAQUE, IRON_RIM, NESTED, IMPOSSIBLE, ARTEFACT, VESSEL, CAP, BLANK = range(8)


@dataclass(frozen=True, kw_only=True)
class Bodies:
    """n bodies in a batch.

    Attributes:
        sample: the exam each lies in.
        centre: its middle voxel, which may lie outside the patch.
        start: smoothed level, in each sequence, of the tissue it starts in.
        offset: how far that is above the usual tissue around.
        radii: of the ellipsoid, mm.
        turn: rotation, from mm along the patch's axes to the ellipsoid's.
        mirrored: seen in a mirror across the first axis of the patch.
        bend: offset of the ends of the first radius along the second, as a share of the first.
        waves: of the noise: angular frequencies per mean radius.
        phases: of the noise, radians.
        rough: how far noise moves the surface, as a share of the radius.
        edge: half the width of the soft border, mm.
        follow: how strongly the body keeps to the tissue it starts in; 0 does not care.
        hugging: only where the `border` map of `paint` is.
        layers: radius of each layer as a share of the outermost, which is 1; 0 where there is no such layer.
        contrast: difference from the tissue it starts in, of each layer in each sequence.
        replace: share of the anatomy below it that a body hides, in [0, 1].
        extent: ≥ 1; the soft mask is taken to this power in each sequence: the body is narrower there.
        lesion: to be found; the others are decoys.
        nested: its inner layers are compartments to be told apart.
    """

    sample: Int[Tensor, " n"]
    centre: Int[Tensor, "n 3"]
    start: Float[Tensor, "n m"]
    offset: Float[Tensor, "n m"]
    radii: Float[Tensor, "n 3"]
    turn: Float[Tensor, "n 3 3"]
    mirrored: Bool[Tensor, " n"]
    bend: Float[Tensor, " n"]
    waves: Float[Tensor, "n j 3"]
    phases: Float[Tensor, "n j"]
    rough: Float[Tensor, " n"]
    edge: Float[Tensor, " n"]
    follow: Float[Tensor, " n"]
    hugging: Bool[Tensor, " n"]
    layers: Float[Tensor, "n l"]
    contrast: Float[Tensor, "n l m"]
    replace: Float[Tensor, " n"]
    extent: Float[Tensor, "n m"]
    lesion: Bool[Tensor, " n"]
    nested: Bool[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.sample)

    def rows(self, index: Tensor) -> Bodies:
        """These bodies only: a mask or a list of indices."""
        return Bodies(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


@dataclass(frozen=True)
class Slots:
    """Places in a list for each sample: lesions, then decoys, then one large body.

    Attributes:
        kind: value of `Kind`.
        large: the last one.
        used: whether there is one in this sample.
    """

    kind: Int[Tensor, "b n"]
    large: Bool[Tensor, "b n"]
    used: Bool[Tensor, "b n"]


def draw_slots(
    rimmed: Float[Tensor, "b 1"],
    lesions: tuple[int, int],
    decoys: tuple[int, int],
    weights: Sequence[float],
    large: float,
    rng: torch.Generator,
) -> Slots:
    """How many of what.

    Args:
        rimmed: probability that a lesion has an iron rim.
        lesions: fewest and most.
        decoys: fewest and most.
        weights: of the kinds of decoys, IMPOSSIBLE to BLANK; no decoys where all are 0.
        large: probability of the large body; a part of them are decoys of the first two kinds, where these have a weight.
        rng: random numbers.
    """
    b, decoys = len(rimmed), decoys if any(weights) else (0, 0)
    rims = uniform(rng, b, lesions[1]) < rimmed
    whole = uniform(rng, b, 1) >= (_BROKEN if decoys[1] and any(weights[:2]) else 0.0)
    kinds = [
        torch.where(rims, Kind.IRON_RIM, Kind.PLAQUE),
        Kind.IMPOSSIBLE + _weighted(weights, rng, b, decoys[1]),
        torch.where(whole, Kind.NESTED, Kind.IMPOSSIBLE + _weighted(weights[:2], rng, b, 1)),
    ]
    used = [
        torch.arange(most, device=rng.device) < least + (uniform(rng, b, 1) * (most - least + 1)).long()
        for least, most in (lesions, decoys)
    ]
    kind = torch.cat(kinds, dim=1)
    last = torch.arange(kind.shape[1], device=rng.device) == kind.shape[1] - 1
    return Slots(kind, last.expand_as(kind), torch.cat([*used, uniform(rng, b, 1) < large], dim=1))


def draw_places(
    slots: Slots,
    tissue: Tissue,
    allowed: Bool[Tensor, "b 1 x y z"],
    border: Float[Tensor, "b 1 x y z"],
    commonness: float,
    rng: torch.Generator,
) -> tuple[Int[Tensor, "b n"], Slots]:
    """Where each starts, as an index of the tissue's places; slots without room are no longer used.

    Args:
        slots: what is to be placed.
        tissue: places of common tissue are drawn more often.
        allowed: none elsewhere.
        border: caps start where this is large.
        commonness: power of how common the tissue is.
        rng: random numbers.
    """
    rows = torch.arange(len(slots.kind), device=rng.device)[:, None]
    x, y, z = tissue.places.unbind(-1)
    plain = tissue.common**commonness * (tissue.common > 0) * allowed[rows, 0, x, y, z]
    weights = torch.stack([plain, plain * border[rows, 0, x, y, z]])
    drawn = torch.multinomial(weights.flatten(0, 1).clamp(min=1e-12), slots.kind.shape[1], generator=rng)
    first, at_border = drawn.view(2, *slots.kind.shape).unbind(0)
    cap = slots.kind == Kind.CAP
    at = torch.where(cap, at_border, first)
    room = torch.where(cap, weights[1].gather(1, at), weights[0].gather(1, at)) > 0
    return at, replace(slots, used=slots.used & room)


def draw_shapes(
    slots: Slots,
    batch: Batch,
    radius: tuple[float, float],
    large_radius: tuple[float, float],
    large_at_most: float,
    elongation: float,
    rng: torch.Generator,
) -> dict[str, Tensor]:
    """Radii, rotation, bend, noise and layers, by their names in `Bodies`.

    Args:
        slots: what is to have a shape; vessels are thin tubes and caps are seen in a ball, the rest are alike.
        batch: gives spacing and sides.
        radius: smallest and largest mean radius, mm.
        large_radius: of a large body.
        large_at_most: share of the shortest side which that is at most.
        elongation: largest ratio of two radii.
        rng: random numbers.
    """
    shape, kind = tuple(slots.kind.shape), slots.kind
    vessel, cap = (kind == Kind.VESSEL)[:, :, None], (kind == Kind.CAP)[:, :, None]
    sides = torch.tensor(batch.image.shape[2:], device=rng.device) * batch.spacing
    most = (large_at_most * sides.amin(1, keepdim=True)).clamp(min=radius[0])
    small, big = log_between(radius, rng, *shape), log_between(large_radius, rng, *shape).minimum(most)
    ratios = math.log(elongation) * (uniform(rng, *shape, 3) - 0.5)
    radii = torch.where(slots.large, big, small)[:, :, None] * (ratios - ratios.mean(2, keepdim=True)).exp()
    thin = between(_VESSEL_RADIUS, rng, *shape).maximum(0.5 * batch.spacing.mean(1, keepdim=True))
    tube = torch.stack([between(_VESSEL_LENGTH, rng, *shape), thin, thin], dim=2)
    radii = torch.where(vessel, tube, torch.where(cap, between(_CAP_RADIUS, rng, *shape, 1), radii))
    second = between(_SECOND, rng, *shape)
    third = second * between(_THIRD, rng, *shape) * (uniform(rng, *shape) < _CORED)
    layers = [torch.ones_like(second), second * (slots.large | (kind == Kind.IRON_RIM)), third * slots.large]
    waves = torch.randn((*shape, _WAVES, 3), generator=rng, device=rng.device)
    axes = torch.randn((*shape, 3, 3), generator=rng, device=rng.device)
    return {
        "radii": radii,
        "turn": torch.linalg.qr(axes).Q,
        "bend": (2.0 * uniform(rng, *shape) - 1.0) * torch.where(vessel[..., 0], _VESSEL_BEND, _BEND),
        "waves": waves / waves.norm(dim=-1, keepdim=True) * log_between(_FREQUENCY, rng, *shape, _WAVES, 1),
        "phases": 2.0 * math.pi * uniform(rng, *shape, _WAVES),
        "layers": torch.stack(layers, dim=2),
    }


def with_twins(bodies: Bodies, tissue: Tissue) -> Bodies:
    """Each body that hugs once more, in a mirror in the middle plane of its exam."""
    caps = bodies.rows(bodies.hugging)
    x, y, z = caps.centre.unbind(1)
    opposite = torch.stack([middle_plane(tissue.smooth)[caps.sample] - x, y, z], dim=1)
    twins = replace(caps, centre=opposite, mirrored=~caps.mirrored)
    return Bodies(**{f.name: torch.cat([getattr(bodies, f.name), getattr(twins, f.name)]) for f in fields(Bodies)})


def uniform(rng: torch.Generator, *shape: int) -> Tensor:
    """In [0, 1)."""
    return torch.rand(shape, generator=rng, device=rng.device)


def between(limits: tuple[float, float], rng: torch.Generator, *shape: int) -> Tensor:
    """Uniform between two limits."""
    low, high = limits
    return low + (high - low) * uniform(rng, *shape)


def log_between(limits: tuple[float, float], rng: torch.Generator, *shape: int) -> Tensor:
    """Log-uniform between two limits above 0."""
    low, high = limits
    return between((math.log(low), math.log(high)), rng, *shape).exp()


def _weighted(weights: Sequence[float], rng: torch.Generator, *shape: int) -> Int[Tensor, "b n"]:
    """Indices drawn by weight."""
    bounds = torch.tensor(weights, device=rng.device).cumsum(0)
    return torch.searchsorted(bounds[:-1].contiguous(), uniform(rng, *shape) * bounds[-1], right=True)
