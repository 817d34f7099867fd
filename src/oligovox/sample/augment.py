"""Augmentation: random flips, movements and scanner effects, drawn per sample, applied on the batch's device.

Drawing is apart from applying: `draw_parameters` says what happens to each sample and channel, `apply` does it.

Space. One lattice of control points is rotated, scaled and displaced in millimetres, and a cubic B-spline through it gives
the sampling position of every voxel, so that all movements cost one `grid_sample` (free-form deformation, Rueckert et al.
1999, doi:10.1109/42.796284). A sample that is only flipped is not resampled.

Intensity. Blur, low resolution and the bias field are products with one small matrix per axis.

Sequences. Some of those that were acquired can be hidden, as if they had not been; z-scores and foreground stay those of the whole exam.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import AfterValidator, Field
from torch import Tensor
from torch.nn.functional import grid_sample

from oligovox.cohort.modalities import sequences_of
from oligovox.sample.batch import Batch
from oligovox.sample.masks import by_sequence, in_channels, some_of
from oligovox.settings import Settings, ordered, silent

_LATTICE = 7  # control points per axis of the displacement: four spline spans across the patch
_BIAS_LATTICE = 5  # control points per axis of the bias field: two spans across the patch


Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Augmentation(Settings):
    """How often and how strongly. Movements are drawn per sample, intensity changes per sample and sequence.

    The defaults follow nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z) where it has the same transform.
    """

    flip: Probability = 0.5  # probability, for each axis
    rotate: Probability = 0.2  # probability
    rotate_degrees: float = Field(default=30.0, ge=0, le=180)  # largest angle about each axis
    scale: Probability = 0.2  # probability
    scale_factor: Annotated[tuple[Positive, Positive], AfterValidator(ordered)] = (0.7, 1.4)  # above 1 enlarges
    elastic: Probability = 0.2  # probability
    elastic_strength: float = Field(default=0.25, ge=0, le=0.5)  # largest displacement / distance of control points

    gamma: Probability = 0.3  # probability
    gamma_exponent: Annotated[tuple[Positive, Positive], AfterValidator(ordered)] = (0.7, 1.5)  # smallest, largest
    contrast: Probability = 0.15  # probability
    contrast_factor: Annotated[tuple[Positive, Positive], AfterValidator(ordered)] = (0.75, 1.25)  # smallest, largest
    brightness: Probability = 0.15  # probability
    brightness_shift: Annotated[tuple[float, float], AfterValidator(ordered)] = (-0.25, 0.25)  # foreground sd
    bias: Probability = 0.2  # probability
    bias_log: float = Field(default=0.4, ge=0)  # largest |ln field| at a control point
    blur: Probability = 0.1  # probability
    blur_mm: Annotated[tuple[NotNegative, NotNegative], AfterValidator(ordered)] = (0.5, 1.0)  # Gaussian sd, mm
    low_resolution: Probability = 0.125  # probability
    low_resolution_factor: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]], AfterValidator(ordered)
    ] = (0.5, 1.0)  # voxels kept along each axis
    noise: Probability = 0.1  # probability
    noise_sd: Annotated[tuple[NotNegative, NotNegative], AfterValidator(ordered)] = (0.0, 0.3)  # foreground sd

    drop_sequences: Probability = silent(0.0)  # probability, for each acquired sequence, to be hidden; one always stays
    some_sequences: Probability = silent(0.0)  # probability, for a patch, to be shown some only: one to all but one

    @classmethod
    def only(cls, **chosen: Any) -> Augmentation:
        """Nothing but what is named: `Augmentation.only(flip=0.5, noise=1.0)`; without arguments the identity."""
        return cls.model_validate({**dict.fromkeys(EFFECTS, 0.0), **chosen})


EFFECTS = (
    "flip", "rotate", "scale", "elastic",
    "gamma", "contrast", "brightness", "bias", "blur", "low_resolution", "noise",
    "drop_sequences", "some_sequences",
)  # fmt: skip
"""Names of the probabilities in `Augmentation`: four movements, seven intensity changes, and two that hide sequences."""

FLIPS_AND_ROTATIONS = Augmentation.only(flip=0.5, rotate=0.2)
"""For pretexts whose target is the image itself: intensities stay as they were measured."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What happens to each sample (and sequence). On the CPU; the neutral value is given in brackets.

    Attributes:
        flip: reversed axes (False).
        angle: rotation about x, y, z in radians, right-handed, z first (0).
        zoom: magnification (1).
        displacement: of the control points, as a share of their smallest distance in mm; components x, y, z (0).
        gamma: exponent (1).
        contrast: factor about the foreground's mean (1).
        brightness: shift in standard deviations (0).
        bias: ln of the field at its control points (0).
        blur: standard deviation of the Gaussian in mm (0).
        kept: share of the voxels kept along each axis before going back up (1).
        noise: standard deviation (0).
        noise_seed: seed of the noise.
        stay: of the acquired sequences those with 0 and above are shown, and the one with the largest value (0 and above).
        share: of the others than the one with the largest value, the share that may be shown, largest values first (1).
    """

    flip: Bool[Tensor, "b 3"]
    angle: Float[Tensor, "b 3"]
    zoom: Float[Tensor, b]
    displacement: Float[Tensor, "b 3 k k k"]
    gamma: Float[Tensor, "b m"]
    contrast: Float[Tensor, "b m"]
    brightness: Float[Tensor, "b m"]
    bias: Float[Tensor, "b m n n n"]
    blur: Float[Tensor, "b m"]
    kept: Float[Tensor, "b m"]
    noise: Float[Tensor, "b m"]
    noise_seed: Int[Tensor, "b m"]
    stay: Float[Tensor, "b m"]
    share: Float[Tensor, b]

    def moves(self, sample: int) -> bool:
        """Whether this sample has to be resampled (a flip alone does not)."""
        turned, grown, bent = self.angle[sample].any(), self.zoom[sample] != 1, self.displacement[sample].any()
        return bool(turned or grown or bent)


def augment(batch: Batch, settings: Augmentation, rng: torch.Generator) -> Batch:
    """Draw and apply. The result is 0 outside the foreground and in absent sequences, which those it hides now are; label -1 where nothing
    was imaged.

    Args:
        batch: is not changed.
        settings: how often and how strongly.
        rng: one number is taken from it, whatever the settings.
    """
    b, m = batch.present.shape
    return apply(batch, draw_parameters(b, m, settings, rng))


def draw_parameters(b: int, m: int, settings: Augmentation, rng: torch.Generator) -> Parameters:
    """Draw for b samples of m sequences. One probability changed in the settings leaves the other draws as they were."""
    seed = int(torch.randint(2**63 - 1, (), generator=rng, device=rng.device))
    host = torch.Generator().manual_seed(seed)

    def chance(probability: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=host) < probability

    def between(limits: tuple[float, float], *shape: int) -> Tensor:
        low, high = limits
        return low + (high - low) * torch.rand(shape, generator=host)

    def some(probability: float, limits: tuple[float, float], neutral: float) -> Tensor:
        return torch.where(chance(probability, b, m), between(limits, b, m), neutral)

    s, k, n = settings, _LATTICE, _BIAS_LATTICE
    turn, bend, log = math.radians(s.rotate_degrees), s.elastic_strength, s.bias_log
    grow = math.log(s.scale_factor[0]), math.log(s.scale_factor[1])
    return Parameters(
        flip=chance(s.flip, b, 3),
        angle=chance(s.rotate, b, 1) * between((-turn, turn), b, 3),
        zoom=(chance(s.scale, b) * between(grow, b)).exp(),
        displacement=chance(s.elastic, b, 1, 1, 1, 1) * between((-bend, bend), b, 3, k, k, k),
        gamma=some(s.gamma, s.gamma_exponent, 1.0),
        contrast=some(s.contrast, s.contrast_factor, 1.0),
        brightness=some(s.brightness, s.brightness_shift, 0.0),
        bias=chance(s.bias, b, m, 1, 1, 1) * between((-log, log), b, m, n, n, n),
        blur=some(s.blur, s.blur_mm, 0.0),
        kept=some(s.low_resolution, s.low_resolution_factor, 1.0),
        noise=some(s.noise, s.noise_sd, 0.0),
        noise_seed=torch.randint(2**63 - 1, (b, m), generator=host),
        stay=torch.rand((b, m), generator=host) - s.drop_sequences,
        share=torch.where(chance(s.some_sequences, b), between((0.0, 1.0), b), 1.0),
    )


@torch.no_grad()
def apply(batch: Batch, parameters: Parameters) -> Batch:
    """Apply drawn parameters; the batch is not changed, and neutral parameters give an equal batch."""
    shown = _shown(batch.present, batch.modalities, parameters)
    image, foreground = batch.image * shown[:, :, None, None, None], batch.foreground.clone()
    label = None if batch.label is None else batch.label.clone()
    spacing = batch.spacing.cpu()
    for sample, kept in enumerate(shown.tolist()):
        channels = [channel for channel, there in enumerate(kept) if there]
        maps = [foreground[sample, 0]] if label is None else [foreground[sample, 0], label[sample]]
        if parameters.moves(sample):
            grid = _sampling_grid(image[sample], spacing[sample], parameters, sample)
            image[sample, channels] = _sample(image[sample, channels], grid, "bilinear")
            for values, moved in zip(maps, _sample_maps(maps, grid), strict=True):
                values.copy_(moved)
            image[sample].mul_(foreground[sample])
        elif axes := [axis for axis, turned in enumerate(parameters.flip[sample].tolist()) if turned]:
            image[sample] = image[sample].flip([axis + 1 for axis in axes])
            for values in maps:
                values.copy_(values.flip(axes))
        inside = foreground[sample, 0].to(image.dtype)
        for channel in channels:
            _recolour(image[sample, channel], inside, spacing[sample], parameters, (sample, channel))
    return replace(batch, image=image, present=shown, foreground=foreground, label=label)


def _shown(present: Bool[Tensor, "b m"], modalities: Sequence[str], parameters: Parameters) -> Bool[Tensor, "b m"]:
    """Channels of sequences that are acquired and not hidden; never none of those acquired. A sequence's first channel draws for all its acquisitions."""
    stay, share = parameters.stay.to(present.device), parameters.share.to(present.device)
    first = [list(modalities).index(name) for name in sequences_of(modalities)]
    there, stay = by_sequence(present, modalities), stay[:, first]
    alone = some_of(there, stay, torch.zeros_like(share))
    return in_channels(some_of(there, stay, share) & ((stay >= 0) | alone), present, modalities)


