"""What a cross-validated classification does: settings, folds, and the checks before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from oligovox import catalogue
from oligovox.cohort.folds import Fold, draw_folds
from oligovox.engine.fit import Training
from oligovox.errors import LabelError, SettingsError
from oligovox.experiment.radiomics_forest import FOREST, ForestSettings
from oligovox.experiment.recipe import NetworkChoice, Positive, Stage
from oligovox.experiment.training import check
from oligovox.prepare.lesion_store import SEQUENCES, LesionStore, StoredLesion
from oligovox.prepare.store import Plan
from oligovox.sample.augment import EFFECTS, Augmentation
from oligovox.sample.lesions import check_patch
from oligovox.sample.turns import Turns
from oligovox.settings import Settings, parse, silent

FORMAT = 4
"""Of classify.json and of what networks are given."""

_USUAL: dict[str, Any] = {
    "steps": 4000,
    "lr": 1e-4,
    "weight_decay": 0.05,
    "validate_every": 100,
    "channels_last": False,
}
_START: dict[str, Any] = {"steps": 2000, "lr": 5e-5, "weight_decay": 0.05, "channels_last": False}


def _laid_over(usual: dict[str, Any]) -> BeforeValidator:
    """A section of which a part is given keeps the rest of what is usual here."""
    return BeforeValidator(lambda given: usual | dict(given) if isinstance(given, Mapping) else given)


class PretrainLesions(Settings):
    """Self-supervised start, made anew in each fold from lesions of people who are neither tested nor validated on."""

    method: str = Field(description="a pretext of `oligovox methods`")
    settings: dict[str, Any] = Field(default_factory=dict, description="settings of the method's own file")
    batch: Positive = Field(10, description="lesions in a micro-batch")
    training: Annotated[Training, _laid_over(_START)] = Training(**_START)
    turns: Turns = Turns()
    transductive: bool = Field(
        False,
        description="one start from everybody's lesions, tested people's too, as the release does; the page says so",
    )


class Classify(Settings):
    """Cross-validated classification of lesions. Steps, rate, decay and batch are those of the paper, an epoch being about 100 steps.

    Not channels last, which makes a step of `frodo` nearly three times as long on a CPU (its group norms); `rimnet` and `resenc` are faster with it.
    """

    method: str = Field(
        "lesion_classification",
        description="a classifier of `oligovox methods`; or radiomics_forest, a random forest without a network",
    )
    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="settings of the method's own file; `counts`, where it has them, are those of each fold",
    )
    network: NetworkChoice = Field(NetworkChoice(name="frodo"), description="encoder; frodo, where it has no name")
    patch: Positive = Field(64, description="side in voxels: the middle of what was extracted")
    batch: Positive = Field(16, description="lesions in a micro-batch")
    balanced: bool = Field(True, description="draw Rim+ and Rim− with even chances")
    turns: Turns = Turns()
    augmentation: Annotated[Augmentation, _laid_over(Augmentation.only().model_dump())] = silent(
        Augmentation.only(),
        description="of the classifier's training lesions, beside flips and turns: what is not named does not happen; the paper has none",
    )
    training: Annotated[Training, _laid_over(_USUAL)] = Training(**_USUAL)
    calibrate: bool = Field(
        True,
        description="fit slope and offset of a network's logit on validated people, so that it gives probabilities",
    )
    mirror: bool = silent(
        False, description="average a network's logit over the eight mirror images of a patch; 8 times slower"
    )
    pretrain: PretrainLesions | None = Field(None, description="self-supervised start; null: from scratch")
    folds: int = Field(5, ge=2, description="of people")
    validation: float = Field(0.2, gt=0, lt=1, description="share of a fold's other people that is validated on")
    seed: int = Field(42, ge=0, description="of the folds")
    labels: int | None = Field(
        None, ge=3, description="use the grades of so many people a fold, validation people among them; null: all"
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """A network without a name is the default one with other settings."""
        network = given.get("network") if isinstance(given, dict) else None
        return {**given, "network": {"name": "frodo", **network}} if isinstance(network, dict) else given


def cpu_size(asked: Classify) -> list[str]:
    """Changes of the defaults with which two cores train a fold in minutes; benchmarks/study_rims.py measures them. None for a forest.

    The rate was compared for FRODO without a start only (300 steps, people for development). 1200 steps: with 300 that network had not finished
    learning (PR-AUC 0.51 in place of 0.63 on 88 people); they are 8 minutes a fold on one core without bfloat16.

    Patches of 32³ at 1 mm cut one lesion in ten (study_rims.md), mostly confluent ones, and what is shown around more of them.

    Args:
        asked: what is trained: method, network, and whether there is a self-supervised start.
    """
    if asked.method == FOREST:
        return []
    small = ["network.settings.preset=cpu"] * (asked.network.name in ("frodo", "rimnet", "resnet18"))
    small += ["patch=32", "training.steps=1200", "training.lr=1e-3", "training.validate_every=200"]
    if asked.network.name == "rimnet":
        small += ["settings.grid=4", "settings.hidden=[256,128,64]", "settings.contrast=false"]
    return small + ["pretrain.training.steps=300", "pretrain.training.lr=5e-4", "pretrain.batch=16"] * (
        asked.pretrain is not None
    )


def plan_folds(store: LesionStore, chosen: Classify) -> tuple[Fold, ...]:
    """Who is where; says before anything runs what would not work.

    Raises:
        CohortError: too few people, or too few with a Rim+ lesion.
        LabelError: nobody is graded, or a fold would learn from one class only.
        SettingsError: method, network and patch do not fit.
    """
    positives: dict[str, int] = {}
    for lesion in store.graded:
        positives[lesion.person] = positives.get(lesion.person, 0) + lesion.grade
    if not positives:
        raise LabelError(
            f"{store.root}: no lesion has a grade; extract again with grades (see docs/how-to/classify-lesions.md)"
        )
    if chosen.method == FOREST:
        _check_forest(chosen)
    else:
        _check_networks(store, chosen)
    folds = draw_folds(
        positives, folds=chosen.folds, validation=chosen.validation, seed=chosen.seed, labels=chosen.labels
    )
    for number, fold in enumerate(folds, start=1):
        for people, does in ((fold.train, "learn from"), (fold.validation, "choose its checkpoint and threshold by")):
            grades = {lesion.grade for lesion in store.graded if lesion.person in people}
            if grades != {0, 1}:
                only = "Rim+" if grades == {1} else "Rim−"
                raise LabelError(
                    f"fold {number} of {len(folds)} would {does} {only} lesions only; grade more people, or use fewer folds"
                )
    if chosen.balanced and (idle := chosen.settings.get("imbalance")) in ("class_balanced", "logit_adjustment"):
        raise SettingsError(
            f"imbalance {idle} changes nothing where both grades are drawn alike; set balanced=false, or leave imbalance out"
        )
    return folds


def _check_networks(store: LesionStore, chosen: Classify) -> None:
    check_patch(store.lesions[0], chosen.patch)
    if (
        chosen.network.name == "rimnet"
        and chosen.settings.get("grid", 1) == 1
        and chosen.method == "lesion_classification"
    ):
        raise SettingsError(
            "network rimnet hands on one number a branch and cell, and settings.grid=1 averages all cells: two numbers to classify by; set "
            f"settings.grid={max(chosen.patch // 8, 2)}, and settings.hidden=[256,128,64] and settings.contrast=false as in the paper"
        )
    _check_augmentation(store, chosen.augmentation)
    plan, plain = Plan(modalities=SEQUENCES), Augmentation.only()
    stage = Stage(patch=(chosen.patch,) * 3, batch=chosen.batch, augmentation=plain)
    check(chosen.method, with_counts(chosen, store.graded), chosen.network, stage, plan)
    if before := chosen.pretrain:
        built = check(
            before.method, before.settings, chosen.network, stage.model_copy(update={"batch": before.batch}), plan
        )
        if built.needs.unflipped and (before.turns.flip or before.turns.turn):
            raise SettingsError(
                f"pretext {before.method} tells how a lesion was turned, and pretrain.turns has flip {before.turns.flip:g}, turn "
                f"{before.turns.turn:g}, which turn it before; set both to 0, or give the rotation no weight"
            )


def _check_augmentation(store: LesionStore, asked: Augmentation) -> None:
    plain = Augmentation.only()
    for name, value in asked:
        effect = next(effect for effect in EFFECTS if name.startswith(effect))
        if value != getattr(plain, name) and not getattr(asked, effect):
            raise SettingsError(
                f"augmentation.{name} means nothing where augmentation.{effect} has a probability of 0, as it has unless it is given; "
                f"set augmentation.{effect}, or leave {name} out"
            )
    if asked != plain and store.plan.masked and store.plan.outside == "zero":
        raise SettingsError(
            f"{store.root}: cut with outside=zero, as the release's patches, which augmentation would make 0 ppb; "
            "extract with outside=neutral, or leave augmentation out"
        )


def _check_forest(chosen: Classify) -> None:
    parse(ForestSettings, chosen.settings, f"settings of {FOREST}")
    of_networks = {
        "network",
        "patch",
        "batch",
        "balanced",
        "turns",
        "augmentation",
        "training",
        "pretrain",
        "calibrate",
        "mirror",
    }
    idle = of_networks & chosen.model_fields_set
    if idle:
        raise SettingsError(
            f"{FOREST} has no network and takes no steps, so {min(idle)} means nothing to it; leave it out "
            f"(it has {', '.join(f'settings.{key}' for key in ForestSettings.model_fields)})"
        )


def with_counts(chosen: Classify, lesions: Sequence[StoredLesion]) -> dict[str, Any]:
    """Settings of the method; where it asks for `counts` of Rim− and Rim+ and none are given, those that are drawn of these lesions."""
    if "counts" not in catalogue.load("METHOD", chosen.method).Settings.model_fields or "counts" in chosen.settings:
        return chosen.settings
    grades = [lesion.grade for lesion in lesions]
    counts = (grades.count(0), grades.count(1))
    drawn = (max(sum(counts) // 2, 1),) * 2 if chosen.balanced else tuple(max(n, 1) for n in counts)
    return chosen.settings | {"counts": drawn}


def pretrained_on(store: LesionStore, fold: Fold, transductive: bool) -> tuple[str, ...]:
    """Whose lesions a start may see, without their grades: everyone who is neither tested nor validated on in this fold."""
    if transductive:
        return store.people
    held_out = {*fold.test, *fold.validation}
    return tuple(person for person in store.people if person not in held_out)
