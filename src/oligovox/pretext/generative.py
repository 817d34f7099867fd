"""Generative multi-modal pretext: make the sequences that are kept back out of the others.

Source: Gjergji, Ciranni, Moro, Murino, Pastore 2025 (Self-supervised multi-modal learning for accurate MRI multiple sclerosis
    segmentation), of which only the abstract is public: a generative pretext task on T1, T2 and FLAIR.
Deviates: everything below the words "generative pretext" is ours: three readings as `policy`, 3-D, losses and weights (those for lesions
    and outliers among them); no adversarial term; structural similarity on windows cut at the brain mask, and images scaled by the target's percentiles without clipping.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from pydantic import Field, field_validator
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.cohort.modalities import canonical, sequence_of
from oligovox.errors import SettingsError
from oligovox.losses.masked import masked_mean
from oligovox.losses.outliers import slope_note
from oligovox.losses.ssim import ssim
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.compose import EncoderDecoder
from oligovox.networks.decoder import Decoder
from oligovox.networks.encoder import Encoder
from oligovox.networks.heads import ReconstructionHead
from oligovox.sample.batch import Batch
from oligovox.sample.masks import by_sequence, check_random_blocks, in_channels, random_blocks, spread


class Settings(base.Settings):
    """Choices of the generative pretext."""

    policy: Literal["cross_modal", "target_sequences", "masked"] = Field(
        "cross_modal", description="sequences kept back: drawn for each sample, always `targets`, or none (blocks only)"
    )
    targets: tuple[str, ...] = Field(("FLAIR",), min_length=1, description="sequences kept back by target_sequences")
    single: float = Field(
        0.7, ge=0, le=1, description="cross_modal: probability that one is kept back, else 1 … n - 1 of n"
    )
    block: int = Field(16, ge=1, description="edge of a hidden block in voxels")
    ratio_beside: float = Field(
        0.3, ge=0, le=1, description="share of blocks hidden in the inputs beside a kept-back sequence"
    )
    ratio_alone: float = Field(0.75, gt=0, le=1, description="share of blocks hidden where no sequence is kept back")
    generate_weight: float = Field(1.0, ge=0, description="weight of the error of kept-back sequences")
    restore_weight: float = Field(0.5, ge=0, description="weight of the error of hidden blocks")
    ssim_weight: float = Field(0.2, ge=0, description="weight of 1 - structural similarity of kept-back sequences")
    lesion_weight: float = Field(
        1.0, ge=1, description="weight of a lesion-like voxel in both errors; 1 is off, 3 is meant"
    )
    lesion_flair: float = Field(2.0, gt=0, description="lesion-like: FLAIR above this z-score …")
    lesion_t1w: tuple[float, float] = Field(
        (-0.5, 2.0), description="… and T1w, where acquired, in this range of z-scores"
    )
    loss: Literal["l1", "l2"] = Field("l1", description="error of a voxel: absolute or squared difference")
    outlier_weight: float = Field(
        1.0, ge=1, description="weight of a voxel that stands out in its own sequence, whichever that is; 1 is off"
    )
    outlier_beyond: float = Field(2.0, gt=0, description="stands out: z-score further than this from 0")

    @field_validator("targets")
    @classmethod
    def _known(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(canonical(name) for name in targets)
        except SettingsError as error:
            raise ValueError(str(error)) from None


@dataclass(frozen=True)
class Views:
    """What is shown, and what it is compared with.

    Attributes:
        visible: the image; 0 in kept-back sequences and in hidden blocks.
        shown: sequences the network may rely on: acquired and not kept back.
        image: the whole image.
        targets: sequences to generate: kept back, in samples with a foreground.
        hidden: foreground voxels of shown sequences that lie in hidden blocks.
        weight: of each voxel in the errors; 0 outside the foreground.
    """

    visible: Float[Tensor, "b m x y z"]
    shown: Bool[Tensor, "b m"]
    image: Float[Tensor, "b m x y z"]
    targets: Bool[Tensor, "b m"]
    hidden: Bool[Tensor, "b m x y z"]
    weight: Float[Tensor, "b 1 x y z"]


@final
class Generative(Method[Views]):
    """Encoder, decoder and a 1 × 1 × 1 head that makes every sequence.

    Raises:
        SettingsError: policy target_sequences, and the plan has none of them.
    """

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.modalities = encoder.modalities
        self.network = EncoderDecoder(encoder, Decoder(encoder.channels, encoder.strides))
        self.generate = ReconstructionHead(self.network.decoder.channels[0], len(encoder.modalities))
        self.needs = Needs(modalities=1 if settings.policy == "masked" else 2)
        if settings.policy == "target_sequences" and not set(settings.targets) & set(encoder.modalities):
            raise SettingsError(
                f"generative: targets are {', '.join(settings.targets)}, the plan has {', '.join(encoder.modalities)}; "
                "name at least one of these, or choose policy cross_modal"
            )

    def check_patch(self, sides: tuple[int, int, int]) -> None:
        """Some blocks are hidden, where they are all there is to learn from."""
        if self.settings.policy == "masked":
            check_random_blocks(sides, self.settings.block, self.settings.ratio_alone)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Keep sequences back, hide blocks in the others."""
        chosen = self.settings
        kept_back = self._keep_back(batch.present, rng)
        shown = batch.present & ~kept_back
        b, m, x, y, z = batch.image.shape
        beside, alone = (
            random_blocks((b, m, x, y, z), chosen.block, ratio, rng)
            for ratio in (chosen.ratio_beside, chosen.ratio_alone)
        )
        blocks = torch.where(spread(kept_back.any(1, keepdim=True)), beside, alone)
        return Views(
            visible=batch.image.where(spread(shown) & ~blocks, 0.0),
            shown=shown,
            image=batch.image,
            targets=kept_back & batch.foreground.flatten(1).any(1, keepdim=True),
            hidden=blocks & spread(shown) & batch.foreground,
            weight=self._weight(batch),
        )

    def _keep_back(self, present: Bool[Tensor, "b m"], rng: torch.Generator) -> Bool[Tensor, "b m"]:
        """Acquired sequences to generate, never all of a sample's; none where a sample cannot spare one."""
        chosen = self.settings
        if chosen.policy == "target_sequences":
            targets = [sequence_of(name) in chosen.targets for name in self.modalities]
            wanted = present & torch.tensor(targets, device=present.device)
        elif chosen.policy == "cross_modal":
            there = by_sequence(present, self.modalities)
            acquired = there.sum(1, keepdim=True)
            draw = torch.rand(len(there), there.shape[1] + 2, generator=rng, device=rng.device)
            several = 1 + (draw[:, :1] * (acquired - 1)).long()
            count = torch.where(draw[:, 1:2] < chosen.single, 1, several)
            rank = draw[:, 2:].where(there, 2.0).argsort(1).argsort(1)
            wanted = in_channels(rank < count, present, self.modalities)
        else:
            wanted = torch.zeros_like(present)
        return wanted & (present & ~wanted).any(1, keepdim=True)

    def _weight(self, batch: Batch) -> Float[Tensor, "b 1 x y z"]:
        """1 in the foreground; more where a voxel looks like a lesion, which a plain error would let the generator erase."""
        weight = batch.foreground.to(batch.image.dtype)
        if self.settings.lesion_weight == 1.0 or "FLAIR" not in batch.modalities:
            return weight
        low, high = self.settings.lesion_t1w
        flair = batch.modalities.index("FLAIR")
        bright = batch.image[:, flair : flair + 1] > self.settings.lesion_flair  # never where FLAIR is absent, hence 0
        if "T1w" in batch.modalities:
            t1w = batch.modalities.index("T1w")
            tissue = (batch.image[:, t1w : t1w + 1] > low) & (batch.image[:, t1w : t1w + 1] < high)
            bright = bright & (tissue | ~spread(batch.present[:, t1w : t1w + 1]))
        return torch.where(bright, self.settings.lesion_weight * weight, weight)

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Σ over the terms of each sample, then the mean over the samples that have that term."""
        made = self.generate(self.network(views.visible, views.shown)).float()
        difference = made - views.image
        error = difference.abs() if self.settings.loss == "l1" else difference.square()
        weight = views.weight.expand_as(error)
        if self.settings.outlier_weight > 1:
            usual = views.image.abs() <= self.settings.outlier_beyond
            weight = weight.where(usual, self.settings.outlier_weight * weight)
        generated = masked_mean(error, weight, dim=(2, 3, 4))
        restored = masked_mean(error, weight * views.hidden, dim=(2, 3, 4)).sum(1)
        terms = {
            "generate": _over_targets(generated, views.targets),
            "restore": masked_mean(restored, views.hidden.flatten(1).any(1)),
        }
        weights = {"generate": self.settings.generate_weight, "restore": self.settings.restore_weight}
        if self.settings.ssim_weight > 0:
            terms["ssim"] = _over_targets(1.0 - _similarity(made, views), views.targets)
            weights["ssim"] = self.settings.ssim_weight
        unseen = (spread(views.targets) & (views.weight > 0)) | views.hidden
        notes = slope_note(made, views.image, unseen, self.modalities, self.settings.lesion_flair)
        return Losses(terms, weights, notes)

    def export(self) -> nn.Module:
        """Encoder and decoder; the head stays behind."""
        return self.network


def _over_targets(value: Float[Tensor, "b m"], targets: Bool[Tensor, "b m"]) -> Float[Tensor, ""]:
    """1 / |T| Σ over the targets of a sample, then the mean over the samples that have one."""
    return masked_mean(masked_mean(value, targets, dim=(1,)), targets.any(1))


def _similarity(made: Float[Tensor, "b m x y z"], views: Views) -> Float[Tensor, "b m"]:
    """Structural similarity of the targets (0 elsewhere), both scaled by the 0.5 and 99.5 percentiles of the true one."""
    similarity = made.new_zeros(views.targets.shape)
    rows, columns = views.targets.nonzero(as_tuple=True)
    if len(rows) == 0:
        return similarity
    brain = views.weight[rows] > 0
    true = views.image[rows, columns][:, None]
    shares = torch.tensor([0.005, 0.995], device=true.device)
    inside = true.where(brain, torch.nan).flatten(1)
    limits = torch.stack(
        [torch.nanquantile(row, shares) for row in inside]
    )  # row by row: the joint call has a size limit
    low, high = limits.T[:, :, None, None, None, None]
    scale = (high - low).clamp(min=1e-3)
    index = ssim((made[rows, columns][:, None] - low) / scale, (true - low) / scale, brain)
    return similarity.index_put((rows, columns), index[:, 0])


METHOD = Generative
