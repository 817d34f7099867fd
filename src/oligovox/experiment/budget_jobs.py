"""The pieces of work of a label-budget study: pre-trainings, trials of learning rates, runs. Each one is claimed, done once, and ends in one file.

    pretrain/<arm>/s<seed>/             pre-training, once a seed, for all   pretrained.json
                                        arms that differ only afterwards
    trials/<arm>/lr<rate>/              one learning rate of the grid        trial.json
    runs/<arm>/n<n>_d<draw>_s<seed>/    one training and its test            scores.json

Test people are predicted in a run only, once, after its training. A trial sees the labels of `tune` and is scored on validation people.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from oligovox.engine.log import read_log, say
from oligovox.errors import NonFiniteLoss, RunError, SettingsError
from oligovox.experiment.budget_claims import awaited, claimed
from oligovox.experiment.budget_ground import Ground
from oligovox.experiment.budget_plan import Run, Study
from oligovox.experiment.budget_scoring import (
    HALF,
    Scores,
    lesion,
    limits_of,
    mean_of,
    operating_point,
    predicted,
    score_people,
    scored_at,
)
from oligovox.experiment.threshold import fit_threshold
from oligovox.experiment.verbs import finetune, pretrain
from oligovox.files import read_json, write_json

NUMERICS = 2
"""Raised where a change of the code changes what the same study gives. 2, since 1 December 2026: heads on standardised features, teachers that forget their first
weights in short trainings, coarse labels of thin masks, operating points below 0.1. A result without a number is 1."""

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """A piece of work.

    Attributes:
        kind: what it is.
        arm: for which arm.
        seed: with which seed.
        lr: the learning rate that a trial tries.
        run: the run, for a run.
    """

    kind: Literal["pretrain", "trial", "run"]
    arm: str
    seed: int
    lr: float = 0.0
    run: Run | None = None

    @property
    def folder(self) -> Path:
        """Where it works, in the folder of the study."""
        if self.run:
            return self.run.folder
        return (
            Path("trials", self.arm, f"lr{self.lr:g}")
            if self.kind == "trial"
            else Path("pretrain", self.arm, f"s{self.seed}")
        )

    @property
    def result(self) -> Path:
        """The file that it ends with, in the folder of the study."""
        return self.folder / {"pretrain": "pretrained.json", "trial": "trial.json", "run": "scores.json"}[self.kind]

    @property
    def name(self) -> str:
        """Its name among the claims."""
        return "_".join(self.folder.parts)


def jobs_of(study: Study, runs: Iterable[Run], out: Path | None = None) -> list[Job]:
    """The runs, with all they need before them: trials of scratch arms first, then pre-trainings, then the other trials.

    Args:
        study: what is asked.
        runs: those that must be done at the end.
        out: folder of the study; runs that are finished in it need nothing any more.
    """
    wanted = [Job("run", run.arm, run.seed, run=run) for run in runs]
    open_ = [job for job in wanted if out is None or not (out / job.result).is_file()]
    needed = dict.fromkeys(before for job in open_ for before in _all_needs(study, job))
    arms = list(study.arms)
    return [
        *sorted(needed, key=lambda job: (bool(study.arms[job.arm].pretext), job.kind, arms.index(job.arm))),
        *wanted,
    ]


def needs(study: Study, job: Job) -> tuple[Job, ...]:
    """What must be done before a piece of work."""
    arm = study.arms[job.arm]
    if arm.classical or job.kind == "pretrain":
        return ()
    start = (pretraining_of(study, job.arm, job.seed),) if arm.pretext else ()
    trials = (
        (Job("trial", job.arm, study.seeds[0], lr) for lr in study.lr)
        if job.kind == "run" and len(study.lr) > 1
        else ()
    )
    return (*start, *trials)


def pretraining_of(study: Study, arm: str, seed: int) -> Job:
    """The pre-training that an arm starts from; it bears the name of the first arm that has the same."""
    asked = study.arms[arm].origin
    return Job("pretrain", next(name for name, other in study.arms.items() if other.origin == asked), seed)


def _all_needs(study: Study, job: Job) -> list[Job]:
    found = []
    for before in needs(study, job):
        found += [*_all_needs(study, before), before]
    return found


def work(study: Study, ground: Ground, out: Path, runs: Iterable[Run], note: Callable[[int, int, str], None]) -> None:
    """Do these runs and what they need, sharing the work with every other process on the folder; ends when all of it is done.

    Args:
        study: what is asked.
        ground: store and people.
        out: folder of the study.
        runs: those that must be done at the end.
        note: called with (done, in all, name) before each piece of work that this process does.

    Raises:
        OligovoxError: a piece of work failed here; what is finished stays.
    """
    jobs = jobs_of(study, runs, out)
    todo = jobs
    while todo := [job for job in todo if not (out / job.result).is_file()]:
        ready = [job for job in todo if all((out / before.result).is_file() for before in needs(study, job))]
        if not any(_attempt(job, study, ground, out, partial(note, len(jobs) - len(todo), len(jobs))) for job in ready):
            time.sleep(_WAIT_SECONDS)  # the rest is being done elsewhere


def check_numerics(study: Study, out: Path) -> None:
    """Whether what is finished in the folder was computed by code that gives the results of today's; asked only where something is left to do.

    Raises:
        SettingsError: it was not; says which.
    """
    jobs = jobs_of(study, study.runs)
    finished = [job for job in jobs if (out / job.result).is_file()]
    if len(finished) == len(jobs):
        return
    for job in finished:
        if other := other_code(read_json(out / job.result)):
            raise SettingsError(
                f"{out}: {job.folder} was {other}; choose another --out, or go on with the version of oligovox that began it"
            )


def other_code(result: Mapping[str, Any]) -> str | None:
    """'computed by code that gave other results (numerics 1, now 2)', where a result was; else None."""
    numerics = result.get("numerics", 1)
    if numerics == NUMERICS:
        return None
    return f"computed by code that gave other results (numerics {numerics}, now {NUMERICS})"


def _attempt(job: Job, study: Study, ground: Ground, out: Path, note: Callable[[str], None]) -> bool:
    """Do a piece of work, unless somebody else does; whether it was done here."""
    with claimed(out / "claims" / job.name) as ours:
        if not ours or (out / job.result).is_file():
            return False
        note(job.folder.as_posix())
        {"pretrain": _pretrain, "trial": _trial, "run": _run}[job.kind](job, study, ground, out)
    if job.kind == "trial":
        write_choices(study, out)
    return True


def _pretrain(job: Job, study: Study, ground: Ground, out: Path) -> None:
    stage, folder = study.pretraining(job.arm, seed=job.seed), out / job.folder
    people = ground.pretraining(study, stage)
    memory = _Memory()
    pretrain(ground.store, folder, stage=stage, network=study.network, people=people)
    write_json(out / job.result, {**_cost(folder, memory), "people": people})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _trial(job: Job, study: Study, ground: Ground, out: Path) -> None:
    """One learning rate; a rate at which training diverges is a result as well."""
    folder, memory = out / job.folder, _Memory()
    people = ground.labels(study, study.tune.count, study.tune.draw)
    result: dict[str, Any] = {"lr": job.lr, "labels": people}
    try:
        model = _finetuned(job, study, ground, out, people, lr=job.lr, draw=study.tune.draw)
        found = scored_at(predicted(model, ground.split.validation, study, ground.store), limits_of(study))
        scores = found[limit := operating_point(found, study)]
        result |= {"validation": scores, "mean": mean_of(scores, study.metric), **_limit(limit)}
    except NonFiniteLoss as error:
        say(f"{job.folder}: diverged ({error})")
        result |= {"validation": {}, "mean": None, "diverged": str(error)}
    write_json(out / job.result, result | _cost(folder, memory))
    for left in ("checkpoints", "model"):  # no run goes on from a trial
        shutil.rmtree(folder / left, ignore_errors=True)


def _run(job: Job, study: Study, ground: Ground, out: Path) -> None:
    run, folder, memory = job.run, out / job.folder, _Memory()
    assert run is not None, "a run has one"
    people = ground.labels(study, run.count, run.draw)
    more: dict[str, Any]
    if study.arms[job.arm].classical:
        fitted = fit_threshold(ground.store.of(people), ground.store.plan, study.threshold(job.arm))
        test = ground.store.of(ground.split.test)
        scores: Scores = score_people(test, lambda case: {"": (fitted.mask(case), lesion(case))})
        more = {"threshold": fitted.limit, "smoothing_mm": fitted.smoothing_mm}
    else:
        lr = chosen_lr(study, job.arm, out)
        model = _finetuned(job, study, ground, out, people, lr=lr, draw=run.draw)
        limit, more = HALF, {"lr": lr}
        if study.operating_point == "validation":
            validated = scored_at(predicted(model, ground.split.validation, study, ground.store), limits_of(study))
            limit = operating_point(validated, study)
            more["validation"] = mean_of(validated[limit], study.metric)
        scores = scored_at(predicted(model, ground.split.test, study, ground.store), (limit,))[limit]
        more |= _limit(limit)
    own = {"arm": run.arm, "count": run.count, "draw": run.draw, "seed": run.seed, "labels": people}
    written = {"version": version("oligovox"), "finished": datetime.now(UTC).isoformat(timespec="seconds")}
    write_json(out / job.result, own | more | _cost(folder, memory) | written | {"scores": scores})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _finetuned(
    job: Job, study: Study, ground: Ground, out: Path, people: tuple[str, ...], *, lr: float, draw: int
) -> Path:
    """The model folder. All arms have the same order of data in the same draw and seed."""
    stage = study.finetuning(job.arm, lr=lr, seed=1000 * job.seed + draw)
    start = out / pretraining_of(study, job.arm, job.seed).folder if study.arms[job.arm].pretext else None
    return finetune(
        ground.store,
        out / job.folder,
        stage=stage,
        network=study.network,
        start=start,
        people=people,
        split=ground.split,
    )


def write_choices(study: Study, out: Path) -> None:
    """Write chosen.json: the learning rate of every arm whose trials are finished, with all trials."""
    if len(study.lr) == 1:
        return
    with awaited(out / "claims" / "chosen"):
        found = {}
        for name, arm in study.arms.items():
            trials = [] if arm.classical else _trials(study, name, out)
            if trials and len(trials) == len(study.lr):
                tried = {f"{trial['lr']:g}": trial["mean"] for trial in trials}
                found[name] = {"lr": chosen_lr(study, name, out), "validation": tried}
        write_json(out / "chosen.json", {"metric": study.metric, **study.tune.model_dump(), "arms": found})


def chosen_lr(study: Study, arm: str, out: Path) -> float:
    """The rate with the best mean over validation people; of equal ones the lowest.

    Raises:
        RunError: training diverged, or nobody could be scored, at every rate.
    """
    if len(study.lr) == 1:
        return study.lr[0]
    sign = 1 if study.higher_is_better else -1
    scored: dict[float, float] = {
        trial["lr"]: sign * trial["mean"] for trial in _trials(study, arm, out) if trial["mean"] is not None
    }
    if not scored:
        raise RunError(f"arm {arm}: no learning rate of {list(study.lr)} gave a {study.metric} on validation people; "
                       "look at trials/, and start a study with other rates")  # fmt: skip
    return max(sorted(scored), key=lambda lr: scored[lr])


def _trials(study: Study, arm: str, out: Path) -> list[dict[str, Any]]:
    files = [out / Job("trial", arm, study.seeds[0], lr).result for lr in study.lr]
    return [read_json(file) for file in files if file.is_file()]


def _limit(limit: float) -> dict[str, float]:
    """Where a voxel is called, if that was chosen."""
    return {} if limit == HALF else {"operating_point": limit}


def _cost(folder: Path, memory: _Memory) -> dict[str, Any]:
    """Optimiser steps, seconds spent in them, and peak memory, and by which code; a classical rule takes no step."""
    rows = read_log(folder / "log.jsonl")
    return {
        "numerics": NUMERICS,
        "steps": len(rows),
        "seconds": round(sum(row["seconds"] for row in rows), 2),
        **memory.peak(),
    }


class _Memory:
    """Peak memory from now on: of the process, and of the GPU where there is one."""

    def __init__(self) -> None:
        self._cuda = torch.cuda.is_available()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        with suppress(OSError):  # Linux only
            _CLEAR_REFS.write_text("5")  # the high-water mark begins anew

    def peak(self) -> dict[str, float | None]:
        """In MB (10^6 bytes); None where it cannot be known."""
        try:
            lines = _STATUS.read_text(encoding="utf-8").splitlines()
        except OSError:
            lines = []
        process = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)
        gpu = torch.cuda.max_memory_allocated() if self._cuda else None
        return {"memory_mb": process and round(process / 1e6), "gpu_memory_mb": gpu and round(gpu / 1e6)}
