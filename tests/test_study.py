"""A whole recipe, folder to page, on phantoms; and what happens when it is started again, or wrongly."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from oligovox import experiment
from oligovox.errors import CohortError, GeometryError, LabelError, SettingsError
from oligovox.experiment.budget_plan import read_study
from oligovox.experiment.recipe import Recipe, read_recipe
from oligovox.settings import parse

TINY = Path(__file__).parent / "tiny.yaml"


@pytest.fixture
def finished(phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PHANTOM", str(phantom))
    experiment.run(TINY, tmp_path / "run")
    return tmp_path / "run"


def test_run_ends_in_two_files_with_the_same_numbers(finished: Path) -> None:
    content = json.loads((finished / "report.json").read_text())["report"]
    page = (finished / "report.html").read_text()
    assert [arm["name"] for arm in content["arms"]] == ["scratch", "pretrained"]
    scores = json.loads((finished / "arms" / "pretrained" / "scores.json").read_text())
    assert [row["case"] for row in scores["cases"]] == [row["case"] for row in content["arms"][1]["cases"]]
    for row in scores["cases"]:
        assert f"{row['dice']:.3f}" in page
    held_out = set(content["data"]["splits"]["test"])
    assert held_out.isdisjoint(content["data"]["splits"]["pretrain"])
    assert held_out.isdisjoint(content["data"]["splits"]["train"])


def test_predictions_lie_on_the_grid_of_the_images(finished: Path, phantom: Path) -> None:
    masks = sorted((finished / "arms" / "scratch" / "predictions").glob("sub-*/**/*_mask.nii.gz"))
    assert len(masks) == 2
    for path in masks:
        subject = path.name.split("_")[0]
        image, mask = nib.load(phantom / subject / "anat" / f"{subject}_FLAIR.nii.gz"), nib.load(path)
        assert mask.shape == image.shape
        np.testing.assert_array_equal(mask.affine, image.affine)
        assert set(np.unique(mask.get_fdata())) <= {0.0, 1.0}


def test_second_start_trains_nothing_again(finished: Path) -> None:
    logs = {path: path.read_bytes() for path in finished.rglob("log.jsonl")}
    before = (finished / "arms" / "scratch" / "model" / "weights.safetensors").read_bytes()
    experiment.run(TINY, finished)
    assert logs == {path: path.read_bytes() for path in logs}
    assert before == (finished / "arms" / "scratch" / "model" / "weights.safetensors").read_bytes()


def test_folder_of_another_recipe_is_refused(finished: Path) -> None:
    with pytest.raises(SettingsError, match="another recipe"):
        experiment.run(TINY, finished, ["finetune.training.steps=7"])


def test_folder_that_is_no_run_is_refused(phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHANTOM", str(phantom))
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SettingsError, match="not empty"):
        experiment.run(TINY, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("finetune.training.stepz=7", "did you mean 'steps'"),
        ("pretrain.method=generativ", "did you mean 'generative'"),
        ("pretrain.settings.blok=3", "did you mean 'block'"),
        ("prepare.modalities=[T1w,FLAIRR]", "did you mean 'FLAIR'"),
        ("network.name=resnec", "did you mean 'resenc'"),
        ("finetune.patch=[15,16,16]", "multiple"),
        ("finetune.training.device=cuda", "no GPU"),
        ("pretrain=null", "no pretrain section"),
    ],
)
def test_wrong_recipe_is_one_line(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, message: str
) -> None:
    monkeypatch.setenv("PHANTOM", str(phantom))
    with pytest.raises(SettingsError, match=message) as error:
        experiment.run(TINY, tmp_path / "run", [change])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_split_that_asks_for_too_many_is_refused(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHANTOM", str(phantom))
    with pytest.raises(LabelError, match="lower the numbers"):
        experiment.run(TINY, tmp_path / "run", ["split.test=9"])
    with pytest.raises(CohortError, match=r"overlap|both|twice|train"):
        experiment.run(TINY, tmp_path / "run", ["split.test=['01']", "split.labels=['01','02']"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("group", ["test", "validation", "labels"])
def test_named_people_need_a_label(phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str) -> None:
    monkeypatch.setenv("PHANTOM", str(phantom))
    next(phantom.glob("derivatives/*/sub-05/anat/*lesion*")).unlink()
    with pytest.raises(LabelError, match="the split names '05', who has no label"):
        experiment.run(TINY, tmp_path / "run", [f"split.{group}=['05']"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["../elsewhere", ".hidden", "a/b", "a\\b", ""])
def test_names_of_arms_and_cohorts_stay_in_the_run_folder(name: str) -> None:
    given = {"name": "r", "prepare": {"modalities": ["FLAIR"]}, "cohorts": {"c": {"bids": "x"}}}
    for change in ({"arms": {name: {"start": "scratch"}}}, {"cohorts": {name: {"bids": "x"}}}):
        with pytest.raises(SettingsError, match="becomes a folder of the run"):
            parse(Recipe, given | change, "recipe")


def test_mask_off_the_reference_grid_is_said_before_training(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHANTOM", str(phantom))
    for path in phantom.glob("sub-*/anat/*_FLAIR.nii.gz"):
        image = nib.load(path)
        moved = np.diag([1.0, 1.0, 1.0, 1.0])
        moved[0, 3] = 2.0
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), moved), path)
    with pytest.raises(GeometryError, match=r"name the sequence it was drawn on first in prepare\.reference"):
        experiment.run(TINY, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    small = ["pretrain.training.steps=1", "finetune.training.steps=1", "prepare.reference=[T1w]"]
    experiment.run(str(TINY), str(tmp_path / "run"), small)


def test_shipped_recipes_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLIGOVOX_DATA", raising=False)
    home = Path(experiment.__file__).parents[1] / "recipes"
    recipes = [*home.glob("*.yaml"), *(Path(__file__).parents[1] / "recipes").rglob("*.yaml")]
    assert len(recipes) >= 5
    with pytest.raises(SettingsError, match="OLIGOVOX_DATA is not set"):
        read_recipe(Path(__file__).parents[1] / "recipes" / "openms.yaml")
    monkeypatch.setenv("OLIGOVOX_DATA", "/data")
    for path in recipes:
        study = "oligovox budget" in path.read_text()
        assert (read_study(path) if study else read_recipe(path)).name == path.stem
