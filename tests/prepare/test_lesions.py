"""From lesion masks to patches: values, borders, sizes, grades, units, and runs that stop half-way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from oligovox.cohort.manifest import Case
from oligovox.errors import CohortError, GeometryError, ImageError, InputError, LabelError, WorkerError
from oligovox.files import read_json, read_tsv, write_tsv
from oligovox.prepare import lesions as module
from oligovox.prepare.geometry import read_volume
from oligovox.prepare.lesion_grades import UNKNOWN, Graded, GradeRule, grades_of, read_grades, unclaimed
from oligovox.prepare.lesion_masks import LesionRule, dilated, find_lesions, kept_lesions, radius_steps
from oligovox.prepare.lesion_store import LesionPlan, LesionStore
from oligovox.prepare.lesions import Exam, extract_lesions
from oligovox.prepare.susceptibility import in_ppb

AFFINE = np.array([[1.0, 0, 0, -12], [0, 1, 0, 5], [0, 0, 1, 7], [0, 0, 0, 1]])
PLAN = LesionPlan(patch=16, lesions=LesionRule(min_volume_mm3=20, around_mm=(2, 4)))
CORNERS = ((3, 12, 12), (16, 8, 18), (1, 1, 1))
"""First voxels of three cubes of 27 mm³; the last one's patch leaves the volume."""


def write(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def make_exam(folder: Path, subject: str = "01", *, speck: bool = True) -> Exam:
    """24³ of noise with three cubes, a speck of one voxel and a table of grades by position."""
    rng = np.random.default_rng(int(subject))
    mask = np.zeros((24, 24, 24), np.uint8)
    rows = []
    for number, corner in enumerate(CORNERS, start=1):
        mask[tuple(slice(c, c + 3) for c in corner)] = 1
        x, y, z = (np.array(corner) + 1 + AFFINE[:3, 3]).tolist()
        rows.append(
            {"id": number, "x_mm": x, "y_mm": y, "z_mm": z, "rim": int(number == 1), "uncertain": int(number == 2)}
        )
    mask[20, 20, 3] = speck
    stem = folder / f"sub-{subject}"
    write_tsv(Path(f"{stem}_grades.tsv"), rows, list(rows[0]))
    qsm = rng.normal(0, 60, mask.shape).astype(np.float32) + 80 * mask
    flair = rng.uniform(50, 300, mask.shape).astype(np.float32)
    images = {"QSM": write(Path(f"{stem}_Chimap.nii.gz"), qsm), "FLAIR": write(Path(f"{stem}_FLAIR.nii.gz"), flair)}
    case = Case(subject=subject, images=images, label=write(Path(f"{stem}_mask.nii.gz"), mask))
    return Exam(case, Path(f"{stem}_grades.tsv"))


def extract(*exams: Exam, out: Path, plan: LesionPlan = PLAN) -> LesionStore:
    return extract_lesions(exams, plan, out, workers=1)


def sidecar(path: Path, **content: object) -> None:
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(content))


# --- values ----------------------------------------------------------------------------------------------------------


def test_patches_hold_the_voxels_around_each_lesion(tmp_path: Path) -> None:
    exam = make_exam(tmp_path)
    store = extract(exam, out=tmp_path / "lesions")
    qsm, flair, mask = (
        np.pad(read_volume(p).array, 16) for p in (exam.case.images["QSM"], exam.case.images["FLAIR"], exam.case.label)
    )
    centres = {(4, 13, 13): None, (17, 9, 19): None, (2, 2, 2): None}
    around = [np.zeros(0)]
    for lesion in store.lesions:
        centre = np.rint(np.array(lesion.position_mm) - AFFINE[:3, 3]).astype(int)
        centres.pop(tuple(centre))
        box = tuple(slice(c + 16 - 8, c + 16 + 8) for c in centre)
        around.append(flair[box][flair[box] != 0])
        seen, image = lesion.seen(), lesion.image()
        assert seen[8, 8, 8] == 2
        np.testing.assert_array_equal(seen == 2, mask[box] * ndimage.label(mask)[0][box].astype(bool) * (seen == 2))
        assert (seen == 2).sum() == lesion.volume_mm3 == 27
        expected = np.clip((qsm[box] + 300) / 600, 0, 1)
        np.testing.assert_allclose(image[0], np.where(seen > 0, expected, 0.5), atol=5e-4)
        assert (image[:, seen == 0] == 0.5).all()
    assert not centres
    low, high = np.percentile(np.concatenate(around), [0.5, 99.5])
    for lesion in store.lesions:
        centre = np.rint(np.array(lesion.position_mm) - AFFINE[:3, 3]).astype(int)
        box = tuple(slice(c + 16 - 8, c + 16 + 8) for c in centre)
        expected = np.clip((flair[box] - low) / (high - low), 0, 1)
        np.testing.assert_allclose(lesion.image()[1], np.where(lesion.seen() > 0, expected, 0.5), atol=5e-4)
    release = PLAN.model_copy(update={"outside": "zero"})
    for lesion in extract(exam, out=tmp_path / "release", plan=release).lesions:
        assert not lesion.image()[:, lesion.seen() == 0].any()
        assert lesion.image()[0, 8, 8, 8] == store.named(lesion.name).image()[0, 8, 8, 8]


