"""Convolution blocks shared by encoders and decoder, and the check of the image's sides.

Weights are drawn from torch's default generator, as in any module; who builds a network seeds it.
No convolution that is followed by a norm has a bias: the norm would take it off again.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from jaxtyping import Float
from torch import Tensor, nn

from oligovox.errors import GeometryError

SLOPE = 0.01
"""Of every leaky ReLU."""

_GROUPS = (16, 8, 4, 2, 1)


class ConvNormAct(nn.Sequential):
    """3³ convolution, instance norm, leaky ReLU; keeps the grid."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(
            nn.Conv3d(channels_in, channels_out, 3, padding=1, bias=False),
            nn.InstanceNorm3d(channels_out, affine=True),
            nn.LeakyReLU(SLOPE, inplace=True),
        )


class ResidualBlock(nn.Module):
    """Two 3³ convolutions with instance norm beside a skip; the sum goes through a leaky ReLU.

    The skip is the identity; average pooling where the block strides, 1³ convolution and norm where it changes the channels.

    Source: He et al. 2016, as laid out for three dimensions in the residual-encoder presets of Isensee et al. 2024.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(channels_in, channels_out, 3, stride, padding=1, bias=False),
            nn.InstanceNorm3d(channels_out, affine=True),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv3d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.InstanceNorm3d(channels_out, affine=True),
        )
        self.skip = nn.Sequential()
        if stride > 1:
            self.skip.append(nn.AvgPool3d(stride))
        if channels_in != channels_out:
            self.skip.append(nn.Conv3d(channels_in, channels_out, 1, bias=False))
            self.skip.append(nn.InstanceNorm3d(channels_out, affine=True))

    def forward(self, x: Float[Tensor, "b i x y z"]) -> Float[Tensor, "b o u v w"]:
        """(b, channels_in, x, y, z) → (b, channels_out, x / stride, y / stride, z / stride)."""
        return nn.functional.leaky_relu(self.body(x) + self.skip(x), SLOPE, inplace=True)


def group_norm(channels: int) -> nn.GroupNorm:
    """With the largest of 16, 8, 4, 2 and 1 groups that divides the channels.

    Source: Wu and He 2018, arXiv 1803.08494; the numbers are those of FRODO's public code.
    """
    return nn.GroupNorm(next(groups for groups in _GROUPS if channels % groups == 0), channels)


def initialise(module: nn.Module) -> None:
    """He initialisation of one convolution, for `network.apply`; other modules keep their own.

    Source: He et al. 2015.
    """
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def check_sides(sides: Sequence[int], multiple: int, *, normalised: bool) -> None:
    """Refuse an image that the network cannot halve all the way down.

    Args:
        sides: of the image, in voxels.
        multiple: the deepest stride; every side must be a multiple of it.
        normalised: the deepest map goes through an instance norm, which leaves nothing of a single voxel.

    Raises:
        GeometryError: says the next size that fits.
    """
    fits = [multiple * max(1, -(-side // multiple)) for side in sides]
    if normalised and prod(fits) == multiple**3:
        fits = [2 * multiple] * 3
    if list(sides) != fits:
        more = f" and leave more than one voxel at stride {multiple}" if normalised else ""
        raise GeometryError(
            f"image of {_by(sides)} voxels: every side must be a multiple of {multiple}{more}; "
            f"the next size that fits is {_by(fits)}"
        )


def _by(sides: Sequence[int]) -> str:
    return " × ".join(str(side) for side in sides)
