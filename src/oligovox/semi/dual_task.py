"""Dual-task consistency: a second head says how far the lesion's border is; where nobody looked, its mask and the segmentation have to agree.

Source: Luo et al. 2021 (Semi-supervised medical image segmentation through dual-task consistency, AAAI, arXiv 2009.04448); weights, normalisation
    and ramp as in its release (HiLab-git/DTC).
Deviates: voxels that nobody looked at are counted (`over: all` is the paper's); of a distance that they leave open only the bounds are taught;
    a labelled patch without a lesion is all outside, the release calls it all border; a lesion's outermost voxels lie inside, the release
    calls them border, and with it all of a lesion one or two voxels thick; distances are in mm, one for each class or region; the supervised
    part is that of `segmentation`; the ramp is a share of the training.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.losses.consistency import ramp, squared_difference
from oligovox.losses.masked import mean_over_samples
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.encoder import Encoder
from oligovox.sample.batch import Batch
from oligovox.tasks import segmentation


class Settings(base.Settings):
    """Choices of the dual-task consistency."""

    task: segmentation.Settings = Field(segmentation.Settings(), description="of the supervised part")
    weight: float = Field(1.0, ge=0, description="of the difference between the two heads, once it has risen")
    ramp: float = Field(1.0, ge=0, le=1, description="share of the training in which the weight rises")
    distance_weight: float = Field(0.3, ge=0, description="of the distance where it is labelled")
    sharpness: float = Field(1500.0, gt=0, description="k of σ(-k s), which makes a mask of a signed distance s")
    over: Literal["unlooked", "all"] = Field(
        "unlooked", description="where the heads are compared: foreground where nobody looked, or all; paper: all"
    )


@dataclass(frozen=True)
class Bounds:
    """What is known of the distance to the nearest voxel on the other side of the border.

    Attributes:
        inside: True in the lesion, where the signed distance is negative.
        near: the distance is at least this, as a share of the largest that the patch has on this side.
        far: and at most this. The same as `near` where no voxel that nobody looked at is closer than the other side.
    """

    inside: Bool[Tensor, "b k x y z"]
    near: Float[Tensor, "b k x y z"]
    far: Float[Tensor, "b k x y z"]


@dataclass(frozen=True)
class Views:
    """What is shown, and the targets.

    Attributes:
        image: augmented before.
        present: acquired sequences.
        label: -1 where nobody looked.
        distance: of each class but the background, or of each region; means nothing where the label is -1.
        compared: voxels on which the two heads are compared.
    """

    image: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    label: Int[Tensor, "b x y z"]
    distance: Bounds
    compared: Bool[Tensor, "b x y z"]


@final
class DualTask(Method[Views]):
    """The supervised task, and a head for signed distances beside its own, which stays behind."""

    needs = Needs(labels=True, unlabelled=True)

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.task = segmentation.Segmentation(encoder, settings.task)
        self.distance = nn.Conv3d(self.task.network.head.in_channels, len(settings.task.labels), kernel_size=1)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """The batch, and the distances; nothing is drawn."""
        seen = self.task.views(batch, rng)
        compared = torch.ones_like(batch.unlooked) if self.settings.over == "all" else batch.unlooked
        distance = bounds(seen.label, self.settings.task.labels.values(), batch.unlooked, batch.spacing)
        return Views(seen.image, seen.present, seen.label, distance, compared)

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Supervised terms; the squared error of the distance; and mean (σ(-k s) − p)² with a weight that rises."""
        network = self.task.network
        features = network.decoder(network.encoder(views.image, views.present))
        scales = self.task.told(features)
        signed = self.distance(features[0]).float().tanh()
        lesions = self.task.probability(scales[0])[:, -signed.shape[1] :]  # without the background, where there is one
        terms = self.task.supervised(scales, views.label) | {
            "distance": mean_over_samples(_squared_error(signed, views.distance).mean(1), views.label >= 0),
            "consistency": squared_difference(
                torch.sigmoid(-self.settings.sharpness * signed), lesions, views.compared
            ),
        }
        rising = self.settings.weight * ramp(clock.progress, self.settings.ramp)
        return Losses(terms, {"distance": self.settings.distance_weight, "consistency": rising})

    def export(self) -> nn.Module:
        """The network with the head of the segmentation."""
        return self.task.network


def bounds(
    label: Int[Tensor, "b x y z"],
    groups: Iterable[tuple[int, ...]],
    unlooked: Bool[Tensor, "b x y z"],
    spacing: Float[Tensor, "b 3"],
) -> Bounds:
    """What a label that is known in part says of the distances; a patch is all there is, as in the release.

    Args:
        label: -1 where it is not known.
        groups: label values of each class or region.
        unlooked: voxels in which more of either side may lie; not the air around the head.
        spacing: in mm.
    """
    inside = torch.stack([torch.isin(label, torch.tensor(group, device=label.device)) for group in groups], dim=1)
    known = (label >= 0)[:, None]
    sources = torch.cat([inside, known & ~inside, unlooked[:, None]], dim=1)
    labelled = known.flatten(1).any(1)  # no other sample's distance counts
    distance = spacing.new_zeros(sources.shape)
    distance[labelled] = distance_to(sources[labelled], spacing[labelled])
    to_inside, to_outside, to_unlooked = distance.tensor_split([inside.shape[1], 2 * inside.shape[1]], dim=1)
    far = torch.where(inside, to_outside, to_inside)
    near = torch.minimum(far, to_unlooked)
    lesion, rest = (far.where(side & known, 0.0).amax((2, 3, 4), keepdim=True) for side in (inside, ~inside))
    largest = torch.where(inside, lesion, rest).clamp(min=1e-6)  # 0 where there is no labelled voxel on this side
    return Bounds(inside, near / largest, far / largest)


def distance_to(sources: Bool[Tensor, "b k x y z"], spacing: Float[Tensor, "b 3"]) -> Float[Tensor, "b k x y z"]:
    """Distance in mm to the nearest True voxel of the same channel; the patch's diagonal where there is none.

    Exact, one axis after the other, every voxel against every other on its line: no step leaves the device.

    Source: Felzenszwalb and Huttenlocher 2012 (Distance transforms of sampled functions, Theory of Computing 8), for the separation.
    """
    sides = torch.tensor(sources.shape[2:], device=spacing.device)
    diagonal = (sides * spacing).square().sum(1).view(-1, 1, 1, 1, 1)
    squared = torch.where(sources, 0.0, diagonal)
    for axis in range(3):
        planes = squared.movedim(axis + 2, 0).contiguous()
        places = torch.arange(len(planes), device=spacing.device)[:, None] * spacing[:, axis]
        nearest = planes.clone()
        for plane, place in zip(planes, places, strict=True):
            away = (places - place).square()[:, :, None, None, None]
            torch.minimum(nearest, plane + away, out=nearest)
        squared = nearest.movedim(0, axis + 2)
    return torch.minimum(squared, diagonal).sqrt()


def _squared_error(signed: Float[Tensor, "b k x y z"], known: Bounds) -> Float[Tensor, "b k x y z"]:
    """From the nearest distance that the bounds allow; on the wrong side of the border this is `near` at least."""
    size = torch.where(known.inside, -signed, signed)
    return (size - size.detach().clamp(known.near, known.far)).square()


METHOD = DualTask
