"""A strategy in fine-tuning, in a study, and in what is predicted with it: who is seen without a label, and what is said where nobody is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oligovox import catalogue, experiment
from oligovox.cohort.bids import read_bids
from oligovox.cohort.manifest import Cohort
from oligovox.cohort.splits import Split
from oligovox.engine.checkpoint import Checkpoints, read_state
from oligovox.engine.model import read_description
from oligovox.errors import LabelError, SettingsError
from oligovox.experiment.budget_plan import Study
from oligovox.experiment.budget_tables import comparisons, kind_of
from oligovox.experiment.prediction import load_segmentation, region_outputs
from oligovox.experiment.recipe import Finetune, NetworkChoice, Recipe
from oligovox.prepare.pipeline import prepare
from oligovox.prepare.store import Plan
from oligovox.settings import parse

SMALL = {"patch": [16, 16, 16], "training": {"steps": 2, "threads": 1, "tensorboard": "off"}}
NANO = NetworkChoice(settings={"preset": "nano"})


def stage(**changes: Any) -> Finetune:
    return parse(Finetune, SMALL | {"semi": {"name": "mean_teacher"}} | changes, "test")


def streams_of(model: Path) -> tuple[list[str], list[str]]:
    """Names of the exams of a finished run, with their labels and without."""
    folder = Checkpoints(model.parent / "checkpoints").find("last")
    assert folder is not None
    streams = read_state(folder).identity["describe"]["streams"]
    assert [stream["use_labels"] for stream in streams.values()] == [True, False]
    first, second = (stream["cases"] for stream in streams.values())
    return first, second


@pytest.fixture
def store(make_phantom: Callable[..., Path], tmp_path: Path) -> Path:
    make_phantom(tmp_path / "phantom", subjects=5, labelled=3, side=20)
    experiment.prepare(tmp_path / "phantom", tmp_path / "store", workers=1)
    return tmp_path / "store"


def test_everybody_else_is_seen_without_a_label(store: Path, tmp_path: Path) -> None:
    split = Split(train=("01",), validation=(), test=("02",), seed=0)
    run = experiment.finetune(store, tmp_path / "run", stage=stage(), network=NANO, people=["01"], split=split)
    _, description = load_segmentation(run)
    assert (description.method, description.kind) == ("mean_teacher", "segmentation")
    assert description.trained_on == ("01", "03", "04", "05"), "neither the tested person, nor anybody twice"
    assert region_outputs(description.settings) is None
    made = experiment.predict(run, store, tmp_path / "predictions")
    assert made["cases"] == 5


def test_visits_without_a_label_are_seen_whichever_labels_are_drawn(phantom: Path, tmp_path: Path) -> None:
    """01 and 02 have a visit with a label and one without, 03 is tested, 04 validates, and 05 is kept apart: none of their visits is seen."""
    first = [replace(case, session="1") for case in read_bids(phantom).cases if case.person < "06"]
    visits = [*first, *(replace(case, session="2", label=None) for case in first)]
    store = prepare(Cohort(cases=tuple(visits)), Plan(modalities=("FLAIR",)), tmp_path / "store", workers=1)
    split = Split(train=("01", "02"), validation=("04",), test=("03",), seed=0, apart=("05",))
    for drawn in (["01"], ["02"], ["01", "02"]):
        run = experiment.finetune(store, tmp_path / drawn[-1], stage=stage(), network=NANO, people=drawn, split=split)
        labelled, seen = streams_of(run)
        assert labelled == [f"sub-{person}_ses-1" for person in drawn]
        assert sorted(labelled + seen) == ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1", "sub-02_ses-2"]
        shutil.rmtree(tmp_path / drawn[-1])


@pytest.fixture
def slices(phantom: Path, tmp_path: Path) -> Path:
    """Two people, both with every second slice."""
    experiment.annotate(phantom, tmp_path / "slices", kind="every", changes=["every=2"])
    cases = [case for case in Cohort.load(tmp_path / "slices" / "cohort.tsv").cases if case.person < "03"]
    prepare(Cohort(cases=tuple(cases)), Plan(modalities=("T1w", "FLAIR")), tmp_path / "store", workers=1)
    return tmp_path / "store"


ALONE = "hidden_sequences"
STRATEGIES = [name for name, entry in catalogue.entries("METHOD").items() if entry.room == "semi"]


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ("adversarial", ALONE)])
def test_exams_labelled_in_part_are_enough(slices: Path, tmp_path: Path, name: str) -> None:
    run = experiment.finetune(slices, tmp_path / "run", stage=stage(semi={"name": name}), network=NANO)
    assert streams_of(run) == (["sub-01", "sub-02"], ["sub-01", "sub-02"])
    assert read_description(run).trained_on == ("01", "02")


def test_what_tells_exams_apart_needs_some_without_any_label(slices: Path, tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="adversarial learns from exams without a label, and none is left"):
        experiment.finetune(slices, tmp_path / "run", stage=stage(semi={"name": "adversarial"}), network=NANO)


def test_what_needs_no_exam_without_a_label_sees_those_in_part_once(slices: Path, tmp_path: Path) -> None:
    run = experiment.finetune(slices, tmp_path / "run", stage=stage(semi={"name": ALONE}), network=NANO)
    folder = Checkpoints(run.parent / "checkpoints").find("last")
    assert folder is not None
    assert list(read_state(folder).identity["describe"]["streams"]) == ["0"]


def test_regions_of_a_strategy_are_those_of_its_task(store: Path, tmp_path: Path) -> None:
    regions = {"mode": "regions", "labels": {"whole": [1]}}
    run = experiment.finetune(store, tmp_path / "run", stage=stage(settings=regions), network=NANO, people=["01"])
    _, description = load_segmentation(run)
    assert region_outputs(description.settings) == {"whole": (1,)}


def test_nobody_left_without_a_label_is_said_before_anything_is_written(store: Path, tmp_path: Path) -> None:
    split = Split(train=("01",), validation=("04",), test=("02", "03", "05"), seed=0)
    with pytest.raises(LabelError, match=r"mean_teacher learns from exams without a label, and none is left"):
        experiment.finetune(store, tmp_path / "run", stage=stage(), network=NANO, people=["01"], split=split)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("semi", "message"),
    [
        ({"name": "mean_techer"}, "did you mean 'mean_teacher'"),
        ({"name": "generative"}, "strategy 'generative' is unknown"),
        ({"name": "mean_teacher", "settings": {"task": {}}}, r"task is given in finetune\.settings"),
        ({"name": "mean_teacher", "weight": 1}, "unknown key 'weight'"),
    ],
)
def test_a_wrong_choice_is_one_line(semi: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as error:
        stage(semi=semi)
    assert "\n" not in str(error.value)


def test_a_cohort_that_is_not_there_is_refused_in_a_recipe_and_in_a_study() -> None:
    given = {
        "name": "s",
        "cohorts": {"ward": {"bids": "ward"}},
        "prepare": {"modalities": ["FLAIR"]},
        "finetune": {"semi": {"name": "mean_teacher", "cohorts": ["wart"]}},
    }
    with pytest.raises(SettingsError, match="cohort 'wart' is named but not defined; there are ward"):
        parse(Recipe, given, "recipe")
    with pytest.raises(SettingsError, match=r"arms\.a: mean_teacher names the cohort 'wart'; did you mean 'ward'"):
        parse(Study, given | {"arms": {"a": {"start": "scratch"}}}, "study")


def test_both_together_are_compared_with_either_alone() -> None:
    semi = {"finetune": {"semi": {"name": "mean_teacher"}}}
    start = {"start": "generative", "settings": {"block": 8}}
    arms = {
        "scratch": {"start": "scratch"},
        "pre": start,
        "semi": {"start": "scratch", **semi},
        "both": start | semi,
        "other": {"start": "masked_reconstruction", **semi},
    }
    study = parse(Study, {"name": "s", "store": "/nowhere", "arms": arms}, "study")
    assert [kind_of(study, arm) for arm in arms] == [
        "scratch", "pretext", "semi-supervised", "pretext, semi-supervised", "pretext, semi-supervised",
    ]  # fmt: skip
    against = [(arm, other) for arm, other in comparisons(study, study) if other != "scratch"]
    assert against == [("both", "pre"), ("both", "semi"), ("other", "semi")]


def test_a_strategy_is_compared_with_scratch_of_more_steps_as_a_pretext_is() -> None:
    semi = {"finetune": {"semi": {"name": "mean_teacher"}}}
    steps = {"pretrain": {"training": {"steps": 50}}}
    arms = {
        "scratch": {"start": "scratch"},
        "matched": {"start": "scratch", "extra_steps": 50},
        "longer": {"start": "scratch", "extra_steps": 80},
        "semi": {"start": "scratch", **semi},
        "both": {"start": "generative", **semi, **steps},
    }
    study = parse(Study, {"name": "s", "store": "/nowhere", "arms": arms}, "study")
    pairs = comparisons(study, study)
    assert [other for arm, other in pairs if arm == "semi"] == ["scratch", "matched", "longer"]
    assert [other for arm, other in pairs if arm == "both"] == ["scratch", "semi", "matched", "longer"]
