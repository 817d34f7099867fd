"""Bodies put together from simple solids: ellipsoids, bent tubes and stacks of ellipses, each a level in mm, negative inside.

A canvas is laid from the inside out or from the small to the large: what is laid first stays, and what comes later gets the room that is
left in each voxel. So a kidney is laid before the fat around it, and the fat needs no hole cut for the kidney.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import make_interp_spline

from oligovox.simulate.fields import Volume
from oligovox.simulate.physics.scene import Part, Parts
from oligovox.simulate.physics.tissues import TissueName

Box: TypeAlias = tuple[slice, slice, slice]
Knots: TypeAlias = Sequence[tuple[float, float, float, float]]
"""Points on a tube's middle line: x, y, z and the radius there, mm."""

Content: TypeAlias = TissueName | Mapping[TissueName, float | Volume]
"""One tissue, or several and their shares of what they fill together; shares may differ from voxel to voxel of the solid's box."""

_BORDER = 2  # voxels around a solid that its box includes


class Solid(NamedTuple):
    """A shape on a part of the grid.

    Attributes:
        box: the part of the grid; nothing of the solid lies outside. Empty where the solid misses the grid.
        level: (x, y, z) of the box; about the distance to the surface in mm, negative inside.
    """

    box: Box
    level: Volume


