"""Agreement of two predictions where nobody looked, and how its weight rises.

Source: Laine and Aila 2017 (temporal ensembling, arXiv 1610.02242) for the ramp; Tarvainen and Valpola 2017 (arXiv 1703.01780) for the squared difference.
Deviates: the ramp is a share of the training, not a number of epochs; means are taken inside a sample first, then over the samples that count.
"""

from __future__ import annotations

import math

from jaxtyping import Bool, Float, Int
from torch import Tensor

from oligovox.losses.masked import mean_over_samples


def ramp(progress: float, share: float) -> float:
    """exp(−5 (1 − progress / share)²), then 1: e⁻⁵ = 0.0067 at the first step.

    Args:
        progress: share of training that is done, in [0, 1]; see `Clock.progress`.
        share: of training in which it rises, in [0, 1]; 0: 1 from the first step on.
    """
    reached = min(progress / share, 1.0) if share > 0 else 1.0
    return math.exp(-5.0 * (1.0 - reached) ** 2)


def squared_difference(
    left: Float[Tensor, "b k x y z"], right: Float[Tensor, "b k x y z"], counted: Bool[Tensor, "b x y z"]
) -> Float[Tensor, ""]:
    """Mean of (left − right)² over channels and counted voxels.

    Args:
        left: probabilities.
        right: probabilities; detach what must not learn.
        counted: False where the difference does not matter.
    """
    return mean_over_samples((left.float() - right.float()).square().mean(1), counted)


def entropy(probability: Float[Tensor, "b k x y z"], *, exclusive: bool) -> Float[Tensor, "b #k x y z"]:
    """Of each voxel, as a share of the largest there can be: 0 where all is certain, 1 where nothing is known.

    Args:
        probability: of classes or regions.
        exclusive: the channels are classes that sum to 1, and have one entropy, −Σ p ln p / ln k; otherwise each channel is a region with
            its own, −(p ln p + (1 − p) ln (1 − p)) / ln 2.
    """
    p = probability.float()
    if exclusive:
        return _surprise(p).sum(1, keepdim=True) / math.log(p.shape[1])
    return (_surprise(p) + _surprise(1.0 - p)) / math.log(2.0)


def _surprise(p: Tensor) -> Tensor:
    """−p ln p, with a finite gradient at 0."""
    return -p * p.clamp_min(1e-7).log()


def samples_with(counted: Bool[Tensor, "b x y z"]) -> Int[Tensor, " u"]:
    """Index of the samples of which any voxel counts; of the first where there is none, so that no network is shown an empty batch."""
    found = counted.flatten(1).any(1)
    found[0] |= ~found.any()
    return found.nonzero()[:, 0]
