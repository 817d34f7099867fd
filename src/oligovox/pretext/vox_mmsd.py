"""Vox-MMSD: restore crops whose sequences are hidden block by block, and agree with a teacher at voxels two crops share.

Source: Vox-MMSD, voxel-wise multi-scale and multi-modal self-distillation for brain tumour segmentation (HiLab; JBHI, accepted July
    2025), as its public release does it; the distillation is that of Caron et al. 2021 (DINO, arXiv 2104.14294).
Deviates: crops lie inside the patch; inputs stay z-scored and only the target is scaled to [0, 1]; only the foreground of acquired
    sequences is restored; both heads are trained, blocks are of equal size (settings bring the release back). A pair is drawn
    once, with the odds it has there; too few are repeated, and a sample with hardly any is left out, instead of a search without end.
    The centre starts at the first mean, not at 0. In a training of less than 2500 steps the teacher forgets faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.errors import SettingsError
from oligovox.losses.dino import dino_loss
from oligovox.losses.masked import masked_mean
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.compose import EncoderDecoder
from oligovox.networks.decoder import Decoder
from oligovox.networks.encoder import Encoder
from oligovox.networks.heads import ReconstructionHead
from oligovox.networks.teacher import Teacher, rising_momentum
from oligovox.sample.batch import Batch
from oligovox.sample.crops import crop_sides, cut, overlapping_starts
from oligovox.sample.disturb import disturb
from oligovox.sample.masks import drop_sequences, spread, thrown_blocks


class Settings(base.Settings):
    """Choices of Vox-MMSD; what its release has is the default, or is said."""

    crop: float = Field(0.75, gt=0, le=1, description="side of the two crops as a share of the patch's; release: 96³")
    overlap: float = Field(0.25, ge=0, le=1, description="smallest part of a crop the other one shares; release: 0")
    masking: Literal["independent", "shared", "modality"] = Field(
        "independent", description="hide blocks of each sequence apart, the same blocks in all, or whole sequences"
    )
    ratio: float = Field(0.875, ge=0, lt=1, description="probability that a block (or a sequence) is hidden")
    blocks: int = Field(6, ge=1, description="blocks along each side of a crop")
    even_blocks: bool = Field(True, description="blocks of equal size; release: false, half as wide at the border")
    augmented: bool = Field(True, description="noise, blur, brightness, contrast and gamma on what is shown")
    input_scale: Literal["z_score", "min_max"] = Field(
        "z_score", description="what is shown: z-scores, as in fine-tuning, or [0, 1], as in the release"
    )
    pairs: int = Field(1024, ge=2, description="voxel pairs of a sample")
    fewest_pairs: int = Field(
        64, ge=1, description="a sample with fewer different ones is left out of the distillation"
    )
    pairing: Literal["across", "same"] = Field(
        "across", description="a pair is visible in some sequence of each crop, or in the same one of both"
    )
    strides: tuple[int, ...] = Field((), description="decoder maps in a descriptor, by stride; all where none is given")
    projection: int | None = Field(
        None, ge=2, description="size of a projected descriptor; that of the descriptor where none; release: 512 of 480"
    )
    student_temperature: float = Field(0.1, gt=0, description="of the student's softmax")
    teacher_temperature: float = Field(0.04, gt=0, description="of the teacher's, at first …")
    teacher_temperature_last: float = Field(0.07, gt=0, description="… and after the warm-up")
    teacher_warmup: float = Field(0.067, ge=0, le=1, description="share of the steps between the two")
    centre_momentum: float = Field(0.9, ge=0, le=1, description="of the mean projection that centres the teacher")
    momentum: float = Field(
        0.996, ge=0, le=1, description="of the teacher at first, at most 1 − 10 / steps; 1 at last, along a cosine"
    )
    restore_over: Literal["foreground", "all"] = Field(
        "foreground", description="voxels of acquired sequences to restore; release: all"
    )
    distil_weight: float = Field(1.0, ge=0, description="weight of the self-distillation")
    restore_weight: float = Field(1.0, ge=0, description="weight of the restoration")
    freeze_heads: bool = Field(False, description="projector and restoration head stay as drawn; release: true")


@dataclass(frozen=True)
class Views:
    """Two crops a sample (v = 2 b): the first crops of all samples, then the second ones.

    Attributes:
        visible: what the networks see; hidden blocks carry nothing.
        shown: sequences the networks may rely on: acquired and not hidden as a whole.
        target: the crops as they were, scaled to [0, 1].
        counted: voxels to restore.
        starts: corner of each crop in the patch.
        voxels: place of each pair in each crop; pair k of the first crop is the same tissue as pair k of the second.
        paired: samples with enough pairs.
    """

    visible: Float[Tensor, "v m x y z"]
    shown: Bool[Tensor, "v m"]
    target: Float[Tensor, "v m x y z"]
    counted: Bool[Tensor, "v m x y z"]
    starts: Int[Tensor, "v 3"]
    voxels: Int[Tensor, "v n 3"]
    paired: Bool[Tensor, " b"]


class Branch(nn.Module):
    """Encoder, decoder and projector: what student and teacher both have."""

    def __init__(self, network: EncoderDecoder, strides: Sequence[int], projection: int | None) -> None:
        super().__init__()
        self.network = network
        self.strides = tuple(strides)
        decoder = network.decoder
        size = sum(c for c, stride in zip(decoder.channels, decoder.strides, strict=True) if stride in strides)
        self.projector = nn.Sequential(*_layer(size), *_layer(size), nn.Linear(size, projection or size))
        self.size = projection or size

    def forward(
        self,
        image: Float[Tensor, "v m x y z"],
        shown: Bool[Tensor, "v m"],
        voxels: Int[Tensor, "v n 3"],
        used: Bool[Tensor, " v"],
    ) -> tuple[Float[Tensor, "v c x y z"], Float[Tensor, "k d"]]:
        """Features at full resolution; unit projections of the descriptors of the used crops, crop by crop."""
        maps = self.network.decoder(self.network.encoder(image, shown))
        levels = zip(maps, self.network.decoder.strides, strict=True)
        scales = [_at(m.movedim(1, -1), voxels // stride) for m, stride in levels if stride in self.strides]
        projected = self.projector(torch.cat(scales, dim=2)[used].flatten(0, 1))
        return maps[0], nn.functional.normalize(projected.float(), dim=1)


@final
class VoxMMSD(Method[Views]):
    """A student that restores and describes, and a teacher, its moving average, that only describes.

    Raises:
        SettingsError: the decoder has no map of a stride in `strides`.
    """

    centre: Tensor
    centred: Tensor

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.needs = Needs(modalities=2 if settings.masking == "modality" else 1)
        self.multiple = encoder.strides[-1]
        decoder = Decoder(encoder.channels, encoder.strides)
        if not set(settings.strides) <= set(decoder.strides):
            raise SettingsError(
                f"vox_mmsd: strides are {', '.join(map(str, settings.strides))}, the decoder has maps of strides "
                f"{', '.join(map(str, decoder.strides))}; choose among these"
            )
        network = EncoderDecoder(encoder, decoder)
        self.student = Branch(network, settings.strides or decoder.strides, settings.projection)
        self.teacher = Teacher(self.student)
        self.restore = ReconstructionHead(decoder.channels[0], len(encoder.modalities))
        self.register_buffer("centre", torch.zeros(self.student.size))
        self.register_buffer("centred", torch.zeros(()))
        if settings.freeze_heads:
            self.student.projector.requires_grad_(False)
            self.restore.requires_grad_(False)

    def begin(self, load: Callable[[nn.Module], None]) -> None:
        """The student takes over the start, the teacher the student."""
        load(self.export())
        self.teacher.update(self.student, 0.0)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Cut twice, hide, find pairs among what is left, then disturb what is shown."""
        chosen = self.settings
        b, m, *sides = batch.image.shape
        crop = crop_sides(sides, chosen.crop, self.multiple)
        starts = overlapping_starts(b, sides, crop, chosen.overlap, rng)
        whole = torch.cat([batch.image, batch.foreground.to(batch.image.dtype)], dim=1)
        crops = torch.cat([cut(whole, start, crop) for start in starts])
        image, acquired = crops[:, :m], batch.present.repeat(2, 1)
        inside = spread(acquired) & (crops[:, m:] > 0)
        hidden = self._hide(acquired, batch.modalities, crop, rng)
        seen = inside & ~hidden
        voxels, paired = self._pair(seen, starts[0] - starts[1], rng)
        low, high = _limits(image, inside)
        target = ((image - low) / (high - low)).where(inside, 0.0)
        visible = target.masked_fill(hidden, 0.0)
        if chosen.input_scale == "z_score":  # the target's limits would tell of extremes that are hidden
            low, high = _limits(image, seen)
            visible = ((image - low) / (high - low)).where(seen, 0.0)
        if chosen.augmented:
            visible = disturb(visible, rng)
        if chosen.input_scale == "z_score":
            visible = (low + visible * (high - low)).where(seen, 0.0)
        return Views(
            visible=visible.where(spread(acquired), 0.0),
            shown=acquired & ~hidden.flatten(2).all(2),
            target=target,
            counted=inside if chosen.restore_over == "foreground" else spread(acquired).expand_as(inside),
            starts=torch.cat(starts),
            voxels=voxels,
            paired=paired,
        )

    def _hide(
        self, acquired: Bool[Tensor, "v m"], modalities: Sequence[str], crop: Sequence[int], rng: torch.Generator
    ) -> Bool[Tensor, "v m x y z"]:
        chosen = self.settings
        if chosen.masking == "modality":
            return spread(~drop_sequences(acquired, modalities, chosen.ratio, rng)).expand(*acquired.shape, *crop)
        shape, shared = (*acquired.shape, *crop), chosen.masking == "shared"
        return thrown_blocks(shape, chosen.blocks, chosen.ratio, rng, shared=shared, even=chosen.even_blocks)

    def _pair(
        self, seen: Bool[Tensor, "v m x y z"], shift: Int[Tensor, "b 3"], rng: torch.Generator
    ) -> tuple[Int[Tensor, "v n 3"], Bool[Tensor, " b"]]:
        """Different places, drawn by the odds that a sequence drawn for each crop (or one for both) is visible there."""
        chosen = self.settings
        first, second = seen.float().movedim(1, -1).chunk(2)
        sides = torch.tensor(first.shape[1:4], device=seen.device)
        place = torch.cartesian_prod(*(torch.arange(side, device=seen.device) for side in first.shape[1:4]))
        moved = place + shift[:, None]  # the same tissue in the second crop
        within = ((moved >= 0) & (moved < sides)).all(2)
        one, other = first.flatten(1, 3), _at(second, moved.clamp_min(0).minimum(sides - 1))
        odds = within * ((one * other).sum(2) if chosen.pairing == "same" else one.sum(2) * other.sum(2))
        wait = torch.empty_like(odds).exponential_(generator=rng) / odds  # first come; for ever where the odds are 0
        found, drawn = wait.topk(min(chosen.pairs, wait.shape[1]), largest=False)
        count = found.isfinite().sum(1)
        paired = count >= min(chosen.fewest_pairs, chosen.pairs)
        again = torch.arange(chosen.pairs, device=seen.device) % count.clamp(min=1)[:, None]
        voxels = place[drawn.gather(1, again)]
        both = torch.cat([voxels, voxels + shift[:, None]])
        return both.where(paired.repeat(2)[:, None, None], 0), paired

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Cross-entropy between the crops, one way and the other; error of the restored voxels."""
        chosen = self.settings
        used = (views.paired | ~views.paired.any()).repeat(2)  # without any pair the heads still run, for nothing
        inputs = (views.visible, views.shown, views.voxels, used)
        features, student = self.student(*inputs)
        _, teacher = self.teacher(*inputs)
        heats = (chosen.student_temperature, self._teacher_temperature(clock))
        mean = teacher.mean(0)
        centre = self.centre.where(self.centred > 0, mean)
        (one, other), (first, second) = student.chunk(2), teacher.chunk(2)
        distil = dino_loss(other, first, centre, *heats) + dino_loss(one, second, centre, *heats)
        error = (self.restore(features).float().tanh() - views.target).abs()
        any_pair = views.paired.any().float()
        return Losses(
            terms={"distil": 0.5 * distil * any_pair, "restore": masked_mean(error, views.counted)},
            weights={"distil": chosen.distil_weight, "restore": chosen.restore_weight},
            carry={"mean": mean, "any_pair": any_pair},
        )

    def _teacher_temperature(self, clock: Clock) -> float:
        chosen = self.settings
        done = min(1.0, clock.progress / max(chosen.teacher_warmup, 1e-9))
        return (1 - done) * chosen.teacher_temperature + done * chosen.teacher_temperature_last

    def after_step(self, losses: Losses, clock: Clock) -> None:
        """The teacher follows the student, the centre the teacher's projections."""
        self.teacher.update(self.student, rising_momentum(clock.step, clock.total, self.settings.momentum))
        any_pair = losses.carry["any_pair"]
        rate = (1.0 - self.settings.centre_momentum * self.centred) * any_pair
        self.centre.lerp_(losses.carry["mean"], rate)
        self.centred.copy_(torch.maximum(self.centred, any_pair))

    def export(self) -> nn.Module:
        """The student's encoder and decoder; both heads stay behind."""
        return self.student.network


def _layer(size: int) -> tuple[nn.Module, ...]:
    """Its norm looks at the descriptors at hand, in training and evaluation alike, and remembers nothing."""
    return nn.Linear(size, size, bias=False), nn.BatchNorm1d(size, track_running_stats=False), nn.ReLU()


def _at(feature: Float[Tensor, "v x y z c"], voxels: Int[Tensor, "v n 3"]) -> Float[Tensor, "v n c"]:
    x, y, z = voxels.unbind(2)
    return feature[torch.arange(len(voxels), device=voxels.device)[:, None], x, y, z]


def _limits(image: Float[Tensor, "v m x y z"], inside: Bool[Tensor, "v m x y z"]) -> tuple[Tensor, Tensor]:
    """Smallest and largest intensity inside, (v, m, 1, 1, 1) each; 1 apart where there is no contrast."""
    low = image.where(inside, torch.inf).amin((2, 3, 4), keepdim=True)
    low = low.masked_fill(low.isinf(), 0.0)
    high = image.where(inside, -torch.inf).amax((2, 3, 4), keepdim=True)
    return low, high.where(high > low, low + 1.0)


METHOD = VoxMMSD
