"""A benchmark ground: people, grid, network and schedule that studies share, frozen under a version before any method is compared on it.

    name: ms
    version: 1
    why: what is hard here, and where that was measured
    common: {cohorts: …, split: …}              keys of a study, the same in both sizes
    cpu: {prepare: {spacing: [2, 2, 2]}, …}     two cores
    gpu: {prepare: {spacing: [1, 1, 1]}, …}     one GPU

A study stands on it with `ground: {file: grounds/ms.yaml, size: cpu}`. What the study says itself wins; it says so in its own file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field

from oligovox.experiment.recipe import Positive, overlaid, read_settings
from oligovox.settings import Settings, parse

Size: TypeAlias = Literal["cpu", "gpu"]


class GroundFile(Settings):
    """A ground in its two sizes."""

    name: str = Field(description="of the ground")
    version: Positive = Field(description="another one whenever anything else in the file changes")
    why: str = Field(description="what is hard here, and where that was measured")
    common: dict[str, Any] = Field(description="keys of a study, for both sizes")
    cpu: dict[str, Any] = Field(description="keys of a study: 2 mm and a small network, for two cores")
    gpu: dict[str, Any] = Field(description="keys of a study: 1 mm and networks as they are published, for one GPU")

    def of_size(self, size: Size) -> dict[str, Any]:
        """The keys of a study."""
        return overlaid(self.common, self.cpu if size == "cpu" else self.gpu)

    def sha256(self, size: Size) -> str:
        """Of what a size says, whatever the order of its keys."""
        return hashlib.sha256(json.dumps(self.of_size(size), sort_keys=True).encode()).hexdigest()


class GroundChoice(Settings):
    """Which ground a study stands on."""

    file: str = Field(description="path, relative to the study")
    size: Size = Field("cpu", description="cpu or gpu")


def read_ground(path: Path) -> GroundFile:
    """Read a ground.

    Raises:
        SettingsError: not a file, not YAML, an unknown key, a wrong value; names the place in one line.
    """
    return read_settings(GroundFile, path)


def on_ground(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The content of a study, laid over the ground that it names; as it is, where it names none or was resolved before.

    Args:
        content: of the study's file.
        path: of the study's file.

    Raises:
        SettingsError: the ground cannot be read.
    """
    if not isinstance(content.get("ground"), Mapping):
        return dict(content)
    choice = parse(GroundChoice, content["ground"], f"{path}: ground")
    ground = read_ground(path.parent / Path(choice.file).expanduser())
    version = f"{ground.name} {ground.version} ({choice.size}), SHA-256 {ground.sha256(choice.size)[:12]}"
    return {**overlaid(ground.of_size(choice.size), content), "ground": version}
