"""From the scores of all finished runs to the tidy table and the content of the page."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from oligovox.experiment.budget_choice import choices_of, square_of
from oligovox.experiment.budget_freeze import Frozen
from oligovox.experiment.budget_ground import Ground
from oligovox.experiment.budget_jobs import Job, pretraining_of
from oligovox.experiment.budget_labels import labelling_of
from oligovox.experiment.budget_plan import Run, Study
from oligovox.experiment.budget_records import TAKEN
from oligovox.experiment.budget_tables import Done, Tables, cells_of, comparisons, differences_of, kind_of
from oligovox.files import read_json, write_tsv
from oligovox.metrics.paired import labels_needed
from oligovox.report import text
from oligovox.report.budget_content import (
    FEWEST_DRAWS,
    LEARNING,
    ArmFacts,
    BudgetReport,
    Saved,
    Version,
)

_ENOUGH_DRAWS = 8
_MATCHED = 1.25  # times the seconds of compute-matched scratch, up to which an arm counts as matched
_COLUMNS = ("arm", "count", "draw", "seed", "person", "metric", "value", "exploratory")


def finished_runs(study: Study, out: Path) -> dict[Run, dict[str, Any]]:
    """The finished runs of a study."""
    files = {run: out / run.folder / "scores.json" for run in study.runs}
    return {run: read_json(file) for run, file in files.items() if file.is_file()}


def write_table(done: Done, frozen: Frozen, path: Path) -> None:
    """Write budget.tsv: one row a run, person and metric."""
    before = set(frozen.study.runs)
    rows = [
        {"arm": run.arm, "count": run.count, "draw": run.draw, "seed": run.seed, "person": person, "metric": metric,
         "value": value, "exploratory": str(run not in before).lower()}
        for run, result in done.items() for person, row in sorted(result["scores"].items()) for metric, value in row.items()
    ]  # fmt: skip
    write_tsv(path, rows, _COLUMNS)


def collect_budget(
    frozen: Frozen, added: Sequence[Frozen], done: Done, ground: Ground, out: Path, *, command: str
) -> BudgetReport:
    """Everything the page says.

    Args:
        frozen: the study as it was before the first run.
        added: as it was after each addition.
        done: its finished runs.
        ground: store and people.
        out: folder of the study.
        command: how it was started.
    """
    study = added[-1].study if added else frozen.study
    tables = Tables(study, frozen.study, done)
    cells, differences = cells_of(tables), differences_of(tables)
    arms = tuple(_facts(name, study, frozen.study, done, out) for name in study.arms)
    report = BudgetReport(
        title=study.title or study.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        ground=study.ground,
        metric=study.metric,
        study=frozen.text,
        versions=_versions(frozen, added),
        simulated=bool(study.cohorts) and all(choice.simulate for choice in study.cohorts.values()),
        planned=len(study.runs),
        finished=len(done),
        people=_people(study, ground),
        labelling=labelling_of(study, ground),
        counts=tuple(sorted(study.counts)),
        draws={count: study.draws_of(count) for count in sorted(study.counts)},
        seeds=study.seeds,
        arms=arms,
        cells=cells,
        differences=differences,
        choices=choices_of(tables, arms),
        square=square_of(study),
        cautions=_cautions(study, frozen.study, done, ground, arms),
        software={"machine": f"{platform.machine()}, {platform.system()}", "python": platform.python_version()}
        | {name: version(name) for name in ("oligovox", "torch", "monai", "numpy", "scipy")},
    )
    return report.model_copy(update={"saved": _saved(report, study, frozen.study)})


def _saved(report: BudgetReport, study: Study, before: Study) -> tuple[Saved, ...]:
    """For every comparison, how many labels the other arm needs for the same mean."""
    sign = 1.0 if study.higher_is_better else -1.0
    curves = {
        arm: {n: sign * mean for n in report.counts if (mean := _shown(report, arm, n)) is not None}
        for arm in study.arms
    }
    found = []
    for arm, against in comparisons(study, before):
        if study.arms[arm].classical or len(curves[against]) < 2:
            continue
        for count, score in curves[arm].items():
            needed = labels_needed(curves[against], score)
            highest = max(curves[against].values())
            beyond = "" if needed is not None else "more" if score > highest else "fewer"
            found.append(Saved(arm=arm, against=against, count=count, score=sign * score, needed=needed, beyond=beyond))
    return tuple(found)


def _shown(report: BudgetReport, arm: str, count: int) -> float | None:
    cell = report.cell(arm, count)
    return cell.metrics[report.metric].mean if cell else None


def _facts(name: str, study: Study, before: Study, done: Done, out: Path) -> ArmFacts:
    arm, results = study.arms[name], [result for run, result in done.items() if run.arm == name]
    trials = (
        [_read(out / Job("trial", name, study.seeds[0], lr).result) for lr in study.lr] if len(study.lr) > 1 else []
    )
    pre = [_read(out / pretraining_of(study, name, seed).result) for seed in study.seeds] if arm.pretext else []
    tried, made = [trial for trial in trials if trial], [one for one in pre if one]
    return ArmFacts(
        name=name, kind=kind_of(study, name), method=_method(study, name), exploratory=name not in before.arms,
        lr=next((result["lr"] for result in results if "lr" in result), None),
        tried={f"{trial['lr']:g}": trial["mean"] for trial in tried},
        steps=max((result["steps"] for result in results), default=0),
        seconds=_mean(result["seconds"] for result in results),
        memory_mb=_highest("memory_mb", results), gpu_memory_mb=_highest("gpu_memory_mb", results),
        pretraining_steps=max((one["steps"] for one in made), default=0),
        pretraining_seconds=_mean(one["seconds"] for one in made),
        trial_seconds=sum(trial["seconds"] for trial in tried) if tried else None,
    )  # fmt: skip


def _method(study: Study, name: str) -> str:
    """'swin_three_task, mean_teacher'."""
    arm = study.arms[name]
    semi = None if arm.classical else study.finetuning(name, lr=study.lr[0], seed=0).semi
    return ", ".join(filter(None, (arm.pretext, arm.classical, semi.name if semi else None)))


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(path) if path.is_file() else {}
    return content


def _highest(key: str, results: Iterable[Mapping[str, Any]]) -> float | None:
    return max((result[key] for result in results if result.get(key) is not None), default=None)


def _people(study: Study, ground: Ground) -> dict[str, int]:
    split = ground.split
    people = {
        "test": len(split.test),
        "validation": len(split.validation),
        "labels that may be drawn": len(split.train),
    }
    people |= {"kept apart": len(split.apart)} if split.apart else {}
    seen = [
        len(ground.pretraining(study, study.pretraining(n, seed=0))) for n, arm in study.arms.items() if arm.pretext
    ]
    return people | ({"pre-training": max(seen)} if seen else {})


def _versions(frozen: Frozen, added: Sequence[Frozen]) -> tuple[Version, ...]:
    found, last = [Version(date=frozen.date, sha256=frozen.sha256)], frozen.study
    for one in added:
        found.append(Version(date=one.date, sha256=one.sha256, words=_added(last, one.study)))
        last = one.study
    return tuple(found)


def _added(old: Study, new: Study) -> str:
    words = [f"arm {name}" for name in new.arms if name not in old.arms]
    words += [text.count(n, "label") for n in new.counts if n not in old.counts]
    more = {n: new.draws_of(n) - old.draws_of(n) for n in old.counts}
    words += [f"{text.count(draws, 'draw')} of {text.count(n, 'label')}" for n, draws in more.items() if draws]
    return ", ".join(words + [f"seed {seed}" for seed in new.seeds if seed not in old.seeds])


def _cautions(study: Study, before: Study, done: Done, ground: Ground, arms: Sequence[ArmFacts]) -> tuple[str, ...]:
    found, kinds = [], {arm.kind for arm in arms}
    if missing := len(study.runs) - len(done):
        found.append(f"Not finished: {missing} of {len(study.runs)} runs are missing. Do not decide anything yet.")
    fewest = min(study.draws_of(count) for count in study.counts)
    if fewest < _ENOUGH_DRAWS:
        found.append(f"Intervals over {text.count(fewest, 'draw')} are too narrow: where draws matter much, about 12 % miss the truth with 5 draws, "
                     f"20 % with 3, instead of 5 %. With fewer than {FEWEST_DRAWS} draws nothing is called a gain or a loss.")  # fmt: skip
    if full := [n for n in study.counts if n == len(ground.split.train)]:
        found.append(f"All draws of {full[0]} labels are the same people: there are no others.")
    if "scratch" not in kinds:
        found.append("No arm from scratch: nothing is compared.")
    if kinds & {*LEARNING} and "compute-matched scratch" not in kinds:
        found.append("No compute-matched scratch: a gain may be that of more steps.")
    steps = {study.arms[arm.name].extra_steps for arm in arms if arm.kind == "compute-matched scratch"}
    for arm in arms:
        if steps and study.arms[arm.name].pretext and study.pretraining(arm.name, seed=0).training.steps not in steps:
            found.append(f"{arm.name} has other pre-training steps than any compute-matched scratch has extra steps.")
    found += _unmatched(comparisons(study, before), {arm.name: arm for arm in arms})
    if "classical" not in kinds:
        found.append("No classical arm: a threshold may do as well.")
    for source, number in sorted(Counter(result[TAKEN] for result in done.values() if TAKEN in result).items()):
        found.append(f"{number} of {len(done)} runs were not computed in this study but taken over from study {source}; their results, and the time "
                     "and memory they took, were known before this one was frozen.")  # fmt: skip
    if len(versions := sorted({result["version"] for result in done.values()})) > 1:
        found.append(f"Runs were made by different versions of oligovox: {', '.join(versions)}.")
    return tuple(found)


def _unmatched(pairs: Iterable[tuple[str, str]], arms: Mapping[str, ArmFacts]) -> list[str]:
    """Compute-matched scratch has as many steps; where a step costs more than its own, nothing is matched."""
    found: dict[str, list[str]] = {}
    for name, against in pairs:
        arm, matched = arms[name], arms[against]
        if matched.kind == "compute-matched scratch" and arm.kind in LEARNING and arm.seconds and matched.seconds:
            ratio = (arm.seconds + (arm.pretraining_seconds or 0.0)) / matched.seconds
            if ratio > _MATCHED:
                found.setdefault(against, []).append(f"{name} {ratio:.1f}")
    return [
        f"{against} is matched in steps, not in measured seconds. Times as long a run, with its pre-training: {', '.join(names)}."
        for against, names in found.items()
    ]


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return fmean(defined) if defined else None
