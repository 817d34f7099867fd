"""Real lesion masks laid into a simulated brain: their shapes and places are real, all else is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.errors import CohortError, GeometryError, ImageError, LabelError
from oligovox.simulate.anatomy.brain import Anatomy
from oligovox.simulate.fields import Volume
from oligovox.simulate.pathology.lesion_shapes import Mask, allowed, bounds

_MASS = (
    0.05,
    0.95,
)  # parts of the brain between which its size along an axis is measured; its thin ends may be cut off
_SOFT = 0.5  # standard deviation of the softening, donor voxels, at least half a voxel of the new grid
_FLIP = 0.5  # probability that left and right change places
_LEAST = 10.0  # mm; no brain is smaller along an axis, its thin ends left out
_OUTSIDE = 0.5  # part of the lesions that the brain mask may leave out, as those that miss the brain stem do


@dataclass(frozen=True)
class Donor:
    """A real lesion mask, placed by the brain it came from.

    Attributes:
        path: the file of the mask.
        mask: (x, y, z) lesion, in RAS order, cropped to the lesions and two voxels more.
        corner: place of the first voxel along x, y, z; 0 is the middle of the donor's brain and its size is 1: see `brain_frame`.
        step: voxel size in the same measure.
        voxel_mm3: volume of a voxel of the donor's image, mm³.
    """

    path: Path
    mask: Mask
    corner: NDArray[np.float64]
    step: NDArray[np.float64]
    voxel_mm3: float


def brain_frame(brain: Mask) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Middle and size (3,) of a brain in voxels along each axis, between the planes that cut off a twentieth of it at either end."""
    middle, size = np.empty(3), np.empty(3)
    for axis in range(3):
        area = np.count_nonzero(brain, axis=tuple(a for a in range(3) if a != axis))
        low, high = np.interp(_MASS, np.cumsum(area) / area.sum(), np.arange(area.size))
        middle[axis], size[axis] = (low + high) / 2, high - low
    return middle, size


def read_donor(path_mask: Path, path_brain: Path) -> Donor:
    """Read a lesion mask and the brain mask beside it.

    Raises:
        ImageError: a file is missing, unreadable, not 3-D, not finite or empty, or the brain mask is too small for a brain.
        LabelError: a mask has other values than 0 and one other, or most lesions lie outside the brain mask.
        GeometryError: the two differ in shape or affine.
    """
    (mask, affine), (brain, other) = _read(path_mask), _read(path_brain)
    if mask.shape != brain.shape or not np.allclose(affine, other, atol=1e-3):
        raise GeometryError(
            f"{path_mask}: its grid (shape {mask.shape}) differs from that of {path_brain.name} (shape {brain.shape}); "
            "give the brain mask of the same image"
        )
    middle, size = brain_frame(brain)
    extent = size * voxel_sizes(affine)
    if extent.min() < _LEAST:
        x, y, z = extent
        found = f"its brain is {x:.0f} x {y:.0f} x {z:.0f} mm"
        raise ImageError(path_brain, found, f"expected more than {_LEAST:g} mm along each axis; give the whole brain")
    lesions, outside = np.count_nonzero(mask), np.count_nonzero(mask & ~brain)
    if outside > _OUTSIDE * lesions:
        raise LabelError(
            f"{path_mask}: {outside} of {lesions} lesion voxels lie outside the brain mask {path_brain.name}; "
            "expected lesions in the brain, give the brain mask of the same image"
        )
    box = bounds(mask, 2)
    start = np.array([s.start for s in box])
    return Donor(path_mask, mask[box], (start - middle) / size, 1 / size, float(abs(np.linalg.det(affine[:3, :3]))))


def read_donors(folder: Path) -> tuple[Donor, ...]:
    """All lesion masks of a folder, in the order of their names; `*-lesion_mask.nii*` with `*_desc-brain_mask.nii*` beside each.

    They are read again only when a file has been added, removed or changed (its size or time of last change).

    Raises:
        CohortError: there is no such mask, or no brain mask beside one.
        InputError: see `read_donor`.
    """
    masks = sorted(folder.glob("*-lesion_mask.nii*")) if folder.is_dir() else []
    if not masks:
        raise CohortError(
            f"{folder}: no *-lesion_mask.nii.gz in it; give the folder that holds the donors' lesion masks"
        )
    return _read_all(tuple((_stamp(mask), _stamp(_brain_of(mask))) for mask in masks))


_Stamp: TypeAlias = tuple[Path, int, int]  # a file, its size and its time of last change


def _stamp(path: Path) -> _Stamp:
    if not path.exists():  # a broken link: reading it says so
        return path, 0, 0
    state = path.stat()
    return path, state.st_size, state.st_mtime_ns


