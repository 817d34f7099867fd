"""The probe of `oligovox plan`: a little of the real work, in a process of its own, so that its peak memory is its own.

It prepares a case or two, or takes training steps by the one loop and predicts a case, with the settings of the recipe that is planned. Memory is the kernel's highest resident set (VmHWM), on a GPU what PyTorch reserved at most.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from errno import EDQUOT, ENOSPC
from math import ceil, prod
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from signal import SIGKILL
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from oligovox.cohort.manifest import Cohort
from oligovox.engine.fit import Augment, fit
from oligovox.engine.runtime import Runtime
from oligovox.errors import OligovoxError, RunError, SettingsError
from oligovox.experiment.needs import augmentation_of
from oligovox.experiment.recipe import Finetune, NetworkChoice, Predict, Pretrain, Stage
from oligovox.experiment.shrinking import is_out_of_memory
from oligovox.experiment.training import build_encoder, build_method, of_finetuning
from oligovox.infer.native import write_prediction
from oligovox.infer.window import corners, predict_case
from oligovox.metrics.judge import DEFAULT, protocol_settings, score_files
from oligovox.metrics.overlap import bounding_box
from oligovox.prepare.pipeline import check, prepare
from oligovox.prepare.store import Plan, Store
from oligovox.processes import end_with_parent
from oligovox.sample.augment import augment
from oligovox.sample.batch import Batch
from oligovox.sample.patches import PatchSource, Stream
from oligovox.settings import parse

WARM, FEWEST, MOST = 3, 4, 200
"""Steps that are not counted, and how few and how many are."""


Kind = Literal["prepare", "train"]


class OutOfMemory(Exception):
    """What was probed needs more memory than there is."""


class _Enough(Exception):
    """The probe has seen enough steps."""


@dataclass
class Stopwatch:
    """Given to `fit` as its augmentation, which it calls at the start of each step; ends the training when time is up.

    Attributes:
        augment: what augments.
        seconds: to spend; at least `FEWEST` steps are taken after `WARM` all the same.
        moments: (wall, CPU) seconds at the start of each step.
    """

    augment: Augment
    seconds: float
    moments: list[tuple[float, float]] = field(default_factory=list)

    def __call__(self, batch: Batch, rng: torch.Generator) -> Batch:
        """The batch, augmented.

        Raises:
            _Enough: time is up.
        """
        self.moments.append((time.perf_counter(), time.process_time()))
        counted = len(self.moments) - 1 - WARM
        if counted >= MOST or (counted >= FEWEST and self.moments[-1][0] - self.moments[0][0] >= self.seconds):
            raise _Enough
        return self.augment(batch, rng)

    def medians(self) -> tuple[float, float]:
        """Wall and CPU seconds of a step after the first ones."""
        steps = np.diff(np.array(self.moments), axis=0)
        wall, cpu = np.median(steps[min(WARM, len(steps) - 1) :], axis=0)
        return float(wall), float(cpu)

    def beginning(self, begun: tuple[float, float]) -> tuple[float, float]:
        """Wall and CPU seconds from a moment before the training until its steps run evenly, without what so many even steps take."""
        first = min(WARM, len(self.moments) - 1)
        wall, cpu = (
            max(0.0, now - then - first * each)
            for now, then, each in zip(self.moments[first], begun, self.medians(), strict=True)
        )
        return wall, cpu


def probe(kind: Kind, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a process of its own finds out; `probe_preparing` and `probe_training` say what is asked and answered.

    Raises:
        SettingsError: what is planned cannot run, in the words of what refused it.
        OutOfMemory: it does not fit, or the kernel killed the process.
        RunError: the process ended in another way; its own words are on stderr.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(kind, dict(asked), theirs, time.time()))
    process.start()
    theirs.close()
    try:
        found: dict[str, Any] = ours.recv()
    except EOFError:
        process.join()
        if process.exitcode == -SIGKILL:
            raise OutOfMemory("the process was killed") from None
        raise RunError(f"plan: the probe ended with exit code {process.exitcode} before it had measured") from None
    finally:
        process.kill()
        process.join()
        ours.close()
    if "refused" in found:
        raise SettingsError(f"plan: {found['refused']}")
    if "out_of_memory" in found:
        raise OutOfMemory("memory could not be had")
    return found


def _answer(kind: Kind, asked: Mapping[str, Any], answers: Connection, begun: float) -> None:
    """In the process: an error that was meant for people becomes a part of the answer.

    Args:
        kind: what is probed.
        asked: see there.
        answers: where the answer goes.
        begun: when the process was started, seconds since 1970; what has passed since then a run needs to start as well.
    """
    end_with_parent()
    start = {"seconds": time.time() - begun, "cpu": time.process_time()}
    try:
        found = {"start": start} | (probe_preparing(asked) if kind == "prepare" else probe_training(asked))
    except OligovoxError as error:
        found = {"refused": _full(error.__cause__) or str(error)}
    except OSError as error:
        if not (said := _full(error)):
            raise
        found = {"refused": said}
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        found = {"out_of_memory": True}
    answers.send(found)


def _full(error: BaseException | None) -> str:
    """What to do if an error says that the disk of temporary files is full; '' if it says something else."""
    full = isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT)
    return f"{tempfile.gettempdir()} is full; free some space, or set TMPDIR to a folder with room" if full else ""


def probe_preparing(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Check and prepare the cases of a table one by one; the last one counts, since the first pays for imports.

    Returns:
        seconds and cpu of a case; pool: seconds until processes that share the work have begun, and cpu of each of them; memory a case
        takes beside the process, and disk of all cases, in bytes; cases.
    """
    cohort, plan, store = Cohort.load(Path(asked["table"])), parse(Plan, asked["plan"], "probe"), Path(asked["store"])
    before, spent, checked = memory("VmRSS"), [0.0, 0.0], [0.0, 0.0]
    for last in range(1, len(cohort) + 1):
        begun = _now()
        one = Cohort(cases=cohort.cases[last - 1 : last], labels=cohort.labels)
        check(one, plan, workers=1)
        checked = _since(begun)
        prepare(Cohort(cases=cohort.cases[:last], labels=cohort.labels), plan, store, workers=1, checked=True)
        spent = _since(begun)
    disk = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    return {
        "seconds": spent[0],
        "cpu": spent[1],
        "memory": memory("VmHWM") - before,
        "disk": disk,
        "cases": len(cohort),
        "pool": _pool(cohort, plan, checked),
    }