def test_a_stripped_skull_is_not_counted_on_any_grid(tmp_path: Path) -> None:
    """Splines make nearly 0 of what is stripped, which was counted: the lower end fell from 50 to 0 wherever an exam was resampled."""
    exam = make_exam(tmp_path)
    place = np.indices((24, 24, 24))
    inside = np.square(place - 12).sum(0) < 100
    write(exam.case.images["FLAIR"], np.where(inside, 200 + 100 * np.cos(place[1] / 5), 0).astype(np.float32))
    ends = []
    for spacing in (1.0, 1.2):
        store = extract(exam, out=tmp_path / f"at {spacing}", plan=PLAN.model_copy(update={"spacing": spacing}))
        ends.append(read_json(store.root / "cases" / "sub-01" / "case.json")["flair_scale"])
    assert ends[0][0] > 99
    assert ends[1] == pytest.approx(ends[0], rel=0.02)


def test_a_lesion_at_the_border_is_padded_with_nothing(tmp_path: Path) -> None:
    store = extract(make_exam(tmp_path), out=tmp_path / "lesions")
    edge = next(lesion for lesion in store.lesions if lesion.position_mm[0] == AFFINE[0, 3] + 2)
    assert not edge.seen()[:6].any()
    assert (edge.seen()[6, 7:10, 7:10] > 0).all()
    assert (edge.image()[:, :6] == 0.5).all()


def test_what_reaches_out_of_a_patch_is_dilated_back_into_it(tmp_path: Path) -> None:
    exam = make_exam(tmp_path)
    mask = np.zeros((24, 24, 24), np.uint8)
    mask[3, 8:17, 8:17] = mask[21, 8:17, 8:17] = mask[3:22, 12, 12] = 1  # two plates just outside of a patch, and a bar
    write(exam.case.label, mask)
    (lesion,) = extract(replace(exam, grades=None), out=tmp_path / "lesions").lesions
    whole = dilated(np.pad(mask > 0, 8), radius_steps(lesion.volume_mm3, 1.0, PLAN.lesions))[12:28, 12:28, 12:28]
    np.testing.assert_array_equal(lesion.seen() > 0, whole)
    assert (lesion.seen() > 0)[0].sum() > 81  # the plate is seen from inside


@pytest.mark.parametrize(("volume", "steps"), [(110, 5), (1000, 5), (8000, 9), (50_000, 16)])
def test_radius_is_that_of_the_paper_at_one_millimetre(volume: float, steps: int) -> None:
    assert radius_steps(volume, 1.0, LesionRule()) == steps
    assert abs(radius_steps(volume, 0.5, LesionRule()) - 2 * steps) <= 1


@given(st.integers(0, 10_000), st.integers(0, 5))
def test_dilation_is_iterated_dilation_by_six_neighbours(seed: int, steps: int) -> None:
    lesion = np.random.default_rng(seed).random((9, 8, 7)) > 0.98
    expected = ndimage.binary_dilation(lesion, iterations=steps) if steps else lesion
    np.testing.assert_array_equal(dilated(lesion, steps), expected)


def test_the_lesion_itself_must_be_large_enough_not_what_is_around_it(tmp_path: Path) -> None:
    exam = make_exam(tmp_path)
    assert len(extract(exam, out=tmp_path / "a")) == 3
    assert read_json(tmp_path / "a" / "cases" / "sub-01" / "case.json")["left_out"] == 1
    larger = PLAN.model_copy(update={"lesions": LesionRule(min_volume_mm3=28)})
    with pytest.raises(CohortError, match=r"none of 1 exams has a lesion of at least 28 mm³"):
        extract(exam, out=tmp_path / "b", plan=larger)


