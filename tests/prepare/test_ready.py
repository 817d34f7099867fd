"""Raw exams on several grids become one exam on one grid that the BIDS reader reads, and predictions find the way back."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from oligovox.cohort.bids import read_bids
from oligovox.cohort.manifest import Case
from oligovox.errors import GeometryError, LabelError, SettingsError
from oligovox.prepare import ready as module
from oligovox.prepare.bias import correct_bias
from oligovox.prepare.brain import find_brain, looks_stripped, run_program
from oligovox.prepare.geometry import Volume, read_volume, resample_to, shifted
from oligovox.prepare.ready import Ready, ready_person
from oligovox.prepare.ready_back import back
from oligovox.prepare.ready_files import begin, folder_of, write_image
from oligovox.prepare.registration import Registration, shift_and_turn
from oligovox.report.ready import warnings_of

LABELS = {"lesion": 1}
SIDE, STEP = 44, 4.0
MOVE = np.eye(4)
MOVE[:3, :3] = Rotation.from_euler("xyz", (3, -2, 5), degrees=True).as_matrix()
MOVE[:3, 3] = 4.0, -3.0, 2.0


def ellipsoid(centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    axes = np.stack(np.meshgrid(*[(np.arange(SIDE) - SIDE / 2) * STEP] * 3, indexing="ij"))
    apart = (axes - np.reshape(centre, (3, 1, 1, 1))) / np.reshape(radii, (3, 1, 1, 1))
    return (apart**2).sum(0) < 1


def anatomy() -> dict[str, np.ndarray]:
    """Masks of a crude head: skin, brain, ventricles, a few landmarks and two lesions."""
    brain = ellipsoid((0, 0, 0), (58, 70, 52))
    return {
        "head": ellipsoid((0, 4, -4), (72, 86, 68)),
        "bone": ellipsoid((0, 0, 0), (65, 77, 59)) & ~brain,
        "brain": brain,
        "fluid": ellipsoid((-10, 6, 6), (9, 22, 14)) | ellipsoid((12, 0, 4), (8, 26, 12)),
        "grey": ellipsoid((30, 30, -20), (10, 14, 12)) | ellipsoid((-28, -34, 24), (14, 9, 10)),
        "lesion": ellipsoid((28, -20, 20), (11, 9, 10)) | ellipsoid((-30, 12, 22), (9, 9, 12)),
    }


CONTRASTS = {
    "FLAIR": {"head": 90, "bone": 10, "brain": 100, "fluid": 20, "grey": 125, "lesion": 190},
    "T1w": {"head": 150, "bone": 15, "brain": 120, "fluid": 25, "grey": 85, "lesion": 70},
}


def paint(contrast: dict[str, float], seed: int) -> np.ndarray:
    image = np.zeros((SIDE,) * 3)
    for name, mask in anatomy().items():
        image[mask] = contrast[name]
    noise = np.random.default_rng(seed).normal(0, 2, image.shape)
    return (ndimage.gaussian_filter(image, 0.6) + noise).clip(1).round().astype(np.float32)


AFFINE = np.diag([STEP, STEP, STEP, 1.0])
AFFINE[:3, 3] = -SIDE / 2 * STEP


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def exam(tmp_path: Path) -> Case:
    """FLAIR, and a T1w for which the head had moved, on a grid of its own; brain and lesions are drawn on the FLAIR."""
    raw = tmp_path / "raw"
    t1 = Volume(paint(CONTRASTS["T1w"], 1), AFFINE)
    grid = MOVE @ AFFINE @ np.diag([1.1, 0.95, 1.2, 1])
    shape = (40, 46, 36)
    images = {
        "FLAIR": save(raw / "sub-01_FLAIR.nii.gz", paint(CONTRASTS["FLAIR"], 0).astype(np.int16), AFFINE),
        "T1w": save(raw / "sub-01_T1w.nii.gz", resample_to(t1, np.linalg.inv(MOVE) @ grid, shape, 1).array, grid),
    }
    masks = {
        name: save(raw / f"{name}.nii.gz", anatomy()[name].astype(np.uint8), AFFINE) for name in ("brain", "lesion")
    }
    return Case(subject="01", images=images, label=masks["lesion"], brain=masks["brain"])


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_there_and_back_again(exam: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, calls = tmp_path / "out", []
    monkeypatch.setattr(module, "resample_to", lambda *a, **k: calls.append(1) or resample_to(*a, **k))
    begin(out, {}, LABELS)
    (record,) = ready_person([exam], Ready(margin=2), LABELS, out)
    assert len(calls) == 2  # each image once
    away = np.array(record["sequences"]["T1w"]["matrix"]) @ MOVE
    shift, turn = shift_and_turn(away, AFFINE, (SIDE,) * 3)
    assert shift < 1
    assert turn < 1
    np.testing.assert_array_equal(record["sequences"]["FLAIR"]["matrix"], np.eye(4))

    (case,) = read_bids(out).cases  # the reader takes it as any other cohort
    assert set(case.images) == {"FLAIR", "T1w"}
    volumes = [read_volume(path) for path in (*case.images.values(), case.label, case.brain)]
    assert len({volume.shape for volume in volumes}) == 1
    flair, label = read_volume(case.images["FLAIR"]), read_volume(case.label)
    original = read_volume(exam.images["FLAIR"])
    here = resample_to(original, flair.affine, flair.shape, 0).array
    inside = read_volume(case.brain).array > 0
    np.testing.assert_array_equal(flair.array[inside], here[inside])  # only cut: the very numbers
    assert not flair.array[~inside].any()
    assert record["brain"]["origin"] == "given"

    prediction = save(tmp_path / "sub-01_label-lesion_mask.nii.gz", label.array.astype(np.uint8), label.affine)
    files = back(prediction, folder_of(exam, out), tmp_path / "back")
    assert {path.name for path in files.values()} == {f"sub-01_{n}_label-lesion_mask.nii.gz" for n in ("FLAIR", "T1w")}
    truth = read_volume(exam.label).array > 0
    assert dice(read_volume(files["FLAIR"]).array > 0, truth) == 1
    t1 = read_volume(exam.images["T1w"])
    planted = resample_to(
        Volume(truth.astype(np.float32), MOVE @ AFFINE), t1.affine, t1.shape, 1
    ).array >= 0.5  # fmt: skip
    returned = read_volume(files["T1w"])
    np.testing.assert_allclose(returned.affine, t1.affine, atol=1e-5)
    through = np.linalg.inv(np.array(record["sequences"]["T1w"]["matrix"]))
    exact = resample_to(Volume(truth.astype(np.float32), through @ AFFINE), t1.affine, t1.shape, 1).array >= 0.5
    assert dice(returned.array > 0, exact) >= 0.98
    assert dice(returned.array > 0, planted) >= 0.85  # voxels of 4 mm, and up to 1 mm off

    before = (folder_of(exam, out) / "anat" / record["record"]).stat().st_mtime_ns
    again = ready_person([exam], Ready(margin=2), LABELS, out)
    assert again == [record]
    assert (folder_of(exam, out) / "anat" / record["record"]).stat().st_mtime_ns == before


def test_a_second_exam_comes_to_the_first(exam: Case, tmp_path: Path) -> None:
    first = Case(subject="01", session="2", images={"FLAIR": exam.images["FLAIR"]}, brain=exam.brain)
    later = save(tmp_path / "raw" / "later.nii.gz", paint(CONTRASTS["FLAIR"], 7), MOVE @ AFFINE)
    second = Case(subject="01", session="10", images={"FLAIR": later})
    settings = Ready(brain="given")
    with pytest.raises(SettingsError, match="brain is 'given'"):
        ready_person([second, first], settings, LABELS, tmp_path / "strict")
    records = ready_person([second, first], Ready(), LABELS, tmp_path / "out")
    assert [record["session"] for record in records] == ["2", "10"]
    assert records[1]["shape"] == records[0]["shape"]
    assert records[1]["space"] == "ses2FLAIR"
    away = np.array(records[1]["sequences"]["FLAIR"]["matrix"]) @ MOVE
    shift, turn = shift_and_turn(away, AFFINE, (SIDE,) * 3)
    assert shift < 1
    assert turn < 1


def test_the_lesions_of_later_exams_are_not_cut(exam: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second exam has a lesion below the brain mask of the first; both exams get a grid that holds it."""
    stays = Registration(np.eye(4), 1.0, 1.0, False, "header", 1.0)
    monkeypatch.setattr("oligovox.prepare.ready_exam.register", lambda *images, **_: stays)
    core = ellipsoid((0, 0, 10), (40, 50, 30))
    low = ellipsoid((0, 0, -55), (9, 9, 12))
    small, lesion = (
        save(tmp_path / f"raw/{n}.nii.gz", m.astype(np.uint8), AFFINE) for n, m in (("s", core), ("l", low))
    )
    again = save(tmp_path / "raw" / "again.nii.gz", read_volume(exam.images["FLAIR"]).array, AFFINE)
    first = Case(subject="01", session="1", images={"FLAIR": exam.images["FLAIR"]}, brain=small)
    second = Case(subject="01", session="2", images={"FLAIR": again}, brain=small, label=lesion)
    records = ready_person([first, second], Ready(margin=0), LABELS, tmp_path / "out")
    assert records[0]["shape"] == records[1]["shape"]
    (step,) = (step for step in records[1]["steps"] if step["step"] == "label")
    assert step["lesion_mm3_native"] == pytest.approx(low.sum() * STEP**3)
    assert step["lesion_mm3_ready"] == pytest.approx(step["lesion_mm3_native"])
    assert ready_person([first, second], Ready(margin=0), LABELS, tmp_path / "out") == records
    nib.save(nib.Nifti1Image((low | core).astype(np.uint8), AFFINE), lesion)  # the first one's grid hangs on it
    assert (
        ready_person([first, second], Ready(margin=0), LABELS, tmp_path / "out")[0]["content"] != records[0]["content"]
    )


