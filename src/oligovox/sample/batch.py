"""Batch: the only thing that travels from the store to a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from oligovox.errors import GeometryError


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one training step sees. Axes (b, m, x, y, z): RAS, as nibabel gives them.

    Attributes:
        image: z-scored inside the foreground, 0 outside it, 0 where the sequence is absent.
        present: acquired or not; an absent sequence is False, not just zeros.
        foreground: head or brain.
        spacing: voxel size in mm.
        label: class index per voxel (0 is background); -1 = nobody looked, which is not 0 = no lesion.
        grade: lesion or case class; -1 = unknown.
        modalities: names of the m channels.
        cases: name of the case of each sample, for messages.

    Raises:
        GeometryError: shapes disagree; names the field.
    """

    image: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    foreground: Bool[Tensor, "b 1 x y z"]
    spacing: Float[Tensor, "b 3"]
    modalities: tuple[str, ...]
    cases: tuple[str, ...]
    label: Int[Tensor, "b x y z"] | None = None
    grade: Int[Tensor, "b"] | None = None

    def __post_init__(self) -> None:
        b, m, *grid = self.image.shape
        expected = {
            "present": (b, m),
            "foreground": (b, 1, *grid),
            "spacing": (b, 3),
            "label": (b, *grid),
            "grade": (b,),
        }
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise GeometryError(
                    f"batch: {name} has shape {tuple(value.shape)}, expected {shape} beside image {tuple(self.image.shape)}"
                )
        if len(self.modalities) != m or len(self.cases) != b:
            raise GeometryError(
                f"batch: {len(self.modalities)} modality names and {len(self.cases)} case names for image {tuple(self.image.shape)}"
            )

    def __len__(self) -> int:
        return self.image.shape[0]

    @property
    def unlooked(self) -> Bool[Tensor, "b x y z"]:
        """Voxels of the foreground where nobody looked: label -1, or no label at all."""
        inside = self.foreground[:, 0]
        return inside if self.label is None else inside & (self.label < 0)

    def to(self, device: torch.device) -> Batch:
        """The same batch with every tensor on `device` (asynchronous from pinned memory)."""
        moved = {name: value.to(device, non_blocking=True) for name, value in self._tensors().items()}
        return replace(self, **moved)  # type: ignore[arg-type]  # every key is one of our own tensor fields

    def samples(self, index: Sequence[int]) -> Batch:
        """The batch of these samples only."""
        rows = torch.as_tensor(list(index), device=self.image.device)
        kept = {name: value[rows] for name, value in self._tensors().items()}
        return replace(self, cases=tuple(self.cases[i] for i in index), **kept)  # type: ignore[arg-type]

    def _tensors(self) -> dict[str, Tensor]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}
