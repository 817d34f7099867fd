"""Implants: bodies of any shape, put into exams so that the exam's own texture stays.

`bodies.py` draws what they are; here they get voxels (`paint`) and intensities (`blend`). A body is a bent ellipsoid whose surface
is moved by noise of several scales, which keeps to the tissue it starts in as far as it is told to, with layers inside. It lives in
a window no larger than it needs, so that a large patch costs little more than a small one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from oligovox.sample.batch import Batch
from oligovox.sample.bodies import Bodies
from oligovox.sample.tissue import Tissue

_TISSUE_WIDTH = 0.6  # standard deviations of the foreground that count as one unit of difference from the first tissue
_MOST = 2.0  # noise is cut here, so that no body reaches further


@dataclass(frozen=True)
class Painting:
    """Where bodies are.

    Attributes:
        strength: in [0, 1], soft mask of the strongest body of each layer.
        owner: index of that body; n, one past the last, where there is none.
    """

    strength: Float[Tensor, "l b x y z"]
    owner: Int[Tensor, "l b x y z"]


def paint(
    bodies: Bodies,
    batch: Batch,
    tissue: Tissue,
    border: Float[Tensor, "b 1 x y z"],
) -> Painting:
    """Give the bodies a shape in the foreground of their exams. Where two meet, the stronger one wins.

    Args:
        bodies: any number.
        batch: gives sides, spacing and the sequences that count for likeness of tissue.
        tissue: of the same batch.
        border: in [0, 1]; a body that hugs is multiplied by it.
    """
    b, m, *sides = batch.image.shape
    table = torch.cat([tissue.smooth, batch.foreground, border], dim=1).flatten(2).mT.reshape(-1, m + 2)
    layers = bodies.layers.shape[1]
    strength = table.new_zeros(layers, len(table))
    owner = torch.full(strength.shape, -1, device=table.device)
    drawn = []
    for rows, side in _by_size(bodies, batch):
        some = bodies.rows(rows)
        voxels, inside = _voxels(some, side, sides)
        masks = _masks(some, side, batch, table[voxels]) * inside
        drawn.append((rows, voxels.flatten().expand(layers, -1), masks.flatten(2)))
    for _, voxels, masks in drawn:
        strength.scatter_reduce_(1, voxels, masks.flatten(1), "amax")
    for rows, voxels, masks in drawn:
        won = (masks > 0) & (masks == strength.gather(1, voxels).view_as(masks))
        owner.scatter_reduce_(1, voxels, torch.where(won, rows[:, None], -1).flatten(1), "amax")
    owner = torch.where(owner < 0, len(bodies), owner)
    return Painting(strength.view(layers, b, *sides), owner.view(layers, b, *sides))


def blend(
    batch: Batch, tissue: Tissue, bodies: Bodies, painting: Painting, texture: float, rng: torch.Generator
) -> Float[Tensor, "b m x y z"]:
    """The exams with the bodies in them; the same where no body is, outside the foreground and in absent sequences.

    A body stands on the level of the tissue it starts in, as the usual tissue around it rises and falls (bias field). It hides
    structure larger than 3 voxels in part, and keeps everything finer: noise and texture stay the exam's own.

    Args:
        batch: the exams; not changed.
        tissue: of the same batch.
        bodies: as given to `paint`.
        painting: their shapes.
        texture: how uneven the contrast is inside, as a share of it.
        rng: for this unevenness.
    """
    row, x, y, z = (painting.strength[0] > 0).nonzero(as_tuple=True)  # every layer lies inside the outermost
    patchy = 1.0 + texture * _patchiness(batch.image, rng)[row, :, x, y, z]
    background = (tissue.field - tissue.smooth)[row, :, x, y, z]
    change = torch.zeros_like(background)
    for layer, (strength, owner) in enumerate(zip(painting.strength, painting.owner, strict=True)):
        contrast, offset, hidden, power = (
            F.pad(values, (0, 0, 0, 1))[owner[row, x, y, z]]  # 0 where a layer has no body
            for values in (bodies.contrast[:, layer], bodies.offset, bodies.replace[:, None], bodies.extent)
        )
        wanted = contrast * patchy + hidden * (background + offset)
        change = change.lerp(wanted, strength[row, x, y, z, None] ** power.clamp(min=1.0))
    image = batch.image.clone()
    image[row, :, x, y, z] += change * batch.present[row]
    return image


def _by_size(bodies: Bodies, batch: Batch) -> Iterator[tuple[Int[Tensor, " k"], int]]:
    """Indices of the bodies whose window has 8, 16, 32 … voxels a side, wide enough for noise, border and bend."""
    outermost = 1.0 + _MOST * bodies.rough + bodies.edge / bodies.radii.amin(1)  # in radii
    mm = bodies.radii.amax(1) * outermost * (1.0 + bodies.bend.abs() * outermost)
    sides = 2.0 * (mm / batch.spacing.amin(1)[bodies.sample] + 1.0)
    power = sides.log2().ceil().clamp(min=3).long().clamp(max=_largest_power(batch))
    for exponent in sorted(set(power.tolist())):
        yield (power == exponent).nonzero()[:, 0], 2**exponent


def _largest_power(batch: Batch) -> int:
    """Of a window that covers the patch from any voxel of it."""
    return math.ceil(math.log2(2 * max(batch.image.shape[2:])))


def _voxels(bodies: Bodies, side: int, sides: Sequence[int]) -> tuple[Int[Tensor, "n w w w"], Bool[Tensor, "n w w w"]]:
    """Flat position in the batch of every voxel of the windows, and whether it lies in the patch."""
    steps = torch.arange(side, device=bodies.centre.device) - side // 2
    flat, inside = bodies.sample[:, None, None, None], torch.ones((), dtype=torch.bool, device=steps.device)
    for axis, size in enumerate(sides):
        place = _along(bodies.centre[:, axis, None] + steps, axis)
        inside = inside & (place >= 0) & (place < size)
        flat = flat * size + place.clamp(0, size - 1)
    return flat, inside


def _masks(bodies: Bodies, side: int, batch: Batch, here: Float[Tensor, "n w w w c"]) -> Float[Tensor, "l n w w w"]:
    """Soft mask of each layer in the windows: rises smoothly from 0 to 1 across `edge` on both sides of the surface."""
    steps = torch.arange(side, device=here.device) - side // 2
    mm = steps * batch.spacing[bodies.sample][:, :, None]
    mirror = torch.where(bodies.mirrored, -1.0, 1.0)
    mm = torch.stack([mm[:, 0] * mirror[:, None], mm[:, 1], mm[:, 2]], dim=1)
    present = batch.present[bodies.sample]
    difference = (here[..., :-2] - _lift(bodies.start)).square() * _lift(present)
    difference = difference.sum(-1) / (_lift(present.sum(1)).clamp(min=1) * _TISSUE_WIDTH**2)
    surface = 1.0 + _lift(bodies.rough) * _noise(bodies, mm) - _lift(bodies.follow) * difference
    radius, steepness = _radius(bodies, mm), _lift(bodies.radii.amin(1) / bodies.edge)
    paintable = here[..., -2] * torch.where(_lift(bodies.hugging), here[..., -1], 1.0)
    ramps = [
        (0.5 + 0.5 * (_lift(share) * surface - radius) * steepness).clamp(0.0, 1.0) * _lift(share > 0)
        for share in bodies.layers.unbind(1)
    ]
    return torch.stack([ramp.square() * (3.0 - 2.0 * ramp) * paintable for ramp in ramps])


def _radius(bodies: Bodies, mm: Float[Tensor, "n 3 w"]) -> Float[Tensor, "n w w w"]:
    """Distance from the centre in radii of the bent ellipsoid."""
    along = bodies.turn[:, :, :, None] * mm[:, None] / bodies.radii[:, :, None, None]
    first, second, third = (
        _along(part[:, 0], 0) + _along(part[:, 1], 1) + _along(part[:, 2], 2) for part in along.unbind(1)
    )
    bent = second + _lift(bodies.bend * bodies.radii[:, 0] / bodies.radii[:, 1]) * first.square()
    return (first.square() + bent.square() + third.square()).sqrt()


def _noise(bodies: Bodies, mm: Float[Tensor, "n 3 w"]) -> Float[Tensor, "n w w w"]:
    """A sum of plane waves, long ones stronger; 0 at the centre, about 1 in size, at most `_MOST`.

    cos(a + b) = cos a cos b − sin a sin b makes a product of matrices of it.
    """
    mean = bodies.radii.log().mean(1).exp()
    angle = bodies.waves[..., None] * (mm / mean[:, None, None])[:, None]
    first = angle[:, :, 0] + bodies.phases[..., None]
    rest = (angle[:, :, 1, :, None] + angle[:, :, 2, None, :]).flatten(2)
    size = 1.0 / bodies.waves.norm(dim=-1)
    size = size / (size.square().sum(1, keepdim=True) / 2).sqrt()
    left = torch.cat([first.cos() * size[..., None], -first.sin() * size[..., None]], dim=1).mT
    wave = (left @ torch.cat([rest.cos(), rest.sin()], dim=1)).view(len(mm), *(mm.shape[2],) * 3)
    return (wave - _lift((size * bodies.phases.cos()).sum(1))).clamp(max=_MOST)


def _patchiness(like: Float[Tensor, "b m x y z"], rng: torch.Generator) -> Float[Tensor, "b m x y z"]:
    """Smooth noise of two scales, each sequence half its own, about 1 in size."""
    b, m, *sides = like.shape
    total = torch.zeros_like(like)
    for cell in (3, 6):
        grid = [max(1, -(-side // cell)) for side in sides]
        for channels in (1, m):
            values = torch.randn((b, channels, *grid), generator=rng, device=rng.device, dtype=like.dtype)
            total = total + 0.8 * F.interpolate(values, size=sides, mode="trilinear", align_corners=False)
    return total


def _along(values: Tensor, axis: int) -> Tensor:
    """(n, w) → (n, w, 1, 1), (n, 1, w, 1) or (n, 1, 1, w)."""
    shape = [len(values), 1, 1, 1]
    shape[axis + 1] = values.shape[1]
    return values.view(shape)


def _lift(values: Tensor) -> Tensor:
    """(n, …) → (n, 1, 1, 1, …)."""
    return values[:, None, None, None]
