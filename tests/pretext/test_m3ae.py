"""M3AE: the exact share is hidden, nothing hidden leaks, the substitute stands where it should."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oligovox.errors import SettingsError
from oligovox.losses.outliers import contrast_slope
from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.pretext.m3ae import M3AE, Settings, Views
from oligovox.sample.batch import Batch

CLOCK = Clock(0, 1)
SEQUENCES = ("T1w", "T2w", "FLAIR", "T1wGd")
SIDE, BLOCK = 16, 4
BLOCKS = (SIDE // BLOCK) ** 3


def _method(**chosen: object) -> M3AE:
    torch.manual_seed(0)
    method = M3AE(ResEnc(SEQUENCES, ResEncSettings(preset="nano")), Settings(block=BLOCK, **chosen))
    torch.nn.init.normal_(method.substitute.stored, std=0.1)
    return method


def _batch(samples: int = 4) -> Batch:
    """The last sample has two of four sequences."""
    rng = torch.Generator().manual_seed(0)
    foreground = torch.rand(samples, 1, SIDE, SIDE, SIDE, generator=rng) < 0.8
    present = torch.ones(samples, 4, dtype=torch.bool)
    present[-1, 1:3] = False
    image = 3.0 + torch.randn(samples, 4, SIDE, SIDE, SIDE, generator=rng)
    return Batch(
        image=image * foreground * present[:, :, None, None, None],
        present=present,
        foreground=foreground,
        spacing=torch.ones(samples, 3),
        modalities=SEQUENCES,
        cases=tuple(map(str, range(samples))),
    )


def _views(method: M3AE, batch: Batch, seed: int = 1) -> Views:
    return method.views(batch, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ratio", [0.875, 0.9])
def test_the_exact_share_of_all_blocks_is_visible(ratio: float) -> None:
    method, batch = _method(ratio=ratio), _batch()
    for seed in range(5):
        views = _views(method, batch, seed)
        blocks = (~views.hidden).sum((1, 2, 3, 4)) / BLOCK**3
        expected = [round((1 - ratio) * BLOCKS * acquired) for acquired in (4, 4, 4, 2)]
        assert blocks.tolist() == expected  # however many sequences were dropped
        assert not (~views.hidden & ~views.shown[:, :, None, None, None]).any()


def test_up_to_three_acquired_sequences_are_dropped_each_number_as_often() -> None:
    batch = _batch(300)
    shown = _views(_method(), batch).shown
    dropped = (batch.present & ~shown).sum(1)
    assert not (shown & ~batch.present).any()
    assert shown.any(1).all()
    assert dropped[-1] <= 1
    counts = torch.bincount(dropped[:-1], minlength=4)
    assert len(counts) == 4
    assert counts.min() > 50  # 75 expected
    assert not (batch.present & ~_views(_method(max_dropped=0), batch).shown).any()


def test_what_is_hidden_does_not_leak_but_is_asked_for() -> None:
    method, batch = _method(), _batch()
    views = _views(method, batch)
    other = _views(method, replace(batch, image=batch.image + 5.0 * (views.hidden & views.counted)))
    assert torch.equal(method.visible(other), method.visible(views))
    assert torch.equal(other.shown, views.shown)
    assert method.losses(other, CLOCK).terms["restore"] > method.losses(views, CLOCK).terms["restore"]


def test_the_substitute_stands_in_hidden_blocks_and_in_dropped_sequences_only_where_asked() -> None:
    batch = _batch()
    for everywhere in (False, True):
        method = _method(substitute_dropped=everywhere)
        views = _views(method, batch)
        stands_in = method.substitute((SIDE,) * 3).expand_as(batch.image)
        shown = views.shown[:, :, None, None, None].expand_as(batch.image)
        visible = method.visible(views)
        assert (views.hidden & ~shown).any()
        assert torch.equal(visible[~views.hidden], batch.image[~views.hidden])
        assert torch.equal(visible[views.hidden & shown], stands_in[views.hidden & shown])
        not_shown = stands_in[~shown] if everywhere else torch.zeros(())
        assert torch.equal(visible[~shown], not_shown.expand_as(visible[~shown]))


def test_a_substitute_that_no_stem_reads_is_refused() -> None:
    encoder = ResEnc(SEQUENCES, ResEncSettings(preset="nano", fusion="stems"))
    M3AE(encoder, Settings(block=BLOCK))
    with pytest.raises(SettingsError, match="fusion stems does not read; use fusion early"):
        M3AE(encoder, Settings(block=BLOCK, substitute_dropped=True))


@pytest.mark.parametrize("counted", ["all", "hidden"])
def test_the_losses_by_hand(counted: str) -> None:
    method, batch = _method(counted=counted), _batch()
    views = _views(method, batch)
    losses = method.losses(views, CLOCK)
    asked = batch.foreground & batch.present[:, :, None, None, None]
    asked = asked & views.hidden if counted == "hidden" else asked
    restored = method.restore(method.network(method.visible(views), views.shown))
    lattice = 17.0 * method.substitute.stored
    spread = (lattice - lattice.mean((1, 2, 3), keepdim=True)).square().sum().sqrt()
    torch.testing.assert_close(losses.terms["restore"], (restored - batch.image)[asked].square().mean())
    torch.testing.assert_close(losses.terms["spread"], spread)
    torch.testing.assert_close(losses.total, losses.terms["restore"] + 0.005 * spread)


def test_absent_sequences_and_air_have_no_say() -> None:
    method, batch = _method(), _batch()
    views = _views(method, batch)
    elsewhere = replace(views, image=torch.where(views.hidden & ~views.counted, 1e6, views.image))
    assert not views.counted[-1, 1:3].any()
    assert torch.equal(method.losses(elsewhere, CLOCK).total, method.losses(views, CLOCK).total)


def test_the_substitute_learns_what_helps_to_restore() -> None:
    method, batch = _method(), _batch()
    method.losses(_views(method, batch), CLOCK).terms["restore"].backward()
    assert all(lattice.any() for lattice in method.substitute.stored.grad)
    assert "substitute" not in "".join(method.export().state_dict())


def test_the_slope_of_hidden_flair_is_noted() -> None:
    method = _method()
    views = method.views(_batch(), torch.Generator().manual_seed(1))
    restored = method.restore(method.network(method.visible(views), views.shown))
    slope = contrast_slope(restored[:, 2], views.image[:, 2], (views.counted & views.hidden)[:, 2])
    assert method.losses(views, CLOCK).notes == {"lesion_slope": pytest.approx(slope.item())}