def test_a_lesion_that_a_template_cuts_off_is_warned_of(exam: Case, tmp_path: Path) -> None:
    image = read_volume(exam.images["FLAIR"])
    lower = save(tmp_path / "raw" / "template.nii.gz", image.array[:, :, : SIDE // 2 + 5], AFFINE)
    case = Case(subject="01", images={"FLAIR": exam.images["FLAIR"]}, label=exam.label, brain=exam.brain)
    (record,) = ready_person([case], Ready(template=lower), LABELS, tmp_path / "out")
    (step,) = (step for step in record["steps"] if step["step"] == "label")
    kept = anatomy()["lesion"][:, :, : SIDE // 2 + 5].sum() / anatomy()["lesion"].sum()
    assert step["lesion_mm3_ready"] / step["lesion_mm3_native"] == pytest.approx(kept, abs=0.05)
    assert any("of the lesions' volume" in warning for warning in warnings_of(record))


def test_a_brain_that_misses_the_ready_grid_is_refused(exam: Case, tmp_path: Path) -> None:
    flair = exam.images["FLAIR"]
    away = AFFINE.copy()
    away[:3, 3] = 5000
    flat = save(tmp_path / "raw" / "flat.nii.gz", np.ones((10, 10, 10), np.float32), away)
    case = Case(subject="01", images={"FLAIR": flair}, brain=exam.brain)
    with pytest.raises(GeometryError, match="outside the grid of flat"):
        ready_person([case], Ready(template=flat), LABELS, tmp_path / "out")
    wide = np.pad(read_volume(flair).array, ((0, 0), (0, 0), (0, 12)))
    beside = np.zeros(wide.shape, np.uint8)
    beside[20:24, 20:24, -6:] = 1
    later = Case(
        subject="01", session="2", images={"FLAIR": save(tmp_path / "raw/w.nii.gz", wide, AFFINE)},
        brain=save(tmp_path / "raw/b.nii.gz", beside, AFFINE),
    )  # fmt: skip
    first = Case(subject="01", session="1", images={"FLAIR": flair}, brain=exam.brain)
    with pytest.raises(GeometryError, match=r"01_ses-2: the brain mask .* outside the grid"):
        ready_person([first, later], Ready(), LABELS, tmp_path / "out")


def test_a_slab_that_overlaps_is_not_said_to_lie_apart(exam: Case, tmp_path: Path, caplog) -> None:
    slab = save(tmp_path / "raw" / "slab.nii.gz", paint(CONTRASTS["T1w"], 1)[:, :, 20:22], shifted(AFFINE, (0, 0, 20)))
    case = Case(subject="01", images={"FLAIR": exam.images["FLAIR"], "T1w": slab}, brain=exam.brain)
    (record,) = ready_person([case], Ready(), LABELS, tmp_path / "out")
    assert "do not overlap" not in caplog.text
    assert not [warning for warning in warnings_of(record) if "overlap" in warning]
    shift, turn = shift_and_turn(
        np.array(record["sequences"]["T1w"]["matrix"]), shifted(AFFINE, (0, 0, 20)), (SIDE, SIDE, 2)
    )
    assert (shift, turn) < (4, 4)


def test_another_mask_of_the_same_name_is_seen(exam: Case, tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    mask = save(
        folder / "sub-01" / "anat" / "sub-01_desc-brain_mask.nii.gz", anatomy()["brain"].astype(np.uint8), AFFINE
    )
    case = Case(subject="01", images={"FLAIR": exam.images["FLAIR"]})
    (one,) = ready_person([case], Ready(derivatives=folder), LABELS, tmp_path / "out")
    nib.save(nib.Nifti1Image(ellipsoid((0, 0, 0), (40, 40, 40)).astype(np.uint8), AFFINE), mask)
    (other,) = ready_person([case], Ready(derivatives=folder), LABELS, tmp_path / "out")
    assert other["brain"]["mL"] < one["brain"]["mL"]
    moved = folder.rename(tmp_path / "elsewhere")
    assert ready_person([case], Ready(derivatives=moved), LABELS, tmp_path / "out") == [other]


def test_one_hot_voxel_does_not_flatten_an_image(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(1, 0.1, (12, 12, 12)).astype(np.float32)
    values[0, 0, 0], values[1, 1, 1] = 20_000, 0
    write_image(tmp_path / "hot.nii.gz", Volume(values, AFFINE), np.ones(values.shape, bool))
    found = read_volume(tmp_path / "hot.nii.gz").array
    assert 0 < found[1, 1, 1] <= values[values > 0].min()
    np.testing.assert_array_equal(found[values > 0], values[values > 0])
    values[0, 0, 0] = 3
    write_image(tmp_path / "plain.nii.gz", Volume(values, AFFINE), None)
    assert nib.load(tmp_path / "plain.nii.gz").get_data_dtype() == np.int16


def test_originals_of_one_name_do_not_overwrite_each_other(exam: Case, tmp_path: Path) -> None:
    names = ("FLAIR", "T1w", "T2w")
    images = {n: save(tmp_path / n / f"{'other' if n == 'T2w' else 'p1'}.nii.gz", paint(CONTRASTS["FLAIR"], i), AFFINE)
              for i, n in enumerate(names)}  # fmt: skip
    case = Case(subject="p1", images=images, brain=exam.brain)
    (record,) = ready_person([case], Ready(), LABELS, tmp_path / "out")
    prediction = save(tmp_path / "dseg.nii.gz", np.ones(record["shape"], np.uint8), np.array(record["affine"]))
    files = back(prediction, folder_of(case, tmp_path / "out"), tmp_path / "back")
    assert [files[n].name for n in names] == ["p1_FLAIR_dseg.nii.gz", "p1_T1w_dseg.nii.gz", "other_dseg.nii.gz"]


def test_a_template_gives_space_grid_and_size(exam: Case, tmp_path: Path) -> None:
    larger = np.diag([1.1, 1.1, 1.1, 1.0])
    stripped = np.where(anatomy()["brain"], paint(CONTRASTS["T1w"], 3), 0)
    template = save(tmp_path / "raw" / "group_template.nii.gz", stripped, larger @ AFFINE)
    case = Case(subject="01", images={"FLAIR": exam.images["FLAIR"]}, label=exam.label, brain=exam.brain)
    (record,) = ready_person([case], Ready(template=template, template_fit="affine"), LABELS, tmp_path / "out")
    matrix = np.array(record["sequences"]["FLAIR"]["matrix"])
    assert np.cbrt(np.linalg.det(matrix[:3, :3])) == pytest.approx(1.1, abs=0.02)
    assert (record["space"], record["shape"]) == ("grouptemplate", [SIDE] * 3)
    (found,) = read_bids(tmp_path / "out").cases
    brain, label = (read_volume(path).array > 0 for path in (found.brain, found.label))
    assert dice(brain, anatomy()["brain"]) > 0.97
    assert dice(label, anatomy()["lesion"]) > 0.85


def test_without_registration_simpleitk_is_not_needed(exam: Case, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(SettingsError, match=r"oligovox\[raw\]"):
        ready_person([exam], Ready(), LABELS, tmp_path / "out")
    assert not list(tmp_path.glob("out/sub-01/anat/*"))
    (record,) = ready_person([exam], Ready(align="never", brain="none"), LABELS, tmp_path / "out")
    assert record["brain"] is None
    assert record["shape"] == [SIDE] * 3  # nothing is cut without a mask


def test_predictions_of_another_grid_or_kind_are_refused(exam: Case, tmp_path: Path) -> None:
    (record,) = ready_person([exam], Ready(align="never"), LABELS, tmp_path / "out")
    folder = folder_of(exam, tmp_path / "out")
    other = save(tmp_path / "other.nii.gz", np.ones((5, 5, 5), np.uint8), np.eye(4))
    with pytest.raises(GeometryError, match="expected the ready grid"):
        back(other, folder, tmp_path / "back")
    half = save(tmp_path / "half.nii.gz", np.full(record["shape"], 0.5, np.float32), np.array(record["affine"]))
    with pytest.raises(LabelError, match="not probabilities"):
        back(half, folder, tmp_path / "back")


def test_every_sequence_and_label_is_read_back(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1, 900, (9, 8, 7)).astype(np.int16)
    susceptibility = (values - 450).astype(np.float32) / 7
    label = np.zeros(values.shape, np.uint8)
    label[2:4, 2:4, 2:4], label[5, 5, 5], label[:, :, 6] = 1, 3, 255
    names = ("FLAIR", "T1wGd", "T2spir", "QSM")
    images = {n: save(tmp_path / f"{n}.nii.gz", susceptibility if n == "QSM" else values, np.eye(4)) for n in names}
    drawn = save(tmp_path / "label.nii.gz", label, np.eye(4))
    labels = {"core": 1, "rim": 3}
    case = Case(subject="a-1", session="x_2", images=images, label=drawn, sparse=True)
    begin(tmp_path / "out", {}, labels)
    ready_person([case], Ready(align="never", brain="none"), labels, tmp_path / "out")
    cohort = read_bids(tmp_path / "out")
    (found,) = cohort.cases
    assert (found.subject, found.session, found.sparse) == ("a1", "x2", True)
    assert set(found.images) == set(names)
    assert cohort.labels == labels
    np.testing.assert_array_equal(read_volume(found.label).array, label)
    np.testing.assert_array_equal(read_volume(found.images["T1wGd"]).array, values)
    step = np.abs(susceptibility).max() / 32767
    np.testing.assert_allclose(read_volume(found.images["QSM"]).array, susceptibility, atol=0.51 * step)


def test_where_the_brain_comes_from(exam: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flair, brain = read_volume(exam.images["FLAIR"]), anatomy()["brain"]
    bare = Case(subject="01", images={"FLAIR": exam.images["FLAIR"]})
    assert not looks_stripped(flair)
    stripped = Volume(np.where(brain, flair.array, 0), AFFINE)
    found = find_brain(bare, {"FLAIR": stripped}, "FLAIR")
    assert found.origin == "stripped"
    assert dice(found.mask.array > 0, brain) == 1
    parts = ndimage.find_objects(brain.astype(np.int8))[0]
    assert looks_stripped(Volume(stripped.array[parts], AFFINE))  # cropped closely it touches every face
    cut = np.where(anatomy()["head"], flair.array, 0)[:, :, 18:]
    assert not looks_stripped(Volume(cut, AFFINE))  # a head without air, whose neck lies beyond the field of view
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_brain(bare, {"FLAIR": flair}, "FLAIR") is None
    own = find_brain(bare, {"FLAIR": flair}, "FLAIR", own=lambda volumes: volumes["FLAIR"].array > 60)
    assert own.origin == "own"
    with pytest.raises(GeometryError, match="expected"):
        find_brain(bare, {"FLAIR": flair}, "FLAIR", own=lambda volumes: np.ones((2, 2, 2), bool))
    program = tmp_path / "mri_synthstrip"
    script = "import sys, nibabel as n, numpy as p\ni = n.load(sys.argv[2])\n"
    script += "n.save(n.Nifti1Image((i.get_fdata() > 60).astype(p.uint8), i.affine), sys.argv[4])\n"
    program.write_text(f"#!{sys.executable}\n{script}")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    ran = find_brain(bare, {"FLAIR": flair}, "FLAIR", own=lambda volumes: brain)
    assert ran.origin == "mri_synthstrip"
    np.testing.assert_array_equal(ran.mask.array > 0, flair.array > 60)
    program.write_text(f"#!{sys.executable}\nimport time; time.sleep(20)")
    assert run_program("mri_synthstrip", flair, "FLAIR", timeout_s=0.3) is None
    assert not [name for name in os.listdir(tmp_path) if name.startswith("oligovox-")]


def test_the_bias_field_goes() -> None:
    x = np.linspace(-1, 1, SIDE)[:, None, None]
    brain = anatomy()["brain"]
    clean = paint(CONTRASTS["FLAIR"], 0)
    fixed, field = correct_bias(Volume(clean * np.exp(0.3 * x).astype(np.float32), AFFINE), brain)
    tissue = brain & ~ndimage.binary_dilation(
        anatomy()["fluid"] | anatomy()["grey"] | anatomy()["lesion"], iterations=2
    )
    tissue &= ndimage.binary_erosion(brain, iterations=2)
    spread = [float(np.std(image[tissue]) / np.mean(image[tissue])) for image in (clean * np.exp(0.3 * x), fixed.array)]
    assert spread[1] < 0.4 * spread[0]
    assert field.low < 1 < field.high
