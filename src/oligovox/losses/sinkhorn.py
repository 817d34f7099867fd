"""Sinkhorn operator: scores become a matrix whose rows and columns sum to 1, which stands for an order not yet decided.

Source: Sinkhorn 1964; as a layer, Adams and Zemel 2011 (arXiv 1106.1925) and Mena et al. 2018 (arXiv 1802.08665).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def log_sinkhorn(scores: Float[Tensor, "*b n n"], iterations: int = 20) -> Float[Tensor, "*b n n"]:
    """Logarithm of the doubly stochastic matrix of these scores, in float32.

    exp(scores), with rows and columns scaled to sum to 1 in turn. Columns come last and are exact; rows are as near as the iterations bring
    them. Adding a constant to a row or a column of the scores changes nothing in the limit.

    Args:
        scores: already divided by the temperature; the larger their range, the nearer to a permutation.
        iterations: of one row and one column step.
    """
    logarithm = scores.float()
    for _ in range(iterations):
        logarithm = logarithm - logarithm.logsumexp(-1, keepdim=True)
        logarithm = logarithm - logarithm.logsumexp(-2, keepdim=True)
    return logarithm
