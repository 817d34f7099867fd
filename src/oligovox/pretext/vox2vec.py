"""vox2vec: the descriptor of a voxel, taken from all levels of the decoder, must find the same voxel in another crop.

Source: Goncharov et al. 2023 (vox2vec: a framework for self-supervised contrastive learning of voxel-level representations in medical
    images, arXiv 2307.14725).
Deviates: the pyramid is our U-Net decoder with the encoder's deepest feature; crops differ by place, intensity and, if asked for, hidden
    sequences (`hide`), while movements are those of the patch; only voxels of the foreground are drawn; sizes but for
    temperature and embedding are ours, and the projector's batch norm keeps no running statistics.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.losses.contrast import nt_xent
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.compose import EncoderDecoder
from oligovox.networks.decoder import Decoder
from oligovox.networks.encoder import Encoder
from oligovox.sample.augment import Augmentation, augment
from oligovox.sample.batch import Batch
from oligovox.sample.crops import crop_sides, cut, overlapping_starts
from oligovox.sample.masks import drop_sequences

_EFFECTS = ("gamma", "contrast", "brightness", "bias", "blur", "low_resolution", "noise")


class Settings(base.Settings):
    """Choices of vox2vec."""

    crop: float = Field(0.67, gt=0, le=1, description="side of a crop as a share of the patch's; 64 voxels of 96")
    overlap: float = Field(0.3, gt=0, le=1, description="smallest share of a crop's volume that both crops show")
    augment: float = Field(
        3.0, ge=0, description="factor on the probability of each of nnU-Net's intensity effects; 0 leaves plain crops"
    )
    hide: float = Field(
        0.0, ge=0, le=1, description="probability that a sequence is hidden in a crop; one always stays"
    )
    voxels: int = Field(512, ge=2, description="voxels compared in each patch")
    hidden: int = Field(128, ge=1, description="units of the projector's two hidden layers")
    embedding: int = Field(128, ge=1, description="size of the embedding that is compared")
    temperature: float = Field(0.1, gt=0, description="of the comparison")


@dataclass(frozen=True)
class Views:
    """Two crops of every sample, first all the first ones: v = 2 b.

    Attributes:
        image: of the crop, its intensities changed; 0 in hidden sequences.
        present: sequences that were acquired and are not hidden.
        voxels: crop and place in it of the n voxels: in the first crops, and the same voxels in the second ones.
    """

    image: Float[Tensor, "v m x y z"]
    present: Bool[Tensor, "v m"]
    voxels: Int[Tensor, "2 n 4"]


@final
class Vox2Vec(Method[Views]):
    """Encoder, decoder and a projector of voxel descriptors."""

    needs = Needs(apart=True)

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.network = EncoderDecoder(encoder, Decoder(encoder.channels, encoder.strides))
        self.strides = (*self.network.decoder.strides, encoder.strides[-1])
        width, hidden = sum(self.network.decoder.channels) + encoder.channels[-1], settings.hidden
        self.project = nn.Sequential(
            nn.Linear(width, hidden, bias=False),
            nn.BatchNorm1d(hidden, track_running_stats=False),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden, bias=False),
            nn.BatchNorm1d(hidden, track_running_stats=False),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, settings.embedding),
        )

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Cut two overlapping crops, change each on its own, and draw voxels that both show."""
        chosen, sides = self.settings, batch.image.shape[2:]
        crop = crop_sides(sides, chosen.crop, self.strides[-1])
        starts = overlapping_starts(len(batch), sides, crop, chosen.overlap, rng)
        shared = _window(starts[0], crop, sides) & _window(starts[1], crop, sides)
        tissue = shared & batch.foreground[:, 0]
        drawn = _draw(tissue if tissue.sum() > 1 else shared, chosen.voxels, rng)  # air where there is nothing else
        sample, place = drawn[:, :1], drawn[:, 1:]
        effects = Augmentation.only(**{e: min(1.0, chosen.augment * getattr(Augmentation(), e)) for e in _EFFECTS})
        images, present, voxels = [], [], []
        for number, start in enumerate(starts):
            cropped = replace(
                batch, image=cut(batch.image, start, crop), foreground=cut(batch.foreground, start, crop), label=None
            )
            kept = drop_sequences(batch.present, batch.modalities, chosen.hide, rng)
            images.append(augment(cropped, effects, rng).image.where(kept[:, :, None, None, None], 0.0))
            present.append(kept)
            voxels.append(torch.cat([sample + number * len(batch), place - start[sample[:, 0]]], 1))
        return Views(torch.cat(images), torch.cat(present), torch.stack(voxels))

    def losses(self, views: Views, clock: Clock) -> Losses:
        """NT-Xent over the 2 n descriptors of the batch, and of all processes."""
        first, second = self.project(self._descriptors(views)).chunk(2)
        return Losses({"contrast": nt_xent(first, second, self.settings.temperature)})

    def _descriptors(self, views: Views) -> Float[Tensor, "w c"]:
        """At each level the feature of the cell that the voxel lies in, one after the other; w = 2 n."""
        features = self.network.encoder(views.image, views.present)
        pyramid = (*self.network.decoder(features), features[-1])
        crop, *place = views.voxels.flatten(0, 1).T
        x, y, z = place
        levels = zip(pyramid, self.strides, strict=True)
        return torch.cat([level[crop, :, x // s, y // s, z // s] for level, s in levels], 1)

    def export(self) -> nn.Module:
        """Encoder and decoder; the projector stays behind."""
        return self.network


def _window(starts: Int[Tensor, "b 3"], crop: tuple[int, ...], sides: torch.Size) -> Bool[Tensor, "b x y z"]:
    """True in the crop."""
    x, y, z = (
        (place := torch.arange(side, device=starts.device) - starts[:, axis, None]).ge(0) & (place < crop[axis])
        for axis, side in enumerate(sides)
    )
    return x[:, :, None, None] & y[:, None, :, None] & z[:, None, None, :]


def _draw(allowed: Bool[Tensor, "b x y z"], number: int, rng: torch.Generator) -> Int[Tensor, "n 4"]:
    """`number` different voxels of each sample, fewer where fewer are allowed: sample, x, y, z."""
    score = torch.rand(allowed.shape, generator=rng, device=rng.device).where(allowed, -1.0).flatten(1)
    best = score.topk(min(number, score.shape[1]), dim=1)
    sample, rank = (best.values >= 0).nonzero(as_tuple=True)
    place = torch.unravel_index(best.indices[sample, rank], allowed.shape[1:])
    return torch.stack([sample, *place], 1)


METHOD = Vox2Vec
