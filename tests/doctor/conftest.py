"""A ward of people who differ, as real ones do: smooth random heads with a lesion, small enough to check in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

SHAPE = (30, 36, 28)


def write_head(root: Path, number: int, sequences: tuple[str, ...] = ("T1w", "FLAIR"), *, nature: int = -1) -> None:
    """Images, brain mask and lesion mask of one person; `nature` is the person, where another name is to have the same."""
    rng = np.random.default_rng(number if nature < 0 else nature)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    brain = sum(axis**2 for axis in axes) < 0.8
    tissue = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.5)
    lesion = np.zeros(SHAPE, bool)
    lesion[12:16, 14:18, 12:15] = True
    name, affine = f"sub-{number:02d}", np.array([[1, 0, 0, -15], [0, 1, 0, -18], [0, 0, 1.2, -16], [0, 0, 0, 1.0]])
    for place, sequence in enumerate(sequences):
        noise = np.random.default_rng(1000 * place + number).normal(0, 4, SHAPE)
        image = (300 + 60 * (1 + place) * tissue / tissue.std() + 150 * lesion + noise) * brain
        save(root / name / "anat" / f"{name}_{sequence}.nii.gz", image.clip(0).round().astype(np.int16), affine)
    derived = root / "derivatives" / "manual" / name / "anat"
    save(derived / f"{name}_desc-brain_mask.nii.gz", brain.astype(np.uint8), affine)
    lesion[rng.integers(8, 20), 10:14, 10:14] = True
    save(derived / f"{name}_label-lesion_mask.nii.gz", lesion.astype(np.uint8), affine)


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, path)


@pytest.fixture(scope="session")
def head() -> Callable[..., None]:
    """`write_head` itself."""
    return write_head


@pytest.fixture
def ward(tmp_path: Path) -> Path:
    """Three people with T1w, FLAIR, brain and lesion masks."""
    for number in (1, 2, 3):
        write_head(tmp_path / "ward", number)
    return tmp_path / "ward"
