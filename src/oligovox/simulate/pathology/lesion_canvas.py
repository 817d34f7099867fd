"""Drawing lesions: what one lesion is, and the volumes they are drawn on one after another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from scipy import ndimage

from oligovox.simulate.anatomy.brain import Anatomy
from oligovox.simulate.anatomy.veins import Vein
from oligovox.simulate.fields import Volume, smoothstep
from oligovox.simulate.pathology.lesion_shapes import NEIGHBOURS, Box, Mask, Place, Shape, bounds, cut

Enhancement: TypeAlias = Literal["nodule", "ring", "open ring"]

SPECK = 3.0
"""mm³; experts mark nothing smaller."""

_ROOM = 0.45  # most of a voxel that a lesion takes beyond its border: not labelled
_HALO = 3.5  # mm; how far the faint surroundings reach
_CORE, _HOLE = 0.15, 0.3  # by how much the middle is more severe than the border, in a black hole


@dataclass(frozen=True)
class Lesion:
    """One lesion as it is drawn.

    Attributes:
        shape: how deep each voxel lies in it, up to a constant.
        count: voxels it is to have; it gets fewer where there is no room.
        place: where it was meant to lie.
        severity: mean, 0 mild to 1 severe.
        patchy: standard deviation of severity within it.
        black_hole: very severe in the middle.
        on_vein: a vein passes through its middle.
        own_vein: that vein, where it is none of the anatomy's.
        edge: width of its border, mm.
        halo: fraction of lesion in its faint surroundings, 0 = none.
        joined: it may touch other lesions.
        voxels: how many it has; known once it is drawn.
        level: depth at its border; known once it is drawn.
    """

    shape: Shape
    count: int
    place: Place
    severity: float
    patchy: float
    black_hole: bool
    on_vein: bool
    own_vein: Vein | None
    edge: float
    halo: float
    joined: bool = False
    voxels: int = 0
    level: float = 0.0


class Canvas:
    """The lesions of one person at one visit.

    Attributes:
        fraction, severity, enhancing: (x, y, z), see `lesions.Lesions`.
        owner: (x, y, z) which of `lesions` a labelled voxel belongs to, from 1; 0 = none.
        lesions: in the order they were drawn in.
    """

    def __init__(self, anatomy: Anatomy, allowed: Volume, patches: Volume) -> None:
        self._anatomy, self._allowed, self._patches = anatomy, allowed, patches
        self.fraction, self.severity, self.enhancing = (np.zeros_like(allowed) for _ in range(3))
        self.owner = np.zeros(allowed.shape, dtype=np.int32)
        self.lesions: list[Lesion] = []
        self._free = allowed > 0.5

    def stamp(self, lesion: Lesion, *, crowded: float = 1.0, over: Mask | None = None) -> bool:
        """Draw a lesion apart from those that are there; not where it would be a speck, or squeezed between them.

        Args:
            lesion: what to draw.
            crowded: part of its surroundings that may belong to other lesions.
            over: (x, y, z) of its box; where it was before. One that others have pushed off there is not drawn.
        """
        spacing, wide = self._anatomy.spacing, lesion.shape.box
        free = (self._allowed[wide] > 0.5) & (self.owner[wide] == 0) if lesion.joined else self._free[wide]
        level, piece = cut(lesion.shape, free, lesion.count)
        if np.count_nonzero(piece) * spacing**3 < SPECK or not (
            lesion.joined or self._crowding(wide, piece) <= crowded
        ):
            return False
        if over is not None and not (piece & over).any():
            return False
        half = max(lesion.edge, spacing) / 2
        steps = int(np.ceil((max(half, _HALO) if lesion.halo else half) / spacing)) + 1
        inner = bounds(piece, steps)
        box, piece = _within(wide, inner), ndimage.binary_fill_holes(piece[inner])
        piece &= free[inner]
        depth = lesion.shape.depth[inner] - np.float32(level)
        drawn = smoothstep(depth, -half, half)
        drawn = np.where(piece, np.maximum(drawn, 0.51), np.minimum(drawn, _ROOM))
        if lesion.halo:
            drawn = np.maximum(drawn, lesion.halo * smoothstep(depth, -_HALO, 0.0))
        drawn = np.minimum(drawn * ndimage.binary_dilation(piece, iterations=steps), self._allowed[box])
        core = smoothstep(depth, 0.0, max(float(depth[piece].max()), 0.1)) - 0.5
        severity = lesion.severity + lesion.patchy * self._patches[box] + (_HOLE if lesion.black_hole else _CORE) * core
        wins = drawn > self.fraction[box]
        self.severity[box][wins] = severity.clip(0, 1)[wins]
        self.fraction[box][wins] = drawn[wins]
        self.lesions.append(replace(lesion, voxels=int(np.count_nonzero(piece)), level=level))
        self.owner[box][piece] = len(self.lesions)
        self._free[box] &= ~ndimage.binary_dilation(piece, NEIGHBOURS)
        return True

    def _crowding(self, box: Box, piece: Mask) -> float:
        """Part of the voxels around a piece that other lesions keep free."""
        inner = bounds(piece, 1)
        around = ndimage.binary_dilation(piece[inner], NEIGHBOURS) & ~piece[inner]
        box = _within(box, inner)
        others = around & ~self._free[box] & (self._allowed[box] > 0.5)
        return float(others.sum()) / max(int(around.sum()), 1)

    def enhance(self, number: int, kind: Enhancement, rim: float) -> None:
        """Let a lesion (from 1) take up contrast agent: all of a nodule, the outer `rim` mm of a ring, which opens towards the cortex."""
        lesion = self.lesions[number - 1]
        box, soft = lesion.shape.box, max(0.4, self._anatomy.spacing / 2)
        depth = lesion.shape.depth - np.float32(lesion.level)
        own = self.owner[box] == number
        part = smoothstep(depth, -soft, soft)
        if kind != "nodule":
            part *= 1 - smoothstep(depth, rim - soft, rim + soft)
        if kind == "open ring":
            distance = self._anatomy.to_cortex[box]
            low, high = np.percentile(distance[own], (25, 50))
            part *= smoothstep(distance, float(low), max(float(high), float(low) + 0.1))
        part *= ndimage.binary_dilation(own, NEIGHBOURS)
        self.enhancing[box] = np.maximum(self.enhancing[box], part * self.fraction[box])


def _within(box: Box, inner: Box) -> Box:
    """A box of a box, in the coordinates of the volume."""
    x, y, z = (slice(outer.start + part.start, outer.start + part.stop) for outer, part in zip(box, inner, strict=True))
    return x, y, z
