"""Vision transformer encoder: tokens of all sequences in one row, and a pyramid of convolutions that makes U-Net features of them.

Source: Dosovitskiy et al. 2021 (an image is worth 16x16 words, arXiv 2010.11929); tokens of several sequences in one row as in
  Robinet et al. 2025 (BM-MAE, arXiv 2505.00568); the pyramid after Hatamizadeh et al. 2022 (UNETR, arXiv 2103.10504).
Deviates: no class token; no bias before attention; at each place the pyramid reads the mean over the sequences that are there; one
  upsampling, norm and leaky ReLU a step, no further convolution; the default is small, and its tokens have 8³ voxels instead of 16³.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.networks.blocks import SLOPE, ResidualBlock, initialise
from oligovox.networks.encoder import Encoder, with_availability


class Settings(base.Settings):
    """Sizes of the vision transformer. BM-MAE's are token 16, width 768, depth 12, heads 12."""

    token: Literal[4, 8, 16] = Field(8, description="side of a token in voxels; the deepest stride")
    width: int = Field(192, ge=6, description="channels of a token; a multiple of 6 and of heads")
    depth: int = Field(6, ge=1, description="attention blocks")
    heads: int = Field(6, ge=1, description="attention heads in each block")
    expansion: int = Field(2, ge=1, description="hidden units of a block's perceptron, as a multiple of width")
    feature_size: int = Field(16, ge=1, description="channels at full resolution; twice as many at each coarser stride")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Settings:
        if self.width % 6 or self.width % self.heads:
            raise ValueError(f"width {self.width} with {self.heads} heads; expected a multiple of 6 and of heads")
        return self


