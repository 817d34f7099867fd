"""Where the brain is, near enough to look at its tissue: a stripped one without its rim, an ellipsoid under the top of a head."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.doctor.seen import Seen
from oligovox.doctor.stripped import Covering
from oligovox.prepare.geometry import spacing_of

LEAST = 2000
"""Voxels of brain, of the small copy: with fewer nothing is said about tissue."""

INNER_MM = (50.0, 62.0, 42.0)
"""Half axes of an ellipsoid that lies in any adult's brain, mm along x, y, z."""

_RIM_MM = 6.0  # left out along the border of a stripped brain
_CROWN_CM2 = 120.0  # of the uppermost slice of a head; a larger one is a cut 2 cm or more below its top
_SHOWN_CM2 = 10.0  # a slice with less is not counted as head
_BELOW_VERTEX_MM = 65.0  # the middle of the brain under the top of the head


def brain_region(seen: Seen, covering: Covering) -> NDArray[np.bool_]:
    """Voxels of the small copy that are brain: a stripped one without its rim, an ellipsoid under the top of a head, none where that is cut off."""
    foreground, spacing = seen.coarse_foreground, np.array(spacing_of(seen.coarse.affine))
    if covering == "stripped":
        inward = ndimage.distance_transform_edt(np.pad(foreground, 1), spacing)[1:-1, 1:-1, 1:-1]
        return np.asarray(inward > _RIM_MM)
    inner = inside_head(seen)
    return np.zeros_like(foreground) if inner is None else np.asarray(foreground & inner)


def inside_head(seen: Seen) -> NDArray[np.bool_] | None:
    """The ellipsoid in the small copy of a head, whatever is in it, be it too dark to count as foreground; None where the top is cut off."""
    foreground, spacing = seen.coarse_foreground, np.array(spacing_of(seen.coarse.affine))
    area = foreground.sum(axis=(0, 1)) * spacing[0] * spacing[1] / 100
    tall = np.flatnonzero(area > _SHOWN_CM2)
    if not tall.size or area[tall[-1]] > _CROWN_CM2:
        return None
    middle = tall[-1] - _BELOW_VERTEX_MM / spacing[2]
    slab = slice(max(0, int(middle - 15 / spacing[2])), max(1, int(middle + 25 / spacing[2])))
    around = np.asarray(foreground[:, :, slab].any(axis=2))
    at = [(np.flatnonzero(around.any(axis=1 - axis))[[0, -1]]).mean() if around.any() else 0.0 for axis in (0, 1)]
    return ellipsoid(foreground.shape, (*at, middle), INNER_MM, spacing)


def ellipsoid(
    shape: tuple[int, ...], centre: tuple[float, ...], half_mm: tuple[float, ...], spacing: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Voxels of a grid within an ellipsoid.

    Args:
        shape: of the grid.
        centre: in voxels.
        half_mm: half axes, mm.
        spacing: voxel size, mm.
    """
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    return np.asarray(
        sum(((g - c) * s / h) ** 2 for g, c, s, h in zip(grid, centre, spacing, half_mm, strict=True)) < 1
    )
