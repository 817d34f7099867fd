"""Adversarial: who learns from which term, and which samples count as labelled."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.sample.batch import Batch
from oligovox.semi.adversarial import Adversarial, Settings
from oligovox.tasks import segmentation

SEQUENCES = ("T1w", "FLAIR")
REGIONS = segmentation.Settings(mode="regions", labels={"whole": (1, 2), "core": (2,)})


def method(**chosen: object) -> Adversarial:
    torch.manual_seed(0)
    return Adversarial(ResEnc(SEQUENCES, ResEncSettings(preset="nano")), Settings(**chosen))


def batch() -> Batch:
    """A labelled sample, one with a single labelled voxel, one that nobody looked at, and one of air."""
    rng = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (4, 16, 16, 16), generator=rng)
    label[1:] = -1
    label[1, 3, 4, 5] = 0
    foreground = torch.rand(4, 1, 16, 16, 16, generator=rng) < 0.8
    foreground[3] = False
    return Batch(
        image=torch.randn(4, 2, 16, 16, 16, generator=rng),
        present=torch.ones(4, 2, dtype=torch.bool),
        foreground=foreground,
        spacing=torch.ones(4, 3),
        label=label,
        modalities=SEQUENCES,
        cases=("a", "b", "c", "d"),
    )


def terms(one: Adversarial, seen: Batch) -> dict[str, Tensor]:
    return dict(one.losses(one.views(seen, torch.Generator().manual_seed(1)), Clock(0, 1)).terms)


def learns(module: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


@pytest.mark.parametrize("task", [segmentation.Settings(), REGIONS])
def test_each_player_learns_from_its_own_term_alone(task: segmentation.Settings) -> None:
    one = method(task=task)
    terms(one, batch())["tell_apart"].backward()
    assert learns(one.discriminator)
    assert not learns(one.task)
    one.zero_grad()
    terms(one, batch())["pass"].backward()
    assert not learns(one.discriminator)
    assert learns(one.task.network)


def test_a_sample_with_one_labelled_voxel_is_labelled_and_air_counts_for_neither() -> None:
    one, seen = method(), batch()
    p = one.task.network(seen.image, seen.present).softmax(1)
    logit = one.discriminator(torch.cat([p, seen.image], 1))[:, 0]
    found = terms(one, seen)
    torch.testing.assert_close(found["pass"], softplus(-logit[2]))
    torch.testing.assert_close(found["tell_apart"], torch.stack([*softplus(-logit[:2]), softplus(logit[2])]).mean())


def test_a_sample_is_judged_by_itself() -> None:
    one, seen = method(), batch()
    alone = torch.stack([terms(one, seen.samples([i]))["tell_apart"] for i in range(3)])
    torch.testing.assert_close(terms(one, seen)["tell_apart"], alone.mean())


def test_without_unlabelled_samples_only_the_discriminator_is_left_to_learn() -> None:
    one, seen = method(), batch().samples([0, 1])
    found = terms(one, seen)
    assert found["pass"].item() == 0.0
    assert found["tell_apart"].item() > 0.0


@pytest.mark.parametrize("norms", [True, False])
def test_each_player_gains_on_the_other_and_with_norms_neither_runs_away(norms: bool) -> None:
    """Each against the other held still, at a high learning rate."""
    one, seen = method(), batch().samples([0, 2])
    for place, layer in enumerate(one.discriminator):
        if isinstance(layer, nn.GroupNorm) and not norms:
            one.discriminator[place] = nn.Identity()
    for term, player in (("tell_apart", one.discriminator), ("pass", one.task)):
        optimiser, before = torch.optim.AdamW(player.parameters(), lr=1e-2), terms(one, seen)[term].item()
        for _ in range(15):
            optimiser.zero_grad()
            terms(one, seen)[term].backward()
            optimiser.step()
        assert terms(one, seen)[term].item() < before, term
    assert (before < 20) == norms, "of passing, against a discriminator that can tell"


def test_the_weight_rises_for_passing_alone_and_the_network_leaves() -> None:
    one = method()
    views = one.views(batch(), torch.Generator().manual_seed(1))
    weights = [one.losses(views, Clock(step, 100)).weights for step in (0, 100)]
    assert [w["pass"] for w in weights] == pytest.approx([6.738e-4, 0.1], rel=1e-3)
    assert all("tell_apart" not in w for w in weights)
    assert one.export() is one.task.network
