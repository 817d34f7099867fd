"""The average brain on the simulation grid, read as level sets: how far each place is from being white matter, or fluid.

Source of the map: the symmetric ICBM152 2009a T1 average that nilearn ships (Fonov et al. 2011, NeuroImage 54:313; Fonov et al. 2009;
Collins et al. 1999). It is read where nilearn keeps it, nothing is copied here. nilearn gives its licence as "unknown" (its
datasets/description/icbm152_2009.rst); to our knowledge the McConnell Brain Imaging Centre, Montreal Neurological Institute, who made
it, permits use, copying, modification and distribution without fee where its copyright notice appears: read the notice at its
source before you pass on data simulated from it.

An average of 152 people is blurred: its grey matter is too thick and its sulci are too shallow. So the brightness of the average is kept
as it is, and each person draws the borders anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import RegularGridInterpolator

from oligovox.errors import ImageError, SettingsError
from oligovox.simulate.anatomy.deformation import COARSE
from oligovox.simulate.anatomy.nuclei import BOX, draw_nuclei
from oligovox.simulate.anatomy.tubes import LIMBIC, PLEXUS, draw_tubes
from oligovox.simulate.fields import Volume, smoothstep
from oligovox.simulate.physics.tissues import TissueName

Margin: TypeAlias = float | tuple[float, float, float, float, float, float]
"""Empty space around the average brain, mm: on all sides, or left, right, back, front, below, above."""

_TIGHT = 8.0  # the brain is computed on a grid that reaches this far around it, mm
_WHITE, _GREY, _FLUID = 0.87, 0.66, 0.28  # medians of the average T1 where its tissue maps are sure (measured)
_WHITE_BELOW = 0.825  # the same in the cerebellum
_WHITE_FROM, _WHITE_BELOW_FROM = (
    0.73,
    0.705,
)  # brightness at the border of white matter, above and below the tentorium; chosen
_FLUID_TO, _FLUID_BELOW_TO = 0.46, 0.57  # the same of CSF
_ENVELOPE = 1.0  # CSF around the brain, mm
_ORIGIN = np.array([-98.0, -134.0, -72.0])  # RAS mm of the first voxel of nilearn's maps, 1 mm grid

_TENT_X = (0, 5, 10, 15, 18, 22, 30, 40, 55)
_TENT = {  # y mm → height of the tentorium and its notch at these |x|, mm; read off the average
    12: (-60,) * 9,
    0: (-40, -40, -40, -45, -58, -60, -60, -60, -60),
    -8: (-18, -16, -14, -20, -50, -60, -60, -60, -60),
    -20: (-9, -9, -9, -10, -38, -55, -60, -60, -60),
    -32: (-5, -5, -6, -15, -21, -24, -31, -37, -42),
    -45: (6, 0, -6, -13, -16, -18, -23, -27, -31),
    -60: (4, -2, -7, -11, -13, -15, -18, -22, -25),
    -75: (-9, -11, -12, -13, -14, -15, -17, -19, -22),
    -90: (-20,) * 9,
    -112: (-20,) * 9,
}
STRAIGHT_SINUS = ((0.0, -48.0, 14.0), (0.0, -85.0, -18.0))
"""Its two ends in template space, mm; the average shows it as a bright line."""


@dataclass(frozen=True)
class Template:
    """The average brain; all maps (x, y, z), float32, on a tight grid around it.

    Attributes:
        white: brightness: 0 at the border of grey and white matter, 1 inside white matter, −1 inside grey matter.
        fluid: the same for CSF: 0 at the border to grey matter, 1 inside CSF, −1 inside grey matter.
        grey: log odds that a place between white matter and CSF may be grey matter; 0 in the cortex, low where none is.
        beneath: distance to white matter, mm: how deep a place lies in the cortex.
        cover: 1 in the brain with its sulci closed, falling to 0 over a thin envelope.
        to_ventricle: distance to the lateral ventricles, mm.
        deep: the region of the basal ganglia and the thalamus, 0 or 1.
        below: 1 below the tentorium, 0 above.
        limbic: 0.5 in limbic cortex, 1 in hippocampus and amygdala, 0 elsewhere.
        plexus: 1 where the choroid plexus of the lateral ventricles may be, 0 elsewhere.
        nuclei: deep nucleus → fraction, in `nuclei_box` only.
        nuclei_box: the voxels that hold all nuclei.
        push: (3, x', y', z'), at most 1 mm, on the coarse grid of `deformation`: where and how strongly larger ventricles move things.
        affine: voxel of these maps → RAS mm.
        spacing: voxel size, mm.
        pad: ((before, after), …) voxels of empty space that a person's maps have around these along x, y, z.
    """

    white: Volume
    fluid: Volume
    grey: Volume
    beneath: Volume
    cover: Volume
    to_ventricle: Volume
    deep: Volume
    below: Volume
    limbic: Volume
    plexus: Volume
    nuclei: Mapping[TissueName, Volume]
    nuclei_box: tuple[slice, ...]
    push: Volume
    affine: NDArray[np.float64]
    spacing: float
    pad: tuple[tuple[int, int], ...]

    def voxel(self, place: NDArray[np.float64]) -> NDArray[np.float64]:
        """RAS mm (n, 3) → voxel coordinates of these maps."""
        return np.asarray((place - self.affine[:3, 3]) / self.spacing)


def template(spacing: float, margin: Margin = _TIGHT) -> Template:
    """The average brain at an isotropic spacing in mm; its maps are made once per process and spacing.

    Args:
        spacing: voxel size, mm.
        margin: empty space around the average brain in the maps of a person, mm; at least 8 on each side. People are about a tenth
            smaller than the average, so they are farther from the border. The same person is drawn whatever the margin.

    Raises:
        SettingsError: nilearn is not installed, or the margin is below 8 mm.
        ImageError: its maps are missing or unreadable.
    """
    sides = (float(margin),) * 6 if isinstance(margin, (int, float)) else tuple(map(float, margin))
    if len(sides) != 6 or min(sides) < _TIGHT:
        raise SettingsError(
            f"margin is {margin}, expected one or six numbers of at least {_TIGHT:g} mm; make it larger"
        )
    more = [round((side - _TIGHT) / spacing) for side in sides]
    return _padded(spacing, ((more[0], more[1]), (more[2], more[3]), (more[4], more[5])))


@cache
def _padded(spacing: float, pad: tuple[tuple[int, int], ...]) -> Template:
    return replace(_tight(spacing), pad=pad)


@cache
def _tight(spacing: float) -> Template:
    t1, affine = _read()
    hull = ndimage.binary_fill_holes(t1 > 0)
    space = _world(t1.shape, affine)
    below = _below(*space)
    white, fluid = _levels(t1, hull, below, space)
    cover = _envelope(hull)
    ventricles = _lateral_ventricles(fluid, cover, space)
    box = _box(affine, 1.0)
    corner = np.eye(4)
    corner[:3, 3] = affine[:3, 3] + [s.start for s in box]
    nuclei = draw_nuclei(t1[box], corner)
    deep = _deep(*space)
    grey = _where_cortex_may_be(_distance(ventricles), deep, below, space)
    beneath = ndimage.gaussian_filter(_distance((white > 0) & hull), 0.6)
    small = _box(affine, spacing)
    maps = {
        "white": white,
        "fluid": fluid,
        "grey": grey,
        "beneath": beneath.clip(0, 12),
        "cover": cover,
        "deep": deep,
        "below": below,
        "limbic": draw_tubes(LIMBIC, *space, soft=2.0),
        "plexus": draw_tubes(PLEXUS, *space, soft=1.5),
    }
    fine = {name: _resample(volume, spacing) for name, volume in maps.items()}
    corner = np.diag([spacing, spacing, spacing, 1.0])
    corner[:3, 3] = affine[:3, 3] + (spacing - 1) / 2
    return Template(
        **fine,
        to_ventricle=_resample(_distance(ventricles), spacing),
        nuclei={
            name: _resample(_back(volume, box, t1.shape), spacing)[small].copy() for name, volume in nuclei.items()
        },
        nuclei_box=small,
        push=_push(ventricles, spacing),
        affine=corner,
        spacing=spacing,
        pad=((0, 0), (0, 0), (0, 0)),
    )


def _read() -> tuple[Volume, NDArray[np.float64]]:
    """The average T1 in a tight box, 0 outside the brain, and its affine."""
    spec = find_spec("nilearn")  # finds the folder without importing nilearn, which takes seconds
    if spec is None or spec.origin is None:
        raise SettingsError("simulating needs the brain maps that come with nilearn; install nilearn")
    path = Path(spec.origin).parent / "datasets" / "data" / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    try:
        t1 = np.asarray(nib.load(path).dataobj, dtype=np.float32) / np.float32(255)
    except (OSError, EOFError, ImageFileError) as error:
        raise ImageError(path, f"cannot be read ({error})", "install nilearn again, version 0.12 or newer") from error
    found = ndimage.find_objects((t1 > 0).astype(np.int8))[0]
    affine = np.eye(4)
    affine[:3, 3] = [s.start - _TIGHT for s in found] + _ORIGIN
    return np.pad(t1[found], int(_TIGHT)), affine


def _box(affine: NDArray[np.float64], spacing: float) -> tuple[slice, ...]:
    """The voxels that hold all nuclei, on a grid of `spacing` whose corner is that of the 1 mm grid."""
    return tuple(
        slice(int((low - o) / spacing), int((high - o) / spacing) + 2)
        for (low, high), o in zip(BOX, affine[:3, 3], strict=True)
    )


def _back(part: Volume, box: tuple[slice, ...], shape: tuple[int, ...]) -> Volume:
    whole = np.zeros(shape, dtype=np.float32)
    whole[box] = part
    return whole


def _levels(
    t1: Volume, hull: NDArray[np.bool_], below: Volume, space: tuple[Volume, Volume, Volume]
) -> tuple[Volume, Volume]:
    """Brightness as distance from the borders; the straight sinus, bright in the average, counts as fluid."""
    start, end = np.array(STRAIGHT_SINUS)
    along = end - start
    x, y, z = space
    t = np.clip(((y - start[1]) * along[1] + (z - start[2]) * along[2]) / (along @ along), 0, 1)
    sinus = np.sqrt(x**2 + (y - start[1] - t * along[1]) ** 2 + (z - start[2] - t * along[2]) ** 2) < 3.5
    t1 = np.where(sinus, _FLUID, np.where(hull, t1, _FLUID)).astype(np.float32)
    border = _WHITE_FROM + (_WHITE_BELOW_FROM - _WHITE_FROM) * below
    inside = _WHITE + (_WHITE_BELOW - _WHITE) * below
    white = (t1 - border) / np.where(t1 > border, inside - border, border - _GREY)
    border = _FLUID_TO + (_FLUID_BELOW_TO - _FLUID_TO) * below
    fluid = (border - t1) / np.where(t1 < border, border - _FLUID, _GREY - border)
    return np.asarray(white.clip(-2, 1.5), dtype=np.float32), np.asarray(fluid.clip(-2, 1.5), dtype=np.float32)


def _where_cortex_may_be(
    to_ventricle: Volume, deep: Volume, below: Volume, space: tuple[Volume, Volume, Volume]
) -> Volume:
    """Log odds of grey matter: none on the ventricles' walls and in the brain stem, where blur looks grey, little between the nuclei."""
    x, y, z = space
    back = -38 + 0.3 * np.minimum(z + 25, 0)
    stem = (
        smoothstep(below, 0.2, 0.8)
        * (1 - smoothstep(np.abs(x) + 0 * y, 17, 21))
        * smoothstep(np.asarray(y - back, dtype=np.float32), 0, 3)
    )
    wall = (1 - smoothstep(to_ventricle, 2.5, 4.5)) * smoothstep(z - 0 * x, -8, -4)
    soft = ndimage.gaussian_filter(deep, 2.0)
    return np.asarray(-6 * np.maximum(stem, wall) - 3 * soft, dtype=np.float32)


def _resample(volume: Volume, spacing: float) -> Volume:
    """From 1 mm to `spacing`, each voxel the mean of what it covers; first voxel corners coincide."""
    for count in (
        volume.shape if spacing != 1 else ()
    ):  # each turn contracts the first axis and appends the new one at the end
        start = np.arange(int(count / spacing))[:, None] * spacing
        old = np.arange(count)
        share = np.clip(np.minimum(start + spacing, old + 1) - np.maximum(start, old), 0, None) / spacing
        volume = np.tensordot(volume, share.astype(np.float32), axes=(0, 1))
    return np.asarray(volume, dtype=np.float32)


def _envelope(hull: NDArray[np.bool_]) -> Volume:
    """Soft cover of the brain with its sulci closed and a thin layer of CSF around, on the 1 mm grid."""
    closed = ndimage.gaussian_filter(hull.astype(np.float32), 3.0) > 0.42
    return smoothstep(ndimage.gaussian_filter((closed | hull).astype(np.float32), 1.3), 0.15 - 0.05 * _ENVELOPE, 0.35)


def _lateral_ventricles(fluid: Volume, cover: Volume, space: tuple[Volume, Volume, Volume]) -> NDArray[np.bool_]:
    """CSF well inside the brain, in the box of the lateral ventricles."""
    x, y, z = space
    box = (np.abs(x) < 42) & (y > -62) & (y < 42) & (z > -24) & (z < 34)
    box &= ~((np.abs(x) < 13) & (y < -28)) & ~((np.abs(x) < 4) & (z > 20))  # cisterns and the cleft between the halves
    box &= ~((np.abs(x) < 4) & (z < 6)) & ~((np.abs(x) < 13) & (z < -4))  # third ventricle
    half = 2 * ndimage.distance_transform_edt(cover[::2, ::2, ::2] > 0.5)  # at half the resolution, for speed
    inner = np.kron(half > 22, np.ones((2, 2, 2), dtype=bool))[tuple(slice(0, n) for n in cover.shape)]
    parts, count = ndimage.label((fluid > 0.1) & box & inner)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    keep = np.flatnonzero(sizes > 300) + 1  # mm³
    return np.asarray(np.isin(parts, keep))


def _push(ventricles: NDArray[np.bool_], spacing: float) -> Volume:
    """Towards the ventricles, 1 mm at most, on a coarse grid that shares its first voxel centre with the maps."""
    soft = ndimage.gaussian_filter(ventricles.astype(np.float32), 4.0)
    slope = np.stack(np.gradient(soft)).astype(np.float32)
    slope /= np.linalg.norm(slope, axis=0).max()
    count = [int(n / COARSE) + 1 for n in soft.shape]
    at = np.stack(np.meshgrid(*(np.arange(n) * COARSE + (spacing - 1) / 2 for n in count), indexing="ij"))
    return np.stack([ndimage.map_coordinates(s, at, order=1, mode="nearest") for s in slope])


def _deep(x: Volume, y: Volume, z: Volume) -> Volume:
    """The region of the basal ganglia and the thalamus: an ellipsoid in template space, 1 inside."""
    return np.asarray((x / 33) ** 2 + ((y + 6) / 34) ** 2 + ((z - 1) / 19) ** 2 < 1, dtype=np.float32)


def _below(x: Volume, y: Volume, z: Volume) -> Volume:
    """1 below the tentorium and in the brain stem, 0 above, 4 mm wide between."""
    places = sorted(_TENT)
    height = RegularGridInterpolator((places, _TENT_X), [_TENT[p] for p in places], bounds_error=False, fill_value=None)
    at = np.stack(np.broadcast_arrays(y[..., 0].clip(places[0], places[-1]), np.abs(x[..., 0]).clip(0, 55)), axis=-1)
    return smoothstep(ndimage.gaussian_filter(height(at), 1.5)[..., None] - z, -2.0, 2.0)


def _world(shape: tuple[int, ...], affine: NDArray[np.float64]) -> tuple[Volume, Volume, Volume]:
    """RAS mm along each axis, ready to broadcast."""
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    x, y, z = (axes[a] * affine[a, a] + affine[a, 3] for a in range(3))
    return x, y, z


def _distance(mask: NDArray[np.bool_]) -> Volume:
    """Distance to the mask, voxels."""
    return np.asarray(ndimage.distance_transform_edt(~mask), dtype=np.float32)
