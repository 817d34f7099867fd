"""Cohorts of a recipe or a study: a folder of any layout, its words for masks, sequences and classes, and resolved files that stay as they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from oligovox import experiment
from oligovox.cohort.bids import read_bids
from oligovox.errors import CohortError, SettingsError
from oligovox.experiment.budget_ground import build_ground, check_study
from oligovox.experiment.budget_plan import parse_study, read_study, write_study
from oligovox.experiment.cohorts import quiet
from oligovox.experiment.recipe import CohortChoice, Recipe, read_recipe, write_recipe
from oligovox.files import read_json
from oligovox.settings import parse

RECORDS = Path(__file__).parents[2] / "benchmarks" / "studies" / "ms.records.jsonl"
RULE = {"sharp": {"classical": "flair_threshold", "settings": {"smoothing_mm": [0.0]}}}
STUDY = {
    "name": "s", "prepare": {"modalities": ["T1w", "FLAIR"]}, "split": {"test": 2, "validation": 1}, "counts": [1, 2],
    "draws": 2, "lr": [1.0e-3], "network": {"settings": {"preset": "nano"}}, "arms": RULE,
}  # fmt: skip


def recipe_of(home: Path, **cohort: Any) -> Recipe:
    file = home / "recipe.yaml"
    file.write_text(yaml.safe_dump({"name": "r", "cohorts": {"ward": cohort}, "prepare": {"modalities": ["FLAIR"]}}))
    return read_recipe(file)


def test_a_study_on_a_folder_of_nnunet_is_that_on_the_same_people_in_bids(phantom: Path, tmp_path: Path) -> None:
    experiment.write_cohort(phantom, tmp_path / "Dataset001_Ward", to="nnunet")
    for name, cohort in {"bids": {"bids": "phantom"}, "folder": {"folder": "Dataset001_Ward"}}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**STUDY, "cohorts": {"ward": cohort}}))
        study = read_study(tmp_path / f"{name}.yaml")
        check_study(study)
        build_ground(study, tmp_path / name, workers=1, show=quiet)
    people, others = (read_json(tmp_path / name / "people.json") for name in ("bids", "folder"))
    assert people == others
    assert len(people["test"]) == 2
    assert not set(people["test"]) & set(people["labels"])


def test_a_folder_is_read_in_its_own_words(phantom: Path, tmp_path: Path) -> None:
    """The column `second` is the mask, `MRI` is FLAIR, and the value 1 is called plaque."""
    image, mask = (f"{phantom.name}/{path.relative_to(phantom)}" for path in _files(phantom, "01"))
    (tmp_path / "exams.csv").write_text(f"id,MRI,label,second\np01,{image},,{mask}\np02,{image},{mask},\n")
    said = {"sequences": {"MRI": "t2f"}, "mask": "second", "labels": {"plaque": 1}}
    ward = recipe_of(tmp_path, folder="exams.csv", **said).cohorts["ward"]
    cohort = ward.read()
    assert (ward.folder, ward.sequences) == (str(tmp_path / "exams.csv"), {"MRI": "FLAIR"})
    assert ([case.name for case in cohort.labelled], cohort.modalities, cohort.labels) == (
        ["sub-p01"], ("FLAIR",), {"plaque": 1},
    )  # fmt: skip
    with pytest.raises(CohortError, match="expected a column called as a sequence"):
        recipe_of(tmp_path, folder="exams.csv").cohorts["ward"].read()


def test_the_layout_that_is_named_is_insisted_on(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXAMS", str(phantom))
    as_it_looks, named = (
        recipe_of(tmp_path, folder="$EXAMS", **more).cohorts["ward"] for more in ({}, {"layout": "brats"})
    )
    assert as_it_looks.read() == recipe_of(tmp_path, bids="$EXAMS").cohorts["ward"].read() == read_bids(phantom)
    with pytest.raises(CohortError, match="no folder whose files are called as itself"):
        named.read()
    with pytest.raises(CohortError, match="/nowhere: no such folder"):
        recipe_of(tmp_path, folder="/nowhere", layout="isbi2015").cohorts["ward"].read()


def test_a_simulated_cohort_is_read_where_it_was_made(phantom: Path) -> None:
    choice = CohortChoice.model_validate({"simulate": {"subjects": 6}, "labels": {"plaque": 1}})
    assert choice.read(phantom) == read_bids(phantom, labels={"plaque": 1})


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({}, "give exactly one of folder, bids, table, simulate; found none"),
        ({"folder": "a", "bids": "a"}, "exactly one of .*; found folder and bids"),
        ({"folder": "a", "simulate": {"subjects": 2}}, "exactly one of .*; found folder and simulate"),
        ({"bids": "a", "layout": "nnunet"}, "layout says how a folder is read; give folder instead of bids"),
        ({"table": "a.tsv", "sequences": {"MRI": "FLAIR"}}, "sequences says how a folder is read; give folder instead of table"),
        ({"folder": "a", "layout": "nnunett"}, "unknown layout; did you mean 'nnunet'?"),
        ({"folder": "a", "sequences": {"MRI": "FLAIRE"}}, "unknown modality 'FLAIRE'; did you mean 'FLAIR'?"),
        ({"foldr": "a"}, "unknown key 'foldr'; did you mean 'folder'?"),
    ],
)  # fmt: skip
def test_a_cohort_that_is_said_wrongly(tmp_path: Path, given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint) as error:
        recipe_of(tmp_path, **given)
    assert "\n" not in str(error.value)


def test_resolved_files_of_before_there_were_folders_stay_as_they_were() -> None:
    """A run goes on, and a study stays frozen, only where this text is the same to the letter."""
    frozen = json.loads(RECORDS.read_text(encoding="utf-8").partition("\n")[0])["study"]
    assert write_study(parse_study(frozen, "frozen")) == frozen
    assert list(CohortChoice(bids="x").model_dump()) == ["bids", "table", "simulate", "mask", "labels"]


def test_a_resolved_folder_says_all_of_it_and_is_read_again(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, folder="exams", sequences={"MRI": "FLAIR"})
    content = yaml.safe_load(write_recipe(recipe))
    assert content["cohorts"]["ward"] == {
        "folder": str(tmp_path / "exams"), "layout": "", "sequences": {"MRI": "FLAIR"},
        "bids": None, "table": None, "simulate": None, "mask": "lesion", "labels": None,
    }  # fmt: skip
    assert parse(Recipe, content, "again") == recipe


def test_classes_are_named_on_the_command_line(phantom: Path, tmp_path: Path, oligovox: Callable[..., Any]) -> None:
    image, mask = _files(phantom, "01")
    table = tmp_path / "exams.csv"
    table.write_text(f"id,FLAIR,label\np01,{image},{mask}\n")
    classes = ["--labels", "plaque=1", "--labels", "black hole=2"]
    named = {"plaque": 1, "black hole": 2}
    assert json.loads(oligovox("cohort", "look", table, *classes, "--json").stdout)["labels"] == named
    oligovox("cohort", "write", table, tmp_path / "own.tsv", "--to", "table", *classes)
    assert experiment.look_at(tmp_path / "own.tsv")["labels"] == named
    oligovox("prepare", tmp_path / "own.tsv", tmp_path / "store", "--labels", "plaque=1", "--workers", 1)
    assert read_json(tmp_path / "store" / "store.json")["labels"] == {"plaque": 1}


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (["plaque"], "label 'plaque': expected a class and its value in the label files, as lesion=1"),
        (["plaque=one"], "label 'plaque=one': the value is 'one', expected a whole number from 1 to 65535"),
        (["plaque=0"], "the value is '0', expected a whole number from 1"),
        (["plaque=1", "hole=1"], "label 'hole=1': another one has this class or value"),
        (["plaque=1", "plaque=2"], "label 'plaque=2': another one has this class or value"),
    ],
)
def test_classes_that_are_said_wrongly(phantom: Path, tmp_path: Path, labels: list[str], complaint: str) -> None:
    with pytest.raises((SettingsError, CohortError), match=complaint):
        experiment.prepare(phantom, tmp_path / "store", labels=labels)
    assert not (tmp_path / "store").exists()


def _files(phantom: Path, person: str) -> tuple[Path, Path]:
    derived = phantom / "derivatives" / "manual" / f"sub-{person}" / "anat"
    return (
        phantom / f"sub-{person}" / "anat" / f"sub-{person}_FLAIR.nii.gz",
        derived / f"sub-{person}_label-lesion_mask.nii.gz",
    )
