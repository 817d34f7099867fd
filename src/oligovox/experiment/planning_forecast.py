"""From what a probe measured to what a run will cost; arithmetic only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from oligovox.errors import SettingsError
from oligovox.experiment.planning_facts import Facts
from oligovox.experiment.planning_machine import GIB, Machine, in_words
from oligovox.experiment.recipe import Recipe

WORKER = 110 * 2**20
"""Bytes of a process that prepares, beside its case: Python with numpy, scipy and nibabel."""

BUSY = 0.7
"""CPU seconds over wall seconds, without a GPU; below it the processes waited for something."""

KEPT_CHECKPOINTS = 3
"""Of each training while it saves: the best, the last, the new one."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the probe found.

    Attributes:
        preparing: see `planning_probe.probe_preparing`; None where nothing is to be prepared.
        training: see `planning_probe.probe_training`.
        typical: voxels of the mean case over those of the probed ones.
        workers: processes that will prepare.
    """

    preparing: Mapping[str, Any] | None
    training: Mapping[str, Any]
    typical: float
    workers: int

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run will cost.

    Attributes:
        seconds: wall seconds of "start", "prepare", "pretrain", "finetune" (all arms, with validation, and the final model), "predict" and "score".
        cpu: CPU seconds of the same, of all processes.
        validation: part of "finetune" that is spent on validation, wall seconds.
        memory: bytes at most, all processes together.
        gpu_memory: bytes at most on the GPU.
        disk: bytes of "store", "checkpoints" and "predictions".
    """

    seconds: Mapping[str, float]
    cpu: Mapping[str, float]
    validation: float
    memory: int
    gpu_memory: int
    disk: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, in hours, GiB and CPU seconds."""
        hours = {stage: round(value / 3600, 4) for stage, value in self.seconds.items()}
        disk = {part: round(value / GIB, 4) for part, value in self.disk.items()}
        return {
            "hours": hours | {"total": round(sum(self.seconds.values()) / 3600, 4)},
            "cpu_seconds": {stage: round(value, 2) for stage, value in self.cpu.items()},
            "memory_gib": round(self.memory / GIB, 3),
            "gpu_memory_gib": round(self.gpu_memory / GIB, 3),
            "disk_gib": disk | {"total": round(sum(self.disk.values()) / GIB, 4)},
        }

    def lines(self) -> list[str]:
        """For people."""
        parts = ", ".join(f"{stage} {_time(value)}" for stage, value in self.seconds.items())
        disk = ", ".join(f"{part} {in_words(value)}" for part, value in self.disk.items())
        gpu = f", {in_words(self.gpu_memory)} of the GPU's" if self.gpu_memory else ""
        wall, cpu = sum(self.seconds.values()), sum(self.cpu.values())
        busy = [
            f"forecast: other work kept the machine busy while this was measured; alone it takes {_time(cpu)} or less"
        ]
        return [
            f"forecast: {_time(wall)} in all ({parts}); the page comes on top",
            *(busy if cpu < BUSY * wall and not self.gpu_memory else []),
            f"forecast: {in_words(self.memory)} of memory at most{gpu}; {in_words(sum(self.disk.values()))} of disk ({disk})",
        ]


def forecast(measured: Measured, recipe: Recipe, facts: Facts) -> Forecast:
    """What this recipe will cost."""
    found = {clock: _spent(measured, recipe, facts, clock) for clock in ("seconds", "cpu")}
    validation = found["seconds"].pop("validation")
    found["cpu"].pop("validation")
    training, preparing, cases = measured.training, measured.preparing, len(facts.exams)
    made = preparing["disk"] / preparing["cases"] * measured.typical * cases if preparing else 0
    checkpoints = [
        training[stage]["checkpoint"] for stage in ("pretrain", *["finetune"] * recipe.trainings) if stage in training
    ]
    tested = _cases_of(recipe.split.test, facts) * len(recipe.arms)
    # preparing happens in workers beside this process, which by then has not trained
    beside = measured.workers * (WORKER + preparing["memory"]) if preparing else 0
    return Forecast(
        seconds=found["seconds"],
        cpu=found["cpu"],
        validation=validation,
        memory=int(max(training["memory"], beside + training.get("start_memory", 0))),
        gpu_memory=int(training["gpu_memory"]),
        disk={
            "store": int(made),
            "checkpoints": int(KEPT_CHECKPOINTS * sum(checkpoints)),
            "predictions": int(tested * measured.typical * training["predict"]["disk"]),
        },
    )


def refuse(expected: Forecast, machine: Machine) -> None:
    """Say no where it cannot run.

    Raises:
        SettingsError: memory or disk does not suffice; with both numbers.
    """
    disk = sum(expected.disk.values())
    for what, needed, free in (
        ("memory", expected.memory, machine.memory),
        ("memory of the GPU", expected.gpu_memory, machine.gpu_memory if machine.gpu else expected.gpu_memory),
        ("disk", disk, machine.disk),
    ):
        if needed > free:
            raise SettingsError(
                f"{what}: the run needs {needed / GIB:.2f} GiB, {free / GIB:.2f} GiB are free; free some, or plan on another machine or disk"
            )


def _spent(measured: Measured, recipe: Recipe, facts: Facts, clock: str) -> dict[str, float]:
    """Stage → seconds by this clock."""
    training, preparing, arms = measured.training, measured.preparing, len(recipe.arms)
    tested, typical = _cases_of(recipe.split.test, facts), measured.typical
    predicting = training["predict"][clock] * typical
    watched = training["predict"][f"validation_{clock}"] * typical * _cases_of(recipe.split.validation, facts)
    first, last = recipe.pretrain, recipe.finetune.training
    validation = arms * ceil(last.steps / last.validate_every) * watched
    return {
        "start": training["start"][clock],
        # every file is read twice: checked, then prepared
        "prepare": _shared(preparing, len(facts.exams), typical, 2, measured, clock) if preparing else 0.0,
        "pretrain": _steps_of(training["pretrain"], first.training.steps, clock) if first else 0.0,
        "finetune": recipe.trainings * _steps_of(training["finetune"], last.steps, clock) + validation,
        "predict": arms * predicting * tested,
        "score": arms * _shared(training["score"], tested, typical, 1, measured, clock),
        "validation": validation,
    }


def _steps_of(stage: Mapping[str, Any], steps: int, clock: str) -> float:
    """Seconds of one training."""
    return float(stage[f"begin_{clock}"] + steps * stage[clock])


def _shared(work: Mapping[str, Any], cases: float, typical: float, pools: int, measured: Measured, clock: str) -> float:
    """Seconds of work on each case that worker processes share, which begin anew for each of so many pools; of one case there are none."""
    processes = min(measured.workers, ceil(cases))
    whole, pool = work[clock] * typical * cases, (measured.preparing or {}).get("pool")
    if processes < 2:
        return float(whole)
    begin = pools * pool[clock] if pool else 0.0
    return float(whole / processes + begin if clock == "seconds" else whole + processes * begin)


def _cases_of(people: int | tuple[str, ...], facts: Facts) -> float:
    """Cases of so many people."""
    count = people if isinstance(people, int) else len(people)
    return count * len(facts.exams) / facts.people


def _time(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} h"
        if seconds >= 3600
        else f"{seconds / 60:.1f} min"
        if seconds >= 60
        else f"{seconds:.0f} s"
    )
