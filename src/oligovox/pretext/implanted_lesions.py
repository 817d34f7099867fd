"""Implanted lesions: put artificial lesions and decoys into unlabelled exams and learn to find the lesions.

Source: ours. Kin: foreign patch interpolation (Tan et al. 2020, arXiv 2011.04197) and label-free tumour segmentation (Hu et al. 2023,
    arXiv 2303.14869), which find what was put in, in one image channel.
Deviates: a lesion is a relation between sequences, given as ranges in settings; decoys share shape, edge and blending with lesions and
    break the relation, or keep it and break the shape; what the exam already shows of a relation is neither asked for nor punished.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from oligovox.losses.dice import cross_entropy, dice_loss
from oligovox.losses.masked import masked_mean
from oligovox.method import Clock, Losses, Method
from oligovox.networks.compose import EncoderDecoder, SegmentationNetwork
from oligovox.networks.decoder import Decoder
from oligovox.networks.encoder import Encoder
from oligovox.networks.heads import RARE, ReconstructionHead, SegmentationHead
from oligovox.networks.teacher import Teacher, warm_momentum
from oligovox.sample.batch import Batch
from oligovox.sample.implanting import Implants, Share, implant
from oligovox.sample.masks import random_blocks, spread


class Settings(Implants):
    """What is put in (`Implants`), and how it is learned from."""

    decoy_weight: float = Field(3.0, ge=1, description="weight of a decoy's voxel in the cross-entropy")
    compartment_weight: float = Field(
        0.5, ge=0, description="weight of telling the compartments apart; 0: no such head"
    )
    hidden: Share = Field(0.0, description="share of blocks hidden in each acquired sequence; 0: none")
    restore_weight: float = Field(0.0, ge=0, description="weight of restoring the exam as it was; 0: no such head")
    distil_weight: float = Field(
        0.0, ge=0, description="weight of agreeing with a teacher that sees the exam as it was"
    )
    momentum: Share = Field(0.99, description="of this teacher's weights")


@dataclass(frozen=True)
class Views:
    """What is shown, and what is asked.

    Attributes:
        image: the exam with bodies in it; hidden blocks are 0.
        present: sequences that were acquired.
        lesion: voxels of implanted lesions.
        decoy: voxels of decoys.
        compartment: 0 plain or outer layer, 1 next, 2 innermost layer of a lesion with compartments.
        counted: foreground that some acquired sequence shows, without what the exam itself shows like a lesion.
        before: the exam as it was.
        restored: voxels to restore: covered by a body or hidden, foreground, of acquired sequences.
        steady: foreground voxels without a body.
    """

    image: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    lesion: Bool[Tensor, "b x y z"]
    decoy: Bool[Tensor, "b x y z"]
    compartment: Int[Tensor, "b x y z"]
    counted: Bool[Tensor, "b x y z"]
    before: Float[Tensor, "b m x y z"]
    restored: Bool[Tensor, "b m x y z"]
    steady: Bool[Tensor, "b x y z"]


@final
class ImplantedLesions(Method[Views]):
    """Encoder, decoder, and a head that says where lesions were put; more heads for the terms that are asked for."""

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.network = EncoderDecoder(encoder, Decoder(encoder.channels, encoder.strides))
        channels = self.network.decoder.channels[0]
        self.find = SegmentationHead(channels, 2).expect(RARE, background=True)
        self.tell = SegmentationHead(channels, 3) if settings.compartment_weight and settings.nested else None
        self.restore = ReconstructionHead(channels, len(encoder.modalities)) if settings.restore_weight else None
        self.predict = nn.Conv3d(channels, channels, 1) if settings.distil_weight else None
        self.teacher = Teacher(self.network) if settings.distil_weight else None

    def begin(self, load: Callable[[nn.Module], None]) -> None:
        """The network takes over the start, the teacher the network."""
        load(self.export())
        if self.teacher is not None:
            self.teacher.update(self.network, 0.0)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Put bodies in, and hide blocks where that is asked for."""
        put = implant(batch, self.settings, rng)
        b, m, x, y, z = batch.image.shape
        block = max(1, min(x, y, z) // 8)
        acquired = spread(batch.present)
        hidden = random_blocks((b, m, x, y, z), block, self.settings.hidden, rng) & batch.foreground & acquired
        covered = put.covered[:, None]
        return Views(
            image=put.image.masked_fill(hidden, 0.0),
            present=batch.present,
            lesion=put.lesion,
            decoy=put.decoy,
            compartment=put.compartment,
            counted=put.counted & (acquired & ~hidden).any(1),
            before=batch.image,
            restored=(covered | hidden) & batch.foreground & acquired,
            steady=(batch.foreground & ~covered)[:, 0],
        )

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Dice and cross-entropy of the lesions, and the terms that are asked for."""
        chosen = self.settings
        feature = self.network(views.image, views.present)
        background, lesion = self.find(feature).float().unbind(1)
        logit = lesion - background
        share = logit.sigmoid()
        weight = views.counted * torch.where(views.decoy, chosen.decoy_weight, 1.0)
        error = F.binary_cross_entropy_with_logits(logit, views.lesion.float(), reduction="none")
        known = views.counted.flatten(1).any(1)
        terms = {
            "dice": dice_loss(share[:, None], views.lesion[:, None], views.counted),
            "cross_entropy": masked_mean(masked_mean(error, weight, dim=(1, 2, 3)), known),
        }
        weights: dict[str, float] = {}
        if self.tell is not None:
            inside = views.lesion & views.counted
            terms["compartment"] = cross_entropy(self.tell(feature), views.compartment, inside)
            weights["compartment"] = chosen.compartment_weight
        if self.restore is not None:
            difference = (self.restore(feature).float() - views.before).abs()
            terms["restore"] = masked_mean(difference, views.restored)
            weights["restore"] = chosen.restore_weight
        if self.predict is not None and self.teacher is not None:
            kept = self.teacher(views.before, views.present).float()
            agreement = F.cosine_similarity(self.predict(feature).float(), kept, dim=1)
            terms["distil"] = masked_mean(1.0 - agreement, views.steady)
            weights["distil"] = chosen.distil_weight
        called = (share.detach() >= 0.5) & views.counted
        notes = {
            "found": float(masked_mean(called.float(), views.lesion)),
            "fooled": float(masked_mean(called.float(), views.decoy)),
        }
        return Losses(terms, weights, notes)

    def after_step(self, losses: Losses, clock: Clock) -> None:
        """The teacher follows."""
        if self.teacher is not None:
            self.teacher.update(self.network, warm_momentum(clock.step, self.settings.momentum))

    def export(self) -> nn.Module:
        """Encoder, decoder, and the head that says where lesions are, of two classes; the other heads stay behind."""
        return SegmentationNetwork(self.network.encoder, self.network.decoder, self.find)


METHOD = ImplantedLesions