def test_numbers_on_the_native_grid_are_those_of_the_table(tmp_path: Path) -> None:
    exam = make_exam(tmp_path)
    extract(exam, out=tmp_path / "lesions")
    image = nib.load(tmp_path / "lesions" / "cases" / "sub-01" / "lesions.nii.gz")
    for row in read_tsv(tmp_path / "lesions" / "lesions.tsv"):
        voxel = np.rint(np.linalg.inv(image.affine) @ [float(row["x"]), float(row["y"]), float(row["z"]), 1]).astype(
            int
        )
        assert int(np.asarray(image.dataobj)[tuple(voxel[:3])]) == int(row["number"])
        assert row["lesion"] == f"sub-01_lesion-{int(row['number']):03d}"


def test_axis_order_on_disk_does_not_matter(tmp_path: Path) -> None:
    exam = make_exam(tmp_path)
    ras = extract(exam, out=tmp_path / "ras")
    for path in (*exam.case.images.values(), exam.case.label):
        image = nib.load(path)
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("PIL"))
        nib.save(nib.Nifti1Image(image.get_fdata(), image.affine).as_reoriented(turn), path)
    pil = extract(exam, out=tmp_path / "pil")
    for one, other in zip(ras.lesions, pil.lesions, strict=True):
        assert one.row() == other.row()
        np.testing.assert_array_equal(one.image(), other.image())
    numbers = nib.load(tmp_path / "pil" / "cases" / "sub-01" / "lesions.nii.gz")
    np.testing.assert_array_equal(numbers.affine, nib.load(exam.case.label).affine)


def test_patches_have_their_own_voxel_size(tmp_path: Path) -> None:
    exam = make_exam(tmp_path)
    plan = PLAN.model_copy(update={"spacing": 0.5, "patch": 32})
    one, fine = (extract(exam, out=tmp_path / n, plan=p) for n, p in (("1", PLAN), ("2", plan)))
    for coarse, lesion in zip(one.lesions, fine.lesions, strict=True):
        assert lesion.row() == coarse.row()
        assert (lesion.seen() == 2).sum() == pytest.approx(8 * 27, rel=0.1)


def test_confluent_lesions_are_cut_where_they_narrow() -> None:
    axes = np.stack(np.meshgrid(*[np.arange(30)] * 3, indexing="ij"))
    balls = [((axes - np.array(c)[:, None, None, None]) ** 2).sum(0) <= 36 for c in ((8, 15, 15), (21, 15, 15))]
    both = balls[0] | balls[1]
    both[8:22, 15, 15] = True
    cut = LesionRule(split="watershed")
    assert find_lesions(both, (1, 1, 1), LesionRule()).max() == 1
    parts = find_lesions(both, (1, 1, 1), cut)
    np.testing.assert_array_equal(parts > 0, both)
    assert parts.max() == 2
    assert [(parts[ball] == number).mean() > 0.97 for number, ball in enumerate(balls, start=1)] == [True, True]
    assert find_lesions(balls[0], (1, 1, 1), cut).max() == 1
    numbers, volumes = kept_lesions(parts, (1, 1, 1), cut)
    assert numbers.max() == len(volumes) == 2
    assert volumes.sum() == both.sum()


# --- grades ----------------------------------------------------------------------------------------------------------


def by_place(store: LesionStore) -> list[tuple[int, bool]]:
    """Grade and doubt of the cubes, in the order of CORNERS."""
    found = {}
    for lesion in store.lesions:
        place = tuple((np.rint(np.array(lesion.position_mm) - AFFINE[:3, 3]) - 1).astype(int).tolist())
        found[place] = (lesion.grade, lesion.uncertain)
    return [found[corner] for corner in CORNERS]


def with_uncertain(rule: str) -> LesionPlan:
    return LesionPlan.model_validate(PLAN.model_dump() | {"grades": {"uncertain": rule}})


