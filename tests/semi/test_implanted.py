"""Implanted: what is put in teaches where nobody looked, labels teach as ever, and neither reads the other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.sample.batch import Batch
from oligovox.semi.implanted import Implanted, Settings

SEQUENCES = ("T1w", "T2w", "FLAIR")
SIDE = 24
CLOCK = Clock(5, 10)


def method(**chosen: object) -> Implanted:
    torch.manual_seed(0)
    return Implanted(ResEnc(SEQUENCES, ResEncSettings(preset="nano")), Settings(**chosen))


def rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch() -> Batch:
    """White matter: a labelled exam, one labelled in its lower half, one that nobody looked at, with a lesion of its own."""
    image = torch.tensor([0.8, -0.6, 0.2])[None, :, None, None, None].repeat(3, 1, SIDE, SIDE, SIDE)
    image[2, :, 4:9, 14:19, 14:19] = torch.tensor([-0.5, 1.0, 2.0])[:, None, None, None]
    image += 0.1 * torch.randn(image.shape, generator=rng(0))
    foreground = torch.ones(3, 1, SIDE, SIDE, SIDE, dtype=torch.bool)
    foreground[..., -3:] = False
    label = torch.zeros(3, SIDE, SIDE, SIDE, dtype=torch.int64)
    label[:, 10:14, 10:14, 10:14] = 1
    label[1, ..., SIDE // 2 :] = -1
    label[2] = -1
    return Batch(
        image=image * foreground,
        present=torch.ones(3, 3, dtype=torch.bool),
        foreground=foreground,
        spacing=torch.ones(3, 3),
        label=label,
        modalities=SEQUENCES,
        cases=("a", "b", "c"),
    )


def test_implants_are_told_where_nobody_looked_and_nowhere_else() -> None:
    seen = batch()
    views = method(implants={"nested": 0, "lesions": (6, 6), "decoys": (4, 4)}).views(seen, rng())
    assert len(views.changed) == 2  # the second and third exam
    told, looked = views.told, ~seen.unlooked[1:]
    assert (told[looked] == -1).all()
    assert {-1, 0, 1} == set(told.unique().tolist())
    assert (told[1, 4:9, 14:19, 14:19] == -1).all()  # its own lesion is neither asked for nor punished
    assert (views.changed != seen.image[1:]).movedim(1, -1)[told == 1].any()
    assert torch.equal(views.labelled.image, seen.image[:2])
    assert torch.equal(views.labelled.label, seen.label[:2])


def test_the_labelled_part_is_the_task_alone() -> None:
    one, seen = method(), batch()
    views = one.views(seen, rng())
    found = one.losses(views, CLOCK)
    alone = one.task.losses(one.task.views(seen, rng()), CLOCK)
    torch.testing.assert_close({name: found.terms[name] for name in alone.terms}, alone.terms)
    put = one.task.losses(type(views.labelled)(views.changed, views.present, views.told), CLOCK)
    torch.testing.assert_close(found.total, alone.total + put.total)
    other = replace(seen, label=seen.label.where(seen.label < 0, 1 - seen.label))
    swapped = one.losses(one.views(other, rng()), CLOCK)
    torch.testing.assert_close(
        swapped.terms["implanted_dice"], found.terms["implanted_dice"]
    )  # labels have no say there


def test_labels_teach_alone_at_the_end_and_the_weight_counts() -> None:
    one = method(until=0.7, weight=0.3)
    views = one.views(batch(), rng())
    early, late = one.losses(views, Clock(7, 10)), one.losses(views, Clock(8, 10))
    assert early.weights == {"implanted_dice": 0.3, "implanted_cross_entropy": 0.3}
    assert late.weights == {"implanted_dice": 0.0, "implanted_cross_entropy": 0.0}
    torch.testing.assert_close(late.total, late.terms["dice"] + late.terms["cross_entropy"])


def test_compartments_stand_for_the_values_they_are_given() -> None:
    labels = {"whole": (1, 2, 4), "core": (1, 4), "enhancing": (4,)}
    one = method(
        task={"mode": "regions", "labels": labels},
        values=(2, 4, 1),
        implants={"nested": 1.0, "lesions": (0, 0), "decoys": (0, 0), "ignore": False},
    )
    found = torch.cat([one.views(batch(), rng(seed)).told.unique() for seed in range(4)])
    assert set(found.tolist()) == {-1, 0, 1, 2, 4}


def test_a_value_that_the_task_does_not_know_is_refused() -> None:
    with pytest.raises(ValidationError, match="stands for label 2; the task has"):
        Settings(values=(2, 1, 1))
    assert Settings(values=(1, 2, 4)).values == (1, 2, 4)  # without compartments only the first is used
    with pytest.raises(ValidationError, match="stands for label 2"):
        Settings(values=(1, 2, 4), implants={"nested": 0.5})
