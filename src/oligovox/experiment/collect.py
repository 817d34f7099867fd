"""A finished run folder → the content of its page. Every number is read from the files the run wrote."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from oligovox.cohort.manifest import Cohort
from oligovox.cohort.splits import Split
from oligovox.engine.log import read_log
from oligovox.engine.model import ModelDescription, read_description
from oligovox.experiment.final import CAUTION, best_arm
from oligovox.experiment.people import arm_people
from oligovox.experiment.recipe import Recipe, write_recipe
from oligovox.experiment.scoring import compare
from oligovox.files import read_json
from oligovox.infer.native import prediction_paths
from oligovox.prepare.store import Store
from oligovox.report import content
from oligovox.report.content import METRICS, Report, size_bins, telling_cases

Rows = Sequence[Mapping[str, Any]]

_SHOWN_LABELS = 3  # cases labelled in part that are drawn


def collect(recipe: Recipe, cohort: Cohort, split: Split, store: Store, out: Path, *, command: str) -> Report:
    """Everything the page says about one run.

    Args:
        recipe: what was asked.
        cohort: who there was.
        split: who was held out.
        store: what was prepared.
        out: run folder, with every stage finished.
        command: how it was started.
    """
    main, baseline = _main_and_baseline(recipe)
    means = {name: read_json(out / "arms" / name / "summary.json")["mean"] for name in recipe.arms}
    region = next(iter(means[main]))  # the only one, or all classes together
    scores = {name: _of_region(read_json(out / "arms" / name / "scores.json"), region) for name in recipe.arms}
    cases = {name: found["cases"] for name, found in scores.items()}
    arms = tuple(
        _arm(name, recipe, len(arm_people(arm, cohort, split)), cases[name], means[name])
        for name, arm in recipe.arms.items()
    )
    lesions = [lesion for row in cases[main] for lesion in _lesions(row["case"], scores)]
    return Report(
        title=recipe.title or recipe.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        versions={"python": platform.python_version()}
        | {name: version(name) for name in ("oligovox", "torch", "monai", "numpy", "scipy", "nibabel")},
        seeds={"recipe": recipe.seed} | _seeds(recipe),
        recipe=write_recipe(recipe),
        simulated=_only_simulated(recipe, cohort, split),
        data=_data(recipe, cohort, split, store, out),
        stages=_stages(recipe, out),
        arms=arms,
        main=main,
        baseline=baseline,
        comparisons=_comparisons(cases, baseline, recipe.seed) if baseline else (),
        bins=size_bins(lesions, list(recipe.arms)),
        shown=_shown(next(arm for arm in arms if arm.name == main), scores, cohort, store, out),
        labels=_labelled_in_part(recipe, cohort, split, store),
    )


def _of_region(scores: Mapping[str, Rows], region: str) -> dict[str, Rows]:
    """The rows of one region: its "cases", and the "lesions" of its reference."""
    lesions = [row for row in scores["lesions"] if (row["region"], row["side"]) == (region, "reference")]
    return {"cases": [row for row in scores["cases"] if row["region"] == region], "lesions": lesions}


def _main_and_baseline(recipe: Recipe) -> tuple[str, str]:
    """The arm the page is about (the first pre-trained one) and the one it is compared with (the first from scratch)."""
    scratch = [name for name, arm in recipe.arms.items() if arm.start == "scratch"]
    other = [name for name in recipe.arms if name not in scratch]
    main = (other or scratch)[0]
    baseline = next((name for name in scratch if name != main), "")
    return main, baseline


def _seeds(recipe: Recipe) -> dict[str, int]:
    simulated = {f"cohort {name}": c.simulate.seed for name, c in recipe.cohorts.items() if c.simulate}
    pretrain = {"pre-training": recipe.pretrain.training.seed} if recipe.pretrain else {}
    return {**simulated, **pretrain, "fine-tuning": recipe.finetune.training.seed}


def _only_simulated(recipe: Recipe, cohort: Cohort, split: Split) -> bool:
    """Whether every person who is tested is simulated."""
    if len(recipe.cohorts) == 1:
        return next(iter(recipe.cohorts.values())).simulate is not None
    return all(recipe.cohorts[case.dataset].simulate for case in cohort.of(split.test))


def _data(recipe: Recipe, cohort: Cohort, split: Split, store: Store, out: Path) -> content.Data:
    splits = {"train": split.train, "validation": split.validation, "test": split.test}
    if recipe.pretrain:
        splits["pretrain"] = _model(out / "pretrain").trained_on
    return content.Data(
        cohorts=tuple(_cohort(name, cohort, len(recipe.cohorts)) for name in recipe.cohorts),
        splits=splits,
        preparation=store.plan.model_dump(mode="json"),
        warnings=_warnings(recipe, split, cohort, out),
    )


def _cohort(name: str, cohort: Cohort, cohorts: int) -> content.CohortSummary:
    cases = [case for case in cohort.cases if cohorts == 1 or case.dataset == name]
    return content.CohortSummary(
        name=name,
        cases=len(cases),
        people=len({case.person for case in cases}),
        labelled=sum(case.label is not None for case in cases),
        sequences={
            m: sum(m in case.images for case in cases) for m in sorted({m for case in cases for m in case.images})
        },
    )


def _warnings(recipe: Recipe, split: Split, cohort: Cohort, out: Path) -> tuple[str, ...]:
    found = []
    if recipe.pretrain and recipe.pretrain.transductive:
        found.append("Transductive: pre-training saw the images (not the labels) of the test people.")
    if not split.validation:
        found.append("No validation people: the last checkpoint of each arm is used, not the best.")
    if recipe.final == "all":
        found.append(f"The model in final/ is '{best_arm(recipe, out)}', {CAUTION}.")
    incomplete = [c.name for c in cohort.of(split.test) if not set(recipe.prepare.sequences) <= set(c.images)]
    if incomplete:
        found.append(f"{len(incomplete)} test cases lack a sequence of the plan, first {incomplete[0]}.")
    return tuple(found)


def _stages(recipe: Recipe, out: Path) -> tuple[content.Stage, ...]:
    stages = []
    if recipe.pretrain:
        stages.append(_stage(recipe.pretrain.method, "Pre-training", out / "pretrain"))
    stages += [_stage(name, "Fine-tuning", out / "arms" / name, arm=name) for name in recipe.arms]
    return tuple(stages)


def _stage(name: str, phase: str, folder: Path, arm: str = "") -> content.Stage:
    description, rows = _model(folder), read_log(folder / "log.jsonl")
    seconds = sum(row["seconds"] for row in rows)
    return content.Stage(
        name=name,
        phase=phase,
        arm=arm,
        method=description.method,
        network=_network(description),
        settings=dict(description.settings),
        steps=len(rows),
        seconds=seconds,
        waited=min(1.0, sum(row["waited"] for row in rows) / seconds) if seconds else 0.0,
        losses=tuple((row["step"], row["total"]) for row in rows),
        validation=tuple((row["step"], row["validation"]["dice"]) for row in rows if row.get("validation")),
    )


def _model(folder: Path) -> ModelDescription:
    return read_description(folder / "model")


def _network(description: ModelDescription) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in description.network_settings.items())
    return f"{description.network} ({settings})" if settings else description.network


def _arm(
    name: str, recipe: Recipe, labels: int, cases: Rows, means: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> content.Arm:
    start = recipe.arms[name].start
    whole, *classes = means
    return content.Arm(
        name=name,
        start=recipe.pretrain.method if start == "pretrain" and recipe.pretrain else "scratch",
        labels=labels,
        cases=tuple(_row(row) for row in cases),
        means=_intervals(means[whole]),
        classes={region: _intervals(means[region]) for region in classes},
    )


def _row(row: Mapping[str, Any]) -> content.CaseRow:
    return content.CaseRow(
        case=row["case"],
        **{metric: row[metric] for metric in METRICS},
        volume_true_ml=row["reference_ml"],
        volume_predicted_ml=row["volume_ml"],
        lesions_true=row["lesions_reference"],
        lesions_predicted=row["lesions_predicted"],
    )


def _intervals(means: Mapping[str, Mapping[str, Any]]) -> dict[content.MetricName, content.Interval]:
    found: dict[content.MetricName, content.Interval] = {}
    for metric in METRICS:
        row = means[metric]
        ends = {key: row[key] for key in ("mean", "low", "high", "n")}
        found[metric] = content.Interval(**ends, undefined=row["skipped"])
    return found


def _comparisons(cases: Mapping[str, Rows], baseline: str, seed: int) -> tuple[content.Comparison, ...]:
    found = []
    for name in cases:
        for metric in METRICS if name != baseline else ():
            row: dict[str, Any] = compare(cases[name], cases[baseline], metric, seed=seed)
            interval = {key: row[key] for key in ("mean", "low", "high", "n")}
            found.append(content.Comparison(metric=metric, arm=name, against=baseline, **interval))
    return tuple(found)


def _lesions(case: str, scores: Mapping[str, Mapping[str, Rows]]) -> tuple[content.Lesion, ...]:
    """The lesions of one case, with what each arm made of them; every arm is scored against the same mask."""
    by_arm = {name: [row for row in found["lesions"] if row["case"] == case] for name, found in scores.items()}
    return tuple(
        content.Lesion(
            number=lesion["number"],
            volume_mm3=lesion["volume_mm3"],
            centre=(lesion["x"], lesion["y"], lesion["z"]),
            found={name: rows[i]["outcome"] == "found" for name, rows in by_arm.items()},
            overlap={name: rows[i]["overlap"] for name, rows in by_arm.items()},
        )
        for i, lesion in enumerate(next(iter(by_arm.values())))
    )


def _shown(
    arm: content.Arm, scores: Mapping[str, Mapping[str, Rows]], cohort: Cohort, store: Store, out: Path
) -> tuple[content.ShownCase, ...]:
    """Best, median and worst case of the main arm."""
    by_name, shown = {case.name: case for case in cohort.cases}, []
    for role, name in telling_cases(arm.cases).items():
        case = by_name[name]
        stored = store.case(name)
        predictions = {
            a: str(prediction_paths(stored, out / "arms" / a / "predictions", store.labels)["label"].resolve())
            for a in scores
        }
        shown.append(
            content.ShownCase(
                case=name,
                role=role,
                sequence=stored.reference,
                image=str(case.images[stored.reference].resolve()),
                truth=str(case.label.resolve()) if case.label else None,
                predictions=predictions,
                lesions=_lesions(name, scores),
            )
        )
    return tuple(shown)


def _labelled_in_part(recipe: Recipe, cohort: Cohort, split: Split, store: Store) -> tuple[content.LabelledCase, ...]:
    """The first training cases of which only a part is labelled."""
    people = {person for arm in recipe.arms.values() for person in arm_people(arm, cohort, split)}
    return tuple(
        content.LabelledCase(
            case=case.name,
            image=str(case.images[store.case(case.name).reference].resolve()),
            label=str(case.label.resolve()),
        )
        for case in [case for case in cohort.of(people) if case.sparse][:_SHOWN_LABELS]
        if case.label
    )
