"""Masked reconstruction: nothing hidden leaks, only the knowable is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oligovox.losses.outliers import contrast_slope
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


@pytest.mark.parametrize("chosen", [{}, {"mask_value": "learned"}, {"restore": "clean", "effect": 1.0}])
def test_with_every_setting_what_is_hidden_does_not_reach_the_network(chosen: dict[str, object]) -> None:
    method, batch = _method(shared=False, **chosen), _batch()
    views = method.views(batch, _rng())
    again = method.views(replace(batch, image=torch.where(views.counted, 50.0 * batch.image, batch.image)), _rng())
    assert not torch.equal(again.target, views.target)
    assert torch.equal(again.visible, views.visible)


def test_a_learned_value_stands_in_hidden_blocks_of_acquired_sequences() -> None:
    plain, learned = _method(), _method(mask_value="learned")
    views = plain.views(_batch(), _rng())
    assert torch.equal(plain.losses(views, CLOCK).total, learned.losses(views, CLOCK).total)  # it begins at 0
    assert learned.state_dict().keys() - plain.state_dict().keys() == {"mask_value"}
    seen = []
    learned.network.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        learned.mask_value.copy_(torch.tensor([3.0, -2.0]).view(2, 1, 1, 1))
    learned.losses(views, CLOCK).total.backward()
    filled = torch.tensor([3.0, -2.0]).view(1, 2, 1, 1, 1).expand_as(views.hidden)
    assert torch.equal(seen[0][views.hidden], filled[views.hidden])
    assert torch.equal(seen[0][~views.hidden], views.visible[~views.hidden])
    assert not views.hidden[1, 1].any()  # absent: 0, as always
    assert learned.mask_value.grad.all()
    assert not any("mask_value" in key for key in learned.export().state_dict())


def test_clean_changes_what_is_shown_and_asks_for_the_image_as_it_was() -> None:
    batch = _batch()
    plain, clean = (_method(restore=r, effect=1.0).views(batch, _rng()) for r in ("augmented", "clean"))
    assert torch.equal(clean.target, batch.image)
    assert torch.equal(clean.hidden, plain.hidden)  # the same blocks
    seen = clean.beside & (batch.image != 0)
    assert (clean.visible != plain.visible)[seen].float().mean() > 0.99
    assert not clean.visible[clean.hidden].any()
    none = _method(restore="clean", effect=0.0).views(batch, _rng())
    assert torch.equal(none.visible, plain.visible)


def test_visible_voxels_have_a_term_of_their_own() -> None:
    method, batch = _method(restore="clean", visible_weight=0.25), _batch()
    views = method.views(batch, _rng())
    known = (batch.foreground & batch.present[:, :, None, None, None]).expand_as(batch.image)
    assert torch.equal(views.beside | views.counted, known)
    assert not (views.beside & views.counted).any()
    losses = method.losses(views, CLOCK)
    restored = method.restore(method.network(views.visible, views.present))
    visible = (restored - batch.image)[known & ~views.hidden].square().mean()
    torch.testing.assert_close(losses.terms["visible"], visible)
    torch.testing.assert_close(losses.total, losses.terms["restore"] + 0.25 * visible)
    assert _method().losses(views, CLOCK).terms.keys() == {"restore"}


def test_the_slope_of_hidden_flair_is_noted() -> None:
    method = _method()
    views = method.views(_batch(), _rng())
    restored = method.restore(method.network(views.visible, views.present))
    slope = contrast_slope(restored[:, 1], views.target[:, 1], views.counted[:, 1])
    assert method.losses(views, CLOCK).notes == {"lesion_slope": pytest.approx(slope.item())}
