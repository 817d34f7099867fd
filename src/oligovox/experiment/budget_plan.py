"""The file of a label-budget study: what is compared, on how many labels, in how many draws. Written before anything runs.

Arms × label counts × draws of labelled people × seeds, on one store, with one test group. Draw d puts the labelled people into one order; the
labels of a run are the first n of it, so that smaller counts are nested in larger ones and every arm gets the same people.

Everything that training needs is in this file; what is not named is a default. What an arm changes is merged into the common sections key by key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field, PositiveFloat, field_validator, model_validator

from oligovox import catalogue
from oligovox.errors import nearest
from oligovox.experiment.ground_file import on_ground
from oligovox.experiment.recipe import (
    CohortChoice,
    Finetune,
    NetworkChoice,
    Positive,
    Predict,
    Pretrain,
    Recipe,
    SplitChoice,
    Stage,
    located,
    overlaid,
    read_content,
)
from oligovox.experiment.threshold import ThresholdSettings
from oligovox.prepare.store import Plan
from oligovox.report.content import METRICS
from oligovox.settings import Settings, parse, silent

SCRATCH = "scratch"
PRETEXT_ROOM = "pretext"
Seed = Annotated[int, Field(ge=0)]
T = TypeVar("T", bound=Stage)


class StudySplit(Settings):
    """Who is tested, who is validated on, whose labels may be drawn. A number is drawn by the study's seed; a list names people.

    In a list the name of a cohort stands for all of its labelled people. With several cohorts a person's name is '<cohort>_<subject>'.
    """

    test: int | tuple[str, ...] = Field(16, description="people who are scored once, after each training")
    validation: int | tuple[str, ...] = Field(4, description="people who choose checkpoints and learning rates")
    labels: tuple[str, ...] = Field((), description="people whose labels may be drawn; empty: all others with a label")


class Tuning(Settings):
    """On which labels the learning rate of every arm is chosen."""

    count: Positive = Field(2, description="labelled people")
    draw: int = Field(0, ge=0, description="which draw of them")


class StudyArm(Settings):
    """One way to get a model from a few labels: either `start` or `classical`."""

    start: str | None = Field(
        None, description="scratch, or the pretext that is trained once a seed and fine-tuned in every run"
    )
    classical: Literal["flair_threshold"] | None = Field(
        None, description="a rule without a network, fitted on the labels of each run"
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="of the pretext, or of the classical rule")
    pretrain: dict[str, Any] = Field(default_factory=dict, description="what differs from the pretrain section")
    finetune: dict[str, Any] = Field(default_factory=dict, description="what differs from the finetune section")
    extra_steps: int = Field(
        0, ge=0, description="scratch only: steps on top; those of pre-training make it compute-matched"
    )

    @model_validator(mode="after")
    def _one_way(self) -> StudyArm:
        if (self.start is None) == (self.classical is None):
            raise ValueError("give exactly one of start and classical")
        if self.extra_steps and self.start != SCRATCH:
            raise ValueError("extra_steps are for start: scratch; give a pretext its steps in pretrain")
        if not self.pretext and self.pretrain:
            raise ValueError("pretrain is for arms that start from a pretext")
        if self.start == SCRATCH and self.settings:
            raise ValueError("settings are those of a pretext or of a classical rule; change scratch in finetune")
        if self.classical and self.finetune:
            raise ValueError("a classical arm is not fine-tuned")
        if self.pretext:
            rooms = {name: entry.room for name, entry in catalogue.entries("METHOD").items()}
            known = [SCRATCH, *(name for name, room in rooms.items() if room == PRETEXT_ROOM)]
            if self.pretext not in known:
                raise ValueError(f"start '{self.pretext}' is unknown; {nearest(self.pretext, known)}")
        return self

    @property
    def pretext(self) -> str | None:
        """The pretext it starts from, None for scratch and classical rules."""
        return None if self.start == SCRATCH else self.start

    @property
    def origin(self) -> tuple[str | None, dict[str, Any], dict[str, Any]]:
        """Where it starts, in the words of the file: pretext, its settings, and what differs from the pretrain section."""
        return self.pretext, self.settings, self.pretrain


@dataclass(frozen=True, order=True)
class Run:
    """One training that is tested: so many labels of one draw, one arm, one seed."""

    draw: int
    count: int
    seed: int
    arm: str

    @property
    def folder(self) -> Path:
        """Where it lies in the folder of the study."""
        return Path("runs", self.arm, f"n{self.count}_d{self.draw}_s{self.seed}")


class Study(Settings):
    """All of a label-budget study."""

    name: str = Field(description="of the study")
    title: str = Field("", description="heading of the page; empty: the name")
    ground: str = Field(
        "", description="{file, size}: a ground, on which this file is laid key by key; once read, its name and version"
    )
    seed: Seed = Field(0, description="of the split, the draws and the intervals")
    cohorts: dict[str, CohortChoice] = Field(
        default_factory=dict, description="where the people come from; or give a store"
    )
    store: str | None = Field(
        None, description="a prepared store that several studies may share; path relative to this file"
    )
    prepare: Plan | None = Field(None, description="needed with cohorts; a store has its own")
    split: StudySplit = StudySplit()
    network: NetworkChoice = NetworkChoice()
    counts: tuple[Positive, ...] = Field((1, 2, 4, 8), min_length=1, description="numbers of labelled people")
    draws: Positive | dict[int, Positive] = Field(
        5, description="draws of labelled people, for all counts or count by count"
    )
    seeds: tuple[Seed, ...] = Field(
        (0,), min_length=1, description="of the weights and of the order of the data; averaged"
    )
    metric: str = Field(
        "dice", description="the primary metric, as in the table: dice, lesion_f1, …; of one class: ET/dice"
    )
    operating_point: Literal["half", "validation"] = silent(
        "half",
        description="the probability above which a voxel is called: a half, or what suits the primary metric best on validation people",
    )
    lr: tuple[PositiveFloat, ...] = Field(
        (3e-3, 9e-3), min_length=1, description="learning rates tried for every arm, at `tune`"
    )
    tune: Tuning = Tuning()
    pretrain: Pretrain = Field(
        Pretrain(), description="common to all pretexts; method and settings are given in the arms"
    )
    finetune: Finetune = Field(
        Finetune(), description="common to all arms; the learning rate comes from `lr`, the seed from `seeds`"
    )
    predict: Predict = Field(Predict(overlap=0.25), description="how test and validation people are predicted")
    arms: dict[str, StudyArm] = Field(min_length=1, description="name → arm; names become folders")

    @field_validator("counts", "seeds", "lr")
    @classmethod
    def _once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError("each value may be named once only")
        return values

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if (name := metric.rpartition("/")[2]) not in METRICS:
            raise ValueError(f"unknown score; {nearest(name, METRICS)}")
        return metric

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        if (self.store is None) == (not self.cohorts) or (self.prepare is None) == bool(self.cohorts):
            raise ValueError("give either cohorts with prepare, or a store that is prepared already")
        for name in (*self.cohorts, *self.arms):
            if not name or name.startswith(".") or {"/", "\\"} & set(name):
                raise ValueError(f"'{name}' becomes a folder; use a name without '/' that does not start with '.'")
        if isinstance(self.draws, Mapping) and (missing := [n for n in self.counts if n not in self.draws]):
            raise ValueError(f"draws names no number for {missing[0]} labels; give one for each of counts")
        if len(self.lr) > 1 and not self.split.validation:
            raise ValueError("learning rates are chosen on validation people; give some, or one rate only")
        if self.operating_point == "validation" and not self.split.validation:
            raise ValueError("the operating point is chosen on validation people; give some, or say half")
        for place, stage, keys in _GIVEN_ELSEWHERE:
            section: Any = self
            for part in stage.split("."):
                section = getattr(section, part)
            if wrong := sorted(section.model_fields_set & keys):
                raise ValueError(f"{stage}.{wrong[0]} is not set here; it comes from {place}")
        for name in self.arms:
            self._check_arm(name)
        return self

    def _check_arm(self, name: str) -> None:
        arm = self.arms[name]
        if wrong := sorted({"lr", "seed"} & set(arm.finetune.get("training", {}))):
            raise ValueError(f"arms.{name}.finetune.training.{wrong[0]} is not set here; every arm has the same choice")
        if arm.classical:
            self.threshold(name)
            return
        semi = self.finetuning(name, lr=self.lr[0], seed=0).semi
        if self.cohorts and semi and (unknown := sorted({*semi.cohorts} - {*self.cohorts})):
            raise ValueError(
                f"arms.{name}: {semi.name} names the cohort '{unknown[0]}'; {nearest(unknown[0], self.cohorts)}"
            )
        if arm.pretext:
            self.pretraining(name, seed=0)

    def draws_of(self, count: int) -> int:
        """How many draws a number of labels has."""
        return self.draws[count] if isinstance(self.draws, Mapping) else self.draws

    @property
    def higher_is_better(self) -> bool:
        """Which way the primary metric goes."""
        return METRICS[self.metric.rpartition("/")[2]].higher_is_better  # type: ignore[index]  # checked above

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every run; one draw is finished for all arms before the next begins. A classical rule knows no seed and runs once."""
        return tuple(sorted(self._expanded()))

    def _expanded(self) -> Iterator[Run]:
        for name, arm in self.arms.items():
            for count in self.counts:
                for seed in self.seeds[:1] if arm.classical else self.seeds:
                    for draw in range(self.draws_of(count)):
                        yield Run(draw, count, seed, name)

    def finetuning(self, arm: str, *, lr: float, seed: int) -> Finetune:
        """The fine-tuning of an arm at a learning rate."""
        stage = _merged(Finetune, self.finetune, self.arms[arm].finetune, f"arms.{arm}.finetune")
        steps = stage.training.steps + self.arms[arm].extra_steps
        return stage.model_copy(
            update={"training": stage.training.model_copy(update={"lr": lr, "seed": seed, "steps": steps})}
        )

    def pretraining(self, arm: str, *, seed: int) -> Pretrain:
        """The pre-training of an arm that starts from a pretext."""
        chosen = self.arms[arm]
        own = {**chosen.pretrain, "method": chosen.start, "settings": chosen.settings}
        stage = _merged(Pretrain, self.pretrain, own, f"arms.{arm}.pretrain")
        return stage.model_copy(update={"training": stage.training.model_copy(update={"seed": seed})})

    def threshold(self, arm: str) -> ThresholdSettings:
        """The settings of a classical arm."""
        return parse(ThresholdSettings, self.arms[arm].settings, f"arms.{arm}.settings")

    def recipe(self, split: SplitChoice) -> Recipe:
        """The recipe that says the same about people."""
        plan = self.prepare or Plan(modalities=("FLAIR",))  # nobody asks the recipe of a store how it was prepared
        cohorts = self.cohorts or {"store": CohortChoice(table=self.store)}
        return Recipe(name=self.name, seed=self.seed, cohorts=cohorts, prepare=plan, split=split, network=self.network)


