"""Pieces: cutting and joining against plain slices, orders that are far apart."""

from __future__ import annotations

import pytest
import torch

from oligovox.errors import GeometryError, SettingsError
from oligovox.sample.pieces import cut, distant_orders, framed, jitter, join, layout, reorder

GRID = [(i, j, k) for i in range(3) for j in range(2) for k in range(2)]


def _rng() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_pieces_are_these_voxels_and_joined_they_lie_in_the_middle_of_their_cells() -> None:
    values = torch.randn(2, 3, 13, 12, 9, generator=_rng())
    where = layout((13, 12, 9), (3, 2, 2), 0.5)
    assert (where.cell, where.piece) == ((4, 6, 4), (2, 3, 2))
    starts = jitter(where, 2, _rng())
    pieces, expected = cut(values, where, starts), torch.zeros_like(values)
    whole = join(pieces, where)
    for sample in range(2):
        for number, (i, j, k) in enumerate(GRID):  # a margin of 1, 0 and 1 voxels is left over: 0 of it at the start
            x, y, z = (cell + start for cell, start in zip((4 * i, 6 * j, 4 * k), starts[sample, number], strict=True))
            piece = values[sample, :, x : x + 2, y : y + 3, z : z + 2]
            assert torch.equal(pieces[sample, number], piece)
            x, y, z = 4 * i + 1, 6 * j + 1, 4 * k + 1
            expected[sample, :, x : x + 2, y : y + 3, z : z + 2] = piece
    assert torch.equal(whole, expected)


def test_without_a_gap_the_joined_pieces_are_the_patch_in_the_middle() -> None:
    values = torch.rand(1, 1, 8, 11, 6, generator=_rng()) < 0.5
    where = layout((8, 11, 6), (2, 3, 1), 0.0)
    whole = join(cut(values, where, jitter(where, 1, _rng())), where)
    assert torch.equal(whole[:, :, :, 1:10], values[:, :, :, 1:10])
    assert not whole[:, :, :, [0, 10]].any()


def test_pieces_lie_anywhere_in_their_cell_and_never_outside() -> None:
    where = layout((16, 16, 16), (2, 4, 1), 0.25)
    starts = jitter(where, 500, _rng())
    assert where.gap == (2, 1, 0)
    counts = [torch.bincount(starts[..., axis].flatten()) / starts[..., axis].numel() for axis in range(3)]
    assert [len(share) for share in counts] == [3, 2, 1]
    assert all((share - 1 / len(share)).abs().max() < 0.03 for share in counts)  # 4 standard errors


def test_reordered_pieces() -> None:
    pieces = torch.arange(6).view(2, 3, 1)
    assert reorder(pieces, torch.tensor([[2, 0, 1], [0, 2, 1]])).flatten().tolist() == [2, 0, 1, 3, 5, 4]


@pytest.mark.parametrize(
    ("side", "multiple", "framing"), [(9, 4, (12, 12, 12)), (16, 8, (16, 16, 16)), (14, 16, (32, 16, 16))]
)
def test_a_frame_of_zeros_makes_pieces_fit_an_encoder(side: int, multiple: int, framing: tuple[int, int, int]) -> None:
    pieces = torch.rand(1, 2, 1, side, side, side, generator=_rng()) + 1.0
    frame = framed(pieces, multiple)
    assert tuple(frame.shape[3:]) == framing
    assert (frame > 0).sum() == pieces.numel()
    u, v, w = ((large - side) // 2 for large in framing)
    assert torch.equal(frame[..., u : u + side, v : v + side, w : w + side], pieces)


@pytest.mark.parametrize(("pieces", "number", "least"), [(4, 24, 2), (4, 4, 4), (9, 31, 7), (27, 100, 23)])
def test_orders_are_permutations_far_apart(pieces: int, number: int, least: int) -> None:
    orders = distant_orders(pieces, number)
    assert orders.shape == (number, pieces)
    assert torch.equal(orders.sort(1).values, torch.arange(pieces).expand(number, pieces))
    assert torch.equal(orders[0], torch.arange(pieces))
    distance = (orders[:, None] != orders).sum(2) + 99 * torch.eye(number, dtype=torch.int64)
    assert distance.min() >= least
    assert torch.equal(orders, distant_orders(pieces, number))


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(GeometryError, match="patch of 8 × 8 × 8 voxels in 2 × 5 × 1 pieces"):
        layout((8, 8, 8), (2, 5, 1), 0.0)
    with pytest.raises(SettingsError, match="there are only 6"):
        distant_orders(3, 7)
