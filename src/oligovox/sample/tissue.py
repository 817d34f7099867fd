"""Tissue: what is usual in an exam, found in the exam itself, without a label or an atlas.

The commonest joint intensity of a patch is its usual tissue (in a brain: white matter, the tightest cluster). Everything else
is measured as a distance to it, over the sequences that were acquired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from oligovox.sample.batch import Batch
from oligovox.sample.relations import Relation

_PLACES = 512  # foreground voxels looked at in each sample
_WIDTH = 0.4  # standard deviations of the foreground within which two voxels are of one tissue
_COARSE = 8  # voxels a side of the cells in which the usual level is averaged
_EMPTY = 1e-8  # weight of a voxel that must not be drawn, so that a sample without foreground can be drawn from


@dataclass(frozen=True)
class Tissue:
    """The usual tissue of each sample of a batch.

    Attributes:
        smooth: mean over 3³ voxels of the foreground; 0 outside it.
        usual: level of the usual tissue in each sequence.
        field: the same around every voxel: it follows a smooth change of brightness across the patch.
        likeness: in [0, 1], how like the usual tissue a voxel is; 0 outside the foreground.
        places: voxels of the foreground, drawn at random.
        common: at each of them, share of the others that are of the same tissue; 0 in a sample without foreground.
    """

    smooth: Float[Tensor, "b m x y z"]
    usual: Float[Tensor, "b m"]
    field: Float[Tensor, "b m x y z"]
    likeness: Float[Tensor, "b 1 x y z"]
    places: Int[Tensor, "b k 3"]
    common: Float[Tensor, "b k"]


def survey(batch: Batch, rng: torch.Generator) -> Tissue:
    """Find the usual tissue: the voxel with the most voxels of its kind, and one step of mean shift from there."""
    inside = batch.foreground.to(batch.image.dtype)
    smooth = box_mean(batch.image * inside) / box_mean(inside).clamp(min=1e-3) * inside
    flat = torch.multinomial(inside.flatten(1).clamp(min=_EMPTY), _PLACES, replacement=True, generator=rng)
    values = smooth.flatten(2).gather(2, flat[:, None].expand(-1, smooth.shape[1], -1)).mT
    acquired = batch.present.sum(1).clamp(min=1).to(values)
    alike = _alike(torch.cdist(values, values).square(), acquired[:, None, None])
    common = alike.mean(2) * inside.flatten(1).gather(1, flat)
    mode = alike[torch.arange(len(batch), device=flat.device), common.argmax(1)]
    usual = (mode[:, :, None] * values).sum(1) / mode.sum(1, keepdim=True)
    distance = (smooth - usual[:, :, None, None, None]).square() * batch.present[:, :, None, None, None]
    likeness = _alike(distance.sum(1, keepdim=True), acquired[:, None, None, None, None]) * inside
    return Tissue(smooth, usual, _around(smooth, likeness, usual), likeness, unravel(flat, smooth.shape[2:]), common)


def unlike(tissue: Tissue, widths: float) -> Float[Tensor, "b 1 x y z"]:
    """In [0, 1]: near 0 within `widths` tissue widths of the usual tissue, near 1 far beyond (in a brain: fluid)."""
    return 1.0 - tissue.likeness.clamp(min=1e-30) ** (1.0 / widths**2)


def along_fluid(tissue: Tissue) -> Float[Tensor, "b 1 x y z"]:
    """In [0, 1]: large in the first two or three voxels of tissue beside fluid, near 0 in fluid and far from it."""
    fluid = unlike(tissue, 2.0) ** 4 * (tissue.smooth != 0).any(1, keepdim=True)
    return (6.0 * box_mean(box_mean(fluid)) * (1.0 - fluid)).clamp(max=1.0)


def beyond(
    batch: Batch,
    tissue: Tissue,
    relation: Relation,
    slack: float,
    at_most: float,
) -> Bool[Tensor, "b 1 x y z"]:
    """Foreground voxels that differ from the usual tissue as a relation says: in every acquired sequence at least as its range begins.

    Args:
        batch: the exam.
        tissue: of the same batch.
        relation: what is looked for; ranges without a known sign are not asked.
        slack: how far short of the beginning a voxel may fall.
        at_most: share of a sample's foreground; where more voxels qualify, those that go furthest are taken.
    """
    side = relation.side
    nearest = torch.where(side > 0, relation.low, relation.high).abs() - slack
    telling = (side != 0) & batch.present
    values = 0.5 * (batch.image + tissue.smooth)  # half smoothed: less noise, small lesions stay
    excess = (values - tissue.field) * side[:, None, None, None] - nearest[:, None, None, None]
    excess = excess.masked_fill(~telling[:, :, None, None, None], torch.inf).amin(1, keepdim=True)
    excess = excess.masked_fill(~(batch.foreground & telling.any(1)[:, None, None, None, None]), -torch.inf)
    number = (at_most * batch.foreground.flatten(1).sum(1, keepdim=True)).long().clamp(max=excess[0].numel() - 1)
    last = excess.flatten(1).sort(1, descending=True).values.gather(1, number)  # the first one too many
    return (excess >= 0) & (excess > last[:, :, None, None, None])


def grown(mask: Bool[Tensor, "b 1 x y z"], voxels: int) -> Bool[Tensor, "b 1 x y z"]:
    """Dilated by a cube of 2 · voxels + 1; nothing comes in from beyond the border."""
    for axis in (2, 3, 4) * voxels:
        size = mask.shape[axis]
        wider = mask.clone()
        wider.narrow(axis, 1, size - 1).logical_or_(mask.narrow(axis, 0, size - 1))
        wider.narrow(axis, 0, size - 1).logical_or_(mask.narrow(axis, 1, size - 1))
        mask = wider
    return mask


def closed(mask: Bool[Tensor, "b 1 x y z"], voxels: int) -> Bool[Tensor, "b 1 x y z"]:
    """Holes and gaps up to 2 · voxels wide are filled."""
    return ~grown(~grown(mask, voxels), voxels)


def middle_plane(values: Float[Tensor, "b m x y z"]) -> Int[Tensor, " b"]:
    """The plane across the first axis about which a patch is most symmetric: voxel i lies opposite voxel (plane − i).

    At least half of the patch has an opposite. Where the middle of the head is not in the patch, the plane has no meaning.
    """
    side = values.shape[2]
    rows = F.adaptive_avg_pool3d(values, (side, max(1, values.shape[3] // 4), max(1, values.shape[4] // 4)))
    spectrum = torch.fft.rfft(rows, n=2 * side, dim=2)
    agreement: Tensor = torch.fft.irfft((spectrum * spectrum).sum((1, 3, 4)), n=2 * side, dim=1)
    return agreement[:, side // 2 : side // 2 + side].argmax(1) + side // 2


def box_mean(values: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b c x y z"]:
    """Mean over 3³ voxels, zeros beyond the border; one axis after the other."""
    for axis in (2, 3, 4):
        size = values.shape[axis]
        total = values.clone()
        total.narrow(axis, 1, size - 1).add_(values.narrow(axis, 0, size - 1))
        total.narrow(axis, 0, size - 1).add_(values.narrow(axis, 1, size - 1))
        values = total / 3.0
    return values


def unravel(flat: Int[Tensor, "*n"], sides: Sequence[int]) -> Int[Tensor, "*n 3"]:
    """Flat positions in a volume → voxels."""
    _, y, z = sides
    return torch.stack([flat // (y * z), flat // z % y, flat % z], dim=-1)


def _alike(square: Tensor, acquired: Tensor) -> Tensor:
    return torch.exp(-0.5 * square / (acquired * _WIDTH**2))


def _around(smooth: Tensor, likeness: Tensor, usual: Tensor) -> Float[Tensor, "b m x y z"]:
    """Mean of the usual tissue in coarse cells, and between them trilinearly; its overall level where a cell has none."""
    x, y, z = (max(1, side // _COARSE) for side in smooth.shape[2:])
    weight = F.adaptive_avg_pool3d(likeness, (x, y, z))
    level = F.adaptive_avg_pool3d(smooth * likeness, (x, y, z))
    mean = (level + 0.02 * usual[:, :, None, None, None]) / (weight + 0.02)
    return F.interpolate(mean, size=smooth.shape[2:], mode="trilinear", align_corners=False)
