"""BM-MAE: see a quarter of the tokens of an exam, shared out at random between the sequences, and restore the others.

Source: Robinet, Berjaoui, Cohen-Jonathan Moyal 2025 (multimodal masked autoencoder pre-training for 3D MRI-based brain tumor
    analysis with missing modalities, arXiv 2505.00568); shares of the sequences after Bachmann et al. 2022
    (MultiMAE, arXiv 2204.01678).
Deviates: only the foreground of acquired sequences is counted; the budget is exact for any number of sequences and never exceeds the
    tokens of one; the decoder reads the tokens of all sequences together; sizes; on an encoder that is no ViT the same tokens are
    shown, hidden ones are zeros and a U-Net decoder restores them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal, final

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
from oligovox.networks.vit import TokenBlock, ViT, attention_mask, from_cubes, positions
from oligovox.sample.batch import Batch
from oligovox.sample.masks import block_voxels, check_hidden


class Settings(base.Settings):
    """Choices of BM-MAE."""

    token: int = Field(8, ge=1, description="side of a token in voxels; that of the encoder where it is a ViT")
    ratio: float = Field(0.75, gt=0, lt=1, description="hidden share of the tokens of all acquired sequences")
    shares: Literal["dirichlet", "even"] = Field(
        "dirichlet",
        description="how visible tokens are shared out between sequences: Dirichlet(1), or as evenly as possible",
    )
    width: int = Field(96, ge=6, description="ViT: channels of the token decoder; a multiple of 6 and of heads")
    depth: int = Field(2, ge=1, description="ViT: blocks of the token decoder")
    heads: int = Field(6, ge=1, description="ViT: attention heads of the token decoder")


@dataclass(frozen=True)
class Views:
    """What is shown, and what it is compared with.

    Attributes:
        image: the image; 0 where it is hidden.
        present: sequences that were acquired.
        visible: tokens that are shown, in the order of x, y, z.
        target: the whole image.
        counted: hidden voxels of the foreground and of acquired sequences.
    """

    image: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    visible: Bool[Tensor, "b m n"]
    target: Float[Tensor, "b m x y z"]
    counted: Bool[Tensor, "b m x y z"]


@final
class BMMAE(Method[Views]):
    """An encoder, and what restores every sequence from it: transformer blocks behind a ViT, else a U-Net decoder.

    Raises:
        SettingsError: `token` is not that of the ViT, or the sizes of the token decoder do not fit.
    """

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.modalities = encoder.modalities
        self.needs = Needs(patch_multiple=settings.token)
        self.restore = _FromTokens(encoder, settings) if isinstance(encoder, ViT) else _FromFeatures(encoder)

    def check_patch(self, sides: tuple[int, int, int]) -> None:
        """Some tokens are hidden in an exam that has every sequence."""
        tokens = prod(side // self.settings.token for side in sides) * len(self.modalities)
        check_hidden(tokens - max(1, round((1 - self.settings.ratio) * tokens)), tokens)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Choose the tokens that are seen; count the hidden voxels that can be known."""
        token, sides = self.settings.token, batch.image.shape[2:]
        grid = [side // token for side in sides]
        visible = self._choose(batch.present, prod(grid), rng)
        hidden = ~block_voxels(visible.reshape(*batch.present.shape, *grid), token, sides)
        counted = hidden & batch.foreground & batch.present[:, :, None, None, None]
        return Views(batch.image.masked_fill(hidden, 0.0), batch.present, visible, batch.image, counted)

    def _choose(self, present: Bool[Tensor, "b m"], tokens: int, rng: torch.Generator) -> Bool[Tensor, "b m n"]:
        """Exactly round((1 - ratio) · tokens of acquired sequences), in proportion to the shares as far as a sequence lasts.

        The tokens of a sequence stand in random order, the i-th at (i + u) / share with one u in [0, 1) a sequence; the first
        of all sequences are taken. That is proportional, exact, and goes on with the others where one is used up.
        """
        draw = torch.rand(*present.shape, tokens + 2, generator=rng, device=rng.device)
        share = -(1 - draw[..., 0]).log() + 1e-6  # exponential variables, divided by their sum, are Dirichlet(1)
        if self.settings.shares == "even":
            share = torch.ones_like(share)
        order = draw[..., 2:].argsort(2).argsort(2)
        place = ((order + draw[..., 1, None]) / share[..., None]).where(present[..., None], torch.inf)
        number = ((1 - self.settings.ratio) * tokens * present.sum(1, keepdim=True)).round().clamp(min=1)
        first = place.flatten(1).argsort(1).argsort(1) < number
        return first.view_as(place) & present[..., None]

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Σ over the sequences of the mean squared error of their counted voxels."""
        restored = self.restore(views.image, views.present, views.visible).float()
        error = masked_mean((restored - views.target).square(), views.counted, dim=(0, 2, 3, 4))
        terms = {f"restore_{name}": term for name, term in zip(self.modalities, error, strict=True)}
        return Losses(terms, notes=slope_note(restored.detach(), views.target, views.counted, self.modalities))

    def export(self) -> nn.Module:
        """The encoder, and the U-Net decoder where there is one; token decoder and heads stay behind."""
        return self.restore.network


class _FromTokens(nn.Module):
    """A ViT that reads visible tokens only, then a decoder of blocks in which a learnt token stands for each hidden one.

    The convolutions that a ViT has beside its tokens are not used and not trained.
    """

    def __init__(self, encoder: ViT, settings: Settings) -> None:
        super().__init__()
        if settings.token != encoder.token or settings.width % 6 or settings.width % settings.heads:
            raise SettingsError(
                f"bm_mae: token {settings.token}, width {settings.width}, heads {settings.heads}; expected the encoder's "
                f"token {encoder.token} and a width that is a multiple of 6 and of heads"
            )
        self.encoder = encoder
        encoder.full.requires_grad_(False)
        encoder.pyramid.requires_grad_(False)
        width, m = settings.width, len(encoder.modalities)
        self.enter = nn.Linear(encoder.width, width)
        self.hidden = nn.Parameter(torch.randn(width) * 0.02)
        self.sequences = nn.Parameter(torch.randn(m, width) * 0.02)
        self.blocks = nn.ModuleList(TokenBlock(width, settings.heads, 4 * width) for _ in range(settings.depth))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, encoder.token**3))

    @property
    def network(self) -> nn.Module:
        """What is exported."""
        return nn.ModuleDict({"encoder": self.encoder})

    def forward(
        self, image: Float[Tensor, "b m x y z"], present: Bool[Tensor, "b m"], visible: Bool[Tensor, "b m n"]
    ) -> Float[Tensor, "b m x y z"]:
        encoder, sides, (b, m, n) = self.encoder, image.shape[2:], visible.shape
        flags = visible.flatten(1)
        index = flags.int().argsort(dim=1, descending=True, stable=True)[:, : int(flags.sum(1).max())]
        seen = flags.gather(1, index)  # False where a sample sees fewer than another
        tokens = encoder.tokenise(image).flatten(1, 2)
        state = encoder.transform(tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2])), seen)[-1]
        known = self.enter(state).float().where(seen[..., None], self.hidden)
        rows = self.hidden.expand(b, m * n, -1).scatter(1, index[..., None].expand_as(known), known)
        places = positions([side // encoder.token for side in sides], len(self.hidden)).to(rows.device)
        rows = (rows.reshape(b, m, n, -1) + self.sequences[:, None] + places).flatten(1, 2)
        mask = attention_mask(present.repeat_interleave(n, 1))
        for block in self.blocks:
            rows = block(rows, mask)
        return from_cubes(self.leave(rows).reshape(b, m, n, -1), sides)


class _FromFeatures(nn.Module):
    """Any other encoder reads zeros where tokens are hidden; its U-Net decoder and a head restore."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.network = EncoderDecoder(encoder, Decoder(encoder.channels, encoder.strides))
        self.head = ReconstructionHead(self.network.decoder.channels[0], len(encoder.modalities))

    def forward(
        self, image: Float[Tensor, "b m x y z"], present: Bool[Tensor, "b m"], visible: Bool[Tensor, "b m n"]
    ) -> Float[Tensor, "b m x y z"]:
        restored: Tensor = self.head(self.network(image, present & visible.any(2)))
        return restored


METHOD = BMMAE
