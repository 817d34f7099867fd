"""Recipe: one YAML file says everything a run does; unknown keys are refused with the nearest valid one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from oligovox import catalogue
from oligovox.cohort import bids, layouts, table
from oligovox.cohort.manifest import Cohort
from oligovox.cohort.modalities import canonical
from oligovox.cohort.reading import Asked
from oligovox.engine.fit import Training
from oligovox.errors import SettingsError, nearest
from oligovox.prepare.store import Plan
from oligovox.sample.augment import FLIPS_AND_ROTATIONS, Augmentation
from oligovox.settings import S, Settings, parse, silent
from oligovox.simulate.recipe import AbdomenRecipe, BrainRecipe, make_recipe

Positive = Annotated[int, Field(gt=0)]
Patch = tuple[Positive, Positive, Positive]


class SimulatedCohort(Settings):
    """A cohort made by MR physics; see `oligovox simulate`."""

    subjects: Positive = Field(description="how many people")
    seed: int = Field(0, ge=0, description="person k is the same whatever the number of people")
    preset: str = Field("ms-3t", description="a cohort that ships with the package; see `oligovox simulate --help`")
    recipe: BrainRecipe | AbdomenRecipe = Field(
        default_factory=lambda: make_recipe("ms-3t"),
        description="what is different from the preset",
        discriminator="body",
    )

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        """The whole recipe from the preset's name and what is different."""
        if not isinstance(given, dict) or not isinstance(given.get("recipe", {}), dict):
            return given
        return {**given, "recipe": make_recipe(str(given.get("preset", "ms-3t")), given.get("recipe"))}


class CohortChoice(Settings):
    """Where a cohort comes from: exactly one of folder, bids, table, simulate. Paths are relative to the recipe; ~ and $VARIABLES are expanded."""

    folder: str | None = silent(
        None, description="a folder of any layout that `oligovox cohort look` knows, or a list or table of files"
    )
    layout: str | None = silent(None, description="of the folder; empty: as it looks")
    sequences: dict[str, str] | None = silent(
        None, description="what the folder calls a sequence whose name says nothing, as {MRI: FLAIR}"
    )
    bids: str | None = Field(None, description="BIDS folder")
    table: str | None = Field(None, description="cohort table (.tsv with its .json beside it)")
    simulate: SimulatedCohort | None = None
    mask: str = Field(
        "lesion", description="which label, in the words of the layout; of BIDS the name after desc- or label-"
    )
    labels: dict[str, int] | None = Field(
        None, description="class → value in the masks; null: what the folder says, or {<mask>: 1}"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_folder(cls, given: Any) -> Any:
        """What says how a folder is read is spelled out where there is one, and only there."""
        if not isinstance(given, dict):
            return given
        own: dict[str, Any] = {"layout": "", "sequences": {}} if given.get("folder") else {}
        return own | {
            key: value for key, value in given.items() if value or key not in ("folder", "layout", "sequences")
        }

    @field_validator("layout")
    @classmethod
    def _known(cls, layout: str | None) -> str | None:
        if layout and layout not in (known := layouts.readers()):
            raise ValueError(f"unknown layout; {nearest(layout, known)}")
        return layout

    @field_validator("sequences")
    @classmethod
    def _canonical(cls, sequences: dict[str, str] | None) -> dict[str, str] | None:
        return sequences and {name: canonical(sequence) for name, sequence in sequences.items()}

    @model_validator(mode="after")
    def _one(self) -> CohortChoice:
        given = [key for key in _SOURCES if getattr(self, key)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(_SOURCES)}; found {' and '.join(given) or 'none'}")
        if not self.folder and (without := [key for key in ("layout", "sequences") if getattr(self, key)]):
            raise ValueError(f"{without[0]} says how a folder is read; give folder instead of {given[0]}")
        return self

    def read(self, made: Path | None = None) -> Cohort:
        """The cohort.

        Args:
            made: the folder of a simulated cohort, once it is there.

        Raises:
            CohortError: it describes no usable cohort.
        """
        source = made or self.table or self.folder or self.bids
        assert source is not None, "a simulated cohort is made before it is read"
        layout = table.LAYOUT if self.table else (self.layout or "") if self.folder else bids.LAYOUT
        asked = Asked(mask=self.mask, labels=self.labels, sequences=self.sequences or {})
        return layouts.read(Path(source), layout, asked)


_SOURCES = ("folder", "bids", "table", "simulate")


class SplitChoice(Settings):
    """Who is held out. A number is drawn by the recipe's seed among people with a label; a list names them.

    With several cohorts a person's name is '<cohort>_<subject>'.
    """

    test: int | tuple[str, ...] = Field(6, description="people who are only scored")
    validation: int | tuple[str, ...] = Field(2, description="people whose Dice chooses the checkpoint that is kept")
    labels: int | tuple[str, ...] = Field(2, description="people whose labels training may use")


class NetworkChoice(Settings):
    """Which encoder; `settings` are those of `networks/<name>.py`."""

    name: str = Field("resenc", description="resenc or swin")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="of this network; what is not named is its default"
    )

    @classmethod
    def named(cls, name: str | None, preset: str | None, fusion: str | None = None) -> NetworkChoice:
        """As the command line says it: a residual encoder of some size, or another network with its default settings; how sequences meet in it.

        Raises:
            SettingsError: a preset for another network than the residual encoder.
        """
        if preset and name not in (None, "resenc"):
            raise SettingsError(f"preset {preset} is a size of resenc; the settings of {name} belong in a recipe")
        given = {"preset": preset, "fusion": fusion}
        return cls(name=name or "resenc", settings={key: value for key, value in given.items() if value})


