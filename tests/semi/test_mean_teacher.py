"""Mean teacher: what is compared, who learns, and what the teacher follows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.sample.batch import Batch
from oligovox.semi.mean_teacher import MeanTeacher, Settings

SEQUENCES = ("T1w", "FLAIR")


def method(seed: int = 0, **chosen: object) -> MeanTeacher:
    torch.manual_seed(seed)
    return MeanTeacher(ResEnc(SEQUENCES, ResEncSettings(preset="nano")), Settings(**chosen))


def batch() -> Batch:
    """One labelled sample, one that nobody looked at."""
    rng = torch.Generator().manual_seed(0)
    label = torch.randint(0, 2, (2, 16, 16, 16), generator=rng)
    label[1] = -1
    return Batch(
        image=torch.randn(2, 2, 16, 16, 16, generator=rng),
        present=torch.ones(2, 2, dtype=torch.bool),
        foreground=torch.rand(2, 1, 16, 16, 16, generator=rng) < 0.8,
        spacing=torch.ones(2, 3),
        label=label,
        modalities=SEQUENCES,
        cases=("a", "b"),
    )


def moved(one: MeanTeacher) -> MeanTeacher:
    """After the student has left its teacher behind."""
    with torch.no_grad():
        for p in one.task.network.parameters():
            p.mul_(1.1)
    return one


def test_the_difference_is_counted_where_nobody_looked() -> None:
    one, seen = moved(method()), batch()
    views = one.views(seen, torch.Generator().manual_seed(1))
    losses = one.losses(views, Clock(5, 10))
    p = one.task.network(views.image, views.present).softmax(1)
    q = one.teacher.module(views.noisy, views.present).softmax(1)
    expected = (p - q)[1][:, seen.foreground[1, 0]].square().mean()
    torch.testing.assert_close(losses.terms["consistency"], expected)
    assert not torch.equal(views.noisy, views.image)
    assert (views.noisy - views.image).abs().max() <= 0.2 + 1e-6


def test_what_nobody_looked_at_has_no_part_in_the_supervised_terms() -> None:
    one, seen = method(), batch()
    views = one.views(seen, torch.Generator().manual_seed(1))
    other = replace(views, image=torch.cat([views.image[:1], 3 * views.image[1:]]))
    both = [one.losses(v, Clock(0, 1)).terms for v in (views, other)]
    assert torch.equal(both[0]["dice"], both[1]["dice"])
    assert torch.equal(both[0]["cross_entropy"], both[1]["cross_entropy"])


def test_the_weight_rises_with_the_share_of_the_training() -> None:
    one, views = method(), method().views(batch(), torch.Generator().manual_seed(1))
    weights = [one.losses(views, Clock(step, 100)).weights["consistency"] for step in (0, 50, 100)]
    assert weights == pytest.approx([0.1 * 0.006738, 0.1 * 0.2865, 0.1], rel=1e-3)
    assert method(ramp=0).losses(views, Clock(0, 1)).weights["consistency"] == 0.1


def test_the_teacher_learns_by_following_only() -> None:
    one = moved(method())
    losses = one.losses(one.views(batch(), torch.Generator().manual_seed(1)), Clock(0, 1))
    losses.total.backward()
    assert all(p.grad is None for p in one.teacher.parameters())
    one.after_step(losses, Clock(0, 10))
    pairs = list(zip(one.teacher.module.parameters(), one.task.network.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs), "after the first step it is the student"
    before = [a.clone() for a, _ in pairs]
    moved(one).after_step(losses, Clock(1, 10))
    for old, (a, b) in zip(before, pairs, strict=True):
        torch.testing.assert_close(a, 0.5 * old + 0.5 * b)


def test_a_start_is_the_teachers_start_as_well() -> None:
    one = method()

    def load(module: nn.Module) -> None:
        for p in module.parameters():
            p.data.fill_(0.25)

    one.begin(load)
    assert all((p == 0.25).all() for p in one.teacher.module.parameters())
    assert one.export() is one.task.network
    assert method(predict_with="teacher").export().head is not None
