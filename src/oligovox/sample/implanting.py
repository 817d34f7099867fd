"""Implanting: artificial lesions and decoys put into exams that nobody labelled, and where they are.

Settings → what the exam shows of a lesion itself → bodies (`bodies.py`) with contrasts (`relations.py`) → voxels and intensities (`implants.py`).
A pretext asks for them alone (`pretext/implanted_lesions.py`), a strategy beside labels (`semi/implanted.py`). No label is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import AfterValidator, Field
from torch import Tensor

from oligovox import settings as base
from oligovox.cohort.modalities import canonical, sequence_of
from oligovox.errors import SettingsError
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


class Implants(base.Settings):
    """What is put into exams. Differences are in standard deviations of the foreground, as images are z-scored."""

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


@dataclass(frozen=True)
class Implanted:
    """Exams with bodies in them.

    Attributes:
        image: the exam where no body is, outside the foreground and in absent sequences.
        lesion: voxels of implanted lesions.
        decoy: voxels of decoys.
        compartment: 0 plain or outer layer, 1 next, 2 innermost layer of a lesion with compartments.
        counted: foreground without what the exam itself shows like a lesion; of the rest it is known what it is.
        covered: voxels that a body changes, soft borders included.
    """

    image: Float[Tensor, "b m x y z"]
    lesion: Bool[Tensor, "b x y z"]
    decoy: Bool[Tensor, "b x y z"]
    compartment: Int[Tensor, "b x y z"]
    counted: Bool[Tensor, "b x y z"]
    covered: Bool[Tensor, "b x y z"]


def implant(batch: Batch, chosen: Implants, rng: torch.Generator) -> Implanted:
    """Find the usual tissue, draw bodies, put them in.

    Args:
        batch: the exams; not changed, and its label not looked at.
        chosen: what is put in.
        rng: random numbers.
    """
    tissue = survey(batch, rng)
    abnormal = torch.zeros_like(batch.foreground)
    if chosen.ignore:
        plaque = _relation(chosen.plaque, batch, chosen)
        found = beyond(batch, tissue, plaque, chosen.ignore_slack, chosen.ignore_at_most)
        abnormal = grown(closed(found, 2), 1) & batch.foreground
    allowed = batch.foreground & ~abnormal
    border = along_fluid(tissue)
    bodies = _bodies(batch, tissue, allowed, border, chosen, rng)
    painting = paint(bodies, batch, tissue, border)
    image = blend(batch, tissue, bodies, painting, chosen.texture, rng)
    lesion, decoy, compartment = _asked(bodies, painting)
    return Implanted(image, lesion, decoy, compartment, allowed[:, 0], painting.strength[0] > 0)


def _relation(ranges: Mapping[str, tuple[float, float]], batch: Batch, chosen: Implants) -> Relation:
    limits = [ranges.get(sequence_of(name), chosen.unlisted) for name in batch.modalities]
    low, high = torch.tensor(limits, device=batch.image.device).unbind(1)
    return Relation(low, high)


def _bodies(
    batch: Batch, tissue: Tissue, allowed: Tensor, border: Tensor, chosen: Implants, rng: torch.Generator
) -> Bodies:
    """Draw everything about the bodies but their voxels; lesions and decoys alike."""
    iron = batch.present & torch.tensor(
        [sequence_of(name) in chosen.iron_rim for name in batch.modalities], device=rng.device
    )
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
        "contrast": _contrasts(batch, slots, chosen, rng),
        "replace": between(chosen.replace, rng, *shape),
        "extent": (narrow - narrow.amin(-1, keepdim=True)).exp(),
        "lesion": slots.kind <= Kind.NESTED,
        "nested": slots.kind == Kind.NESTED,
    }
    return with_twins(Bodies(**{name: value[slots.used] for name, value in found.items()}), tissue)


def _contrasts(batch: Batch, slots: Slots, chosen: Implants, rng: torch.Generator) -> Float[Tensor, "b n 3 m"]:
    """Differences of the three layers: of lesions as the relations say, of decoys with something wrong."""
    kind, present = slots.kind, batch.present
    severity = uniform(rng, *kind.shape, 1)
    plaque, iron, *nested = (
        _relation(ranges, batch, chosen).draw(severity, chosen.coherence, rng)
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
    known = _relation(chosen.plaque, batch, chosen)
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
