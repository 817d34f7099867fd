"""The one training loop. A pretext, a semi-supervised strategy and a supervised task all run through `fit`.

Everything random in a step is a pure function of (seed, step, micro-batch), and so is the order of the data: a run that was killed and
started again has, on the CPU and with as many threads, bit for bit the weights of one that was not.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, AdamW, Optimizer

from oligovox.engine.checkpoint import Checkpoints, State, difference, load_weights, read_state, restore
from oligovox.engine.log import RunLog
from oligovox.engine.runtime import Hardware, Interrupt, Runtime
from oligovox.errors import CheckpointError, NonFiniteLoss, RunError, SettingsError
from oligovox.files import check_writable
from oligovox.method import Clock, Losses, Method
from oligovox.sample.batch import Batch
from oligovox.sample.prefetch import Prefetch, prefetch
from oligovox.settings import silent

AnyMethod = Method[Any]
Augment = Callable[[Batch, torch.Generator], Batch]
Validate = Callable[[AnyMethod], Mapping[str, float]]


class Training(Hardware):
    """How a method is trained."""

    steps: PositiveInt = Field(1000, description="optimiser steps of the whole schedule")
    stop_at: PositiveInt | None = silent(
        None, description="optimiser steps after which it ends in the midst of the schedule; null: at its end"
    )
    accumulate: PositiveInt = Field(1, description="micro-batches per optimiser step, in each process")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="sgd: Nesterov, momentum 0.9")
    lr: PositiveFloat = Field(1e-3, description="highest learning rate")
    final_lr: float = Field(0.0, ge=0, description="learning rate at which the cosine ends")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the rate rises linearly")
    weight_decay: float = Field(1e-2, ge=0, description="not of biases and norms (one-dimensional parameters)")
    clip: PositiveFloat | None = Field(1.0, description="largest norm of the whole gradient; None: not clipped")
    seed: int = Field(0, ge=0, description="of the first weights, the order of the data and every draw")
    checkpoint_every: PositiveInt = Field(200, description="optimiser steps")
    validate_every: PositiveInt = Field(200, description="optimiser steps")
    prefetch: PositiveInt = Field(4, description="micro-batches made ahead")
    workers: PositiveInt = Field(2, description="threads that make them")
    tensorboard: Literal["auto", "off"] = Field("auto", description="auto: written where TensorBoard is installed")

    @field_validator("tensorboard", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads a bare off as False

    @property
    def taken(self) -> int:
        """Optimiser steps that are taken."""
        return min(self.steps, self.stop_at or self.steps)


# What may change when a run goes on: where and how often, not what is learned. Precision and accumulation are compared as they come out.
_FREE = {"device", "precision", "threads", "channels_last", "compile", "accumulate"}
_FREE |= {"checkpoint_every", "validate_every", "prefetch", "workers", "tensorboard"}


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What `fit` hands back.

    Attributes:
        method: the method that was trained, with its last weights.
        steps: optimiser steps done in all.
        best: highest validation value; None without validation.
        best_step: optimiser steps done when it was reached.
        seconds: wall time of this call's training.
        waited_seconds: part of it spent waiting for data.
        log: RUN/log.jsonl.
        last: checkpoint folder of the last state.
        chosen: checkpoint folder of the best state; of the last one without validation.
    """

    method: AnyMethod
    steps: int
    best: float | None
    best_step: int | None
    seconds: float
    waited_seconds: float
    log: Path
    last: Path
    chosen: Path

    def best_method(self) -> AnyMethod:
        """The method, now with the best weights (the last ones without validation)."""
        load_weights(self.chosen, self.method)
        return self.method