def test_grades_of_a_table_by_position_and_what_becomes_of_doubt(tmp_path: Path) -> None:
    exam = make_exam(tmp_path)
    assert by_place(extract(exam, out=tmp_path / "a")) == [(1, False), (-1, True), (0, False)]
    assert by_place(extract(exam, out=tmp_path / "b", plan=with_uncertain("negative")))[1] == (0, True)
    assert [grade for grade, _ in by_place(extract(replace(exam, grades=None), out=tmp_path / "c"))] == [-1, -1, -1]


def test_grades_of_a_cohort_table_in_words(tmp_path: Path) -> None:
    exam = make_exam(tmp_path)
    places = [(np.array(corner) + 1 + AFFINE[:3, 3]).tolist() for corner in CORNERS]
    texts = ["Rim+", "rim-", "?"]
    rows = [
        {"participant_id": "sub-01", "x": x, "y": y, "z": z, "grade": g}
        for (x, y, z), g in zip(places, texts, strict=True)
    ]
    rows.append({"participant_id": "sub-02", "x": places[1][0], "y": places[1][1], "z": places[1][2], "grade": "1"})
    rows.append({"participant_id": "sub-01", "x": 99.0, "y": 0.0, "z": 0.0, "grade": "1"})
    rows.append({"participant_id": "sub-01", "x": places[0][0] + 1, "y": places[0][1], "z": places[0][2], "grade": "0"})
    table = tmp_path / "grades.tsv"
    write_tsv(table, rows, list(rows[0]))
    store = extract(replace(exam, grades=table), out=tmp_path / "lesions")
    assert by_place(store) == [(1, False), (0, False), (-1, True)]
    assert read_json(tmp_path / "lesions" / "cases" / "sub-01" / "case.json")["grades_without_lesion"] == 1


def test_a_speck_keeps_its_grade_from_its_large_neighbour(tmp_path: Path) -> None:
    """A row that belongs to a lesion too small to be kept must not go to the nearest one that is."""
    exam = make_exam(tmp_path)
    mask = read_volume(exam.case.label).array.astype(np.uint8)
    mask[8, 13, 13] = 1  # three voxels away from the first cube
    write(exam.case.label, mask)
    x, y, z = (np.array([8, 13, 13]) + AFFINE[:3, 3]).tolist()
    write_tsv(
        exam.grades, [{"id": 1, "x_mm": x, "y_mm": y, "z_mm": z, "rim": 1}], ["id", "x_mm", "y_mm", "z_mm", "rim"]
    )
    assert by_place(extract(exam, out=tmp_path / "a"))[0] == (-1, False)


def test_grades_of_maps(tmp_path: Path) -> None:
    exam = make_exam(tmp_path)
    mask = read_volume(exam.case.label).array.astype(np.uint8)
    rims = mask.copy()
    rims[3:6, 12:15, 12] = 2  # a third of the first cube
    assert by_place(extract(replace(exam, grades=write(tmp_path / "rims.nii.gz", rims)), out=tmp_path / "a")) == [
        (1, False), (0, False), (0, False),
    ]  # fmt: skip
    table = tmp_path / "sub-01_desc-instances_dseg.tsv"
    numbers = np.zeros(mask.shape, np.uint16)
    for number, corner in zip((7, 4, 9), CORNERS, strict=True):
        numbers[tuple(slice(c, c + 3) for c in corner)] = number
    write(tmp_path / "sub-01_desc-instances_dseg.nii.gz", numbers)
    write_tsv(
        table, [{"id": 4, "rim": 1, "uncertain": 0}, {"id": 7, "rim": 0, "uncertain": 1}], ["id", "rim", "uncertain"]
    )
    assert by_place(extract(replace(exam, grades=table), out=tmp_path / "b")) == [(-1, True), (1, False), (-1, False)]


def test_a_confluent_lesion_has_a_rim_where_a_smaller_part_has_one() -> None:
    """Component 1 is most of number 5 and all of 3; component 2 is the rest of 5."""
    numbers, instances = np.zeros((2, 12, 1, 1), np.int32)
    numbers[:7], numbers[8:10] = 1, 2
    instances[:4], instances[4:7], instances[8:10] = 5, 3, 5
    rows = [Graded(5, None, 0, False), Graded(3, None, 1, False), Graded(9, None, 1, False)]
    grades = grades_of(rows, numbers, np.eye(4), instances, GradeRule())
    assert grades.grade.tolist() == [1, 0]
    assert grades.unmatched == 1


