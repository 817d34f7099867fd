"""Models Genesis: restore a patch whose texture, intensities and parts were spoilt.

Source: Zhou et al. 2019 (Models Genesis, arXiv 1908.06912) and 2021 (arXiv 2004.07882): local shuffling, a random intensity curve,
    painting inside or outside boxes, mean squared error of the whole patch.
Deviates: inputs are z-scores, so each sequence is put to [0, 1] by its own limits in the patch for the curve and the noise, and back;
    shuffling and boxes are the same in all sequences, curves are each sequence's own and leave air alone; the number of boxes is
    uniform; only the foreground and acquired sequences are counted; flips are left to the run's augmentation, as they move the
    target too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, final

import torch
from jaxtyping import Bool, Float
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
from oligovox.sample.masks import random_box

_KNOTS = 256  # points of an intensity curve; straight lines between them


def _shares(limits: tuple[float, float]) -> tuple[float, float]:
    base.ascending("limits", limits, 0, 1)
    return limits


Shares = Annotated[tuple[float, float], AfterValidator(_shares)]


class Settings(base.Settings):
    """Choices of Models Genesis."""

    shuffle: float = Field(0.5, ge=0, le=1, description="probability that a patch is shuffled locally")
    windows: int = Field(10000, ge=1, description="windows shuffled in a patch; they may overlap")
    window: float = Field(0.1, gt=0, le=1, description="largest side of a window as a share of the patch's side")
    curve: float = Field(0.9, ge=0, le=1, description="probability that a sequence gets an intensity curve")
    decreasing: float = Field(0.5, ge=0, le=1, description="share of the curves that fall from bright to dark")
    paint: float = Field(0.9, ge=0, le=1, description="probability that a patch is painted")
    inpaint: float = Field(0.2, ge=0, le=1, description="share of painted patches painted inside boxes, not outside")
    boxes: int = Field(5, ge=1, description="most boxes in a patch")
    inpaint_side: Shares = Field((0.1667, 0.3333), description="sides of painted boxes as shares of the patch's side")
    outpaint_side: Shares = Field((0.4286, 0.5714), description="sides of boxes that are kept, as shares")


@dataclass(frozen=True)
class Views:
    """What is shown, and what it is compared with.

    Attributes:
        spoilt: the image after shuffling, curves and painting; 0 in absent sequences.
        present: sequences that were acquired.
        target: the image.
        counted: voxels of the foreground and of acquired sequences.
        painted: voxels that hold noise.
    """

    spoilt: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    target: Float[Tensor, "b m x y z"]
    counted: Bool[Tensor, "b m x y z"]
    painted: Bool[Tensor, "b 1 x y z"]


@final
class ModelsGenesis(Method[Views]):
    """Encoder, decoder and a 1 × 1 × 1 head that restores every sequence."""

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.modalities = encoder.modalities
        self.network = EncoderDecoder(encoder, Decoder(encoder.channels, encoder.strides))
        self.restore = ReconstructionHead(self.network.decoder.channels[0], len(encoder.modalities))

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Shuffle, bend intensities, paint: in this order, as the authors do; where to paint is known before, so that no limit tells of it."""
        shuffled = torch.rand(len(batch), generator=rng, device=rng.device) < self.settings.shuffle
        spoilt = torch.stack(
            [self._shuffle(image, rng) if moved else image for image, moved in zip(batch.image, shuffled, strict=True)]
        )
        painted = self._paint(batch.foreground.shape, rng)
        low, span = _limits(spoilt, batch.foreground & ~painted)
        bent = low + span * self._bend(((spoilt - low) / span).clamp(0, 1), rng)
        spoilt = bent.where(batch.foreground, spoilt)
        noise = low + span * torch.rand(spoilt.shape, generator=rng, device=rng.device)
        present = batch.present[:, :, None, None, None]
        return Views(
            spoilt=noise.where(painted, spoilt).where(present, 0.0),
            present=batch.present,
            target=batch.image,
            counted=batch.foreground & present,
            painted=painted,
        )

    def _shuffle(self, image: Float[Tensor, "m x y z"], rng: torch.Generator) -> Float[Tensor, "m x y z"]:
        """Voxels of a window change places; windows read the image as it was, and a later one overwrites an earlier one."""
        grid = torch.tensor(image.shape[1:], device=rng.device)
        largest = (self.settings.window * grid).long().clamp(min=2).minimum(grid)
        draw = torch.rand(2, self.settings.windows, 3, generator=rng, device=rng.device)
        side = 1 + (draw[0] * largest).long()
        start = (draw[1] * (grid - side + 1)).long()

        volume = side.prod(1)  # all voxels of all windows in one list, window after window
        window = torch.arange(len(side), device=rng.device).repeat_interleave(volume)
        within = torch.arange(len(window), device=rng.device) - (volume.cumsum(0) - volume)[window]
        (_, y, z), at = side[window].unbind(1), start[window]
        step = torch.stack([within // (y * z), within // z % y, within % z], 1)
        strides = torch.tensor([image.shape[2] * image.shape[3], image.shape[3], 1], device=rng.device)
        voxel = ((at + step) * strides).sum(1)

        key = torch.randint(2**40, window.shape, generator=rng, device=rng.device)
        source = voxel[(window * 2**40 + key).argsort()]  # a random order inside each window
        last = torch.full((image[0].numel(),), -1, device=rng.device).scatter_reduce(0, voxel, window, "amax")
        kept = last[voxel] == window
        shuffled, flat = image.flatten(1).clone(), image.flatten(1)
        shuffled[:, voxel[kept]] = flat[:, source[kept]]
        return shuffled.view_as(image)

    def _bend(self, unit: Float[Tensor, "b m x y z"], rng: torch.Generator) -> Float[Tensor, "b m x y z"]:
        """A random curve from [0, 1] onto [0, 1] for each sample and sequence, or none."""
        b, m = unit.shape[:2]
        draw = torch.rand(b * m, 6, generator=rng, device=rng.device)
        falling, bent = draw[:, 4] < self.settings.decreasing, draw[:, 5] < self.settings.curve
        values = unit.flatten(0, 1).flatten(1)
        curved = _bezier(values, draw[:, :4].view(-1, 2, 2), falling)
        return curved.where(bent[:, None], values).view_as(unit)

    def _paint(self, shape: torch.Size, rng: torch.Generator) -> Bool[Tensor, "b 1 x y z"]:
        """Boxes, or all but boxes, or nothing."""
        b, _, x, y, z = shape
        chosen, grid = self.settings, torch.tensor([x, y, z], device=rng.device)
        draw = torch.rand(3, b, 1, 1, 1, generator=rng, device=rng.device)
        painted, inside = draw[0] < chosen.paint, draw[1] < chosen.inpaint
        count = 1 + (draw[2] * chosen.boxes).long()
        smallest, largest = (
            torch.where(inside.view(b, 1), inner * grid, outer * grid).round().long().clamp(min=1)
            for inner, outer in zip(chosen.inpaint_side, chosen.outpaint_side, strict=True)
        )
        boxes = torch.zeros((b, x, y, z), dtype=torch.bool, device=rng.device)
        for number in range(chosen.boxes):
            boxes |= random_box((b, x, y, z), smallest, largest, rng) & (number < count)
        return (painted & (boxes ^ ~inside))[:, None]

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Mean squared error over the counted voxels, spoilt or not."""
        restored = self.restore(self.network(views.spoilt, views.present)).float()
        error = (restored - views.target).square()
        hidden = views.painted & views.counted
        notes = slope_note(restored, views.target, hidden, self.modalities)
        return Losses({"restore": masked_mean(error, views.counted)}, notes=notes)

    def export(self) -> nn.Module:
        """Encoder and decoder; the head stays behind."""
        return self.network


def _limits(
    image: Float[Tensor, "b m x y z"], seen: Bool[Tensor, "b 1 x y z"]
) -> tuple[Float[Tensor, "b m 1 1 1"], Float[Tensor, "b m 1 1 1"]]:
    """Smallest intensity of what is seen, and what the largest lies above it; (0, 1) where nothing is."""
    axes = (2, 3, 4)
    low = image.where(seen, torch.inf).amin(axes, keepdim=True)
    high = image.where(seen, -torch.inf).amax(axes, keepdim=True)
    known = high >= low
    return low.where(known, 0.0), (high - low).where(known, 1.0).clamp(min=1e-6)


def _bezier(
    unit: Float[Tensor, "n v"], points: Float[Tensor, "n 2 2"], falling: Bool[Tensor, " n"]
) -> Float[Tensor, "n v"]:
    """Cubic Bezier curves from (0, 0) to (1, 1) with the control points (axis, point); falling: from (0, 1) to (1, 0)."""
    t = torch.linspace(0, 1, _KNOTS, device=unit.device)
    first, second = points.unbind(2)
    curve = 3 * (1 - t) ** 2 * t * first[..., None] + 3 * (1 - t) * t**2 * second[..., None] + t**3
    x, y = curve.sort(-1).values.unbind(1)
    y = y.flip(-1).where(falling[:, None], y)
    right = torch.searchsorted(x.contiguous(), unit.contiguous()).clamp(1, _KNOTS - 1)
    (x0, x1), (y0, y1) = ((v.gather(1, right - 1), v.gather(1, right)) for v in (x, y))
    return y0 + (y1 - y0) * ((unit - x0) / (x1 - x0).clamp(min=1e-12)).clamp(0, 1)


METHOD = ModelsGenesis