# ── space ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _sampling_grid(
    image: Float[Tensor, "m x y z"], spacing: Float[Tensor, " 3"], parameters: Parameters, sample: int
) -> Float[Tensor, "3 x y z"]:
    """Where each output voxel takes its value, in grid_sample's units: components z, y, x, from -1 to 1 edge to edge."""
    shape, spans = image.shape[1:], _LATTICE - 3
    ticks = (torch.arange(_LATTICE) - 1) * (2 / spans) - 1
    half = (torch.tensor(shape) * spacing / 2).view(3, 1, 1, 1)  # mm
    points = torch.stack(torch.meshgrid(ticks, ticks, ticks, indexing="ij")) * half  # mm from the patch's centre
    signs = torch.where(parameters.flip[sample], -1.0, 1.0)
    matrix = _rotation(parameters.angle[sample]).mT * signs / parameters.zoom[sample]  # inverse: from output to input
    distance = 2 * half.min() / spans
    points = torch.einsum("ij,jxyz->ixyz", matrix, points) + parameters.displacement[sample] * distance
    return _along_axes([_spline(side, _LATTICE) for side in shape], (points / half).flip(0).to(image))


def _rotation(angle: Float[Tensor, " 3"]) -> Float[Tensor, "3 3"]:
    matrix = torch.eye(3)
    for axis, (c, s) in enumerate(zip(angle.cos().tolist(), angle.sin().tolist(), strict=True)):
        about = torch.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        about[i, i], about[i, j], about[j, i], about[j, j] = c, -s, s, c
        matrix = matrix @ about
    return matrix


