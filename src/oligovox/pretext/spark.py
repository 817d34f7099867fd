"""SparK: a convolutional network reads only the visible blocks, as if the others did not exist, and a U-Net decoder restores them.

Source: Tian et al. 2023 (designing BERT for convolutional networks: sparse and hierarchical masked modeling, arXiv 2301.03580).
Deviates: the sparse convolution is a dense one whose input is zero at hidden places, which gives the same numbers; the target is
    not normalised block by block; only hidden voxels of the foreground and of acquired sequences are counted; a learnt
    vector, not a projection, fills the hidden places of each feature; the decoder is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import final

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.errors import SettingsError
from oligovox.losses.masked import masked_mean
from oligovox.losses.outliers import slope_note
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.compose import EncoderDecoder
from oligovox.networks.decoder import Decoder
from oligovox.networks.encoder import Encoder
from oligovox.networks.heads import ReconstructionHead
from oligovox.sample.batch import Batch
from oligovox.sample.masks import block_voxels, check_hidden

_SPATIAL = (nn.Conv3d, nn.AvgPool3d)  # read 0 at hidden places
_POINTWISE = (nn.LeakyReLU, nn.ReLU, nn.GELU, nn.Identity)


class Settings(base.Settings):
    """Choices of SparK."""

    ratio: float = Field(0.75, gt=0, lt=1, description="share of the blocks that are hidden; one always stays")
    block: int = Field(
        16, ge=1, description="edge of a block in voxels; rounded up to a multiple of the encoder's deepest stride"
    )


@dataclass(frozen=True)
class Views:
    """What is shown, and what it is compared with.

    Attributes:
        image: the image with zeros where blocks are hidden.
        present: sequences that were acquired.
        visible: the voxels that exist for the encoder; the same in all sequences.
        target: the whole image.
        counted: hidden voxels of the foreground and of acquired sequences.
    """

    image: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    visible: Bool[Tensor, "b 1 x y z"]
    target: Float[Tensor, "b m x y z"]
    counted: Bool[Tensor, "b m x y z"]


@final
class SparK(Method[Views]):
    """Encoder, decoder, a 1 × 1 × 1 head that restores every sequence, and a vector for the hidden places of each feature.

    Raises:
        SettingsError: the encoder has layers other than convolutions, their norms and pointwise activations.
    """

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.block = -(-settings.block // encoder.strides[-1]) * encoder.strides[-1]
        self.needs = Needs(patch_multiple=encoder.strides[-1])
        self.network = EncoderDecoder(encoder, Decoder(encoder.channels, encoder.strides))
        self.restore = ReconstructionHead(self.network.decoder.channels[0], len(encoder.modalities))
        self.tokens = nn.ParameterList(torch.randn(width, 1, 1, 1) * 0.02 for width in encoder.channels)
        _check(encoder)

    def check_patch(self, sides: tuple[int, int, int]) -> None:
        """Some blocks are hidden."""
        blocks = prod(self._grid(sides))
        check_hidden(self._number(blocks), blocks)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Hide blocks of a grid that every feature's grid divides; the same ones in every sequence."""
        b, _, *sides = batch.image.shape
        grid = self._grid(sides)
        rank = torch.rand(b, prod(grid), generator=rng, device=rng.device).argsort(1).argsort(1)
        number = self._number(prod(grid))
        visible = block_voxels((rank >= number).reshape(b, 1, *grid), self.block, sides)
        counted = ~visible & batch.foreground & batch.present[:, :, None, None, None]
        return Views(batch.image.where(visible, 0.0), batch.present, visible, batch.image, counted)

    def _grid(self, sides: Sequence[int]) -> list[int]:
        return [-(-side // self.block) for side in sides]

    def _number(self, blocks: int) -> int:
        """Hidden ones; one always stays."""
        return min(round(self.settings.ratio * blocks), blocks - 1)

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Mean squared error over the counted voxels."""
        with sparse(self.network.encoder, views.visible):
            features = self.network.encoder(views.image, views.present)
        dense = [
            torch.where(at_stride(views.visible, stride), feature, token)
            for feature, token, stride in zip(features, self.tokens, self.network.encoder.strides, strict=True)
        ]
        restored = self.restore(self.network.decoder(dense)[0]).float()
        note = slope_note(restored.detach(), views.target, views.counted, self.network.encoder.modalities)
        return Losses({"restore": masked_mean((restored - views.target).square(), views.counted)}, notes=note)

    def export(self) -> nn.Module:
        """Encoder and decoder; the head and the vectors stay behind."""
        return self.network


@contextmanager
def sparse(encoder: nn.Module, visible: Bool[Tensor, "b 1 x y z"]) -> Iterator[None]:
    """Within it the encoder computes what a submanifold sparse convolution network of the same weights does.

    A sparse convolution reads nothing where its input does not exist. A dense one does the same where its input is zero; so
    inputs are cleared there, the availability channels as well. Norms take their statistics over the visible places. What
    the features hold at hidden places means nothing.
    """

    def clear(layer: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        return inputs[0] * _as(visible, inputs[0])

    def normalise(layer: nn.InstanceNorm3d, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return masked_norm(inputs[0], _as(visible, output), layer)

    hooks = [layer.register_forward_pre_hook(clear) for layer in encoder.modules() if isinstance(layer, _SPATIAL)]
    hooks += [m.register_forward_hook(normalise) for m in encoder.modules() if isinstance(m, nn.InstanceNorm3d)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def masked_norm(
    x: Float[Tensor, "b c x y z"], visible: Bool[Tensor, "b 1 x y z"], norm: nn.InstanceNorm3d
) -> Float[Tensor, "b c x y z"]:
    """Instance norm over the visible places; 0 at the others."""
    value, number = x.float() * visible, visible.sum((2, 3, 4), keepdim=True)
    mean = value.sum((2, 3, 4), keepdim=True) / number
    centred = (value - mean) * visible
    variance = centred.square().sum((2, 3, 4), keepdim=True) / number
    scale, shift = norm.weight[:, None, None, None], norm.bias[:, None, None, None]
    return (centred * (variance + norm.eps).rsqrt() * scale + shift) * visible


def at_stride(visible: Bool[Tensor, "b 1 x y z"], stride: int) -> Bool[Tensor, "b 1 u v w"]:
    """The flags of a coarser grid, whose cells lie in one block each."""
    return visible[:, :, ::stride, ::stride, ::stride]


def _as(visible: Bool[Tensor, "b 1 x y z"], feature: Tensor) -> Bool[Tensor, "b 1 u v w"]:
    return at_stride(visible, visible.shape[2] // feature.shape[2])


def _check(encoder: Encoder) -> None:
    known = (*_SPATIAL, *_POINTWISE, nn.InstanceNorm3d)
    leaves = [
        layer for layer in encoder.modules() if not list(layer.children()) and not isinstance(layer, nn.Sequential)
    ]
    if strange := sorted({type(layer).__name__ for layer in leaves if not isinstance(layer, known)}):
        raise SettingsError(
            f"spark: the encoder has {', '.join(strange)}; expected convolutions, instance norms and activations only; "
            "use resenc with a plain bottleneck, or masked_reconstruction"
        )


METHOD = SparK