class TokenBlock(nn.Module):
    """Pre-norm transformer block: attention, then a perceptron, each beside a skip.

    Args:
        width: channels of a token.
        heads: attention heads.
        hidden: units of the perceptron.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_perceptron = nn.LayerNorm(width), nn.LayerNorm(width)
        self.read = nn.Linear(width, 3 * width, bias=False)
        self.write = nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: Float[Tensor, "b n d"], seen: Bool[Tensor, "b n"] | None) -> Float[Tensor, "b n d"]:
        """Every token reads those that are seen; all where `seen` is None (see `attention_mask`)."""
        query, key, value = (
            self.read(self.before_attention(tokens)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        mask = None if seen is None else seen[:, None, None, :]
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        tokens = tokens + self.write(mixed.transpose(1, 2).flatten(2))
        written: Tensor = tokens + self.perceptron(self.before_perceptron(tokens))
        return written


class ViT(Encoder):
    """Features: convolutions at full resolution, hidden states of the transformer brought up to strides 2, 4, …, its output.

    Tokens of absent sequences are left out. A pretext that works on tokens calls `tokenise` and `transform` itself, and trains
    neither `full` nor `pyramid`. Each sequence has its own token filter, a slice of `filters` and `offsets`, and tokens are never summed.
    """

    def __init__(self, modalities: tuple[str, ...], settings: Settings) -> None:
        super().__init__()
        m, width, levels = len(modalities), settings.width, int(math.log2(settings.token))
        self.modalities = modalities
        self.token, self.width = settings.token, width
        self.strides = tuple(2**level for level in range(levels + 1))
        self.channels = (*(settings.feature_size * stride for stride in self.strides[:-1]), width)
        self.taps = tuple(math.ceil(settings.depth * level / levels) - 1 for level in range(1, levels))
        self.modality_weights = {"filters": 1, "offsets": 1, "full.0.weight": 2}
        self.apart = frozenset({"filters", "offsets"})
        self.filters = nn.Parameter(torch.randn(width, m, *[settings.token] * 3) * settings.token**-1.5)
        self.offsets = nn.Parameter(torch.randn(width, m) * 0.02)
        hidden = settings.expansion * width
        self.blocks = nn.ModuleList(TokenBlock(width, settings.heads, hidden) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(width)
        self.full = nn.Sequential(
            nn.Conv3d(2 * m, settings.feature_size, 3, padding=1),
            nn.LeakyReLU(SLOPE, inplace=True),
            ResidualBlock(settings.feature_size, settings.feature_size),
        )
        self.pyramid = nn.ModuleList(
            _upwards(width, self.channels[level], levels - level) for level in range(1, levels)
        )
        self.apply(initialise)

    def forward(self, image: Float[Tensor, "b m x y z"], present: Bool[Tensor, "b m"]) -> tuple[Tensor, ...]:
        """Features, shallow to deep; see `Encoder.forward`. A sample without any sequence reads its zeros.

        Raises:
            GeometryError: a side is not a multiple of `token`.
        """
        self.check_sides(image.shape[2:])
        grid = [side // self.token for side in image.shape[2:]]
        seen = present | ~present.any(1, keepdim=True)
        states = self.transform(self.tokenise(image).flatten(1, 2), seen.repeat_interleave(math.prod(grid), 1))
        share = (seen / seen.sum(1, keepdim=True))[:, :, None, None]

        def at_places(state: Float[Tensor, "b n d"]) -> Float[Tensor, "b d i j k"]:
            b, m = seen.shape
            over_sequences = (state.reshape(b, m, -1, self.width) * share).sum(1)
            return over_sequences.transpose(1, 2).reshape(b, self.width, *grid)

        between = (up(at_places(states[tap])) for tap, up in zip(self.taps, self.pyramid, strict=True))
        return (self.full(with_availability(image, present)), *between, at_places(states[-1]))

    def tokenise(self, image: Float[Tensor, "b m x y z"]) -> Float[Tensor, "b m n d"]:
        """One token for each sequence and cube of `token`³ voxels, with its position; nothing is mixed yet."""
        cubes = to_cubes(image, self.token)
        tokens = torch.einsum("bmnv,dmv->bmnd", cubes, self.filters.flatten(2)) + self.offsets.T[:, None]
        return tokens + positions([side // self.token for side in image.shape[2:]], self.width).to(image.device)

    def transform(self, tokens: Float[Tensor, "b n d"], seen: Bool[Tensor, "b n"]) -> list[Tensor]:
        """The state after each block, the last one normalised; tokens that are not seen are read by nobody."""
        mask = attention_mask(seen)
        states = []
        for block in self.blocks:
            tokens = block(tokens, mask)
            states.append(tokens)
        return [*states[:-1], self.norm(states[-1])]


def attention_mask(seen: Bool[Tensor, "b n"]) -> Bool[Tensor, "b n"] | None:
    """What blocks take: None where every token is seen, which is faster; a sample that sees none reads all, not nothing."""
    return None if bool(seen.all()) else seen | ~seen.any(1, keepdim=True)


def to_cubes(image: Float[Tensor, "b m x y z"], side: int) -> Float[Tensor, "b m n v"]:
    """The voxels of each cube; cubes in the order of their x, y, z."""
    b, m, x, y, z = image.shape
    cut = image.reshape(b, m, x // side, side, y // side, side, z // side, side)
    return cut.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(b, m, -1, side**3)


def from_cubes(cubes: Float[Tensor, "b m n v"], sides: Sequence[int]) -> Float[Tensor, "b m x y z"]:
    """The image that `to_cubes` cut."""
    b, m, _, voxels = cubes.shape
    side = round(voxels ** (1 / 3))
    cut = cubes.reshape(b, m, *(length // side for length in sides), side, side, side)
    return cut.permute(0, 1, 2, 5, 3, 6, 4, 7).reshape(b, m, *sides)


def positions(grid: Sequence[int], width: int) -> Float[Tensor, "n d"]:
    """Sines and cosines of x, y and z, a third of the width each, wavelengths 2π to 20 000π; tokens in the order of `to_cubes`.

    Source: Vaswani et al. 2017, arXiv 1706.03762, one axis at a time.
    """
    rates = 10_000.0 ** -torch.linspace(0, 1, width // 6)
    angles = torch.cartesian_prod(*(torch.arange(float(length)) for length in grid))[:, :, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


def _upwards(width: int, channels: int, steps: int) -> nn.Sequential:
    """Doubles the grid `steps` times."""
    layers: list[nn.Module] = []
    for entering in (width, *[channels] * (steps - 1)):
        layers += [
            nn.ConvTranspose3d(entering, channels, 2, stride=2, bias=False),
            nn.InstanceNorm3d(channels, affine=True),
            nn.LeakyReLU(SLOPE, inplace=True),
        ]
    return nn.Sequential(*layers)


NETWORK = ViT
