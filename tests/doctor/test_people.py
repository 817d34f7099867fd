"""Who is there twice: copies under any disguise, the same head, and either across training and test; and nobody else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from oligovox.cohort.bids import read_bids
from oligovox.cohort.layouts import read
from oligovox.cohort.manifest import Cohort
from oligovox.cohort.splits import Split
from oligovox.doctor.finding import Finding
from oligovox.doctor.people import look_at_people, traits_of
from oligovox.doctor.scan import read_scans
from oligovox.experiment.cohorts import read_cohort


def look(cohort: Cohort, split: Split | None = None) -> list[Finding]:
    traits = [trait for case in cohort.cases for trait in traits_of(case, read_scans(case)[0])]
    return look_at_people(traits, cohort, split)


def image_of(ward: Path, number: int, sequence: str = "T1w") -> Path:
    name = f"sub-{number:02d}"
    return ward / name / "anat" / f"{name}_{sequence}.nii.gz"


def as_it_is(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return image


def other_header(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.asarray(image.dataobj), np.diag([2, 2, 2, 1]))


def turned(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return image.as_reoriented(np.array([[1, -1], [2, 1], [0, 1]]))


def mirrored_by_mistake(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.asarray(image.dataobj)[::-1].copy(), image.affine)


def as_bytes(image: nib.Nifti1Image) -> nib.Nifti1Image:
    array = image.get_fdata()
    return nib.Nifti1Image((array / array.max() * 255).round().astype(np.uint8), image.affine)


def scaled_and_shifted(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image((image.get_fdata() * 0.37 - 5).astype(np.float32), image.affine)


DISGUISES = [as_it_is, other_header, turned, mirrored_by_mistake, as_bytes, scaled_and_shifted]


@pytest.mark.parametrize("disguise", DISGUISES, ids=lambda d: d.__name__)
def test_a_copy_under_another_name(ward: Path, disguise: Callable[[nib.Nifti1Image], nib.Nifti1Image]) -> None:
    assert look(read_bids(ward)) == []
    nib.save(disguise(nib.load(image_of(ward, 1))), image_of(ward, 3))
    (finding,) = look(read_bids(ward))
    assert (finding.check, finding.severity, finding.sequence) == ("duplicate_image", "error", "T1w")
    assert finding.found == "sub-01 and sub-03: the same voxels (T1w)"
    assert finding.files == (image_of(ward, 1), image_of(ward, 3))
    (leak,) = look(read_bids(ward), Split(train=("01", "02"), validation=(), test=("03",), seed=0))
    assert (leak.check, leak.severity) == ("train_test", "error")


def test_the_same_head_scanned_again(ward: Path, head: Callable[..., None]) -> None:
    """Other noise and another grid: no voxel is equal."""
    head(ward, 4, nature=2)
    for sequence in ("T1w", "FLAIR"):
        path = image_of(ward, 4, sequence)
        image = nib.load(path)
        array = ndimage.zoom(image.get_fdata(), (0.9, 0.9, 1.2), order=1).astype(np.float32)
        nib.save(nib.Nifti1Image(array, image.affine @ np.diag([1 / 0.9, 1 / 0.9, 1 / 1.2, 1])), path)
    (finding,) = look(read_bids(ward))
    assert (finding.check, finding.severity, finding.repair) == ("same_person", "warning", None)
    assert finding.numbers["cases"] == ["sub-02", "sub-04"]
    (leak,) = look(read_bids(ward), Split(train=("01", "02"), validation=(), test=("03", "04"), seed=0))
    assert (leak.check, leak.severity) == ("same_person", "warning")  # a likeness is no proof
    assert leak.found.endswith("one in training and one in test")


def test_two_visits_of_one_person_may_be_alike_but_not_equal(ward: Path) -> None:
    cohort = read_bids(ward)
    one = cohort.cases[0]
    (ward / "again").mkdir()
    noise = np.random.default_rng(5).normal(0, 25, nib.load(image_of(ward, 1)).shape)
    image = nib.load(image_of(ward, 1))
    nib.save(nib.Nifti1Image(np.float32(image.get_fdata() + noise), image.affine), ward / "again" / "T1w.nii.gz")
    again = replace(
        one, session="2", images={"T1w": ward / "again" / "T1w.nii.gz", "FLAIR": image_of(ward, 2, "FLAIR")}
    )
    visits = Cohort(cases=(replace(one, session="1"), again))
    assert look(visits) == []
    (finding,) = look(Cohort(cases=(replace(one, session="1"), replace(one, session="2"))))
    assert (finding.check, finding.severity) == ("duplicate_image", "warning")


def test_one_file_for_two_sequences(ward: Path) -> None:
    shutil.copy(image_of(ward, 2, "T1w"), image_of(ward, 2, "FLAIR"))
    (finding,) = look(read_bids(ward))
    assert (finding.check, finding.severity, finding.case) == ("duplicate_image", "error", "sub-02")
    assert "FLAIR and T1w" in finding.found or "T1w and FLAIR" in finding.found


def test_training_and_test_by_the_folders_of_nnunet(ward: Path, tmp_path: Path) -> None:
    root = tmp_path / "Dataset001_Ward"
    for name, number, folder in (("a", 1, "Tr"), ("b", 2, "Tr"), ("c", 3, "Ts"), ("d", 1, "Ts")):
        for channel, sequence in enumerate(("T1w", "FLAIR")):
            target = root / f"images{folder}" / f"{name}_{channel:04d}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image_of(ward, number, sequence), target)
    about = {
        "channel_names": {"0": "T1", "1": "FLAIR"},
        "labels": {"background": 0, "lesion": 1},
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(about))
    (finding,) = look(read(root))
    assert (finding.check, finding.severity) == ("train_test", "error")
    assert finding.found == "sub-a and sub-d: the same voxels (FLAIR, T1w), one in training and one in test"
    for path in (root / "imagesTs").glob("d_*"):
        path.rename(path.with_name(path.name.replace("d_", "sub-a_ses-2_")))
    for path in (root / "imagesTr").glob("a_*"):
        path.rename(path.with_name(path.name.replace("a_", "sub-a_ses-1_")))
    assert {f.check for f in look(read(root))} == {"train_test"}


def test_what_a_case_lacks_is_a_note(ward: Path) -> None:
    image_of(ward, 2, "FLAIR").unlink()
    (finding,) = look(read_bids(ward))
    assert (finding.check, finding.severity) == ("missing_sequence", "note")
    assert finding.found == "only T1w; without FLAIR"


@pytest.mark.real
@pytest.mark.parametrize("folder", ["brats", "brats13_nc"])
def test_different_people_in_one_space_are_different(real_data: Path, folder: str) -> None:
    """Skull-stripped and registered to one atlas: as alike as different people get."""
    if not (real_data / folder).is_dir():
        pytest.skip(f"no {folder} at {real_data}")
    cohort = read_cohort(real_data / folder)
    cases = tuple(replace(case, images={"FLAIR": case.images["FLAIR"]}) for case in cohort.cases)
    assert look(Cohort(cases=cases, labels=cohort.labels)) == []
