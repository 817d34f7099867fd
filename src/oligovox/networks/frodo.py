"""FRODO: one sequence is the signal, another its condition: a stem for each, a voxel-wise modulation of one by the other, a trunk.

Source: Pignedoli, Boffa, Noceti, Inglese, Odone, Moro 2026 (asymmetric QSM-FLAIR classification of rim lesions, arXiv 2606.16756) and its public
    code (veronicapignedoli/FRODO).
Deviates: each stem reads beside its sequence whether it was acquired; the ablations are settings; `cpu` and `nano` are sizes of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.cohort.modalities import SequenceName
from oligovox.errors import SettingsError
from oligovox.networks.blocks import group_norm, initialise
from oligovox.networks.encoder import Encoder, with_availability

Preset = Literal["paper", "cpu", "nano"]
Fusion = Literal["film", "global_film", "symmetric_film", "concat", "early", "late", "alone"]


@dataclass(frozen=True)
class Widths:
    """Channels of one preset.

    Attributes:
        entry: of a stem's first convolution, at the stem's stride.
        features: of the stem's end and of the trunk's two stages, each at half the grid of the one before.
        stride: of the first convolution.
    """

    entry: int
    features: tuple[int, int, int]
    stride: int = 1


PRESETS: dict[Preset, Widths] = {
    "paper": Widths(16, (32, 64, 128)),
    "cpu": Widths(16, (32, 64, 128), stride=2),
    "nano": Widths(4, (8, 16, 32)),
}
"""paper: the paper's. cpu: the same on half the grid, in a tenth of the time. nano: tests."""

_SQUEEZE, _LEAST = 16, 4  # channels for each unit of a squeeze-excitation; units at least


class Settings(base.Settings):
    """Sizes of FRODO, which sequence plays which part, and how the two meet."""

    preset: Preset = Field("paper", description="channels, see PRESETS")
    primary: SequenceName = Field("QSM", description="sequence that is classified")
    condition: SequenceName = Field(
        "FLAIR", description="sequence that says where to look; exchanged with primary: the reverse asymmetry"
    )
    fusion: Fusion = Field(
        "film",
        description="film: of the condition onto the primary, voxel by voxel; global_film: one scale and shift for all voxels; symmetric_film: "
        "both ways; concat: neither; early: two channels of one stem; late: two full trunks side by side; alone: the primary only",
    )
    squeeze_excitation: bool = Field(True, description="gates on the channels after each stage of the trunk")

    @model_validator(mode="after")
    def _two(self) -> Settings:
        if self.fusion != "alone" and self.primary == self.condition:
            raise ValueError(f"primary and condition are both {self.primary}; name two, or choose fusion alone")
        return self

    @property
    def sequences(self) -> tuple[str, ...]:
        """Those that are read."""
        return (self.primary,) if self.fusion == "alone" else (self.primary, self.condition)


