"""Defects of voxels that `check_defects.py` plants: lost slices, noise, motion, fields, sequences moved or under each other's name."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import fft, ndimage

from oligovox.cohort.manifest import Case, Cohort
from oligovox.simulate.scanner.kspace import ghost_lines, rotation

Rng = np.random.Generator
Change = Callable[[np.ndarray, np.ndarray, Rng], np.ndarray]
"""(array, affine, chance) → array."""

Plant = Callable[[Case, Path, Rng], Cohort | None]
"""A case, a folder for what is written, chance → a cohort of what is damaged and what that is seen beside; None where it does not fit."""


@dataclass(frozen=True)
class Defect:
    """One kind: its name, the check that should find it, how it is planted, and the grounds it fits (all where empty)."""

    name: str
    check: str
    plant: Plant
    grounds: tuple[str, ...] = ()


def alone(case: Case, **changes: object) -> Cohort:
    """One case, without masks unless they are given."""
    return Cohort(cases=(replace(case, **{"label": None, "brain": None, **changes}),))


def of_voxels(change: Change) -> Plant:
    """Change the voxels of one sequence, drawn by chance."""

    def plant(case: Case, folder: Path, rng: Rng) -> Cohort | None:
        name = sorted(case.images)[int(rng.integers(len(case.images)))]
        return alone(case, images={name: changed(case.images[name], folder, rng, change)})

    return plant


def of_pair(change: Change) -> Plant:
    """The same in one of two sequences; the other stays as it is."""

    def plant(case: Case, folder: Path, rng: Rng) -> Cohort | None:
        if len(case.images) < 2:
            return None
        one, other = rng.permutation(sorted(case.images))[:2].tolist()
        return alone(case, images={one: changed(case.images[one], folder, rng, change), other: case.images[other]})

    return plant


def swapped(one: str, other: str) -> Plant:
    """Two sequences under each other's name."""

    def plant(case: Case, folder: Path, rng: Rng) -> Cohort | None:
        if not {one, other} <= set(case.images):
            return None
        return alone(case, images={one: case.images[other], other: case.images[one]})

    return plant


def one_stripped(case: Case, folder: Path, rng: Rng) -> Cohort | None:
    """One of two sequences without the skull."""
    if case.brain is None:
        return None
    brain = np.asarray(nib.load(case.brain).dataobj) > 0
    return of_pair(lambda array, affine, _: array * brain)(case, folder, rng)


def changed(path: Path, folder: Path, rng: Rng, change: Change) -> Path:
    image = nib.load(path)
    array = np.squeeze(np.asarray(image.dataobj, dtype=np.float32))
    out = folder / f"changed_{path.name.removesuffix('.gz')}"
    nib.save(nib.Nifti1Image(np.rint(change(array, image.affine, rng)).astype(np.int16), image.affine), out)
    return out


def slice_axis(affine: np.ndarray) -> int:
    """The axis that runs head-foot."""
    return int(np.abs(affine[2, :3]).argmax())


def lost(array: np.ndarray, affine: np.ndarray, rng: Rng) -> np.ndarray:
    moved = np.moveaxis(array.copy(), slice_axis(affine), 0)
    first = int(rng.integers(len(moved) // 3, 2 * len(moved) // 3))
    moved[first : first + int(rng.integers(1, 4))] = 0
    return np.moveaxis(moved, 0, slice_axis(affine))


def repeated(array: np.ndarray, affine: np.ndarray, rng: Rng) -> np.ndarray:
    moved = np.moveaxis(array.copy(), slice_axis(affine), 0)
    first = int(rng.integers(len(moved) // 3, 2 * len(moved) // 3))
    moved[first + 1] = moved[first]
    return np.moveaxis(moved, 0, slice_axis(affine))


def clipped(array: np.ndarray, affine: np.ndarray, rng: Rng) -> np.ndarray:
    return array.clip(None, np.percentile(array[array > 0], rng.uniform(95, 99.8)))


def noisy(array: np.ndarray, affine: np.ndarray, rng: Rng) -> np.ndarray:
    inside = array != 0
    sigma = np.median(array[array > 0.3 * np.percentile(array, 99)]) * rng.uniform(0.3, 0.5)
    return np.abs(array + inside * rng.normal(0, sigma, array.shape))


def ghosted(array: np.ndarray, affine: np.ndarray, rng: Rng) -> np.ndarray:
    axis = int(rng.integers(2))
    count = array.shape[axis]
    lines = ghost_lines(count, rng.uniform(0.2, 0.5) * count, rng.uniform(0.12, 0.3))
    space = fft.fft(array, axis=axis) * lines.reshape([-1 if a == axis else 1 for a in range(3)])
    return np.abs(fft.ifft(space, axis=axis))


def uneven(array: np.ndarray, affine: np.ndarray, rng: Rng) -> np.ndarray:
    axis = int(rng.integers(3))
    shown = np.flatnonzero((array > 0.2 * np.percentile(array, 99)).any(axis=tuple(a for a in range(3) if a != axis)))
    ramp = np.interp(np.arange(array.shape[axis]), [shown[0], shown[-1]], [-1, 1]) * rng.uniform(1.2, 1.8)
    return array * np.exp(ramp).reshape([-1 if a == axis else 1 for a in range(3)])


def moved(array: np.ndarray, affine: np.ndarray, mm: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    middle = affine[:3, :3] @ ((np.array(array.shape) - 1) / 2) + affine[:3, 3]
    world = np.eye(4)
    world[:3, :3] = rotation(tuple(degrees))
    world[:3, 3] = middle + mm - world[:3, :3] @ middle
    matrix = np.linalg.inv(affine) @ world @ affine
    return ndimage.affine_transform(array, matrix[:3, :3], matrix[:3, 3], order=1)


def shifted(array: np.ndarray, affine: np.ndarray, rng: Rng) -> np.ndarray:
    way = rng.normal(size=3)
    return moved(array, affine, way / np.linalg.norm(way) * rng.uniform(3, 8), np.zeros(3))


def turned(array: np.ndarray, affine: np.ndarray, rng: Rng) -> np.ndarray:
    degrees = np.zeros(3)
    degrees[int(rng.integers(3))] = rng.choice([-1, 1]) * rng.uniform(4, 9)
    return moved(array, affine, np.zeros(3), degrees)


OF_VOXELS = (
    Defect("slices lost (1 to 3)", "empty_slices", of_voxels(lost)),
    Defect("a slice repeated", "repeated_slices", of_voxels(repeated)),
    Defect("cut off at percentile 95 to 99.8", "clipped", of_voxels(clipped)),
    Defect("noise of 30 to 50 % of the signal", "noisy", of_voxels(noisy)),
    Defect("motion ghosts of 12 to 30 %", "ghosts", of_voxels(ghosted), ("heads",)),
    Defect("field of a factor 11 to 37", "uneven", of_voxels(uneven)),
    Defect("one of two sequences stripped", "stripped_differs", one_stripped, ("heads",)),
    Defect("one of two shifted by 3 to 8 mm", "not_aligned", of_pair(shifted)),
    Defect("one of two turned by 4 to 9 degrees", "not_aligned", of_pair(turned)),
    Defect("FLAIR and T2w swapped", "contrast", swapped("FLAIR", "T2w")),
    Defect("T1w and T2w swapped", "contrast", swapped("T1w", "T2w")),
    Defect("T1w and FLAIR swapped", "contrast", swapped("T1w", "FLAIR")),
)
