"""What is in each voxel: a list of parts, each one tissue and the fraction of the voxel it takes. Signals are mixed from it.

Anatomy makes the first parts; pathology is painted over them. A voxel that several tissues share gives the sum of their signals, which is
where partial volume comes from; what no part takes is air.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.simulate.fields import Volume
from oligovox.simulate.physics.tissues import Tissue, TissueName, between

Palette: TypeAlias = Mapping[TissueName, Tissue]
"""What each tissue of one person is like at one field strength."""

_KNOTS = np.linspace(0, 1, 9)  # places between two tissues at which a signal is computed; in between it is interpolated


@dataclass(frozen=True)
class Part:
    """One tissue and how much of each voxel it takes.

    Attributes:
        tissue: which.
        fraction: (x, y, z) part of each voxel, 0 to 1.
        towards: a second tissue, where the part is not the same everywhere.
        position: (x, y, z) 0 where it is `tissue`, 1 where it is `towards`, in between where it is between; with `towards` only.
    """

    tissue: TissueName
    fraction: Volume
    towards: TissueName | None = None
    position: Volume | None = None


Parts: TypeAlias = tuple[Part, ...]


def paint(parts: Parts, new: Part, *, sparing: Collection[TissueName] = ()) -> Parts:
    """Add a part; it takes its room from the others in proportion to what they have, but from none of the spared tissues.

    Where there is less room than the new part asks for it gets what there is, so that fractions never sum to more than before.
    """
    found = ndimage.find_objects((new.fraction > 0).astype(np.int8))
    if not found:
        return parts
    box = found[0]
    givers = [part for part in parts if part.tissue not in sparing]
    room = np.sum([part.fraction[box] for part in givers], axis=0, dtype=np.float32)
    taken = np.minimum(new.fraction[box], room)
    left = 1 - taken / np.maximum(room, np.float32(1e-6))

    def cut(part: Part) -> Part:
        if not part.fraction[box].any():
            return part
        fraction = part.fraction.copy()
        fraction[box] *= left
        return replace(part, fraction=fraction)

    fraction = np.zeros_like(new.fraction)
    fraction[box] = taken
    return (*(part if part.tissue in sparing else cut(part) for part in parts), replace(new, fraction=fraction))


def mix(parts: Parts, palette: Palette, of: Callable[[Tissue], NDArray[Any]]) -> NDArray[Any]:
    """Sum over parts of fraction times `of(tissue)`: (x, y, z), float32, or complex64 where `of` is complex.

    Args:
        parts: what is in each voxel.
        palette: the tissues.
        of: a quantity of a tissue whose values may be arrays of one shape, such as its signal in a sequence or its susceptibility.
    """
    total: NDArray[Any] = np.zeros(parts[0].fraction.shape, _single(of(palette[parts[0].tissue])))
    for part in parts:
        first = palette[part.tissue]
        if part.towards is None or part.position is None:
            value = of(first)
            total += part.fraction * _single(value).type(value)
            continue
        line = of(between(first, palette[part.towards], _KNOTS))
        where = np.nonzero(part.fraction)
        total[where] += part.fraction[where] * np.interp(part.position[where], _KNOTS, line)
    return total


def _single(value: NDArray[Any]) -> np.dtype[Any]:
    return np.dtype(np.complex64 if np.iscomplexobj(value) else np.float32)