def test_two_rows_of_one_number_are_two_readings_and_a_certain_rim_wins() -> None:
    numbers = np.zeros((6, 1, 1), np.int32)
    numbers[:3] = 1
    for rows in (
        [Graded(1, None, 1, False), Graded(1, None, 0, False)],
        [Graded(1, None, 0, False), Graded(1, None, 1, False)],
    ):
        grades = grades_of(rows, numbers, np.eye(4), numbers, GradeRule())
        assert (grades.grade.tolist(), grades.unmatched, grades.missed) == ([1], 0, 0)


def test_a_lesion_that_only_touches_a_rim_is_another_lesion() -> None:
    """One voxel of twenty: the rim is missed, and what touches it has no grade."""
    numbers, instances = np.zeros((2, 60, 1, 1), np.int32)
    numbers[:21], numbers[50:] = 1, 2
    instances[20:40], instances[50:52] = 7, 8
    rows = [Graded(7, None, 1, False), Graded(8, None, 1, False)]
    grades = grades_of(rows, numbers, np.eye(4), instances, GradeRule())
    assert grades.grade.tolist() == [UNKNOWN, 1]  # all of the small one lies in the second
    assert grades.missed == 1
    assert grades_of(rows, numbers, np.eye(4), instances, GradeRule(least_shared=0)).grade.tolist() == [1, 1]


def test_what_nobody_drew_is_unknown_in_a_map_too_and_what_the_mask_lacks_is_counted(tmp_path: Path) -> None:
    exam = make_exam(tmp_path)
    rims = read_volume(exam.case.label).array.astype(np.uint8)
    rims[tuple(slice(c, c + 3) for c in CORNERS[1])] = 0
    rims[20, 20, 3] = 2  # the speck, which is too small to be kept
    rims[20:22, 20:22, 20] = 2  # a rim where the mask has nothing
    store = extract(replace(exam, grades=write(tmp_path / "rims.nii.gz", rims)), out=tmp_path / "a")
    assert [grade for grade, _ in by_place(store)] == [0, -1, 0]
    assert store.missed_rims == 2
    rows = [{"id": n, "x_mm": x, "y_mm": 0, "z_mm": 0, "rim": g} for n, x, g in ((1, 99, 1), (2, 90, 0), (3, 80, "1?"))]
    write_tsv(exam.grades, rows, list(rows[0]))
    assert extract(exam, out=tmp_path / "b").missed_rims == 1


def test_rows_of_other_spellings_are_named_and_sessions_matched_where_both_have_one(tmp_path: Path) -> None:
    table = tmp_path / "grades.tsv"

    def write_rows(*whose: tuple[str, str]) -> None:
        rows = [{"participant_id": p, "session": s, "id": n, "rim": 1} for n, (p, s) in enumerate(whose)]
        write_tsv(table, rows, list(rows[0]))

    write_rows(("sub-01", "ses-a"), ("1", "a"), ("02", "b"))
    assert [row.number for row in read_grades(table, "01", "")] == [0]
    assert [row.number for row in read_grades(table, "02", "a")] == []
    assert unclaimed(table, {("01", ""), ("02", "a")}) == ["1, a", "02, b"]
    write_rows(("1", ""), ("2", ""))
    with pytest.raises(LabelError, match=r"2 rows are of nobody here \(first '1'; here is '01'\)"):
        unclaimed(table, {("01", ""), ("02", "")})
    write_rows(("01", "a"), ("01", "b"))
    with pytest.raises(LabelError, match=r"2 visits \(a, b\), but the exam has no session"):
        read_grades(table, "01", "")


def test_classes_that_are_lesion_and_values_that_are_none(tmp_path: Path) -> None:
    exam = make_exam(tmp_path)
    mask = read_volume(exam.case.label).array.astype(np.uint8)
    mask[tuple(slice(c, c + 3) for c in CORNERS[1])] = 2
    write(exam.case.label, mask)
    both = replace(exam, labels={"lesion": 1, "rim": 2}, classes=("lesion", "rim"))
    assert len(extract(both, out=tmp_path / "a")) == 3
    assert len(extract(replace(both, classes=()), out=tmp_path / "a")) == 3
    assert len(extract(replace(both, labels={"lesion": 1, "hole": 2}), out=tmp_path / "a")) == 2
    with pytest.raises(LabelError, match=r"has the values 2; expected 0 = background, 1 = lesion"):
        extract(exam, out=tmp_path / "b")


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        (("id", "shade"), ("1", "2"), "no column rim or grade"),
        (("rim", "x_mm"), ("1", "2"), "neither a column id nor x_mm, y_mm, z_mm"),
        (("id", "rim"), ("1", "maybe"), "the grade 'maybe' is none"),
    ],
)
def test_tables_that_are_no_grades(
    tmp_path: Path, columns: tuple[str, ...], row: tuple[str, ...], message: str
) -> None:
    exam = make_exam(tmp_path)
    write_tsv(exam.grades, [dict(zip(columns, row, strict=True))], columns)
    with pytest.raises(LabelError, match=message):
        extract(exam, out=tmp_path / "lesions")


