"""Means over the voxels that count."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


def masked_mean(
    value: Float[Tensor, "*all"],
    weight: Bool[Tensor, "*all"] | Float[Tensor, "*all"],
    dim: tuple[int, ...] | None = None,
) -> Float[Tensor, "*kept"]:
    """Σ weight · value / Σ weight, in float32; 0, with a gradient of 0, where nothing counts.

    Args:
        value: any shape; may be anything, even not finite, where the weight is 0.
        weight: what counts (True), or by how much (≥ 0).
        dim: axes to take the mean over; all where none are given.
    """
    axes = tuple(range(value.ndim)) if dim is None else dim
    share = weight.float()
    total = share.sum(axes)
    summed = (share * value.float().where(share > 0, 0.0)).sum(axes)
    return summed / total.where(total > 0, 1.0)


def mean_over_samples(value: Float[Tensor, "b x y z"], counted: Bool[Tensor, "b x y z"]) -> Float[Tensor, ""]:
    """Mean over a sample's counted voxels, then over the samples that have any; 0, with a gradient of 0, where there is none."""
    return masked_mean(masked_mean(value, counted, dim=(1, 2, 3)), counted.flatten(1).any(1))
