"""Labels of a part, from full masks to a store and a split: several kinds in one cohort, and none of them is ever scored."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from oligovox import experiment
from oligovox.cohort.bids import read_bids
from oligovox.cohort.manifest import Cohort
from oligovox.cohort.splits import Split
from oligovox.engine.fit import Training
from oligovox.errors import LabelError, OutputError
from oligovox.experiment import annotation
from oligovox.experiment.pairs import Pair
from oligovox.experiment.people import draw
from oligovox.experiment.recipe import Finetune, NetworkChoice, Recipe
from oligovox.experiment.scoring import check_grids
from oligovox.experiment.threshold import ThresholdSettings, fit_threshold
from oligovox.files import read_json
from oligovox.prepare.pipeline import prepare
from oligovox.prepare.store import Plan, Store
from oligovox.report.content import LabelledCase, Report
from oligovox.report.page import render
from oligovox.sample.patches import PatchSource, Stream
from oligovox.settings import parse

PLAN = Plan(modalities=("T1w", "FLAIR"))


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture
def mixed(phantom: Path, tmp_path: Path) -> Path:
    """A table in which 01 has slices, 02 scribbles, 03 boxes, 04 nothing; 05 and 06 have full masks."""
    data, kinds = phantom, {"01": "every", "02": "scribbles", "03": "boxes", "04": "none"}
    for person, kind in kinds.items():
        changes = ["every=4"] if kind == "every" else []
        made = experiment.annotate(data, tmp_path / kind, kind=kind, people=[person], changes=changes)
        data = Path(made["cohort"])
    return data


def test_the_data_stay_as_they_are_and_everyone_has_a_chance_of_their_own(phantom: Path, tmp_path: Path) -> None:
    before = contents(phantom)
    found = experiment.annotate(
        phantom, tmp_path / "all", kind="lesions", seed=3, changes=["margin_mm=2"], picture=True
    )
    assert contents(phantom) == before
    assert found["annotated"] == 6
    assert 0 < found["looked_at"] < 1
    assert Path(found["picture"]).read_bytes().startswith(b"\x89PNG")
    experiment.annotate(phantom, tmp_path / "one", kind="lesions", seed=3, changes=["margin_mm=2"], people=["05"])
    home = "sub-05/anat/sub-05_desc-sparse_dseg"
    for end in ("json", "nii.gz"):
        assert (tmp_path / "one" / f"{home}.{end}").read_bytes() == (tmp_path / "all" / f"{home}.{end}").read_bytes()
    sidecar = read_json(tmp_path / "one" / f"{home}.json")
    part, full = (values(path) for path in (tmp_path / "one" / f"{home}.nii.gz", Path(sidecar["Sources"][0])))
    assert part.dtype == np.uint8
    assert np.array_equal(part[part != 255], full[part != 255])
    assert sidecar["Unlabelled"] == 255
    assert sidecar["LookedAt"] == pytest.approx((part != 255).mean(), abs=1e-6)
    assert sidecar["LesionLookedAt"] == pytest.approx((part == 1).sum() / full.sum(), abs=1e-6)
    cohort = Cohort.load(tmp_path / "one" / "cohort.tsv")
    assert [case.name for case in cohort.cases if case.sparse] == ["sub-05"]
    assert cohort.labels == {"lesion": 1}


def test_slices_are_axial_whatever_the_axes_of_the_file(phantom: Path, tmp_path: Path) -> None:
    label = read_bids(phantom).cases[0].label
    plain = Path(experiment.annotate(phantom, tmp_path / "ras", people=["01"])["cohort"])
    image = nib.load(label)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("PIL"))
    nib.save(image.as_reoriented(turn), label)
    turned = Path(experiment.annotate(phantom, tmp_path / "pil", people=["01"])["cohort"])
    first, second = (Cohort.load(table).cases[0].label for table in (plain, turned))
    assert "".join(nib.aff2axcodes(nib.load(second).affine)) == "PIL"
    back = nib.as_closest_canonical(nib.load(second))
    np.testing.assert_array_equal(np.asarray(back.dataobj), values(first))
    np.testing.assert_allclose(back.affine, nib.load(first).affine)


def test_a_stopped_run_goes_on_and_a_finished_one_writes_nothing(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, derive, count = tmp_path / "out", annotation._Job.derive, [0]

    def stopped(job: annotation._Job) -> object:
        count[0] += 1
        if count[0] == 9:  # all six are tried, then written one by one
            raise KeyboardInterrupt
        return derive(job)

    monkeypatch.setattr(annotation._Job, "derive", stopped)
    with pytest.raises(KeyboardInterrupt):
        experiment.annotate(phantom, out)
    assert len(list(out.rglob("*_dseg.json"))) == 2
    assert not (out / "cohort.tsv").exists()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*_dseg.*")}
    experiment.annotate(phantom, out)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert len(list(out.rglob("*_dseg.json"))) == 6
    before = count[0]
    experiment.annotate(phantom, out)
    assert count[0] == before, "nothing is derived again"
    with pytest.raises(OutputError, match="labels made with another seed"):
        experiment.annotate(phantom, out, seed=1)
    with pytest.raises(OutputError, match="holds files that are not labels made here"):
        experiment.annotate(phantom, phantom)


@pytest.mark.parametrize("kind", ["every", "none"])
def test_a_second_call_does_not_undo_the_first(phantom: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    experiment.annotate(phantom, out, kind=kind, people=["01", "02"])
    before = contents(out)
    experiment.annotate(phantom, out, kind=kind, people=["02", "01"])
    shutil.copytree(phantom, tmp_path / "copy")
    for mask in phantom.rglob("*_label-lesion_mask.nii.gz"):
        shutil.copy(mask, str(mask).replace("label-lesion", "label-second"))
    for message, call in (
        (r"made with another mask \(lesion\)", {"mask": "second"}),
        (r'made with other people \(\["01", "02"\]\); choose another folder, with .*cohort.tsv as', {"people": ["03"]}),
        (r"made with other people", {"people": ["01", "02", "03"]}),
        (r"made with other people", {"people": []}),
        (r"made with other data \(.*phantom\)", {"data": tmp_path / "copy"}),
        (r"made with other data", {"data": out / "cohort.tsv", "people": ["03"]}),
    ):
        with pytest.raises(OutputError, match=message):
            experiment.annotate(**{"data": phantom, "out": out, "kind": kind, "people": ["01", "02"], **call})
    assert contents(out) == before
    third = experiment.annotate(out / "cohort.tsv", tmp_path / "third", kind=kind, people=["03"])
    changed = [case.person for case in Cohort.load(Path(third["cohort"])).cases if case.sparse or not case.label]
    assert changed == ["01", "02", "03"]


def test_one_of_several_raters(phantom: Path, tmp_path: Path) -> None:
    for case in read_bids(phantom).cases:
        for rater in ("A", "B"):
            nib.save(nib.load(case.label), Path(str(case.label).replace("label-lesion", f"desc-{rater}")))
    table = Path(experiment.annotate(phantom, tmp_path / "out", kind="rater", changes=["raters=[A,B]"])["cohort"])
    names = [case.label.name.split("desc-")[1][0] for case in Cohort.load(table).cases]
    assert set(names) == {"A", "B"}
    assert not any(case.sparse for case in Cohort.load(table).cases)


def test_every_kind_in_one_cohort_and_one_batch(mixed: Path, tmp_path: Path) -> None:
    store = prepare(Cohort.load(mixed), PLAN, tmp_path / "store", workers=1)
    assert [case.sparse for case in store.cases] == [True, True, True, False, False, False]
    assert [case.labelled for case in store.cases] == [True, True, True, False, True, True]
    assert [case.lesion_voxels > 0 for case in store.cases] == [True, True, False, False, True, True]
    labelled = Stream(tuple(case for case in store.cases if case.labelled), 8, "lesion", 0.5)
    source = PatchSource(PLAN, [labelled, Stream(store.of(["04"]), 1, use_labels=False)], (8, 8, 8), 0)
    seen = set()
    for step in range(10):
        batch = source.batch(step, 0)
        known = (batch.label[:8] >= 0).flatten(1)
        assert known.any(1).all()
        assert (batch.label[8] == -1).all()
        seen |= set(batch.cases)
    assert len(seen) == 6


def test_who_is_labelled_in_part_is_trained_on_and_never_scored(mixed: Path, tmp_path: Path) -> None:
    cohort = Cohort.load(mixed)
    recipe = parse(Recipe, {"name": "x", "cohorts": {"x": {"bids": "x"}}, "prepare": PLAN.model_dump()}, "recipe")

    def split(**choice: object) -> Split:
        chosen = recipe.split.model_copy(update={"test": 1, "validation": 1, "labels": 3, **choice})
        return draw(recipe.model_copy(update={"split": chosen}), cohort)

    drawn = split()
    assert {*drawn.test, *drawn.validation} == {"05", "06"}
    assert set(drawn.train) == {"01", "02", "03"}
    with pytest.raises(LabelError, match="asks for 3 people to test and validate on, phantom has 2 with a full mask"):
        split(test=2, labels=1)
    for group in ("test", "validation"):
        with pytest.raises(LabelError, match="tests or validates on '02', of whom only a part is labelled"):
            split(**{group: ("02",), "labels": 1})
    part, whole = cohort.cases[0], cohort.cases[5]
    check_grids([whole], PLAN)
    with pytest.raises(LabelError, match=r"^sub-01: only a part of it is labelled .*cannot be scored"):
        check_grids([part], PLAN)
    with pytest.raises(LabelError, match=r"^sub-01: only a part of it is labelled"):
        Pair.of(part, Path("prediction.nii.gz"))


def test_a_sparsely_labelled_person_cannot_choose_the_checkpoint(mixed: Path, tmp_path: Path) -> None:
    store = prepare(Cohort.load(mixed), PLAN, tmp_path / "store", workers=1)
    stage = Finetune(patch=(8, 8, 8), training=Training(steps=2, threads=1, tensorboard="off"))
    nano = NetworkChoice.named("resenc", "nano")
    with pytest.raises(LabelError, match="sub-01: only a part of it is labelled, so it cannot be scored"):
        experiment.finetune(store, tmp_path / "run", stage=stage, network=nano, split=Split(("05",), ("01",), (), 0))
    assert not (tmp_path / "run").exists()
    everyone = Split(("01", "02", "03", "05"), (), ("06",), 0)
    assert (
        experiment.finetune(store, tmp_path / "run", stage=stage, network=nano, split=everyone) / "model.json"
    ).is_file()


def test_a_threshold_is_fitted_where_somebody_looked(phantom: Path, tmp_path: Path) -> None:
    cohort = read_bids(phantom)
    full: Store = prepare(cohort, PLAN, tmp_path / "full", workers=1)
    case = cohort.cases[0]
    label = values(case.label).copy()
    label[:, :, 12:] = 255
    nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / "part.nii.gz")
    part = replace(case, label=tmp_path / "part.nii.gz", sparse=True)
    some = prepare(Cohort(cases=(part,)), PLAN, tmp_path / "some", workers=1)
    whole, half = (fit_threshold(s.of(["01"]), PLAN, ThresholdSettings()) for s in (full, some))
    assert half.limit == pytest.approx(whole.limit, abs=1.0)
    known = np.asarray(some.cases[0].known_label())
    found = half.mask(some.cases[0])
    assert np.array_equal(found[known >= 0], known[known >= 0] > 0)


def test_the_page_shows_what_is_labelled(mixed: Path) -> None:
    case = Cohort.load(mixed).cases[0]
    shown = LabelledCase(case=case.name, image=str(case.images["FLAIR"]), label=str(case.label))
    gone = shown.model_copy(update={"case": "sub-99", "label": "/gone.nii.gz"})
    report = Report(title="x", created="2026-01-01", command="x", labels=(shown, gone))
    page = render(report)
    assert page.count('<img src="data:image/png;base64,') == 1
    assert "What is labelled of sub-01" in page
    assert "sub-99 is not drawn" in page
    assert "<img" not in render(report.model_copy(update={"labels": ()}))
