"""Each defect of a header is found by its name, and nothing else; a clean case gives nothing."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oligovox.cohort.bids import read_bids
from oligovox.cohort.manifest import Case
from oligovox.doctor.finding import Finding
from oligovox.doctor.header import look_at_headers
from oligovox.doctor.scan import read_scan, read_scans


def look(ward: Path) -> list[Finding]:
    """Of the first person."""
    case = read_bids(ward).cases[0]
    scans, findings = read_scans(case)
    return findings + look_at_headers(case, scans)


def t1(ward: Path) -> Path:
    return ward / "sub-01" / "anat" / "sub-01_T1w.nii.gz"


def rewrite(path: Path, change: Callable[[nib.Nifti1Image], nib.Nifti1Image]) -> None:
    image = nib.load(path)
    made = change(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header))
    nib.save(made, path)


def both(image: nib.Nifti1Image, affine: np.ndarray) -> nib.Nifti1Image:
    image.set_sform(affine, 1)
    image.set_qform(affine, 1, strip_shears=True)
    return image


def moved(affine: np.ndarray, x: float) -> np.ndarray:
    affine = affine.copy()
    affine[0, 3] += x
    return affine


def with_code_0(image: nib.Nifti1Image) -> nib.Nifti1Image:
    image.set_sform(moved(image.affine, 9), 0)
    return image


def no_form(image: nib.Nifti1Image) -> nib.Nifti1Image:
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    return image


def qform_moved(image: nib.Nifti1Image) -> nib.Nifti1Image:
    image.set_qform(moved(image.affine, 7.5), 1)
    return image


def sheared(image: nib.Nifti1Image) -> nib.Nifti1Image:
    affine = image.affine.copy()
    affine[0, 2] = 0.2
    return both(image, affine)


def sized(factor: float, unit: str) -> Callable[[nib.Nifti1Image], nib.Nifti1Image]:
    def change(image: nib.Nifti1Image) -> nib.Nifti1Image:
        both(image, np.diag([factor] * 3 + [1]) @ image.affine)
        image.header.set_xyzt_units(unit)
        return image

    return change


def series(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.stack([np.asarray(image.dataobj)] * 2, -1), image.affine, image.header)


def with_values(value: float, *, at: int = 3) -> Callable[[nib.Nifti1Image], nib.Nifti1Image]:
    def change(image: nib.Nifti1Image) -> nib.Nifti1Image:
        array = np.asarray(image.dataobj).astype(np.float32)
        array.flat[:at] = value
        header = image.header.copy()
        header.set_data_dtype(np.float32)
        return nib.Nifti1Image(array, image.affine, header)

    return change


def ran_over(image: nib.Nifti1Image) -> nib.Nifti1Image:
    array = np.asarray(image.dataobj).copy()
    array.flat[0], array.flat[1] = -32768, 32767
    return nib.Nifti1Image(array, image.affine, image.header)


def flipped(image: nib.Nifti1Image) -> nib.Nifti1Image:
    made = image.as_reoriented(np.array([[0, -1], [1, 1], [2, 1]]))
    return both(made, made.affine)


DEFECTS = {
    "sform_qform": (qform_moved, "warning", "7.5 mm apart", "header"),
    "unused_form": (with_code_0, "note", "9 mm from the qform", "header"),
    "no_form": (no_form, "warning", "both 0", None),
    "shear": (sheared, "warning", "off a right angle", None),
    "voxel_size": (sized(0.001, "meter"), "error", "0.001 × 0.001 × 0.0012 mm", "header"),
    "units": (sized(1.0, "micron"), "warning", "says micron", "header"),
    "four_d": (series, "error", "4-D, 30 × 36 × 28 × 2", None),
    "not_finite": (with_values(np.nan), "error", "3 of 30240 voxels", "values"),
    "empty_image": (with_values(0, at=30240), "error", "every voxel is 0", None),
    "overflow": (ran_over, "warning", "both ends of int16", None),
    "mixed_orientation": (flipped, "note", "RAS (FLAIR); LAS (T1w)", None),
    "near_equal_grid": (lambda i: both(i, moved(i.affine, 0.02)), "note", "0.02 mm from the grid of FLAIR", "header"),
    "grids": (lambda i: both(i, moved(i.affine, 3)), "note", "different grids", None),
    "no_overlap": (lambda i: both(i, moved(i.affine, 300)), "error", "no part of space in common", None),
}


@pytest.mark.parametrize("check", DEFECTS)
def test_a_defect_is_found_and_only_that(ward: Path, check: str) -> None:
    change, severity, found, repair = DEFECTS[check]
    assert look(ward) == []
    rewrite(t1(ward), change)
    findings = look(ward)
    assert [f.check for f in findings if f.check != "grids" or check != "shear"] == [
        check
    ]  # sheared is another grid, too
    finding = next(f for f in findings if f.check == check)
    assert (finding.severity, finding.repair, finding.case) == (severity, repair, "sub-01")
    assert found in finding.found
    assert t1(ward) in finding.files


def test_nothing_is_mended_where_no_image_would_be_left(ward: Path) -> None:
    """NaN everywhere, or among zeros: with 0 in its place it would be an empty image."""
    for beside in (np.nan, 0.0):
        rewrite(t1(ward), with_values(beside, at=30240))
        rewrite(t1(ward), with_values(np.nan))
        (finding,) = look(ward)
        assert (finding.check, finding.severity, finding.repair) == ("not_finite", "error", None)
        assert "no finite voxel differs from 0" in finding.remedy


def test_masks_go_with_the_image_whose_header_changes(ward: Path) -> None:
    masks = sorted((ward / "derivatives" / "manual" / "sub-01" / "anat").glob("*.nii.gz"))
    for path in (t1(ward), masks[0]):
        rewrite(path, lambda image: both(image, moved(image.affine, 0.02)))
    (finding,) = look(ward)
    assert (finding.check, finding.repair, finding.files) == ("near_equal_grid", "header", (t1(ward), masks[0]))


def bytes_of(ward: Path) -> bytes:
    return t1(ward).read_bytes()


BROKEN = {
    "truncated": lambda data: data[: len(data) // 2],
    "not_nifti": lambda data: gzip.compress(b"<html>you are not logged in</html>" * 40),
    "unreadable": lambda data: data[:400] + bytes(64) + data[464:],
}


@pytest.mark.parametrize("check", BROKEN)
def test_a_broken_file_is_one_line(ward: Path, check: str) -> None:
    t1(ward).write_bytes(BROKEN[check](bytes_of(ward)))
    (finding,) = look(ward)
    assert (finding.check, finding.severity, finding.files, finding.repair) == (check, "error", (t1(ward),), None)
    assert "\n" not in finding.found


@pytest.mark.parametrize("data", [b"", b"x" * 900, gzip.compress(b"", mtime=0)], ids=["nothing", "noise", "empty_gzip"])
def test_what_is_no_image_is_said_so(ward: Path, data: bytes) -> None:
    t1(ward).write_bytes(data)
    (finding,) = look(ward)
    assert finding.check in ("truncated", "not_nifti")


def test_a_plain_file_cut_short(ward: Path) -> None:
    plain = t1(ward).with_name("sub-01_T1w.nii")
    plain.write_bytes(gzip.decompress(bytes_of(ward))[:-1000])
    t1(ward).unlink()
    (finding,) = look(ward)
    assert finding.check == "truncated"
    assert "its header promises 60832" in finding.found


def test_a_header_that_promises_terabytes_is_not_believed(ward: Path) -> None:
    data = bytearray(gzip.decompress(bytes_of(ward)))
    data[42:48] = np.array([32000, 32000, 32000], "<i2").tobytes()
    t1(ward).write_bytes(gzip.compress(bytes(data)))
    (finding,) = look(ward)
    assert finding.check == "truncated"


def test_scale_factors(ward: Path) -> None:
    data = bytearray(gzip.decompress(bytes_of(ward)))
    data[112:120] = np.array([0, 5], "<f4").tobytes()
    t1(ward).write_bytes(gzip.compress(bytes(data)))
    assert [f.check for f in look(ward)] == ["scale_factor"]
    data[112:120] = np.array([0, 0], "<f4").tobytes()  # "never set", by the standard
    t1(ward).write_bytes(gzip.compress(bytes(data)))
    assert look(ward) == []


def test_thick_slices_are_a_note_of_the_case(ward: Path) -> None:
    for path in (ward / "sub-01" / "anat").iterdir():
        rewrite(path, lambda i: both(i, i.affine @ np.diag([0.7, 0.7, 4, 1])))
    (finding,) = look(ward)
    assert (finding.check, finding.severity) == ("anisotropy", "note")
    assert finding.found == "4.8 mm slices, 0.7 mm pixels (FLAIR, T1w)"


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 4000), flip=st.integers(0, 4000), value=st.integers(0, 255))
def test_no_bytes_raise(tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int, value: int) -> None:
    """Whatever a file holds, it is a scan or a finding."""
    path = tmp_path_factory.getbasetemp() / "any_FLAIR.nii"
    image = nib.Nifti1Image(np.arange(1000, dtype=np.int16).reshape(10, 10, 10), np.eye(4))
    data = bytearray(image.to_bytes())
    data[flip % len(data)] = value
    path.write_bytes(bytes(data[: len(data) - cut % len(data)]))
    case = Case(subject="x", images={"FLAIR": path})
    found = read_scan(case, "FLAIR", path)
    if not isinstance(found, Finding):
        look_at_headers(case, {"FLAIR": found})
