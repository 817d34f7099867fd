"""Context restoration: put blocks back that changed places.

Source: Chen et al. 2019 (Self-supervised learning for medical image analysis using image context restoration, Medical Image Analysis 58,
    101539): pairs of small patches swap places, squared error. Number and size of the blocks as in the release of Vox-MMSD
    (HiLab-git/Vox-MMSD), which has this transform as well.
Deviates: 3-D; block sides are shares of the patch (the release has 16 × 16 × 8 voxels); all blocks of a sequence lie on one grid with
    a random offset and none is moved twice, so that nothing is lost; only blocks that are at least half foreground move; only the
    foreground and acquired sequences are counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.losses.masked import masked_mean
from oligovox.losses.outliers import slope_note
from oligovox.method import Clock, Losses, Method
from oligovox.networks.compose import EncoderDecoder
from oligovox.networks.decoder import Decoder
from oligovox.networks.encoder import Encoder
from oligovox.networks.heads import ReconstructionHead
from oligovox.sample.batch import Batch

Share = Annotated[float, Field(gt=0, le=0.5)]


def _ordered(limits: tuple[int, int]) -> tuple[int, int]:
    base.ascending("pairs", limits, 1, 10**6)
    return limits


class Settings(base.Settings):
    """Choices of context restoration."""

    pairs: Annotated[tuple[int, int], AfterValidator(_ordered)] = Field(
        (10, 20), description="fewest and most pairs of blocks that swap places, as far as there are blocks"
    )
    block: tuple[Share, Share, Share] = Field(
        (0.1667, 0.1667, 0.0833), description="sides of a block as shares of the patch's sides x, y, z"
    )
    shared: bool = Field(
        True, description="the same blocks move in every sequence; false: blocks of each sequence apart"
    )
    loss: Literal["l1", "l2"] = Field("l2", description="error of a voxel: absolute or squared difference")
    counted: Literal["patch", "moved"] = Field("patch", description="error over the whole patch, or moved blocks only")


@dataclass(frozen=True)
class Views:
    """What is shown, and what it is compared with.

    Attributes:
        shown: the image with blocks swapped.
        present: sequences that were acquired.
        target: the image.
        known: voxels of the foreground and of acquired sequences.
        moved: those of them that lie in swapped blocks.
    """

    shown: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    target: Float[Tensor, "b m x y z"]
    known: Bool[Tensor, "b m x y z"]
    moved: Bool[Tensor, "b m x y z"]


@final
class ContextRestoration(Method[Views]):
    """Encoder, decoder and a 1 × 1 × 1 head that restores every sequence."""

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.modalities = encoder.modalities
        self.network = EncoderDecoder(encoder, Decoder(encoder.channels, encoder.strides))
        self.restore = ReconstructionHead(self.network.decoder.channels[0], len(encoder.modalities))

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Swap blocks; a swap in an absent sequence moves zeros."""
        flat = batch.image.flatten(2)
        channels = 1 if self.settings.shared else flat.shape[1]
        source = torch.stack(
            [self._swaps(inside, rng) for inside in batch.foreground[:, 0] for _ in range(channels)]
        ).view(len(batch), channels, -1)
        source = source.expand_as(flat)
        moved = (source != torch.arange(flat.shape[2], device=flat.device)).view_as(batch.image)
        known = batch.foreground & batch.present[:, :, None, None, None]
        shown = flat.gather(2, source).view_as(batch.image)
        return Views(shown, batch.present, batch.image, known, moved & known)

    def _swaps(self, inside: Bool[Tensor, "x y z"], rng: torch.Generator) -> Int[Tensor, " voxels"]:
        """Where each voxel takes its value: pairs of blocks of one grid point at each other, all else at itself."""
        sides = inside.shape
        block = [max(1, round(share * side)) for share, side in zip(self.settings.block, sides, strict=True)]
        grid = [side // size for side, size in zip(sides, block, strict=True)]
        spare = [side - cells * size + 1 for side, cells, size in zip(sides, grid, block, strict=True)]
        draw = torch.rand(4, generator=rng, device=rng.device).tolist()
        offset = [int(share * room) for share, room in zip(draw, spare, strict=False)]
        low, high = self.settings.pairs
        wanted = low + int(draw[3] * (high - low + 1))

        x, y, z = (slice(at, at + cells * size) for at, cells, size in zip(offset, grid, block, strict=True))
        full = F.avg_pool3d(inside[None, x, y, z].float(), block).flatten() >= 0.5
        places = torch.arange(inside.numel(), device=rng.device)
        cut = places.view(sides)[x, y, z].reshape(grid[0], block[0], grid[1], block[1], grid[2], block[2])
        cells = cut.permute(0, 2, 4, 1, 3, 5).reshape(len(full), -1)
        order = torch.rand(len(full), generator=rng, device=rng.device).where(full, 2.0).argsort()
        pairs = min(wanted, int(full.sum()) // 2)
        one, other = cells[order[: 2 * pairs]].chunk(2) if pairs else (cells[:0], cells[:0])
        return places.index_put((one,), other).index_put((other,), one)

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Mean error over the foreground of the patch, or of the moved blocks."""
        restored = self.restore(self.network(views.shown, views.present)).float()
        difference = restored - views.target
        error = difference.abs() if self.settings.loss == "l1" else difference.square()
        counted = views.moved if self.settings.counted == "moved" else views.known
        notes = slope_note(restored, views.target, views.moved, self.modalities)
        return Losses({"restore": masked_mean(error, counted)}, notes=notes)

    def export(self) -> nn.Module:
        """Encoder and decoder; the head stays behind."""
        return self.network


METHOD = ContextRestoration