def _sample(values: Float[Tensor, "c x y z"], grid: Float[Tensor, "3 x y z"], mode: str) -> Float[Tensor, "c x y z"]:
    return grid_sample(values[None], grid.movedim(0, -1)[None], mode, "zeros", align_corners=False)[0]


def _sample_maps(maps: list[Tensor], grid: Float[Tensor, "3 x y z"]) -> Tensor:
    """Foreground and label by nearest neighbour; label is counted from -1, so that what lies outside the patch is -1."""
    shift = torch.tensor([0.0, 1.0], device=grid.device)[: len(maps)].view(-1, 1, 1, 1)
    moved = _sample(torch.stack([values.to(grid.dtype) for values in maps]) + shift, grid, "nearest")
    return moved - shift


# ── intensity ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _recolour(
    channel: Float[Tensor, "x y z"],
    inside: Float[Tensor, "x y z"],
    spacing: Float[Tensor, " 3"],
    parameters: Parameters,
    at: tuple[int, int],
) -> None:
    """Change one sequence in place: tissue (gamma, contrast, brightness), coil (bias), acquisition (blur … noise)."""
    p, before = parameters, channel
    if (exponent := float(p.gamma[at])) != 1:
        channel = _gamma(channel, inside, exponent)
    if p.contrast[at] != 1 or p.brightness[at] != 0:
        channel = channel * float(p.contrast[at]) + float(p.brightness[at])
    if p.bias[at].any():
        channel = _bias(channel, p.bias[at])
    if (sd := float(p.blur[at])) > 0:
        matrices = [_gaussian(side, sd / float(mm)) for side, mm in zip(channel.shape, spacing, strict=True)]
        channel = _along_axes(matrices, channel)
    if (kept := float(p.kept[at])) < 1:
        channel = _along_axes([_down_and_up(side, max(1, round(side * kept))) for side in channel.shape], channel)
    if (sd := float(p.noise[at])) > 0:
        rng = torch.Generator(channel.device).manual_seed(int(p.noise_seed[at]))
        channel = channel + sd * torch.randn(channel.shape, generator=rng, device=channel.device, dtype=channel.dtype)
    if channel is not before:
        torch.mul(channel, inside, out=before)


