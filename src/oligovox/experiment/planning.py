"""`oligovox plan`: what to train on this machine with this cohort, how long it takes, what it needs; or why it cannot run.

OUT/plan.yaml    a recipe that `oligovox run` takes as it is, with the reasons and the forecast as comments
OUT/plan.json    the same as numbers
OUT/cohort.tsv   where a store was given: the files it was prepared from; where exams were left out: the others
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import yaml

from oligovox.cohort.manifest import Cohort
from oligovox.engine.log import say
from oligovox.errors import CohortError, OutputError, SettingsError
from oligovox.experiment import planning_choice as choose
from oligovox.experiment.cohorts import Show, quiet, read_cohort, renamed, valued
from oligovox.experiment.planning_choice import Chosen
from oligovox.experiment.planning_facts import Facts, facts_of_cohort, facts_of_store, sources_of_store
from oligovox.experiment.planning_forecast import Measured, forecast, refuse
from oligovox.experiment.planning_machine import GIB, Machine, this_machine
from oligovox.experiment.planning_probe import OutOfMemory, probe
from oligovox.experiment.planning_split import split_of
from oligovox.experiment.recipe import NetworkChoice, Recipe
from oligovox.experiment.shrinking import Limits, Size, smaller
from oligovox.experiment.training import check, of_finetuning, size_limits
from oligovox.files import atomic_file, check_writable, write_json
from oligovox.networks.resenc import Preset
from oligovox.prepare.store import Plan, Store
from oligovox.settings import parse

TRIES = 4
"""Sizes that are probed before a plan is given up."""

_TABLE = "cohort.tsv"


@dataclass(frozen=True)
class Ground:
    """What is planned for.

    Attributes:
        name: of the recipe and of its cohort.
        facts: the cohort in numbers.
        cohort: the files; None where those of a store are gone.
        store: where a store was given.
        choice: how a recipe names the cohort.
    """

    name: str
    facts: Facts
    cohort: Cohort | None
    store: Store | None
    choice: Mapping[str, Any]


def plan(
    data: Path | str,
    *,
    mask: str = "lesion",
    layout: str = "",
    sequences: Sequence[str] = (),
    labels: Sequence[str] = (),
    hours: float | None = None,
    minutes: float = 1.0,
    final: Literal["reported", "all"] = "reported",
    out: Path | str | None = None,
    show: Show = quiet,
) -> dict[str, Any]:
    """Choose everything a recipe says for this cohort on this machine, measure for about a minute, and say what the run will cost.

    Args:
        data: a folder of any layout that is known, a list or table of files, or a store.
        mask: which label, in the words of the layout.
        layout: name of the layout; '': as it looks.
        sequences: what the folder calls a sequence whose name is not known, as NAME=FLAIR.
        labels: value of each class in the label files, as hole=2; empty: as the folder says.
        hours: the whole run shall take at most so long; None: the usual number of steps.
        minutes: to spend on training steps and a prediction; preparing a case or two comes on top.
        final: which model goes out, as in a recipe; "all" trains once more, and that has its share of the hours.
        out: folder for plan.yaml and plan.json; None: nothing is written.
        show: progress.

    Returns:
        "machine", "facts", "choice", "why" (one line each), "measured", "forecast", "lines" (the forecast for people, and what is done about missing
        sequences and exams without any), and "recipe": the path of plan.yaml.

    Raises:
        CohortError: the folder cannot be read, or is not understood.
        OutputError: `out`, or the folder for temporary files, cannot be written.
        SettingsError: it cannot run here: labels, patch, memory, disk or hours; one line with the numbers.
    """
    out = Path(out) if out else None
    if out:
        check_writable(out)
    machine = this_machine(out or Path())
    ground, left_out = _usable(_ground(Path(data), mask, layout, sequences, labels))
    split, said = split_of(ground.facts, ground.cohort)
    prepared, why = (
        (ground.store.plan, ["prepared: as the store is, once more in the folder of the run"])
        if ground.store
        else choose.chosen_plan(ground.facts)
    )
    content: dict[str, Any] = {
        "name": ground.name,
        "cohorts": {ground.name: dict(ground.choice)},
        "prepare": prepared.model_dump(mode="json", exclude_defaults=True),
        "split": split.model_dump(),
        "final": final,
    }
    strategy, about_missing = _against_missing(ground.facts, prepared)
    if strategy:
        content["finetune"] = {"semi": strategy}
    with _scratch() as folder:
        measured, reasons = _probed(ground, prepared, machine, content, folder, 60 * minutes, show)
    steps = _steps(hours, measured, content, ground.facts)
    for stage in ("pretrain", "finetune"):
        content[stage]["training"] |= {"steps": steps, "validate_every": max(200, steps // 10)}
    recipe = parse(Recipe, content, "plan")
    expected = forecast(measured, recipe, ground.facts)
    refuse(expected, machine)
    result = {
        "machine": str(machine),
        "facts": ground.facts.summary(prepared.reference),
        "choice": {k: content[k] for k in ("prepare", "split", "network", "pretrain", "finetune", "workers")},
        "why": [*why, said, *reasons, _steps_reason(steps, hours)],
        "measured": measured.as_json(),
        "forecast": expected.as_json(),
        "lines": [*expected.lines(), *about_missing, *left_out],
        "recipe": None,
    }
    return result | ({"recipe": _write(out, content, ground, result)} if out else {})


def _against_missing(facts: Facts, prepared: Plan) -> tuple[dict[str, Any], list[str]]:
    """The strategy of fine-tuning where some exams lack a sequence of the plan, and a line that says why; nothing where all have all.

    Exams without a label take part in it as well: with one patch, and that number is named only where there are some.
    """
    held = [set(exam.grids) & set(prepared.sequences) for exam in facts.exams]
    lacking = sum(len(names) < len(prepared.sequences) for names in held)
    if not lacking:
        return {}, []
    without = ((name, sum(name not in names for names in held)) for name in prepared.sequences)
    said = ", ".join(f"{name} in {number}" for name, number in without if number)
    unlabelled = facts.people > facts.labelled
    line = (
        f"missing sequences: {lacking} of {len(held)} exams lack some ({said}), so fine-tuning hides sequences as well (semi: hidden_sequences); on simulated "
        "people this gained where much is missing (Dice +0.04 to +0.14 with FLAIR alone or with T1w) and lost nothing that shows where nothing is, at 1.7 times "
        "the time (benchmarks/study_missing.md)"
        + ("; here exams without a label take part, which takes longer" if unlabelled else "")
        + "; the forecast holds its time; --set finetune.semi=null switches it off"
    )
    return {"name": "hidden_sequences"} | ({"batch": 1} if unlabelled else {}), [line]


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for what the probe writes, gone afterwards.

    Raises:
        OutputError: there can be none.
    """
    try:
        folder = TemporaryDirectory(prefix="oligovox-plan-")
    except OSError as error:
        raise OutputError(f"{error.strerror or error}; free some space, or set TMPDIR to a folder with room") from error
    with folder as name:
        yield Path(name)


