"""A study file: what it expands to, what it refuses, and that what is written down says the same when it is read again."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from oligovox.errors import SettingsError
from oligovox.experiment.budget_jobs import Job, jobs_of, needs, pretraining_of
from oligovox.experiment.budget_plan import Run, Study, parse_study, read_study, write_study
from oligovox.settings import parse

ROOT = Path(__file__).parents[2]
ARMS = {
    "threshold": {"classical": "flair_threshold"},
    "scratch": {"start": "scratch"},
    "matched": {"start": "scratch", "extra_steps": 7},
    "generative": {"start": "generative", "settings": {"block": 8}, "pretrain": {"training": {"steps": 7}}},
}


def study(**changes: Any) -> Study:
    given = {"name": "s", "store": "/nowhere", "arms": ARMS, "counts": [1, 2], "draws": {1: 3, 2: 2}, "seeds": [0, 5]}
    return parse(Study, given | changes, "study")


def test_every_arm_has_every_count_draw_and_seed() -> None:
    runs = study().runs
    networks = [run for run in runs if run.arm != "threshold"]
    places = {(n, d) for n, draws in ((1, 3), (2, 2)) for d in range(draws)}
    assert {(run.arm, run.count, run.draw, run.seed) for run in networks} == {
        (arm, n, d, seed)
        for arm, (n, d), seed in itertools.product(("scratch", "matched", "generative"), places, (0, 5))
    }
    assert {(r.count, r.draw, r.seed) for r in runs if r.arm == "threshold"} == {(n, d, 0) for n, d in places}
    assert len(set(runs)) == len(runs) == 3 * 5 * 2 + 5
    assert [run.draw for run in runs] == sorted(run.draw for run in runs), "a draw is finished before the next begins"


def test_trials_come_before_runs_and_scratch_is_tuned_first() -> None:
    jobs = jobs_of(study(lr=[1e-3, 1e-2]), study().runs)
    kinds = [(job.kind, job.arm) for job in jobs if job.kind != "run"]
    scratch = [("trial", "scratch")] * 2 + [("trial", "matched")] * 2
    assert kinds == [*scratch, *[("pretrain", "generative")] * 2, *[("trial", "generative")] * 2]
    assert [job.kind for job in jobs[-len(study().runs) :]] == ["run"] * len(study().runs)
    trials = [job for job in jobs if job.kind == "trial"]
    assert {arm: len([t for t in trials if t.arm == arm]) for arm in ARMS} == {
        "threshold": 0, "scratch": 2, "matched": 2, "generative": 2,
    }  # fmt: skip


def test_what_a_run_needs() -> None:
    two = study(lr=[1e-3, 1e-2])
    run = Job("run", "generative", 5, run=Run(0, 1, 5, "generative"))
    assert [(job.kind, job.seed) for job in needs(two, run)] == [("pretrain", 5), ("trial", 0), ("trial", 0)]
    assert [job.kind for job in needs(study(lr=[1e-3]), run)] == ["pretrain"], "one rate needs no trial"
    reset = ARMS["generative"] | {"finetune": {"norm_reset": True}}
    again = study(arms=ARMS | {"reset": reset, "longer": ARMS["generative"] | {"pretrain": {"training": {"steps": 9}}}})
    pretrained = {arm: pretraining_of(again, arm, 5).arm for arm in ("generative", "reset", "longer")}
    assert pretrained == {"generative": "generative", "reset": "generative", "longer": "longer"}, "the same only once"
    assert needs(again, Job("run", "reset", 5, run=Run(0, 1, 5, "reset")))[0] == Job("pretrain", "generative", 5)
    assert needs(two, Job("run", "threshold", 0, run=Run(0, 1, 0, "threshold"))) == ()


def test_common_sections_and_what_an_arm_changes() -> None:
    arms = ARMS | {
        "encoder": ARMS["generative"] | {"finetune": {"parts": ["encoder"], "training": {"weight_decay": 0.5}}}
    }
    asked = study(arms=arms, finetune={"training": {"steps": 11, "clip": 2.0}}, pretrain={"patch": [32, 32, 32]})
    plain, changed = asked.finetuning("generative", lr=0.02, seed=3), asked.finetuning("encoder", lr=0.02, seed=3)
    assert (plain.training.steps, plain.training.lr, plain.training.seed) == (11, 0.02, 3)
    assert (changed.parts, changed.training.weight_decay, changed.training.clip) == (("encoder",), 0.5, 2.0)
    assert changed.training.steps == 11
    before = asked.pretraining("generative", seed=5)
    assert (before.method, before.settings, before.patch, before.training.steps) == (
        "generative",
        {"block": 8},
        (32,) * 3,
        7,
    )
    assert before.training.seed == 5
    assert asked.finetuning("matched", lr=0.02, seed=0).training.steps == 11 + 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drawz": 3}, "did you mean 'draws'"),
        ({"arms": {"a": {"start": "scratch", "extra_step": 3}}}, "did you mean 'extra_steps'"),
        ({"arms": {"a": {"start": "generativ"}}}, "did you mean 'generative'"),
        ({"arms": {"a": {"start": "segmentation"}}}, "known are"),
        ({"arms": {"a": {"start": "generative", "finetune": {"pach": [8, 8, 8]}}}}, "did you mean 'patch'"),
        ({"arms": {"a": {"start": "scratch", "finetune": {"training": {"lr": 1}}}}}, "every arm has the same choice"),
        ({"arms": {"a": {"start": "scratch", "classical": "flair_threshold"}}}, "exactly one of start and classical"),
        ({"arms": {"a": {"start": "generative", "extra_steps": 4}}}, "extra_steps are for start: scratch"),
        ({"arms": {"a": {"start": "scratch", "settings": {"block": 8}}}}, "settings are those of a pretext"),
        ({"arms": {"a": {"classical": "flair_threshold", "settings": {"smooth": [1]}}}}, "did you mean 'smoothing_mm'"),
        ({"arms": {"a/b": {"start": "scratch"}}}, "becomes a folder"),
        ({"finetune": {"training": {"lr": 0.1}}}, "comes from lr and seeds"),
        ({"pretrain": {"settings": {"block": 8}}}, "comes from the arms"),
        ({"draws": {1: 3}}, "no number for 2 labels"),
        ({"metric": "dize"}, "did you mean 'dice'"),
        ({"counts": [1, 1]}, "once only"),
        ({"cohorts": {"c": {"bids": "x"}}}, "either cohorts with prepare, or a store"),
        ({"split": {"validation": 0}}, "chosen on validation people"),
    ],
)  # fmt: skip
def test_wrong_study_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as error:
        study(**change)
    assert "\n" not in str(error.value)


@settings(deadline=None, max_examples=15)
@given(
    counts=st.sets(st.integers(1, 32), min_size=1, max_size=4),
    seeds=st.sets(st.integers(0, 9), min_size=1, max_size=3),
    draws=st.integers(1, 9),
)
def test_what_is_written_down_says_the_same(counts: set[int], seeds: set[int], draws: int) -> None:
    asked = study(counts=sorted(counts), seeds=sorted(seeds), draws=draws, finetune={"training": {"steps": 9}})
    again = parse_study(write_study(asked), "again")
    assert write_study(again) == write_study(asked)
    assert again.runs == asked.runs
    assert again.finetuning("generative", lr=0.5, seed=1) == asked.finetuning("generative", lr=0.5, seed=1)
    assert again.pretraining("generative", seed=1) == asked.pretraining("generative", seed=1)


def test_what_is_set_elsewhere_is_not_written_down() -> None:
    content = yaml.safe_load(write_study(study()))
    assert {"lr", "seed"}.isdisjoint(content["finetune"]["training"])
    assert {"method", "settings"}.isdisjoint(content["pretrain"])


def test_the_study_that_ships_is_valid() -> None:
    demo = read_study(ROOT / "recipes" / "studies" / "budget_demo.yaml", ("draws=2",))
    assert demo.name == "budget_demo"
    assert {run.draw for run in demo.runs} == {0, 1}
    assert demo.arms["matched scratch"].extra_steps == demo.pretraining("generative", seed=0).training.steps
    assert {"classical", "start"} == {"classical" if arm.classical else "start" for arm in demo.arms.values()}
