"""CHAOS: MR of the abdomen as DICOM, with the organs drawn slice by slice as PNG.

    Train_Sets/MR/1/T1DUAL/DICOM_anon/{InPhase,OutPhase}/IMG-0004-00002.dcm …     one volume in phase, one out of phase, on one grid
    Train_Sets/MR/1/T1DUAL/Ground/IMG-0004-00002.png …                            one mask a slice, for both
    Train_Sets/MR/1/T2SPIR/{DICOM_anon,Ground}/…                                  on another grid, in another breath
    Test_Sets/MR/…                                                                the same without Ground

Grey values 63, 126, 189, 252 are liver, right kidney, left kidney, spleen. T1DUAL and T2SPIR are not registered to each other and have masks of
their own, so they are two sessions of a person. The images become NIfTI files in a work folder; reading DICOM needs pydicom (the extra 'dicom').

Source: Kavur et al., Medical Image Analysis 2021, 69:101950, and the data set's own description (zenodo 3431873).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from oligovox.cohort.manifest import Case, Cohort
from oligovox.cohort.reading import AS_IT_IS, Asked, Look, entries, folders, several
from oligovox.errors import CohortError, ImageError, SettingsError
from oligovox.files import atomic_file

LAYOUT = "chaos"

LABELS = {"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4}
GREY = 63
"""Grey value of the first organ; those of the others are its multiples."""

_VOLUMES = {"T1DUAL": {"InPhase": "T1in", "OutPhase": "T1out"}, "T2SPIR": {"": "T2spir"}}
_DICOM, _MASKS = "DICOM_anon", "Ground"


def look(root: Path) -> Look:
    """Numbered folders with T1DUAL or T2SPIR, and DICOM_anon in it."""
    people = list(_people(root))
    if not people:
        return Look(LAYOUT)
    found = (f"{several(len(people), 'folder')} with {' or '.join(_VOLUMES)}, such as {people[0].relative_to(root)}",)
    images = any((person / kind / _DICOM).is_dir() for person in people for kind in _VOLUMES)
    return Look(LAYOUT, found, () if images else (f"a folder {_DICOM} in them",))


def read(root: Path, asked: Asked = AS_IT_IS) -> Cohort:
    """Write every volume and mask as NIfTI to `asked.work`, unless it is there, and read them.

    Args:
        root: the folder, or Train_Sets/MR in it.
        asked: work: where the NIfTI files go.

    Raises:
        CohortError: no work folder; masks and slices do not fit each other; or the masks have other grey values.
        ImageError: a file cannot be read, or the slices are no volume.
        SettingsError: pydicom is not installed.
    """
    if asked.work is None:
        raise CohortError(
            f"{root}: its images are DICOM with masks as PNG; make NIfTI files of them first: oligovox cohort write {root} OUT --to bids"
        )
    cases = []
    for person in _people(root):
        for kind, parts in _VOLUMES.items():
            images: dict[str, Path] = {}
            for part, sequence in parts.items():
                slices = _slices(person / kind / _DICOM / part)
                if slices:
                    images[sequence] = asked.work / person.name / kind / f"{sequence}.nii.gz"
                    _image(slices, images[sequence])
            if images:
                label = asked.work / person.name / kind / "organs.nii.gz"
                drawn = asked.mask is not None and _mask(person / kind, next(iter(parts)), label)
                testing = any(folder.name.lower() == "test_sets" for folder in person.parents)
                cases.append(
                    Case(
                        subject=person.name,
                        session=kind,
                        images=images,
                        label=label if drawn else None,
                        info={"part": "test"} if testing else {},
                    )
                )
    return Cohort(cases=tuple(cases), labels=asked.labels or LABELS, name=root.resolve().name)


def _people(root: Path) -> Iterator[Path]:
    for folder in folders(root, 3):
        if folder.name.isdecimal() and any((folder / kind).is_dir() for kind in _VOLUMES):
            yield folder


def _slices(folder: Path) -> list[Path]:
    return [path for path in entries(folder) if path.suffix.lower() == ".dcm" and path.is_file()]


def _image(slices: list[Path], target: Path) -> None:
    """The slices as one NIfTI file, from the lowest to the highest along their normal."""
    if target.is_file():
        return
    headers = [_header(path, voxels=True) for path in slices]
    affine, order = _grid(headers, slices[0])
    array = np.stack([headers[n].pixel_array.T for n in order], axis=-1).astype(np.int16)
    with atomic_file(target) as temporary:
        nib.save(nib.Nifti1Image(array, affine), temporary)


def _mask(home: Path, part: str, target: Path) -> bool:
    """The PNG masks as a NIfTI file on the grid of the slices; whether there are any."""
    masks = [path for path in entries(home / _MASKS) if path.suffix.lower() == ".png"]
    if not masks or target.is_file():
        return bool(masks)
    slices = _slices(home / _DICOM / part)
    if len(masks) != len(slices):
        raise CohortError(
            f"{home}: {len(masks)} masks in {_MASKS} for {len(slices)} slices in {_DICOM}/{part}; expected one for each"
        )
    headers = [_header(path, voxels=False) for path in slices]
    affine, order = _grid(headers, slices[0])
    drawn = [_png(path) for path in masks]  # in order of name, as the slices
    if bad := next(
        (path for path, m, h in zip(masks, drawn, headers, strict=True) if m.shape != (h.Rows, h.Columns)), None
    ):
        raise CohortError(f"{bad}: has another size than its slice in {_DICOM}/{part}; bring the right one back")
    with atomic_file(target) as temporary:
        nib.save(nib.Nifti1Image(np.stack([drawn[n].T for n in order], axis=-1), affine), temporary)
    return True


def _png(path: Path) -> NDArray[np.uint8]:
    """(rows, columns) organ of each pixel, 0 = none."""
    from matplotlib.image import imread

    try:
        image = np.asarray(imread(path))
    except Exception as error:  # whatever a damaged file does to the reader
        raise ImageError(path, f"cannot be read ({type(error).__name__})", "copy it again from its source") from error
    grey = np.rint((image if image.ndim == 2 else image[..., 0]) * (255 if image.dtype.kind == "f" else 1)).astype(int)
    organ: NDArray[np.uint8] = np.rint(grey / GREY).astype(np.uint8)
    if (np.abs(grey - organ.astype(int) * GREY) > 3).any() or organ.max(initial=0) > len(LABELS):
        values = ", ".join(map(str, np.unique(grey)[:8]))
        raise CohortError(
            f"{path}: has the grey values {values}; expected 0, 63, 126, 189, 252 = liver, right and left kidney, spleen"
        )
    return organ


def _header(path: Path, *, voxels: bool) -> Any:
    try:
        import pydicom
    except ImportError:
        raise SettingsError("reading DICOM needs pydicom; install it: pip install 'oligovox[dicom]'") from None
    try:
        found = pydicom.dcmread(path, stop_before_pixels=not voxels)
        _ = [found.ImagePositionPatient, found.ImageOrientationPatient, found.PixelSpacing, found.Rows, found.Columns]
        if voxels:
            _ = found.pixel_array
    except Exception as error:  # whatever a damaged file does to pydicom
        raise ImageError(
            path, f"cannot be read as an MR slice ({type(error).__name__}: {error})", "copy it again"
        ) from error
    return found


def _grid(headers: list[Any], where: Path) -> tuple[NDArray[np.float64], list[int]]:
    """(affine voxel → mm in RAS+, order of the slices along their normal); array axes are columns, rows, slices."""
    first = headers[0]
    right, down = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(right, down)
    places = np.array([h.ImagePositionPatient for h in headers], float)
    along = places @ normal
    order = np.argsort(along, kind="stable")
    steps = np.diff(along[order])
    if len(headers) < 2 or steps.min() <= 0 or steps.max() > 1.5 * steps.min():
        raise ImageError(
            where.parent, "its slices are no volume (missing, doubled or unequally apart)", "copy the series again"
        )
    rows, columns = (float(v) for v in first.PixelSpacing)
    affine = np.eye(4)
    affine[:3, :3] = np.stack(
        [right * columns, down * rows, (places[order[-1]] - places[order[0]]) / (len(order) - 1)], axis=1
    )
    affine[:3, 3] = places[order[0]]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, order.tolist()  # DICOM points left and posterior
