"""Implanted: the network learns from labels and, beside them and with the same head, from lesions put into exams that nobody labelled.

Source: ours; what is put in is that of `pretext/implanted_lesions`. Kin: label-free tumour segmentation (Hu et al. 2023, arXiv 2303.14869),
    which has no labels beside it.
Deviates: -
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.losses.consistency import samples_with
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.encoder import Encoder
from oligovox.sample.batch import Batch
from oligovox.sample.implanting import Implants, implant
from oligovox.tasks import segmentation


class Settings(base.Settings):
    """Choices of implanted."""

    task: segmentation.Settings = Field(segmentation.Settings(), description="of the supervised part")
    implants: Implants = Field(Implants(nested=0.0), description="what is put in; see `pretext/implanted_lesions`")
    values: tuple[int, int, int] = Field(
        (1, 1, 1),
        description="label value that an implant stands for: plain or outer layer, next, innermost of one with compartments",
    )
    weight: float = Field(1.0, ge=0, description="of what is learned from implants")
    until: float = Field(1.0, ge=0, le=1, description="share of the training after which labels teach alone")

    @model_validator(mode="after")
    def _known(self) -> Settings:
        named = {value for group in self.task.labels.values() for value in group}
        used = self.values if self.implants.nested else self.values[:1]
        if unknown := sorted(set(used) - named):
            raise ValueError(f"values: an implant stands for label {unknown[0]}; the task has {sorted(named)}")
        return self


@dataclass(frozen=True)
class Views:
    """The samples with labelled voxels as they came, and those with voxels that nobody looked at, with implants.

    Attributes:
        labelled: what the labels are of.
        changed: exams with implants.
        told: what is known of them: an implant's label value, 0 beside implants, -1 where somebody looked, where the exam itself shows
            something like a lesion, and outside the foreground.
        present: of these, acquired sequences.
    """

    labelled: segmentation.Views
    changed: Float[Tensor, "u m x y z"]
    told: Int[Tensor, "u x y z"]
    present: Bool[Tensor, "u m"]


@final
class Implanted(Method[Views]):
    """The supervised task, twice: once from labels, once from implants."""

    needs = Needs(labels=True, unlabelled=True)

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.task = segmentation.Segmentation(encoder, settings.task)

    def begin(self, load: Callable[[nn.Module], None]) -> None:
        """The network takes over the start."""
        load(self.task.network)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """The labelled part as it is, and implants in what nobody looked at."""
        seen = self.task.views(batch, rng)
        known = samples_with(seen.label >= 0)
        labelled = segmentation.Views(seen.image[known], seen.present[known], seen.label[known])
        rows = samples_with(batch.unlooked)
        put = implant(batch.samples(rows.tolist()), self.settings.implants, rng)
        value = torch.tensor(self.settings.values, device=rows.device)[put.compartment]
        told = torch.where(put.lesion, value, 0).masked_fill(~(put.counted & batch.unlooked[rows]), -1)
        return Views(labelled, put.image, told, batch.present[rows])

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Supervised terms of the labels, and the same of the implants."""
        terms = self.task.losses(views.labelled, clock).terms
        put = self.task.supervised(self.task.scales(views.changed, views.present), views.told)
        named = {f"implanted_{name}": term for name, term in put.items()}
        weight = self.settings.weight * (clock.progress <= self.settings.until)
        return Losses({**terms, **named}, dict.fromkeys(named, weight))

    def export(self) -> nn.Module:
        """The network of the task."""
        return self.task.network


METHOD = Implanted
