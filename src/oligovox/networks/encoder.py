"""Encoder: the contract between any backbone, any pretext and any decoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from oligovox.networks.blocks import check_sides


class Encoder(nn.Module, ABC):
    """Image → features, shallow to deep.

    Constructed as `NETWORK(modalities, settings)`. An abstract module, not a Protocol: methods register it as a child.

    Attributes:
        modalities: names of the input channels, in order.
        channels: channels of each feature map, shallow to deep.
        strides: downsampling of each feature map against the image; the last one divides every patch side.
        modality_weights: state-dict name of each tensor whose second axis runs over the input channels
            (see `with_availability`) → number of channel groups in it, so that weights can be moved by modality name.
        by_sequence: of these the axis runs over the sequences, and several acquisitions of one share its slice.
        normalised: the deepest map goes through a norm over its voxels, which leaves nothing of a single one.
        flat_mean: the deepest map goes through an instance norm, so that its mean over space is nearly the same whatever is shown; heads on it standardise.
        apart: of these, those whose channels meet in no sum: they are moved as they are, whatever the number of sequences.
    """

    modalities: tuple[str, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    modality_weights: Mapping[str, int]
    by_sequence: bool = False
    normalised: bool = False
    flat_mean: bool = False
    apart: frozenset[str] = frozenset()

    def check_sides(self, sides: Sequence[int]) -> None:
        """Refuse a patch that the network cannot halve all the way down.

        Args:
            sides: of the patch, in voxels.

        Raises:
            GeometryError: says the next size that fits.
        """
        check_sides(sides, self.strides[-1], normalised=self.normalised)

    @abstractmethod
    def forward(self, image: Float[Tensor, "b m x y z"], present: Bool[Tensor, "b m"]) -> tuple[Tensor, ...]:
        """Features `(b, channels[i], x / strides[i], y / strides[i], z / strides[i])`, shallow to deep.

        Args:
            image: 0 where the sequence is absent; sides are multiples of `strides[-1]`.
            present: which sequences the network may rely on; a hidden one is told apart from dark tissue by this alone.

        Raises:
            GeometryError: a side is not a multiple of `strides[-1]`; says the next one that is.
        """


def with_availability(image: Float[Tensor, "b m x y z"], present: Bool[Tensor, "b m"]) -> Float[Tensor, "b n x y z"]:
    """m data channels followed by m constant 0/1 channels, n = 2 m."""
    maps = present.to(image.dtype)[:, :, None, None, None].expand_as(image)
    return torch.cat([image, maps], dim=1)
