"""The folder of `oligovox run`: it becomes one command's own, once all that can be said of that command before any work has been said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

from oligovox import catalogue
from oligovox.errors import CohortError, SettingsError
from oligovox.experiment.checking import check_apart
from oligovox.experiment.recipe import Recipe, changed
from oligovox.experiment.training import of_finetuning
from oligovox.files import check_writable, read_json, write_json
from oligovox.settings import parse

_PRETEXTS = ("generative", "masked_reconstruction")
_SEMI: tuple[dict[str, Any], ...] = ({}, {"semi": {"name": "hidden_sequences"}})
"""What a plan chooses from: by the number of sequences, and where some exams lack one."""


def claim(data: Path, out: Path, name: str, asked: Mapping[str, Any]) -> None:
    """Make the folder this command's own.

    Args:
        data: the exams.
        out: the folder.
        name: of the data, as the recipe will have it.
        asked: see `front_door.Asked`.

    Raises:
        CohortError: there are no data.
        OutputError: `out` lies among them, or cannot be written.
        SettingsError: it belongs to another command, or to nobody of oligovox; or no recipe could have such changes.
    """
    if not data.exists():
        raise CohortError(f"{data}: no such folder; expected one with images, or a list or table of them")
    check_apart(data, out)
    check_writable(out)
    check_changes(asked["changes"], name)
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in asked.items()}
    content = {"data": str(data.resolve()), **listed}
    file = out / "asked.json"
    if file.is_file():
        free = _free(out)
        before, now = _binding(read_json(file)), _binding(content)
        if other := next((key for key in now if key not in free and before.get(key) != now[key]), None):
            raise SettingsError(
                f"{out}: was begun with {other} {before.get(other)!r}, now it is {now[other]!r}; "
                "choose another folder, or remove this one"
            )
    elif out.exists() and any(out.iterdir()):
        raise SettingsError(f"{out}: is not empty and was not begun by this command; choose another folder")
    write_json(file, content)


def _free(out: Path) -> set[str]:
    """What may still be asked for otherwise, since nothing stands on it yet."""
    planned, run = (out / "plan" / "plan.yaml").is_file(), (out / "run").exists()
    return (set() if planned else {"hours", "minutes"}) | (set() if run else {"changes"})


def _binding(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked, without what may be asked for later: the final model comes after everything else."""
    return {**asked, "changes": [change for change in asked.get("changes", ()) if not change.startswith("final=")]}


def check_changes(changes: Sequence[str], name: str) -> None:
    """Whether some recipe that may be planned can have these changes: keys, values, and the settings of methods and network.

    Args:
        changes: as "finetune.training.steps=500".
        name: of the cohort.

    Raises:
        SettingsError: none can; says what is wrong with the first.
    """
    refused: list[SettingsError] = []
    for pretext, semi in product(_PRETEXTS, _SEMI):
        try:
            return _check(changes, name, pretext, semi)
        except SettingsError as error:
            refused.append(error)
    raise refused[0]


def _check(changes: Sequence[str], name: str, pretext: str, semi: dict[str, Any]) -> None:
    """Raises SettingsError where one planned recipe cannot have them."""
    recipe = changed(
        Recipe, changes, "--set", name=name, cohorts={name: {"folder": name}}, prepare={"modalities": ["FLAIR", "T1w"]},
        network={"name": "resenc", "settings": {"preset": "tiny"}}, pretrain={"method": pretext}, finetune=deepcopy(semi),
    )  # fmt: skip
    _parse("NETWORK", recipe.network.name, recipe.network.settings)
    _parse("METHOD", *of_finetuning(recipe.finetune))
    if recipe.pretrain:
        _parse("METHOD", recipe.pretrain.method, recipe.pretrain.settings)


def _parse(marker: catalogue.Marker, name: str, settings: Mapping[str, Any]) -> None:
    parse(catalogue.load(marker, name).Settings, settings, f"--set: {marker.lower()} {name}")
