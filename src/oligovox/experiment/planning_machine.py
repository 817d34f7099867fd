"""What this machine has left: memory, disk and cores, within the limits of a container or a cluster job."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from math import ceil
from pathlib import Path

GIB = 2**30
_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """What a run may use.

    Attributes:
        cores: CPU cores of this process, at least 1.
        memory: bytes that are free, and allowed.
        disk: bytes free where the run will be written.
        gpu: name of the GPU, '' without one.
        gpu_memory: bytes free on it, 0 without one.
    """

    cores: int
    memory: int
    disk: int
    gpu: str = ""
    gpu_memory: int = 0

    def __str__(self) -> str:
        gpu = f", {self.gpu} with {self.gpu_memory / GIB:.1f} GiB free" if self.gpu else ", no GPU"
        return (
            f"{self.cores} cores, {self.memory / GIB:.1f} GiB of memory and {self.disk / GIB:.1f} GiB of disk free{gpu}"
        )


def in_words(size: float) -> str:
    """Bytes for people: '0.75 GiB', '39 MiB', '8 KiB'."""
    if size >= GIB / 10:
        return f"{size / GIB:.{2 if size < 10 * GIB else 0}f} GiB"
    return f"{size / 2**20:.0f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"


def this_machine(where: Path) -> Machine:
    """The machine this process runs on; `where` is the folder a run will be written into, there or not yet."""
    import torch

    gpu, gpu_memory = "", 0
    if torch.cuda.is_available():
        gpu, gpu_memory = torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0]
    return Machine(
        cores=cores(), memory=free_memory(), disk=free_disk(where), gpu=gpu, gpu_memory=gpu_memory
    )  # fmt: skip


def free_disk(where: Path) -> int:
    """Bytes free on the disk of the nearest folder that is there."""
    home = where.resolve()
    while not home.is_dir():
        home = home.parent
    return shutil.disk_usage(home).free


def cores(cgroups: Path = _CGROUPS) -> int:
    """CPU cores this process may use: its affinity, and the quota of its control group."""
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = (_text(cgroups / "cpu.max") or "max").partition(" ")
    if not quota.isdigit():
        quota, period = _text(cgroups / "cpu/cpu.cfs_quota_us"), _text(cgroups / "cpu/cpu.cfs_period_us")
    if quota.isdigit() and period.isdigit() and int(period):
        seen = min(seen, ceil(int(quota) / int(period)))
    return max(1, seen)


def free_memory(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Bytes this process may still take: what the kernel calls available, or less where a control group allows less."""
    lines = dict(line.split(":", 1) for line in _text(proc / "meminfo").splitlines() if ":" in line)
    if "MemAvailable" in lines:
        available = int(lines["MemAvailable"].split()[0]) * 1024
    else:  # not Linux
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([available, *(room for group in _groups(proc, cgroups) if (room := _room(group)) is not None)])


def _groups(proc: Path, cgroups: Path) -> list[Path]:
    """The folders of this process's memory groups, innermost first; the parents' limits hold as well. In a container its own group is the root."""
    found = []
    for line in _text(proc / "self/cgroup").splitlines():
        _, kind, path = line.split(":", 2)
        if kind in ("", "memory"):
            root = cgroups / kind
            inner = root / path.lstrip("/")
            found += [inner, *(parent for parent in inner.parents if parent.is_relative_to(root))]
    return found or [cgroups, cgroups / "memory"]


def _room(group: Path) -> int | None:
    """Bytes left in a group of version 2 or 1; what it holds as cached files can be taken back. None where there is no limit."""
    files = (("memory.max", "memory.current", "inactive_file"),
             ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))  # fmt: skip
    for limit, usage, cached in files:
        if (most := _text(group / limit)).isdigit() and (used := _text(group / usage)).isdigit():
            kept = next(
                (
                    line.split()[1]
                    for line in _text(group / "memory.stat").splitlines()
                    if line.startswith(f"{cached} ")
                ),
                "0",
            )
            return max(0, int(most) - max(0, int(used) - int(kept)))
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
