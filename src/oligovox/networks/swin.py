"""Swin transformer encoder of Swin UNETR: shifted-window attention on patches of 2³ voxels, from MONAI's blocks.

Source: Hatamizadeh et al. 2022, "Swin UNETR", arXiv 2201.01266; Tang et al. 2022, arXiv 2111.14791.
Deviates: the skips are the hidden states themselves, without the residual block Swin UNETR puts on most of them; the
  decoder is ours. MONAI is imported when a Swin is built, never with this module (it takes seconds).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.networks.blocks import initialise
from oligovox.networks.encoder import Encoder, with_availability
from oligovox.networks.fusion import Bottleneck, bottleneck
from oligovox.networks.stems import Fusion, Stems, stem_weights

Four = tuple[int, int, int, int]


class Settings(base.Settings):
    """Sizes of the Swin encoder; four stages, each with twice the channels of the one before."""

    feature_size: Literal[12, 24, 48] = Field(24, description="channels of the first stage")
    depths: Four = Field((2, 2, 2, 2), description="attention blocks in each stage")
    heads: Four = Field((3, 6, 12, 24), description="attention heads in each stage; must divide its channels")
    window: int = Field(7, ge=2, description="side of the attention window, in tokens of the stage")
    use_checkpoint: bool = Field(
        False, description="compute attention again in the backward pass: less memory, more time"
    )
    bottleneck: Bottleneck = Field(
        "plain", description="what lies on the deepest feature: nothing, or the contextual fusion block of SLeM"
    )
    fusion: Fusion = base.silent(
        "early",
        description="early: the first layers read all sequences beside availability channels; stems: they read the mean "
        "over one stem a sequence, of those that are there",
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> Settings:
        for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            channels = self.feature_size * 2**stage
            if depth < 1 or heads < 1 or channels % heads:
                raise ValueError(
                    f"stage {stage}: {depth} blocks of {heads} heads for {channels} channels; heads must divide them"
                )
        return self


class Swin(Encoder):
    """Features: a residual block at full resolution, then the five hidden states of the transformer.

    Channels are `feature_size · (1, 1, 2, 4, 8, 16)`, strides 1, 2, 4, 8, 16, 32. The hidden states are layer-normalised
    over their channels, without learnt scale; the deepest one then goes through the bottleneck. The full-resolution block
    lies beside the transformer, not before it: a method that reads only the deep features gives it no gradient. It ends in
    instance norms, so that it hardly sees the availability channels; the transformer does. With fusion `stems` both read the stems' mean,
    which has `feature_size` channels at full resolution.
    """

    def __init__(self, modalities: tuple[str, ...], settings: Settings) -> None:
        from monai.networks.blocks.unetr_block import UnetrBasicBlock
        from monai.networks.nets.swin_unetr import SwinTransformer

        super().__init__()
        size = settings.feature_size
        self.modalities = modalities
        self.channels = (size, size, 2 * size, 4 * size, 8 * size, 16 * size)
        self.strides = (1, 2, 4, 8, 16, 32)
        self.stem = Stems(modalities, size) if settings.fusion == "stems" else None
        entering = size if self.stem else 2 * len(modalities)
        self.full = UnetrBasicBlock(3, entering, size, 3, 1, norm_name="instance", res_block=True)
        with torch.device("cpu"):  # it reads numbers out of a tensor, which the meta device of a dry build cannot give
            self.transformer = SwinTransformer(
                in_chans=entering,
                embed_dim=size,
                window_size=(settings.window,) * 3,
                patch_size=(2, 2, 2),
                depths=settings.depths,
                num_heads=settings.heads,
                use_checkpoint=settings.use_checkpoint,
            )
        self.normalised = settings.bottleneck == "contextual_fusion"
        self.bottleneck = bottleneck(settings.bottleneck, self.channels[-1]).apply(initialise)
        reads_image = (
            "transformer.patch_embed.proj.weight",
            "full.layer.conv1.conv.weight",
            "full.layer.conv3.conv.weight",
        )
        ours = self.state_dict()
        early = {name: 2 for name in reads_image if name in ours}  # no conv3 where 2 m = feature_size
        self.modality_weights = stem_weights("stem") if self.stem else early
        self.by_sequence = self.stem is not None

    def forward(self, image: Float[Tensor, "b m x y z"], present: Bool[Tensor, "b m"]) -> tuple[Tensor, ...]:
        """Features, shallow to deep; see `Encoder.forward`.

        Raises:
            GeometryError: a side is not a multiple of 32, or a single voxel would be left to contextual fusion.
        """
        self.check_sides(image.shape[2:])
        x = self.stem(image, present) if self.stem else with_availability(image, present)
        *hidden, deepest = self._hidden_states(x)
        return (self.full(x), *hidden, self.bottleneck(deepest))

    def _hidden_states(self, x: Tensor) -> Iterator[Tensor]:
        """MONAI's own walk over its stages, with channels last throughout, without the optional package it permutes with."""
        from monai.networks.nets.swin_unetr import compute_mask, get_window_size

        swin = self.transformer
        x = swin.patch_embed(x).permute(0, 2, 3, 4, 1)
        yield _normalised(x)
        for stage in (*swin.layers1, *swin.layers2, *swin.layers3, *swin.layers4):
            sides = x.shape[1:4]
            window, shift = get_window_size(sides, stage.window_size, stage.shift_size)
            padded = [side + -side % tokens for side, tokens in zip(sides, window, strict=True)]
            mask = compute_mask(padded, window, shift, x.device)
            for block in stage.blocks:
                x = block(x, mask)
            x = stage.downsample(x)
            yield _normalised(x)


def _normalised(x: Tensor) -> Tensor:
    """(b, x, y, z, c) → (b, c, x, y, z), layer norm over c."""
    return nn.functional.layer_norm(x, x.shape[-1:]).permute(0, 4, 1, 2, 3)


NETWORK = Swin
