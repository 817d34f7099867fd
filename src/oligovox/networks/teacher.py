"""Teacher: a frozen copy of a student that follows it as an exponential moving average.

Source: Tarvainen and Valpola 2017, "Mean teachers are better role models", arXiv 1703.01780.
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

_TURNOVER = 10.0  # twice the exponent: half a cosine has the mean of its ends


class Teacher(nn.Module):
    """Starts equal to the student; is never trained by gradient, only by `update`.

    Stays in evaluation mode whatever mode the method is put in, except for dropout where that is asked for.

    Attributes:
        module: the averaged copy; this is what to export.

    Args:
        student: any module, or several in an `nn.ModuleDict`.
        dropout: keep dropout layers active while the method trains (several different passes of one input).
    """

    def __init__(self, student: nn.Module, *, dropout: bool = False) -> None:
        super().__init__()
        self.module = deepcopy(student).requires_grad_(False)
        self.dropout = dropout
        self.train(self.training)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the copy makes of these arguments, without a gradient."""
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """Parameters θ' ← momentum · θ' + (1 − momentum) · θ; buffers are copied.

        Args:
            student: the module this teacher was built from.
            momentum: in [0, 1]; 0 copies the student. See `warm_momentum`.
        """
        for mine, theirs in zip(self.module.parameters(), student.parameters(), strict=True):
            mine.lerp_(theirs, 1.0 - momentum)
        for kept, current in zip(self.module.buffers(), student.buffers(), strict=True):
            kept.copy_(current)

    def train(self, mode: bool = True) -> Teacher:
        """Evaluation mode; training mode only for dropout layers, where it was asked for."""
        super().train(False)
        for layer in self.modules():
            if isinstance(layer, _DropoutNd):
                layer.train(mode and self.dropout)
        return self


def warm_momentum(step: int, ceiling: float) -> float:
    """min(1 − 1 / (step + 1), ceiling): the plain mean of the first students, then an exponential one.

    Args:
        step: optimiser steps done, from 0; at 0 the student is copied.
        ceiling: in [0, 1], such as 0.99.
    """
    return min(1.0 - 1.0 / (step + 1), ceiling)


def rising_momentum(step: int, total: int, start: float) -> float:
    """`cosine_momentum` to 1 from `start`, but from 1 − 10 / steps at most: of the first weights e⁻⁵ is left at the end, however short the training.

    From 0.996, as papers of many thousand steps have it, a copy would still hold 14 % of its random first weights after 1000.

    Args:
        step: optimiser steps done, from 0.
        total: optimiser steps planned.
        start: momentum of a long training at its first step, such as 0.996.
    """
    return cosine_momentum(step / max(1, total), min(start, max(0.0, 1.0 - _TURNOVER / max(1, total))))


def cosine_momentum(progress: float, start: float, end: float = 1.0) -> float:
    """From `start` to `end` along half a cosine: slow at first, slow at last.

    Source: Grill et al. 2020, "BYOL", arXiv 2006.07733.

    Args:
        progress: share of training that is done, in [0, 1]; see `Clock.progress`.
        start: momentum at 0, such as 0.996.
        end: momentum at 1; 1 freezes the teacher.
    """
    return end - (end - start) * 0.5 * (1.0 + math.cos(math.pi * progress))
