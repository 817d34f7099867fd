"""Entropy minimisation: whose entropy, and over what."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.sample.batch import Batch
from oligovox.semi.entropy_minimisation import EntropyMinimisation, Settings, Views

SEQUENCES = ("T1w", "FLAIR")
BOTH = [{"mode": mode, "labels": ["lesion", "hole"]} for mode in ("classes", "regions")]


def method(**chosen: object) -> EntropyMinimisation:
    torch.manual_seed(0)
    return EntropyMinimisation(ResEnc(SEQUENCES, ResEncSettings(preset="nano")), Settings(**chosen))


def batch() -> Batch:
    """One labelled sample, one that nobody looked at."""
    rng = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (2, 16, 16, 16), generator=rng)
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


def term(one: EntropyMinimisation, views: Views) -> torch.Tensor:
    return one.losses(views, Clock(0, 10)).terms["entropy"]


@pytest.mark.parametrize("task", BOTH, ids=lambda task: task["mode"])
def test_a_network_that_knows_nothing_costs_1_and_one_that_is_certain_0(task: dict[str, object]) -> None:
    one = method(task=task)
    views = one.views(batch(), torch.Generator())
    nn.init.zeros_(one.task.network.head.weight)
    nn.init.zeros_(one.task.network.head.bias)
    assert term(one, views).item() == pytest.approx(1.0)
    nn.init.constant_(one.task.network.head.bias[:1], 1e4)
    nn.init.constant_(one.task.network.head.bias[1:], -1e4)
    losses = one.losses(views, Clock(0, 10))
    losses.terms["entropy"].backward()
    assert losses.terms["entropy"].item() == 0.0
    assert all(p.grad is None or p.grad.isfinite().all() for p in one.parameters())


@pytest.mark.parametrize("task", BOTH, ids=lambda task: task["mode"])
def test_it_is_the_mean_over_what_nobody_looked_at_or_over_all(task: dict[str, object]) -> None:
    seen = batch()
    for over, counted in {"unlooked": seen.unlooked, "all": torch.ones_like(seen.unlooked)}.items():
        one = method(task=task, over=over)
        views = one.views(seen, torch.Generator())
        logits = one.task.network(views.image, views.present)
        if task["mode"] == "classes":
            each = torch.distributions.Categorical(logits=logits.movedim(1, -1)).entropy() / math.log(3)
        else:
            each = torch.distributions.Bernoulli(logits=logits).entropy().mean(1) / math.log(2)
        expected = torch.stack([e[c].mean() for e, c in zip(each, counted, strict=True) if c.any()]).mean()
        torch.testing.assert_close(term(one, views), expected)


def test_the_labelled_sample_has_no_entropy_to_lose() -> None:
    one = method()
    views = one.views(batch(), torch.Generator())
    other = replace(views, image=torch.cat([3 * views.image[:1], views.image[1:]]))
    assert torch.equal(term(one, views), term(one, other))


def test_the_weight_rises_with_the_share_of_the_training() -> None:
    one = method()
    views = one.views(batch(), torch.Generator())
    weights = [one.losses(views, Clock(step, 100)).weights["entropy"] for step in (0, 50, 100)]
    assert weights == pytest.approx([0.1 * 0.006738, 0.1 * 0.2865, 0.1], rel=1e-3)
