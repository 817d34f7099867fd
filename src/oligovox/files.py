"""Files that land whole or not at all: atomic files and folders, JSON, TSV, hashes, safe paths.

A temporary name is `.tmp-<pid>-<name>` beside its target (same file system, suffix kept, so that NIfTI writers work).
A killed process can leave such a name behind, never a half file under the real one; `sweep` removes it at the next run.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from oligovox.errors import CohortError, OutputError

_PREFIX = ".tmp-"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on a clean exit it is flushed to disk and becomes `path`, on an error it is removed.

    Raises:
        OutputError: the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f"{_PREFIX}{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise _output_error(path, error) from error
    finally:
        with suppress(OSError):  # gone already, or there never was a folder to write to
            temporary.unlink()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; on a clean exit it becomes `path` (replacing an older one), on an error it is removed.

    Raises:
        OutputError: the parent cannot be written or the disk is full.
    """
    temporary = path.with_name(f"{_PREFIX}{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        if path.exists():
            older = path.with_name(f"{_PREFIX}{os.getpid()}-old-{path.name}")
            os.rename(path, older)
            os.rename(temporary, path)
            shutil.rmtree(older, ignore_errors=True)
        else:
            os.rename(temporary, path)
    except OSError as error:
        raise _output_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove temporary files and folders directly in `folder` whose process is gone.

    A folder that was moved aside to be replaced comes back where the process died before its successor was in place.
    """
    for leftover in folder.glob(f"{_PREFIX}*"):
        pid = leftover.name.removeprefix(_PREFIX).split("-", 1)[0]
        if pid.isdigit() and not _alive(int(pid)):
            original = folder / leftover.name.removeprefix(f"{_PREFIX}{pid}-old-")
            if leftover.name.startswith(f"{_PREFIX}{pid}-old-") and not original.exists():
                leftover.rename(original)
            elif leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Make sure that `folder` can be created and written, before any work starts; creates nothing that was not there.

    Raises:
        OutputError: it cannot; says why.
    """
    existing = folder
    try:
        while not existing.exists():
            existing = existing.parent
        if not existing.is_dir():
            raise OutputError(f"{folder}: {existing} is a file, expected a folder; choose another output folder")
        probe = existing / f"{_PREFIX}{os.getpid()}-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _output_error(folder, error) from error


def write_json(path: Path, content: object) -> None:
    """Write readable JSON atomically (two spaces, NaN refused, numpy scalars and paths turned into plain values)."""
    text = json.dumps(content, indent=2, allow_nan=False, default=_plain, ensure_ascii=False)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        CohortError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CohortError(f"{path}: cannot be read as JSON ({error}); expected a file written by oligovox") from error


def write_tsv(path: Path, rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
    """Write a BIDS-style table atomically: tab separated, a header line, 'n/a' for None or an empty string."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow(["n/a" if row.get(c) in (None, "") else row.get(c) for c in columns])


def read_tsv(path: Path) -> list[dict[str, str]]:
    """Read a BIDS-style table; 'n/a' becomes the empty string.

    Raises:
        CohortError: the file is missing, not text, or a row has another number of columns than the header.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CohortError(f"{path}: cannot be read as a tab-separated table ({error})") from error
    if not lines:
        raise CohortError(f"{path}: the table is empty; expected a header line")
    header, *body = lines
    for number, line in enumerate(body, start=2):
        if line and len(line) != len(header):
            raise CohortError(f"{path}: line {number} has {len(line)} columns, expected {len(header)} as in the header")
    return [dict(zip(header, ("" if v == "n/a" else v for v in line), strict=True)) for line in body if line]


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash_json(content: object) -> str:
    """SHA-256 of a value's canonical JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=_plain).encode()).hexdigest()


def inside(root: Path, relative: str) -> Path:
    """`root / relative`, refused where it would leave `root` (a table from elsewhere must not reach other files).

    Raises:
        CohortError: the path is absolute or climbs out of root.
    """
    path = root / relative
    if Path(relative).is_absolute() or not path.resolve().is_relative_to(root.resolve()):
        raise CohortError(f"'{relative}' leaves the folder {root}; expected a path inside it")
    return path


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays, without importing numpy here
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with suppress(OSError):  # no /proc: taken as alive
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"  # a zombie has ended; in a container perhaps nobody ever waits for it
    return True


def _output_error(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path}: cannot be written ({error.strerror or error}); free space or choose another output folder"
    )
