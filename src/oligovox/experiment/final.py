"""The model that goes out: the arm that was best on validation people, as it was reported, or trained once more on every label.

    RUN/final/      checkpoints/, log.jsonl, model/: with `final: all` of the recipe

The final training has the start, the schedule and the draws of the arm. Nobody is left to choose a checkpoint by, so it ends after as many
steps as the arm's chosen one had.
"""

from __future__ import annotations

from pathlib import Path

from oligovox.cohort.manifest import Cohort
from oligovox.cohort.splits import Split
from oligovox.engine.log import read_log, say
from oligovox.errors import LabelError
from oligovox.experiment.people import final_people
from oligovox.experiment.recipe import Recipe
from oligovox.experiment.training import learns_alone, needs_of
from oligovox.experiment.verbs import finetune
from oligovox.prepare.store import Store

CAUTION = (
    "trained once more on every label, those of tested people as well: no score of this very model exists, those of the report are of models "
    "that saw fewer labels"
)
"""What a page says of it, after the name of the arm."""


def best_arm(recipe: Recipe, run: Path) -> str:
    """The arm with the highest Dice on validation people; without any, the last one."""
    best = {name: max(_validated(run / "arms" / name).values(), default=-1.0) for name in recipe.arms}
    return max(reversed(list(best)), key=lambda name: best[name])


def check_final(recipe: Recipe, cohort: Cohort, split: Split) -> None:
    """Say before anything is trained whether every label can be used.

    Raises:
        LabelError: a strategy that learns from exams without a label would have none.
    """
    if recipe.final != "all" or not (semi := recipe.finetune.semi) or learns_alone(semi):
        return
    whole = needs_of(semi).whole_cases
    seen = [case for case in cohort.cases if case.person not in split.apart]
    of_strategy = [case for case in seen if not semi.cohorts or case.dataset in semi.cohorts]
    for name, arm in recipe.arms.items():
        used = {*final_people(arm, recipe, cohort, split)}
        if all(case.label and case.person in used and (whole or not case.sparse) for case in of_strategy):
            raise LabelError(
                f"final: all leaves {semi.name} no exam without a label, if arm {name} is the best; add exams, leave semi out, or leave final out"
            )


def train_final(recipe: Recipe, cohort: Cohort, split: Split, store: Store, start: Path | None, out: Path) -> Path:
    """Train the best arm on every label.

    Args:
        recipe: what was asked.
        cohort: who there was.
        split: who was held out.
        store: what was prepared.
        start: the pre-trained model; None where nothing was pre-trained.
        out: run folder, with every arm finished.

    Returns:
        The model folder.

    Raises:
        RunError: training failed; it goes on from its last checkpoint.
    """
    name = best_arm(recipe, out)
    people = final_people(recipe.arms[name], recipe, cohort, split)
    steps = _chosen_steps(recipe, out / "arms" / name)
    say(f"final: arm {name} once more, {steps} steps on the labels of {len(people)} people; no score of it will exist")
    training = recipe.finetune.training.model_copy(update={"stop_at": steps})
    return finetune(
        store,
        out / "final",
        stage=recipe.finetune.model_copy(update={"training": training}),
        network=recipe.network,
        start=start if recipe.arms[name].start == "pretrain" else None,
        people=people,
        split=Split(people, (), (), split.seed, apart=split.apart),
    )


def _chosen_steps(recipe: Recipe, arm: Path) -> int:
    """Optimiser steps that the kept checkpoint of an arm had: the first with the highest Dice, or the last."""
    validated = _validated(arm)
    return max(validated, key=lambda steps: validated[steps], default=recipe.finetune.training.taken)


def _validated(arm: Path) -> dict[int, float]:
    """Optimiser steps → Dice on validation people, where it was defined."""
    rows = [row for row in read_log(arm / "log.jsonl") if row.get("validation")]
    return {row["step"] + 1: row["validation"]["dice"] for row in rows if row["validation"]["dice"] is not None}
