"""What healthy people have that is bright on FLAIR and is no lesion, as tubes around lines in the average brain: limbic lobe and choroid plexus.

The grey matter of the limbic lobe is brighter than other cortex on FLAIR (Hirai et al. 2000, AJNR 21, fast FLAIR of the limbic lobe; from
memory, not re-read). The choroid plexus hangs in the lateral ventricles, thickest in the atrium, and takes up contrast agent. The lines were
placed by eye on the ICBM152 2009a average.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from oligovox.simulate.fields import Volume, smoothstep

Tube: TypeAlias = tuple[float, float, tuple[tuple[float, float, float], ...]]
"""Strength, radius in mm, and points on the right side (x, y, z) in RAS mm of template space; the left side is the mirror image."""

LIMBIC: Sequence[Tube] = (
    (1.0, 7.0, ((22, -3, -20), (23, -7, -19))),  # amygdala
    (1.0, 5.5, ((23, -10, -20), (27, -17, -17), (29, -24, -12), (27, -32, -6), (22, -38, 1))),  # hippocampus
    (0.5, 6.0, ((22, -10, -29), (24, -22, -23), (24, -34, -13), (17, -43, -4))),  # parahippocampal gyrus
    (
        0.5,
        8.0,
        ((5, 22, -8), (6, 36, 5), (6, 32, 22), (6, 15, 34), (6, -8, 40), (6, -28, 40), (6, -44, 28), (9, -48, 10)),
    ),  # cingulate gyrus
    (0.5, 7.0, ((35, 18, -6), (37, 8, 4), (39, -4, 6), (39, -12, 2), (40, -6, -8), (37, 8, -10))),  # insula
)
"""0.5 in limbic cortex, 1 in hippocampus and amygdala."""

THICK = 0.75
"""Above it lies grey matter that is no ribbon: hippocampus and amygdala."""

PLEXUS: Sequence[Tube] = (
    (1.0, 4.5, ((23, -38, 8), (26, -43, 6), (27, -42, 0))),  # glomus, in the atrium
    (1.0, 2.5, ((27, -42, 0), (32, -32, -8), (32, -22, -14))),  # temporal horn
    (1.0, 2.0, ((23, -38, 8), (17, -28, 16), (10, -14, 17), (5, -2, 14))),  # body
)
"""The choroid plexus of the lateral ventricles; it is where these are fluid."""


def draw_tubes(tubes: Sequence[Tube], x: Volume, y: Volume, z: Volume, soft: float) -> Volume:
    """The strength of the strongest tube at each place, 0 outside.

    Args:
        tubes: which.
        x, y, z: RAS mm of template space along each axis, ready to broadcast.
        soft: mm over which a tube ends, on either side of its border.
    """
    result = np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape), dtype=np.float32)
    axes = (np.abs(x), y, z)
    for strength, radius, points in tubes:
        ends = np.array(points, dtype=np.float32)
        reach = radius + soft
        near = [
            np.flatnonzero((a >= ends[:, k].min() - reach) & (a <= ends[:, k].max() + reach))
            for k, a in enumerate(axes)
        ]
        local = [np.take(a, at, axis=k) for k, (a, at) in enumerate(zip(axes, near, strict=True))]
        squares = np.min([_squares(local, p, q) for p, q in pairwise(ends)], axis=0)
        tube = np.float32(strength) * (1 - smoothstep(np.sqrt(squares), radius - soft, radius + soft))
        result[np.ix_(*near)] = np.maximum(result[np.ix_(*near)], tube)
    return result


def _squares(at: Sequence[Volume], p: Volume, q: Volume) -> Volume:
    """Squared distance of each place to the line from p to q, mm²."""
    along = q - p
    t = sum((a - s) * d for a, s, d in zip(at, p, along, strict=True)) / np.float32(along @ along)
    t = np.clip(t, 0, 1)
    return np.asarray(sum((a - s - t * d) ** 2 for a, s, d in zip(at, p, along, strict=True)))
