"""What to train on this machine with this cohort: spacing, sequences, network, patch, batch, steps, workers; each with its reason.

Source: Isensee et al. 2021 (nnU-Net, doi 10.1038/s41592-020-01008-z): median spacing, a finer one along a coarse axis, patches as large as memory
    allows and no larger than the median image, batch of at least 2.
Deviates: the patch is cut along its longest side whatever the axis means; memory is estimated by a formula first, then measured by a probe; on
    a CPU a patch is limited by time, not by memory; the network's depth does not follow the patch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from statistics import median

import numpy as np

from oligovox.errors import SettingsError
from oligovox.experiment.planning_facts import Facts, Grid, Shape, Spacing
from oligovox.experiment.planning_machine import GIB, Machine, in_words
from oligovox.experiment.recipe import SplitChoice
from oligovox.networks.resenc import PRESETS, Preset
from oligovox.prepare.store import Plan

COARSE = 3.0
"""An axis is coarse where its voxels are so many times longer than those of the others, and so many times fewer."""

MOST_VOXELS: Mapping[bool, int] = {False: 48**3, True: 128**3}
"""Of a patch on two to eight cores, and on a GPU or on more cores."""

USED = 0.8
"""Share of the free memory that a plan counts on."""

SPARE = 0.05
"""Share of the hours that no step is planned for."""

FEWEST_STEPS = 100
"""Of a training; fewer are refused."""

_NAMED = 5  # exams that are named where some are left out


@dataclass(frozen=True)
class Chosen:
    """Network, patch and batch.

    Attributes:
        preset: size of the residual encoder.
        patch: voxels of the prepared grid.
        batch: patches in a micro-batch.
    """

    preset: Preset
    patch: Shape
    batch: int

    def __str__(self) -> str:
        return f"preset {self.preset}, patch {' x '.join(map(str, self.patch))}, batch {self.batch}"


def chosen_plan(facts: Facts) -> tuple[Plan, list[str]]:
    """How every case is prepared, and why.

    Raises:
        SettingsError: no mask lies on the grid of a sequence.
    """
    sequences, said = chosen_sequences(facts)
    reference, why = chosen_reference(facts, sequences)
    spacing, reason = chosen_spacing(facts.grids(reference))
    plan = Plan(modalities=sequences, spacing=spacing, reference=reference)
    return plan, [said, why, reason]


def usable(facts: Facts) -> tuple[Facts, str]:
    """The exams that have a sequence of those that most have, and a line about the others; '' where there are none."""
    sequences, _ = chosen_sequences(facts)
    bare = [exam for exam in facts.exams if not set(exam.grids) & set(sequences)]
    if not bare:
        return facts, ""
    named = ", ".join(f"{exam.name} with {' and '.join(exam.grids)}" for exam in bare[:_NAMED])
    line = (
        f"left out: {len(bare)} of {len(facts.exams)} exams, which have none of the sequences that most have ({', '.join(sequences)}): {named}"
        + (", …" if len(bare) > _NAMED else "")
        + "; if one of them is such a sequence by another name, say so with --sequence"
    )
    return replace(facts, exams=tuple(exam for exam in facts.exams if exam not in bare)), line


def chosen_sequences(facts: Facts) -> tuple[tuple[str, ...], str]:
    """Sequences that at least half of the cases have; where none has, the most frequent one."""
    cases, counts = len(facts.exams), facts.sequences
    kept = [name for name, count in counts.items() if 2 * count >= cases] or [next(iter(counts))]
    left = [f"{name} ({counts[name]} of {cases})" for name in counts if name not in kept]
    reason = f"sequences: {', '.join(kept)}, which at least half of the {cases} cases have"
    return tuple(sorted(kept)), reason + (f"; left out {', '.join(left)}" if left else "")


def chosen_reference(facts: Facts, sequences: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The sequence on whose grid most masks were drawn comes first, since scores need masks on the reference; then the usual order.

    Raises:
        SettingsError: no mask lies on the grid of a sequence.
    """
    usual = Plan(modalities=tuple(sequences)).reference
    order = [*(name for name in usual if name in sequences), *(name for name in sequences if name not in usual)]
    drawn = {name: sum(name in exam.drawn_on for exam in facts.exams if exam.labelled) for name in order}
    first = max(order, key=lambda name: drawn[name])  # the first of the usual order among equals
    masks = sum(exam.labelled for exam in facts.exams)
    if masks and not drawn[first]:
        raise SettingsError(
            f"reference: none of {masks} masks lies on the grid of {' or '.join(order)}, and predictions are written on the grid of a sequence; bring "
            "the masks to the grid of the sequence that they were drawn on"
        )
    reason = f"reference: {first}" + (f", on whose grid {drawn[first]} of {masks} masks lie" if masks else "")
    if drawn[first] < masks:
        reason += "; a run refuses to test on the others"
    return (first, *(name for name in order if name != first)), reason


