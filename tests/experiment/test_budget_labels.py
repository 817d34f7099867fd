"""What is labelled of the people a study learns from: said and shown, also of old folders of which parts are gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from oligovox import experiment
from oligovox.experiment.budget_ground import Ground, open_ground
from oligovox.experiment.budget_labels import label_views, labelling_of
from oligovox.experiment.budget_plan import Study, read_study
from oligovox.experiment.budget_run import write_result
from oligovox.report.budget import load_budget
from oligovox.settings import parse


@pytest.fixture
def finished(make_phantom: Callable[..., Path], tmp_path: Path) -> Path:
    """A study that tests 01 and 02, and learns from 03 and 04, of whom every fifth slice is labelled, and 05, who is labelled in full."""
    make_phantom(tmp_path / "phantom", subjects=5, labelled=5, side=20)
    experiment.annotate(tmp_path / "phantom", tmp_path / "part", kind="every", changes=["every=5"], people=["03", "04"])
    stage = {"patch": [16, 16, 16], "training": {"threads": 1, "tensorboard": "off", "steps": 2}}
    given = {
        "name": "s", "cohorts": {"phantom": {"table": "part/cohort.tsv"}}, "prepare": {"modalities": ["T1w", "FLAIR"]},
        "split": {"test": ["01", "02"], "validation": 0}, "network": {"settings": {"preset": "nano"}}, "counts": [3], "draws": 1,
        "lr": [1.0e-3], "arms": {"scratch": {"start": "scratch"}}, "finetune": stage,
    }  # fmt: skip
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(given))
    experiment.budget(tmp_path / "s.yaml", tmp_path / "out")
    return tmp_path


def ground_of(home: Path) -> tuple[Study, Ground]:
    study = read_study(home / "s.yaml")
    return study, open_ground(study, home / "out")


def test_the_page_says_and_shows_what_is_labelled(finished: Path) -> None:
    report = load_budget(finished / "out" / "budget.json")
    kinds = {kind.in_part: kind for kind in report.labelling}
    part, full = kinds[True], kinds[False]
    assert (part.how, part.people, full.how, full.people) == ("one axial slice in 5", 2, "", 1)
    label = np.load(finished / "out" / "store" / "cases" / "sub-03" / "label.npy")
    planes = int((label >= 0).any((0, 1)).sum())
    assert 3 <= planes <= 4
    assert part.slices is not None
    assert part.slices.least <= planes <= part.slices.most
    assert 0.1 < part.looked_at.mean < 0.3
    assert (full.slices, full.looked_at.least, full.looked_at.most) == (None, 1.0, 1.0)
    page = (finished / "out" / "budget.html").read_text()
    people = page.split('id="people"')[1].split("</section>")[0]
    assert "in part: one axial slice in 5" in people
    assert people.count("data:image/png;base64,") == 1
    assert "The first people of the first draw: inside the blue border somebody looked" in people
    assert "of 3 people, 2 of them labelled in part" in page
    study, ground = ground_of(finished)
    views = label_views(study, ground)
    assert [view.title for view in views] == [f"sub-{p}" for p in ground.labels(study, 3, 0)]
    assert {view.title: bool((view.label < 0).any()) for view in views} == {
        "sub-03": True,
        "sub-04": True,
        "sub-05": False,
    }
    assert all(view.image.min() == 0 for view in views), "black around the brain"


def test_a_study_whose_arrays_are_gone_is_drawn_without_them(finished: Path) -> None:
    for label in (finished / "out" / "store" / "cases").glob("*/label.npy"):
        label.unlink()
    write_result(finished / "out")
    assert load_budget(finished / "out" / "budget.json").labelling == ()
    assert "data:image/png" not in (finished / "out" / "budget.html").read_text()


def test_how_a_part_was_chosen_is_known_from_the_study_or_the_mask_or_not_at_all(finished: Path) -> None:
    study, ground = ground_of(finished)
    sparse = {"kind": "lesions", "share": 0.25, "margin_mm": 4}
    clinic: dict[str, Any] = {"simulate": {"subjects": 5, "preset": "ms-7t", "recipe": {"sparse": sparse}}}
    given = {"name": "s", "prepare": {"modalities": ["FLAIR"]}, "arms": {"scratch": {"start": "scratch"}}}
    simulated = parse(Study, given | {"cohorts": {"clinic": clinic | {"mask": "sparse"}}}, "study")
    how = {kind.in_part: kind.how for kind in labelling_of(simulated, ground)}
    assert how == {True: "25 % of the lesions, and 4 mm of background around them", False: ""}
    for sidecar in (finished / "part").rglob("*_dseg.json"):
        sidecar.write_text(json.dumps({"Unlabelled": 255}))
    assert {kind.how for kind in labelling_of(study, ground)} == {""}
    for sidecar in (finished / "part").rglob("*_dseg.json"):
        sidecar.write_text('{"Settings": {"kind": "of another tool"}}')
    assert {kind.how for kind in labelling_of(study, ground)} == {""}
