"""Transfer: trained weights into a network that may read other modalities.

Tensors that run over the input channels are moved by modality name, never by position. A name the weights do not know gets
the mean of the slices they have; a further acquisition of a known sequence (`FLAIR_run-2`) gets that of the sequence. The result is then scaled by (old m / new m), so that inputs of the usual size give
the first layer sums of the usual size; the same modalities, in whatever order, are scaled by 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from oligovox.cohort.modalities import sequence_of, sequences_of
from oligovox.errors import CheckpointError
from oligovox.networks.encoder import Encoder
from oligovox.networks.redraw import in_random_order

Status = Literal["loaded", "expanded", "interpolated", "fresh"]


@dataclass(frozen=True)
class Row:
    """What became of one tensor of the target.

    Attributes:
        tensor: its name, with the part in front.
        status: loaded as it was; expanded: moved by modality name; interpolated to another window; fresh: left untouched.
        source: shape in the weights; None where they lack it.
        target: shape in the target.
    """

    tensor: str
    status: Status
    source: tuple[int, ...] | None
    target: tuple[int, ...]


@dataclass(frozen=True)
class TransferReport:
    """What became of every tensor of the target's parts, and which tensors of the weights found no place.

    Attributes:
        rows: one for each tensor of the target.
        unused: names in the weights that the same part of the target lacks.
    """

    rows: tuple[Row, ...]
    unused: tuple[str, ...]

    def count(self, status: Status) -> int:
        """How many tensors have this status."""
        return sum(row.status == status for row in self.rows)

    def summary(self) -> str:
        """One line, such as "41 loaded, 1 expanded, 0 interpolated, 4 fresh; 0 of the weights unused"."""
        counts = ", ".join(f"{self.count(status)} {status}" for status in get_args(Status))
        return f"{counts}; {len(self.unused)} of the weights unused"

    def table(self) -> list[str]:
        """One line a tensor: status, name, shape in the weights → shape in the target."""
        width = max((len(row.tensor) for row in self.rows), default=0)
        return [f"{row.status:<12}  {row.tensor:<{width}}  {row.source or '-'} → {row.target}" for row in self.rows]


@torch.no_grad()
def transfer(
    weights: Mapping[str, Tensor],
    modalities: tuple[str, ...],
    target: nn.Module,
    *,
    parts: tuple[str, ...] = ("encoder", "decoder"),
    rescale: bool = True,
    norm_reset: bool = False,
    shuffled: bool = False,
) -> TransferReport:
    """Copy weights into the target, in place, tensor by tensor of the same name; the target is changed whole or not at all.

    Tensors the weights lack stay fresh, so that a deeper network can start from a shallower one. A decoder of other
    channels stays fresh as a whole.

    Args:
        weights: state dict of an exported module: "encoder.…", "decoder.…"; other keys are not looked at.
        modalities: names of the channels these weights read, in order.
        target: has `encoder` (an `Encoder`) and maybe `decoder`; freshly initialised.
        parts: which to transfer: encoder, decoder, head.
        rescale: scale sums over sequences by (old m / new m). Turn it off for weights trained with absent sequences: then a network that reads
            a subset computes exactly what the old one computes with the others absent.
        norm_reset: scale each transferred convolution to the norm it had in the fresh target and set the instance norms to
            scale 1, shift 0: long pre-training lets weights grow, which under a norm lowers their effective learning rate.
        shuffled: a control, not a start: the values of each transferred weight in random order (always the same one). Its size and
            spread stay, what a kernel looks for is gone; scales and shifts of norms stay unless `norm_reset` is on as well. A gain
            that survives this was one of size, or of those.

    Raises:
        CheckpointError: the encoder is of another architecture, or the weights do not read `modalities`.
    """
    rows: list[Row] = []
    unused: list[str] = []
    for part in parts:
        module = getattr(target, part, None)
        if not isinstance(module, nn.Module):
            continue
        theirs = {key.removeprefix(f"{part}."): value for key, value in weights.items() if key.startswith(f"{part}.")}
        state = module.state_dict()
        ours = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
        fits = {name: _fit(name, theirs.get(name), fresh, modalities, module, rescale) for name, fresh in ours.items()}
        clash = next((name for name, (status, _) in fits.items() if status == "fresh" and name in theirs), None)
        if part == "encoder" and (clash or all(status == "fresh" for status, _ in fits.values())):
            raise CheckpointError(_other_architecture(theirs, ours, clash, module))
        if clash:
            fits = dict.fromkeys(ours, ("fresh", None))
        for name, (status, value) in fits.items():
            if value is not None:
                if shuffled and value.ndim > 1:
                    value = in_random_order(value, torch.Generator().manual_seed(value.numel()))
                resized = norm_reset and part != "head"  # no norm follows it
                ours[name].copy_(_with_fresh_norm(module, name, value, ours[name]) if resized else value)
            source = tuple(theirs[name].shape) if name in theirs else None
            rows.append(Row(f"{part}.{name}", status, source, tuple(ours[name].shape)))
        unused += [f"{part}.{name}" for name in theirs if name not in state]
    return TransferReport(tuple(rows), tuple(unused))


def _fit(
    name: str, old: Tensor | None, fresh: Tensor, modalities: tuple[str, ...], module: nn.Module, rescale: bool
) -> tuple[Status, Tensor | None]:
    """How one tensor goes over, and its new value in the target's shape."""
    if old is None:
        return "fresh", None
    if isinstance(module, Encoder) and name in module.modality_weights:
        return _by_name(name, old, fresh, modalities, module, rescale)
    if old.shape == fresh.shape:
        return "loaded", old
    if name.endswith("relative_position_bias_table") and old.shape[1:] == fresh.shape[1:]:
        return "interpolated", _to_window(old, fresh)
    return "fresh", None


