"""A stored case made by hand from one native image, as the prepare room would make it."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from oligovox.files import write_json
from oligovox.prepare.geometry import Placement, Volume, shifted, spacing_of, to_ras
from oligovox.prepare.store import Plan, StoredCase

PLAN = Plan(modalities=("FLAIR", "T1w", "T2w"))


def store_case(
    folder: Path, native: nib.Nifti1Image, *, crop: int = 0, name="sub-01_ses-1", person="01", dataset=""
) -> StoredCase:
    """FLAIR = the image, T1w absent, T2w = minus the image; RAS, `crop` voxels cut off on every side."""
    file = folder / "source" / f"{name}_FLAIR.nii.gz"
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(native, file)
    ras = to_ras(Volume(np.asarray(native.dataobj, dtype=np.float32), native.affine))
    array = ras.array[tuple(slice(crop, side - crop) for side in ras.shape)]
    placement = Placement(native.shape, native.affine, array.shape, shifted(ras.affine, (crop,) * 3))
    home = folder / "store" / name
    home.mkdir(parents=True, exist_ok=True)
    np.save(home / "image.npy", np.stack([array, -array]).astype(np.float16))
    np.save(home / "foreground.npy", array != 0)
    write_json(home / "case.json", {"content": f"{float(np.abs(array).sum())}"})
    return StoredCase(
        folder=home,
        name=name,
        person=person,
        dataset=dataset,
        present=(True, False, True),
        shape=array.shape,
        spacing=spacing_of(placement.prepared_affine),
        labelled=False,
        lesion_voxels=0,
        placement=placement,
        sources={"FLAIR": str(file), "T2w": str(file), "label": "drawn.nii.gz"},
        reference="FLAIR",
    )


@pytest.fixture
def plan() -> Plan:
    return PLAN


@pytest.fixture
def make_case():
    return store_case


@pytest.fixture
def image() -> np.ndarray:
    """(20, 18, 16): multiples of 1/8 that float16 holds exactly, 0 in a margin of 2."""
    array = np.zeros((20, 18, 16), dtype=np.float32)
    array[2:-2, 2:-2, 2:-2] = np.random.default_rng(0).integers(1, 32, (16, 14, 12)) / 8
    return array


@pytest.fixture
def case(tmp_path, image) -> StoredCase:
    return store_case(tmp_path, nib.Nifti1Image(image, np.eye(4)))
