"""Training that ran out of memory goes on smaller: half the batch, and where that cannot be halved a patch that is shorter along its longest side.

What was given up is one line on stderr and RUN/smaller.json, from which a resumed run takes its size. The run goes on from its last checkpoint;
before the first there is none, and it begins anew. A process that the kernel kills for memory leaves no error that could be caught.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import PositiveInt

from oligovox.engine.log import say
from oligovox.errors import RunError
from oligovox.experiment.recipe import Patch
from oligovox.files import read_json, write_json
from oligovox.settings import Settings, parse

T = TypeVar("T")

_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
"""What PyTorch writes into a RuntimeError where an allocation fails in another place than its own allocator."""


class Size(Settings):
    """What a micro-batch holds.

    Attributes:
        counts: patches of each stream; all of them are halved together.
        patch: sides in voxels.
    """

    counts: tuple[PositiveInt, ...]
    patch: Patch

    def __str__(self) -> str:
        return f"batch {' + '.join(map(str, self.counts))}, patch {' x '.join(map(str, self.patch))}"


@dataclass(frozen=True)
class Limits:
    """What a smaller size must still be.

    Attributes:
        multiple: every side of a patch is one of it; a patch keeps two of it along at least one axis, as the deepest norm needs.
        least: patches in a micro-batch that the method needs.
        takes: whether network and method take a patch of these sides.
    """

    multiple: int
    least: int = 1
    takes: Callable[[Patch], bool] = lambda patch: True


def smaller(size: Size, limits: Limits) -> Size | None:
    """The next size to try; None where there is none.

    Half the batch; then the longest side shorter, or all the longest where a method needs equal ones, or another one.

    Args:
        size: the one that did not fit.
        limits: of network and method.
    """
    halved = tuple(max(1, count // 2) for count in size.counts)
    if halved != size.counts and sum(halved) >= limits.least:
        return Size(counts=halved, patch=size.patch)
    first, second, third = sorted(range(3), key=lambda axis: -size.patch[axis])
    longest = [axis for axis in range(3) if size.patch[axis] == size.patch[first]]
    for shortened in ([first], longest, [second], [third]):
        x, y, z = (side - limits.multiple * (axis in shortened) for axis, side in enumerate(size.patch))
        if min(x, y, z) >= limits.multiple and max(x, y, z) >= 2 * limits.multiple and limits.takes((x, y, z)):
            return Size(counts=size.counts, patch=(x, y, z))
    return None


def until_it_fits(work: Callable[[Size], T], asked: Size, limits: Callable[[], Limits], out: Path) -> T:
    """Do the work at the size that was asked for, or at the first smaller one that fits into memory.

    Args:
        work: called with a size; resumes by itself.
        asked: what the settings say; a smaller one that an earlier run of these settings came to is used instead.
        limits: gives what a smaller size must still be; asked only after a failure.
        out: run folder; smaller.json is written there.

    Raises:
        RunError: nothing smaller is left, or several processes train together.
    """
    file = out / "smaller.json"
    size = _noted(file, asked) or asked
    if size != asked:
        say(f"{out}: goes on with {size}, because {asked} did not fit into memory")
    while True:
        try:
            return work(size)
        except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if not is_out_of_memory(error):
                raise
        _free()  # out here: while an error is handled, its traceback holds the networks
        size = _next(size, limits(), out)
        write_json(file, {"asked": asked.model_dump(mode="json"), "used": size.model_dump(mode="json")})


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on the GPU or in the computer."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def _noted(file: Path, asked: Size) -> Size | None:
    """The size that an earlier run came to; None where there is none, or it was asked for another one."""
    noted = read_json(file) if file.is_file() else None
    if not isinstance(noted, dict) or noted.get("asked") != asked.model_dump(mode="json"):
        return None
    if not isinstance(noted.get("used"), dict):
        return None
    used = parse(Size, noted["used"], f"{file}: used")
    return used if len(used.counts) == len(asked.counts) else None


def _next(size: Size, limits: Limits, out: Path) -> Size:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise RunError(f"{out}: out of memory with {size} in one of several processes; give a smaller batch or patch")
    following = smaller(size, limits)
    if following is None:
        raise RunError(
            f"{out}: out of memory even with {size}; choose a smaller network, or a machine with more memory"
        )
    say(f"{out}: out of memory with {size}; goes on with {following}")
    return following


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
