"""Each defect of a mask is found by its name, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from oligovox.cohort.bids import read_bids
from oligovox.cohort.manifest import Cohort
from oligovox.doctor.finding import Finding
from oligovox.doctor.labels import compare_masks, drawn, look_at_masks, look_at_scheme
from oligovox.doctor.scan import read_scans


def mask_of(ward: Path, number: int = 1, kind: str = "label-lesion") -> Path:
    name = f"sub-{number:02d}"
    return ward / "derivatives" / "manual" / name / "anat" / f"{name}_{kind}_mask.nii.gz"


def look(ward: Path, scheme: Mapping[str, int] | None = None) -> list[Finding]:
    case = read_bids(ward).cases[0]
    scans, findings = read_scans(case)
    return findings + look_at_masks(case, scans, scheme or {"lesion": 1})


def rewrite(
    path: Path,
    change: Callable[[np.ndarray], np.ndarray] = lambda array: array,
    place: Callable[[np.ndarray], np.ndarray] = lambda affine: affine,
) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), place(image.affine)), path)


def speck(array: np.ndarray) -> np.ndarray:
    array[5, 18, 14] = 1
    return array


def to_the_corner(array: np.ndarray) -> np.ndarray:
    return np.roll(array, (-12, -14, -12), (0, 1, 2))


VALUES = {
    "label_values": (lambda a: a * 7, "error", "has the values 7", "labels"),
    "label_fractions": (lambda a: a * np.float32(0.8), "error", "values such as 0.8", "labels"),
    "empty_label": (lambda a: a * 0, "note", "no lesion in the mask", None),
    "tiny_lesions": (speck, "note", "1 of", None),
    "lesion_outside": (to_the_corner, "warning", "lies outside the brain mask", None),
}


@pytest.mark.parametrize("check", VALUES)
def test_a_defect_is_found_and_only_that(ward: Path, check: str) -> None:
    change, severity, found, repair = VALUES[check]
    assert look(ward) == []
    rewrite(mask_of(ward), change)
    (finding,) = look(ward)
    assert (finding.check, finding.severity, finding.repair) == (check, severity, repair)
    assert found in finding.found
    assert finding.files == (mask_of(ward),)


def shifted(affine: np.ndarray, by: float) -> np.ndarray:
    affine = affine.copy()
    affine[:3, 3] += by
    return affine


def test_a_mask_that_lost_its_header_gets_the_image_s(ward: Path) -> None:
    """Another tool wrote the identity: the same voxels, another place."""
    rewrite(mask_of(ward), place=lambda affine: np.eye(4))
    (finding,) = look(ward)
    assert (finding.check, finding.severity, finding.repair) == ("mask_grid", "error", "header")
    assert finding.numbers["affine"] == nib.load(ward / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz").affine.tolist()


def test_a_mask_a_hair_off_gets_the_image_s_header(ward: Path) -> None:
    rewrite(mask_of(ward), place=lambda affine: shifted(affine, 0.02))
    (finding,) = look(ward)
    assert (finding.check, finding.repair) == ("mask_grid", "header")


def test_a_header_that_runs_the_other_way_is_not_written_over(ward: Path) -> None:
    """Stored from right to left and said so, but 60 mm off: with the image's header the lesion would change sides."""

    def las(affine: np.ndarray) -> np.ndarray:
        affine = affine @ np.array([[-1, 0, 0, 29], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
        affine[0, 3] += 60
        return affine

    rewrite(mask_of(ward), lambda a: a[::-1], las)
    (finding,) = look(ward)
    assert (finding.check, finding.severity, finding.repair) == ("mask_grid", "error", None)
    assert finding.found.endswith("; its axes run LAS, those of FLAIR RAS")
    assert "might be mirrored" in finding.remedy


def without_form(path: Path, change: Callable[[np.ndarray], np.ndarray] = lambda array: array) -> None:
    made = nib.Nifti1Image(change(np.asarray(nib.load(path).dataobj)), None)
    made.header["pixdim"][1:4] = (1, 1, 1.2)
    nib.save(made, path)


def test_a_mask_without_a_form_goes_by_its_voxels_alone(ward: Path) -> None:
    """nibabel takes such a file to run from right to left, about its middle: that is nobody's word."""
    without_form(mask_of(ward))
    assert nib.aff2axcodes(nib.load(mask_of(ward)).affine) == ("L", "A", "S")
    (finding,) = look(ward)
    assert (finding.check, finding.repair, finding.numbers["in_subject_by_its_header"]) == ("mask_grid", "header", 0)
    without_form(mask_of(ward), lambda a: a[2:-2])
    (finding,) = look(ward)
    assert (finding.check, finding.repair) == ("mask_grid", None)


def test_no_mask_gets_the_header_of_an_image_without_a_place(ward: Path) -> None:
    for path in (ward / "sub-01" / "anat").iterdir():
        rewrite(path, place=lambda affine: np.diag([1e-3, 1e-3, 1e-3, 1]) @ affine)
    (brain, label) = look(ward)
    assert {(f.check, f.repair) for f in (brain, label)} == {("mask_grid", None)}
    assert label.remedy == "mend the header of FLAIR first: it does not say where the image lies"


def test_a_mask_drawn_on_finer_voxels_is_resampled(ward: Path) -> None:
    rewrite(
        mask_of(ward),
        lambda a: a.repeat(2, 0).repeat(2, 1).repeat(2, 2),
        lambda affine: affine @ np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 0.5, -0.25], [0, 0, 0, 1]]),
    )
    (finding,) = look(ward)
    assert (finding.check, finding.repair) == ("mask_grid", "grid")
    assert "60 × 72 × 56 voxels against 30 × 36 × 28" in finding.found
    assert finding.numbers["onto"] == str(ward / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz")


def test_a_mask_of_nowhere_is_left_to_a_person(ward: Path) -> None:
    rewrite(mask_of(ward), lambda a: a[:20, :20, :20], lambda affine: shifted(affine, 400))
    (finding,) = look(ward)
    assert (finding.check, finding.repair) == ("mask_grid", None)


def test_brats_to_2020_against_the_newer_scheme(ward: Path) -> None:
    scheme = {"necrotic core": 1, "oedema": 2, "enhancing tumour": 3}
    rewrite(mask_of(ward), lambda a: a * np.uint8(4))
    (finding,) = look(ward, scheme)
    assert (finding.check, finding.repair, finding.numbers["map"]) == (
        "label_values",
        "labels",
        [[1, 1], [2, 2], [4, 3]],
    )
    assert finding.remedy == "--fix writes 3 for 4"
    (unknown,) = look(ward, {"a": 1, "b": 2})  # what 4 means, nobody says
    assert (unknown.check, unknown.repair) == ("label_values", None)


def test_values_with_gaps_are_a_note_of_the_cohort(ward: Path) -> None:
    cohort = read_bids(ward, labels={"core": 1, "oedema": 2, "rim": 4})
    (finding,) = look_at_scheme(cohort)
    assert (finding.check, finding.severity, finding.repair) == ("label_gaps", "note", "labels")
    assert (finding.numbers["map"], len(finding.files)) == ([[1, 1], [2, 2], [4, 3]], 3)
    assert look_at_scheme(read_bids(ward)) == []


def test_where_nobody_looked_is_no_value_and_no_lesion(ward: Path) -> None:
    def unlooked(array: np.ndarray) -> np.ndarray:
        array[:9] = 255
        return array

    rewrite(mask_of(ward), unlooked)
    assert [f.check for f in look(ward)] == ["label_values", "lesion_outside"]
    mask_of(ward).with_name("sub-01_label-lesion_mask.json").write_text(json.dumps({"Unlabelled": 255}))
    assert look(ward) == []


def test_an_empty_brain_mask(ward: Path) -> None:
    rewrite(mask_of(ward, kind="desc-brain"), lambda a: a * 0)
    (finding,) = look(ward)
    assert (finding.check, finding.severity, finding.sequence) == ("empty_brain", "error", "brain")


def test_a_mask_of_somebody_else(ward: Path) -> None:
    def compared(cohort: Cohort) -> list[Finding]:
        found = [drawn(case, read_scans(case)[0]) for case in cohort.cases]
        return compare_masks(label for label in found if label)

    assert compared(read_bids(ward)) == []
    shutil.copy(mask_of(ward, 1), mask_of(ward, 3))
    (finding,) = compared(read_bids(ward))
    assert (finding.check, finding.severity) == ("same_mask", "error")
    assert finding.files == (mask_of(ward, 1), mask_of(ward, 3))
    for number in (1, 3):
        rewrite(mask_of(ward, number), lambda a: a * 0)  # two people without a lesion are nothing to wonder at
    assert compared(read_bids(ward)) == []