def fit(
    method: AnyMethod,
    batches: Callable[[int, int], Batch],
    training: Training,
    out: Path,
    *,
    runtime: Runtime | None = None,
    augment: Augment | None = None,
    validate: Validate | None = None,
    best_by: str = "dice",
    describe: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> FitResult:
    """Train a method. Where `out` holds checkpoints the run goes on from the last; a finished one returns at once.

    Args:
        method: trained in place; parameters that require no gradient stay as they are.
        batches: (step, micro) → Batch on the CPU; a pure function, called in threads. `micro` counts over all processes.
        training: settings.
        out: run folder: checkpoints/, log.jsonl.
        runtime: where to compute; made from `training` if not given.
        augment: (batch, generator) → batch, on the device.
        validate: method → metrics; called in the main process, in eval mode, without gradient, under autocast.
        best_by: the metric to be maximised; the checkpoint with its highest value is kept beside the last one.
        describe: plain JSON of what else makes the run what it is; compared on resume, but for keys named "version".
        progress: show the progress line.

    Raises:
        CheckpointError: `out` holds a run with other settings or another architecture, or is damaged.
        NonFiniteLoss: a loss term or the gradient became NaN or infinite; the weights are those before this step.
        RunError: stopped by SIGTERM or Ctrl-C, after saving.
        OutputError: `out` cannot be written.
    """
    check_writable(out)
    runtime = runtime or Runtime(training)
    runtime.place(method)
    optimizer = build_optimizer(method, training)
    checkpoints = Checkpoints(out / "checkpoints")
    state = _start(method, optimizer, checkpoints, _identity(training, runtime, describe or {}), runtime)
    log = RunLog(out / "log.jsonl", state.step, training.taken, active=runtime.is_main, progress=progress,
                 tensorboard=training.tensorboard == "auto")  # fmt: skip
    begun = time.perf_counter()
    with (
        log,
        _stream(batches, training, runtime, state.step) as stream,
        Interrupt() as interrupt,
        runtime.own_randomness(),
    ):
        steps = range(state.step, training.taken)
        for row, stop in _steps(method, optimizer, stream, augment, training, runtime, interrupt, steps):
            state = replace(state, step=row["step"] + 1)
            if validate and _due(state.step, training.validate_every, training.taken):
                row["validation"] = _validated(method, validate, best_by, runtime)
                state = _better(state, row["validation"][best_by])
            log.write(row)
            best = state.best_step == state.step
            if runtime.is_main and (best or stop or _due(state.step, training.checkpoint_every, training.taken)):
                checkpoints.save(method, optimizer, state, best=best)
            if stop and state.step < training.taken:
                raise RunError(f"stopped by {interrupt.signal or 'a signal'} after step {state.step} of {training.taken}; "
                               f"all of it is saved in {checkpoints.folder}, run the same command again to go on")  # fmt: skip
    runtime.barrier()  # the main process may still be saving
    last = checkpoints.find("last")
    assert last is not None  # the last step saves
    return FitResult(
        method=method,
        steps=state.step,
        best=state.best,
        best_step=state.best_step,
        seconds=time.perf_counter() - begun,
        waited_seconds=stream.waited,
        log=log.path,
        last=last,
        chosen=checkpoints.find("best") or last,
    )


def _steps(
    method: AnyMethod,
    optimizer: Optimizer,
    stream: Prefetch[Batch],
    augment: Augment | None,
    training: Training,
    runtime: Runtime,
    interrupt: Interrupt,
    steps: range,
) -> Iterator[tuple[dict[str, Any], bool]]:
    """Take the optimiser steps; after each, hand over its row for the log, and whether a process was asked to stop."""
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    method.train()
    for step in steps:
        clock, tally = Clock(step, training.steps), _Tally(step, stream)
        for micro in range(training.accumulate):
            batch = next(stream).to(runtime.device)
            rng = runtime.seeded(training.seed, step, runtime.rank * training.accumulate + micro)
            with torch.no_grad():
                views = method.views(augment(batch, rng) if augment else batch, rng)
            with runtime.autocast():
                losses = method.losses(views, clock)
            runtime.backward(losses.total / training.accumulate)
            tally.add(losses, batch.cases)
        runtime.average_gradients(trained)
        norm = clip_grad_norm_(trained, training.clip or math.inf)
        row, stop = tally.close(norm, interrupt, runtime)  # the step's one wait for the device; NonFiniteLoss
        row["lr"] = lr_at(step, training)
        for group in optimizer.param_groups:
            group["lr"] = row["lr"]
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            method.after_step(_detached(losses, runtime), clock)
        yield row | tally.times(), stop


def lr_at(step: int, training: Training) -> float:
    """Learning rate of a step: a linear rise that reaches `lr` in the last warm-up step, then a cosine towards `final_lr`."""
    warm = round(training.warmup * training.steps)
    if step < warm:
        return training.lr * (step + 1) / warm
    share = (step - warm) / (training.steps - warm)
    return training.final_lr + (training.lr - training.final_lr) * 0.5 * (1 + math.cos(math.pi * share))


def build_optimizer(method: AnyMethod, training: Training) -> Optimizer:
    """Over all parameters that require a gradient; weight decay on those with more than one dimension.

    Raises:
        SettingsError: there are none.
    """
    trained = [p for p in method.parameters() if p.requires_grad]
    if not trained:
        raise SettingsError(f"{type(method).__name__} has no parameter that requires a gradient: nothing to train")
    wide, narrow = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    kinds = ((wide, training.weight_decay), (narrow, 0.0))
    groups = [{"params": params, "weight_decay": decay} for params, decay in kinds if params]
    if training.optimizer == "sgd":
        return SGD(groups, lr=training.lr, momentum=0.9, nesterov=True)
    return AdamW(groups, lr=training.lr)


class _Tally:
    """Loss terms of one optimiser step; they stay on the device until `close`, which fetches all of them at once."""

    def __init__(self, step: int, stream: Prefetch[Batch]) -> None:
        self._step, self._stream = step, stream
        self._begun, self._waited = time.perf_counter(), stream.waited
        self._names: list[str] = []
        self._values: list[Tensor] = []
        self._cases: list[tuple[str, ...]] = []
        self._weights: Mapping[str, float] = {}
        self._notes: Mapping[str, float] = {}

    def add(self, losses: Losses, cases: tuple[str, ...]) -> None:
        """One micro-batch."""
        names = list(losses.terms)
        if self._values and names != self._names:
            raise RunError(f"step {self._step}: loss terms {self._names}, then {names} in the next micro-batch; "
                           "a method must return the same terms for every batch (0 where one does not apply)")  # fmt: skip
        self._names, self._weights, self._notes = names, losses.weights, losses.notes
        self._values.append(torch.stack([term.detach().float() for term in losses.terms.values()]))
        self._cases.append(cases)

    def close(self, norm: Tensor, interrupt: Interrupt, runtime: Runtime) -> tuple[dict[str, Any], bool]:
        """The log row, with terms averaged over the micro-batches of all processes, and whether any process was asked to stop.

        Raises:
            NonFiniteLoss: in every process, whichever saw it.
        """
        own = torch.stack(self._values)
        asked = torch.full((1,), float(interrupt.signal is not None), device=own.device)
        shared = runtime.mean(torch.cat([own.mean(0), norm.detach().float().view(1), asked]))
        fetched = torch.cat([shared, own.flatten()]).tolist()
        *terms, norm_value, stop = fetched[: len(self._names) + 2]
        named = dict(zip(self._names, terms, strict=True))
        for name, value in {**named, "gradient norm": norm_value}.items():
            if not math.isfinite(value):
                raise self._non_finite(name, value, fetched[len(self._names) + 2 :], runtime)
        total = sum(self._weights.get(name, 1.0) * value for name, value in named.items())
        row = {"step": self._step, "lr": 0.0, "total": total, "terms": named, "notes": dict(self._notes)}
        return row | {"norm": norm_value}, stop > 0

    def times(self) -> dict[str, float]:
        """Wall seconds since the step began, and those of them spent waiting for data."""
        return {"seconds": time.perf_counter() - self._begun, "waited": self._stream.waited - self._waited}

    def _non_finite(self, term: str, value: float, own: list[float], runtime: Runtime) -> NonFiniteLoss:
        """The error, with the cases of those micro-batches, in any process, in which the term is not finite."""
        here = list(self._cases)
        if term in self._names:
            found = own[self._names.index(term) :: len(self._names)]
            here = [cases for cases, each in zip(self._cases, found, strict=True) if not math.isfinite(each)]
        everywhere = [cases for rank in range(runtime.world) for cases in runtime.share(here, source=rank)]
        return NonFiniteLoss(self._step, term, value, [case for cases in everywhere for case in cases])


def _start(
    method: AnyMethod, optimizer: Optimizer, checkpoints: Checkpoints, identity: dict[str, Any], runtime: Runtime
) -> State:
    """Where to begin: the last checkpoint, or step 0 with the main process's weights in every process."""
    if runtime.is_main:
        checkpoints.tidy()
    folder = runtime.share(checkpoints.find("last") if runtime.is_main else None)
    if folder is None:
        if runtime.world > 1:
            method.load_state_dict(runtime.share({name: t.cpu() for name, t in method.state_dict().items()}))
        return State(step=0, identity=identity)
    state = read_state(folder)
    if found := difference(state.identity, identity):
        raise CheckpointError(f"{checkpoints.folder}: the run in it has {found}; "
                              "use the same settings to go on, or another output folder to start anew")  # fmt: skip
    restore(folder, method, optimizer)
    return state


def _identity(training: Training, runtime: Runtime, describe: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for a run to go on, as plain JSON."""
    settings: dict[str, Any] = training.model_dump(mode="json", exclude=_FREE)
    settings |= {"precision": runtime.precision, "micro_batches": training.accumulate * runtime.world}
    plain: dict[str, Any] = json.loads(json.dumps({"training": settings, "describe": dict(describe)}))
    return plain


def _stream(batches: Callable[[int, int], Batch], training: Training, runtime: Runtime, start: int) -> Prefetch[Batch]:
    """This process's micro-batches, from step `start` on, in order, made ahead."""
    per_step = training.accumulate

    def make(index: int) -> Batch:
        step, micro = divmod(index, per_step)
        return runtime.pinned(batches(step, runtime.rank * per_step + micro))

    first, stop = start * per_step, training.taken * per_step
    return prefetch(make, first, stop, depth=training.prefetch, workers=training.workers)


def _detached(losses: Losses, runtime: Runtime) -> Losses:
    """What `after_step` gets: no graph; in every process the last process's, so that all of them keep the same queues and centres."""
    terms = {name: t.detach() for name, t in losses.terms.items()}
    carry = {name: t.detach() for name, t in losses.carry.items()}
    if runtime.world > 1:
        last = runtime.world - 1
        terms, carry = runtime.share([{name: t.cpu() for name, t in part.items()} for part in (terms, carry)], last)
        terms, carry = ({name: t.to(runtime.device) for name, t in part.items()} for part in (terms, carry))
    return replace(losses, terms=terms, carry=carry)


def _validated(method: AnyMethod, validate: Validate, best_by: str, runtime: Runtime) -> dict[str, float]:
    metrics: dict[str, float] = {}
    if runtime.is_main:
        method.eval()
        with torch.no_grad(), runtime.autocast():
            metrics = {name: float(value) for name, value in validate(method).items()}
        method.train()
        if best_by not in metrics:
            raise SettingsError(
                f"best_by = '{best_by}', but validation returns {', '.join(metrics) or 'nothing'}; choose one of these"
            )
    return runtime.share(metrics)


def _better(state: State, value: float) -> State:
    """The state, with a new best where `value` is finite and higher than every one before."""
    if math.isfinite(value) and value > (-math.inf if state.best is None else state.best):
        return replace(state, best=value, best_step=state.step)
    return state


def _due(done: int, every: int, total: int) -> bool:
    return done % every == 0 or done == total
