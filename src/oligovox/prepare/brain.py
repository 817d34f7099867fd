"""Where the brain mask of an exam comes from: somebody gave it, the images are stripped already, a program that is installed, a network.

Programs are only run if they are found on the path, with a list of arguments, in a folder of their own and for a limited time; what they
write is read as any other file.
"""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.cohort.manifest import Case
from oligovox.errors import CohortError, GeometryError, ImageError, SettingsError
from oligovox.prepare import geometry
from oligovox.prepare.geometry import Volume, read_volume, resample_to

Origin = Literal["given", "derivatives", "stripped", "hd-bet", "mri_synthstrip", "own"]
"""Where a mask came from: the cohort, a folder of derivatives, the images' own zeros, a program, our network."""

Wanted = Literal["auto", "none"] | Origin
Own = Callable[[Mapping[str, Volume]], NDArray[np.bool_]]
"""Sequence → image, aligned and each on its own grid, the reference first; to a mask on the grid of the reference."""

Doubts = Callable[[NDArray[np.bool_], NDArray[np.float64]], Sequence[str]]
"""A brain mask (x, y, z) and its affine, to what makes it implausible."""

Program = Literal["hd-bet", "mri_synthstrip"]

_log = logging.getLogger(__name__)

_TIMEOUT_S = 1800.0
_MOST_ML, _LEAST_ML = 2300.0, 400.0  # a brain with the CSF around it; a head has more
_OPEN_CM2 = 50.0  # of stripped brains up to 29 lay on a face of the volume (openms, brats), of a cut head with zeroed air 129 and more
_ARGUMENTS: Mapping[Program, Sequence[Sequence[str]]] = {
    "hd-bet": (
        ("-i", "{image}", "-o", "{out}", "-device", "cpu", "--disable_tta", "--save_bet_mask"),  # version 2
        ("-i", "{image}", "-o", "{out}", "-device", "cpu", "-mode", "fast", "-tta", "0"),  # version 1
    ),
    "mri_synthstrip": (("-i", "{image}", "-m", "{mask}"),),
}
"""Program → arguments that are tried in turn."""


@dataclass(frozen=True, eq=False)
class Brain:
    """A brain mask and where it came from.

    Attributes:
        mask: 0 or 1, on a grid of its own.
        origin: who made it.
        sequence: the image in whose space it lies.
        source: its file, where it has one.
    """

    mask: Volume
    origin: Origin
    sequence: str
    source: Path | None = None


def find_brain(
    case: Case,
    images: Mapping[str, Volume],
    reference: str,
    *,
    wanted: Wanted = "auto",
    derivatives: Path | None = None,
    own: Own | None = None,
    lay: Callable[[str], Volume] | None = None,
) -> Brain | None:
    """The brain mask of an exam; each source is asked in turn, and the first that has one is taken.

    Given in the cohort, found in `derivatives`, images that are stripped already (no program does better than they say), `hd-bet` and
    `mri_synthstrip` where they are installed, our own network.

    Args:
        case: the exam.
        images: sequence → image on its own grid.
        reference: the sequence that programs and network are shown.
        wanted: auto: as above; none: no mask; else only this source.
        derivatives: another folder of BIDS derivatives that may hold `…_desc-brain_mask.nii.gz`.
        own: our network.
        lay: sequence → the image in the space of the reference, for `own`; None: it is shown the reference only.

    Returns:
        None where no source has a mask, or none was wanted.

    Raises:
        SettingsError: the source that was asked for is not there.
        ImageError, GeometryError: a mask is empty or lies on no grid of the exam.
    """
    if wanted == "none":
        return None
    sources: dict[Origin, Callable[[], Brain | None]] = {
        "given": lambda: _read(case.brain, images, reference, "given") if case.brain else None,
        "derivatives": lambda: _in_derivatives(case, images, reference, derivatives),
        "stripped": lambda: _stripped(images, reference),
        "hd-bet": lambda: run_program("hd-bet", images[reference], reference),
        "mri_synthstrip": lambda: run_program("mri_synthstrip", images[reference], reference),
        "own": lambda: _by_network(own, images, reference, lay),
    }
    chosen = sources.values() if wanted == "auto" else (sources[wanted],)
    found = next((brain for source in chosen if (brain := source())), None)
    if found is None and wanted != "auto":
        raise SettingsError(f"{case.name}: brain is '{wanted}', which gave no mask; bring it, or set brain to auto")
    return found


def looks_stripped(volume: Volume) -> bool:
    """Whether an image shows a brain only: exact zeros around it on all sides, and as much volume as a brain has."""
    shown = volume.array != 0
    if shown.mean() > 0.75:
        return False
    voxel_ml = abs(np.linalg.det(volume.affine[:3, :3])) / 1000
    filled = np.asarray(ndimage.binary_fill_holes(shown))
    return bool(_LEAST_ML < filled.sum() * voxel_ml < _MOST_ML) and ends_inside(filled, volume.affine)