class Stage(Settings):
    """What every training stage has."""

    settings: dict[str, Any] = Field(default_factory=dict, description="settings of the method's own file")
    patch: Patch = Field((48, 48, 48), description="voxels of the prepared grid")
    batch: Positive = Field(2, description="patches in a micro-batch")
    training: Training = Training()
    augmentation: Augmentation = Augmentation()


class Pretrain(Stage):
    """Self-supervised stage: learns from everyone who is neither tested nor validated on."""

    augmentation: Augmentation = Field(
        FLIPS_AND_ROTATIONS,
        description="flips and rotations only: the target is the image as it was measured. A section given here starts from the "
        "defaults of all effects instead",
    )
    method: str = Field("generative", description="a pretext of `oligovox methods`")
    cohorts: tuple[str, ...] = Field((), description="only these cohorts; empty: all")
    transductive: bool = Field(False, description="also see the images of test people; the page says so")
    share_labelled: bool = Field(True, description="also see the images of people whose labels are used")


class Semi(Settings):
    """How exams without a label take part in fine-tuning: by a strategy of `semi/`."""

    name: str = Field(description="a semi-supervised strategy of `oligovox methods`")
    settings: dict[str, Any] = Field(default_factory=dict, description="of the strategy's own file, without `task`")
    batch: Positive = Field(2, description="patches without a label in a micro-batch, beside the labelled ones")
    cohorts: tuple[str, ...] = Field((), description="only exams of these cohorts; empty: all")

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        known = [entry.name for entry in catalogue.entries("METHOD").values() if entry.room == "semi"]
        if name not in known:
            raise ValueError(f"strategy '{name}' is unknown; {nearest(name, known)}")
        return name

    @field_validator("settings")
    @classmethod
    def _own(cls, settings: dict[str, Any]) -> dict[str, Any]:
        if "task" in settings:
            raise ValueError(
                "task is given in finetune.settings, which are those of segmentation with or without a strategy"
            )
        return settings


class Finetune(Stage):
    """Training on labels, the same for every arm; with `semi` also on what nobody labelled."""

    semi: Semi | None = Field(None, description="a semi-supervised strategy; none: labels alone teach")
    lesion_share: float = Field(0.5, ge=0, le=1, description="share of patches that contain a lesion")
    norm_reset: bool = Field(False, description="give each transferred weight the norm a fresh one has")
    shuffled: bool = Field(
        False,
        description="a control: transferred weights in random order, so that only their size is left of pre-training",
    )
    parts: tuple[Literal["encoder", "decoder", "head"], ...] = Field(
        ("encoder", "decoder"),
        description="what is taken over from the start; head: what says lesion, of implanted_lesions or of a model that was trained on labels, if it has as many classes",
    )


class Arm(Settings):
    """One way to get a model, compared with the others on the same held-out people."""

    start: Literal["scratch", "pretrain"] = Field(description="random weights, or those of the pretrain section")
    also: tuple[str, ...] = Field((), description="cohorts whose labelled cases are added to training")


class Predict(Settings):
    """Sliding-window inference."""

    overlap: float = Field(0.5, ge=0, lt=1, description="of neighbouring windows, share of a side")
    mirror: bool = Field(False, description="average over the eight mirror images; 8 times slower")
    save_probabilities: bool = Field(False, description="also write a probability map of each class")


