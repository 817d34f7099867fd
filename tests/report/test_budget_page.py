"""The page of a label-budget study: gains, losses and nulls in one form, what was added is marked, and everything is escaped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from oligovox.errors import CheckpointError
from oligovox.report.budget import headline, load_budget, render_budget, write_budget
from oligovox.report.budget_choice import advice
from oligovox.report.budget_content import (
    ArmFacts,
    BudgetReport,
    Cell,
    Choice,
    Difference,
    Labelling,
    Margin,
    Range,
    Saved,
    Version,
    measure,
    sentence,
)
from oligovox.report.content import Interval

COUNTS = (1, 2, 4, 8)
GAINS = {"classical": -0.12, "scratch": 0.0, "matched": 0.004, "masked": 0.06, "<generative>": -0.01}
KINDS: dict[str, Any] = {"classical": "classical", "scratch": "scratch", "matched": "compute-matched scratch"}


def cell(arm: str, n: int, exploratory: bool = False) -> Cell:
    middle = 0.35 + 0.08 * COUNTS.index(n) + GAINS[arm] / n**0.5
    draws = tuple(middle + 0.04 * (k - 2) for k in range(5))
    interval = Interval(mean=middle, low=middle - 0.05, high=middle + 0.05, n=16)
    distance = Interval(mean=9.5, low=8.0, high=11.0, n=15, undefined=1)
    metrics = {"dice": interval, "hd95_mm": distance}
    return Cell(arm=arm, count=n, exploratory=exploratory, draws=5, by_draw=draws, metrics=metrics)


def difference(arm: str, n: int, outcome: Any, mean: float, against: str = "scratch", **more: Any) -> Difference:
    ends = {"mean": mean, "low": mean - 0.031, "high": mean + 0.031}
    given = {"exploratory": False, "draws": 5, "n": 16, "p": 0.01, "p_holm": 0.023, **ends, **more}
    return Difference(arm=arm, against=against, count=n, outcome=outcome, **given)


@pytest.fixture
def study() -> BudgetReport:
    differences = [
        difference("masked", n, "gain" if n < 4 else "no difference shown", GAINS["masked"] / n) for n in COUNTS
    ]
    differences += [difference("<generative>", n, "no difference shown", -0.01) for n in COUNTS]
    differences += [difference("classical", 1, "loss", -0.12), difference("matched", 1, "no difference shown", 0.004)]
    differences += [difference("masked", 2, "gain", 0.04, exploratory=True, draws=8, p_holm=0.0001)]
    arms = [
        ArmFacts(name=name, kind=KINDS.get(name, "pretext"), lr=None if name == "classical" else 0.009, steps=400,
                 seconds=75.0, memory_mb=1250, tried={"0.003": 0.41, "0.009": None}, exploratory=name == "<generative>")
        for name in GAINS
    ]  # fmt: skip
    return BudgetReport(
        title="A study & more", created="2026-11-21T22:00:00+00:00", command="oligovox budget s.yaml --out s", ground="ms-cpu/1",
        metric="dice", study="name: <script>alert(1)</script>", simulated=True, planned=100, finished=100,
        versions=(Version(date="2026-11-20T10:00:00+00:00", sha256="ab12" * 16),
                  Version(date="2026-11-21T10:00:00+00:00", sha256="cd34" * 16, words="arm <generative>")),
        people={"test": 16, "validation": 4, "labels that may be drawn": 30}, counts=COUNTS, draws=dict.fromkeys(COUNTS, 5),
        seeds=(0,), arms=tuple(arms), differences=tuple(differences), cautions=("Few draws & so on.",),
        cells=tuple(cell(a, n, a == "<generative>") for a in GAINS for n in COUNTS),
        saved=(Saved(arm="masked", against="scratch", count=2, score=0.51, needed=3.4),
               Saved(arm="masked", against="scratch", count=8, score=0.66, needed=None, beyond="more"),
               Saved(arm="matched", against="scratch", count=1, score=0.3, needed=None, beyond="fewer")),
    )  # fmt: skip


def text_of(page: str) -> str:
    return re.sub(r"<[^>]+>", "", page.split("</style>", 1)[1])


def test_a_gain_a_loss_and_a_null_stand_in_the_same_form(study: BudgetReport) -> None:
    page = render_budget(study)
    words = text_of(page)
    for outcome, numbers in (("gain", "+0.060 [+0.029, +0.091]"), ("no difference shown", "−0.010 [−0.041, +0.021]"),
                             ("loss", "−0.120 [−0.151, −0.089]")):  # fmt: skip
        assert f"1 label: {outcome}, {numbers} (5 draws, 16 people, p 0.023)." in words
    lines = re.findall(r"<li>\d label.*?</li>", page)
    assert len(lines) == len(study.differences), "every comparison has its line"
    chip = r'<strong class="chip [\w-]*">(gain|loss|no difference shown)</strong>'
    numbers = r"[−+]\d\.\d{3} \[[^]]*\] \(\d draws, 16 people, p (&lt; )?0\.\d{3}\)\."
    form = rf"<li>\d labels?: {chip}, {numbers}( <em>exploratory</em>)?</li>"
    assert [line for line in lines if not re.fullmatch(form, line)] == []
    assert "p &lt; 0.001" in page


def test_the_headline_counts_frozen_comparisons_with_scratch(study: BudgetReport) -> None:
    expected = "8 comparisons of pre-training with training from scratch: 2 × gain, 0 × loss, 6 × no difference shown."
    assert headline(study) == expected
    assert expected in text_of(render_budget(study))
    few = study.model_copy(update={"differences": (difference("masked", 1, "too few draws to tell", 0.1, draws=2),)})
    assert headline(few).endswith("0 × no difference shown, 1 × too few draws to tell.")
    assert headline(study.model_copy(update={"differences": ()})) == "Nothing is compared yet."


def test_the_headline_counts_pretexts_strategies_and_both_together_each_as_what_it_is(study: BudgetReport) -> None:
    kinds: dict[str, Any] = {"semi": "semi-supervised", "both": "pretext, semi-supervised"}
    arms = [*study.arms, *(ArmFacts(name=name, kind=kind) for name, kind in kinds.items())]
    rows = [
        difference("masked", 1, "no difference shown", 0.01),
        difference("semi", 1, "gain", 0.06),
        difference("semi", 1, "no difference shown", 0.05, against="matched"),
        difference("both", 1, "loss", -0.06),
        difference("both", 1, "gain", 0.07, against="semi"),
    ]
    assert headline(study.model_copy(update={"arms": tuple(arms), "differences": tuple(rows)})) == (
        "1 comparison of pre-training with training from scratch: 0 × gain, 0 × loss, 1 × no difference shown. "
        "2 comparisons of semi-supervised strategies with training from scratch: 1 × gain, 0 × loss, 1 × no difference shown. "
        "1 comparison of both together with training from scratch: 0 × gain, 1 × loss, 0 × no difference shown."
    )


def test_hash_date_and_what_was_added_are_on_the_first_screen(study: BudgetReport) -> None:
    first = text_of(render_budget(study).split('<section id="comparisons">')[0])
    for words in ("ab12ab12ab12", "2026-11-20 10:00:00", "Added 2026-11-21, exploratory: arm", "ms-cpu/1"):
        assert words in first
    assert "Numbers on simulated subjects" in first
    assert "Few draws &amp; so on." in first


def test_exploratory_rows_are_marked(study: BudgetReport) -> None:
    page = render_budget(study)
    scores = page.split('id="scores"')[1].split("</section>")[0]
    rows = re.findall(r'<th scope="row">(.*?)</th>', scores)
    assert [row for row in rows if "exploratory" in row] == ["&lt;generative&gt; <em>exploratory</em>"] * 2
    assert "&lt;generative&gt; (exploratory)" in page, "also in the legend of the figure"
    line = next(line for line in re.findall(r"<li>2 labels.*?</li>", page) if "8 draws" in line)
    assert "<em>exploratory</em>" in line


def test_labels_that_a_score_is_worth(study: BudgetReport) -> None:
    saved = render_budget(study).split('id="saved"')[1].split("</section>")[0]
    assert re.findall(r"<td>([^<]*)</td></tr>", saved) == ["3.4", "more than 8", "fewer than 1"]


def test_nothing_from_outside_is_markup(study: BudgetReport) -> None:
    page = render_budget(study)
    assert "<script" not in page
    assert "<generative>" not in page
    assert "A study &amp; more" in page


def test_a_choice_and_what_is_labelled_are_escaped_and_marked(study: BudgetReport) -> None:
    score = Interval(mean=0.4, low=0.3, high=0.5, n=16)
    margin = Margin(arm="masked", against="<generative>", mean=0.07, low=0.02, high=0.1, draws=5, n=16, apart=True)
    choice = Choice(
        count=1, material="pre-trained on <ward>", exploratory=True, chosen_by="test people", best="masked", score=score, arms=2,
        runner_up=margin, against_scratch=(margin.model_copy(update={"against": "matched"}),), alike=("masked",), take="masked", seconds=75,
    )  # fmt: skip
    half = Range(least=0.05, mean=0.1, most=0.2)
    part = Labelling(in_part=True, how="<slices>", people=3, looked_at=half, lesions=Range(least=2, mean=2, most=2))
    page = render_budget(study.model_copy(update={"choices": (choice,), "labelling": (part,)}))
    words = text_of(page)
    assert "take masked (1 min 15 s a run), which has the best mean and is told apart from all others." in words
    assert "masked − &lt;generative&gt;: +0.070 [+0.020, +0.100] (5 draws, 16 people), told apart." in words
    assert "masked − matched: +0.070" in words
    assert "Rules without a network are not among them." in words
    assert "in part: &lt;slices&gt;310 % (5 to 20)no whole ones2" in words
    assert "<em>exploratory</em><ul>" in page.split('id="choice"')[1].split("</section>")[0]
    assert not {"<ward>", "<slices>", "<generative>"} & set(re.findall(r"<\w+>", page))
    assert advice(study, choice).startswith("1 label, pre-trained on <ward>, with what was added later: take masked")


def test_numbers_that_are_missing_leave_a_page(study: BudgetReport) -> None:
    nothing = Interval(mean=None, n=0)
    empty = tuple(c.model_copy(update={"metrics": {"dice": nothing}, "by_draw": (None,)}) for c in study.cells)
    undefined = dict.fromkeys(("mean", "low", "high", "p", "p_holm"))
    bare = difference("masked", 1, "no difference shown", 0.0).model_copy(update=undefined)
    render_budget(study.model_copy(update={"cells": empty, "differences": (bare,), "saved": ()}))
    page = render_budget(study.model_copy(update={"cells": (), "differences": (), "saved": (), "counts": (2,)}))
    assert "Every comparison" not in page


def test_page_json_and_curves_are_written_and_read_again(study: BudgetReport, tmp_path: Path) -> None:
    assert write_budget(study, tmp_path) == tmp_path / "budget.html"
    assert load_budget(tmp_path / "budget.json") == study
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "budget.html",
        "budget.json",
        "curves.png",
        "curves.svg",
    ]
    assert "#0072b2" in (tmp_path / "curves.svg").read_text()
    assert not re.search(r"#0[1-4]0\d0\d", (tmp_path / "curves.svg").read_text()), "no stand-in colour is left"
    (tmp_path / "budget.json").write_text('{"format": 0}')
    with pytest.raises(CheckpointError, match="not a label-budget study of format"):
        load_budget(tmp_path / "budget.json")


def test_a_distance_is_better_when_it_is_lower(study: BudgetReport) -> None:
    page = render_budget(study.model_copy(update={"metric": "hd95_mm"}))
    assert "left is better" in page
    assert measure("ET/dice").title == "Dice of ET"
    assert sentence(study, study.differences[0]).startswith("masked − scratch, 1 label: gain, +0.060")
