"""Supervoxel inpainting: whole supervoxels are hidden in all sequences, rather the bright ones, and nothing of them leaks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oligovox.errors import SettingsError
from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.pretext.supervoxel import Settings, Supervoxel
from oligovox.sample.batch import Batch
from oligovox.settings import parse

CLOCK = Clock(0, 1)
SEQUENCES = ("T1w", "FLAIR")


def _method(sequences: tuple[str, ...] = SEQUENCES, **chosen: object) -> Supervoxel:
    torch.manual_seed(0)
    settings = Settings(**{"width": 6.0, **chosen})  # type: ignore[arg-type]
    return Supervoxel(ResEnc(sequences, ResEncSettings(preset="nano")), settings)


def _batch(side: int = 16) -> Batch:
    """FLAIR is absent in the second sample."""
    rng = torch.Generator().manual_seed(0)
    axis = torch.linspace(-1, 1, side)
    radius = (axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis**2).sqrt()
    foreground = (radius < 1.2).expand(2, 1, side, side, side).clone()
    present = torch.tensor([[True, True], [True, False]])
    image = torch.randn(2, 2, side, side, side, generator=rng) * foreground * present[:, :, None, None, None]
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


def test_what_is_hidden_does_not_reach_the_network() -> None:
    """Other values in the hidden places: same restoration, other loss."""
    method, batch = _method(), _batch()
    views = method.views(batch, _rng())
    assert not views.visible[views.hidden].any()
    other = replace(views, target=views.target + 3.0 * views.hidden)
    assert method.losses(other, CLOCK).terms["restore"] != method.losses(views, CLOCK).terms["restore"]
    assert torch.equal(method.losses(other, CLOCK).terms["beside"], method.losses(views, CLOCK).terms["beside"])
    assert torch.equal(views.visible, batch.image.masked_fill((batch.image != views.visible).any(1, keepdim=True), 0))


def test_a_piece_of_the_asked_size_is_hidden_in_all_sequences_and_the_rest_is_beside() -> None:
    method, batch = _method(), _batch()
    views = method.views(batch, _rng())
    assert torch.equal(views.hidden[0, 0], views.hidden[0, 1])
    assert not (views.hidden & views.beside).any()
    known = batch.foreground & batch.present[:, :, None, None, None]
    assert torch.equal(views.hidden | views.beside, known)
    assert not (views.hidden | views.beside)[1, 1].any()  # absent: never asked for
    sizes = views.hidden[:, 0].sum((1, 2, 3))
    assert ((sizes > 0.3 * 6**3) & (sizes < 3 * 6**3)).all()


@pytest.mark.parametrize("hide", [2, 1000])
def test_as_many_supervoxels_are_hidden_as_asked_and_there_are(hide: int) -> None:
    one, more = (_method(hide=h).views(_batch(), _rng()).hidden[:, 0].sum((1, 2, 3)) for h in (1, hide))
    assert (more > one).all()
    if hide == 1000:
        assert torch.equal(more, _batch().foreground[:, 0].sum((1, 2, 3)))


def test_width_is_in_millimetres() -> None:
    batch = _batch()
    coarse = replace(batch, spacing=torch.full((2, 3), 2.0))
    small = _method(width=12.0).views(coarse, _rng())
    assert torch.equal(small.hidden, _method(width=6.0).views(batch, _rng()).hidden)


def test_the_bright_piece_of_the_guide_is_hidden_and_at_high_temperature_any() -> None:
    """A bright corner of FLAIR; the second sample lacks FLAIR, so that chance decides there."""
    batch = _batch()
    bright = torch.zeros(16, 16, 16, dtype=torch.bool)
    bright[2:8, 2:8, 2:8] = True
    image = 0.1 * batch.image
    image[0, 1] += 5.0 * (bright & batch.foreground[0, 0])
    batch = replace(batch, image=image)

    def hit(sample: int, **chosen: object) -> float:
        method = _method(**chosen)
        alone = batch.samples([sample])
        hidden = [method.views(alone, _rng(seed)).hidden[0, 0] for seed in range(4)]
        return sum((h & bright).sum().item() for h in hidden) / sum(h.sum().item() for h in hidden)

    assert hit(0) > 0.8
    assert hit(0, temperature=1000.0) < 0.5
    assert hit(0, guide=("T2w",)) < 0.5
    assert hit(1) < 0.5


def test_the_loss_is_the_mean_square_inside_and_a_tenth_of_it_outside() -> None:
    method = _method()
    views = method.views(_batch(), _rng())
    losses = method.losses(views, CLOCK)
    square = (method.restore(method.network(views.visible, views.present)) - views.target).square()
    expected = square[views.hidden].mean() + 0.1 * square[views.beside].mean()
    torch.testing.assert_close(losses.total, expected)


def test_unknown_guides_are_refused() -> None:
    assert Settings(guide=("t2f",)).guide == ("FLAIR",)
    with pytest.raises(SettingsError, match="unknown modality 'FLAIRR'"):
        parse(Settings, {"guide": ["FLAIRR"]}, "method supervoxel")
