"""Contrastive losses: know your own counterpart among all others.

Where torch.distributed runs, the candidates of all processes count, and gradients flow back to where they came from: with as many pairs
in each, the mean of the losses over the processes is the loss of one process that holds all pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed
from torch.nn import functional

from oligovox.errors import SettingsError


def nt_xent(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"], temperature: float) -> Float[Tensor, ""]:
    """Cross-entropy of finding one view among 2 n - 1 candidates, given the other; in float32.

    Source: Chen et al. 2020, "SimCLR", arXiv 2002.05709, eq. 1.

    Args:
        first: embeddings of one view; of any length, cosines are compared.
        second: of the other view, in the same order.
        temperature: above 0.

    Raises:
        SettingsError: one pair in all, so that there is nothing to tell it apart from.
    """
    n, rows = len(first), torch.cat([_unit(first), _unit(second)])
    (all_first, before), (all_second, _) = _everywhere(rows[:n]), _everywhere(rows[n:])
    pairs = len(all_first)
    if pairs == 1:
        raise SettingsError(
            "contrast: found one pair in all, expected others to tell it apart from; use batch 2 or more"
        )
    own = before + torch.arange(n, device=rows.device)
    itself, other = torch.cat([own, pairs + own]), torch.cat([pairs + own, own])
    logits = _cosines(rows, torch.cat([all_first, all_second])) / temperature
    logits = logits.scatter(1, itself[:, None], -torch.inf)
    return functional.cross_entropy(logits, other, reduction="sum") / max(1, 2 * n)


def info_nce(query: Float[Tensor, "n d"], key: Float[Tensor, "n d"], temperature: float) -> Float[Tensor, ""]:
    """Cross-entropy of finding a query's own key among all keys; one direction, in float32.

    Source: van den Oord et al. 2018, "Representation learning with contrastive predictive coding", arXiv 1807.03748.

    Args:
        query: of any length, cosines are compared; 0 rows give a loss of 0.
        key: in the same order.
        temperature: above 0.
    """
    n = len(query)
    keys, offset = _everywhere(_unit(key))
    own = offset + torch.arange(n, device=query.device)
    logits = _cosines(_unit(query), keys) / temperature
    return functional.cross_entropy(logits, own, reduction="sum") / max(1, n)


def _unit(embedding: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return functional.normalize(embedding.float(), dim=1)


def _cosines(rows: Float[Tensor, "n d"], columns: Float[Tensor, "k d"]) -> Float[Tensor, "n k"]:
    with torch.autocast(rows.device.type, enabled=False):  # a temperature of 0.07 makes logits of bfloat16's rounding
        return rows @ columns.T


def _everywhere(rows: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "k d"], int]:
    """The rows of all processes in order of rank, and where our own begin among them. Counts may differ."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows, 0
    here = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(here) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, here)
    sizes = [int(count) for count in counts]
    gathered: Tensor = _Gather.apply(rows, sizes)  # type: ignore[no-untyped-call]  # torch leaves `apply` untyped
    return gathered, sum(sizes[: distributed.get_rank()])


class _Gather(torch.autograd.Function):
    """Rows of all processes; the gradient that any process has for a row goes back to its owner."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = functional.pad(rows, (0, 0, 0, max(sizes) - len(rows)))
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        summed = gradient.contiguous().clone()
        distributed.all_reduce(summed)
        rank = distributed.get_rank()
        before = sum(ctx.sizes[:rank])
        return summed[before : before + ctx.sizes[rank]], None
