"""Folders of every layout in their real form, from small random volumes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

SIDE = 6


def volume(path: Path, values: Sequence[int] = ()) -> Path:
    """A NIfTI image, or a label map that holds these values and 0."""
    rng = np.random.default_rng(len(path.name))
    path.parent.mkdir(parents=True, exist_ok=True)
    array = rng.integers(1, 900, (SIDE,) * 3).astype(np.int16)
    if values:
        array = np.zeros((SIDE,) * 3, np.uint8)
        array.flat[: len(values)] = values
    nib.save(nib.Nifti1Image(array, np.diag([1, 1, 2, 1])), path)
    return path


def bids(root: Path) -> Path:
    for person in ("01", "02"):
        for sequence in ("T1w", "FLAIR")[: int(person)]:
            volume(root / f"sub-{person}" / "ses-1" / "anat" / f"sub-{person}_ses-1_{sequence}.nii.gz")
    derived = root / "derivatives" / "manual" / "sub-02" / "ses-1" / "anat"
    volume(derived / "sub-02_ses-1_label-lesion_mask.nii.gz", [1])
    volume(derived / "sub-02_ses-1_desc-brain_mask.nii.gz", [1])
    (root / "participants.tsv").write_text("participant_id\tage\nsub-01\t40\nsub-02\tn/a\n")
    return root


def nnunet(root: Path) -> Path:
    for case in ("ms_001", "ms_002"):
        for channel in range(2):
            volume(root / "imagesTr" / f"{case}_{channel:04d}.nii.gz")
        volume(root / "labelsTr" / f"{case}.nii.gz", [1, 2])
    for channel in range(2):
        volume(root / "imagesTs" / f"sub-09_ses-2_{channel:04d}.nii.gz")
    about = {
        "channel_names": {"0": "T1", "1": "FLAIR"},
        "labels": {"background": 0, "lesion": 1, "hole": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(about))
    return root


def datalist(root: Path) -> Path:
    items = []
    for case in ("spleen_2", "spleen_3"):
        volume(root / "imagesTr" / f"{case}.nii.gz")
        volume(root / "labelsTr" / f"{case}.nii.gz", [1])
        items.append({"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"})
    volume(root / "imagesTs" / "spleen_7.nii.gz")
    about = {
        "modality": {"0": "T2"},
        "labels": {"0": "background", "1": "spleen"},
        "numTraining": 2,
        "training": items,
        "test": ["./imagesTs/spleen_7.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(about))
    return root


def brats_old(root: Path) -> Path:
    for case, values in {"BraTS20_Training_001": [1, 2, 4], "BraTS20_Training_002": [1, 2]}.items():
        for sequence in ("t1", "t1ce", "t2", "flair"):
            volume(root / case / f"{case}_{sequence}.nii.gz")
        volume(root / case / f"{case}_seg.nii.gz", values)
    (root / "name_mapping.csv").write_text("Grade,BraTS_2020_subject_ID\nHGG,BraTS20_Training_001\n")
    return root


def brats(root: Path) -> Path:
    for visit, values in {"100": [1, 2, 3, 4], "101": [2]}.items():
        case = f"BraTS-GLI-00005-{visit}"
        for sequence in ("t1n", "t1c", "t2w", "t2f"):
            volume(root / case / f"{case}-{sequence}.nii.gz")
        volume(root / case / f"{case}-seg.nii.gz", values)
    return root


def msseg2016(root: Path) -> Path:
    for part, centre in (("Training", "Center_01"), ("Testing", "Center_01")):
        person = root / part / centre / "Patient_01"
        for sequence in ("FLAIR", "T1", "GADO", "T2", "DP"):
            volume(person / "Preprocessed_Data" / f"{sequence}_preprocessed.nii.gz")
        for sequence in ("3DFLAIR", "3DT1", "3DT1GADO", "T2", "DP"):
            volume(person / "Raw_Data" / f"{sequence}.nii.gz")
        for mask in ("Brain_Mask", "Consensus", *(f"ManualSegmentation_{n}" for n in range(1, 8))):
            volume(person / "Masks" / f"{mask}.nii.gz", [1])
    return root


def isbi2015(root: Path) -> Path:
    for part, person in (("training", "training01"), ("testdata_website", "test01")):
        home = root / part / person
        for visit in ("01", "02"):
            for sequence in ("mprage", "flair", "t2", "pd"):
                volume(home / "preprocessed" / f"{person}_{visit}_{sequence}_pp.nii")
                volume(home / "orig" / f"{person}_{visit}_{sequence}.nii.gz")
            for rater in (1, 2) if part == "training" else ():
                volume(home / "masks" / f"{person}_{visit}_mask{rater}.nii", [1])
    return root


def ljubljana(root: Path) -> Path:
    for start, person in (("patient01_", "patient01"), ("", "patient02")):
        for sequence in ("FLAIR", "T1W", "T1WKS", "T2W"):
            volume(root / person / f"{start}{sequence}.nii.gz")
        volume(root / person / f"{start}consensus_gt.nii.gz", [1])
        volume(root / person / f"{start}brainmask.nii.gz", [1])
    return root


def table(root: Path) -> Path:
    for person in ("p1", "p2"):
        volume(root / person / "flair.nii.gz")
        volume(root / person / "seg.nii.gz", [1])
    text = "PatientID;FLAIR;T1w;mask;age\np1;p1/flair.nii.gz;;p1/seg.nii.gz;44\np2;p2/flair.nii.gz;nan;n/a;51\n"
    (root / "exams.csv").write_text(text)
    return root


TREES = {
    made.__name__: made for made in (bids, nnunet, brats_old, brats, isbi2015, msseg2016, ljubljana, datalist, table)
}


@pytest.fixture(scope="session")
def make() -> Callable[..., Path]:
    """`make("nnunet", root)`: the folder of a layout."""

    def made(name: str, root: Path) -> Path:
        root.mkdir(parents=True, exist_ok=True)
        return TREES[name](root)

    return made


@pytest.fixture(scope="session")
def make_volume() -> Callable[..., Path]:
    """`volume` itself."""
    return volume
