"""Multimodal puzzle: the right arrangement costs nothing, places do not leak, only tissue of acquired sequences counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.pretext.multimodal_puzzle import MultimodalPuzzle, Settings, Views, _hungarian
from oligovox.sample.batch import Batch

CLOCK = Clock(0, 1)
SEQUENCES = ("T1w", "T2w", "FLAIR")


class Fixed(nn.Module):
    """Scores that do not look."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        return self.scores


def _method(**chosen: object) -> MultimodalPuzzle:
    torch.manual_seed(0)
    return MultimodalPuzzle(ResEnc(SEQUENCES, ResEncSettings(preset="nano")), Settings(**chosen))


def _batch() -> Batch:
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    foreground = torch.rand(3, 1, 16, 16, 16, generator=_rng()) < 0.8
    foreground[0, :, :8, :8, :8] = False  # a piece of air
    image = torch.randn(3, 3, 16, 16, 16, generator=_rng()) * foreground * present[:, :, None, None, None]
    return Batch(
        image=image,
        present=present,
        foreground=foreground,
        spacing=torch.ones(3, 3),
        modalities=SEQUENCES,
        cases=("a", "b", "c"),
    )


def _rng() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def _with_scores(scores: torch.Tensor) -> MultimodalPuzzle:
    method = _method()
    method.score = Fixed(scores)  # type: ignore[assignment]
    return method


def _true(views: Views) -> torch.Tensor:
    """Π: piece (row) → place (column)."""
    return torch.nn.functional.one_hot(views.place, 8).float()


def test_each_place_shows_one_acquired_sequence_and_pieces_are_shuffled() -> None:
    batch = _batch()
    views = _method(gap=0.0).views(batch, _rng())
    octants = [(x, y, z) for x in (0, 8) for y in (0, 8) for z in (0, 8)]
    drawn = set()
    for sample in range(3):
        for piece, (place, m) in enumerate(zip(views.place[sample], views.sequence[sample], strict=True)):
            x, y, z = octants[place]
            assert batch.present[sample, m]
            assert torch.equal(views.target[sample, place], batch.image[sample, m, x : x + 8, y : y + 8, z : z + 8])
            assert torch.equal(views.pieces[sample, piece], views.target[sample, place])
            drawn.add((sample, int(m)))
    assert drawn == {(0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 1)}
    assert views.place.sort(1).values.tolist() == [list(range(8))] * 3


def test_the_right_arrangement_costs_nothing_and_any_other_something() -> None:
    views = _method().views(_batch(), _rng())
    right = _with_scores(20.0 * _true(views)).losses(views, CLOCK)
    assert right.total.item() < 1e-5
    assert right.notes["placed"] == 1.0
    for scores in (20.0 * _true(views).roll(1, 1), torch.zeros(3, 8, 8)):
        assert _with_scores(scores).losses(views, CLOCK).terms["restore"].item() > 0.5
    shifted = _with_scores(20.0 * _true(views).roll(1, 1)).losses(views, CLOCK)
    assert shifted.notes["placed"] == 0.0


def test_the_terms_are_those_of_the_paper_over_what_counts() -> None:
    scores = torch.randn(3, 8, 8, generator=_rng())
    views = _method().views(_batch(), _rng())
    found = _with_scores(scores).losses(views, CLOCK)
    errors, surprises = [], []
    for sample in range(3):
        soft = np.exp(scores[sample].double().numpy() / 0.5)
        for _ in range(20):
            soft = soft / soft.sum(1, keepdims=True)
            soft = soft / soft.sum(0, keepdims=True)
        pieces, target = (values[sample].flatten(1).double().numpy() for values in (views.pieces, views.target))
        tissue = views.tissue[sample].flatten(1).numpy()
        errors += list(((target - soft.T @ pieces) ** 2)[tissue])
        surprises += [-np.log(soft[i, j]) for i, j in enumerate(views.place[sample]) if tissue[j].any()]
    assert len(surprises) == 23  # one of the 24 pieces is air
    assert found.terms["restore"].item() == pytest.approx(np.mean(errors), rel=1e-4)
    assert found.terms["assign"].item() == pytest.approx(np.mean(surprises), rel=1e-4)
    assert found.total.item() == pytest.approx(np.mean(errors) + 0.1 * np.mean(surprises), rel=1e-4)


def test_scores_do_not_see_places_or_targets() -> None:
    method = _method()
    views = method.views(_batch(), _rng())
    other = replace(views, target=views.target + 1.0, place=views.place.flip(1), sequence=views.sequence.roll(1, 1))
    assert torch.equal(method._scores(views), method._scores(other))
    moved = replace(views, pieces=views.pieces.roll(1, 1))
    assert not torch.equal(method._scores(views), method._scores(moved))


@pytest.mark.parametrize(("head", "same"), [("each", True), ("joint", False)])
def test_shuffled_pieces_give_shuffled_scores_where_each_is_scored_apart(head: str, same: bool) -> None:
    method = _method(head=head)
    views = method.views(_batch(), _rng())
    scores = method._scores(views)
    shuffled = method._scores(replace(views, pieces=views.pieces.roll(3, 1)))
    assert torch.allclose(shuffled, scores.roll(3, 1), atol=1e-5) == same


@pytest.mark.parametrize("channel", ["every", "own"])
def test_what_the_encoder_is_shown(channel: str) -> None:
    method, seen = _method(channel=channel), []
    method.encoder.register_forward_pre_hook(lambda _, given: seen.append(given))
    views = method.views(_batch(), _rng())
    method.losses(views, CLOCK)
    (image, present) = seen[0]
    for row, (piece, m) in enumerate(zip(views.pieces.flatten(0, 1), views.sequence.flatten(), strict=True)):
        wanted = [0, 1, 2] if channel == "every" else [int(m)]
        assert present[row].nonzero().flatten().tolist() == wanted
        for index in range(3):
            inner = image[row, index, :7, :7, :7]  # 7 voxels in a frame of 8, none before
            assert torch.equal(inner, piece if index in wanted else torch.zeros_like(piece))


def test_only_tissue_of_acquired_sequences_counts() -> None:
    method, batch = _method(), _batch()
    present = batch.present & torch.tensor([True, False, True])[:, None]
    batch = replace(batch, present=present, image=batch.image * present[:, :, None, None, None])
    views = method.views(batch, _rng())
    assert not views.tissue[1].any()
    assert views.tissue[0].any()
    elsewhere = replace(views, target=views.target.where(views.tissue, 1e6))
    assert torch.equal(method.losses(elsewhere, CLOCK).total, method.losses(views, CLOCK).total)


def test_the_hard_arrangement_is_the_best_as_a_whole() -> None:
    soft = torch.tensor([[[0.5, 0.45, 0.05], [0.45, 0.0, 0.1], [0.0, 0.4, 0.5]]])
    assert _hungarian(soft).tolist() == [[1, 0, 2]]  # sums to 1.4; with the best place of the first piece, 1.0 at most


def test_without_the_cross_entropy_the_error_alone_is_left() -> None:
    method = _method(assign_weight=0.0)
    views = method.views(_batch(), _rng())
    found = method.losses(views, CLOCK)
    assert set(found.terms) == {"restore"}
    torch.testing.assert_close(found.terms["restore"], _method().losses(views, CLOCK).terms["restore"])