def _ground(data: Path, mask: str, layout: str, sequences: Sequence[str], labels: Sequence[str]) -> Ground:
    if os.path.exists(data) and not os.access(data, os.R_OK | os.X_OK if data.is_dir() else os.R_OK):
        raise CohortError(f"{data}: may not be read; ask its owner for leave, or for a copy")
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", data.resolve().name.removesuffix(".tsv")).strip(".-") or "cohort"
    if (data / "store.json").is_file():
        store = Store.open(data)
        cohort = sources_of_store(store)
        return Ground(name, facts_of_store(store), cohort, store, {"table": _TABLE})
    cohort = read_cohort(data, mask=mask, layout=layout, sequences=sequences, labels=labels)
    given = {"layout": layout, "sequences": renamed(sequences), "labels": valued(labels)}
    choice = {"folder": str(data.resolve()), "mask": mask} | {key: value for key, value in given.items() if value}
    return Ground(name, facts_of_cohort(cohort), cohort, None, choice)


def _usable(ground: Ground) -> tuple[Ground, list[str]]:
    """Without exams that have none of the sequences, and a line about them; they stay in the folder and are in no table of the recipe."""
    facts, line = choose.usable(ground.facts)
    if ground.store or ground.cohort is None or not line:
        return ground, []
    say(line)
    kept = {exam.name for exam in facts.exams}
    cohort = replace(ground.cohort, cases=tuple(case for case in ground.cohort.cases if case.name in kept))
    return replace(ground, facts=facts, cohort=cohort, choice={"table": _TABLE}), [line]


