"""Weights in random order: the same numbers, and nothing of what they had learned or were to each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def in_random_order(value: Tensor, rng: torch.Generator | None = None) -> Tensor:
    """The values of a tensor, shuffled.

    Args:
        value: any shape.
        rng: on the tensor's device; None: the global one, as everything that draws first weights does.
    """
    return value.flatten()[torch.randperm(value.numel(), generator=rng)].view_as(value)


def redraw(network: nn.Module) -> None:
    """Shuffle each parameter of a freshly drawn network in place: a new draw for any layer, whatever drew the first."""
    for weight in network.parameters():
        weight.data = in_random_order(weight.data)
