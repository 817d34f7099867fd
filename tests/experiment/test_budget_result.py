"""What the page of a study says beside the numbers, from stand-in results."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from oligovox.cohort.splits import Split
from oligovox.experiment import budget_result
from oligovox.experiment.budget_freeze import Frozen
from oligovox.experiment.budget_plan import Run, Study
from oligovox.files import read_json, write_json
from oligovox.report.budget import load_budget, render_budget, write_budget
from oligovox.report.budget_choice import advice
from oligovox.report.budget_content import BudgetReport
from oligovox.settings import parse

PEOPLE = [f"p{k:02d}" for k in range(12)]
SEMI = {"finetune": {"semi": {"name": "mean_teacher"}}}
ARMS: dict[str, Any] = {
    "scratch": {"start": "scratch"},
    "matched scratch": {"start": "scratch", "extra_steps": 1000},
    "pre-trained": {"start": "generative", "settings": {"block": 8}},
    "semi": {"start": "scratch", **SEMI},
    "both": {"start": "generative", "settings": {"block": 8}, **SEMI},
}
SECONDS = {"scratch": 10.0, "matched scratch": 20.0, "pre-trained": 10.0, "semi": 24.0, "both": 24.0}


def reported(
    folder: Path,
    gains: dict[str, float],
    *,
    noise: float = 0.0,
    validation: dict[str, float] | None = None,
    **changes: Any,
) -> BudgetReport:
    """The content of the page of a study with Dice by a rule, to which an arm adds its gain, and noise in every other person."""
    given = {"name": "s", "store": "/nowhere", "arms": ARMS, "counts": [1, 2], "draws": 6, "lr": [1e-3], "seed": 3}
    study = parse(Study, given | changes, "study")

    def result(run: Run) -> dict[str, Any]:
        gain = gains.get(run.arm, 0.0)
        dice = {
            p: 0.3 + 0.05 * run.count + 0.01 * run.draw + 0.02 * k + gain * (1 + 0.01 * k) for k, p in enumerate(PEOPLE)
        }
        turn = noise * list(study.arms).index(run.arm)
        scores = {p: {"dice": v + turn * (-1) ** k} for k, (p, v) in enumerate(dice.items())}
        known = {"validation": validation[run.arm]} if validation else {}
        return {"scores": scores, "version": "0", "steps": 1, "seconds": SECONDS[run.arm], **known}

    done = {run: result(run) for run in study.runs}
    for name, arm in study.arms.items():
        if arm.pretext:
            place = budget_result.pretraining_of(study, name, 0).result
            write_json(folder / place, {"steps": 1000, "seconds": 11.0, "people": []})
    split = Split(train=tuple("abcdefgh"), validation=(), test=tuple(PEOPLE), seed=0)
    ground: Any = SimpleNamespace(split=split, pretraining=lambda *_: ("a",), store=SimpleNamespace(of=lambda _: ()))
    (folder / "study.yaml").write_text("name: s")
    frozen = Frozen(study, "2026-12-01T10:00:00+00:00", "ab12" * 16, folder / "study.yaml")
    return budget_result.collect_budget(frozen, (), done, ground, folder, command="oligovox budget")


def test_what_takes_longer_than_matched_scratch_is_not_called_matched(tmp_path: Path) -> None:
    (caution,) = (words for words in reported(tmp_path, {}).cautions if "measured seconds" in words)
    assert caution.startswith("matched scratch is matched in steps, not in measured seconds.")
    assert caution.endswith(": both 1.8."), "semi takes 1.2, pre-trained 1.05 times as long, which is near enough"


def test_a_strategy_has_its_name_and_its_comparison_with_matched_scratch(tmp_path: Path) -> None:
    report = reported(tmp_path, {"semi": 0.05})
    assert {arm.name: arm.method for arm in report.arms} == {
        "scratch": "", "matched scratch": "", "pre-trained": "generative", "semi": "mean_teacher", "both": "generative, mean_teacher",
    }  # fmt: skip
    row = next(d for d in report.differences if (d.arm, d.against, d.count) == ("semi", "matched scratch", 1))
    assert row.outcome == "gain"
    assert row.mean == pytest.approx(0.05, rel=0.1)


def test_the_best_arm_is_taken_where_it_is_told_apart_from_all_others(tmp_path: Path) -> None:
    report = reported(tmp_path, {"semi": 0.05, "pre-trained": 0.02, "both": 0.04})
    found = {(choice.material, choice.count): choice for choice in report.choices}
    assert list(found) == [(m, n) for m in ("from scratch", "pre-trained on all exams") for n in (1, 2)]
    choice = found["from scratch", 2]
    assert (choice.best, choice.take, choice.alike, choice.chosen_by) == ("semi", "semi", ("semi",), "test people")
    assert (choice.runner_up and choice.runner_up.mean) == pytest.approx(0.05, rel=0.1)
    assert [(m.arm, m.against, m.apart) for m in choice.against_scratch] == [("semi", "matched scratch", True)]
    assert choice.seconds == 24.0
    of_pretrained = found["pre-trained on all exams", 1]
    assert (of_pretrained.take, of_pretrained.arms) == ("both", 2)
    row = next(d for d in report.differences if (d.arm, d.against, d.count) == ("both", "matched scratch", 1))
    margin = of_pretrained.against_scratch[0]
    assert (margin.mean, margin.low, margin.high) == (row.mean, row.low, row.high), "the interval of the comparison"


def test_of_what_cannot_be_told_apart_the_cheapest_is_taken(tmp_path: Path) -> None:
    report = reported(tmp_path, {"semi": 0.002, "both": 0.002}, noise=0.02)
    choice = report.choices[0]
    assert (choice.best, choice.take) == ("semi", "scratch")
    assert sorted(choice.alike) == ["matched scratch", "scratch", "semi"]
    words = advice(report, choice)
    assert words.startswith(
        "1 label, from scratch: take scratch (10 s a run), chosen for cost: the cheapest of 3 that cannot be told apart (semi, "
    )
    assert "semi − matched scratch: +0.00" in words
    assert "(6 draws, 12 people), cannot be told apart." in words


def test_few_draws_tell_nothing_apart(tmp_path: Path) -> None:
    choice = (report := reported(tmp_path, {"semi": 0.2}, draws=4)).choices[0]
    assert (choice.best, choice.take, choice.runner_up and choice.runner_up.apart) == ("semi", "scratch", False)
    words = advice(report, choice)
    assert (
        "take scratch (10 s a run), chosen for cost alone: with 4 draws none of the 3 can be told apart (semi, "
        in words
    )
    assert "(4 draws, 12 people), cannot be told apart, too few draws." in words


def test_validation_people_choose_where_all_runs_know_their_score(tmp_path: Path) -> None:
    scores = {"scratch": 0.5, "matched scratch": 0.6, "semi": 0.4, "pre-trained": 0.3, "both": 0.2}
    report = reported(tmp_path, {"semi": 0.05, "matched scratch": 0.02}, validation=scores)
    choice = report.choices[0]
    assert (choice.chosen_by, choice.best) == ("validation people", "matched scratch")
    assert choice.alike == ("matched scratch", "semi"), "what is better on test people is not worse"
    page = render_budget(report)
    assert "matched scratch has the best mean of validation people; on test people" in page
    assert "by the same test people" not in page
    assert "by the same test people who score it" in render_budget(reported(tmp_path, {}))


def test_the_four_ways_stand_in_a_two_by_two_table(tmp_path: Path) -> None:
    report = reported(tmp_path, {"semi": 0.05, "pre-trained": 0.02, "both": 0.04})
    section = render_budget(report).split('id="square"')[1].split("</section>")[0]
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', section)
    means = [re.findall(r'class="stacked">([\d.]+) <small>\[', cells) for _, cells in rows]
    assert [name for name, _ in rows] == ["scratch", "pre-trained (generative)"] * 2
    assert section.count("semi-supervised (mean_teacher)") == 2
    shown = {(c.arm, c.count): f"{c.metrics['dice'].mean:.3f}" for c in report.cells}
    order = [("scratch", "semi"), ("pre-trained", "both")]
    assert means == [[shown[arm, n] for arm in row] for n in (1, 2) for row in order]
    fewer = {name: arm for name, arm in ARMS.items() if name != "both"}
    assert 'id="square"' not in render_budget(reported(tmp_path, {}, arms=fewer))
    other = ARMS | {"both": ARMS["both"] | {"finetune": {"semi": {"name": "cross_pseudo"}}}}
    assert reported(tmp_path, {}, arms=other).square is None, "another strategy than that of the arm from scratch"


def test_scripts_read_the_same_as_people(tmp_path: Path) -> None:
    report = reported(tmp_path, {"semi": 0.05})
    write_budget(report, tmp_path)
    content = read_json(tmp_path / "budget.json")
    assert content["advice"] == [advice(report, choice) for choice in report.choices]
    assert content["report"]["choices"][0]["take"] == "semi"
    assert load_budget(tmp_path / "budget.json") == report
