"""What every writer shares: a new folder, files that are copied or linked into it, and labels whose values become others.

A writer is `write(cohort, out, …)` beside the reader of the same layout. What it writes lands whole or not at all, and only below `out`; the
cohort's own files are only read.
"""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import nibabel as nib
import numpy as np

from oligovox.cohort.manifest import Case, Cohort
from oligovox.errors import CohortError, ImageError, LabelError, OutputError
from oligovox.files import atomic_folder, check_writable, sweep

_TOLERANCE_MM = 1e-3
_LEVEL = 4


def new_folder(out: Path) -> AbstractContextManager[Path]:
    """A folder under a temporary name that becomes `out` when all of it is there.

    Raises:
        OutputError: `out` holds something already, or cannot be written.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()) or (out.is_dir() and any(out.iterdir())):
        raise OutputError(f"{out}: is there already; choose an empty or a new folder")
    check_writable(out)
    if out.parent.is_dir():
        sweep(out.parent)
    return atomic_folder(out)


def place(source: Path, target: Path, *, link: bool) -> None:
    """Bring an image to another name: a copy, or a link to where it lies. A .nii becomes a .nii.gz where the new name says so.

    Raises:
        ImageError: it cannot be read.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    packed = target.name.endswith(".gz") and not source.name.endswith(".gz")
    if link and not packed:
        target.symlink_to(source.resolve())
        return
    try:
        with source.open("rb") as file:
            if packed:
                with gzip.GzipFile(target, "wb", _LEVEL, mtime=0) as out:
                    shutil.copyfileobj(file, out, 1 << 20)
            else:
                with target.open("wb") as plain:
                    shutil.copyfileobj(file, plain, 1 << 20)
    except FileNotFoundError as error:
        raise ImageError(source, "the file is missing (or is a link to nowhere)", "bring it back") from error


def place_label(
    source: Path, target: Path, changes: Mapping[int, int], *, link: bool, unlooked: tuple[int, int] | None = None
) -> None:
    """The same of a label map; where values change it is written anew, as uint8 on the grid of the old one.

    Args:
        source: the label map.
        target: its new name.
        changes: value → new value, of every value that it may hold beside 0, those that stay included.
        link: link instead of a copy where no value changes.
        unlooked: the same of the value where nobody looked; None: somebody looked everywhere.

    Raises:
        ImageError: it cannot be read, or has values that are no whole numbers from 0 to 255.
        LabelError: it has a value that is not named, so that it would mean nothing or be mixed up with another; or where nobody
            looked is a class as well, before or after.
    """
    if unlooked:
        if unlooked[0] in changes or unlooked[1] in changes.values():
            raise LabelError(
                f"{source}: {unlooked[0]} is where nobody looked, and a class as well; give the class another value"
            )
        changes = {**changes, unlooked[0]: unlooked[1]}
    try:
        image = nib.load(source)
        values = np.asarray(image.get_fdata(caching="unchanged", dtype=np.float32))
    except Exception as error:  # whatever a damaged file does to nibabel
        raise ImageError(source, f"cannot be read ({type(error).__name__})", "copy it again from its source") from error
    whole = np.rint(values)
    if not np.isfinite(values).all() or np.abs(values - whole).max() > 1e-3 or whole.min() < 0 or whole.max() > 255:
        raise ImageError(source, "has values that are no whole numbers from 0 to 255", "mend the label map")
    if unknown := sorted(set(np.unique(whole).astype(int).tolist()) - {0, *changes}):
        shown = ", ".join(map(str, unknown[:5])) + (" …" if len(unknown) > 5 else "")
        known = ", ".join(map(str, sorted(changes)))
        raise LabelError(f"{source}: has the values {shown}; expected 0, {known}; name them in the label scheme")
    if all(old == value for old, value in changes.items()):
        place(source, target, link=link)
        return
    new = np.array([changes.get(value, 0) for value in range(256)], dtype=np.uint8)
    made = nib.Nifti1Image(new[whole.astype(np.uint8)], image.affine)
    made.header.set_xyzt_units("mm")
    target.parent.mkdir(parents=True, exist_ok=True)
    data = made.to_bytes()
    target.write_bytes(gzip.compress(data, _LEVEL, mtime=0) if target.name.endswith(".gz") else data)


def ending(path: Path) -> str:
    """'.nii.gz' or '.nii'."""
    return ".nii.gz" if path.name.endswith(".gz") else ".nii"


def check_files(cohort: Cohort) -> None:
    """Whether every file is there, before anything is written.

    Raises:
        ImageError: the first that is not.
    """
    for case in cohort.cases:
        for path in case.files.values():
            if not path.is_file():
                raise ImageError(path, f"a file of {case.name} is missing (or is a link to nowhere)", "bring it back")


def check_one_grid(case: Case, why: str) -> None:
    """Whether all images and the label of a case lie on one grid, by their headers; corners may differ by 0.001 mm.

    Raises:
        CohortError: they do not.
        ImageError: a header cannot be read.
    """
    first: tuple[str, tuple[int, ...], np.ndarray] | None = None
    for path in [*case.images.values(), *([case.label] if case.label else [])]:
        try:
            header = nib.load(path)
            shape, affine = tuple(header.shape[:3]), np.asarray(header.affine, dtype=np.float64)
        except Exception as error:  # whatever a damaged file does to nibabel
            raise ImageError(path, f"its header cannot be read ({type(error).__name__})", "copy it again") from error
        if first is None:
            first = path.name, shape, affine
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], [1])).reshape(4, -1)
        apart = np.linalg.norm(((affine - first[2]) @ corners)[:3], axis=0).max() if shape == first[1] else np.inf
        if apart > _TOLERANCE_MM:
            raise CohortError(
                f"{case.name}: {path.name} {shape} and {first[0]} {first[1]} lie on different grids, and {why}; register and resample them first"
            )
