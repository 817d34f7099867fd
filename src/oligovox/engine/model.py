"""Model folder: what leaves training. `weights.safetensors` beside `model.json`, which says what they are and how to use them."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from oligovox.engine.checkpoint import read_object, read_tensors, write_tensors
from oligovox.errors import CheckpointError, SettingsError
from oligovox.files import atomic_folder, hash_file, write_json
from oligovox.settings import Settings, parse

_FORMAT = "oligovox-model/1"
_TODO = "expected a model folder written by oligovox"


class ModelDescription(Settings):
    """What a model folder says about itself: enough to build the network, to prepare its input and to know where it is from."""

    format: Literal["oligovox-model/1"] = "oligovox-model/1"
    kind: Literal["encoder", "encoder-decoder", "segmentation", "classification"] | None = Field(
        None, description="where the caller does not say it, set by save_model"
    )
    sha256: str = Field("", description="of weights.safetensors; set by save_model")
    method: str = Field(description="name in the catalogue")
    settings: dict[str, Any] = Field(default_factory=dict, description="of the method")
    network: str = Field(description="name of the encoder in the catalogue")
    network_settings: dict[str, Any] = Field(default_factory=dict)
    modalities: tuple[str, ...] = Field(description="names of the input channels, in order")
    plan: dict[str, Any] = Field(default_factory=dict, description="how its volumes were prepared")
    labels: dict[str, int] = Field(default_factory=dict, description="class name → value")
    patch: tuple[int, int, int] = Field(description="voxels of the prepared grid")
    trained_on: tuple[str, ...] = Field((), description="people whose images it has seen, here and in its start")
    transductive: bool = Field(False, description="images of test people were seen, without their labels")
    parent: str | None = Field(None, description="identity of the model it started from")
    version: str = Field(version("oligovox"), description="of oligovox")

    @property
    def identity(self) -> str:
        """Method, network and the first 12 digits of the weights' SHA-256: the name by which a child remembers its parent."""
        return f"{self.method}-{self.network}-{self.sha256[:12]}"


def save_model(folder: Path, module: nn.Module, description: ModelDescription) -> None:
    """Write a model folder; it lands whole or not at all.

    Args:
        folder: replaced if it exists.
        module: what a method exports: has `encoder` (or is one), and maybe `decoder` and `head`.
        description: its `sha256` is set here, and its `kind`, unless that is given.

    Raises:
        OutputError: the folder cannot be written.
    """
    kind = "classification" if hasattr(module, "head") else "encoder"
    if hasattr(module, "decoder"):
        kind = "segmentation" if hasattr(module, "head") else "encoder-decoder"
    with atomic_folder(folder) as temporary:
        write_tensors(temporary / "weights.safetensors", module.state_dict())
        found = {"kind": description.kind or kind, "sha256": hash_file(temporary / "weights.safetensors")}
        write_json(temporary / "model.json", description.model_copy(update=found).model_dump(mode="json"))


def load_model(folder: Path) -> tuple[dict[str, Tensor], ModelDescription]:
    """Read a model folder; the weights come onto the CPU. Builds no network, runs nothing that the folder holds.

    Raises:
        CheckpointError: a file is missing, cut, changed or of another format.
    """
    description, path = read_description(folder), folder / "weights.safetensors"
    weights = read_tensors(path)
    if (found := hash_file(path)) != description.sha256:
        raise CheckpointError(f"{path}: its SHA-256 is {found[:12]}…, model.json says {description.sha256[:12]}…; "
                              "the file was changed or damaged, restore the folder from a copy")  # fmt: skip
    return weights, description


def read_description(folder: Path) -> ModelDescription:
    """Read model.json alone.

    Raises:
        CheckpointError: as `load_model`.
    """
    path = folder / "model.json"
    content = read_object(path, _TODO)
    if (found := content.get("format")) != _FORMAT:
        raise CheckpointError(
            f"{path}: format is {found!r}, this version reads '{_FORMAT}'; {_TODO}, or update oligovox"
        )
    try:
        return parse(ModelDescription, content, str(path))
    except SettingsError as error:
        raise CheckpointError(f"{error}; {_TODO}") from None
