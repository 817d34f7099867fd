"""People whom a folder sets apart as its test part are tested on, and nobody learns from them."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from oligovox import experiment
from oligovox.cohort import bids_write, layouts
from oligovox.cohort.bids import read_bids
from oligovox.cohort.manifest import Cohort
from oligovox.cohort.splits import Split, set_apart
from oligovox.engine.model import read_description
from oligovox.errors import LabelError, SettingsError
from oligovox.experiment import planning
from oligovox.experiment.people import arm_people, draw, label_pool, pretraining_people, say_apart
from oligovox.experiment.planning_facts import facts_of_cohort
from oligovox.experiment.planning_split import split_of
from oligovox.experiment.recipe import Arm, Finetune, NetworkChoice, Recipe, read_recipe
from oligovox.files import write_json
from oligovox.settings import parse


def challenge(root: Path, phantom: Path, train: int = 2, test: int = 2) -> Path:
    """An nnU-Net folder with labels in both parts."""
    for number, case in enumerate(read_bids(phantom).cases[: train + test]):
        part = "Tr" if number < train else "Ts"
        for folder, path in ((f"images{part}", case.images["FLAIR"]), (f"labels{part}", case.label)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            ending = "_0000" if folder.startswith("images") else ""
            shutil.copy(path or "", root / folder / f"ms{case.subject}{ending}.nii.gz")
    about = {"channel_names": {"0": "FLAIR"}, "labels": {"background": 0, "lesion": 1}, "file_ending": ".nii.gz"}
    write_json(root / "dataset.json", about | {"numTraining": train})
    return root


def recipe(**split: object) -> Recipe:
    content = {"name": "x", "cohorts": {"x": {"folder": "x"}}, "prepare": {"modalities": ["FLAIR"]}, "split": split}
    return parse(Recipe, content, "here")


def chosen(cohort: Cohort) -> tuple[Split, str]:
    """What a plan chooses and its recipe then draws."""
    split, said = split_of(facts_of_cohort(cohort), cohort)
    drawn = draw(recipe(**split.model_dump()), cohort)
    say_apart(cohort, drawn)
    return drawn, said


@pytest.mark.parametrize(("train", "test", "validation"), [(2, 2, 0), (4, 2, 1), (3, 1, 1), (1, 5, 0)])
def test_a_challenge_is_tested_on_its_test_part(
    phantom: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], train: int, test: int, validation: int
) -> None:
    cohort = layouts.read(challenge(tmp_path / "Dataset001_MS", phantom, train, test))
    split, said = chosen(cohort)
    people = [f"ms{number:02d}" for number in range(1, 7)]
    assert split.test == tuple(people[train : train + test])
    assert len(split.validation) == validation
    assert {*split.train, *split.validation} == {*people[:train]}
    learned = train - validation
    assert said == (
        f"split: {test} labelled people of the folder's own test part to test on, {validation} others to choose the checkpoint by, "
        f"{learned} to learn from"
    )
    assert f"{test}, of whom {test} tested on and 0 learned from" in " ".join(capfd.readouterr().err.split())


def test_a_plan_is_made_for_the_test_part(phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*given: Any) -> None:
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(given[3]))
        raise SettingsError("enough")

    monkeypatch.setattr(planning, "_probed", measured)
    with pytest.raises(SettingsError, match="enough"):
        planning.plan(challenge(tmp_path / "Dataset001_MS", phantom))
    split = read_recipe(tmp_path / "plan.yaml").split
    assert (split.test, split.validation, split.labels) == (("ms03", "ms04"), 0, 2)


def test_a_mended_copy_or_a_table_keeps_the_parts(phantom: Path, tmp_path: Path) -> None:
    cohort = layouts.read(challenge(tmp_path / "Dataset001_MS", phantom))
    bids_write.write(cohort, tmp_path / "bids")
    cohort.save(tmp_path / "cohort.tsv")
    for again in (read_bids(tmp_path / "bids"), Cohort.load(tmp_path / "cohort.tsv")):
        assert chosen(again)[0].test == ("ms03", "ms04")


def with_part(cohort: Cohort, people: set[str], unlabelled: Collection[str] = ()) -> Cohort:
    cases = [replace(c, info={"part": "test"}) if c.person in people else c for c in cohort.cases]
    return replace(cohort, cases=tuple(replace(c, label=None) if c.person in unlabelled else c for c in cases))


def test_nobody_of_it_is_seen_before(phantom: Path) -> None:
    """Neither with a label nor without, not even people who are not tested because they have none, or because fewer were asked for."""
    cohort = with_part(read_bids(phantom), {"01", "02", "03"}, {"03", "06"})
    asked = recipe(test=1, validation=0, labels=2)
    split = draw(asked, cohort)
    assert split.test in (("01",), ("02",))
    assert {*split.train} == {"04", "05"}
    assert label_pool(asked, cohort, split) == ("04", "05")
    assert {*split.test, *split.apart} == {"01", "02", "03"}
    adding = parse(Arm, {"start": "scratch", "also": [""]}, "an arm that adds all labelled people of this cohort")
    assert arm_people(adding, cohort, split) == ("04", "05")
    assert pretraining_people(asked, cohort, split) == ("04", "05", "06")
    assert asked.pretrain
    seeing = asked.model_copy(update={"pretrain": asked.pretrain.model_copy(update={"transductive": True})})
    assert pretraining_people(seeing, cohort, split) == cohort.people


def test_a_strategy_sees_nobody_of_it_in_a_run(phantom: Path, tmp_path: Path) -> None:
    with_part(read_bids(phantom), {"01", "02", "03"}, {"03", "06"}).save(tmp_path / "parts.tsv")
    small = {"patch": [16, 16, 16], "training": {"steps": 1, "threads": 1, "tensorboard": "off"}}
    given = {
        "name": "parts", "cohorts": {"parts": {"table": "parts.tsv"}}, "prepare": {"modalities": ["FLAIR"]}, "workers": 1,
        "split": {"test": 1, "validation": 0, "labels": 1}, "network": {"settings": {"preset": "nano"}}, "pretrain": None,
        "finetune": small | {"semi": {"name": "mean_teacher"}}, "arms": {"semi": {"start": "scratch"}}, "final": "all",
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given))
    done = experiment.run(tmp_path / "recipe.yaml", tmp_path / "run")
    split = Split.load(tmp_path / "run" / "split.json")
    assert read_description(tmp_path / "run" / "arms" / "semi" / "model").trained_on == ("04", "05", "06")
    assert not {*split.apart} & {*read_description(Path(done["final"])).trained_on}, (
        "the final model sees tested people"
    )
    assert {*split.apart, *split.test} == {"01", "02", "03"}
    again = experiment.finetune(
        tmp_path / "run" / "store", tmp_path / "again", stage=parse(Finetune, given["finetune"], "here"),
        network=NetworkChoice(settings={"preset": "nano"}), labels=1, split=split,
    )  # fmt: skip
    assert read_description(again).trained_on == ("04", "05", "06"), "the split file holds out whom the run held out"


def test_more_than_it_holds_are_drawn_from_the_others(phantom: Path) -> None:
    cohort = with_part(read_bids(phantom), {"01", "02"})
    split = draw(recipe(test=3, validation=1, labels=2), cohort)
    assert {"01", "02"} < {*split.test}
    assert len(split.test) == 3
    with pytest.raises(LabelError, match=r"5 labelled people .* has 4 .* 2 of whom are tested"):
        draw(recipe(test=3, validation=1, labels=3), cohort)


def test_who_is_named_is_where_the_recipe_says(phantom: Path) -> None:
    cohort = with_part(read_bids(phantom), {"01", "02"})
    split = draw(recipe(test=["03"], validation=0, labels=["01", "04"]), cohort)
    assert (split.test, split.train) == (("03",), ("01", "04"))
    everyone = recipe(test=2, validation=["03"], labels=["04", "05", "06"])  # nobody is left to draw
    assert draw(everyone, cohort).test == ("01", "02")


def test_people_labelled_in_part_are_neither_tested_nor_learned_from(phantom: Path) -> None:
    cohort = with_part(read_bids(phantom), {"01", "02"})
    cases = tuple(replace(case, sparse=case.person in {"01", "05"}) for case in cohort.cases)
    split, _ = chosen(replace(cohort, cases=cases))
    assert split.test == ("02",)
    assert "01" not in {*split.train, *split.validation}
    assert "05" in split.train


def test_a_part_that_was_read_alone_is_split_as_any_folder(phantom: Path) -> None:
    cohort = read_bids(phantom)
    alone = with_part(cohort, {*cohort.people})
    assert set_apart(alone) == ()
    assert chosen(alone)[0] == chosen(cohort)[0]
    unlabelled = with_part(cohort, {"01"}, {"01"})
    assert chosen(unlabelled)[0].test
    assert "01" not in pretraining_people(recipe(test=1), unlabelled, chosen(unlabelled)[0])