@lru_cache(maxsize=4)
def _read_all(stamps: tuple[tuple[_Stamp, _Stamp], ...]) -> tuple[Donor, ...]:
    return tuple(read_donor(mask, brain) for (mask, *_), (brain, *_) in stamps)


def implant(donor: Donor, anatomy: Anatomy, rng: np.random.Generator) -> Volume:
    """The donor's lesions in another brain: scaled to its size along x, y and z, left and right exchanged at random.

    Voxels of CSF, and of grey matter that no white matter shares, take none of it, so that a part of the volume is lost.

    Returns:
        (x, y, z) part of each voxel that is lesion, 0 to 1; more than a half: labelled.

    Raises:
        ImageError: no voxel would be labelled.
    """
    middle, size = brain_frame(anatomy.brain)
    sign = np.array([-1.0 if rng.random() < _FLIP else 1.0, 1.0, 1.0])
    ends = donor.corner + donor.step * np.array([[0, 0, 0], np.array(donor.mask.shape) - 1])
    reached = np.sort(ends * sign, axis=0) * size + middle
    box = tuple(
        slice(max(int(np.floor(low)), 0), min(int(np.ceil(high)) + 1, n))
        for (low, high), n in zip(reached.T, anatomy.brain.shape, strict=True)
    )
    fraction = np.zeros(anatomy.brain.shape, dtype=np.float32)
    if all(b.stop - b.start > 1 for b in box):
        fraction[box] = np.minimum(_drawn(donor, box, middle, size, sign), allowed(anatomy)[box])
    if not (fraction > 0.5).any():
        found = f"none of its {np.count_nonzero(donor.mask)} lesion voxels is left in the simulated brain"
        raise ImageError(donor.path, found, "expected lesions of white matter; leave this donor out")
    return fraction


def _drawn(
    donor: Donor,
    box: tuple[slice, ...],
    middle: NDArray[np.float64],
    size: NDArray[np.float64],
    sign: NDArray[np.float64],
) -> Volume:
    """The softened lesions in a box of a brain with this frame; their volume is the donor's in proportion to the brain's."""
    lines = [
        (s * (np.arange(b.start, b.stop) - m) / w - c) / d
        for b, m, w, s, c, d in zip(box, middle, size, sign, donor.corner, donor.step, strict=True)
    ]
    coarser = 1 / (size * donor.step)  # new voxels, counted in voxels of the donor
    soft = ndimage.gaussian_filter(donor.mask.astype(np.float32), np.maximum(_SOFT, coarser / 2))
    at = np.stack(np.meshgrid(*lines, indexing="ij"))
    drawn = ndimage.map_coordinates(soft, at, order=1, output=np.float32)
    wanted = int(np.clip(round(float(drawn.sum())), 1, drawn.size - 1))
    level = np.partition(drawn.ravel(), drawn.size - wanted)[
        drawn.size - wanted
    ]  # keeps the volume, which softening would not
    return np.asarray(np.where(drawn > 0.02, drawn - level + 0.5001, 0).clip(0, 1), dtype=np.float32)


def _brain_of(mask: Path) -> Path:
    start = mask.name.rsplit("_", 2)[0]
    found = sorted(mask.parent.glob(f"{start}_desc-brain_mask.nii*"))
    if not found:
        raise CohortError(f"{mask}: no brain mask {start}_desc-brain_mask.nii.gz beside it; put it there")
    return found[0]


def _read(path: Path) -> tuple[Mask, NDArray[np.float64]]:
    """A mask in RAS order and its affine."""
    try:
        image = nib.as_closest_canonical(nib.load(path))
        array = np.asarray(image.dataobj)
    except (OSError, EOFError, ValueError, ImageFileError) as error:
        found = f"cannot be read ({type(error).__name__}: {error})".replace("\n", " ")
        raise ImageError(path, found, "expected a NIfTI mask; copy it again from its source") from error
    if array.ndim != 3:
        raise ImageError(path, f"has shape {array.shape}", "expected one 3-D mask")
    wrong = array.size - np.count_nonzero(np.isfinite(array))
    if wrong:
        raise ImageError(path, f"{wrong} voxels are NaN or infinite", "expected a mask of 0 and 1; set them to 0")
    values = np.unique(array)
    if not array.any():
        raise ImageError(path, "every voxel is 0", "leave it out or bring back the right one")
    if values.size != 2 or values[0] != 0:
        raise LabelError(f"{path}: has the values {values[:5].tolist()}; expected a mask of 0 and 1, make it one")
    return array > 0, np.asarray(image.affine, dtype=np.float64)