def chosen_spacing(grids: Sequence[Grid]) -> tuple[Spacing, str]:
    """The median voxel size along each axis; along an axis of thick slices the 10th percentile, but no finer than the other axes.

    Slices are thick where their median distance is more than `COARSE` times the other voxel sides and the median image has `COARSE` times fewer of
    them: there a median would throw away what the thinner exams show, and anything as fine as in the plane would be invented.

    Args:
        grids: of every case, along R, A, S.
    """
    sizes = np.array([grid.spacing for grid in grids])
    wanted, shape = np.median(sizes, axis=0), np.median([grid.shape for grid in grids], axis=0)
    worst = int(wanted.argmax())
    others = [axis for axis in range(3) if axis != worst]
    reason = "the median of the cases"
    if wanted[worst] > COARSE * wanted[others].max() and COARSE * shape[worst] < shape[others].min():
        wanted[worst] = max(float(np.percentile(sizes[:, worst], 10)), float(wanted[others].max()))
        reason = f"the median in the plane; along {'RAS'[worst]}, where slices are thick, the 10th percentile"
    x, y, z = (round(float(side), 3) for side in wanted)
    return (x, y, z), f"spacing: {x:g} x {y:g} x {z:g} mm, {reason}"


def median_shape(grids: Sequence[Grid], spacing: Spacing, kept: Sequence[float] = (1.0, 1.0, 1.0)) -> Shape:
    """Median voxels of the cases on the prepared grid.

    Args:
        grids: of every case.
        spacing: of the prepared grid, in mm.
        kept: share of each side that is left after cropping to the foreground.
    """
    shapes = [grid.at(spacing) for grid in grids]
    x, y, z = (max(1, int(median(side) * share)) for side, share in zip(zip(*shapes, strict=True), kept, strict=True))
    return x, y, z


def presets(machine: Machine) -> tuple[Preset, ...]:
    """Sizes of the residual encoder to try, best first: by GPU memory, or by cores."""
    if machine.gpu:
        room = machine.gpu_memory / GIB
        first: Preset = "L" if room >= 40 else "M" if room >= 12 else "S" if room >= 4 else "tiny"
    else:
        first = "S" if machine.cores >= 16 and machine.memory >= 16 * GIB else "tiny"
    return tuple(reversed(list(PRESETS)[: list(PRESETS).index(first) + 1]))


def estimated_memory(preset: Preset, sequences: int, patch: Shape, batch: int, *, gpu: bool = False) -> int:
    """Bytes that training needs beside the libraries, within a factor of two; only to choose what a probe then measures.

    Of every convolution's output about four copies are kept (itself, its norm, its activation, a gradient), float32 on a CPU, bfloat16 on a GPU;
    the decoder holds about as much as one more block a stage.
    """
    sizes = PRESETS[preset]
    levels = enumerate(zip(sizes.channels, sizes.blocks, strict=True))
    numbers = sum(width / 8**level * (2 * blocks + 4) for level, (width, blocks) in levels)
    weights = sum(54 * width**2 * (blocks + 1) for width, blocks in zip(sizes.channels, sizes.blocks, strict=True))
    return int(batch * prod(patch) * (4 * (2 if gpu else 4) * numbers + 48 * sequences) + 16 * weights)


