"""THE CONTRACT: what a pretext, a semi-supervised strategy and a supervised task have in common.

One loop (`engine/fit.py`) runs them all. A method is one file with `Settings`, a frozen `Views` dataclass, one final class
built as `METHOD(encoder, settings)`, and the line `METHOD = TheClass`; it reads like its paper: settings → views → heads → losses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from oligovox.sample.batch import Batch

V = TypeVar("V")


@dataclass(frozen=True)
class Clock:
    """Where training stands.

    Attributes:
        step: optimiser steps done, from 0.
        total: optimiser steps planned.
    """

    step: int
    total: int

    @property
    def progress(self) -> float:
        """In [0, 1]."""
        return self.step / max(1, self.total)


@dataclass(frozen=True)
class Losses:
    """Named scalars of one step.

    Attributes:
        terms: unweighted loss terms.
        weights: weight of each term; 1 where none is given.
        notes: only logged.
        carry: handed back to `after_step`, detached (for queues and centres).
    """

    terms: Mapping[str, Float[Tensor, ""]]
    weights: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, float] = field(default_factory=dict)
    carry: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Float[Tensor, ""]:
        """Σ weight · term."""
        return torch.stack([self.weights.get(name, 1.0) * term for name, term in self.terms.items()]).sum()


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method asks of the data; checked before step 0, where an error says what is missing.

    Attributes:
        modalities: smallest number of sequences in the plan.
        labels: needs labelled cases.
        unlabelled: needs unlabelled cases beside them; where there are none, cases labelled in part, whose other voxels are unlabelled.
        whole_cases: those labelled in part do not do: it tells labelled cases from unlabelled ones.
        patch_multiple: every patch side must be a multiple of it (the encoder's own multiple is checked as well).
        batch: fewest patches in a micro-batch of one process.
        together: fewest patches in a micro-batch of all processes together; 2 where patches of all of them are told apart from each other.
        apart: the patches of a step are of different people, as far as there are so many: what they are told apart by must not be one brain.
        unflipped: exams must not be flipped before, because a flip along two axes is a half turn, and half turns are asked for.
    """

    modalities: int = 1
    labels: bool = False
    unlabelled: bool = False
    whole_cases: bool = False
    patch_multiple: int = 1
    batch: int = 1
    together: int = 1
    apart: bool = False
    unflipped: bool = False


class Method(nn.Module, ABC, Generic[V]):
    """A way to learn: from a Batch to Losses. Knows no optimiser, device, precision, logger or loop.

    Attributes:
        needs: what it asks of the data; set on the class, or on the instance where it depends on a setting.
    """

    needs: Needs = Needs()

    def check_patch(self, sides: tuple[int, int, int]) -> None:  # optional on purpose
        """Refuse a patch that the method can make nothing of, beyond what `needs` says; asked before step 0. Default: takes all.

        Args:
            sides: of the patch, in voxels.

        Raises:
            GeometryError: one line that says what to change.
        """

    @abstractmethod
    def views(self, batch: Batch, rng: torch.Generator) -> V:
        """What the networks are shown, and the targets.

        All randomness comes from `rng`, which lives on the batch's device; the batch is not changed. No gradient is taken here.
        """

    @abstractmethod
    def losses(self, views: V, clock: Clock) -> Losses:
        """Forward and loss. Changes nothing on self, so that the same call serves validation and accumulation."""

    def begin(self, load: Callable[[nn.Module], None]) -> None:
        """Take over a start, once, before the first step. Default: what is exported is loaded.

        Args:
            load: writes pre-trained weights into a module that has `encoder` and maybe `decoder`. Strategies of several networks
                call it for each, and let their teachers follow.
        """
        load(self.export())

    def after_step(self, losses: Losses, clock: Clock) -> None:  # optional on purpose
        """Once after each optimiser step (with the last micro-batch's losses): EMA, queue, centre. Default: nothing."""

    @abstractmethod
    def export(self) -> nn.Module:
        """What leaves training.

        A pretext exports a module with `encoder` and, if it trained one, `decoder`; a task or a strategy exports a module with
        `encoder`, `decoder`, `head` that maps (image, present) to logits. A classification has no decoder: one logit a sample.
        """
