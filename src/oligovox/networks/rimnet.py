"""RimNet: two branches of plain convolutions that meet after their first block and again at the end.

Source: Barquero et al. 2020 (RimNet, NeuroImage: Clinical 28:102412), of which we have the abstract, and sizes from a public PyTorch port said to
    mirror the original: three blocks of two 3³ convolutions with tanh, max pooling, one channel of each branch handed to linear layers.
Deviates: QSM stands where the paper has phase; both branches are full, as in the paper, while the port cuts one after its first block; each
    reads beside its sequence whether it was acquired; the linear layers are the head of `lesion_classification`, where `grid` 8 flattens a 64³ patch.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.cohort.modalities import SequenceName
from oligovox.errors import SettingsError
from oligovox.networks.encoder import Encoder, with_availability

Preset = Literal["paper", "cpu", "nano"]
PRESETS: dict[Preset, tuple[int, int, int]] = {"paper": (32, 64, 128), "cpu": (16, 32, 64), "nano": (4, 8, 16)}
"""Channels of the three blocks. cpu: half of the paper's, in about a quarter of the time. nano: tests."""


class Settings(base.Settings):
    """Size of RimNet, and its two sequences."""

    preset: Preset = Field("paper", description="channels of the three blocks, see PRESETS")
    first: SequenceName = Field("QSM", description="sequence whose first block the other branch reads as well")
    second: SequenceName = Field("FLAIR", description="sequence of the other branch")

    @model_validator(mode="after")
    def _two(self) -> Settings:
        if self.first == self.second:
            raise ValueError(f"first and second are both {self.first}; name two")
        return self


class RimNet(Encoder):
    """Features: the three blocks, both branches side by side, and the one channel that each hands on.

    Raises:
        SettingsError: the plan lacks one of the two sequences; names it.
    """

    def __init__(self, modalities: tuple[str, ...], settings: Settings) -> None:
        super().__init__()
        pair = (settings.first, settings.second)
        if missing := [name for name in pair if name not in modalities]:
            raise SettingsError(
                f"network rimnet reads {' and '.join(pair)}, the plan has {', '.join(modalities)}: {', '.join(missing)} is missing; "
                "prepare it, or name another first or second"
            )
        widths = PRESETS[settings.preset]
        self.modalities, self.pair = modalities, pair
        self.modality_weights = {}
        self.channels = (*(2 * width for width in widths), 2)
        self.strides = (2, 4, 8, 8)
        self.blocks = nn.ModuleDict({name: _blocks(widths, joined=name == settings.second) for name in pair})
        self.squeeze = nn.ModuleDict({name: nn.Conv3d(widths[-1], 1, 1) for name in pair})
        self.apply(_xavier)

    def forward(self, image: Float[Tensor, "b m x y z"], present: Bool[Tensor, "b m"]) -> tuple[Tensor, ...]:
        """Features, shallow to deep; see `Encoder.forward`.

        Raises:
            GeometryError: a side is not a multiple of 8.
        """
        self.check_sides(image.shape[2:])
        seen = []
        for name in self.pair:
            index = [self.modalities.index(name)]
            seen.append(with_availability(image[:, index], present[:, index]))
        first, second = (self.blocks[name] for name in self.pair)
        a, b = first[0](seen[0]), second[0](seen[1])  # type: ignore[index]
        features = [torch.cat([a, b], dim=1)]
        b = torch.cat([b, a], dim=1)
        for stage in (1, 2):
            a, b = first[stage](a), second[stage](b)  # type: ignore[index]
            features.append(torch.cat([a, b], dim=1))
        last = [self.squeeze[name](x) for name, x in zip(self.pair, (a, b), strict=True)]
        return (*features, torch.cat(last, dim=1))


def _blocks(widths: tuple[int, ...], joined: bool) -> nn.ModuleList:
    entering = [2, *widths[:-1]]  # a sequence and its availability
    if joined:
        entering[1] *= 2
    return nn.ModuleList(_block(before, width) for before, width in zip(entering, widths, strict=True))


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    layers = nn.Sequential()
    for before, after in pairwise((channels_in, channels_out, channels_out)):
        layers.extend([nn.Conv3d(before, after, 3, padding=1), nn.Tanh()])
    return layers.append(nn.MaxPool3d(2))


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d):
        nn.init.xavier_uniform_(module.weight)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


NETWORK = RimNet
