"""Who does what, where several processes, or several machines with one disk, work on one folder.

A piece of work is claimed by creating a file that must not exist yet (O_EXCL). It holds machine, process and start time of the process; its
modification time is renewed while the work goes on, and it is removed at the end.

| the claim's process | its claim |
| --- | --- |
| lives on this machine | stands |
| is gone from this machine | is taken over at once |
| is of another machine (or container), renewed within `STALE_SECONDS` | stands |
| is of another machine, not renewed for longer | is taken over |

Taking over is done under an advisory lock of the file system, so that of many only one does. Clocks of the machines must agree to minutes. A
claim that was taken from a process that was only asleep makes both do the same work; results are written whole, and are the same.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

STALE_SECONDS = 600.0
BEAT_SECONDS = 15.0
_POLL_SECONDS = 0.2


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Try to claim a piece of work; yields whether it is ours. The claim is renewed inside and removed on leaving.

    Args:
        path: the claim's file.
    """
    mark = _take(path)
    if mark is None:
        yield False
        return
    over = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, over), daemon=True)
    heart.start()
    try:
        yield True
    finally:
        over.set()
        heart.join()
        if _read(path) == mark:  # somebody else's by now, if this process slept too long
            path.unlink(missing_ok=True)


@contextmanager
def awaited(path: Path) -> Iterator[None]:
    """Claim a short piece of work, waiting for whoever has it."""
    while True:
        with claimed(path) as ours:
            if ours:
                yield
                return
        time.sleep(_POLL_SECONDS)


def _take(path: Path) -> str | None:
    """What the claim says, if it is ours now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if mark := _create(path):
        return mark
    if not _stale(path):
        return None
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _stale(path):  # still: nobody was faster
            path.unlink(missing_ok=True)
    return _create(path)


def _create(path: Path) -> str | None:
    mark = json.dumps({"machine": _machine(), "pid": os.getpid(), "begun": _begun(os.getpid()), "mark": uuid4().hex})
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return None
    with os.fdopen(file, "w") as out:
        out.write(mark)
    return mark


def _stale(path: Path) -> bool:
    try:
        age = time.time() - path.stat().st_mtime
        claim = json.loads(_read(path))
    except FileNotFoundError:
        return False
    except ValueError:  # its process died, or is, between creating and writing it
        return age > STALE_SECONDS
    if claim["machine"] == _machine():
        return str(claim["begun"]) != _begun(claim["pid"])
    return age > STALE_SECONDS


def _beat(path: Path, over: threading.Event) -> None:
    while not over.wait(BEAT_SECONDS):
        with suppress(OSError):
            os.utime(path)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def _machine() -> str:
    """Name of the machine, and of the space its process numbers are from: containers on one machine have their own."""
    space = ""
    with suppress(OSError):  # only Linux has it
        space = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {space}".strip()


def _begun(pid: int) -> str:
    """When a process began, so that its number is not taken for that of a later one; '' where there is none, or only its remains."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return _alive(pid)
    return "" if state == "Z" else fields[18]


def _alive(pid: int) -> str:
    """Without /proc: whether there is such a process."""
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"