def _by_name(
    name: str, old: Tensor, fresh: Tensor, modalities: tuple[str, ...], encoder: Encoder, rescale: bool
) -> tuple[Status, Tensor | None]:
    """(out, groups · old m, …) → (out, groups · new m, …)."""
    groups, wanted = encoder.modality_weights[name], encoder.modalities
    if encoder.by_sequence:
        modalities, wanted = sequences_of(modalities), sequences_of(wanted)
    if old.shape[1] != groups * len(modalities):
        raise CheckpointError(
            f"encoder.{name} of the weights has {old.shape[1]} input channels, but {groups} × {len(modalities)} were expected "
            f"for {', '.join(modalities)}; give the modalities these weights were trained with"
        )
    if (old.shape[0], *old.shape[2:]) != (fresh.shape[0], *fresh.shape[2:]):
        return "fresh", None
    if modalities == wanted:
        return "loaded", old
    known = old.reshape(len(old), groups, len(modalities), *old.shape[2:])
    from_ = {name: index for index, name in enumerate(modalities)}
    sources = [from_.get(name, from_.get(sequence_of(name))) for name in wanted]
    slices = [known.mean(dim=2) if source is None else known[:, :, source] for source in sources]
    factor = len(modalities) / len(wanted) if rescale and name not in encoder.apart else 1.0
    return "expanded", factor * torch.stack(slices, dim=2).flatten(1, 2)


def _to_window(old: Tensor, fresh: Tensor) -> Tensor:
    """Position table ((2 w − 1)³, heads) of another window: trilinear, no offset and the largest offsets stay themselves."""
    before, after = (round(len(table) ** (1 / 3)) for table in (old, fresh))
    cube = old.float().T.reshape(1, -1, before, before, before)
    return nn.functional.interpolate(cube, (after,) * 3, mode="trilinear", align_corners=True)[0].flatten(1).T


def _with_fresh_norm(module: nn.Module, name: str, value: Tensor, fresh: Tensor) -> Tensor:
    owner, _, kind = name.rpartition(".")
    if isinstance(module.get_submodule(owner), _InstanceNorm):
        return torch.full_like(value, 1.0 if kind == "weight" else 0.0)
    return value * (fresh.norm() / value.norm().clamp_min(1e-12)) if value.ndim == 5 else value


def _other_architecture(
    theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], clash: str | None, module: nn.Module
) -> str:
    kind = type(module).__name__
    if clash:
        found = (
            f"encoder.{clash} is {tuple(theirs[clash].shape)} in the weights, {tuple(ours[clash].shape)} in this {kind}"
        )
    elif theirs:
        found = f"the weights' encoder has no tensor of this {kind} (theirs: {next(iter(theirs))}, ours: {next(iter(ours))})"
    else:
        found = "the weights have no encoder"
    return f"{found}; build the network with the settings the weights were trained with, or start fresh"
