"""Tiny cases on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from oligovox.cohort.manifest import Case

Write = Callable[..., Path]
MakeCase = Callable[..., Case]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write(name, array, affine=identity): a NIfTI file of the array's own type."""

    def _write(name: str, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
        return path

    return _write


def brain(seed: int, shape: tuple[int, int, int] = (14, 12, 10)) -> np.ndarray:
    """float32 noise around 100 in a box, 0 around it."""
    array = np.zeros(shape, dtype=np.float32)
    inner = tuple(slice(3, n - 2) for n in shape)
    array[inner] = np.random.default_rng(seed).normal(100, 10, array[inner].shape)
    return array


@pytest.fixture
def make_case(write: Write) -> MakeCase:
    """make_case(subject): FLAIR and T1w on one 1 mm grid, a brain mask, and a lesion of 8 voxels."""

    def _make(subject: str, *, labelled: bool = True, more: Mapping[str, Path] | None = None) -> Case:
        seed = int(subject) if subject.isdigit() else 0
        flair = brain(seed)
        lesion = np.zeros(flair.shape, dtype=np.uint8)
        lesion[5:7, 5:7, 4:6] = 1
        images = {
            "FLAIR": write(f"{subject}_FLAIR.nii.gz", flair),
            "T1w": write(f"{subject}_T1w.nii.gz", brain(seed + 1)),
        }
        return Case(
            subject=subject,
            images={**images, **(more or {})},
            label=write(f"{subject}_lesion.nii.gz", lesion) if labelled else None,
            brain=write(f"{subject}_brain.nii.gz", (flair > 0).astype(np.uint8)),
        )

    return _make