# --- units -----------------------------------------------------------------------------------------------------------


def test_ppm_is_a_thousand_ppb(tmp_path: Path) -> None:
    exam = make_exam(tmp_path)
    ppb = extract(exam, out=tmp_path / "a")
    path = exam.case.images["QSM"]
    write(path, read_volume(path).array / np.float32(1000))
    ppm = extract(exam, out=tmp_path / "b")
    about = read_json(ppm.lesions[0].folder / "case.json")
    magnitudes = np.abs(read_volume(path).array)
    assert about["qsm_units"] == "ppm"
    assert about["qsm_units_guessed_from"] == pytest.approx(np.percentile(magnitudes[magnitudes != 0], 99.5))
    for one, other in zip(ppb.lesions, ppm.lesions, strict=True):
        np.testing.assert_allclose(one.image(), other.image(), atol=1e-3)


@pytest.mark.parametrize(
    ("scale", "told", "message"),
    [
        (0.05, {}, "neither like ppb .* nor like ppm"),  # ± 10: a phase, perhaps
        (1.0, {"Units": "rad/s"}, "a phase or field map"),
        (1.0, {"Units": "Hz"}, "dipole inversion"),
        (1.0, {"Units": "furlong"}, "expected ppb or ppm"),
        (1.0, {"Units": "ppm"}, "said to be in ppm, but its values reach .* as those in ppb do"),
        (0.001, {"Units": "ppb"}, "said to be in ppb, but"),
    ],
)
def test_units_that_are_not_susceptibility(tmp_path: Path, scale: float, told: dict[str, str], message: str) -> None:
    exam = make_exam(tmp_path)
    path = exam.case.images["QSM"]
    write(path, read_volume(path).array * np.float32(scale))
    sidecar(path, **told)
    with pytest.raises(ImageError, match=message) as raised:
        extract(exam, out=tmp_path / "lesions")
    assert str(path) in str(raised.value)
    assert str(raised.value).startswith("sub-01: ")


def test_what_the_sidecar_says_helps_where_values_do_not(tmp_path: Path) -> None:
    path = make_exam(tmp_path).case.images["QSM"]
    quiet = replace(read_volume(path), array=read_volume(path).array * np.float32(0.05))
    sidecar(path, Units="ppb")
    scaled = in_ppb(quiet, path)
    assert (scaled.units, scaled.guessed_from) == ("ppb", None)
    np.testing.assert_array_equal(scaled.volume.array, quiet.array)


# --- what cannot be cut ----------------------------------------------------------------------------------------------


def other_qsm(exam: Exam) -> Exam:
    path = exam.case.images["QSM"]
    write(path, np.pad(read_volume(path).array, 1))
    return exam


def moved_mask(exam: Exam) -> Exam:
    affine = AFFINE.copy()
    affine[0, 3] += 2
    write(exam.case.label, read_volume(exam.case.label).array, affine)
    return exam


def no_qsm(exam: Exam) -> Exam:
    return replace(exam, case=replace(exam.case, images={"FLAIR": exam.case.images["FLAIR"]}))


def no_mask(exam: Exam) -> Exam:
    return replace(exam, case=replace(exam.case, label=None))


def in_part(exam: Exam) -> Exam:
    return replace(exam, case=replace(exam.case, sparse=True))


def probabilities(exam: Exam) -> Exam:
    write(exam.case.label, read_volume(exam.case.label).array * np.float32(0.6))
    return exam


def flat_flair(exam: Exam) -> Exam:
    write(exam.case.images["FLAIR"], np.full((24, 24, 24), 7, np.float32))
    return exam


