"""One job for each case, in worker processes; whatever goes wrong carries the name of the case."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Generic, TypeVar, cast

from oligovox.errors import InputError, WorkerError
from oligovox.processes import end_with_parent

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class _Failure:
    """An exception as plain data: our error classes do not survive pickling, since they build their own message."""

    kind: type[InputError] | None  # None: not one of ours
    message: str
    state: Mapping[str, Any]
    trace: str

    def raised(self, case: str) -> InputError | WorkerError:
        """The exception to raise in the parent: of the same class, its message headed by the case."""
        if self.kind is None:
            error: InputError | WorkerError = WorkerError(case, self.message)
            error.add_note(self.trace)
            return error
        error = self.kind.__new__(self.kind, f"{case}: {self.message}")
        error.__dict__.update(self.state)
        return error


@dataclass(frozen=True)
class _Outcome(Generic[R]):
    """What became of a case: what the job returned, or why it failed."""

    result: R | None = None
    failure: _Failure | None = None


def run_cases(job: Callable[[T], R], cases: Mapping[str, T], workers: int, done: Callable[[str], None]) -> dict[str, R]:
    """Run `job` on every case; stops at the first failure, after the cases in flight.

    Args:
        job: a module-level function (it is sent to other processes); what it returns is sent back, so it should be small.
        cases: name → argument.
        workers: processes; 1 runs everything in this one.
        done: called with the name after each success, in this process.

    Returns:
        Name → what the job returned, in the order of `cases`.

    Raises:
        InputError: what the job raised, of the same class, with the name of the case before the message.
        WorkerError: anything else the job raised, or a worker that was killed.
    """
    found: dict[str, R] = {}
    if workers <= 1 or len(cases) <= 1:
        for name, argument in cases.items():
            _settle(name, _attempt(job, argument), found, done)
        return found
    count, spawn = min(workers, len(cases)), get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=spawn, initializer=end_with_parent) as pool:
        _feed(pool, job, iter(cases.items()), count, found, done)
    return {name: found[name] for name in cases}


def _feed(
    pool: ProcessPoolExecutor,
    job: Callable[[T], R],
    waiting: Iterator[tuple[str, T]],
    workers: int,
    found: dict[str, R],
    done: Callable[[str], None],
) -> None:
    """Keep as many cases in flight as there are workers, no more: so it is known which ones a dead worker took along."""
    flying: dict[Future[_Outcome[R]], str] = {}
    try:
        while True:
            while len(flying) < workers and (following := next(waiting, None)):
                name, argument = following
                flying[pool.submit(_attempt, job, argument)] = name
            if not flying:
                return
            finished, _ = wait(flying, return_when=FIRST_COMPLETED)
            for future in finished:
                outcome = future.result()
                _settle(flying.pop(future), outcome, found, done)
    except BrokenProcessPool as error:
        names = ", ".join(sorted(flying.values())) or "no case"
        cause = (
            "a worker process was killed while on these, probably out of memory; use fewer workers "
            "(in a script of your own: start below `if __name__ == '__main__':`)"
        )
        raise WorkerError(names, cause) from error


def _settle(name: str, outcome: _Outcome[R], found: dict[str, R], done: Callable[[str], None]) -> None:
    if outcome.failure:
        raise outcome.failure.raised(name)
    found[name] = cast(R, outcome.result)  # the job may well return None
    done(name)


def _attempt(job: Callable[[T], R], argument: T) -> _Outcome[R]:
    try:
        return _Outcome(result=job(argument))
    except InputError as error:
        return _Outcome(failure=_Failure(type(error), str(error), dict(error.__dict__), traceback.format_exc()))
    except Exception as error:
        return _Outcome(failure=_Failure(None, f"{type(error).__name__}: {error}", {}, traceback.format_exc()))
