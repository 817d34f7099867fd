"""What is mended is mended and written down, all else is byte for byte as it was, and the data are never touched."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from oligovox.cohort.bids import read_bids
from oligovox.cohort.manifest import Cohort
from oligovox.doctor.finding import Finding
from oligovox.doctor.header import look_at_headers
from oligovox.doctor.labels import look_at_masks, look_at_scheme
from oligovox.doctor.mend import mend
from oligovox.doctor.scan import read_scans
from oligovox.errors import CohortError, OutputError
from oligovox.experiment.checking import ordered
from oligovox.files import hash_file, read_json


def look(cohort: Cohort) -> list[Finding]:
    findings = look_at_scheme(cohort)
    for case in cohort.cases:
        scans, broken = read_scans(case)
        findings += [*broken, *look_at_headers(case, scans), *look_at_masks(case, scans, cohort.labels)]
    return findings


def image_of(root: Path, number: int, sequence: str = "T1w") -> Path:
    name = f"sub-{number:02d}"
    return root / name / "anat" / f"{name}_{sequence}.nii.gz"


def mask_of(root: Path, number: int, pipeline: str = "manual") -> Path:
    name = f"sub-{number:02d}"
    return root / "derivatives" / pipeline / name / "anat" / f"{name}_label-lesion_mask.nii.gz"


def states(root: Path) -> dict[Path, str]:
    return {path: hash_file(path) for path in root.rglob("*") if path.is_file()}


def spoil(ward: Path) -> None:
    """One defect of each kind that can be repaired, and a truncated image that cannot."""
    path = image_of(ward, 1)  # another tool's qform
    image = nib.load(path)
    made = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    made.set_qform(image.affine + np.array([[0, 0, 0, 7]] + [[0] * 4] * 3), 1)
    nib.save(made, path)
    path = image_of(ward, 2)  # NaN
    array = nib.load(path).get_fdata(dtype=np.float32)
    array[0, 0, :5] = np.nan
    nib.save(nib.Nifti1Image(array, nib.load(path).affine), path)
    path = mask_of(ward, 1)  # finer voxels
    array, affine = np.asarray(nib.load(path).dataobj), nib.load(path).affine
    finer = affine @ np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 0.5, -0.25], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(array.repeat(2, 0).repeat(2, 1).repeat(2, 2), finer), path)
    path = mask_of(ward, 2)  # another value, and the header lost
    nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj) * np.uint8(9), np.eye(4)), path)
    path = image_of(ward, 3)
    path.write_bytes(path.read_bytes()[:9000])


def test_all_that_can_be_mended_is(ward: Path, tmp_path: Path) -> None:
    masks = {number: np.asarray(nib.load(mask_of(ward, number)).dataobj) for number in (1, 2)}
    spoil(ward)
    before, out = states(ward), tmp_path / "mended"
    cohort = read_bids(ward)
    findings = look(cohort)
    assert {f.check for f in findings} == {"sform_qform", "not_finite", "mask_grid", "label_values", "truncated"}
    done = mend(findings, cohort, out)

    assert states(ward) == before
    assert look(read_bids(out)) == []
    for number, mask in masks.items():
        assert np.array_equal(np.asarray(nib.load(mask_of(out, number, "oligovox")).dataobj), mask)
    assert np.array_equal(*(np.asarray(nib.load(image_of(root, 1)).dataobj) for root in (ward, out)))
    assert [Path(one["file"]) for one in done["left_out"]] == [image_of(ward, 3)]
    assert hash_file(image_of(out, 1, "FLAIR")) == hash_file(image_of(ward, 1, "FLAIR"))
    assert not (tmp_path / ".mended.mending").exists()

    assert read_json(out / "mended.json") == done
    assert sorted((a["check"], a["repair"]) for a in done["actions"]) == [
        ("label_values", "labels"), ("mask_grid", "grid"), ("mask_grid", "header"), ("not_finite", "values"), ("sform_qform", "header"),
    ]  # fmt: skip
    for action in done["actions"]:
        assert action["sha256_before"] == before[Path(action["file"])]
        assert action["sha256_after"] == hash_file(out / action["mended"])
        assert action["undo"]
    header = next(a for a in done["actions"] if a["check"] == "sform_qform")
    assert header["was"]["qform"][3] - header["is"]["qform"][3] == pytest.approx(7)
    assert mend(findings, cohort, out) == done  # again: nothing is made anew


def test_labels_with_gaps_are_renumbered_everywhere(ward: Path, tmp_path: Path) -> None:
    scheme = {"core": 1, "oedema": 2, "rim": 4}
    for number in (1, 2, 3):
        image = nib.load(mask_of(ward, number))
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * np.uint8(4), image.affine), mask_of(ward, number))
    cohort = read_bids(ward, labels=scheme)
    done = mend(look(cohort), cohort, tmp_path / "out")
    mended = read_bids(tmp_path / "out")
    assert mended.labels == {"core": 1, "oedema": 2, "rim": 3}
    assert [set(np.unique(nib.load(case.label).dataobj)) for case in mended.cases] == [{0, 3}] * 3
    assert (len(done["actions"]), done["actions"][0]["undo"]) == (3, "renumber 3 → 4")
    assert look(mended) == []


def test_repeated_runs_are_looked_at_and_mended_too(ward: Path, tmp_path: Path) -> None:
    first = image_of(ward, 1)
    first = first.rename(first.with_name("sub-01_run-1_T1w.nii.gz"))
    array = nib.load(first).get_fdata(dtype=np.float32) + 1
    array[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(array, nib.load(first).affine), first.with_name("sub-01_run-2_T1w.nii.gz"))
    cohort = read_bids(ward)
    (finding,) = look(cohort)
    assert (finding.check, finding.sequence) == ("not_finite", "T1w_run-2")
    (action,) = mend([finding], cohort, tmp_path / "out")["actions"]
    assert action["mended"] == "sub-01/anat/sub-01_run-2_T1w.nii.gz"
    case = read_bids(tmp_path / "out").cases[0]
    assert hash_file(case.images["T1w"]) == hash_file(first)
    (second,) = case.repeats["T1w"]
    array[0, 0, 0] = 0
    assert np.array_equal(nib.load(second).get_fdata(), array)


def test_metres_become_mm_and_every_byte_of_the_voxels_stays(ward: Path, tmp_path: Path) -> None:
    path = image_of(ward, 1)
    data = bytearray(gzip.decompress(path.read_bytes()))
    header = nib.Nifti1Header(bytes(data[:348]))
    affine = np.diag([1e-3] * 3 + [1]) @ header.get_sform()
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    header.set_xyzt_units("meter")
    data[:348] = header.binaryblock
    data[112:120] = np.array([0.5, 3], "<f4").tobytes()  # scale factors must survive
    path.write_bytes(gzip.compress(bytes(data)))
    cohort = read_bids(ward)
    mend(look(cohort), cohort, tmp_path / "out")
    new = gzip.decompress(image_of(tmp_path / "out", 1).read_bytes())
    assert new[348:] == bytes(data[348:])
    assert new[112:120] == bytes(data[112:120])
    assert nib.load(image_of(tmp_path / "out", 1)).header.get_zooms() == pytest.approx((1, 1, 1.2))
    assert look(read_bids(tmp_path / "out")) == []


def test_a_label_that_cannot_be_written_is_left_out_and_said(ward: Path, tmp_path: Path) -> None:
    path = mask_of(ward, 2)
    array = np.asarray(nib.load(path).dataobj).copy()
    array[3] = 2
    nib.save(nib.Nifti1Image(array, nib.load(path).affine), path)
    cohort = read_bids(ward)
    done = mend(look(cohort), cohort, tmp_path / "out")
    assert done["left_out"] == [{"case": "sub-02", "file": str(path), "why": "has the values 2"}]
    assert [case.name for case in read_bids(tmp_path / "out").labelled] == ["sub-01", "sub-03"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def series(path: Path) -> None:
    redo(path, lambda array: np.stack([array, array], 3))


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "half of it": (cut, "the gzip file ends early"),
    "nothing": (lambda path: path.write_bytes(b""), "the file is empty"),
    "a web page": (lambda path: path.write_bytes(b"<html>"), "a file called .gz that is no gzip file"),
    "a series": (series, "4-D"),
    "one slice": (lambda path: redo(path, lambda array: array[:, :, 14:15]), "30 × 36 × 1 voxels"),
    "zeros": (lambda path: redo(path, np.zeros_like), "every voxel is 0"),
    "NaN alone": (lambda path: redo(path, lambda a: np.full(a.shape, np.nan, np.float32)), "NaN"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_an_image_that_cannot_be_used_is_left_out_and_said(
    ward: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    spoilt = image_of(ward, 2)
    DAMAGED[damage][0](spoilt)
    before, cohort = states(ward), read_bids(ward)
    done = mend(look(cohort), cohort, tmp_path / "out")
    (left,) = done["left_out"]
    assert (left["case"], left["file"]) == ("sub-02", str(spoilt))
    assert DAMAGED[damage][1] in left["why"]
    assert f"{spoilt}: left out: {left['why']}" in caplog.text
    mended = read_bids(tmp_path / "out")
    assert [list(case.images) for case in mended.cases] == [["FLAIR", "T1w"], ["FLAIR"], ["FLAIR", "T1w"]]
    assert len(mended.labelled) == 3
    assert look(mended) == []
    assert states(ward) == before
    assert mend(look(cohort), cohort, tmp_path / "out") == done


def test_an_exam_without_a_usable_image_is_left_out_whole(ward: Path, tmp_path: Path) -> None:
    for path, damage in ((image_of(ward, 2), cut), (image_of(ward, 2, "FLAIR"), series)):
        damage(path)
    cohort = read_bids(ward)
    done = mend(look(cohort), cohort, tmp_path / "out")
    assert [case.name for case in read_bids(tmp_path / "out").cases] == ["sub-01", "sub-03"]
    assert {(one["case"], one["file"]) for one in done["left_out"]} == {
        ("sub-02", str(path)) for path in cohort.cases[1].files.values()
    }
    whys = {one["file"]: one["why"] for one in done["left_out"]}
    assert whys[str(mask_of(ward, 2))] == "no image of this exam can be used"
    for number in (1, 3):
        for sequence in ("T1w", "FLAIR"):
            cut(image_of(ward, number, sequence))
    with pytest.raises(CohortError, match="no image can be used"):
        mend(look(read_bids(ward)), read_bids(ward), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_further_run_takes_the_place_of_a_damaged_one(ward: Path, tmp_path: Path) -> None:
    first = image_of(ward, 1)
    second = first.with_name("sub-01_run-2_T1w.nii.gz")
    first = first.rename(first.with_name("sub-01_run-1_T1w.nii.gz"))
    second.write_bytes(first.read_bytes())
    cut(first)
    cohort = read_bids(ward)
    done = mend(look(cohort), cohort, tmp_path / "out")
    assert [one["file"] for one in done["left_out"]] == [str(first)]
    case = read_bids(tmp_path / "out").cases[0]
    assert hash_file(case.images["T1w"]) == hash_file(second)
    assert case.repeats == {}


def test_a_damaged_brain_mask_is_left_out(ward: Path, tmp_path: Path) -> None:
    cohort = read_bids(ward)
    cut(cohort.cases[0].brain or ward)
    done = mend(look(cohort), cohort, tmp_path / "out")
    assert [one["file"] for one in done["left_out"]] == [str(cohort.cases[0].brain)]
    assert [case.brain is None for case in read_bids(tmp_path / "out").cases] == [True, False, False]


def test_regions_go_into_the_copy(ward: Path, tmp_path: Path) -> None:
    cohort = replace(
        read_bids(ward, labels={"lesion": 1, "core": 2}),
        regions={"whole": ("lesion", "core"), "core": ("core",)},
    )
    cut(image_of(ward, 2))
    mend(look(cohort), cohort, tmp_path / "out")
    again = read_bids(tmp_path / "out")
    assert (again.labels, again.regions) == (cohort.labels, cohort.regions)


def test_half_a_file_says_how_much_could_be_unpacked(ward: Path) -> None:
    path = image_of(ward, 1)
    whole = len(gzip.decompress(path.read_bytes()))
    cut(path)
    (finding,) = (f for f in look(read_bids(ward)) if f.check == "truncated")
    match = re.fullmatch(r"the gzip file ends early, after (\d+) unpacked bytes", finding.found)
    assert match
    assert whole / 4 < int(match[1]) < whole


def test_a_killed_run_goes_on(ward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(ward)
    cohort, out = read_bids(ward), tmp_path / "out"
    findings = look(cohort)
    with monkeypatch.context() as patch:
        patch.setattr("oligovox.doctor.mend.bids_write.write", _killed)
        with pytest.raises(KeyboardInterrupt):
            mend(findings, cohort, out)
    assert not out.exists()
    made = sorted((tmp_path / ".out.mending" / "files").glob("*.nii.gz"))
    assert len(made) == 4
    with monkeypatch.context() as patch:
        patch.setattr("oligovox.doctor.mend._apply", _killed)  # would be called to make one anew
        assert len(mend(findings, cohort, out)["actions"]) == 5


def _killed(*arguments: object, **more: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "place", [lambda ward: ward / "sub-01" / "anat" / "out", lambda ward: ward, lambda ward: ward.parent]
)
def test_out_must_not_touch_the_data(ward: Path, place: Callable[[Path], Path]) -> None:
    before = states(ward)
    with pytest.raises(OutputError, match="choose a folder outside of it"):
        mend([], read_bids(ward), place(ward))
    assert states(ward) == before


def test_what_is_there_is_not_overwritten(ward: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="is there already"):
        mend([], read_bids(ward), tmp_path / "out")


def test_a_label_of_nan_alone_is_left_out(ward: Path, tmp_path: Path) -> None:
    """With 0 in their place it would say that this person has no lesion."""
    redo(mask_of(ward, 1), lambda array: np.full(array.shape, np.nan, np.float32))
    cohort = read_bids(ward)
    done = mend(look(cohort), cohort, tmp_path / "out")
    assert [one["file"] for one in done["left_out"]] == [str(mask_of(ward, 1))]
    assert [case.name for case in read_bids(tmp_path / "out").labelled] == ["sub-02", "sub-03"]


def redo(
    path: Path,
    voxels: Callable[[np.ndarray], np.ndarray] = lambda array: array,
    *,
    change: np.ndarray | None = None,
    mm: np.ndarray | None = None,
    qform_off: float = 0,
    codes: tuple[int, int] = (1, 1),
    unit: str = "mm",
) -> None:
    """Write a file anew: other voxels, affine = mm @ affine @ change, forms that disagree by `qform_off` mm in x."""
    image = nib.load(path)
    affine = (np.eye(4) if mm is None else mm) @ image.affine @ (np.eye(4) if change is None else change)
    made = nib.Nifti1Image(voxels(np.asarray(image.dataobj)), affine)
    made.header.set_sform(affine, codes[0])
    made.header.set_qform(along_x(qform_off) @ affine, codes[1])
    made.header.set_xyzt_units(unit)
    made.header["vox_offset"] = 352
    path.write_bytes(
        gzip.compress(made.header.binaryblock + made.to_bytes()[348:], 1)
    )  # codes as asked, which nibabel would change


def along_x(mm: float) -> np.ndarray:
    return np.array([[1, 0, 0, mm], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def turn(path: Path, axes: str) -> None:
    """The same image, its voxels stored in another order, as the header then says."""
    image = nib.load(path)
    now, wanted = nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes)
    made = image.as_reoriented(nib.orientations.ornt_transform(now, wanted))
    made.set_qform(made.affine, 1)
    nib.save(made, path)


def lesion_mm(path: Path) -> np.ndarray:
    """Scanner positions of the marked voxels, (n, 3), in an order of their own."""
    image = nib.load(path)
    points = nib.affines.apply_affine(image.affine, np.argwhere(np.asarray(image.dataobj).squeeze() > 0.4))
    return points[np.lexsort(np.round(points * 5).T)]


WITHOUT_SHRINKING = (Phase.explicit, Phase.generate)  # an example takes a second, and says enough
METRE = np.diag([1e-3, 1e-3, 1e-3, 1])
HALF = np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 0.5, -0.25], [0, 0, 0, 1]])
CUT = np.array([[1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def nan_in_air(array: np.ndarray) -> np.ndarray:
    array = array.astype(np.float32)
    array[0, 0] = np.nan
    return array


REPAIRABLE: dict[str, Callable[[list[Path], Path], None]] = {
    "a mask without a form": lambda images, mask: redo(mask, codes=(0, 0)),
    "a mask a hair off": lambda images, mask: redo(mask, mm=along_x(0.02)),
    "a mask far off": lambda images, mask: redo(mask, mm=along_x(80)),
    "a mask far off whose forms disagree": lambda images, mask: redo(mask, mm=along_x(80), qform_off=5),
    "a mask in metres": lambda images, mask: redo(mask, mm=METRE, unit="meter"),
    "a mask on finer voxels": lambda images, mask: redo(mask, lambda a: a.repeat(2, 0).repeat(2, 1).repeat(2, 2), change=HALF),
    "a mask of fewer slices and four axes": lambda images, mask: redo(mask, lambda a: a[2:, :, :, None], change=CUT),
    "a mask of another value": lambda images, mask: redo(mask, lambda a: a * np.uint8(7)),
    "a mask of fractions": lambda images, mask: redo(mask, lambda a: a * np.float32(0.8)),
    "a mask whose forms disagree": lambda images, mask: redo(mask, qform_off=7),
    "an image whose forms disagree": lambda images, mask: redo(images[0], qform_off=7),
    "an image with an unused form": lambda images, mask: redo(images[1], qform_off=7, codes=(1, 0)),
    "an image with NaN": lambda images, mask: redo(images[0], nan_in_air),
    "images in metres": lambda images, mask: [redo(path, mm=METRE, unit="meter") for path in images],
    "mm that are said to be micrometres": lambda images, mask: redo(images[0], unit="micron"),
    "a hair between images": lambda images, mask: [redo(path, mm=along_x(0.02)) for path in (images[1], mask)],
    "a hair, and a form nobody uses": lambda images, mask: [
        redo(images[1], mm=along_x(0.02), qform_off=7, codes=(1, 0)),
        redo(mask, mm=along_x(0.02)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("defect", REPAIRABLE)
@settings(max_examples=2, deadline=None, phases=WITHOUT_SHRINKING)
@given(axes=st.sampled_from(["RAS", "LAS", "LPS", "PIR", "ASL"]))
def test_what_was_mended_has_no_error_and_its_lesions_in_place(
    head: Callable[..., None], defect: str, axes: str
) -> None:
    with TemporaryDirectory() as folder:
        root, out = Path(folder) / "data", Path(folder) / "out"
        head(root, 1)
        for path in root.rglob("*.nii.gz"):
            turn(path, axes)
        right = lesion_mm(mask_of(root, 1))
        REPAIRABLE[defect]([image_of(root, 1, "FLAIR"), image_of(root, 1)], mask_of(root, 1))
        findings = ordered(look(read_bids(root)))  # as `check` gives them
        assert any(f.repair for f in findings)
        mend(findings, read_bids(root), out)
        assert [f for f in look(read_bids(out)) if f.severity == "error" or f.repair] == []
        assert lesion_mm(mask_of(out, 1, "oligovox")) == pytest.approx(right, abs=0.05)


@settings(max_examples=14, deadline=None, phases=WITHOUT_SHRINKING)
@example(image_axes="RAS", mask_axes="LAS", off=(60, 0, 0))
@given(
    image_axes=st.sampled_from(["RAS", "LAS", "LPS"]),
    mask_axes=st.sampled_from(["RAS", "LAS", "LPS", "RPS", "PIR", "ASL"]),
    off=st.tuples(*[st.sampled_from([0, 0, 0, -3, 12, 60])] * 3),
)
def test_left_stays_left(head: Callable[..., None], image_axes: str, mask_axes: str, off: tuple[int, int, int]) -> None:
    """A mask is brought to where it was drawn, or to where its header says, or stays as it is: never to a mirror image of either."""
    with TemporaryDirectory() as folder:
        root, out = Path(folder) / "data", Path(folder) / "out"
        head(root, 1)
        mask, shift = mask_of(root, 1), np.eye(4)
        right, shift[:3, 3] = lesion_mm(mask), np.array(off) * (1, 1, 1.2)  # whole voxels
        for path in root.rglob("*.nii.gz"):
            turn(path, mask_axes if path == mask else image_axes)
        redo(mask, mm=shift)
        findings = look(read_bids(root))
        mend(findings, read_bids(root), out)
        there = lesion_mm(mask_of(out, 1, "oligovox"))
        said = {tuple(point) for point in np.round(right + shift[:3, 3], 1)}
        drawn = there.shape == right.shape and np.allclose(there, right, atol=0.05)
        assert drawn or {tuple(point) for point in np.round(there, 1)} <= said
        if any(f.repair for f in findings):
            assert not [f for f in look(read_bids(out)) if f.severity == "error"]
