"""What the page of a label-budget study says: plain frozen values, saved as budget.json, and drawn by `budget`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from oligovox.report.content import METRICS, Interval, Measure, Metric, Text
from oligovox.report.text import count, interval, number
from oligovox.settings import Settings

Outcome = Literal["gain", "loss", "no difference shown", "too few draws to tell"]
Kind = Literal[
    "classical", "scratch", "compute-matched scratch", "pretext", "semi-supervised", "pretext, semi-supervised"
]
BOTH: Kind = "pretext, semi-supervised"
LEARNING: tuple[Kind, ...] = ("pretext", "semi-supervised", BOTH)
"""What learns from exams without a label."""

FEWEST_DRAWS = 5
"""With fewer draws of labelled people nothing is called a gain or a loss: the interval over so few is too narrow (`metrics.paired`)."""

LEVEL = 0.05
"""Of the Wilcoxon test after Holm's correction."""


class ArmFacts(Settings):
    """What an arm is, and what it costs."""

    name: Text
    kind: Kind
    method: str = Field("", description="pretext and semi-supervised strategy, or classical rule, or ''")
    exploratory: bool = Field(False, description="added after the study had begun")
    lr: Measure = Field(
        None, description="learning rate chosen on validation people; None: no network, or not chosen yet"
    )
    tried: dict[str, Measure] = Field(
        default_factory=dict, description="learning rate → primary metric on validation people"
    )
    steps: int = Field(0, description="of one run")
    seconds: Measure = Field(None, description="in optimiser steps, mean of a run")
    memory_mb: Measure = Field(None, description="highest, of the process (10^6 bytes)")
    gpu_memory_mb: Measure = Field(None, description="highest, of the GPU; None without one")
    pretraining_steps: int = Field(0, description="once a seed, for all runs together")
    pretraining_seconds: Measure = Field(None, description="mean over seeds")
    trial_seconds: Measure = Field(None, description="all trials of learning rates together")


class Cell(Settings):
    """One arm at one number of labels: means over draws and test people."""

    arm: Text
    count: int
    exploratory: bool
    draws: int
    by_draw: tuple[Measure, ...] = Field((), description="primary metric of each draw, mean over people")
    metrics: dict[str, Interval] = Field(description="metric → mean with its interval over draws and people")


class Difference(Settings):
    """Mean of (arm − against) over draws and people, in the primary metric."""

    arm: Text
    against: Text
    count: int
    exploratory: bool
    draws: int = Field(description="that both have")
    mean: Measure
    low: Measure = None
    high: Measure = None
    n: int = Field(description="test people")
    p: Measure = Field(None, description="Wilcoxon signed-rank over people, each the mean over draws")
    p_holm: Measure = Field(None, description="corrected for the whole family")
    outcome: Outcome


class Saved(Settings):
    """What an arm's score at a number of labels is worth in labels of another arm; of the means, without an interval."""

    arm: Text
    against: Text
    count: int
    score: Measure
    needed: Measure = Field(
        description="labels with which `against` has that score; None: outside of what was measured"
    )
    beyond: Literal["", "more", "fewer"] = Field(
        "", description="where needed is None: than any number that was measured"
    )


class Margin(Settings):
    """Mean of (arm − against) over draws and people, for the choice of an arm: judged by its interval alone, without correction."""

    arm: Text
    against: Text
    mean: Measure
    low: Measure = None
    high: Measure = None
    draws: int
    n: int = Field(description="test people")
    apart: bool = Field(description=f"the interval excludes 0, over at least {FEWEST_DRAWS} draws")


class Choice(Settings):
    """Which arm to take at a number of labels, of those that start from the same material."""

    count: int
    material: Text = Field(description="'from scratch', or on whose exams they were pre-trained")
    exploratory: bool
    chosen_by: Literal["validation people", "test people"] = Field(
        description="whose scores say which mean is the best"
    )
    best: Text = Field(description="the arm with the best mean")
    score: Interval = Field(description="of it, on test people")
    arms: int = Field(description="that were to choose from")
    runner_up: Margin | None = Field(None, description="best − the second; None: there is no second")
    against_scratch: tuple[Margin, ...] = Field(
        (), description="of the best and of the one to take, from compute-matched scratch; without one, from scratch"
    )
    alike: tuple[Text, ...] = Field(description="the best, and all that are not shown to be worse")
    take: Text = Field(description="of these the one with the fewest seconds a run")
    seconds: Measure = Field(description="of a run of it")