class Recipe(Settings):
    """All of a run."""

    name: str = Field(description="of the run")
    title: str = Field("", description="heading of the page; empty: the name")
    seed: int = Field(0, description="of the split and of the intervals")
    cohorts: dict[str, CohortChoice]
    prepare: Plan
    split: SplitChoice = SplitChoice()
    network: NetworkChoice = NetworkChoice()
    pretrain: Pretrain | None = Pretrain()
    finetune: Finetune = Finetune()
    predict: Predict = Predict()
    arms: dict[str, Arm] = Field(
        default_factory=lambda: {"scratch": Arm(start="scratch"), "pretrained": Arm(start="pretrain")}
    )
    final: Literal["reported", "all"] = silent(
        "reported",
        description="the model that goes out: reported, which is the arm that was best on validation people, or all, which is that arm "
        "trained once more on every label, after the page",
    )
    workers: Positive = Field(2, description="processes that simulate and prepare; each holds one person in memory")

    @property
    def trainings(self) -> int:
        """Of the task: one an arm, and the final one."""
        return len(self.arms) + (self.final == "all")

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if not self.cohorts or not self.arms:
            raise ValueError("a recipe needs at least one cohort and one arm")
        for name in (*self.cohorts, *self.arms):
            if not name or name.startswith(".") or {"/", "\\"} & set(name):
                raise ValueError(
                    f"'{name}' becomes a folder of the run; use a name without '/' that does not start with '.'"
                )
        if self.pretrain is None and any(arm.start == "pretrain" for arm in self.arms.values()):
            raise ValueError("an arm starts from 'pretrain', but the recipe has no pretrain section")
        named = {c for arm in self.arms.values() for c in arm.also}
        named |= {c for stage in (self.pretrain, self.finetune.semi) if stage for c in stage.cohorts}
        if unknown := sorted(named - set(self.cohorts)):
            raise ValueError(f"cohort '{unknown[0]}' is named but not defined; there are {', '.join(self.cohorts)}")
        return self


def read_recipe(path: Path, changes: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe, with `changes` like "finetune.training.steps=50" applied; values are read as YAML.

    Raises:
        SettingsError: not a file, not YAML, an unknown key, a wrong value; names the place in one line.
    """
    recipe = read_settings(Recipe, path, changes)
    cohorts = {key: located(choice, path.parent) for key, choice in recipe.cohorts.items()}
    return recipe.model_copy(update={"cohorts": cohorts})


def read_settings(kind: type[S], path: Path, changes: Sequence[str] = ()) -> S:
    """Settings from a YAML file, with `changes` applied; paths in it stay as they are written.

    Raises:
        SettingsError: not a file, not YAML, an unknown key, a wrong value; names the place in one line.
    """
    return parse(kind, read_content(path, changes), str(path))


def read_content(path: Path, changes: Sequence[str] = ()) -> dict[str, Any]:
    """The keys and values of a YAML file, with `changes` applied.

    Raises:
        SettingsError: not a file, not YAML, no keys, or a change that is not key=value.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: found {type(content).__name__}, expected keys such as name, cohorts, prepare")
    for change in changes:
        _change(content, change)
    return content


def changed(kind: type[S], changes: Sequence[str], where: str, **given: Any) -> S:
    """Settings with changes like "training.steps=50" applied to what is given (or to the defaults).

    Raises:
        SettingsError: an unknown key or a wrong value.
    """
    content: dict[str, Any] = dict(given)
    for change in changes:
        _change(content, change)
    return parse(kind, content, where)


def write_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML text: every default spelled out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def nested(changes: Sequence[str]) -> dict[str, Any]:
    """Changes like "training.steps=50" as nested keys and values.

    Raises:
        SettingsError: one is not key=value.
    """
    content: dict[str, Any] = {}
    for change in changes:
        _change(content, change)
    return content


def overlaid(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`under` with `over` laid on it key by key at every depth; `settings`, which belong to one method or network, are replaced whole."""
    result = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping) and key != "settings"
        result[key] = overlaid(result[key], value) if both else value
    return result


def _change(content: dict[str, Any], change: str) -> None:
    keys, equals, value = change.partition("=")
    if not equals:
        raise SettingsError(f"'{change}': expected key=value, for example finetune.training.steps=50")
    *parents, last = keys.split(".")
    place = content
    for key in parents:
        if place.get(key) is None:
            place[key] = {}
        place = place[key]
        if not isinstance(place, dict):
            raise SettingsError(f"'{change}': {key} is a value, it has no keys below it")
    try:
        place[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise SettingsError(f"'{change}': the value cannot be read as YAML") from None


def located(choice: CohortChoice, home: Path) -> CohortChoice:
    """The same choice with absolute paths.

    Args:
        choice: as read from a file.
        home: folder of that file.

    Raises:
        SettingsError: a path names an environment variable that is not set.
    """
    update: dict[str, Any] = {
        key: _absolute(key, path, home) for key in ("folder", "bids", "table") if (path := getattr(choice, key))
    }
    if (simulate := choice.simulate) and (donors := getattr(simulate.recipe, "donors", None)):
        recipe = simulate.recipe.model_copy(update={"donors": _absolute("donors", donors, home)})
        update["simulate"] = simulate.model_copy(update={"recipe": recipe})
    return choice.model_copy(update=update)


def _absolute(key: str, path: str, home: Path) -> str:
    expanded = Path(os.path.expandvars(path)).expanduser()
    if unset := re.search(r"\$\{?(\w+)", str(expanded)):
        raise SettingsError(
            f"{key}: {path}: the environment variable {unset[1]} is not set; set it to the data's folder"
        )
    return str(expanded if expanded.is_absolute() else (home / expanded).resolve())