class PreActivation(nn.Module):
    """Norm, ReLU, 3³ convolution, twice, beside a skip, which is a 1³ convolution where the shape changes.

    Source: He et al. 2016 (identity mappings in deep residual networks, arXiv 1603.05027).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            group_norm(channels_in),
            nn.ReLU(inplace=True),
            nn.Conv3d(channels_in, channels_out, 3, stride, padding=1, bias=False),
            group_norm(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv3d(channels_out, channels_out, 3, padding=1, bias=False),
        )
        same = stride == 1 and channels_in == channels_out
        self.skip = nn.Identity() if same else nn.Conv3d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "b i x y z"]) -> Float[Tensor, "b o u v w"]:
        """(b, channels_in, x, y, z) → (b, channels_out, x / stride, y / stride, z / stride)."""
        summed: Tensor = self.skip(x) + self.body(x)
        return summed


class SqueezeExcitation(nn.Module):
    """One gate a channel and sample, from the means over the grid.

    Source: Hu et al. 2018, arXiv 1709.01507.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(_LEAST, channels // _SQUEEZE)
        self.gate = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, x: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b c x y z"]:
        """Same shape."""
        gate: Tensor = self.gate(x.mean(dim=(2, 3, 4)))
        return x * gate[:, :, None, None, None]


class FiLM(nn.Module):
    """(1 + γ) ⊙ z + β, with γ and β made of a condition by 1³ convolutions that start at 0: at first z goes through as it is.

    Source: Perez et al. 2018, "FiLM", arXiv 1709.07871, there with one γ and β for a whole channel.

    Args:
        channels: of both features.
        whole: one γ and β a channel, from the condition's mean over the grid; else one in every voxel.
    """

    def __init__(self, channels: int, *, whole: bool) -> None:
        super().__init__()
        self.whole = whole
        self.scale = nn.Conv3d(channels, channels, 1)
        self.shift = nn.Conv3d(channels, channels, 1)

    def identity(self) -> None:
        """Set γ = β = 0."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, z: Float[Tensor, "b c x y z"], condition: Float[Tensor, "b c x y z"]
    ) -> Float[Tensor, "b c x y z"]:
        """The shape of z."""
        if self.whole:
            condition = condition.mean(dim=(2, 3, 4), keepdim=True)
        modulated: Tensor = (1 + self.scale(condition)) * z + self.shift(condition)
        return modulated


class Frodo(Encoder):
    """Stems by sequence name, the modulation, a 1³ convolution of both, and the trunk.

    Features: what enters the trunk, and its two stages; with fusion late those of both trunks, joined.

    Attributes:
        stems: sequence name → its stem; with fusion early one stem, as "QSM+FLAIR".
        stem_channels: of what a stem makes.

    Raises:
        SettingsError: the plan lacks a sequence that is read; names it.
    """

    normalised = True

    def __init__(self, modalities: tuple[str, ...], settings: Settings) -> None:
        super().__init__()
        if missing := [name for name in settings.sequences if name not in modalities]:
            raise SettingsError(
                f"network frodo reads {' and '.join(settings.sequences)}, the plan has {', '.join(modalities)}: {', '.join(missing)} is missing; "
                "prepare it, name another primary or condition, or choose fusion alone"
            )
        sizes, self.settings = PRESETS[settings.preset], settings
        width = self.stem_channels = sizes.features[0]
        self.modalities = modalities
        self.modality_weights = {}  # a stem has its sequence's name, so that its weights move by name as they are
        streams = [settings.sequences] if settings.fusion == "early" else [(name,) for name in settings.sequences]
        self.stems = nn.ModuleDict({"+".join(names): _stem(len(names), sizes) for names in streams})
        self.modulate, self.fuse = nn.ModuleList(), nn.Sequential()
        if settings.fusion in ("film", "global_film", "symmetric_film"):
            ways = 2 if settings.fusion == "symmetric_film" else 1
            self.modulate.extend(FiLM(width, whole=settings.fusion == "global_film") for _ in range(ways))
        if len(streams) == 2 and settings.fusion != "late":
            self.fuse.append(nn.Conv3d(2 * width, width, 1))
        trunks = 2 if settings.fusion == "late" else 1
        self.trunks = nn.ModuleList(_trunk(sizes, settings.squeeze_excitation) for _ in range(trunks))
        self.channels = tuple(trunks * channels for channels in sizes.features)
        self.strides = tuple(sizes.stride * 2 ** (level + 1) for level in range(len(sizes.features)))
        self.apply(initialise)
        for film in self.modulate:
            assert isinstance(film, FiLM)
            film.identity()

    def forward(self, image: Float[Tensor, "b m x y z"], present: Bool[Tensor, "b m"]) -> tuple[Tensor, ...]:
        """Features, shallow to deep; see `Encoder.forward`.

        Raises:
            GeometryError: a side is not a multiple of the deepest stride, or a single voxel would be left there.
        """
        self.check_sides(image.shape[2:])
        stemmed = [self.stem(key, image, present) for key in self.stems]
        entering = stemmed if len(self.trunks) == 2 else [self._meet(*stemmed)]
        levels = [entering]
        for stage in range(len(self.channels) - 1):
            levels.append([trunk[stage](x) for trunk, x in zip(self.trunks, levels[-1], strict=True)])  # type: ignore[index]
        return tuple(torch.cat(level, dim=1) for level in levels)

    def stem(
        self, key: str, image: Float[Tensor, "b m x y z"], present: Bool[Tensor, "b m"]
    ) -> Float[Tensor, "b c u v w"]:
        """What the stem of one sequence makes of it, before anything of another is mixed in.

        Args:
            key: name of the sequence; with fusion early both, as "QSM+FLAIR".
            image: of all sequences of the plan.
            present: which of them may be relied on.
        """
        index = [self.modalities.index(name) for name in key.split("+")]
        feature: Tensor = self.stems[key](with_availability(image[:, index], present[:, index]))
        return feature

    def _meet(self, primary: Tensor, condition: Tensor | None = None) -> Tensor:
        """One feature of one or two stems."""
        if condition is None:
            return primary
        pair = [primary, condition]
        for way, film in enumerate(self.modulate):  # each sees the other as its stem made it
            pair[way] = film((primary, condition)[way], (condition, primary)[way])
        fused: Tensor = self.fuse(torch.cat(pair, dim=1))
        return fused


def _stem(sequences: int, sizes: Widths) -> nn.Sequential:
    entry, width = sizes.entry, sizes.features[0]
    return nn.Sequential(
        nn.Conv3d(2 * sequences, entry, 3, sizes.stride, padding=1, bias=False),
        PreActivation(entry, entry),
        PreActivation(entry, entry),
        PreActivation(entry, width, stride=2),
        PreActivation(width, width),
    )


def _trunk(sizes: Widths, gated: bool) -> nn.ModuleList:
    return nn.ModuleList(
        nn.Sequential(
            PreActivation(before, width, stride=2),
            PreActivation(width, width),
            SqueezeExcitation(width) if gated else nn.Identity(),
        )
        for before, width in pairwise(sizes.features)
    )


NETWORK = Frodo
