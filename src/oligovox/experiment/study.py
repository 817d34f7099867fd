"""A whole recipe: cohorts → store → split → pre-training → arms → predictions → scores → page, in one folder.

    RUN/
      recipe.yaml                      the resolved recipe; the folder belongs to it
      cohorts/<name>/                  simulated cohorts, as BIDS
      cohort.tsv, cohort.json          who there is
      split.json, budgets.json         who is held out, whose labels are used
      store/                           prepared volumes
      pretrain/                        checkpoints/, log.jsonl, model/
      arms/<name>/                     checkpoints/, log.jsonl, model/, predictions/, scores.{json,tsv}, lesions.tsv,
                                       summary.{json,tsv}
      report.html, report.json         the page
      final/                           with final: all: checkpoints/, log.jsonl, model/

Every part resumes, so a killed run is started again with the same command.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from oligovox.cohort.manifest import Cohort
from oligovox.cohort.splits import Split, nested_budgets, save_budgets
from oligovox.engine.log import say
from oligovox.engine.runtime import Runtime
from oligovox.errors import SettingsError
from oligovox.experiment.cohorts import Show, planned, quiet, together
from oligovox.experiment.collect import collect
from oligovox.experiment.final import check_final, train_final
from oligovox.experiment.pairs import Pair
from oligovox.experiment.people import arm_people, budget_sizes, draw, label_pool, pretraining_people, say_apart
from oligovox.experiment.prediction import predict_cases
from oligovox.experiment.recipe import Arm, Recipe, read_recipe, write_recipe
from oligovox.experiment.scoring import check_grids, score_pairs
from oligovox.experiment.training import check, of_finetuning
from oligovox.experiment.verbs import finetune, pretrain
from oligovox.files import atomic_file, check_writable, sweep
from oligovox.metrics.judge import DEFAULT, protocol_settings
from oligovox.prepare.pipeline import check as check_cohort
from oligovox.prepare.pipeline import prepare as prepare_cohort
from oligovox.prepare.store import Store
from oligovox.report.page import write_report
from oligovox.simulate.write import simulate_cohort


def run(recipe: Path | str, out: Path | str, changes: Sequence[str] = (), *, show: Show = quiet) -> dict[str, Any]:
    """Do everything a recipe says; start it again with the same folder to resume.

    Args:
        recipe: YAML file.
        out: run folder.
        changes: settings changed, as "finetune.training.steps=50".
        show: progress.

    Raises:
        InputError: recipe, data or folder cannot be used; nothing is written then.
        RunError: a stage failed; what was finished stays.
    """
    return run_recipe(read_recipe(Path(recipe), tuple(changes)), Path(out), show=show)


def demo(out: Path | str, changes: Sequence[str] = (), *, show: Show = quiet) -> dict[str, Any]:
    """The demo recipe that ships with the package: a simulated cohort, two arms, one page. Minutes on two cores."""
    with as_file(files("oligovox") / "recipes" / "demo.yaml") as recipe:
        return run(recipe, out, changes, show=show)


def run_recipe(recipe: Recipe, out: Path, *, show: Show = quiet) -> dict[str, Any]:
    """`run`, from a recipe that was read already."""
    cohort, split = _claim(recipe, out, show)
    store = prepare_cohort(
        cohort, recipe.prepare, out / "store", workers=recipe.workers, progress=show("prepare"), checked=True
    )
    start = None
    if recipe.pretrain:
        people = pretraining_people(recipe, cohort, split)
        say(f"pre-train: {recipe.pretrain.method} on {len(people)} people")
        start = pretrain(store, out / "pretrain", stage=recipe.pretrain, network=recipe.network, people=people)
    for name, arm in recipe.arms.items():
        _run_arm(name, arm, recipe, cohort, split, store, start, out, show)
    page = write_report(collect(recipe, cohort, split, store, out, command=_command()), out)
    say(f"the page: {page.resolve()}")
    done = {"page": page, "report": page.with_suffix(".json"), "run": out}
    if recipe.final == "all":
        done["final"] = train_final(recipe, cohort, split, store, start, out)
    return {key: str(path.resolve()) for key, path in done.items()}


def _claim(recipe: Recipe, out: Path, show: Show) -> tuple[Cohort, Split]:
    """Check everything that can be checked before work starts, then make the folder this recipe's own.

    Raises:
        SettingsError: the folder belongs to another recipe.
    """
    text, file = write_recipe(recipe), out / "recipe.yaml"
    if file.exists() and _binding(file.read_text(encoding="utf-8")) != _binding(text):
        raise SettingsError(
            f"{out}: belongs to another recipe (see {file}); choose another --out, or remove the folder"
        )
    if not file.exists() and out.exists() and any(out.iterdir()):
        raise SettingsError(f"{out}: is not empty and not a run of oligovox; choose another --out")
    check_writable(out)
    check_stages(recipe)
    given = {name: choice.read() for name, choice in recipe.cohorts.items() if not choice.simulate}
    to_come = {name: planned(c.simulate.subjects, c.mask) for name, c in recipe.cohorts.items() if c.simulate}
    everyone = together({name: (given | to_come)[name] for name in recipe.cohorts})
    split = draw(recipe, everyone)
    say_apart(everyone, split)
    if recipe.pretrain:
        pretraining_people(recipe, everyone, split)
    check_final(recipe, everyone, split)
    if not file.exists():
        for cohort in given.values():
            check_cohort(cohort, recipe.prepare, workers=recipe.workers)
        check_grids(everyone.of(split.test), recipe.prepare)
    with atomic_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    sweep(out)
    for name, choice in recipe.cohorts.items():
        if simulated := choice.simulate:
            folder = out / "cohorts" / name
            simulate_cohort(
                folder, simulated.recipe, subjects=simulated.subjects, seed=simulated.seed, workers=recipe.workers,
                progress=show(f"simulate {name}"),
            )  # fmt: skip
            given[name] = choice.read(folder)
    cohort = together({name: given[name] for name in recipe.cohorts})
    cohort.save(out / "cohort.tsv")
    split.save(out / "split.json")
    pool = label_pool(recipe, cohort, split)
    save_budgets(out / "budgets.json", nested_budgets(pool, budget_sizes(len(pool), len(split.train)), recipe.seed))
    return cohort, split


def _binding(text: str) -> str:
    """A resolved recipe without what may be asked for later: the final model comes after everything else."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("final:"))


