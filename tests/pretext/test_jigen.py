"""JiGen: the class says the order, nothing but anatomy gives it away, only what can be solved counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool3d

from oligovox.errors import GeometryError, SettingsError
from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.pretext.jigen import JiGen, Settings
from oligovox.sample.batch import Batch

CLOCK = Clock(0, 1)
SEQUENCES = ("T1w", "T2w", "FLAIR")


def _method(**chosen: object) -> JiGen:
    torch.manual_seed(0)
    return JiGen(ResEnc(SEQUENCES, ResEncSettings(preset="nano")), Settings(**chosen))


def _batch(samples: int = 4, side: int = 12) -> Batch:
    present = torch.ones(samples, 3, dtype=torch.bool)
    present[1, 1] = False
    image = torch.randn(samples, 3, side, side, side, generator=_rng()) * present[:, :, None, None, None]
    return Batch(
        image=image,
        present=present,
        foreground=torch.ones(samples, 1, side, side, side, dtype=torch.bool),
        spacing=torch.ones(samples, 3),
        modalities=SEQUENCES,
        cases=tuple(f"case{i}" for i in range(samples)),
    )


def _rng() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def _tiles(image: torch.Tensor) -> list[torch.Tensor]:
    """The nine columns of a patch of side 12, row by row."""
    return [image[..., x : x + 4, y : y + 4, :] for x in (0, 4, 8) for y in (0, 4, 8)]


def test_the_class_says_which_tile_is_where() -> None:
    method, batch = _method(gap=0.0, grey=0.0, ordered=0.5), _batch(8)
    views = method.views(batch, _rng())
    assert 0 in views.order
    assert (views.order > 0).any()
    for sample, order in enumerate(method.orders[views.order].tolist()):
        there, shown = _tiles(batch.image[sample]), _tiles(views.image[sample])
        assert all(torch.equal(tile, there[source]) for tile, source in zip(shown, order, strict=True))
    kept = views.order == 0
    assert torch.equal(views.image[kept], batch.image[kept])


@pytest.mark.parametrize(("ordered", "expected"), [(None, 1 / 31), (0.0, 0.0), (0.7, 0.7), (1.0, 1.0)])
def test_every_order_is_drawn_and_the_right_one_as_often_as_asked(ordered: float | None, expected: float) -> None:
    classes = _method(ordered=ordered)._draw(20_000, _rng())
    shares = torch.bincount(classes, minlength=31) / 20_000
    assert abs(shares[0] - expected) < 0.011  # more than 3 standard errors
    assert (shares[1:] - (1 - expected) / 30).abs().max() < 0.006


def test_where_nothing_is_to_be_seen_nothing_gives_the_order_away() -> None:
    method, batch = _method(grey=0.0), _batch(40)
    views = method.views(
        replace(batch, image=batch.present[:, :, None, None, None].expand_as(batch.image).float()), _rng()
    )
    assert len(views.order.unique()) > 10
    assert all(torch.equal(image, views.image[0]) for image in views.image[2:])


def test_a_grey_tile_shows_the_mean_of_acquired_sequences_in_each_of_them() -> None:
    method, batch = _method(gap=0.0, grey=1.0, ordered=1.0), _batch()
    image = method.views(batch, _rng()).image
    torch.testing.assert_close(image[0], batch.image[0].mean(0).expand(3, -1, -1, -1))
    torch.testing.assert_close(image[1, 0], batch.image[1, [0, 2]].mean(0))
    assert not image[1, 1].any()
    some = _method(gap=0.0, grey=0.5, ordered=1.0).views(batch, _rng()).image
    same = torch.stack([(tile[:, 0] == tile[:, 2]).flatten(1).all(1) for tile in _tiles(some)])
    assert 0 < same.sum() < same.numel()  # tile by tile


def test_only_patches_with_two_tiles_of_tissue_and_a_sequence_are_counted() -> None:
    method, batch = _method(), _batch()
    foreground = torch.zeros_like(batch.foreground)
    foreground[0] = foreground[3] = True
    foreground[1, :, 1:3, 1:3, 5] = True  # one tile
    foreground[2, :, :7, 1:3, 5] = True  # two
    present = batch.present.clone()
    present[3] = False
    image = batch.image * present[:, :, None, None, None]
    views = method.views(replace(batch, foreground=foreground, present=present, image=image), _rng())
    assert views.counted.tolist() == [True, False, True, False]
    other = replace(views, image=torch.where(views.counted[:, None, None, None, None], views.image, 9.0))
    assert torch.equal(method.losses(other, CLOCK).total, method.losses(views, CLOCK).total)


@pytest.mark.parametrize("head", ["each", "joint"])
def test_the_loss_is_the_cross_entropy_of_the_class(head: str) -> None:
    method = _method(ordered=0.5, head=head)
    views = replace(method.views(_batch(), _rng()), counted=torch.tensor([True, True, False, True]))
    features = method.encoder(views.image, views.present)
    means = torch.cat([adaptive_avg_pool3d(feature, (3, 3, 1)).flatten(2) for feature in features], 1)
    weight, bias = method.score.weight, method.score.bias
    if head == "joint":
        logits = means.flatten(1) @ weight.T + bias
    else:  # Σ over places of the score of the tile that this order would show there
        logits = torch.zeros(4, 31)
        for k, order in enumerate(method.orders.tolist()):
            for place, tile in enumerate(order):
                logits[:, k] += means[:, :, place] @ weight[tile] + bias[tile]
    probability = logits.softmax(1)
    rows = [0, 1, 3]
    expected = -probability[rows, views.order[rows]].log().mean()
    found = method.losses(views, CLOCK)
    torch.testing.assert_close(found.terms["order"], expected)
    assert found.notes["accuracy"] == pytest.approx((probability.argmax(1) == views.order)[rows].float().mean().item())


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(SettingsError, match="there are only 2"):
        _method(grid=(2, 1, 1))
    with pytest.raises(ValueError, match="2 in all"):
        Settings(grid=(1, 1, 1))
    with pytest.raises(GeometryError, match="fewer pieces"):
        _method(grid=(7, 1, 1)).views(_batch(), _rng())
