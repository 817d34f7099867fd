"""Checkpoints: all that a run needs to go on as if it had never stopped. Safetensors and JSON; nothing is ever unpickled.

    RUN/checkpoints/
      index.json        {"last": "step-00000200", "best": "step-00000150"}
      step-00000150/    weights.safetensors (the method)  optimizer.safetensors  state.json
      step-00000200/

A save writes a new folder, then switches the index (one atomic file names both), then removes folders it no longer names: a process
killed at any moment leaves the older state complete. Nothing random is saved: `fit` derives all randomness from (seed, step, micro).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from oligovox.errors import CheckpointError
from oligovox.files import atomic_folder, sweep, write_json

_MOST_JSON_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a run stands.

    Attributes:
        step: optimiser steps done.
        best: highest value of the validation metric so far; None before the first validation.
        best_step: optimiser steps done when it was reached.
        identity: what makes the run what it is (plain JSON); compared on resume.
    """

    step: int
    best: float | None = None
    best_step: int | None = None
    identity: Mapping[str, Any]


class Checkpoints:
    """The folder RUN/checkpoints.

    Args:
        folder: made at the first save.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, which: Literal["last", "best"]) -> Path | None:
        """Folder of the last or the best state; None where there is none yet.

        Raises:
            CheckpointError: the index cannot be read, or names a folder that is not there.
        """
        name = self._index().get(which)
        if name is None:
            return None
        folder = self.folder / str(name)
        if not str(name).startswith("step-") or "/" in str(name) or not folder.is_dir():
            raise CheckpointError(
                f"{self.folder / 'index.json'}: names '{name}', which is not a folder beside it; {_anew(self.folder)}"
            )
        return folder

    def save(self, method: nn.Module, optimizer: Optimizer, state: State, *, best: bool = False) -> Path:
        """Write a state and make it the last one (and the best one, if so); call in the main process only.

        Raises:
            OutputError: the disk is full or not writable; the older state is untouched.
        """
        target = self.folder / f"step-{state.step:08d}"
        with atomic_folder(target) as folder:
            write_tensors(folder / "weights.safetensors", method.state_dict())
            write_tensors(folder / "optimizer.safetensors", _optimizer_tensors(method, optimizer))
            versions = {"oligovox": version("oligovox"), "torch": torch.__version__}
            write_json(folder / "state.json", {**asdict(state), "versions": versions})
        index = self._index()
        write_json(
            self.folder / "index.json", {"last": target.name, "best": target.name if best else index.get("best")}
        )
        self.tidy()
        return target

    def tidy(self) -> None:
        """Remove what the index does not name: older states, and leftovers of a killed process."""
        named = set(self._index().values())
        for folder in self.folder.glob("step-*"):
            if folder.name not in named:
                shutil.rmtree(folder, ignore_errors=True)
        sweep(self.folder)

    def _index(self) -> dict[str, Any]:
        path = self.folder / "index.json"
        return read_object(path, _anew(self.folder)) if path.exists() else {}


def read_state(folder: Path) -> State:
    """Where the run stood when `folder` was written.

    Raises:
        CheckpointError: state.json is missing, cut or foreign.
    """
    path, todo = folder / "state.json", _anew(folder.parent)
    content = read_object(path, todo)
    content.pop("versions", None)
    try:
        return State(**content)
    except TypeError as error:
        raise CheckpointError(f"{path}: not a state that oligovox wrote ({error}); {todo}") from error


def restore(folder: Path, method: nn.Module, optimizer: Optimizer) -> None:
    """Put the weights and the optimiser's memory of `folder` into both, in place, bit for bit.

    Raises:
        CheckpointError: a file is missing or cut, or a tensor's name or shape is another than the method's.
    """
    load_weights(folder, method)
    named = dict(method.named_parameters())
    order = [p for group in optimizer.param_groups for p in group["params"]]
    number = {id(p): i for i, p in enumerate(order)}
    state: dict[int, dict[str, Tensor]] = {}
    path = folder / "optimizer.safetensors"
    for key, value in read_tensors(path).items():
        kind, _, name = key.partition("/")
        parameter = named.get(name)
        if parameter is None or id(parameter) not in number:
            raise CheckpointError(
                f"{path}: holds '{key}', but the method trains no such parameter; {_anew(folder.parent)}"
            )
        if value.shape == parameter.shape:  # take over the parameter's memory layout
            value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        state.setdefault(number[id(parameter)], {})[kind] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def load_weights(folder: Path, method: nn.Module) -> None:
    """Put the weights of a checkpoint into a method, in place.

    Raises:
        CheckpointError: as `restore`.
    """
    path, expected = folder / "weights.safetensors", method.state_dict()
    found = read_tensors(path)
    for name in sorted(expected.keys() | found.keys()):
        have, want = found.get(name), expected.get(name)
        if have is None or want is None or have.shape != want.shape:
            shapes = ["nothing" if t is None else f"shape {tuple(t.shape)}" for t in (have, want)]
            raise CheckpointError(
                f"{path}: tensor '{name}' is {shapes[0]} in the file and {shapes[1]} in the method: "
                f"another architecture; use the settings it was trained with, or {_anew(folder.parent)}"
            )
    method.load_state_dict(found)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors, each on its own (shared or strided memory is copied). Call inside `files.atomic_folder`.

    Raises:
        OSError: the disk is full or not writable.
    """
    plain = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    try:
        save_file(plain, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read named tensors onto the CPU. The header is bounded and checked against the file's size by safetensors itself.

    Raises:
        CheckpointError: missing, cut short, or another format.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing; the folder is not complete, restore it from a copy") from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as safetensors ({error}); it is damaged or of another format, restore it from a copy"
        ) from error


def read_object(path: Path, todo: str) -> dict[str, Any]:
    """Read a JSON object of at most 64 MiB.

    Raises:
        CheckpointError: missing, too large, or not a JSON object; the message ends in `todo`.
    """
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); {todo}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(content).__name__}, expected an object; {todo}")
    return content


def difference(saved: Any, asked: Any, where: str = "") -> str | None:
    """The first place at which two plain JSON values differ, as "where = saved, asked for asked"; None where they are equal.

    Keys named "version" may differ.
    """
    if isinstance(saved, Mapping) and isinstance(asked, Mapping):
        for key in sorted((saved.keys() | asked.keys()) - {"version"}):
            if found := difference(saved.get(key), asked.get(key), f"{where}.{key}" if where else key):
                return found
        return None
    return None if saved == asked else f"{where} = {json.dumps(saved)}, asked for {json.dumps(asked)}"


def _optimizer_tensors(method: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimiser's memory, as "exp_avg/<parameter>"; learning rates are a function of the step and are not kept."""
    return {
        f"{kind}/{name}": value
        for name, parameter in method.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def _anew(folder: Path) -> str:
    return f"restore it from a copy, or remove {folder} to start anew"
