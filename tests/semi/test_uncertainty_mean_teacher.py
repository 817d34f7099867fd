"""Uncertainty-aware mean teacher: where the teacher is believed, and what is left of the mean teacher."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.sample.batch import Batch
from oligovox.semi import mean_teacher
from oligovox.semi.uncertainty_mean_teacher import Settings, UncertaintyMeanTeacher

SEQUENCES = ("T1w", "FLAIR")
BOTH = [{"mode": mode, "labels": ["lesion", "hole"]} for mode in ("classes", "regions")]


def encoder() -> ResEnc:
    torch.manual_seed(0)
    return ResEnc(SEQUENCES, ResEncSettings(preset="nano"))


def method(**chosen: object) -> UncertaintyMeanTeacher:
    return UncertaintyMeanTeacher(encoder(), Settings(**{"passes": 2} | chosen))


def batch() -> Batch:
    """One labelled sample, then two that nobody looked at, one of them but for a slab."""
    rng = torch.Generator().manual_seed(0)
    label = torch.full((3, 16, 16, 16), -1)
    label[0] = torch.randint(0, 3, (16, 16, 16), generator=rng)
    label[2, 8:] = 0
    return Batch(
        image=torch.randn(3, 2, 16, 16, 16, generator=rng),
        present=torch.ones(3, 2, dtype=torch.bool),
        foreground=torch.rand(3, 1, 16, 16, 16, generator=rng) < 0.8,
        spacing=torch.ones(3, 3),
        label=label,
        modalities=SEQUENCES,
        cases=("a", "b", "c"),
    )


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def moved(network: nn.Module) -> None:
    """After the student has left its teacher behind."""
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(1.1)


@pytest.mark.parametrize("task", BOTH, ids=lambda task: task["mode"])
def test_with_an_infinite_threshold_it_is_the_mean_teacher(task: dict[str, object]) -> None:
    one = method(task=task, threshold=2.0, threshold_last=2.0)
    other = mean_teacher.MeanTeacher(encoder(), mean_teacher.Settings(task=task))
    other.load_state_dict(one.state_dict())
    moved(one.task.network)
    moved(other.task.network)
    found, expected = (m.losses(m.views(batch(), rng()), Clock(3, 10)) for m in (one, other))
    for name, term in expected.terms.items():
        torch.testing.assert_close(found.terms[name], term)
    assert found.weights == expected.weights
    assert found.notes == {"believed": 1.0}


@pytest.mark.parametrize("task", BOTH, ids=lambda task: task["mode"])
def test_the_difference_is_counted_where_the_mean_of_the_passes_is_certain(task: dict[str, object]) -> None:
    one, seen = method(task=task | {"prior": 0.5}, threshold=0.9, threshold_last=0.9), batch()
    moved(one.task.network)
    views = one.views(seen, rng())
    assert views.rows.tolist() == [1, 2]
    assert not torch.equal(views.passes[0], views.passes[1])
    for kept in views.kept:
        assert {round(k, 4) for k in kept.flatten().tolist()} == {0.0, round(1 / 0.7, 4)}
    network, present = one.teacher.module, views.present[1:]
    passes = []
    for image, deep, last in zip(views.passes, *views.kept, strict=True):
        features = list(network.encoder(image, present))
        features[-1] = features[-1] * deep
        passes.append(one.task.probability(network.head(network.decoder(features)[0] * last)))
    mean = (passes[0] + passes[1]) / 2
    squared = (one.task.probability(one.task.network(views.image, views.present))[1:]
               - one.task.probability(network(views.noisy, present))).square()  # fmt: skip
    if task["mode"] == "classes":
        doubt = (-(mean * mean.log()).sum(1, keepdim=True) / math.log(3)).expand_as(mean)
    else:
        doubt = -(mean * mean.log() + (1 - mean) * (1 - mean).log()) / math.log(2)
    certain = (doubt < 0.9) & seen.unlooked[1:, None]
    assert 0.1 < certain.sum() / (seen.unlooked.sum() * mean.shape[1]) < 0.9, "this test needs some of both"
    expected = torch.stack([s[c].mean() for s, c in zip(squared, certain, strict=True)]).mean()
    torch.testing.assert_close(one.losses(views, Clock(0, 10)).terms["consistency"], expected)


def test_the_threshold_rises_from_three_quarters_to_all_there_can_be() -> None:
    one = method()
    views = one.views(batch(), rng())
    for module in (one.task.network, one.teacher.module):
        nn.init.zeros_(module.head.weight)
        nn.init.zeros_(module.head.bias)
    head = one.teacher.module.head

    def believed(lesion: float, step: int) -> float:
        nn.init.constant_(head.bias[1:], math.log(lesion / (1 - lesion)))
        return one.losses(views, Clock(step, 100)).notes["believed"]

    assert believed(0.2145, 0) == 1.0  # entropy 0.750 of 0.693 nats
    assert believed(0.2170, 0) == 0.0  # 0.755
    assert believed(0.2170, 50) == 1.0  # the threshold is 0.75 + 0.25 · e^(−5/4) = 0.82
    assert believed(0.2700, 50) == 0.0  # 0.84
    assert believed(0.4500, 100) == 1.0
    assert believed(0.5000, 100) == 0.0
    assert one.losses(views, Clock(100, 100)).terms["consistency"] == 0, (
        "and where nothing is believed nothing is learned"
    )


def test_the_teacher_learns_by_following_only() -> None:
    one = method(threshold=2.0)
    moved(one.task.network)
    losses = one.losses(one.views(batch(), rng()), Clock(0, 1))
    losses.total.backward()
    assert all(p.grad is None for p in one.teacher.parameters())
    one.after_step(losses, Clock(0, 10))
    pairs = zip(one.teacher.module.parameters(), one.task.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), "after the first step it is the student"


def test_a_start_is_the_teachers_start_as_well() -> None:
    one = method()

    def load(module: nn.Module) -> None:
        for p in module.parameters():
            p.data.fill_(0.25)

    one.begin(load)
    assert all((p == 0.25).all() for p in one.teacher.module.parameters())
    assert one.export() is one.task.network
    assert method(predict_with="teacher").export().head is not None
