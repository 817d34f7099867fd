"""Volumes and their grids: read, reorient, resample, and the way back to the native grid.

A grid is a shape (voxels along x, y, z) and a 4×4 affine from voxel index to scanner position in mm (RAS+, as nibabel gives it).
Wherever two grids differ only by axis order, flips and whole-voxel shifts, voxels are moved, never interpolated.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from scipy import ndimage

from oligovox.errors import ImageError

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]
Order = Literal[0, 1, 3]
"""Spline order: nearest, linear, cubic."""

TOLERANCE_MM = 1e-3
"""Corner positions (and voxel sizes) that differ by less are the same: direction cosines are never compared digit by digit."""

_FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))
_UNREADABLE = (
    *(OSError, EOFError, zlib.error, ValueError, AttributeError, TypeError, OverflowError),
    *(ImageFileError, HeaderDataError),
)


@dataclass(frozen=True, eq=False)
class Volume:
    """One 3-D image.

    Attributes:
        array: values, axes (x, y, z) of the file; float32 when read from a file.
        affine: 4×4, voxel index → mm.
    """

    array: np.ndarray
    affine: np.ndarray

    @property
    def shape(self) -> Shape:
        """Voxels along x, y, z."""
        return _shape(self.array.shape)


@dataclass(frozen=True, eq=False)
class Placement:
    """Where a prepared case came from: the native grid of its reference sequence, and the prepared grid.

    Attributes:
        native_shape: voxels of the reference image as its file has them.
        native_affine: its 4×4 affine, voxel → mm.
        prepared_shape: voxels of the prepared (RAS, resampled, cropped) grid.
        prepared_affine: its 4×4 affine, voxel → mm.
    """

    native_shape: Shape
    native_affine: np.ndarray
    prepared_shape: Shape
    prepared_affine: np.ndarray

    def as_json(self) -> dict[str, Any]:
        """Plain lists, read back by `from_json` without loss."""
        return {
            "native_shape": list(self.native_shape),
            "native_affine": self.native_affine.tolist(),
            "prepared_shape": list(self.prepared_shape),
            "prepared_affine": self.prepared_affine.tolist(),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Placement:
        """The inverse of `as_json`."""
        return cls(
            native_shape=_shape(content["native_shape"]),
            native_affine=np.array(content["native_affine"], dtype=np.float64),
            prepared_shape=_shape(content["prepared_shape"]),
            prepared_affine=np.array(content["prepared_affine"], dtype=np.float64),
        )


def read_volume(path: Path, *, empty_ok: bool = False) -> Volume:
    """Read a NIfTI file as float32, with scale factors applied and the affine nibabel chooses (sform, else qform).

    Args:
        path: .nii or .nii.gz.
        empty_ok: accept a volume of zeros only (a mask without lesion).

    Raises:
        ImageError: missing, truncated or damaged, not 3-D, NaN or infinite voxels, only zeros, or an unusable affine.
    """
    if not path.is_file():
        raise ImageError(path, "the file is missing (or is a link to nowhere)", "bring it back or mend the table")
    try:
        image = nib.load(path)
        array = np.asarray(image.get_fdata(caching="unchanged", dtype=np.float32))
        affine = np.array(image.affine, dtype=np.float64)
    except MemoryError as error:
        raise ImageError(path, "does not fit into memory", "check the shape in its header") from error
    except _UNREADABLE as error:
        found = f"cannot be read, truncated or damaged ({type(error).__name__}: {error})".replace("\n", " ")
        raise ImageError(path, found, "copy it again from its source; expected a NIfTI volume") from error
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3 or min(array.shape) < 2:
        raise ImageError(
            path, f"has shape {array.shape}", "expected one 3-D volume; split or leave out series and slices"
        )
    if bad := array.size - int(np.isfinite(array).sum()):
        raise ImageError(path, f"{bad} voxels are NaN or infinite", "expected finite values; export it again")
    if not empty_ok and not array.any():
        raise ImageError(path, "every voxel is 0", "leave this image out or bring back the right one")
    if not usable_affine(affine):
        raise ImageError(path, "its affine has no inverse", "mend the header (sform or qform)")
    return Volume(array, affine)


def usable_affine(affine: np.ndarray) -> bool:
    """Whether voxels have a place and a direction."""
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        return False
    return bool(np.isfinite(nib.io_orientation(affine)).all())


def spacing_of(affine: np.ndarray) -> Spacing:
    """Voxel size along each array axis in mm."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return x, y, z


def orientation_of(affine: np.ndarray) -> str:
    """Where the array axes point to, such as 'RAS' or 'LPS'."""
    return "".join(nib.aff2axcodes(affine))