def chosen_patch(shape: Shape, multiple: int, most: int, fits: Callable[[Shape], bool]) -> Shape:
    """The largest patch that the median image holds, shortened along its longest side until it is small enough.

    Args:
        shape: of the median image, voxels.
        multiple: every side is a multiple of it.
        most: voxels of a patch.
        fits: whether a patch fits into memory.

    Raises:
        SettingsError: the images are smaller than the smallest patch, or nothing fits.
    """
    sides = [side // multiple * multiple for side in shape]
    if min(sides) < multiple or max(sides) < 2 * multiple:
        raise SettingsError(
            f"patch: the median image has {_by(shape)} voxels, the smallest patch of this network is {2 * multiple} x {multiple} x {multiple}; "
            "prepare smaller voxels, or choose a network with fewer stages"
        )
    while prod(sides) > most or not fits((sides[0], sides[1], sides[2])):
        longest = sides.index(max(sides))
        if sides[longest] <= 2 * multiple:
            raise SettingsError(
                f"patch: not even {_by(sides)} voxels fit into the free memory; choose a smaller network, or free memory"
            )
        sides[longest] -= multiple
    return sides[0], sides[1], sides[2]


def chosen_size(
    machine: Machine, sequences: int, shape: Shape, multiple: Callable[[Preset], int]
) -> tuple[Chosen, str]:
    """Network, patch and batch for the median image.

    Args:
        machine: what there is.
        sequences: channels.
        shape: of the median image, voxels.
        multiple: of a network, what every side of a patch must be a multiple of.

    Raises:
        SettingsError: no network fits.
    """
    room = USED * (machine.gpu_memory if machine.gpu else machine.memory)
    most = MOST_VOXELS[bool(machine.gpu) or machine.cores >= 16]
    refused = None
    for preset in presets(machine):

        def fits(patch: Shape, batch: int = 2, preset: Preset = preset) -> bool:
            return estimated_memory(preset, sequences, patch, batch, gpu=bool(machine.gpu)) <= room

        try:
            patch = chosen_patch(shape, multiple(preset), most, fits)
        except SettingsError as error:
            refused = error
            continue
        batch = 2
        whole = all(
            side == full // multiple(preset) * multiple(preset) for side, full in zip(patch, shape, strict=True)
        )
        while machine.gpu and whole and batch < 8 and fits(patch, 2 * batch):
            batch *= 2
        chosen = Chosen(preset, patch, batch)
        limit = (
            "no more fits into memory" if machine.gpu else f"{most} voxels are enough work for {machine.cores} cores"
        )
        why = (
            "as large as the median image" if whole else f"smaller than the median image of {_by(shape)}, since {limit}"
        )
        return chosen, f"network and patch: {chosen}; {why}; sides are multiples of {multiple(preset)}"
    raise refused or SettingsError("no network to choose from")


def chosen_split(facts: Facts) -> tuple[SplitChoice, str]:
    """Who is held out: at most half of the fully labelled people are tested on, 6 where there are enough (a fifth of 30 and more).

    Raises:
        SettingsError: fewer than two labelled people, or none fully.
    """
    labelled, whole = facts.labelled, facts.scorable
    if labelled < 2 or not whole:
        raise SettingsError(
            f"{labelled} of {facts.people} people have a label, {whole} of them a full one; fine-tuning needs 2, one to learn from and one fully "
            "labelled to score on; label more exams (without labels `oligovox pretrain` is all that can run)"
        )
    validation = 2 if whole >= 8 else 1 if whole >= 4 else 0
    test = max(1, min(max(6, labelled // 5), (whole - validation) // 2))
    labels = labelled - validation - test
    split = SplitChoice(test=test, validation=validation, labels=labels)
    return (
        split,
        f"split: {labelled} labelled people: {test} to test on, {validation} to choose the checkpoint by, {labels} to learn from",
    )


def affordable_steps(hours: float, each: Sequence[float], fixed: float) -> int:
    """Steps of every training so that all of it ends in time, two leading digits; a share of `SPARE` is left for scores and page.

    Args:
        hours: there are.
        each: seconds of one step of every training that the run has.
        fixed: seconds of everything else.

    Raises:
        SettingsError: fewer than `FEWEST_STEPS`.
    """
    seconds = (1 - SPARE) * 3600 * hours
    steps = int((seconds - fixed) / sum(each)) if seconds > fixed else 0
    if steps < FEWEST_STEPS:
        needed = (fixed + FEWEST_STEPS * sum(each)) / (1 - SPARE) / 3600
        raise SettingsError(
            f"hours: {hours:g} h allow {steps} steps of each training, expected at least {FEWEST_STEPS}; give {ceil(100 * needed) / 100:g} h or more"
        )
    scale = 10 ** max(0, len(str(steps)) - 2)
    return int(steps // scale * scale)


def chosen_workers(machine: Machine, case_bytes: int) -> tuple[int, str]:
    """Processes that prepare: one a core, as many as fit into memory, at most 8.

    Raises:
        SettingsError: not even one case fits into memory.
    """
    room = int(USED * machine.memory // case_bytes)
    if not room:
        raise SettingsError(
            f"memory: preparing one case takes {case_bytes / GIB:.2f} GiB, of {machine.memory / GIB:.2f} GiB free; free memory, or prepare elsewhere"
        )
    workers = min(machine.cores, room, 8)
    return workers, f"workers: {workers}, for {machine.cores} cores and {in_words(case_bytes)} a case"


def _by(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))
