"""FRODO's pretext: the release's loss falls to nothing by saying nothing, ours does not; and who learns from whom."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from oligovox.errors import SettingsError
from oligovox.losses.contrast import nt_xent
from oligovox.method import Clock, Losses
from oligovox.networks.frodo import Frodo
from oligovox.networks.frodo import Settings as FrodoSettings
from oligovox.pretext.frodo import FrodoPretext, Settings
from oligovox.sample.batch import Batch
from oligovox.settings import parse

CLOCK = Clock(0, 1)
PAIR = ("QSM", "FLAIR")


def _method(fusion: str = "film", **chosen: object) -> FrodoPretext:
    torch.manual_seed(0)
    return FrodoPretext(Frodo(PAIR, FrodoSettings(preset="nano", fusion=fusion)), parse(Settings, chosen, "test"))


def _batch(samples: int = 8, side: int = 8, seed: int = 0) -> Batch:
    """Balls of one brightness and size in QSM, of the opposite brightness in FLAIR: each can be foretold from the other."""
    rng = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, side)
    radius = (axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2).sqrt()
    bright, size = torch.rand(2, samples, 1, 1, 1, generator=rng)
    ball = (radius < 0.3 + size) * (0.2 + 0.8 * bright)
    image = torch.stack([ball, 1 - ball], 1) + 0.02 * torch.randn(samples, 2, side, side, side, generator=rng)
    return Batch(
        image=image,
        present=torch.ones(samples, 2, dtype=torch.bool),
        foreground=torch.ones(samples, 1, side, side, side, dtype=torch.bool),
        spacing=torch.ones(samples, 3),
        modalities=PAIR,
        cases=tuple(map(str, range(samples))),
    )


def _rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _step(method: FrodoPretext, batch: Batch, seed: int = 1) -> Losses:
    return method.losses(method.views(batch, _rng(seed)), CLOCK)


def _trained(method: FrodoPretext, steps: int) -> tuple[Losses, Losses]:
    optimiser = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=5e-3)
    first = None
    for step in range(steps):
        losses = _step(method, _batch(side=6, seed=step % 8), step)
        first = first or losses
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
    assert first is not None
    return first, losses


def test_the_release_collapses_and_ours_does_not() -> None:
    """The release's target moves towards what is easily told: the same for every lesion, at hardly any loss."""
    before, release = _trained(_method(release_mode=True), 60)
    _, ours = _trained(_method(), 60)
    assert release.terms["foretell"] < 0.01 * before.terms["foretell"]
    assert release.notes["spread_primary"] < 0.25 * before.notes["spread_primary"]
    assert release.notes["spread_condition"] < 0.6 * before.notes["spread_condition"]
    for name in ("spread_primary", "spread_condition"):
        assert ours.notes[name] > 2 * before.notes[name]
    assert ours.notes["agreement"] > 0.8 > before.notes["agreement"], "and it is told all the same"


def test_the_loss_by_its_definition() -> None:
    method, batch = _method(directions="both"), _batch()
    views = method.views(batch, _rng())
    q, f = (method.encoder.stem(name, views.first, views.present).mean((2, 3, 4)) for name in PAIR)
    losses = method.losses(views, CLOCK)
    forth, back = (method.heads[0](f) - q).square().mean(), (method.heads[1](q) - f).square().mean()
    torch.testing.assert_close(losses.terms["foretell"], (forth + back) / 2)
    lack = [(0.5 - z.std(0, correction=0)).clamp(min=0).mean() for z in (q, f)]
    torch.testing.assert_close(losses.terms["spread"], sum(lack), rtol=1e-2, atol=1e-3)
    assert losses.weights == {"spread": 0.1}
    assert losses.notes["spread_primary"] == pytest.approx(q.std(0, correction=0).mean().item(), rel=0.05)
    one = _method().losses(views, CLOCK)
    torch.testing.assert_close(one.terms["foretell"], forth)


@pytest.mark.parametrize(("release", "moved"), [(True, True), (False, False)])
def test_the_regression_moves_the_target_in_the_release_only(release: bool, moved: bool) -> None:
    method = _method(release_mode=release)
    _step(method, _batch()).terms["foretell"].backward()
    reached = {
        name: any(p.grad is not None and p.grad.any() for p in method.encoder.stems[name].parameters()) for name in PAIR
    }
    assert reached == {"QSM": moved, "FLAIR": True}


def test_only_stems_and_predictors_are_trained() -> None:
    method = _method()
    _step(method, _batch()).total.backward()
    trained = {
        name.split(".")[1] if name.startswith("encoder") else "heads"
        for name, p in method.named_parameters()
        if p.requires_grad
    }
    assert trained == {"stems", "heads"}
    assert all(p.grad is not None and p.grad.any() for p in method.parameters() if p.requires_grad)
    assert method.export()["encoder"] is method.encoder


def test_only_the_contrast_turns_and_both_sequences_alike() -> None:
    batch = _batch()
    twins = replace(batch, image=batch.image[:, :1].expand(-1, 2, -1, -1, -1).clone())
    views = _method().views(twins, _rng())
    assert torch.equal(views.first, twins.image)
    assert torch.equal(views.second, twins.image)
    views = _method(mode="nt_xent").views(twins, _rng())
    assert torch.equal(views.first[:, 0], views.first[:, 1])
    assert not torch.equal(views.first, views.second)


def test_the_contrast_compares_projections_of_the_two_sequences() -> None:
    method, batch = _method(mode="nt_xent", embedding=6), _batch()
    views = method.views(batch, _rng())
    q = method.heads[1](method.encoder.stem("QSM", views.first, views.present).mean((2, 3, 4)))
    f = method.heads[0](method.encoder.stem("FLAIR", views.second, views.present).mean((2, 3, 4)))
    assert q.shape == (8, 6)
    torch.testing.assert_close(method.losses(views, CLOCK).total, nt_xent(f, q, 0.1))


@pytest.mark.parametrize("mode", ["regression", "nt_xent"])
def test_lesions_without_both_sequences_do_not_count(mode: str) -> None:
    method, batch = _method(mode=mode), _batch()
    present = batch.present.clone()
    present[5:, 1] = False

    def total(given: Batch) -> Tensor:
        return method.losses(replace(method.views(given, _rng()), first=given.image, second=given.image), CLOCK).total

    hidden = total(replace(batch, present=present))
    torch.testing.assert_close(hidden, total(batch.samples(range(5))))
    for kept in (0, 1):
        few = present.clone()
        few[kept:, 1] = False
        assert total(replace(batch, present=few)).isfinite()


@pytest.mark.parametrize(
    ("fusion", "chosen", "message"),
    [
        ("early", {}, "fusion early has no stem for QSM alone"),
        ("alone", {}, "fusion alone has no stem for FLAIR alone"),
        ("film", {"condition": "T2w"}, "T2w is missing"),
        ("film", {"release_mode": True, "mode": "nt_xent"}, "release_mode is a regression in one direction"),
    ],
)
def test_what_does_not_fit_is_said(fusion: str, chosen: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        _method(fusion, **chosen)
