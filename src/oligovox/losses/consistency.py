"""Agreement of two predictions where nobody looked, and how its weight rises.

Source: Laine and Aila 2017 (temporal ensembling, arXiv 1610.02242) for the ramp; Tarvainen and Valpola 2017 (arXiv 1703.01780) for the squared difference.
Deviates: the ramp is a share of the training, not a number of epochs; means are taken inside a sample first, then over the samples that count.
"""

from __future__ import annotations

import math

from jaxtyping import Bool, Float
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
