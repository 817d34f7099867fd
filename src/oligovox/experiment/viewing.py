"""What a method shows its network and asks of it, drawn on the user's own data."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from oligovox import catalogue
from oligovox.experiment.needs import check_built
from oligovox.experiment.recipe import NetworkChoice, Stage, nested
from oligovox.experiment.training import build_encoder, build_method
from oligovox.files import check_writable
from oligovox.prepare.store import Store
from oligovox.report.views import Row, write_views
from oligovox.sample.augment import Augmentation
from oligovox.sample.patches import PatchSource, Stream

_SMALLEST = 4  # voxels a side, below which a tensor is a list of numbers and not a volume
_MOST = 6  # channels drawn of one field


def views(
    method: str,
    store: Path | str,
    out: Path | str,
    *,
    changes: Sequence[str] = (),
    network: str = "resenc",
    patch: int = 48,
    seed: int = 0,
) -> dict[str, Any]:
    """Draw the views of one patch of a prepared store as a PNG.

    Args:
        method: a name of `methods()`.
        store: prepared volumes.
        out: PNG file to write.
        changes: settings of the method, as "block=8".
        network: its encoder; small, and only because some methods ask for one of a certain kind.
        patch: side in voxels.
        seed: of the patch and of every draw.

    Returns:
        picture (path), method, rows (names of the fields).

    Raises:
        InputError: no such method or store, or method, network, patch and sequences do not fit.
    """
    prepared, target = Store.open(Path(store)), Path(out)
    check_writable(target.parent)
    plan = prepared.plan
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        chosen = NetworkChoice.named(network, "nano" if network == "resenc" else None)
        encoder = build_encoder(chosen, plan.modalities)
        built = build_method(method, nested(changes), encoder)
    stage = Stage(patch=(patch,) * 3, batch=2, augmentation=Augmentation.only())
    check_built(method, built, chosen, stage, encoder, plan)
    batch = PatchSource(plan, [Stream(prepared.cases, stage.batch)], stage.patch, seed).batch(0, 0)
    shown = built.views(batch, torch.Generator().manual_seed(seed))
    values = {f.name: getattr(shown, f.name) for f in fields(shown)}
    level = _level(values.values(), patch)
    exam = Row("exam", f"the patch of {batch.cases[0]}", _slices(batch.image, level), plan.modalities[:_MOST])
    meanings = _meanings(shown)
    rows = [exam, *(_row(name, v, meanings.get(name, ""), plan.modalities, level) for name, v in values.items())]
    write_views(f"{method}: {catalogue.entries('METHOD')[method].summary.partition(': ')[2]}", rows, target)
    return {"picture": str(target.resolve()), "method": method, "rows": [row.name for row in rows]}


def _level(values: Iterable[object], side: int) -> int:
    """Which axial slice of the patch is shown: the one with most of the rarest mask of the first sample, else the middle one."""
    volumes = [value[0].reshape(-1, side, side, side).any(0) for value in values if _is_mask(value, side)]
    rarest = min((v for v in volumes if v.any()), key=lambda v: int(v.sum()), default=None)
    return side // 2 if rarest is None or rarest.all() else int(rarest.sum((0, 1)).argmax())


def _is_mask(value: object, side: int) -> TypeGuard[Tensor]:
    whole = (side, side, side)
    return isinstance(value, Tensor) and value.dtype == torch.bool and value.ndim > 3 and value.shape[-3:] == whole


def _row(name: str, value: object, meaning: str, modalities: Sequence[str], level: int) -> Row:
    if not isinstance(value, Tensor):
        return Row(name, meaning, text=_short(value))
    if value.ndim not in (4, 5) or min(value.shape[-3:]) < _SMALLEST:
        return Row(name, meaning, text=_short(value[0].tolist() if value.ndim else value.item()))
    slices = _slices(value, level)
    channels = tuple(modalities) if value.ndim == 5 and value.shape[1] == len(modalities) else ("",) * len(slices)
    return Row(name, meaning, slices, channels[:_MOST])


def _slices(value: Tensor, level: int) -> tuple[Any, ...]:
    """An axial slice of each channel of the first sample; of smaller volumes than the patch the middle one."""
    volume = value[0] if value.ndim == 5 else value[:1]
    depth = volume.shape[-1]
    return tuple(channel[..., level if level < depth else depth // 2].numpy() for channel in volume[:_MOST])


def _short(value: object, longest: int = 60) -> str:
    text = str(value)
    return text if len(text) <= longest else f"{text[:longest]} …"


def _meanings(shown: object) -> dict[str, str]:
    """Field → what the docstring of the views says about it."""
    found: dict[str, str] = {}
    name = ""
    for line in (inspect.getdoc(type(shown)) or "").partition("Attributes:")[2].splitlines():
        indent, text = len(line) - len(line.lstrip()), line.strip()
        if indent == 4 and ": " in text:
            name, _, text = text.partition(": ")
        if name and text:
            found[name] = f"{found.get(name, '')} {text}".strip()
    return found
