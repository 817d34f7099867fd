"""Masked reconstruction: nothing hidden leaks, only the knowable is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.pretext.masked_reconstruction import MaskedReconstruction, Settings
from oligovox.sample.batch import Batch

CLOCK = Clock(0, 1)
SEQUENCES = ("T1w", "FLAIR")


def _method(**chosen: object) -> MaskedReconstruction:
    torch.manual_seed(0)
    return MaskedReconstruction(ResEnc(SEQUENCES, ResEncSettings(preset="nano")), Settings(block=4, **chosen))


def _batch() -> Batch:
    rng = torch.Generator().manual_seed(0)
    foreground = torch.rand(2, 1, 16, 16, 16, generator=rng) < 0.8
    present = torch.tensor([[True, True], [True, False]])
    image = torch.randn(2, 2, 16, 16, 16, generator=rng) * foreground * present[:, :, None, None, None]
    return Batch(
        image=image,
        present=present,
        foreground=foreground,
        spacing=torch.ones(2, 3),
        modalities=SEQUENCES,
        cases=("a", "b"),
    )


def _rng() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_hidden_does_not_leak(shared: bool) -> None:
    method, batch = _method(shared=shared), _batch()
    views = method.views(batch, _rng())
    other = replace(batch, image=batch.image + 5.0 * views.counted)
    assert views.counted.any()
    assert torch.equal(method.views(other, _rng()).visible, views.visible)
    changed = method.losses(method.views(other, _rng()), CLOCK).total
    assert changed > method.losses(views, CLOCK).total  # but it is what the loss asks for


def test_only_hidden_foreground_of_acquired_sequences_is_counted() -> None:
    method, batch = _method(), _batch()
    views = method.views(batch, _rng())
    assert not (views.counted & ~batch.foreground).any()
    assert not views.counted[1, 1].any()
    assert not views.visible[views.counted].any()
    elsewhere = replace(views, target=views.target.where(views.counted, 1e6))
    assert torch.equal(method.losses(elsewhere, CLOCK).total, method.losses(views, CLOCK).total)


def test_blocks_are_shared_between_sequences_unless_said_otherwise() -> None:
    batch = replace(_batch(), foreground=torch.ones(2, 1, 16, 16, 16, dtype=torch.bool))
    together, apart = (_method(shared=s).views(batch, _rng()).counted[0] for s in (True, False))
    assert torch.equal(together[0], together[1])
    assert not torch.equal(apart[0], apart[1])


@pytest.mark.parametrize(("loss", "power"), [("l1", 1), ("l2", 2)])
def test_the_loss_is_the_mean_error_of_the_counted_voxels(loss: str, power: int) -> None:
    method = _method(loss=loss)
    views = method.views(_batch(), _rng())
    found = method.losses(views, CLOCK).terms["restore"]
    restored = method.restore(method.network(views.visible, views.present))
    expected = (restored - views.target)[views.counted].abs().pow(power).mean()
    torch.testing.assert_close(found, expected)
