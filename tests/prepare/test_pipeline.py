"""From files to a store: values, geometry, checks, and runs that stop half-way."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from oligovox.cohort.bids import read_bids
from oligovox.cohort.manifest import Case, Cohort
from oligovox.errors import (
    CohortError,
    GeometryError,
    ImageError,
    InputError,
    LabelError,
    OutputError,
    SettingsError,
    WorkerError,
)
from oligovox.files import read_json
from oligovox.prepare import pipeline
from oligovox.prepare.geometry import read_volume, to_native
from oligovox.prepare.intensity import robust_zscore
from oligovox.prepare.pipeline import prepare
from oligovox.prepare.store import Plan, Store, StoredCase, read_case
from oligovox.settings import parse

PLAN = Plan(modalities=("FLAIR", "T1w"), margin=1)


def _one(case: Case, out: Path, plan: Plan = PLAN, labels: dict[str, int] | None = None) -> StoredCase:
    return prepare(Cohort(cases=(case,), labels=labels or {"lesion": 1}), plan, out, workers=1).cases[0]


def _steps(case: StoredCase, kind: str) -> list[dict]:
    return [step for step in read_json(case.folder / "case.json")["provenance"]["steps"] if step["step"] == kind]


def test_on_its_own_grid_nothing_is_interpolated(make_case, tmp_path: Path) -> None:
    case = make_case("1")
    stored = _one(case, tmp_path / "store")
    flair, brain = (read_volume(path).array for path in (case.images["FLAIR"], case.brain))
    assert stored.shape == (11, 9, 7)  # the brain's box of 9 x 7 x 5 and one voxel of margin around it
    crop = (slice(2, 13), slice(2, 11), slice(2, 9))
    expected = robust_zscore(flair, brain > 0)[crop].astype(np.float16)
    np.testing.assert_array_equal(stored.image()[0], expected)
    np.testing.assert_array_equal(stored.foreground(), brain[crop] > 0)
    back = to_native(np.asarray(stored.label()), stored.placement, 0)
    np.testing.assert_array_equal(back, read_volume(case.label).array)
    assert _steps(stored, "crop") == [{"step": "crop", "low": [2, 2, 2], "high": [13, 11, 9], "margin_voxels": 1}]
    assert [step["spline_order"] for step in _steps(stored, "sequence")] == [None, None]


def test_a_plan_may_read_every_acquisition_of_a_sequence(make_case, write, tmp_path: Path) -> None:
    once, twice = make_case("1"), make_case("2")
    flair = read_volume(twice.images["FLAIR"])
    again = write("again.nii.gz", flair.array[::-1].copy(), flair.affine)
    cohort = Cohort(cases=(once, replace(twice, repeats={"FLAIR": (again,)})), labels={"lesion": 1})
    plan = Plan(modalities=("FLAIR", "t2f_run-2", "T1w"), margin=1)
    assert plan.sequences == ("FLAIR", "T1w")
    stored = prepare(cohort, plan, tmp_path / "store", workers=1).cases
    assert [case.present for case in stored] == [(True, False, True), (True, True, True)]
    assert [plan.held(case.present) for case in stored] == [("FLAIR", "T1w")] * 2
    first = prepare(cohort, PLAN, tmp_path / "first", workers=1).cases
    np.testing.assert_array_equal(stored[1].image()[::2], first[1].image())
    assert not np.array_equal(stored[1].image()[1], stored[1].image()[0])
    assert stored[1].sources["FLAIR_run-2"] == str(again)


def test_a_bad_acquisition_is_named_by_its_file(make_case, write, tmp_path: Path) -> None:
    case = make_case("1")
    flair = read_volume(case.images["FLAIR"])
    flat = write("flat.nii.gz", np.where(flair.array != 0, 7.0, 0.0), flair.affine)
    away = flair.affine.copy()
    away[:3, 3] += 900.0
    far = write("far.nii.gz", flair.array, away)
    plan = Plan(modalities=("FLAIR", "T1w", "FLAIR_run-2"), margin=1)
    for path, kind in {flat: ImageError, far: GeometryError}.items():
        with pytest.raises(kind, match=path.name):
            prepare(Cohort(cases=(replace(case, repeats={"FLAIR": (path,)}),)), plan, tmp_path / path.stem, workers=1)


@pytest.mark.parametrize(
    ("modalities", "said"),
    [(("T1w", "FLAIR_run-2"), "FLAIR has to be named before it"), (("T1w", "T1w_run-3"), "T1w_run-2 has to be named before it"), (("T1w", "T1w_run-1"), "the second 'T1w_run-2'"),
     (("T1w", "T1w_run-x"), "the second 'T1w_run-2'"), (("T1w", "T1w_run-2", "t1_run-2"), "once only")],
)  # fmt: skip
def test_acquisitions_are_counted_from_two_beside_their_sequence(modalities: tuple[str, ...], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        parse(Plan, {"modalities": modalities}, "prepare")


def test_axis_order_on_disk_does_not_matter(make_case, tmp_path: Path) -> None:
    case = make_case("1")
    ras = _one(case, tmp_path / "ras")
    for path in (*case.images.values(), case.label, case.brain):
        image = nib.load(path)
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("PIL"))
        nib.save(nib.Nifti1Image(image.get_fdata(), image.affine).as_reoriented(turn), path)
    pil = _one(case, tmp_path / "pil")
    np.testing.assert_array_equal(pil.image(), ras.image())
    np.testing.assert_array_equal(pil.label(), ras.label())
    assert _steps(pil, "reference")[0]["orientation"] == "PIL"
    back = to_native(np.asarray(pil.label()), pil.placement, 0)
    np.testing.assert_array_equal(back, read_volume(case.label).array)


def test_resampling_to_another_spacing(make_case, tmp_path: Path) -> None:
    stored = _one(make_case("1"), tmp_path / "store", Plan(modalities=("T1w",), spacing=(0.5, 0.5, 0.5), margin=0))
    assert stored.spacing == pytest.approx((0.5, 0.5, 0.5))
    assert stored.lesion_voxels == pytest.approx(64, abs=20)
    label = _steps(stored, "label")[0]
    assert label["lesion_mm3_native"] == 8
    assert label["lesion_mm3_prepared"] == stored.lesion_voxels / 8


def test_a_sequence_on_another_grid_is_brought_over_by_its_header(make_case, write, tmp_path: Path) -> None:
    x, y, z = np.mgrid[:8, :8, :8].astype(np.float32)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -0.5, -0.5, 4.5  # its field of view is z = 3.5 … 19.5 mm, the brain reaches from 2.5 to 7.5 mm
    case = make_case("1", more={"T2w": write("t2.nii.gz", 100 + x + y + z, affine)})
    stored = _one(case, tmp_path / "store", Plan(modalities=("FLAIR", "T2w"), margin=0))
    t2 = stored.image()[1].astype(np.float64)
    assert (stored.image()[0][:, :, 0] != 0).mean() > 0.9
    assert not t2[:, :, 0].any()  # the slice below its field of view
    steps = np.diff(t2[2:-2, 2:-2, 2], axis=0)
    assert steps.min() > 0  # a ramp along x stays one, half a unit a millimetre
    np.testing.assert_allclose(steps, steps.mean(), rtol=0.1)
    note = _steps(stored, "sequence")[1]
    assert note["aligned"] == "by header only, not registered"
    assert note["foreground_covered"] == pytest.approx(4 / 5)


def test_classes_are_numbered_in_the_order_of_the_scheme(make_case, write, tmp_path: Path) -> None:
    case = make_case("1")
    values = read_volume(case.label).array * 4
    values[5, 5, 4] = 2
    case = replace(case, label=write("classes.nii.gz", values.astype(np.uint8)))
    stored = _one(case, tmp_path / "store", labels={"core": 4, "edema": 2})
    assert np.bincount(stored.label().ravel())[1:].tolist() == [7, 1]


def test_without_a_brain_mask_the_head_is_what_is_not_zero(make_case, tmp_path: Path) -> None:
    case = make_case("1")
    flair = nib.load(case.images["FLAIR"])
    hollow = flair.get_fdata()
    hollow[6:8, 6:8, 5] = 0
    t1 = (
        nib.load(case.images["T1w"]).get_fdata() * 0
        + 50 * (hollow > 0)
        + np.random.default_rng(0).random(hollow.shape) * (hollow > 0)
    )
    for name, values in (("FLAIR", hollow), ("T1w", t1)):
        nib.save(nib.Nifti1Image(values, flair.affine), case.images[name])
    stored = _one(replace(case, brain=None), tmp_path / "store", PLAN.model_copy(update={"margin": 0}))
    assert stored.foreground().all()  # the hole is filled


def test_a_lesion_outside_the_brain_mask_is_not_cropped_away(make_case, write, tmp_path: Path) -> None:
    case = make_case("1")
    label = read_volume(case.label).array
    label[0, 0, 0] = 1
    case = replace(case, label=write("label.nii.gz", label))
    stored = _one(case, tmp_path / "store")
    np.testing.assert_array_equal(to_native(np.asarray(stored.label()), stored.placement, 0), label)


def test_a_healthy_case_is_labelled(make_case, write, tmp_path: Path) -> None:
    case = replace(make_case("1"), label=write("none.nii.gz", np.zeros((14, 12, 10), dtype=np.uint8)))
    stored = _one(case, tmp_path / "store")
    assert stored.labelled
    assert (stored.lesion_voxels, stored.lesion_voxels_index().shape) == (0, (0, 3))


def test_where_nobody_looked_is_neither_lesion_nor_background(make_case, write, tmp_path: Path) -> None:
    case = make_case("1")
    values = np.full((14, 12, 10), 255, dtype=np.uint8)
    values[:, :, 4] = read_volume(case.label).array[:, :, 4]
    part = replace(case, label=write("part.nii.gz", values), sparse=True)
    stored = _one(part, tmp_path / "store")
    label, looked = np.asarray(stored.known_label()), stored.looked_voxels()
    np.testing.assert_array_equal(label[..., 2], values[2:13, 2:11, 4])  # cropped to the brain and a voxel around it
    assert (label[..., [0, 1, 3, 4, 5, 6]] == -1).all()
    assert (stored.sparse, stored.lesion_voxels, len(stored.lesion_voxels_index())) == (True, 4, 4)
    assert stored.unlooked_voxels == 6 * 11 * 9
    assert {tuple(voxel) for voxel in looked.tolist()} == {(x, y, 2) for x in range(1, 10) for y in range(1, 8)}
    assert _steps(stored, "label")[0]["foreground_looked_at"] == pytest.approx(1 / 5)
    with pytest.raises(LabelError, match=r"^sub-1: only a part of it is labelled, so it cannot be scored"):
        stored.label()
    again = read_case(stored.folder)
    assert (again.sparse, again.unlooked_voxels) == (True, stored.unlooked_voxels)


def test_a_label_that_says_it_is_sparse_and_is_whole_changes_nothing(make_case, tmp_path: Path) -> None:
    case = make_case("1")
    whole, said = _one(case, tmp_path / "a"), _one(replace(case, sparse=True), tmp_path / "b")
    np.testing.assert_array_equal(whole.label(), said.label())
    assert not said.sparse
    assert sorted(os.listdir(said.folder)) == sorted(os.listdir(whole.folder))


def test_saying_that_a_label_is_sparse_prepares_the_case_again(make_case, write, tmp_path: Path) -> None:
    case = make_case("1")
    values = read_volume(case.label).array.astype(np.uint8)
    values[0] = 255
    case = replace(case, label=write("part.nii.gz", values))
    with pytest.raises(LabelError, match=r'has the values 255; .*"Unlabelled": 255 in its \.json'):
        _one(case, tmp_path / "store")
    assert _one(replace(case, sparse=True), tmp_path / "store").lesion_voxels == 8
    scheme = {"lesion": 1, "scar": 255}
    assert not _one(case, tmp_path / "scar", labels=scheme).sparse
    with pytest.raises(LabelError, match="says that 255 is where nobody looked, but the label scheme calls it scar"):
        _one(replace(case, sparse=True), tmp_path / "both", labels=scheme)
    case = replace(case, label=write("none.nii.gz", np.full((14, 12, 10), 255, np.uint8)), sparse=True)
    with pytest.raises(LabelError, match="every voxel is 255, so nobody looked at all; leave the mask out"):
        _one(case, tmp_path / "nobody")


def _nudged(mm: float) -> np.ndarray:
    affine = np.eye(4)
    affine[0, 3] = mm
    return affine


@pytest.mark.parametrize(
    ("part", "name", "change", "kind", "complaint"),
    [
        ("images", "FLAIR", lambda a: a * np.nan, ImageError, "NaN"),
        ("images", "FLAIR", lambda a: a * 0, ImageError, "every voxel is 0"),
        ("images", "T1w", lambda a: a * 0 + 7, ImageError, "T1w is constant in the foreground"),
        ("images", "T1w", lambda a: np.stack([a, a], -1), ImageError, r"has shape \(14, 12, 10, 2\)"),
        ("label", "", lambda a: a[1:], GeometryError, r"mask of shape \(13, 12, 10\) lies on the grid of no image"),
        ("label", "", lambda a: (a, _nudged(0.1)), GeometryError, r"FLAIR \(14, 12, 10\), 0.1 mm apart"),
        ("label", "", lambda a: a * 3, LabelError, "has the values 3; expected 0 = background, 1 = lesion"),
        ("label", "", lambda a: a * 0.5, LabelError, "has the values 0.5"),
        ("brain", "", lambda a: a * 0, ImageError, "the brain mask is empty"),
        ("brain", "", lambda a: (a, _nudged(1)), GeometryError, "lies on the grid of no image"),
        ("images", "T1w", lambda a: (a, _nudged(500)), GeometryError, "T1w does not overlap with the foreground"),
    ],
)
def test_unusable_files_are_named(
    make_case, write, tmp_path: Path, part: str, name: str, change, kind: type[InputError], complaint: str
) -> None:
    case = make_case("1")
    path = case.images[name] if part == "images" else getattr(case, part)
    changed = change(read_volume(path).array)
    array, affine = changed if isinstance(changed, tuple) else (changed, np.eye(4))
    write(path.name, array.astype(np.float32), affine)
    with pytest.raises(kind, match=complaint) as caught:
        _one(case, tmp_path / "store")
    assert str(caught.value).startswith("sub-1: ")
    assert str(path) in str(caught.value)
    seen_late = "foreground" in complaint  # what only shows on the common grid; all else stops before a store is begun
    assert [path.name for path in (tmp_path / "store").glob("**/*")] == (["store.json"] if seen_late else [])


def test_nearly_equal_cosines_are_no_mismatch(make_case, write, tmp_path: Path) -> None:
    case = make_case("1")
    tilted = np.eye(4)
    tilted[0, 1] = 1e-5
    write(case.label.name, read_volume(case.label).array.astype(np.uint8), tilted)
    stored = _one(case, tmp_path / "store")
    assert stored.lesion_voxels == 8


def test_what_can_be_known_is_said_before_anything_is_written(make_case, tmp_path: Path) -> None:
    case = make_case("1")
    out = tmp_path / "store"
    with pytest.raises(CohortError, match=r"sub-1: has FLAIR, T1w, none of the plan's QSM"):
        _one(case, out, Plan(modalities=("QSM",)))
    with pytest.raises(LabelError, match="values must be different"):
        _one(case, out, labels={"a": 1, "b": 1})
    gone = make_case("2")
    gone.label.unlink()
    with pytest.raises(ImageError, match="the label file of sub-2 is missing"):
        prepare(Cohort(cases=(case, gone)), PLAN, out, workers=1)
    assert not out.exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(OutputError, match="holds files that are not a store"):
        _one(case, tmp_path / "photos")


def _times(store: Store) -> dict[str, int]:
    return {case.name: (case.folder / "image.npy").stat().st_ctime_ns for case in store.cases}


def test_a_stopped_run_leaves_whole_cases_and_goes_on(
    make_case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort, out = Cohort(cases=(make_case("1"), make_case("2"))), tmp_path / "store"
    save, calls = np.save, []

    def killed(*args, **kwargs) -> None:
        calls.append(args)
        if len(calls) == 7:  # five arrays of the first case, then in the middle of the second
            raise KeyboardInterrupt
        save(*args, **kwargs)

    monkeypatch.setattr(pipeline.np, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(cohort, PLAN, out, workers=1)
    monkeypatch.undo()
    assert os.listdir(out / "cases") == ["sub-1"]
    with pytest.raises(CohortError, match=r"not finished \(1 of 2 case folders"):
        Store.open(out)
    first = (out / "cases" / "sub-1" / "image.npy").stat().st_ctime_ns
    seen: list[tuple[int, int, str]] = []
    store = prepare(cohort, PLAN, out, workers=1, progress=lambda *about: seen.append(about))
    assert seen == [(1, 2, "sub-1"), (2, 2, "sub-2")]
    assert _times(store)["sub-1"] == first


def test_only_what_changed_is_done_again(make_case, write, tmp_path: Path) -> None:
    one, two = make_case("1"), make_case("2")
    out = tmp_path / "store"
    before = _times(prepare(Cohort(cases=(one, two)), PLAN, out, workers=1))
    flair = read_volume(two.images["FLAIR"]).array
    write(two.images["FLAIR"].name, flair * 2)
    after = _times(prepare(Cohort(cases=(one, two)), PLAN, out, workers=1))
    assert after["sub-1"] == before["sub-1"]
    assert after["sub-2"] != before["sub-2"]
    moved = shutil.move(one.images["T1w"], tmp_path / "elsewhere.nii.gz")
    one = replace(one, images={**one.images, "T1w": Path(moved)})
    store = prepare(Cohort(cases=(one, two)), PLAN, out, workers=1)
    assert _times(store) == after
    assert store.case("sub-1").sources["T1w"] == str(tmp_path / "elsewhere.nii.gz")
    again = prepare(Cohort(cases=(one, two)), PLAN.model_copy(update={"margin": 2}), out, workers=1)
    assert all(again.cases[i].shape[0] == store.cases[i].shape[0] + 2 for i in (0, 1))
    assert [case.name for case in prepare(Cohort(cases=(two,)), PLAN, out, workers=1).cases] == ["sub-2"]


def test_processes_give_the_same_bytes_and_the_same_errors(make_case, tmp_path: Path) -> None:
    cases = tuple(make_case(str(i)) for i in (1, 2, 3))
    stores = [prepare(Cohort(cases=cases), PLAN, tmp_path / str(n), workers=n) for n in (1, 2)]
    for one, two in zip(*(store.cases for store in stores), strict=True):
        for file in sorted(os.listdir(one.folder)):
            assert (one.folder / file).read_bytes() == (two.folder / file).read_bytes()
    cases[1].images["T1w"].write_bytes(b"broken")
    with pytest.raises(ImageError, match=r"^sub-2: .*truncated or damaged"):
        prepare(Cohort(cases=cases), PLAN, tmp_path / "2", workers=2)


def test_a_bug_of_ours_names_the_case(make_case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "robust_scale", lambda values: 1 / 0)
    with pytest.raises(WorkerError, match=r"^sub-1: ZeroDivisionError"):
        _one(make_case("1"), tmp_path / "store")


@pytest.mark.real
def test_a_real_case_at_1_mm_comes_back_voxel_by_voxel(real_data: Path, tmp_path: Path) -> None:
    case = next(case for case in read_bids(real_data / "openms").cases if case.name == "sub-cs07")
    stored = _one(case, tmp_path / "store", Plan(modalities=("FLAIR", "T1w")))
    truth = read_volume(case.label).array
    assert stored.lesion_voxels == truth.sum() == 1300
    np.testing.assert_array_equal(to_native(np.asarray(stored.label()), stored.placement, 0), truth)
    t1, brain = read_volume(case.images["T1w"]).array, read_volume(case.brain).array > 0
    z = to_native(np.asarray(stored.image()[1]), stored.placement, 1)
    np.testing.assert_array_equal(z, robust_zscore(t1, brain).astype(np.float16))


@pytest.mark.real
def test_raw_files_of_another_orientation_agree_with_the_aligned_ones(real_data: Path, tmp_path: Path) -> None:
    home = real_data / "openms"
    raw = home / "sourcedata" / "sub-lo12" / "ses-1"
    case = Case(
        subject="lo12",
        images={n: raw / f"sub-lo12_ses-1_raw_{f}.nii.gz" for n, f in (("FLAIR", "FLAIR"), ("T2w", "T2W"))},
    )
    plan = Plan(modalities=("FLAIR", "T2w"), spacing=(2, 2, 2))
    stored = _one(case, tmp_path / "raw", plan)
    assert _steps(stored, "reference")[0]["orientation"] == "LPS"
    aligned = next(case for case in read_bids(home).cases if case.name == "sub-lo12_ses-1")
    other = _one(aligned, tmp_path / "aligned", plan)
    # the same scanner position holds the same tissue, whatever the axes of the file
    brain = np.argwhere(other.foreground())[::50]
    voxel_of = np.linalg.inv(stored.placement.prepared_affine) @ other.placement.prepared_affine
    there = np.rint(brain @ voxel_of[:3, :3].T + voxel_of[:3, 3]).astype(int)
    inside = ((there >= 0) & (there < stored.shape)).all(1)
    assert inside.mean() > 0.99
    for channel, least in (
        (0, 0.8),
        (1, 0.5),
    ):  # T2w differs by the small motion that nobody corrected in the raw files
        pair = stored.image()[channel][tuple(there[inside].T)], other.image()[channel][tuple(brain[inside].T)]
        assert np.corrcoef(*(values.astype(float) for values in pair))[0, 1] > least