def _probed(
    ground: Ground, prepared: Plan, machine: Machine, content: dict[str, Any], folder: Path, seconds: float, show: Show
) -> tuple[Measured, list[str]]:
    """Measure; fills in what the recipe says of network, stages and workers. Smaller and smaller until it fits."""
    grids, progress = ground.facts.grids(prepared.reference), show("probe")
    store, preparing, typical = ground.store, None, 1.0
    if ground.cohort:
        chosen = _typical(ground.cohort, ground.facts, prepared)
        chosen.save(folder / "cohort.tsv")
        asked = {
            "table": str(folder / "cohort.tsv"),
            "plan": prepared.model_dump(mode="json"),
            "store": str(folder / "store"),
        }
        try:
            preparing = probe("prepare", asked)
        except OutOfMemory:
            raise SettingsError(
                f"memory: a case of {_voxels(grids[0].shape)} voxels cannot be prepared in the {machine.memory / GIB:.2f} GiB that are free"
            ) from None
        made = Store.open(folder / "store")
        store = store or made
        names = {case.name for case in made.cases}
        typical = _mean_voxels(ground.facts, prepared) / _mean_voxels(ground.facts, prepared, names)
    assert store is not None
    progress(1, 2, "prepare")
    content["workers"], reason = choose.chosen_workers(machine, preparing["memory"] if preparing else GIB)
    shape = choose.median_shape(grids, prepared.spacing, _kept(store, ground.facts, prepared))
    pretext = "generative" if len(prepared.sequences) > 1 else "masked_reconstruction"
    size, why = choose.chosen_size(
        machine, len(prepared.modalities), shape, lambda p: _limits(p, pretext, prepared).multiple
    )
    training, shrunk = _fitting(size, pretext, prepared, store, machine, content, folder, seconds)
    progress(2, 2, "train")
    measured = Measured(preparing=preparing, training=training, typical=typical, workers=content["workers"])
    return measured, [reason, why, *shrunk]


def _fitting(
    size: Chosen,
    pretext: str,
    prepared: Plan,
    store: Store,
    machine: Machine,
    content: dict[str, Any],
    folder: Path,
    seconds: float,
) -> tuple[dict[str, Any], list[str]]:
    """Probe the training at this size, and at smaller ones as long as it takes too much memory; the batch stays at 2 or above."""
    said: list[str] = []
    room = machine.gpu_memory if machine.gpu else machine.memory
    limits = _limits(size.preset, pretext, prepared)
    for attempt in range(TRIES):
        # a list of its own in each stage: YAML would point to a shared one
        for stage in ("pretrain", "finetune"):
            content[stage] = content.get(stage, {}) | {"patch": list(size.patch), "batch": size.batch, "training": {}}
        content["pretrain"]["method"] = pretext
        content["network"] = {"name": "resenc", "settings": {"preset": size.preset}}
        recipe = parse(Recipe, content, "plan")
        assert recipe.pretrain is not None
        check(recipe.pretrain.method, recipe.pretrain.settings, recipe.network, recipe.pretrain, prepared)
        check(*of_finetuning(recipe.finetune, store.labels), recipe.network, recipe.finetune, prepared)
        work = folder / f"probe-{attempt}"
        asked = recipe.model_dump(mode="json") | {"store": str(store.root), "folder": str(work), "seconds": seconds}
        beside = content["finetune"].get("semi", {}).get("batch", 0)
        asked["finetune"]["batch"] += beside  # patches without a label cost as much as others
        try:
            found = probe("train", asked)
            taken = found["gpu_memory"] if machine.gpu else found["memory"]
        except OutOfMemory:
            taken = room + 1
        if taken <= room:
            return found, said
        following = smaller(Size(counts=(size.batch if size.batch > 2 else 1,), patch=size.patch), limits)
        said.append(f"memory: {size} takes more than the {room / GIB:.2f} GiB that are free")
        if following is None or attempt == TRIES - 1:
            raise SettingsError(
                f"{said[-1]}, and nothing smaller was found that fits; free memory, or plan on a larger machine"
            )
        size = replace(size, patch=following.patch, batch=max(2, following.counts[0]))
    raise AssertionError("the last attempt returns or raises")