def nothing_drawn(exam: Exam) -> Exam:
    write(exam.case.label, np.zeros((24, 24, 24), np.uint8))
    return exam


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (other_qsm, GeometryError, r"QSM has \(26, 26, 26\) voxels .* register QSM to the FLAIR and resample"),
        (moved_mask, GeometryError, r"the lesion mask has .* are 2 mm apart; .*nearest neighbour"),
        (no_qsm, CohortError, "has FLAIR but no QSM; .* _Chimap"),
        (no_mask, CohortError, "no lesion mask; draw or predict one"),
        (in_part, LabelError, "only a part of sub-01 is labelled"),
        (probabilities, LabelError, "threshold it first"),
        (flat_flair, ImageError, "sub-01_FLAIR.nii.gz: 7 in every voxel"),
        (nothing_drawn, CohortError, "none of 1 exams has a lesion"),
    ],
)
def test_what_cannot_be_cut(
    tmp_path: Path, spoil: Callable[[Exam], Exam], kind: type[InputError], message: str
) -> None:
    exam = spoil(make_exam(tmp_path))
    with pytest.raises(kind, match=message):
        extract(exam, out=tmp_path / "lesions")
    with pytest.raises(CohortError):
        LesionStore.open(tmp_path / "lesions")


def test_an_exam_without_lesions_is_there_all_the_same(tmp_path: Path) -> None:
    store = extract(make_exam(tmp_path, "01"), nothing_drawn(make_exam(tmp_path, "02")), out=tmp_path / "lesions")
    assert store.exams == ("sub-01", "sub-02")
    assert store.people == ("01",)


# --- stopped and started again ---------------------------------------------------------------------------------------


def test_a_stopped_extraction_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exams = [make_exam(tmp_path, subject) for subject in ("01", "02", "03")]
    whole = extract(*exams, out=tmp_path / "whole")
    made: list[str] = []
    original = module._cut

    def cut(*arguments: object) -> object:
        if len(made) == 1:
            raise MemoryError("killed")
        made.append("")
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_cut", cut)
        with pytest.raises(WorkerError, match="sub-02: MemoryError"):
            extract(*exams, out=tmp_path / "halved")
    with pytest.raises(CohortError, match="goes on where it stopped"):
        LesionStore.open(tmp_path / "halved")
    first = tmp_path / "halved" / "cases" / "sub-01" / "image.npy"
    before = first.stat().st_mtime_ns
    halved = extract(*exams, out=tmp_path / "halved")
    assert first.stat().st_mtime_ns == before
    assert halved.content == whole.content
    for name in ("lesions.tsv", "cases/sub-02/image.npy", "cases/sub-03/seen.npy"):
        assert (tmp_path / "halved" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_changed_file_is_cut_again(tmp_path: Path) -> None:
    exams = [make_exam(tmp_path, subject) for subject in ("01", "02")]
    before = extract(*exams, out=tmp_path / "lesions")
    write_tsv(
        exams[1].grades,
        [{"id": 1, "x_mm": -8, "y_mm": 18, "z_mm": 20, "rim": 0}],
        ["id", "x_mm", "y_mm", "z_mm", "rim"],
    )
    untouched = (tmp_path / "lesions" / "cases" / "sub-01" / "case.json").stat().st_mtime_ns
    after = extract(*exams, out=tmp_path / "lesions")
    assert after.content != before.content
    assert [lesion.grade for lesion in after.of(["02"])].count(0) == 1
    assert (tmp_path / "lesions" / "cases" / "sub-01" / "case.json").stat().st_mtime_ns == untouched


def test_a_mended_sidecar_counts(tmp_path: Path) -> None:
    exam = make_exam(tmp_path)
    before = extract(exam, out=tmp_path / "lesions")
    for path in exam.case.images.values():
        sidecar(path, Simulated=True)
    after = extract(exam, out=tmp_path / "lesions")
    assert (before.simulated, after.simulated) == (False, True)
    assert after.content != before.content


def test_a_damaged_array_is_named(tmp_path: Path) -> None:
    store = extract(make_exam(tmp_path), out=tmp_path / "lesions")
    (store.lesions[0].folder / "image.npy").write_bytes(b"")
    with pytest.raises(CohortError, match=r"image\.npy: cannot be read .* extract again"):
        store.lesions[0].image()
    shutil.rmtree(store.lesions[0].folder)
    with pytest.raises(CohortError, match=r"case\.json"):
        LesionStore.open(store.root)
