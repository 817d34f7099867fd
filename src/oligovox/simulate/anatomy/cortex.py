"""Gyri and sulci that no average brain shows: each person's own folds, and the cortex as a ribbon of one thickness.

An average of many people keeps the sulci all people have in one place and blurs the rest into thick grey matter. Here sheets of CSF are let
into it, perpendicular to the surface, and whatever lies deeper below a surface than the cortex is thick becomes white matter: the blades
of the gyri.

A sheet is where a random field is 0; the field is read at the nearest point of the surface, so that it is the same all along a normal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.simulate.fields import Volume, smooth_field

_GYRUS = 8.0  # mm, of the field whose zeros are sulci; these are then about twice as far apart
_REACH = (3.0, 12.0)  # how deep new sulci are, mm
_WANDER = 20.0  # over how many mm depth varies
_FLAT = 0.05  # least slope of the field, per mm; below it there is no sheet but the top of a gyrus
_FAR = 30.0  # mm


class Folds(NamedTuple):
    """Distances in mm, (x, y, z), at most 30.

    Attributes:
        sulcus: to the nearest new sulcus.
        surface: to the nearest surface, new sulcus or old.
    """

    sulcus: Volume
    surface: Volume


def draw_folds(rng: np.random.Generator, outside: NDArray[np.bool_], spacing: float) -> Folds:
    """New sulci.

    Args:
        rng: the only source of chance.
        outside: (x, y, z) what is not brain tissue: fluid and all that lies beyond.
        spacing: voxel size, mm.
    """
    shape = outside.shape
    field = smooth_field(rng, shape, spacing, _GYRUS)
    reach = np.float32(_REACH[0]) + np.float32(_REACH[1] - _REACH[0]) * (
        0.5 + 0.4 * smooth_field(rng, shape, spacing, _WANDER)
    ).clip(0, 1)
    depth, nearest = ndimage.distance_transform_edt(~outside, return_indices=True)
    depth = np.asarray((depth - 0.5) * spacing, dtype=np.float32).clip(0)  # from the border, not from a voxel's centre
    field = ndimage.gaussian_filter(field[tuple(nearest)], 1.0 / spacing)
    slope = np.sqrt(sum(np.gradient(field, axis=a) ** 2 for a in range(3))) / np.float32(spacing)
    across = np.abs(field) / np.maximum(slope, np.float32(_FLAT))
    sulcus = np.hypot(across, np.maximum(depth - reach, 0)).clip(0, _FAR).astype(np.float32)
    return Folds(sulcus, np.minimum(sulcus, depth))