_GIVEN_ELSEWHERE = (
    ("lr and seeds", "finetune.training", {"lr", "seed"}),
    ("the arms", "pretrain", {"method", "settings"}),
    ("seeds", "pretrain.training", {"seed"}),
)
"""(who says it instead, section, keys that would have no effect there)."""


def read_study(path: Path, changes: tuple[str, ...] = ()) -> Study:
    """Read a study file, with `changes` like "finetune.training.steps=50" applied.

    Raises:
        SettingsError: not a file, not YAML, an unknown key, a wrong value; names the place in one line.
    """
    study = parse(Study, on_ground(read_content(path, changes), path), str(path))
    cohorts = {name: located(choice, path.parent) for name, choice in study.cohorts.items()}
    store = study.store and str((path.parent / Path(study.store).expanduser()).resolve())
    return study.model_copy(update={"cohorts": cohorts, "store": store})


def parse_study(text: str, where: str) -> Study:
    """A study from what `write_study` gave."""
    return parse(Study, yaml.safe_load(text), where)


def write_study(study: Study) -> str:
    """The resolved study as YAML text: every default that has an effect is spelled out."""
    elsewhere: dict[str, Any] = {
        "finetune": {"training": {"lr", "seed"}},
        "pretrain": {"method": True, "settings": True, "training": {"seed"}},
    }
    return yaml.safe_dump(study.model_dump(mode="json", exclude=elsewhere), sort_keys=False, allow_unicode=True)


def plain(study: Study) -> dict[str, Any]:
    """Keys and values as they are written, with the draws of each count, for a comparison of two studies."""
    content: dict[str, Any] = yaml.safe_load(write_study(study))
    return content | {"draws": {count: study.draws_of(count) for count in study.counts}}


def _merged(kind: type[T], common: T, own: Mapping[str, Any], where: str) -> T:
    """The common section with what an arm changes, key by key."""
    return parse(kind, overlaid(common.model_dump(), own), where)
