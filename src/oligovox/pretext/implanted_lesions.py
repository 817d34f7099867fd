"""Implanted lesions: put artificial lesions and decoys into unlabelled exams and learn to find the lesions.

Source: ours. Kin: foreign patch interpolation (Tan et al. 2020, arXiv 2011.04197) and label-free tumour segmentation (Hu et al. 2023,
    arXiv 2303.14869), which find what was put in, in one image channel.
Deviates: a lesion is a relation between sequences, given as ranges in settings; decoys share shape, edge and blending with lesions and
    break the relation, or keep it and break the shape; what the exam already shows of a relation is neither asked for nor punished.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.cohort.modalities import canonical
from oligovox.errors import SettingsError
from oligovox.losses.dice import cross_entropy, dice_loss
from oligovox.losses.masked import masked_mean
from oligovox.method import Clock, Losses, Method
from oligovox.networks.compose import EncoderDecoder
from oligovox.networks.decoder import Decoder
from oligovox.networks.encoder import Encoder
from oligovox.networks.heads import ReconstructionHead, SegmentationHead
from oligovox.networks.teacher import Teacher, warm_momentum
from oligovox.sample.batch import Batch
from oligovox.sample.bodies import (
    Bodies,
    Kind,
    Slots,
    between,
    draw_places,
    draw_shapes,
    draw_slots,
    uniform,
    with_twins,
)
from oligovox.sample.implants import Painting, blend, paint
from oligovox.sample.masks import random_blocks
from oligovox.sample.relations import Relation, at_least, one_flipped, one_kept
from oligovox.sample.tissue import Tissue, along_fluid, beyond, closed, grown, survey

_FAINT_CAP = (0.4, 0.8)  # difference of a cap as a share of that of a lesion


def _named(ranges: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    try:
        return {canonical(name): limits for name, limits in ranges.items()}
    except SettingsError as error:
        raise ValueError(str(error)) from None


Share = Annotated[float, Field(ge=0, le=1)]
Shares = Annotated[tuple[Share, Share], AfterValidator(base.ordered)]
Amounts = Annotated[tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]], AfterValidator(base.ordered)]
Lengths = Annotated[tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], AfterValidator(base.ordered)]
Counts = Annotated[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], AfterValidator(base.ordered)]
Ranges = Annotated[
    dict[str, Annotated[tuple[float, float], AfterValidator(base.ordered)]], AfterValidator(_named)
]  # sequence → lowest and highest difference from the tissue around, in standard deviations of the foreground


class Settings(base.Settings):
    """Choices of implanted lesions. Differences are in standard deviations of the foreground, as images are z-scored."""

    lesions: Counts = Field((0, 8), description="fewest and most lesions in a patch")
    decoys: Counts = Field((0, 8), description="fewest and most decoys in a patch")
    nested: Share = Field(0.25, description="probability of one large body with compartments in a patch")
    radius: Lengths = Field((1.5, 9.0), description="mean radius of a lesion, mm, log-uniform")
    nested_radius: Lengths = Field((8.0, 25.0), description="mean radius of a body with compartments, mm, log-uniform")
    nested_at_most: Share = Field(0.3, description="that radius is at most this share of the shortest patch side")
    elongation: float = Field(2.0, ge=1, description="largest ratio of two radii of a lesion")
    roughness: Shares = Field((0.05, 0.35), description="how far noise moves the surface, share of the radius")
    edge: Lengths = Field((0.5, 1.2), description="half the width of the soft border, voxels")
    softness: Share = Field(0.5, description="largest addition to that, share of the smallest radius")
    follow: Amounts = Field((0.0, 0.5), description="how strongly a body keeps to the tissue it starts in")
    commonness: float = Field(2.0, ge=0, description="power of how common a tissue is, in drawing places; 0: anywhere")
    plaque: Ranges = Field(
        {
            "T1w": (-2.0, 0.0),
            "T1wGd": (-1.5, 2.0),
            "T2w": (0.4, 2.5),
            "PDw": (0.3, 2.0),
            "FLAIR": (0.6, 3.0),
            "T2starw": (0.0, 1.5),
            "QSM": (-0.5, 1.5),
        },
        description="lowest and highest difference of a lesion from the tissue it starts in",
    )
    iron_rim: Ranges = Field({"QSM": (0.8, 3.0), "T2starw": (-2.0, -0.5)}, description="differences in an iron rim")
    iron_share: Share = Field(0.3, description="share of lesions with an iron rim, where a sequence shows iron")
    surround: Ranges = Field(
        {"T1w": (-1.2, -0.1), "T1wGd": (-1.2, -0.1), "T2w": (0.5, 2.5), "FLAIR": (0.6, 2.5)},
        description="differences in the outer layer of a body with compartments: oedema",
    )
    rim: Ranges = Field(
        {"T1w": (-1.0, 0.3), "T1wGd": (0.8, 3.5), "T2w": (0.2, 2.0), "FLAIR": (0.3, 2.5)},
        description="differences in its next layer: solid, enhancing",
    )
    core: Ranges = Field(
        {"T1w": (-2.5, -0.8), "T1wGd": (-2.5, -0.8), "T2w": (1.0, 4.0), "FLAIR": (-1.5, 1.5)},
        description="differences in its innermost layer: necrotic",
    )
    unlisted: Annotated[tuple[float, float], AfterValidator(base.ordered)] = Field(
        (-1.5, 1.5), description="range of a sequence without one"
    )
    coherence: Share = Field(0.7, description="how far one severity rules all sequences of a lesion")
    faintest: float = Field(0.5, ge=0, description="difference that at least one acquired sequence shows")
    texture: float = Field(0.25, ge=0, description="unevenness of the differences inside, as a share")
    replace: Shares = Field((0.5, 1.0), description="share of the anatomy below it that a body hides")
    narrower: float = Field(
        3.0, ge=1, description="largest power of the soft mask in a sequence; 1: same extent in all"
    )
    impossible: float = Field(
        1.0, ge=0, description="weight of decoys whose difference has a wrong sign in one sequence"
    )
    artefact: float = Field(1.0, ge=0, description="weight of decoys that only one sequence shows")
    vessel: float = Field(1.0, ge=0, description="weight of decoys that are thin bent tubes")
    cap: float = Field(0.5, ge=0, description="weight of decoys that are faint symmetric bands along fluid")
    blank: float = Field(0.5, ge=0, description="weight of decoys that are blended in but differ in no sequence")
    ignore: bool = Field(
        True, description="what looks like a plaque in the exam itself is not counted, and nothing starts there"
    )
    ignore_slack: float = Field(0.0, ge=0, description="how far short of a plaque's ranges that may fall")
    ignore_at_most: Share = Field(0.15, description="largest share of the foreground that does, before closing gaps")
    decoy_weight: float = Field(3.0, ge=1, description="weight of a decoy's voxel in the cross-entropy")
    compartment_weight: float = Field(
        0.5, ge=0, description="weight of telling the compartments apart; 0: no such head"
    )
    hidden: Share = Field(0.0, description="share of blocks hidden in each sequence; 0: none")
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
        counted: foreground, without hidden blocks and without what the exam itself shows like a lesion.
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
        self.modalities = encoder.modalities
        self.network = EncoderDecoder(encoder, Decoder(encoder.channels, encoder.strides))
        channels = self.network.decoder.channels[0]
        self.find = SegmentationHead(channels, 1)
        self.tell = SegmentationHead(channels, 3) if settings.compartment_weight and settings.nested else None
        self.restore = ReconstructionHead(channels, len(encoder.modalities)) if settings.restore_weight else None
        self.predict = nn.Conv3d(channels, channels, 1) if settings.distil_weight else None
        self.teacher = Teacher(self.network) if settings.distil_weight else None

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Find the usual tissue, draw bodies, put them in."""
        chosen = self.settings
        tissue = survey(batch, rng)
        abnormal = torch.zeros_like(batch.foreground)
        if chosen.ignore:
            found = beyond(batch, tissue, self._relation(chosen.plaque), chosen.ignore_slack, chosen.ignore_at_most)
            abnormal = grown(closed(found, 2), 1) & batch.foreground
        allowed = batch.foreground & ~abnormal
        border = along_fluid(tissue)
        bodies = self._bodies(batch, tissue, allowed, border, rng)
        painting = paint(bodies, batch, tissue, border)
        image = blend(batch, tissue, bodies, painting, chosen.texture, rng)
        b, m, x, y, z = batch.image.shape
        block = max(1, min(x, y, z) // 8)
        hidden = random_blocks((b, m, x, y, z), block, chosen.hidden, rng) & batch.foreground
        covered = painting.strength[:1].movedim(0, 1) > 0
        lesion, decoy, compartment = _asked(bodies, painting)
        return Views(
            image=image.masked_fill(hidden, 0.0),
            present=batch.present,
            lesion=lesion,
            decoy=decoy,
            compartment=compartment,
            counted=(allowed & ~hidden.any(1, keepdim=True))[:, 0],
            before=batch.image,
            restored=(covered | hidden) & batch.foreground & batch.present[:, :, None, None, None],
            steady=(batch.foreground & ~covered)[:, 0],
        )

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Dice and cross-entropy of the lesions, and the terms that are asked for."""
        chosen = self.settings
        feature = self.network(views.image, views.present)
        logit = self.find(feature)[:, 0].float()
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
        """Encoder and decoder; the heads stay behind."""
        return self.network

    def _relation(self, ranges: Mapping[str, tuple[float, float]]) -> Relation:
        limits = [ranges.get(name, self.settings.unlisted) for name in self.modalities]
        low, high = torch.tensor(limits, device=self.find.weight.device).unbind(1)
        return Relation(low, high)

    def _bodies(self, batch: Batch, tissue: Tissue, allowed: Tensor, border: Tensor, rng: torch.Generator) -> Bodies:
        """Draw everything about the bodies but their voxels; lesions and decoys alike."""
        chosen = self.settings
        iron = batch.present & torch.tensor([name in chosen.iron_rim for name in self.modalities], device=rng.device)
        decoys = (chosen.impossible, chosen.artefact, chosen.vessel, chosen.cap, chosen.blank)
        rimmed = chosen.iron_share * iron.any(1, keepdim=True)
        slots = draw_slots(rimmed, chosen.lesions, chosen.decoys, decoys, chosen.nested, rng)
        at, slots = draw_places(slots, tissue, allowed, border, chosen.commonness, rng)
        shapes = draw_shapes(
            slots, batch, chosen.radius, chosen.nested_radius, chosen.nested_at_most, chosen.elongation, rng
        )
        rows = torch.arange(len(batch), device=rng.device)[:, None].expand_as(at)
        centre = tissue.places[rows, at]
        x, y, z = centre.unbind(-1)
        start = tissue.smooth[rows, :, x, y, z]
        shape = tuple(at.shape)
        voxel, least = batch.spacing.mean(1, keepdim=True), shapes["radii"].amin(2)
        free = (slots.kind == Kind.VESSEL) | (slots.kind == Kind.CAP)
        edge = voxel * between(chosen.edge, rng, *shape) + chosen.softness * least * uniform(rng, *shape)
        rough = between(chosen.roughness, rng, *shape)
        narrow = math.log(chosen.narrower) * uniform(rng, *start.shape)
        found = {
            **shapes,
            "sample": rows,
            "centre": centre,
            "start": start,
            "offset": start - tissue.field[rows, :, x, y, z],
            "mirrored": torch.zeros_like(slots.used),
            "rough": torch.where(slots.kind == Kind.VESSEL, 0.3 * rough, rough),
            "edge": edge.minimum(least),  # the middle of a body is solid
            "follow": between(chosen.follow, rng, *shape).masked_fill(free, 0.0),
            "hugging": slots.kind == Kind.CAP,
            "contrast": self._contrasts(batch, slots, rng),
            "replace": between(chosen.replace, rng, *shape),
            "extent": (narrow - narrow.amin(-1, keepdim=True)).exp(),
            "lesion": slots.kind <= Kind.NESTED,
            "nested": slots.kind == Kind.NESTED,
        }
        return with_twins(Bodies(**{name: value[slots.used] for name, value in found.items()}), tissue)

    def _contrasts(self, batch: Batch, slots: Slots, rng: torch.Generator) -> Float[Tensor, "b n 3 m"]:
        """Differences of the three layers: of lesions as the relations say, of decoys with something wrong."""
        chosen, kind, present = self.settings, slots.kind, batch.present
        severity = uniform(rng, *kind.shape, 1)
        plaque, iron, *nested = (
            self._relation(ranges).draw(severity, chosen.coherence, rng)
            for ranges in (
                chosen.plaque,
                {**chosen.plaque, **chosen.iron_rim},
                chosen.surround,
                chosen.rim,
                chosen.core,
            )
        )
        outer = torch.where((kind == Kind.IRON_RIM)[:, :, None], iron, plaque)
        plain = torch.stack([outer, plaque, plaque], dim=2)
        contrast = torch.where(slots.large[:, :, None, None], torch.stack(nested, dim=2), plain)
        contrast = at_least(contrast, present[:, None, None].expand_as(contrast), chosen.faintest)
        known = self._relation(chosen.plaque)
        flipped = one_flipped(contrast, known, present, chosen.faintest, rng)
        alone, contradicts = one_kept(contrast, known, present, chosen.faintest, rng)
        artefact = kind == Kind.ARTEFACT
        odd_vessel = (kind == Kind.VESSEL) & (uniform(rng, *kind.shape) < 0.5)
        wrong = (kind == Kind.IMPOSSIBLE) | (artefact & ~contradicts) | odd_vessel
        contrast = torch.where(wrong[:, :, None, None], flipped, contrast)
        contrast = torch.where((artefact & contradicts)[:, :, None, None], alone, contrast)
        size = torch.where(kind == Kind.CAP, between(_FAINT_CAP, rng, *kind.shape), 1.0) * (kind != Kind.BLANK)
        return contrast * size[:, :, None, None]


def _asked(bodies: Bodies, painting: Painting) -> tuple[Tensor, Tensor, Tensor]:
    """Voxels of lesions, of decoys, and the compartment of each voxel of a lesion."""
    solid = painting.strength >= 0.5
    lesion, nested = (F.pad(flag, (0, 1))[painting.owner] & solid for flag in (bodies.lesion, bodies.nested))
    return lesion[0], solid[0] & ~lesion[0], (nested[1].long() + nested[2]) * lesion[0]


METHOD = ImplantedLesions