def _pool(cohort: Cohort, plan: Plan, checked: list[float]) -> dict[str, float]:
    """What it costs to begin in processes: the cases are checked once more, two at a time, without what that takes (`checked`, wall and CPU)."""
    if len(cohort) < 2:
        return {"seconds": 0.0, "cpu": 0.0}
    begun, before = time.perf_counter(), getrusage(RUSAGE_CHILDREN)
    check(cohort, plan, workers=2)
    wall, after = time.perf_counter() - begun, getrusage(RUSAGE_CHILDREN)
    cpu = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 2
    return {"seconds": max(0.0, wall - checked[0]), "cpu": max(0.0, cpu - checked[1])}


def probe_training(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Steps of each stage, then a prediction, in the order of a run.

    Returns:
        "pretrain" (if asked) and "finetune": seconds and cpu a step, the same of the beginning, steps, checkpoint (bytes); "predict": see
        `_predicted`; "score": seconds and cpu of a case; "memory" and "gpu_memory": bytes at most; "start_memory": before the first step.
    """
    store, folder, seconds = Store.open(Path(asked["store"])), Path(asked["folder"]), float(asked["seconds"])
    network = parse(NetworkChoice, asked["network"], "probe: network")
    found: dict[str, Any] = {"start_memory": memory("VmRSS")}
    if asked["pretrain"]:
        stage = parse(Pretrain, asked["pretrain"], "probe: pretrain")
        streams = (Stream(store.cases, stage.batch, use_labels=False),)
        _, found["pretrain"] = _timed(stage.method, stage.settings, network, stage, streams, store, folder / "pretrain",
                                      0.4 * seconds)  # fmt: skip
    last = parse(Finetune, asked["finetune"], "probe: finetune")
    policy: Literal["lesion", "foreground"] = "lesion" if any(c.lesion_voxels for c in store.labelled) else "foreground"
    method, settings = of_finetuning(last, store.labels)
    streams = (Stream(store.labelled, last.batch, policy, last.lesion_share),)
    trained, found["finetune"] = _timed(
        method, settings, network, last, streams, store, folder / "finetune", 0.4 * seconds
    )
    options = parse(Predict, asked["predict"], "probe: predict")
    found["predict"] = _predicted(trained, store, last, options, folder / "predictions", 0.2 * seconds)
    found["score"] = _scored(store)
    gpu = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    return found | {"memory": memory("VmHWM"), "gpu_memory": gpu}


def _timed(
    name: str,
    settings: Mapping[str, Any],
    network: NetworkChoice,
    stage: Stage,
    streams: tuple[Stream, ...],
    store: Store,
    out: Path,
    seconds: float,
) -> tuple[nn.Module, dict[str, Any]]:
    """The exported network after some steps, and what they cost."""
    begun = _now()
    training = stage.training.model_copy(update={"tensorboard": "off"})
    torch.manual_seed(training.seed)
    method = build_method(name, settings, build_encoder(network, store.plan.modalities))
    source = PatchSource(store.plan, streams, stage.patch, training.seed)
    augmentation = augmentation_of(name, method, stage)
    watch = Stopwatch(lambda batch, rng: augment(batch, augmentation, rng), seconds)
    with suppress(_Enough):
        fit(method, source.batch, training, out, augment=watch, progress=False)
    (wall, cpu), beginning = watch.medians(), watch.beginning(begun)
    state = sum(t.numel() * t.element_size() for t in method.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in method.parameters() if p.requires_grad)
    moments = {"adamw": 2, "sgd": 1}[training.optimizer]
    return method.export(), {
        "seconds": wall, "cpu": cpu, "begin_seconds": beginning[0], "begin_cpu": beginning[1],
        "steps": len(watch.moments) - 1, "memory": memory("VmHWM"),
        "checkpoint": state + moments * trained,
    }  # fmt: skip


def _predicted(
    network: nn.Module, store: Store, stage: Finetune, options: Predict, out: Path, seconds: float
) -> dict[str, Any]:
    """Predict the median case: all of it where that takes no longer than `seconds`, else a few windows that stand for all.

    Returns:
        seconds and cpu of a case, those of the windows that validation takes, and bytes that are written.
    """
    case = sorted(store.cases, key=lambda case: prod(case.shape))[len(store) // 2]
    runtime, box = Runtime(stage.training), bounding_box(case.foreground())
    sides = [side.stop - side.start for side in box]
    batches = {overlap: ceil(len(corners(sides, stage.patch, overlap)) / 2) for overlap in (options.overlap, 0.25)}
    flips = 8 if options.mirror else 1
    each = _window_seconds(network, store.plan, stage, runtime)
    cost = [flips * batches[options.overlap] * value for value in each]
    probabilities = np.zeros((1 + len(store.labels), *case.shape), dtype=np.float32)
    if cost[0] <= max(seconds, 1.0):
        begun = _now()
        probabilities = predict_case(network, case, store.plan, patch=stage.patch, overlap=options.overlap,
                                     mirror=options.mirror, device=runtime.device, precision=runtime.precision)  # fmt: skip
        cost = _since(begun)
    begun = _now()
    write_prediction(probabilities, case, store.labels, out, plan=store.plan, model_hash="probe")
    writing = _since(begun)
    share = batches[0.25] / (flips * batches[options.overlap])
    return {
        "seconds": cost[0] + writing[0], "cpu": cost[1] + writing[1],
        "validation_seconds": share * cost[0], "validation_cpu": share * cost[1],
        "disk": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
    }  # fmt: skip


def _scored(store: Store) -> dict[str, float]:
    """Seconds and cpu of scoring a case whose prediction is right; 0 where no file of a whole label is there."""
    files = [case.sources["label"] for case in store.labelled if "label" in case.sources and not case.sparse]
    label = next((Path(file) for file in files if Path(file).is_file()), None)
    if label is None:
        return {"seconds": 0.0, "cpu": 0.0}
    begun = _now()
    score_files((label, label), protocol=DEFAULT, settings=protocol_settings(DEFAULT, {}, store.labels))
    wall, cpu = _since(begun)
    return {"seconds": wall, "cpu": cpu}


def _window_seconds(network: nn.Module, plan: Plan, stage: Stage, runtime: Runtime) -> list[float]:
    """Wall and CPU seconds of a batch of two windows."""
    image = torch.randn(2, len(plan.modalities), *stage.patch, device=runtime.device)
    present = torch.ones(2, len(plan.modalities), dtype=torch.bool, device=runtime.device)
    network.eval()
    times = []
    with torch.inference_mode(), runtime.autocast():
        for _ in range(4):
            begun = _now()
            answer: Tensor = network(image, present)
            answer.float().softmax(1).sum().item()  # waits for the device
            times.append(_since(begun))
    return [median(column) for column in zip(*times[1:], strict=True)]


def memory(key: Literal["VmHWM", "VmRSS"]) -> int:
    """Bytes of this process, at most so far or now; 0 elsewhere than on Linux."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(begun: tuple[float, float]) -> list[float]:
    return [time.perf_counter() - begun[0], time.process_time() - begun[1]]
