"""The deep grey nuclei of the average brain as smooth solids, placed by eye on the ICBM152 2009a T1 average.

Each is a stack of ellipses along one axis; between two of them centre, axes and direction are interpolated. The tables are ours, measured
on the average in steps of 3 to 6 mm. Where they could be checked: the centre of the dentate lies at (±13.8, −55.8, −36.4) mm
(He et al. 2017, Cerebellum 16:951). The tail of the caudate, the amygdala and the subthalamic nucleus are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.simulate.fields import Volume, smoothstep
from oligovox.simulate.physics.tissues import TissueName

NUCLEI: Final[tuple[TissueName, ...]] = (
    "caudate", "pallidum", "putamen", "thalamus", "red_nucleus", "substantia_nigra", "dentate",
)  # fmt: skip
"""Which there are; where two overlap the earlier takes the voxel."""

BOX = ((-42.0, 42.0), (-72.0, 32.0), (-50.0, 30.0))
"""Where they all lie in template space, mm along x, y, z."""


@dataclass(frozen=True)
class _Solid:
    """A stack of ellipses on the right side (x > 0); the left one is its mirror image.

    Attributes:
        along: the axis of the stack, y or z; the ellipses lie in the plane of x and the other one, here v.
        rows: (place along the axis, centre x, centre v, long half axis, short half axis, direction of the long axis x, v), mm.
        bend: how far the middle of the sheet bulges out laterally, mm.
        brightest: of the average T1 within it, where that shows its border; the tables then reach half a millimetre too far.
    """

    along: Literal["y", "z"]
    rows: tuple[tuple[float, ...], ...]
    bend: float = 0.0
    brightest: float = 1.0


_SOLIDS: Mapping[TissueName, _Solid] = {
    "caudate": _Solid(
        "y",
        (
            (27, 16, 2, 2.9, 1.9, 4, 24),
            (24, 15.5, 2, 9.9, 5.4, 5, 24),
            (20, 14.5, 2, 12.9, 7.1, 6, 24),
            (14, 13, 3, 14.9, 6.4, 8, 24),
            (8, 13.5, 10.5, 12.9, 5.1, 8, 20),
            (2, 14.8, 16, 9.4, 4.5, 7, 13),
            (-4, 17, 19.5, 6.7, 3.9, 5, 9),
            (-10, 17.8, 21.5, 5.5, 3.3, 3, 7),
            (-16, 18.7, 22, 4.9, 2.9, 3, 7),
            (-22, 20.2, 21.5, 4.4, 2.6, 3, 7),
            (-28, 22.5, 20, 3.9, 2.4, 3, 7),
            (-34, 26, 17, 3.4, 2.2, 3, 7),
            (-39, 28, 12, 1.9, 1.4, 3, 7),
        ),
        brightest=0.795,
    ),
    "putamen": _Solid(
        "z",
        (
            (-12, 22, 11, 6, 2.8, 12, -20),
            (-8, 22.5, 11, 12, 5.9, 12, -20),
            (-4, 25.2, 5, 16.5, 6.6, 13, -32),
            (0, 27, 1, 19.5, 7.0, 12, -38),
            (4, 27.3, 0, 19, 6.4, 9, -38),
            (8, 27, -2, 18, 5.5, 6, -36),
            (12, 27, -2, 13, 4.2, 6, -30),
            (15.5, 27, -2, 3, 1.2, 6, -30),
        ),
        brightest=0.815,
    ),
    "pallidum": _Solid(
        "z",
        (
            (-9.5, 16, 1, 3, 1.0, 16, -14),
            (-7, 17, 0.5, 10, 4.0, 16, -14),
            (-4, 18.7, 0.0, 12, 5.3, 16, -14),
            (0, 19.5, -2.0, 11.7, 5.1, 13, -15),
            (4, 21, -4, 10.5, 3.9, 10, -17),
            (8, 22.5, -6, 6.5, 2.2, 8, -16),
            (10.5, 23, -7, 1, 0.5, 8, -16),
        ),
    ),
    "thalamus": _Solid(
        "z",
        (
            (-7, 15, -25, 2, 1.5, 12, -20),
            (-4, 14, -24.5, 9, 5.3, 12, -20),
            (0, 13.0, -21.5, 14.5, 9.0, 12, -24),
            (4, 12.8, -19, 17.2, 9.9, 11, -27),
            (8, 12.7, -17.8, 17.5, 10.1, 11, -27),
            (12, 12.4, -17, 16, 9.6, 11, -26),
            (16, 11.0, -16, 12, 7.1, 9, -22),
            (19.3, 9.5, -15, 4, 2.0, 9, -22),
        ),
    ),
    "red_nucleus": _Solid(
        "z",
        (
            (-14.5, 4.8, -20, 0.5, 0.5, 0, -1),
            (-13, 5.0, -20, 3.1, 2.9, 0, -1),
            (-9, 5.5, -20.5, 4.6, 4.2, 0, -1),
            (-5, 5.8, -20.5, 3.1, 2.9, 0, -1),
            (-3.5, 5.8, -20.5, 0.5, 0.5, 0, -1),
        ),
    ),
    "substantia_nigra": _Solid(
        "z",
        (
            (-20, 8.5, -20.5, 2, 0.6, 6, -12),
            (-17.5, 9.0, -19.5, 6.8, 2.4, 6, -12),
            (-14, 10.0, -18, 8.0, 2.7, 6.5, -12),
            (-11, 11.0, -16.4, 7.4, 2.7, 7, -11),
            (-8.5, 12, -15, 5.6, 2.1, 7, -9),
            (-6.5, 12.5, -14, 1, 0.5, 7, -9),
        ),
        bend=1.6,
    ),
    "dentate": _Solid(
        "z",
        (
            (-45, 15, -57, 1, 0.5, 7, 10),
            (-42, 14.8, -57, 7, 2.1, 7, 10),
            (-39, 14.2, -56.5, 9, 2.6, 7, 11),
            (-35, 13.8, -55.5, 9.5, 2.7, 7, 12),
            (-31, 13.6, -54.5, 7.8, 2.3, 7, 12),
            (-27.5, 13.6, -54, 1.5, 0.6, 7, 12),
        ),
        bend=3.0,
    ),
}


def draw_nuclei(t1: Volume, affine: NDArray[np.float64]) -> dict[TissueName, Volume]:
    """The part of each voxel that each nucleus takes, both sides together.

    Args:
        t1: (x, y, z) the average T1 on a 1 mm grid: 0.87 in white matter, 0.66 in grey matter, 0.28 in CSF.
        affine: voxel → RAS mm of that grid.

    Returns:
        One map (x, y, z) a nucleus, 0 to 1; they sum to 1 at most.
    """
    axes = np.ogrid[tuple(slice(0, n) for n in t1.shape)]
    x, y, z = (axes[a] * affine[a, a] + affine[a, 3] for a in range(3))
    tissue = smoothstep(t1, 0.40, 0.54)
    taken = np.zeros_like(t1)
    maps: dict[TissueName, Volume] = {}
    for name in NUCLEI:
        solid = _SOLIDS[name]
        inside = ndimage.gaussian_filter(_fill(solid, np.abs(x), y, z), 0.5) * tissue
        inside *= 1 - smoothstep(t1, solid.brightest - 0.025, solid.brightest + 0.025)
        maps[name] = np.asarray(np.minimum(inside, 1 - taken), dtype=np.float32)
        taken += maps[name]
    return maps


def _fill(solid: _Solid, x: Volume, y: Volume, z: Volume) -> Volume:
    """1 inside the solid, 0 outside, one voxel of 1 mm wide at the border."""
    along, v = (y, z) if solid.along == "y" else (z, y)
    table = np.array(sorted(solid.rows))
    place, columns = table[:, 0], table[:, 1:].T
    u0, v0, du, dv = (np.interp(along, place, columns[i]) for i in (0, 1, 4, 5))
    long, short = (np.sqrt(np.interp(along, place, columns[i] ** 2)) for i in (2, 3))
    length = np.hypot(du, dv)
    p = ((x - u0) * du + (v - v0) * dv) / length
    q = ((x - u0) * np.abs(dv) - (v - v0) * du * np.sign(dv)) / length  # lateral is positive
    q = q - solid.bend * (0.5 - (p / long) ** 2)
    slope = np.sqrt((p / long**2) ** 2 + (q / short**2) ** 2)
    depth = (1 - (p / long) ** 2 - (q / short) ** 2) / np.maximum(2 * slope, 1e-3)  # mm, to first order
    depth = np.where((along > place[0]) & (along < place[-1]), depth, -1.0)
    return np.asarray(np.clip(0.5 + depth, 0, 1), dtype=np.float32)