def to_ras(volume: Volume) -> Volume:
    """The same voxels with axes permuted and flipped to point closest to right, anterior, superior."""
    turn = nib.io_orientation(volume.affine)
    array = nib.apply_orientation(volume.array, turn)
    return Volume(array, volume.affine @ nib.orientations.inv_ornt_aff(turn, volume.shape))


def ras_grid(affine: np.ndarray, shape: Shape, spacing: Spacing) -> tuple[np.ndarray, Shape]:
    """The RAS grid over the same field of view with this voxel size.

    An axis whose voxels already have that size (within `TOLERANCE_MM`) keeps them, along the others the new grid has the
    centre of the old one and covers all of it.

    Args:
        affine: 4×4 of the given grid.
        shape: its voxels.
        spacing: wanted voxel size in mm along R, A, S.

    Returns:
        Affine and shape of the new grid.
    """
    turn = nib.io_orientation(affine)
    affine = affine @ nib.orientations.inv_ornt_aff(turn, shape)
    old_shape = np.empty(3)
    old_shape[turn[:, 0].astype(int)] = shape
    old, new = np.array(spacing_of(affine)), np.array(spacing)
    same = np.abs(old - new) <= TOLERANCE_MM
    step = np.where(same, 1.0, new / old)
    count = np.where(same, old_shape, np.ceil(old_shape / step - TOLERANCE_MM))
    origin = (old_shape - 1 - step * (count - 1)) / 2
    change = np.diag([*step, 1.0])
    change[:3, 3] = origin
    return affine @ change, _shape(count)


def shifted(affine: np.ndarray, low: Shape) -> np.ndarray:
    """The affine of a grid cropped so that voxel `low` becomes voxel (0, 0, 0)."""
    change = np.eye(4)
    change[:3, 3] = low
    return np.asarray(affine @ change)


def same_grid(one: Volume, other: Volume) -> bool:
    """Whether shapes are equal and all corners lie within `TOLERANCE_MM` of each other."""
    return one.shape == other.shape and corner_distance(one.affine, other.affine, one.shape) <= TOLERANCE_MM


def corner_distance(one: np.ndarray, other: np.ndarray, shape: Shape) -> float:
    """The largest distance in mm between where two affines put a corner voxel of this shape."""
    corners = np.array([[*index, 1.0] for index in product(*((0, n - 1) for n in shape))]).T
    return float(np.linalg.norm(((one - other) @ corners)[:3], axis=0).max())


def inside(volume: Volume, affine: np.ndarray, shape: Shape) -> np.ndarray:
    """Which voxels of a grid have their centre in the field of view of `volume` (bool, that grid's shape)."""
    return _inside(np.linalg.inv(volume.affine) @ affine, volume.shape, shape)


def whole_voxels_apart(source: np.ndarray, affine: np.ndarray, shape: Shape) -> bool:
    """Whether a grid differs from the source's grid by axis order, flips and whole voxels only: nothing to interpolate."""
    return _whole_voxels(np.linalg.inv(source) @ affine, source, shape) is not None


def resample_to(volume: Volume, affine: np.ndarray, shape: Shape, order: Order, *, smooth: bool = False) -> Volume:
    """Bring a volume onto another grid; 0 outside its field of view.

    Exact, with the same type, where the grids differ by axis order, flips and whole voxels only. Otherwise spline
    interpolation, with values kept in the range of the input so that a cubic spline cannot overshoot.

    Args:
        volume: what to bring over.
        affine: 4×4 of the wanted grid.
        shape: its voxels.
        order: 0 nearest (type kept), 1 linear, 3 cubic (both float32).
        smooth: blur first along axes that become coarser, from a voxel profile of the old size to one of the new size
            (Gaussian of FWHM √(new² − old²); Cardoso et al., IPMI 2015), so that nothing is aliased.
    """
    matrix = np.linalg.inv(volume.affine) @ affine
    if (move := _whole_voxels(matrix, volume.affine, shape)) is not None:
        return Volume(_moved(volume.array, move, shape), affine)
    array = volume.array
    if order > 0:
        array = array.astype(np.float32, copy=False)
        if smooth:
            array = ndimage.gaussian_filter(array, blur_of(volume.affine, affine), mode="nearest", truncate=3.0)
        if order > 1:
            low, high = array.min(), array.max()
            array = ndimage.spline_filter(array, order, output=np.float32, mode="nearest")
    result = ndimage.affine_transform(
        array,
        matrix[:3, :3],
        offset=matrix[:3, 3],
        output_shape=shape,
        output=array.dtype,
        order=order,
        mode="nearest",
        prefilter=False,
    )
    if order > 1:
        np.clip(result, low, high, out=result)
    result[~_inside(matrix, volume.shape, shape)] = 0
    return Volume(result, affine)


