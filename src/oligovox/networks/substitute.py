"""Substitute: a learnable image that stands where a pretext shows nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Substitute(nn.Module):
    """One lattice a sequence, stretched trilinearly over whatever patch there is; starts at 0, the mean of every image.

    It has no place in the head: it is one picture for all patches. Where every patch is the whole head, it is a coarse head.

    Args:
        sequences: how many images.
        size: lattice points along each side; 1 is one value for each sequence.
        rate: the lattice is stored divided by this. An optimiser that ignores the scale of gradients, such as Adam, then moves
            the image this many times faster than the other weights.
    """

    def __init__(self, sequences: int, size: int, rate: float = 1.0) -> None:
        super().__init__()
        self.rate = rate
        self.stored = nn.Parameter(torch.zeros(sequences, size, size, size))

    @property
    def lattice(self) -> Float[Tensor, "m i i i"]:
        """The control points of the images."""
        return self.rate * self.stored

    def forward(self, sides: Sequence[int]) -> Float[Tensor, "m x y z"]:
        """The images at the size of a patch; the outermost points lie on its outermost voxels."""
        image: Tensor = nn.functional.interpolate(
            self.lattice[None], tuple(sides), mode="trilinear", align_corners=True
        )
        return image[0]

    def spread(self) -> Float[Tensor, ""]:
        """Euclidean norm of lattice − its mean, which is taken for each sequence apart; 0, with a gradient of 0, where flat."""
        lattice = self.lattice.flatten(1)
        norm: Tensor = torch.linalg.vector_norm(lattice - lattice.mean(1, keepdim=True))
        return norm
