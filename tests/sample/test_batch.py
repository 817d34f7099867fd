from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch

from oligovox.errors import GeometryError
from oligovox.sample.batch import Batch


def fields(b: int = 3, m: int = 2) -> dict:
    return {
        "image": torch.arange(b * m * 8.0).reshape(b, m, 2, 2, 2),
        "present": torch.ones(b, m, dtype=torch.bool),
        "foreground": torch.ones(b, 1, 2, 2, 2, dtype=torch.bool),
        "spacing": torch.ones(b, 3),
        "label": torch.zeros(b, 2, 2, 2, dtype=torch.long),
        "grade": torch.arange(b),
        "modalities": ("T1w", "FLAIR")[:m],
        "cases": tuple("abc"[:b]),
    }


def test_samples_keeps_rows_names_and_order():
    part = Batch(**fields()).samples([2, 0])
    assert part.cases == ("c", "a")
    assert len(part) == 2
    assert part.grade.tolist() == [2, 0]
    assert torch.equal(part.image, fields()["image"][[2, 0]])


def test_to_moves_every_tensor_and_keeps_the_names():
    moved = Batch(**fields()).to(torch.device("meta"))
    tensors = [getattr(moved, name) for name in ("image", "present", "foreground", "spacing", "label", "grade")]
    assert all(tensor.is_meta for tensor in tensors)
    assert moved.cases == ("a", "b", "c")


def test_labels_and_grades_may_be_missing():
    batch = Batch(**(fields() | {"label": None, "grade": None}))
    assert batch.samples([1]).label is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cases": ("a", "b")}, "2 modality names and 2 case names"),
        ({"modalities": ("T1w",)}, "1 modality names and 3 case names"),
    ],
)
def test_names_must_match_the_image(wrong, message):
    with pytest.raises(GeometryError, match=message):
        Batch(**(fields() | wrong))


def test_a_batch_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Batch(**fields()).label = None