def blur_of(old: np.ndarray, new: np.ndarray) -> Spacing:
    """Standard deviation in voxels of the blur before resampling from one grid to another, along each old axis.

    0 along axes that do not become coarser.
    """
    step = np.linalg.norm(
        (np.linalg.inv(old) @ new)[:3, :3], axis=1
    )  # new voxel size along each old axis, in old voxels
    x, y, z = (np.sqrt(np.maximum(step**2 - 1, 0)) / _FWHM_PER_SIGMA).tolist()
    return x, y, z


def resample_labels(volume: Volume, affine: np.ndarray, shape: Shape, classes: int) -> np.ndarray:
    """Bring class indices onto another grid: each class's mask linearly, then the class with the largest share.

    Unlike nearest-neighbour interpolation this gives smooth borders and keeps thin structures. Where shares are equal (every
    second voxel border when the voxel size doubles), the nearest voxel decides, so that volumes neither grow nor shrink.

    Where nobody looked (-1) is no class: the nearest voxel alone decides whether somebody looked, and only voxels that somebody looked at
    have a share in a class. Outside the field of view nobody looked then; a label without any -1 is background there.

    Args:
        volume: class indices 0 … classes; -1 where nobody looked.
        affine: 4×4 of the wanted grid.
        shape: its voxels.
        classes: number of foreground classes.

    Returns:
        int8 of this shape.
    """
    nearest = resample_to(volume, affine, shape, 0).array
    label, best = np.zeros(shape, dtype=np.int8), np.full(shape, -1, dtype=np.float32)
    for index in range(classes + 1):
        mask = Volume((volume.array == index).astype(np.float32), volume.affine)
        share = resample_to(mask, affine, shape, 1).array + np.float32(1e-3) * (nearest == index)
        wins = share > best
        label[wins], best[wins] = index, share[wins]
    if (volume.array < 0).any():
        label[(nearest < 0) | ~inside(volume, affine, shape)] = -1
    return label


def to_native(array: np.ndarray, placement: Placement, order: Order) -> np.ndarray:
    """Bring a result from the prepared grid back onto the native grid of the reference image; 0 outside the crop.

    Exact when preparing only permuted, flipped and cropped; then the type is kept.

    Args:
        array: (x, y, z) on the prepared grid, or (…, x, y, z) with further axes before it.
        placement: of the case.
        order: 1 for probability maps, 0 for masks.
    """
    if array.ndim > 3:
        return np.stack([to_native(part, placement, order) for part in array])
    prepared = Volume(array, placement.prepared_affine)
    return resample_to(prepared, placement.native_affine, placement.native_shape, order).array


def _whole_voxels(matrix: np.ndarray, source: np.ndarray, shape: Shape) -> np.ndarray | None:
    """`matrix` (wanted → source voxel) rounded, where it only permutes, flips and shifts by whole voxels; else None."""
    rounded = np.rint(matrix)
    turns = np.abs(rounded[:3, :3])
    if not ((turns.sum(0) == 1).all() and (turns.sum(1) == 1).all()):
        return None
    return rounded if corner_distance(source @ matrix, source @ rounded, shape) <= TOLERANCE_MM else None


def _moved(array: np.ndarray, move: np.ndarray, shape: Shape) -> np.ndarray:
    """Voxels moved by a signed permutation with whole shifts, pasted into zeros."""
    axes = np.abs(move[:3, :3]).argmax(axis=0)  # source axis of each wanted axis
    array = array.transpose(axes)
    into, out_of = [], []
    for wanted, source in enumerate(axes):
        shift, size = int(move[source, 3]), array.shape[wanted]
        if move[source, wanted] < 0:
            array, shift = np.flip(array, wanted), size - 1 - shift
        low, high = max(0, -shift), min(shape[wanted], size - shift)
        into.append(slice(low, max(low, high)))
        out_of.append(slice(low + shift, max(low, high) + shift))
    result = np.zeros(shape, dtype=array.dtype)
    if all(part.stop > part.start for part in into):
        result[tuple(into)] = array[tuple(out_of)]
    return result


def _inside(matrix: np.ndarray, source: Shape, shape: Shape) -> np.ndarray:
    """Which wanted voxels fall into the source's field of view, which ends half a voxel beyond the outer centres."""
    x, y, z = np.ogrid[: shape[0], : shape[1], : shape[2]]
    result = np.ones(shape, dtype=bool)
    for row, size in zip(matrix[:3], source, strict=True):
        position = (row[0] * x + row[3]) + row[1] * y + row[2] * z
        result &= (position > -0.5 - TOLERANCE_MM) & (position < size - 0.5 + TOLERANCE_MM)
    return result


def _shape(values: Any) -> Shape:
    x, y, z = (int(value) for value in values)
    return x, y, z