@dataclass(frozen=True)
class Frame:
    """Where each voxel of a grid is, in the coordinates that solids are given in (mm; x right, y front, z up).

    Attributes:
        axes: (nx,), (ny,) and (nz,), increasing; coordinates of the voxels before the shift.
        shift: (3, x, y, z) added to them, so that every solid is deformed alike; None: nothing.
    """

    axes: tuple[Volume, Volume, Volume]
    shift: Volume | None = None

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (x, y, z)."""
        x, y, z = self.axes
        return len(x), len(y), len(z)

    @cached_property
    def voxel(self) -> tuple[float, float, float]:
        """Size of a voxel, mm."""
        x, y, z = (float(axis[-1] - axis[0]) / (len(axis) - 1) for axis in self.axes)
        return x, y, z

    @cached_property
    def _reach(self) -> tuple[float, float, float]:
        """The furthest that a voxel is shifted along each axis, mm."""
        if self.shift is None:
            return 0.0, 0.0, 0.0
        x, y, z = (float(np.abs(s).max()) for s in self.shift)
        return x, y, z

    @property
    def whole(self) -> Box:
        """The box that is the grid."""
        return (slice(0, len(self.axes[0])), slice(0, len(self.axes[1])), slice(0, len(self.axes[2])))

    def box(self, low: ArrayLike, high: ArrayLike) -> Box:
        """The voxels whose coordinates may lie between two corners, and a border of two; empty where there is none."""
        low, high = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
        slices = []
        for axis, size, pad, a, b in zip(self.axes, self.voxel, self._reach, low, high, strict=True):
            first, last = np.searchsorted(axis, [a - pad - _BORDER * size, b + pad + _BORDER * size])
            slices.append(slice(int(first), int(last)) if last - first > _BORDER else slice(0, 0))
        x, y, z = slices
        return x, y, z

    def at(self, box: Box) -> tuple[Volume, Volume, Volume]:
        """Coordinates x, y and z of the voxels of a box, ready to broadcast."""
        x, y, z = (
            axis[s].reshape([-1 if a == b else 1 for b in range(3)])
            for a, (axis, s) in enumerate(zip(self.axes, box, strict=True))
        )
        if self.shift is None:
            return x, y, z
        dx, dy, dz = (s[box] for s in self.shift)
        return x + dx, y + dy, z + dz

    def cover(self, level: Volume) -> Volume:
        """The fraction of each voxel that lies inside: a level surface cuts a voxel about as a plane does.

        Along its normal a plane crosses a voxel over the sum of the level's changes along the three axes: a thick slice is
        soft where the surface is slanted and sharp where it is upright, as partial volume is.
        """
        least, most = min(self.voxel), max(self.voxel)
        width: float | Volume = (least + most) / 2
        if most > 1.3 * least:
            steps = np.abs(np.gradient(level, axis=0))
            for axis in (1, 2):
                steps += np.abs(np.gradient(level, axis=axis))
            width = np.maximum(steps, least)
        return np.asarray(np.clip(np.float32(0.5) - level / width, 0, 1), dtype=np.float32)


@dataclass
class Canvas:
    """Tissues laid into the room that is left.

    Attributes:
        frame: the grid.
        room: (x, y, z) fraction of each voxel that is still free; changed by `lay`.
        tissues: tissue → fraction laid so far, (x, y, z).
    """

    frame: Frame
    room: Volume
    tissues: dict[TissueName, Volume] = field(default_factory=dict)

    def lay(self, solid: Solid, content: Content) -> Solid:
        """Fill a solid as far as there is room; air takes room and leaves nothing.

        Returns:
            the fraction taken (not a level) in each voxel of the solid's box.
        """
        if solid.level.size == 0:
            return solid
        return self.pour(solid.box, self.frame.cover(solid.level), content)

    def lay_lined(self, solid: Solid, core: Content, thick: float, wall: Content) -> None:
        """A core and around it `thick` mm of wall: marrow in bone, air in mucosa. The solid is both."""
        self.lay(Solid(solid.box, solid.level + np.float32(thick)), core)
        self.lay(solid, wall)

    def pour(self, box: Box, fraction: Volume, content: Content) -> Solid:
        """The same, with the fraction of each voxel of a box given."""
        room = self.room[box]
        taken = np.asarray(fraction * room, dtype=np.float32)
        room -= taken
        shares = content if isinstance(content, Mapping) else {content: 1.0}
        for tissue, share in shares.items():
            if tissue == "air":
                continue
            if tissue not in self.tissues:
                self.tissues[tissue] = np.zeros(self.frame.shape, dtype=np.float32)
            self.tissues[tissue][box] += taken if isinstance(share, float) and share == 1 else taken * share
        return Solid(box, taken)

    def parts(self) -> Parts:
        """What was laid, one part a tissue; what is left over is air."""
        return tuple(Part(tissue, fraction) for tissue, fraction in self.tissues.items())


def ellipsoid(
    frame: Frame,
    centre: ArrayLike,
    radii: ArrayLike,
    turn: NDArray[np.float64] | None = None,
    *,
    around: float = 0.0,
) -> Solid:
    """An ellipsoid; `turn` is a rotation (3, 3) from its own axes to those of the frame. The box reaches `around` mm further."""
    centre, radii = np.asarray(centre, dtype=np.float32), np.asarray(radii, dtype=np.float32)
    reach = radii if turn is None else np.sqrt((np.asarray(turn) ** 2) @ radii.astype(float) ** 2)
    box = frame.box(centre - reach - around, centre + reach + around)
    p = [a - c for a, c in zip(frame.at(box), centre, strict=True)]
    if turn is not None:
        m = np.asarray(turn, dtype=np.float32)
        p = [m[0, k] * p[0] + m[1, k] * p[1] + m[2, k] * p[2] for k in range(3)]
    q = [a / r for a, r in zip(p, radii, strict=True)]
    least = np.float32(
        1e-3
    )  # at the middle both are 0 and their quotient is not known: it is taken to be the smallest radius
    inner = np.maximum(np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2), least)
    slope = np.sqrt((q[0] / radii[0]) ** 2 + (q[1] / radii[1]) ** 2 + (q[2] / radii[2]) ** 2)
    return Solid(box, np.asarray((inner - 1) * inner / np.maximum(slope, least / radii.min()), dtype=np.float32))


def tube(frame: Frame, knots: ArrayLike, *, around: float = 0.0) -> Solid:
    """A bent tube through `knots` (n ≥ 2, 4): x, y, z and radius in mm, a cubic spline between them.

    `around` mm outside the tube the level is still right, for a wall that is laid later.
    """
    path = _path(np.asarray(knots, dtype=np.float64))
    middle, radius = path[:, :3], path[:, 3]
    margin = around + _BORDER * max(frame.voxel)
    box = frame.box((middle - radius[:, None]).min(0) - around, (middle + radius[:, None]).max(0) + around)
    level = np.full([s.stop - s.start for s in box], margin, dtype=np.float32)
    for a, b in itertools.pairwise(path):
        wide = max(a[3], b[3]) + around
        part = _within(frame.box(np.minimum(a, b)[:3] - wide, np.maximum(a, b)[:3] + wide), box)
        local = tuple(slice(p.start - s.start, p.stop - s.start) for p, s in zip(part, box, strict=True))
        level[local] = np.minimum(level[local], _capsule(frame.at(part), a, b))
    return Solid(box, level)


def stack(
    frame: Frame,
    heights: Sequence[float],
    middle: tuple[Sequence[float], Sequence[float]],
    half: tuple[Sequence[float], Sequence[float]],
    power: float = 2.0,
    *,
    around: float = 0.0,
) -> Solid:
    """Ellipses on top of each other, from the lowest height to the highest.

    Args:
        frame: the grid.
        heights: z of n ellipses, increasing, mm.
        middle: x and y of their middles, n each, mm.
        half: half their widths along x and y, n each, mm.
        power: 2 for ellipses, more for boxier outlines.
        around: how much further the box reaches, mm.
    """
    (cx, cy), (hx, hy) = middle, half
    box = frame.box(
        np.array([min(np.subtract(cx, hx)), min(np.subtract(cy, hy)), heights[0]]) - around,
        np.array([max(np.add(cx, hx)), max(np.add(cy, hy)), heights[-1]]) + around,
    )
    x, y, z = frame.at(box)
    mx, my, wx, wy = (np.interp(z, heights, values).astype(np.float32) for values in (cx, cy, hx, hy))
    x, y = np.abs(x - mx), np.abs(y - my)
    if power == 2:
        outline = np.sqrt((x / wx) ** 2 + (y / wy) ** 2)
    else:
        outline = ((x / wx) ** power + (y / wy) ** power) ** np.float32(1 / power)
    outline = np.maximum(outline, np.float32(1e-3))
    level = np.sqrt(x**2 + y**2) * (1 - 1 / outline)  # along the ray from the middle
    return Solid(box, np.maximum(level, np.maximum(heights[0] - z, z - heights[-1])).astype(np.float32))


def blend(one: Volume, other: Volume, over: float) -> Volume:
    """The union of two levels with the crease between them filled over about `over` mm."""
    near = np.maximum(over - np.abs(one - other), 0)
    return np.asarray(np.minimum(one, other) - near * near / (4 * over), dtype=np.float32)


def rotation(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> NDArray[np.float64]:
    """Rotation (3, 3) by degrees about x, then y, then z."""
    result = np.eye(3)
    for axis, degrees in enumerate((x, y, z)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[[a, a, b, b], [a, b, a, b]] = c, -s, s, c
        result = turn @ result
    return result


def _path(knots: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points on a spline through the knots, about half a radius (at least 2 mm) apart."""
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(knots[:, :3], axis=0), axis=1))])
    spline = make_interp_spline(along, knots, k=min(3, len(knots) - 1))
    step = max(2.0, float(knots[:, 3].mean()) / 2)
    path = np.asarray(spline(np.linspace(0, along[-1], max(2, round(along[-1] / step)))))
    path[:, 3] = path[:, 3].clip(knots[:, 3].min(), knots[:, 3].max())
    return path


def _capsule(at: tuple[Volume, Volume, Volume], a: NDArray[np.float64], b: NDArray[np.float64]) -> Volume:
    """Level of a straight piece of tube from a to b (x, y, z, radius each) with round ends."""
    way = (b - a).astype(np.float32)
    p = [x - np.float32(c) for x, c in zip(at, a[:3], strict=True)]
    square = max(float(way[:3] @ way[:3]), 1e-6)
    t = np.clip((p[0] * way[0] + p[1] * way[1] + p[2] * way[2]) / np.float32(square), 0, 1)
    q = [x - t * w for x, w in zip(p, way[:3], strict=True)]
    return np.asarray(np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2) - (np.float32(a[3]) + t * way[3]))


def _within(inner: Box, outer: Box) -> Box:
    x, y, z = (
        slice(min(max(i.start, o.start), o.stop), max(min(i.stop, o.stop), min(max(i.start, o.start), o.stop)))
        for i, o in zip(inner, outer, strict=True)
    )
    return x, y, z