def _gamma(channel: Tensor, inside: Tensor, exponent: float) -> Tensor:
    """Raise intensities, scaled to [0, 1], to a power; mean and spread over the foreground are kept."""
    low, high = channel.aminmax()
    curved = channel.sub(low).div_((high - low).clamp_min(1e-6)).clamp_(0, 1).pow_(exponent)
    (mean, sd), (new_mean, new_sd) = _moments(channel, inside), _moments(curved, inside)
    return curved.sub_(new_mean).mul_(sd / new_sd.clamp_min(1e-6)).add_(mean)


def _moments(channel: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the foreground (0 and 0 where there is none)."""
    count = inside.sum().clamp_min(1)
    mean = (channel * inside).sum() / count
    return mean, (((channel - mean).square_() * inside).sum() / count).sqrt()


def _bias(channel: Tensor, coefficients: Float[Tensor, "n n n"]) -> Tensor:
    """Multiply by a smooth positive field; the smallest intensity of the patch stands for no signal."""
    field = _along_axes([_spline(side, _BIAS_LATTICE) for side in channel.shape], coefficients.to(channel))
    low = channel.amin()
    return field.exp_().mul_(channel - low).add_(low)


# ── one matrix per axis ────────────────────────────────────────────────────────────────────────────────────────────────


def _along_axes(matrices: Sequence[Tensor], values: Float[Tensor, "*c i j k"]) -> Float[Tensor, "*c x y z"]:
    """Multiply the last three axes by (x, i), (y, j) and (z, k) matrices."""
    first, second, third = (matrix.to(values) for matrix in matrices)
    values = second @ (values @ third.mT)
    *channels, _, y, z = values.shape
    return (first @ values.flatten(-2)).reshape(*channels, -1, y, z)


def _spline(side: int, points: int) -> Float[Tensor, "side points"]:
    """From control points to voxels: uniform cubic B-spline, `points - 3` spans over `side` voxels."""
    place = (torch.arange(side) + 0.5) * ((points - 3) / side)
    u = (place[:, None] - torch.arange(points) + 1).abs()
    return torch.where(u < 1, 2 / 3 - u**2 + u**3 / 2, (2 - u).clamp_min(0) ** 3 / 6)


def _gaussian(side: int, sd: float) -> Float[Tensor, "side side"]:
    """Gaussian blur, sd in voxels; at the border the weights that are left sum to 1."""
    ticks = torch.arange(side)
    return torch.softmax(-((ticks[:, None] - ticks) ** 2) / (2 * sd**2), 1)


def _down_and_up(side: int, kept: int) -> Float[Tensor, "side side"]:
    """Average to `kept` voxels, then interpolate linearly back to `side` voxels."""
    width = side / kept
    start, voxel = torch.arange(kept)[:, None] * width, torch.arange(side)
    share = torch.minimum(start + width, voxel + 1.0) - torch.maximum(start, voxel.float())
    place = ((voxel + 0.5) / width - 0.5).clamp(0, kept - 1)
    near = 1 - (place[:, None] - torch.arange(kept)).abs()
    return near.clamp_min(0) @ (share.clamp_min(0) / width)
