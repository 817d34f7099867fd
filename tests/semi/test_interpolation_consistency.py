"""Interpolation consistency: what is mixed with what, and what the mixture has to say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.sample.batch import Batch
from oligovox.semi import mean_teacher
from oligovox.semi.interpolation_consistency import InterpolationConsistency, Settings

SEQUENCES = ("T1w", "FLAIR")
CLOCK = Clock(5, 10)


def encoder() -> ResEnc:
    torch.manual_seed(0)
    return ResEnc(SEQUENCES, ResEncSettings(preset="nano"))


def method(**chosen: object) -> InterpolationConsistency:
    """A student that has left its teacher behind."""
    one = InterpolationConsistency(encoder(), Settings(**chosen))
    moved(one.task.network)
    return one


def moved(network: nn.Module) -> None:
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(1.1)


def batch(unlooked: tuple[int, ...] = (1, 2)) -> Batch:
    """Three samples; nobody looked at some of them."""
    rng = torch.Generator().manual_seed(0)
    label = torch.randint(0, 2, (3, 16, 16, 16), generator=rng)
    label[list(unlooked)] = -1
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


@pytest.mark.parametrize("mode", ["classes", "regions"])
def test_the_mixture_is_to_say_the_mixture(mode: str) -> None:
    one, seen = method(task={"mode": mode}, beta=2.0), batch()
    views = one.views(seen, rng())
    assert (views.first.tolist(), views.second.tolist()) == ([1, 2], [2, 1])
    expected = []
    for i, j, share in zip((1, 2), (2, 1), views.share.flatten().tolist(), strict=True):
        assert 0.05 < share < 0.95, "this test needs some of both"
        mixed = (1 - share) * seen.image[[i]] + share * seen.image[[j]]
        p, q, r = (
            one.task.probability(network(image, seen.present[[i]]))[0]
            for network, image in (
                (one.task.network, mixed),
                (one.teacher.module, seen.image[[i]]),
                (one.teacher.module, seen.image[[j]]),
            )
        )
        difference = p - ((1 - share) * q + share * r)
        expected.append(difference[:, seen.foreground[i, 0]].square().mean())
    torch.testing.assert_close(one.losses(views, CLOCK).terms["consistency"], torch.stack(expected).mean())


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_without_mixing_it_is_the_mean_teacher(share: float) -> None:
    """At 0 that of the first sample; at 1 that of the second, where nobody looked at the first."""
    one, seen = method(), replace(batch(), foreground=torch.ones(3, 1, 16, 16, 16, dtype=torch.bool))
    other = mean_teacher.MeanTeacher(encoder(), mean_teacher.Settings(noise=0.0))
    other.load_state_dict(one.state_dict())
    views = one.views(seen, rng())
    mixed = seen.image[views.second if share else views.first]
    views = replace(views, share=torch.full_like(views.share, share), mixed=mixed)
    found, expected = one.losses(views, CLOCK), other.losses(other.views(seen, rng()), CLOCK)
    for name, term in expected.terms.items():
        torch.testing.assert_close(found.terms[name], term)
    assert found.weights == expected.weights


def test_a_single_sample_is_mixed_with_another_of_the_batch_and_one_alone_is_not_mixed() -> None:
    one, seen = method(), batch(unlooked=(2,))
    views = one.views(seen, rng())
    assert (views.first.tolist(), views.second.tolist()) == ([2], [0])
    torch.testing.assert_close(views.mixed[0], torch.lerp(seen.image[2], seen.image[0], views.share[0]))
    assert torch.equal(views.unlooked, seen.unlooked[2:]), "voxels of the one that nobody looked at"
    alone = one.views(seen.samples([2]), rng())
    assert torch.equal(alone.mixed, seen.image[2:])


def test_a_mixture_has_the_sequences_that_both_have() -> None:
    present = torch.tensor([[True, True], [True, True], [False, True]])
    seen = replace(batch(), present=present, image=batch().image * present[:, :, None, None, None])
    views = method(beta=2.0).views(seen, rng())
    assert views.shared.tolist() == [[False, True]] * 2
    assert not views.mixed[:, 0].any()
    assert views.share.all()
    present = torch.tensor([[True, True], [True, False], [False, True]])
    seen = replace(batch(), present=present, image=batch().image * present[:, :, None, None, None])
    views = method(beta=2.0).views(seen, rng())
    assert views.shared.tolist() == [[True, False], [False, True]]
    assert torch.equal(views.mixed, seen.image[1:]), "nothing in common, nothing mixed"
    assert not views.share.any()


def test_shares_follow_the_beta_distribution() -> None:
    for beta in (0.2, 1.0, 3.0):
        share = method(beta=beta)._shares(20_000, rng())
        assert share.mean().item() == pytest.approx(0.5, abs=0.01)
        assert share.var().item() == pytest.approx(1 / (4 * (2 * beta + 1)), rel=0.03)


def test_the_teacher_learns_by_following_only() -> None:
    one = method()
    losses = one.losses(one.views(batch(), rng()), Clock(0, 1))
    losses.total.backward()
    assert all(p.grad is None for p in one.teacher.parameters())
    one.after_step(losses, Clock(0, 10))
    pairs = zip(one.teacher.module.parameters(), one.task.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), "after the first step it is the student"
    one.begin(moved)
    pairs = zip(one.teacher.module.parameters(), one.task.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), "a start is the teacher's start as well"
    assert one.export() is one.task.network
    assert method(predict_with="teacher").export().head is not None
