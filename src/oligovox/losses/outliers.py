"""Outliers: does a restored FLAIR keep what stands out from its surroundings, or paint it over as healthy anatomy?

A mean error cannot tell, because lesions are few. Ours; without a mask, so that every restoring pretext can log it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

OUTLIER = 2.0
"""A voxel of FLAIR above this z-score stands out."""

_CELL = 8  # side of the cells in voxels: small, so that an outlier is compared with what lies around it


@torch.no_grad()
def contrast_slope(
    restored: Float[Tensor, "b x y z"],
    true: Float[Tensor, "b x y z"],
    hidden: Bool[Tensor, "b x y z"],
    above: float = OUTLIER,
) -> Float[Tensor, ""]:
    """Slope of restored on true contrast: 1 keeps it, 0 paints outliers over, below 0 turns them; nan without an outlier.

    The contrast of a cell of 8³ voxels is the mean of its hidden outliers minus the mean of its other hidden voxels; the line
    goes through the origin, and a cell weighs by its outliers. A cell without both kinds does not count.

    Args:
        restored: what the network made.
        true: z-scored.
        hidden: voxels of the foreground that the network had to make.
        above: a hidden voxel whose true value is above it is an outlier.
    """
    outlier = hidden & (true > above)
    maps = [
        m.float() for kind in (outlier, hidden & ~outlier) for m in (kind, true.where(kind, 0), restored.where(kind, 0))
    ]
    cell = [min(_CELL, side) for side in true.shape[1:]]
    sums = F.avg_pool3d(torch.stack(maps, 1), cell, ceil_mode=True, divisor_override=1)
    count, true_out, made_out, others, true_rest, made_rest = sums.unbind(1)
    weight = count * (others > 0)
    count, others = count.clamp(min=1), others.clamp(min=1)
    contrast = true_out / count - true_rest / others
    found = made_out / count - made_rest / others
    slope: Tensor = (weight * found * contrast).sum() / (weight * contrast.square()).sum()
    return slope


def slope_note(
    restored: Float[Tensor, "b m x y z"],
    true: Float[Tensor, "b m x y z"],
    hidden: Bool[Tensor, "b m x y z"],
    modalities: Sequence[str],
    above: float = OUTLIER,
) -> dict[str, float]:
    """`Losses.notes` of a restoring pretext: `contrast_slope` of FLAIR; empty without FLAIR or without a hidden outlier."""
    if "FLAIR" not in modalities:
        return {}
    flair = modalities.index("FLAIR")
    slope = contrast_slope(restored[:, flair], true[:, flair], hidden[:, flair], above).item()
    return {} if slope != slope else {"lesion_slope": slope}
