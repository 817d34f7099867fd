"""Flips and quarter turns: what can be done to a cube without touching a value.

Source: augmentation of veronicapignedoli/FRODO, arXiv 2606.16756: a flip of each axis with probability ½, then one rotation by a multiple of 90°
in one random plane, the same for all sequences.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from oligovox.sample.batch import Batch
from oligovox.settings import Settings

_PLANES = ((0, 1), (0, 2), (1, 2))


class Turns(Settings):
    """How often."""

    flip: float = Field(0.5, ge=0, le=1, description="probability, for each axis")
    turn: float = Field(
        1.0, ge=0, le=1, description="probability of a rotation by 0, 90, 180 or 270° in a random plane"
    )


def turned(batch: Batch, settings: Turns, rng: torch.Generator) -> Batch:
    """Flip and turn each sample by itself, all its maps alike.

    Args:
        batch: of cubes with isotropic voxels; is not changed.
        settings: how often.
        rng: one number is taken from it, whatever the settings.
    """
    seed = int(torch.randint(2**63 - 1, (), generator=rng, device=rng.device))
    host = torch.Generator().manual_seed(seed)
    b = len(batch)
    flips = torch.rand((b, 3), generator=host) < settings.flip
    turns = torch.where(torch.rand(b, generator=host) < settings.turn, torch.randint(4, (b,), generator=host), 0)
    planes = torch.randint(3, (b,), generator=host)

    def moved(values: Tensor) -> Tensor:
        """(b, …, x, y, z)."""
        samples = []
        for sample, axes, times, plane in zip(values, flips.tolist(), turns.tolist(), planes.tolist(), strict=True):
            first = sample.ndim - 3
            flipped = sample.flip([first + axis for axis, there in enumerate(axes) if there])
            across = [first + axis for axis in _PLANES[plane]]
            samples.append(torch.rot90(flipped, times, across))
        return torch.stack(samples)

    label = None if batch.label is None else moved(batch.label)
    return replace(batch, image=moved(batch.image), foreground=moved(batch.foreground), label=label)
