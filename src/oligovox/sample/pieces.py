"""Pieces: a patch cut into a grid of equal pieces, shuffled, and put together again.

A patch is a grid of equal cells; what a grid cannot divide is left over at both borders. A piece is smaller than its cell by a
gap, so that pieces cannot be matched by the voxels along their edges, and may lie anywhere in it (Noroozi and Favaro 2016, arXiv
1603.09246).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from math import factorial, prod

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from oligovox.errors import GeometryError, SettingsError

Triple = tuple[int, int, int]
_CANDIDATES = 10_000  # orders to choose from where there are too many to look at all of them


@dataclass(frozen=True)
class Layout:
    """Where the pieces of a patch lie; pieces are counted along x, y, z, the last fastest.

    Attributes:
        sides: of the patch, in voxels.
        grid: pieces along each axis.
        cell: sides of a cell.
        piece: sides of a piece, a gap less than its cell.
    """

    sides: Triple
    grid: Triple
    cell: Triple
    piece: Triple

    @property
    def count(self) -> int:
        """Pieces in a patch."""
        return prod(self.grid)

    @property
    def gap(self) -> Triple:
        """Voxels between two pieces along each axis."""
        x, y, z = (cell - piece for cell, piece in zip(self.cell, self.piece, strict=True))
        return x, y, z

    @property
    def cells(self) -> tuple[slice, slice, slice]:
        """The part of the patch that is covered by cells, in its middle."""
        first = ((side - n * cell) // 2 for side, n, cell in zip(self.sides, self.grid, self.cell, strict=True))
        x, y, z = (slice(start, start + n * cell) for start, n, cell in zip(first, self.grid, self.cell, strict=True))
        return x, y, z


def layout(sides: Triple, grid: Triple, gap: float) -> Layout:
    """Lay a grid over a patch.

    Args:
        sides: of the patch, in voxels.
        grid: pieces along each axis.
        gap: voxels between pieces as a share of the side of a cell, in [0, 0.5], rounded; along an axis with one piece there are none.

    Raises:
        GeometryError: a cell would have a side of less than 2 voxels.
    """
    x, y, z = (side // n for side, n in zip(sides, grid, strict=True))
    if min(x, y, z) < 2:
        raise GeometryError(
            f"patch of {_by(sides)} voxels in {_by(grid)} pieces: a piece needs at least 2 voxels along each axis; "
            "take a larger patch or fewer pieces"
        )
    u, v, w = (cell - round(gap * cell) if n > 1 else cell for cell, n in zip((x, y, z), grid, strict=True))
    return Layout(sides, grid, (x, y, z), (u, v, w))


def jitter(where: Layout, samples: int, rng: torch.Generator) -> Int[Tensor, "b n 3"]:
    """Where each piece begins in its cell: uniform over the gap."""
    draw = torch.rand((samples, where.count, 3), generator=rng, device=rng.device)
    places = torch.tensor(where.gap, device=rng.device) + 1
    return (draw * places).long().minimum(places - 1)


def cut(
    values: Shaped[Tensor, "b c x y z"], where: Layout, starts: Int[Tensor, "b n 3"]
) -> Shaped[Tensor, "b n c u v w"]:
    """The pieces of each sample.

    Args:
        values: any type.
        where: a layout of a patch of these sides.
        starts: first voxel of each piece in its cell, from 0 to the gap.
    """
    x, y, z = where.cells
    (g, h, k), (p, q, r) = where.grid, where.cell
    b, c = values.shape[:2]
    pieces = values[:, :, x, y, z].reshape(b, c, g, p, h, q, k, r)
    pieces = pieces.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, where.count, c, p, q, r)
    for axis, side in enumerate(where.piece):
        along = torch.arange(side, device=values.device).view([side if other == axis else 1 for other in range(3)])
        pieces = pieces.take_along_dim(starts[:, :, None, axis, None, None, None] + along, 3 + axis)
    return pieces


def join(pieces: Shaped[Tensor, "b n c u v w"], where: Layout) -> Shaped[Tensor, "b c x y z"]:
    """A patch of these pieces, each in the middle of its cell; 0 between them and in what is left over."""
    b, _, c = pieces.shape[:3]
    cells = pieces.new_zeros(b, where.count, c, *where.cell)
    u, v, w = (slice(gap // 2, gap // 2 + side) for gap, side in zip(where.gap, where.piece, strict=True))
    cells[..., u, v, w] = pieces
    whole = pieces.new_zeros(b, c, *where.sides)
    x, y, z = where.cells
    (g, h, k), (p, q, r) = where.grid, where.cell
    covered = cells.reshape(b, g, h, k, c, p, q, r).permute(0, 4, 1, 5, 2, 6, 3, 7)
    whole[:, :, x, y, z] = covered.reshape(b, c, g * p, h * q, k * r)
    return whole


def reorder(pieces: Shaped[Tensor, "b n *rest"], order: Int[Tensor, "b n"]) -> Shaped[Tensor, "b n *rest"]:
    """Put piece `order[i]` of each sample in place i."""
    rows = torch.arange(len(order), device=order.device)[:, None]
    return pieces[rows, order]


def framed(pieces: Shaped[Tensor, "b n c u v w"], multiple: int) -> Shaped[Tensor, "b n c p q r"]:
    """Each piece amid zeros on a grid that an encoder takes: sides are the next multiples, and one of them is two multiples at
    least, so that an instance norm at the deepest stride has more than one voxel.
    """
    sides = pieces.shape[3:]
    larger = [multiple * -(-side // multiple) for side in sides]
    if max(larger) == multiple:
        larger[0] = 2 * multiple
    frame = pieces.new_zeros(*pieces.shape[:3], *larger)
    u, v, w = (
        slice((large - side) // 2, (large - side) // 2 + side) for large, side in zip(larger, sides, strict=True)
    )
    frame[..., u, v, w] = pieces
    return frame


def distant_orders(pieces: int, number: int) -> Int[Tensor, "number pieces"]:
    """Orders that differ in as many places as possible, the identity first; always the same ones.

    Each is the candidate whose least Hamming distance to those before is largest. All orders are candidates up to 7 pieces, a
    random 10 000 of them beyond.

    Raises:
        SettingsError: there are not as many.
    """
    if number > factorial(pieces):
        raise SettingsError(f"{number} orders of {pieces} pieces: there are only {factorial(pieces)}; ask for fewer")
    if pieces <= 7:
        candidates = np.array(list(permutations(range(pieces))), dtype=np.uint8)
    else:
        rng = np.random.default_rng(0)
        candidates = rng.permuted(np.tile(np.arange(pieces, dtype=np.uint8), (_CANDIDATES, 1)), axis=1)
    chosen = [np.arange(pieces, dtype=np.uint8)]
    distance = np.full(len(candidates), pieces + 1)
    while len(chosen) < number:
        distance = np.minimum(distance, (candidates != chosen[-1]).sum(1))
        chosen.append(candidates[distance.argmax()])
    return torch.from_numpy(np.stack(chosen).astype(np.int64))


def _by(sides: Triple) -> str:
    return " × ".join(str(side) for side in sides)
