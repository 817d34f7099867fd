"""Jigsaw 3D: pieces are encoded one by one, the class says their order, only what can be solved counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oligovox.errors import SettingsError
from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.pretext.jigsaw3d import Jigsaw3D, Settings
from oligovox.sample.batch import Batch

CLOCK = Clock(0, 1)
SEQUENCES = ("T1w", "FLAIR")


def _method(**chosen: object) -> Jigsaw3D:
    torch.manual_seed(0)
    given = {"grid": (2, 2, 2), "permutations": 20} | chosen
    return Jigsaw3D(ResEnc(SEQUENCES, ResEncSettings(preset="nano")), Settings(**given))


def _batch(samples: int = 3) -> Batch:
    present = torch.ones(samples, 2, dtype=torch.bool)
    present[1, 1] = False
    image = torch.randn(samples, 2, 16, 16, 16, generator=_rng()) * present[:, :, None, None, None]
    return Batch(
        image=image,
        present=present,
        foreground=torch.ones(samples, 1, 16, 16, 16, dtype=torch.bool),
        spacing=torch.ones(samples, 3),
        modalities=SEQUENCES,
        cases=tuple(f"case{i}" for i in range(samples)),
    )


def _rng() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def test_the_class_says_which_piece_is_where() -> None:
    method, batch = _method(gap=0.0), _batch()
    views = method.views(batch, _rng())
    octants = [(x, y, z) for x in (0, 8) for y in (0, 8) for z in (0, 8)]
    assert views.pieces.shape == (3, 8, 2, 8, 8, 8)
    for sample, order in enumerate(method.orders[views.order].tolist()):
        for piece, source in zip(views.pieces[sample], order, strict=True):
            x, y, z = octants[source]
            assert torch.equal(piece, batch.image[sample, :, x : x + 8, y : y + 8, z : z + 8])
    assert len(set(views.order.tolist())) > 1


def test_a_gap_leaves_pieces_of_the_same_voxels_amid_zeros() -> None:
    method, batch = _method(gap=0.25), _batch()
    views = method.views(batch, _rng())
    assert views.pieces.shape == (3, 8, 2, 8, 8, 8)  # 6 voxels in a frame of 8
    assert (views.pieces[0] != 0).sum() == 2 * 8 * 6**3
    assert torch.isin(views.pieces[..., 1:7, 1:7, 1:7], batch.image).all()
    assert not views.pieces[1, :, 1].any()  # an absent sequence stays absent


def test_each_piece_is_encoded_apart_from_the_others() -> None:
    method = _method()
    views = method.views(_batch(), _rng())
    seen: list[torch.Tensor] = []
    method.embed.register_forward_hook(lambda _, __, out: seen.append(out.detach()))
    pieces = views.pieces.clone()
    pieces[0, 3] += 1.0 + torch.randn(pieces[0, 3].shape, generator=_rng())
    for given in (views, replace(views, pieces=pieces)):
        method.losses(given, CLOCK)
    changed = (seen[0] != seen[1]).any(1).nonzero().flatten()
    assert changed.tolist() == [3]


@pytest.mark.parametrize("head", ["each", "joint"])
def test_the_loss_is_the_cross_entropy_of_the_class_over_what_counts(head: str) -> None:
    method = _method(head=head)
    made: list[torch.Tensor] = []
    method.score.register_forward_hook(lambda _, __, out: made.append(out.detach()))
    views = replace(method.views(_batch(), _rng()), counted=torch.tensor([True, False, True]))
    found = method.losses(views, CLOCK)
    logits = made[0]
    if head == "each":  # Σ over places of the score of the piece that this order would show there
        assert logits.shape == (3, 8, 8)
        orders = method.orders.tolist()
        logits = torch.tensor([[sum(row[i, j] for i, j in enumerate(order)) for order in orders] for row in logits])
    probability = logits.softmax(1)[[0, 2]]
    torch.testing.assert_close(found.terms["order"].detach(), -probability[[0, 1], views.order[[0, 2]]].log().mean())
    right = (probability.argmax(1) == views.order[[0, 2]]).float().mean().item()
    assert found.notes["accuracy"] == pytest.approx(right)


def test_only_patches_with_two_pieces_of_tissue_and_a_sequence_are_counted() -> None:
    batch = _batch()
    foreground = torch.zeros_like(batch.foreground)
    foreground[0, :, 3:12, 3, 3] = True
    foreground[1, :, 2:5, 3, 3] = True
    foreground[2] = True
    present = batch.present & torch.tensor([True, True, False])[:, None]
    image = batch.image * present[:, :, None, None, None]
    views = _method().views(replace(batch, foreground=foreground, present=present, image=image), _rng())
    assert views.counted.tolist() == [True, False, False]


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(SettingsError, match="there are only 2"):
        _method(grid=(2, 1, 1))
    with pytest.raises(ValueError, match="2 in all"):
        Settings(grid=(1, 1, 1))