class Range(Settings):
    """A number that differs between exams."""

    least: float
    mean: float
    most: float


class Labelling(Settings):
    """How some of the people whose labels may be drawn are labelled."""

    in_part: bool
    how: str = Field("", description="how the part was chosen, where that is known")
    people: int
    looked_at: Range = Field(description="share of the brain that somebody looked at, 0 to 1")
    slices: Range | None = Field(None, description="that somebody looked at; None: the part is not made of slices")
    lesions: Range = Field(description="connected lesions that are drawn, whole or in part, on the prepared grid")


class Square(Settings):
    """The arms of {scratch, pre-trained} × {supervised, semi-supervised}, where a study has exactly these."""

    scratch: Text
    pretrained: Text
    semi: Text
    both: Text


class Version(Settings):
    """The study as it was written down at some time."""

    date: str
    sha256: str
    words: Text = Field("", description="what was added")


class BudgetReport(Settings):
    """Everything on the page."""

    title: Text
    created: str
    command: Text
    ground: Text = ""
    metric: str
    study: Text = Field(description="study.yaml")
    versions: tuple[Version, ...] = Field(description="the frozen study, then each addition")
    simulated: bool = Field(description="every number is about simulated subjects")
    planned: int = Field(description="runs")
    finished: int = Field(description="runs")
    people: dict[str, int] = Field(description="'test', 'validation', 'labels that may be drawn', … → how many")
    labelling: tuple[Labelling, ...] = Field((), description="of those whose labels may be drawn")
    counts: tuple[int, ...]
    draws: dict[int, int] = Field(description="count → draws")
    seeds: tuple[int, ...]
    arms: tuple[ArmFacts, ...]
    cells: tuple[Cell, ...] = ()
    differences: tuple[Difference, ...] = ()
    saved: tuple[Saved, ...] = ()
    choices: tuple[Choice, ...] = ()
    square: Square | None = None
    cautions: tuple[Text, ...] = ()
    software: dict[str, str] = Field(default_factory=dict, description="package → version; 'machine' → what it ran on")

    @property
    def measure(self) -> Metric:
        """How the primary metric is written."""
        return measure(self.metric)

    def cell(self, arm: str, count: int) -> Cell | None:
        """What is shown of an arm at a number of labels: without later additions where there is such a number."""
        found = [cell for cell in self.cells if (cell.arm, cell.count) == (arm, count)]
        return min(found, key=lambda cell: cell.exploratory, default=None)


def measure(metric: str) -> Metric:
    """How a metric is written: 'ET/dice' is Dice of the class ET."""
    output, _, name = metric.rpartition("/")
    found = METRICS[name]  # type: ignore[index]  # names are checked where the study is read
    return found._replace(title=f"{found.title} of {output}") if output else found


def judge(difference: Interval, draws: int, p_holm: float | None, *, higher_is_better: bool) -> Outcome:
    """What a difference shows: a gain or a loss needs an interval without 0 and a corrected p below `LEVEL`, over `FEWEST_DRAWS` draws."""
    low, high = difference.low, difference.high
    if draws < FEWEST_DRAWS:
        return "too few draws to tell"
    if low is None or high is None or p_holm is None or p_holm >= LEVEL or low <= 0 <= high:
        return "no difference shown"
    return "gain" if (low > 0) == higher_is_better else "loss"


def sentence(report: BudgetReport, difference: Difference) -> str:
    """One comparison in words: gains, losses and nulls in the same form."""
    labels = count(difference.count, "label")
    return f"{difference.arm} − {difference.against}, {labels}: {difference.outcome}, {numbers_of(report, difference)}"


def numbers_of(report: BudgetReport, difference: Difference) -> str:
    """'+0.041 [+0.012, +0.070] (8 draws, 16 people, p 0.004).'"""
    numbers = interval(difference.mean, difference.low, difference.high, report.measure.digits, sign=True)
    over = f"{count(difference.draws, 'draw')}, {count(difference.n, 'person').replace('persons', 'people')}"
    p = f", p {p_text(difference.p_holm)}" if difference.p_holm is not None else ""
    return f"{numbers} ({over}{p})."


def p_text(p: float | None) -> str:
    """'0.031', '< 0.001'."""
    return "< 0.001" if p is not None and p < 0.001 else number(p, 3)
