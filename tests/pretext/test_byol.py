"""BYOL: the copy is a target and never learns by gradient, follows by a cosine, and the loss is symmetric."""

from __future__ import annotations

from dataclasses import replace
from math import cos, pi

import pytest
import torch
from torch import nn

from oligovox.method import Clock, Losses
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.pretext.byol import BYOL, Settings
from oligovox.sample.batch import Batch

CLOCK = Clock(0, 1)
SEQUENCES = ("T1w", "FLAIR")


def _method(**chosen: object) -> BYOL:
    torch.manual_seed(0)
    small = {"hidden": 16, "embedding": 8} | chosen
    return BYOL(ResEnc(SEQUENCES, ResEncSettings(preset="nano")), Settings(**small))


def _batch() -> Batch:
    rng = torch.Generator().manual_seed(0)
    present = torch.tensor([[True, True], [True, False]])
    foreground = torch.rand(2, 1, 12, 12, 12, generator=rng) < 0.8
    image = torch.randn(2, 2, 12, 12, 12, generator=rng) * foreground * present[:, :, None, None, None]
    return Batch(
        image=image,
        present=present,
        foreground=foreground,
        spacing=torch.ones(2, 3),
        modalities=SEQUENCES,
        cases=("a", "b"),
    )


def _rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _apart(method: BYOL) -> BYOL:
    """The same method after the network has moved away from its copy."""
    with torch.no_grad():
        for number, p in enumerate(method.online.parameters()):
            p.mul_(1.0 + 0.1 * (number % 3))
    return method


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_the_loss_is_both_directions_of_two_minus_two_cosines(norm: str) -> None:
    method = _apart(_method(norm=norm))
    views = method.views(_batch(), _rng())
    p, z = method.predict(method.online(views)), method.target.module(views)
    unit = nn.functional.normalize
    to_second, to_first = ((unit(p[a]) - unit(z[b])).square().sum(1) for a, b in (([0, 1], [2, 3]), ([2, 3], [0, 1])))
    expected = (to_second + to_first).mean()  # equation 2 of the paper, with the views exchanged and added
    torch.testing.assert_close(method.losses(views, CLOCK).terms["foretell"], expected)
    exchanged = replace(views, **{name: value.roll(2, 0) for name, value in vars(views).items()})
    torch.testing.assert_close(method.losses(exchanged, CLOCK).total, expected)


def test_a_perfect_prediction_costs_nothing_and_the_opposite_eight() -> None:
    method = _method()  # the copy starts as the network itself
    views = method.views(_batch(), _rng())
    twins = replace(
        views, **{name: value[:2].repeat(2, *[1] * (value.ndim - 1)) for name, value in vars(views).items()}
    )
    method.predict = nn.Identity()
    assert method.losses(twins, CLOCK).total.item() == pytest.approx(0.0, abs=1e-5)
    method.predict = nn.Linear(8, 8, bias=False)
    with torch.no_grad():
        method.predict.weight.copy_(-3.0 * torch.eye(8))
    assert method.losses(twins, CLOCK).total.item() == pytest.approx(8.0, abs=1e-5)


def test_the_copy_gets_no_gradient_and_the_rest_does() -> None:
    method = _method()
    method.losses(method.views(_batch(), _rng()), CLOCK).total.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.target.parameters())
    assert all(p.grad is not None for p in [*method.online.parameters(), *method.predict.parameters()])


@pytest.mark.parametrize("step", [0, 25, 50, 100])
def test_the_copy_follows_with_the_momentum_of_the_cosine(step: int) -> None:
    method = _apart(_method(momentum=0.9))
    before = [p.clone() for p in method.target.parameters()]
    method.after_step(Losses({}), Clock(step, 100))
    momentum = 1 - 0.1 * (cos(pi * step / 100) + 1) / 2
    for old, new, p in zip(before, method.target.parameters(), method.online.parameters(), strict=True):
        torch.testing.assert_close(new, momentum * old + (1 - momentum) * p.detach())
    assert (step == 100) == all(torch.equal(a, b) for a, b in zip(before, method.target.parameters(), strict=True))


def test_a_patch_without_foreground_is_not_counted() -> None:
    method = _apart(_method())
    views = method.views(_batch(), _rng())
    foreground = views.foreground.clone()
    foreground[[1, 3]] = False
    whole, half = (method.losses(replace(views, foreground=f), CLOCK).total for f in (views.foreground, foreground))
    p, z = method.predict(method.online(views)), method.target(views)
    cosine = nn.functional.cosine_similarity
    expected = 4 - 2 * cosine(p[:1], z[2:3]) - 2 * cosine(p[2:3], z[:1])
    torch.testing.assert_close(half, expected.squeeze())
    assert not torch.equal(half, whole)


def test_absent_sequences_stay_absent_and_views_are_two_crops() -> None:
    batch = _batch()
    views = _method().views(batch, _rng())
    assert views.image.shape == (4, 2, 8, 8, 8)
    assert torch.equal(views.present, batch.present.repeat(2, 1))
    assert not views.image[~views.present].any()
    assert not torch.equal(views.image[:2], views.image[2:])
    hidden = _method(hide=1.0).views(batch, _rng())
    assert hidden.present.sum(1).tolist() == [1] * 4
    assert not hidden.image[~hidden.present].any()


def test_the_trained_encoder_leaves_and_the_copy_is_kept_for_resuming() -> None:
    method = _apart(_method())
    assert method.export().encoder is method.online.encoder
    assert {key.split(".")[0] for key in method.state_dict()} == {"online", "predict", "target"}