def ends_inside(foreground: NDArray[np.bool_], affine: NDArray[np.float64]) -> bool:
    """Whether what is shown ends inside the field of view, as a stripped brain does; a neck goes on beyond it.

    A brain that was cropped closely may touch a face, with less than 50 cm².

    Args:
        foreground: (x, y, z), holes filled.
        affine: 4×4, voxel → mm.
    """
    size = geometry.spacing_of(affine)
    for axis, across in enumerate(size):
        face_cm2 = float(np.prod(size)) / across / 100
        if max(int(foreground.take(end, axis).sum()) for end in (0, -1)) * face_cm2 > _OPEN_CM2:
            return False
    return True


def run_program(program: Program, image: Volume, sequence: str, *, timeout_s: float = _TIMEOUT_S) -> Brain | None:
    """Let a program that is on the path find the brain; None where it is not installed, fails or takes too long (the log says why).

    The image is handed over as a file in a new folder; the mask is the file of zeros and ones that the program leaves there.
    """
    path = shutil.which(program)
    if path is None:
        return None
    for arguments in _ARGUMENTS[program]:
        with tempfile.TemporaryDirectory(prefix="oligovox-") as folder:
            places = {key: str(Path(folder) / f"{key}.nii.gz") for key in ("image", "out", "mask")}
            nib.save(nib.Nifti1Image(image.array, image.affine), places["image"])
            command = [path, *(argument.format(**places) for argument in arguments)]
            try:
                subprocess.run(
                    command, cwd=folder, capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout_s, check=True
                )
            except (subprocess.SubprocessError, OSError) as error:
                _log.warning("%s gave no brain mask: %s", program, " ".join(str(error).split())[:200])
                if isinstance(error, subprocess.TimeoutExpired):
                    return None
                continue
            for file in sorted(Path(folder).glob("*.nii*")):
                if (mask := _binary(file, image)) is not None:
                    return Brain(mask, program, sequence)
            _log.warning("%s ended well and left no brain mask", program)
    return None


def _binary(path: Path, image: Volume) -> Volume | None:
    try:
        volume = read_volume(path)
    except ImageError:
        return None
    binary = geometry.same_grid(volume, image) and np.isin(volume.array, (0, 1)).all()
    return volume if binary else None


def _read(path: Path, images: Mapping[str, Volume], reference: str, origin: Origin) -> Brain:
    """A mask file, with the image on whose grid it lies, or of derivatives on a cut of it; the reference first."""
    volume = read_volume(path, empty_ok=True)
    mask = Volume((volume.array >= 0.5).astype(np.float32), volume.affine)
    if not mask.array.any():
        raise ImageError(path, "the brain mask is empty", "mend it, or leave it out")
    for sequence in (reference, *images):
        image = images[sequence]
        same = geometry.same_grid(mask, image)
        if same or (origin == "derivatives" and geometry.whole_voxels_apart(image.affine, mask.affine, mask.shape)):
            return Brain(mask, origin, sequence, path)
    raise GeometryError(
        f"{path}: brain mask of shape {mask.shape} lies on the grid of no image of the exam; draw or resample it on one of them"
    )


def _in_derivatives(case: Case, images: Mapping[str, Volume], reference: str, folder: Path | None) -> Brain | None:
    if folder is None:
        return None
    if not folder.is_dir():
        raise CohortError(f"{folder}: no such folder of derivatives")
    for path in masks_in(folder, case):
        try:
            return _read(path, images, reference, "derivatives")
        except GeometryError as error:  # of another space
            _log.info("%s", error)
    return None


def masks_in(folder: Path, case: Case) -> list[Path]:
    """The brain masks that a folder of derivatives has for an exam, of whatever space."""
    below = folder / f"sub-{case.subject}"
    return [path for path in sorted(below.rglob("sub-*_desc-brain_mask.nii*")) if _session(path) == case.session]


def _session(path: Path) -> str:
    match = re.search(r"_ses-([^_]+)_", path.name)
    return match[1] if match else ""


def _stripped(images: Mapping[str, Volume], reference: str) -> Brain | None:
    image = images[reference]
    if not looks_stripped(image):
        return None
    mask = ndimage.binary_fill_holes(image.array != 0)
    return Brain(Volume(mask.astype(np.float32), image.affine), "stripped", reference)


def _by_network(
    own: Own | None, images: Mapping[str, Volume], reference: str, lay: Callable[[str], Volume] | None
) -> Brain | None:
    if own is None:
        return None
    image = images[reference]
    shown = {reference: image} | ({name: lay(name) for name in images if name != reference} if lay else {})
    mask = np.asarray(own(shown), dtype=bool)
    if mask.shape != image.shape:
        raise GeometryError(f"the network's brain mask has shape {mask.shape}, expected {image.shape}")
    return Brain(Volume(mask.astype(np.float32), image.affine), "own", reference) if mask.any() else None


def on_grid(
    brain: Brain, matrix: NDArray[np.float64], affine: NDArray[np.float64], shape: geometry.Shape
) -> NDArray[np.bool_]:
    """The mask on another grid.

    Args:
        brain: the mask.
        matrix: 4×4, space of its image → space of the grid, RAS mm.
        affine: of the grid.
        shape: of the grid.
    """
    moved = Volume(brain.mask.array, matrix @ brain.mask.affine)
    return np.asarray(resample_to(moved, affine, shape, 1).array >= 0.5)


def could_find(own: Own | None) -> bool:
    """Whether a program or a network is there that could find a brain."""
    return own is not None or any(shutil.which(program) for program in _ARGUMENTS)
