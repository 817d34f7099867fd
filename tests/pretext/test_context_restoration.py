"""Context restoration: blocks change places in pairs, nothing is lost, and only the knowable is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oligovox.errors import SettingsError
from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.pretext.context_restoration import ContextRestoration, Settings
from oligovox.sample.batch import Batch
from oligovox.settings import parse

CLOCK = Clock(0, 1)
SEQUENCES = ("T1w", "FLAIR")


def _method(**chosen: object) -> ContextRestoration:
    torch.manual_seed(0)
    encoder = ResEnc(SEQUENCES, ResEncSettings(preset="nano"))
    return ContextRestoration(encoder, parse(Settings, {"block": [0.25, 0.25, 0.125], **chosen}, "test"))


def _batch(foreground: torch.Tensor | None = None) -> Batch:
    rng = torch.Generator().manual_seed(0)
    foreground = torch.ones(2, 1, 16, 16, 16, dtype=torch.bool) if foreground is None else foreground
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


def _rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_swap_is_its_own_inverse_and_moves_whole_blocks() -> None:
    method, inside = _method(pairs=[3, 3]), torch.ones(16, 16, 16, dtype=torch.bool)
    for seed in range(5):
        source = method._swaps(inside, _rng(seed))
        places = torch.arange(16**3)
        assert torch.equal(source[source], places)
        moved = (source != places).view(16, 16, 16)
        assert moved.sum() == 3 * 2 * 4 * 4 * 2  # three pairs of blocks of 4 × 4 × 2 voxels
        shift = (source - places).view(16, 16, 16)
        assert len(shift[moved].unique()) <= 6  # all voxels of a block move alike


def test_every_sequence_keeps_its_values_and_absent_ones_stay_empty() -> None:
    batch = _batch()
    views = _method().views(batch, _rng())
    assert not torch.equal(views.shown, batch.image)
    assert torch.equal(views.shown.flatten(2).sort(2).values, batch.image.flatten(2).sort(2).values)
    assert torch.equal(views.shown[~views.moved], batch.image[~views.moved])
    assert (views.shown != batch.image)[views.moved].all()
    assert not views.moved[1, 1].any()


def test_number_of_pairs_follows_the_setting_as_far_as_there_are_blocks() -> None:
    full = torch.ones(16, 16, 16, dtype=torch.bool)
    method, few = _method(pairs=[2, 5]), _method(pairs=[90, 90])
    counts = [int((method._swaps(full, _rng(s)) != torch.arange(16**3)).sum()) // 64 for s in range(60)]
    assert set(counts) == {2, 3, 4, 5}
    smaller = full.clone()
    smaller[6:] = False  # at most 3 × 4 × 8 blocks are half foreground
    assert 0 < (few._swaps(smaller, _rng()) != torch.arange(16**3)).sum() // 64 <= 3 * 4 * 8 // 2


def test_blocks_of_air_do_not_move() -> None:
    foreground = torch.zeros(2, 1, 16, 16, 16, dtype=torch.bool)
    foreground[0, :, :8] = True
    views = _method().views(_batch(foreground), _rng())
    assert views.moved[0].any()
    assert not views.moved[1].any()
    torch.testing.assert_close(views.shown[1], views.target[1])
    assert not (views.moved & ~foreground).any()


def test_blocks_are_shared_between_sequences_unless_said_otherwise() -> None:
    together, apart = (_method(shared=s).views(_batch(), _rng()).moved[0] for s in (True, False))
    assert torch.equal(together[0], together[1])
    assert not torch.equal(apart[0], apart[1])


@pytest.mark.parametrize(("loss", "power"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize("counted", ["patch", "moved"])
def test_the_loss_is_the_mean_error_of_what_is_counted(loss: str, power: int, counted: str) -> None:
    foreground = torch.rand(2, 1, 16, 16, 16, generator=_rng()) < 0.8
    method, batch = _method(loss=loss, counted=counted), _batch(foreground)
    views = method.views(batch, _rng())
    restored = method.restore(method.network(views.shown, views.present))
    known = views.moved if counted == "moved" else foreground & batch.present[:, :, None, None, None]
    expected = (restored - batch.image)[known].abs().pow(power).mean()
    torch.testing.assert_close(method.losses(views, CLOCK).terms["restore"], expected)


def test_air_and_absent_sequences_do_not_count() -> None:
    foreground = torch.rand(2, 1, 16, 16, 16, generator=_rng()) < 0.8
    method = _method()
    views = method.views(_batch(foreground), _rng())
    elsewhere = replace(views, target=views.target.where(views.known, 1e6))
    assert torch.equal(method.losses(elsewhere, CLOCK).total, method.losses(views, CLOCK).total)


def test_pairs_out_of_order_are_refused() -> None:
    with pytest.raises(SettingsError, match="pairs"):
        parse(Settings, {"pairs": [20, 10]}, "test")