def _limits(preset: Preset, pretext: str, prepared: Plan) -> Limits:
    return size_limits(pretext, {}, NetworkChoice(settings={"preset": preset}), prepared)


def _typical(cohort: Cohort, facts: Facts, prepared: Plan) -> Cohort:
    """Two cases near the median size, with a label where they can be had: what the probe prepares."""
    sizes = _sizes(facts, prepared)
    ordered = sorted(cohort.cases, key=lambda case: (case.label is None, sizes[case.name]))
    labelled = [case for case in ordered if case.label] or ordered
    middle = len(labelled) // 2
    return replace(cohort, cases=tuple(labelled[max(0, middle - 1) : max(0, middle - 1) + 2]))


def _sizes(facts: Facts, prepared: Plan) -> dict[str, int]:
    """Case → voxels on the prepared grid before cropping, times its sequences."""
    return {
        exam.name: prod(grid.at(prepared.spacing)) * len(set(exam.grids) & set(prepared.modalities))
        for exam, grid in zip(facts.exams, facts.grids(prepared.reference), strict=True)
    }


def _mean_voxels(facts: Facts, prepared: Plan, names: set[str] | None = None) -> float:
    sizes = [size for name, size in _sizes(facts, prepared).items() if names is None or name in names]
    return sum(sizes) / len(sizes) or 1.0


def _kept(store: Store, facts: Facts, prepared: Plan) -> list[float]:
    """Share of each side that cropping left of the cases in the store; 1 where the facts are those of the store."""
    if facts.prepared:
        return [1.0, 1.0, 1.0]
    whole = {e.name: g.at(prepared.spacing) for e, g in zip(facts.exams, facts.grids(prepared.reference), strict=True)}
    shares = [[c / w for c, w in zip(case.shape, whole[case.name], strict=True)] for case in store.cases]
    return [min(1.0, sum(axis) / len(axis)) for axis in zip(*shares, strict=True)]


def _steps(hours: float | None, measured: Measured, content: Mapping[str, Any], facts: Facts) -> int:
    """Of each training: the usual number, or as many as the hours allow."""
    recipe = parse(Recipe, content, "plan")
    usual = recipe.finetune.training.steps
    if hours is None:
        return usual
    expected = forecast(measured, recipe, facts)
    each = [measured.training["pretrain"]["seconds"], *[measured.training["finetune"]["seconds"]] * recipe.trainings]
    # a long run validates 10 times, the usual one 5 times
    fixed = sum(expected.seconds.values()) - usual * sum(each) + expected.validation
    return choose.affordable_steps(hours, each, fixed)


def _steps_reason(steps: int, hours: float | None) -> str:
    return f"steps: {steps} of each training, " + (
        f"so that all ends within {hours:g} h" if hours else "the usual number"
    )


def _write(out: Path, content: Mapping[str, Any], ground: Ground, result: Mapping[str, Any]) -> str | None:
    """plan.yaml and plan.json; the path of the recipe, None where a store's files are gone and no recipe could run."""
    write_json(out / "plan.json", result)
    if ground.cohort is None:
        return None
    if "table" in ground.choice:
        ground.cohort.save(out / _TABLE)
    facts = result["facts"]
    about = [
        f"Planned for {facts['cases']} cases of {facts['people']} people, {facts['labelled_people']} of them labelled, on {result['machine']}.",
        *result["why"],
        *result["lines"],
    ]
    text = "".join(f"# {line}\n" for line in about) + yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
    with atomic_file(out / "plan.yaml") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return str(out / "plan.yaml")


def _voxels(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
