"""What the benchmarks share: timing arms side by side, the machine, a small table, the JSON beside the script.

Every script takes `--quick` (one round, to see that it works; nothing is written). Without it, results go to <script>.json.
Arms alternate (A B A B …) in one run, so that what else the machine does meets all of them. `wall` is time.perf_counter, `cpu` is
time.process_time: the seconds of all threads of this process, which other processes do not add to.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

QUICK = "--quick" in sys.argv
Times = dict[str, dict[str, list[float]]]
"""Arm → {"wall": seconds of each round, "cpu": …}."""


def progress(text: str) -> None:
    print(f"  … {text}", file=sys.stderr, flush=True)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def alternate(arms: Mapping[str, Callable[[], object]], rounds: int, warm: int = 1) -> Times:
    """Time every arm once a round; the first `warm` rounds are not counted."""
    times: Times = {arm: {"wall": [], "cpu": []} for arm in arms}
    rounds = 1 if QUICK else rounds
    for number in range(-warm, rounds):
        for arm, work in arms.items():
            wall, cpu = timed(work)
            if number >= 0:
                times[arm]["wall"].append(wall)
                times[arm]["cpu"].append(cpu)
    return times


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Ratio of the medians; lowest and highest ratio within one round."""
    each = [a / b for a, b in zip(above, below, strict=True)]
    return {"ratio": round(median(above) / median(below), 4), "low": round(min(each), 4), "high": round(max(each), 4)}


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median, lowest, highest."""
    return {key: round(f(values), digits) for key, f in (("median", median), ("low", min), ("high", max))}


def headline(what: str, value: str, aim: str = "", met: bool | None = None) -> dict[str, Any]:
    """One line of docs/reference/benchmarks.md."""
    return {"what": what, "value": value, "aim": aim, "met": met}


def machine() -> dict[str, Any]:
    cpu = platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": cpu, "cores": cores, "memory_gib": round(memory, 1), "load_1min": round(os.getloadavg()[0], 2)}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("oligovox", "torch", "monai", "numpy", "scipy", "nibabel"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
        found["commit"] = commit.stdout.strip() or "unknown"
    except OSError:
        found["commit"] = "unknown"
    return found


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in lines) for column in range(len(header))]
    for row in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def write(
    script: str,
    *,
    clock: str,
    settings: Mapping[str, Any],
    raw: Mapping[str, Any],
    results: Mapping[str, Any],
    headlines: Sequence[Mapping[str, Any]],
) -> None:
    """Write <script>.json; `clock` says which seconds are quoted. Raw seconds keep six digits."""
    for line in headlines:
        print(f"{line['what']}: {line['value']}" + (f" (aim {line['aim']})" if line["aim"] else ""))
    if QUICK:
        print("--quick: nothing written\n")
        return
    threads = os.environ.get("OMP_NUM_THREADS")
    content = {
        "command": (f"OMP_NUM_THREADS={threads} " if threads else "") + f"python benchmarks/{Path(script).name}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": machine(),
        "clock": clock,
        "settings": dict(settings),
        "headlines": list(headlines),
        "results": dict(results),
        "raw": _rounded(raw),
    }
    path = Path(script).with_suffix(".json")
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote benchmarks/{path.name}\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    return round(value, 6) if isinstance(value, float) else value
