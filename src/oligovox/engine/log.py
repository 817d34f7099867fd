"""Log: what a run says. RUN/log.jsonl for machines, TensorBoard where it is installed, one line of progress for people."""

from __future__ import annotations

import json
import math
import os
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from oligovox.files import atomic_file

_console = Console(stderr=True)


def say(text: str) -> None:
    """One line for people, on stderr, above a progress bar where one runs; silent in every process but the main one."""
    if in_main_process():
        _console.print(text, markup=False, highlight=False, soft_wrap=True)


def in_main_process() -> bool:
    """Whether this is the process that speaks: the only one, or rank 0 under torchrun or SLURM."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def counting_bar(title: str) -> Callable[[int, int, str], None]:
    """A function to call as (done, total, name) after each item; shows a `ProgressLine`, closed after the last item."""
    line = ProgressLine(title)

    def count(done: int, total: int, name: str) -> None:
        line.update(done, total, name)
        if done >= total:
            line.close()

    return count


class ProgressLine:
    """How far a long piece of work is, on stderr: a bar with time left on a terminal, elsewhere a plain line now and then.

    Args:
        title: what is going on.
        start: items done before this process began.
        every: seconds between plain lines.
    """

    def __init__(self, title: str, start: int = 0, every: float = 30.0) -> None:
        self._title, self._start, self._every = title, start, every
        self._begun = self._shown = time.monotonic()
        self._bar: Progress | None = None
        if _console.is_terminal:
            columns = (MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[text]}", markup=False))
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), *columns, console=_console, transient=True
            )
            self._task = self._bar.add_task(title, total=None, completed=start, text="")
            self._bar.start()
            weakref.finalize(self, self._bar.stop)  # the cursor comes back, also after an exception

    def update(self, done: int, total: int, text: str) -> None:
        """Show that `done` of `total` items are done, with a few words."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, text=text)
            return
        now = time.monotonic()
        if now - self._shown >= self._every or done >= total:
            self._shown = now
            left = (now - self._begun) / max(1, done - self._start) * (total - done)
            say(f"{self._title} {done}/{total}, {text}, {_clock(left)} left")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()


class RunLog:
    """RUN/log.jsonl: one JSON object per optimiser step; the same numbers in TensorBoard, the loss in the progress line.

    A row holds step (from 0), lr, total, terms, notes, norm (of the gradient before clipping), seconds (wall time of the step),
    waited (seconds of it spent waiting for data), and validation where there was one. What is not finite is written as null.

    Args:
        path: the file. Rows at or past `start` (of a run that was killed after its last checkpoint) are dropped.
        start: step at which the run goes on.
        total: steps planned.
        active: False in every process but the main one: nothing is written or shown.
        progress: show the progress line.
        tensorboard: also write RUN/tensorboard, where TensorBoard is installed.
    """

    def __init__(
        self,
        path: Path,
        start: int,
        total: int,
        *,
        active: bool = True,
        progress: bool = True,
        tensorboard: bool = True,
    ) -> None:
        self.path = path
        self._active, self._total = active, total
        if not active:
            return
        _drop_from(path, start)
        self._file = path.open("a", encoding="utf-8", buffering=1)  # a line is out as soon as it is written
        self._writer = _tensorboard(path.parent / "tensorboard", start) if tensorboard else None
        self._line = ProgressLine("training", start) if progress else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._active:
            self._file.close()
            if self._writer is not None:
                self._writer.close()
            if self._line is not None:
                self._line.close()

    def write(self, row: Mapping[str, Any]) -> None:
        """Add the row of one step; steps come in order."""
        if not self._active:
            return
        self._file.write(json.dumps(_finite(row), allow_nan=False) + "\n")
        if self._writer is not None:
            for name, value in _flat(row):
                self._writer.add_scalar(name, value, row["step"])
        if self._line is not None:
            self._line.update(row["step"] + 1, self._total, f"loss {row['total']:.4g}")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a log, in order; an unfinished last line of a killed run is left out. No file: no rows."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _drop_from(path: Path, start: int) -> None:
    kept = [row for row in read_log(path) if row["step"] < start]
    with atomic_file(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


def _tensorboard(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=start)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(row: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """("terms/dice", 0.3), … for every number but the step."""
    found: list[tuple[str, float]] = []
    for name, value in row.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name}/")
        elif name != "step":
            found.append((prefix + name, value))
    return found


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
