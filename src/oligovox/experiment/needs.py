"""What a method needs: whether data, patch and batch have it, and what it must not be shown."""

from __future__ import annotations

from typing import Any

from oligovox.engine.runtime import processes
from oligovox.errors import GeometryError, SettingsError
from oligovox.experiment.recipe import NetworkChoice, Stage
from oligovox.method import Method
from oligovox.networks.encoder import Encoder
from oligovox.prepare.store import Plan
from oligovox.sample.augment import FLIPS_AND_ROTATIONS, Augmentation


def check_built(
    name: str, method: Method[Any], network: NetworkChoice, stage: Stage, encoder: Encoder, plan: Plan
) -> None:
    """Say whether they fit together: `training.check`, of what is built already.

    Raises:
        SettingsError: method, network, patch and plan do not fit.
    """
    needs, patch = method.needs, stage.patch
    augmentation_of(name, method, stage)
    if len(plan.sequences) < needs.modalities:
        raise SettingsError(
            f"method {name} needs at least {needs.modalities} sequences, the plan has {', '.join(plan.sequences)}; "
            "prepare more sequences or choose another method"
        )
    if stage.batch < (least := fewest(method)):
        raise SettingsError(
            f"method {name} tells patches of a batch apart: batch is {stage.batch}, expected {least} or more"
        )
    for multiple, who in ((encoder.strides[-1], f"network {network.name}"), (needs.patch_multiple, name)):
        if wrong := [side for side in patch if side % multiple]:
            near = max(multiple, round(wrong[0] / multiple) * multiple)
            raise SettingsError(
                f"patch {patch}: {wrong[0]} is not a multiple of {multiple}, as {who} needs; try {near}"
            )
    try:
        encoder.check_sides(patch)
    except GeometryError as error:
        raise SettingsError(f"patch {patch} is too small for network {network.name}: {error}") from error
    try:
        method.check_patch(patch)
    except GeometryError as error:
        raise SettingsError(f"patch {patch} does not suit method {name}: {error}") from error


def augmentation_of(name: str, method: Method[Any], stage: Stage) -> Augmentation:
    """What is done to the exams before the method sees them: what the stage says; of the default without flips where the method needs that.

    Raises:
        SettingsError: flips were asked for, and the method cannot bear them.
    """
    asked = stage.augmentation
    if not (method.needs.unflipped and asked.flip):
        return asked
    if asked == FLIPS_AND_ROTATIONS:
        return asked.model_copy(update={"flip": 0.0})
    raise SettingsError(
        f"method {name} tells how an exam was turned, and a flip along two axes is a half turn: augmentation.flip is {asked.flip:g}, expected 0; "
        "set it to 0, or give the rotation no weight"
    )


def fewest(method: Method[Any]) -> int:
    """Patches in a micro-batch of each process."""
    return max(method.needs.batch, -(-method.needs.together // processes()))