def check_stages(recipe: Recipe) -> None:
    """Devices, networks, methods and patches, before anything is written.

    Raises:
        SettingsError: they do not fit.
    """
    Runtime(recipe.finetune.training)
    check(*of_finetuning(recipe.finetune), recipe.network, recipe.finetune, recipe.prepare)
    if stage := recipe.pretrain:
        Runtime(stage.training)
        check(stage.method, stage.settings, recipe.network, stage, recipe.prepare)


def _run_arm(
    name: str,
    arm: Arm,
    recipe: Recipe,
    cohort: Cohort,
    split: Split,
    store: Store,
    start: Path | None,
    out: Path,
    show: Show,
) -> None:
    folder = out / "arms" / name
    people = arm_people(arm, cohort, split)
    say(f"arm {name}: fine-tune on the labels of {len(people)} people, start: {arm.start}")
    origin = start if arm.start == "pretrain" else None
    model = finetune(
        store, folder, stage=recipe.finetune, network=recipe.network, start=origin, people=people, split=split
    )
    written = predict_cases(
        model,
        store.of(split.test),
        folder / "predictions",
        recipe.predict,
        show(f"predict {name}"),
        recipe.finetune.training,
    )
    tested = cohort.of(split.test)
    score_pairs(
        [Pair.of(case, written[case.name]) for case in tested if case.label],
        folder,
        settings=protocol_settings(DEFAULT, {}, cohort.labels),
        workers=recipe.workers,
        seed=recipe.seed,
    )


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
