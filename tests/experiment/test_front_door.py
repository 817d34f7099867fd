"""What `oligovox run FOLDER OUT` decides before it trains: whether exams are made ready, whom a folder belongs to, who is predicted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from oligovox.cohort.manifest import Case, Cohort
from oligovox.errors import OutputError, RunError, SettingsError
from oligovox.experiment import front_door
from oligovox.experiment.checking import check_data
from oligovox.experiment.front_door import Asked, is_raw, run_folder
from oligovox.experiment.front_door_claim import check_changes
from oligovox.experiment.recipe import Recipe
from oligovox.files import write_json
from oligovox.settings import parse

SIDE = 40


def exam(
    folder: Path, number: int, *, names: tuple[str, ...] = ("FLAIR",), head: bool = False, brain: bool = False
) -> Case:
    """A lump with an anatomy of its own, labelled; of a head in noise instead of zeros."""
    rng = np.random.default_rng(number)
    axes = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij")) - SIDE / 2
    inside = ((axes / rng.uniform(0.8, 1.0, (3, 1, 1, 1))) ** 2).sum(0) < (SIDE / 2 - 4) ** 2
    folds = 60 * ndimage.gaussian_filter(rng.normal(size=inside.shape), 2.0) / 0.1
    around = np.abs(rng.normal(0, 12, inside.shape)) if head else 0
    lesion = np.zeros(inside.shape, np.uint8)
    lesion[18 : 22 + number, 18:22, 18:22] = 1
    images = {}
    for name in names:
        sign = 0.5 if name == "FLAIR" else -0.5
        image = np.where(inside, 300 + sign * folds + rng.normal(0, 5, inside.shape), around).clip(0)
        images[name] = save(folder / f"{number:02d}_{name}.nii.gz", image.round().astype(np.int16))
    label = save(folder / f"{number:02d}_lesion.nii.gz", lesion)
    mask = save(folder / f"{number:02d}_brain.nii.gz", inside.astype(np.uint8)) if brain else None
    return Case(subject=f"{number:02d}", images=images, label=label, brain=mask)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0])), path)
    return path


def looked_at(cases: list[Case], out: Path) -> Path:
    """The exams as a run takes them, and what the doctor says of them in `out`."""
    table = out / "tables" / "given" / "exams.tsv"
    table.parent.mkdir(parents=True)
    Cohort(cases=tuple(cases)).save(table)
    check_data(table, out / "check", workers=1)
    return table


def until_the_plan(
    cases: list[Case],
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: Asked = Asked(),  # noqa: B008 — frozen
) -> str:
    """Run as far as the plan; at which stage the exams come from that are planned for."""
    table = out.with_name("exams.tsv")
    Cohort(cases=tuple(cases)).save(table)

    def stop(used: Path, *_: object) -> None:
        raise RunError(used.parent.name)

    monkeypatch.setattr(front_door, "_planned", stop)
    with pytest.raises(RunError) as stopped:
        run_folder(table, out, asked, workers=1)
    return str(stopped.value)


def record(out: Path, number: int) -> dict[str, object]:
    (path,) = (out / "ready" / f"sub-{number:02d}").rglob("*_desc-ready.json")
    return dict(json.loads(path.read_text()))


def test_heads_behind_many_brains_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    brains = [exam(tmp_path, number) for number in range(8)]
    heads = [exam(tmp_path, number, head=True) for number in range(8, 11)]
    assert is_raw(looked_at([*brains, *heads], tmp_path / "mixed"), tmp_path / "mixed", "auto")
    assert "made ready first: sub-08: FLAIR shows more than a brain (--raw never" in capsys.readouterr().err
    assert not is_raw(looked_at(brains, tmp_path / "stripped"), tmp_path / "stripped", "auto")
    assert "not made ready: every exam shows the brain alone" in capsys.readouterr().err


def test_the_mask_that_heads_come_with_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("SimpleITK")
    cases = [exam(tmp_path, number, head=True, brain=True) for number in range(2)]
    out = tmp_path / "out"
    assert until_the_plan(cases, out, monkeypatch) == "ready"
    brain = record(out, 1)["brain"]
    assert isinstance(brain, dict)
    assert (brain["origin"], brain["source"]) == ("given", str(tmp_path / "01_brain.nii.gz"))


def test_stripped_sequences_that_do_not_lie_on_each_other_are_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("SimpleITK")
    cases = [exam(tmp_path, number, names=("FLAIR", "T1w")) for number in range(2)]
    assert until_the_plan(cases, tmp_path / "before", monkeypatch) == "given"
    moved = nib.load(cases[1].images["T1w"])
    save(cases[1].images["T1w"], np.roll(np.asanyarray(moved.dataobj), 3, 0))  # 6 mm, on the same grid
    assert until_the_plan(cases, tmp_path / "after", monkeypatch) == "ready"
    assert "made ready first: sub-01: " in capsys.readouterr().err
    steps = record(tmp_path / "after", 1)["steps"]
    assert isinstance(steps, list)
    (registered,) = (step for step in steps if step["step"] == "register")
    assert registered["improved"]
    assert registered["moved_mm"] == pytest.approx(6, abs=1)
    assert until_the_plan(cases, tmp_path / "after", monkeypatch) == "ready", "started again"


def test_a_damaged_image_is_left_out_of_the_mended_copy_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [exam(tmp_path / "data", number, names=("FLAIR", "T2w")) for number in range(3)]
    damaged = cases[1].images["T2w"]
    damaged.write_bytes(whole := damaged.read_bytes()[:2000])
    asked = Asked(fix=True, raw="never")
    for _ in range(2):  # started again, it goes on the same way
        assert until_the_plan(cases, tmp_path / "out", monkeypatch, asked) == "mended"
    copy = Cohort.load(tmp_path / "out" / "tables" / "mended" / "exams.tsv")
    assert [sorted(case.images) for case in copy.cases] == [["FLAIR", "T2w"], ["FLAIR"], ["FLAIR", "T2w"]]
    assert damaged.read_bytes() == whole


def test_what_the_doctor_says_of_abdomens_is_no_reason(tmp_path: Path) -> None:
    body = np.random.default_rng(0).normal(100, 10, (24, 24, 24)).astype(np.float32)
    out, path = tmp_path / "out", save(tmp_path / "body.nii.gz", body)
    table = looked_at([Case(subject="1", images={"T2spir": path, "T1in": path})], out)
    found = [{"check": "not_aligned", "case": "sub-1", "found": "T1in seems off T2spir by 9 mm on average"}]
    write_json(out / "check" / "check.json", {"findings": found})
    assert not is_raw(table, out, "auto")


def test_a_file_in_the_place_of_the_folder_is_one_line(phantom: Path, tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("mine")
    with pytest.raises(OutputError, match=r"afile is a file, expected a folder"):
        run_folder(phantom, tmp_path / "afile")
    assert (tmp_path / "afile").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("pretrain.method=voxmmsd", "unknown method 'voxmmsd'; did you mean 'vox_mmsd'"),
        ("finetune.trainin.steps=5", "unknown key 'trainin'"),
        ("network.settings.preset=huge", "preset = 'huge'"),
        ("finetune.semi.name=mean_techer", "mean_teacher"),
        ("pretrain.settings.rati=0.5", "unknown key 'rati'"),
        ("steps", "expected key=value"),
    ],
)
def test_a_change_that_no_recipe_can_have_is_said_before_anything_is_done(
    change: str, said: str, phantom: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError) as refused:
        run_folder(phantom, tmp_path / "out", Asked(changes=(change,)))
    assert said in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        "pretrain.settings.policy=masked", "pretrain.settings.ratio=0.5", "finetune.semi.batch=2", "finetune.semi=null",
        "finetune.semi.name=mean_teacher", "finetune.settings.deep_supervision=1", "pretrain.patch=[24,40,16]", "final=all",
        "prepare.modalities=[PDw]", "cohorts.exams.mask=lesion",
    ],
)  # fmt: skip
def test_a_change_that_some_plan_can_have_passes(change: str) -> None:
    check_changes((change,), "exams")


def test_changes_may_be_changed_until_something_stands_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_phantom: Callable[..., Path]
) -> None:
    data, out = make_phantom(tmp_path / "data", subjects=2, labelled=2), tmp_path / "out"
    asked = Asked(raw="never", changes=("finetune.training.steps=500",))

    def stop(*_: object) -> None:
        raise RunError("stopped")

    monkeypatch.setattr(front_door, "_checked", stop)

    def start(*changes: str) -> None:
        with pytest.raises(RunError, match="stopped"):
            run_folder(data, out, replace(asked, changes=changes))

    start("finetune.training.steps=500")
    start("finetune.training.steps=600", "seed=3")
    (out / "plan").mkdir()
    (out / "plan" / "plan.yaml").write_text("name: x")
    start("finetune.training.steps=700")
    (out / "run").mkdir()
    start("finetune.training.steps=700")
    with pytest.raises(SettingsError, match=r"was begun with changes \['finetune.training.steps=700'\], now it is"):
        start("finetune.training.steps=800")


@pytest.mark.parametrize("unlabelled", [False, True])
def test_predictions_are_spoken_of_where_there_are_some(
    unlabelled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [exam(tmp_path, 1), exam(tmp_path, 2), replace(exam(tmp_path, 3, names=("PDw",)), label=None)]
    cases += [replace(exam(tmp_path, 4), label=None)] if unlabelled else []
    Cohort(cases=tuple(cases)).save(tmp_path / "exams.tsv")
    recipe = parse(Recipe, {"name": "x", "cohorts": {"x": {"folder": "x"}}, "prepare": {"modalities": ["FLAIR"]}}, "x")
    predicted: list[str] = []

    def predict(model: Path, table: Path, *_: object, **__: object) -> None:
        predicted.extend(case.name for case in Cohort.load(table).cases)

    stubs = {
        "_checked": lambda given, way: given, "_planned": lambda used, way: recipe, "load_report": lambda file: {},
        "run_recipe": lambda recipe, out, show: {"report": "r", "page": "p", "run": "r"}, "best_arm": lambda *_: "scratch",
        "verdict": lambda report: SimpleNamespace(sentence="Better."), "predict": predict,
    }  # fmt: skip
    for name, stub in stubs.items():
        monkeypatch.setattr(front_door, name, stub)
    found = run_folder(tmp_path / "exams.tsv", tmp_path / "out", Asked(raw="never"))
    page, said = Path(found["page"]).read_text(), capsys.readouterr().err
    assert ("Predictions are those of" in page) is unlabelled
    assert predicted == (["sub-04"] if unlabelled else [])
    assert (found["predictions"] is not None) is unlabelled
    assert "sub-03: not predicted; it has PDw, the model knows FLAIR" in said


def test_heads_are_registered_learned_from_and_predicted_on_every_grid_they_came_on(tmp_path: Path) -> None:
    """From the scanner's grids through one network and back: FLAIR at 2 mm, a T1w of another size that lies 4 mm beside it."""
    pytest.importorskip("SimpleITK")
    cases = [exam(tmp_path / "raw", number, names=("FLAIR", "T1w"), head=True, brain=True) for number in range(4)]
    beside = np.array([[2.0, 0, 0, 4.0], [0, 2.0, 0, 0], [0, 0, 4.0, 1.0], [0, 0, 0, 1.0]])
    for case in cases:
        volume = nib.load(case.images["T1w"]).get_fdata()
        pairs = (volume[..., ::2] + volume[..., 1::2]) / 2
        nib.save(nib.Nifti1Image(pairs.round().astype(np.int16), beside), case.images["T1w"])
    Cohort(cases=(*cases[:3], replace(cases[3], label=None))).save(tmp_path / "exams.tsv")
    small = [
        f"{stage}.{part}" for stage in ("pretrain", "finetune") for part in ("patch=[16,16,16]", "training.steps=4")
    ]
    asked = Asked(minutes=0.01, changes=("network.settings.preset=nano", "finetune.training.validate_every=2", *small))
    run_folder(tmp_path / "exams.tsv", tmp_path / "out", asked, workers=1)
    steps = record(tmp_path / "out", 3)["steps"]
    assert isinstance(steps, list)
    (registered,) = (step for step in steps if step["step"] == "register")
    assert registered["moved_mm"] == pytest.approx(4, abs=1)
    found = {path.name: nib.load(path) for path in (tmp_path / "out" / "original_grids" / "sub-03").glob("*.nii.gz")}
    assert sorted(found) == ["03_FLAIR_label-lesion_mask.nii.gz", "03_T1w_label-lesion_mask.nii.gz"]
    for name in ("FLAIR", "T1w"):
        here, original = found[f"03_{name}_label-lesion_mask.nii.gz"], nib.load(cases[3].images[name])
        assert here.shape == original.shape
        np.testing.assert_array_equal(here.affine, original.affine)
        assert set(np.unique(here.get_fdata())) <= {0, 1}
