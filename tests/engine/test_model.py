from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from oligovox.engine.model import ModelDescription, load_model, read_description, save_model
from oligovox.errors import CheckpointError

DESCRIPTION = ModelDescription(
    method="generative", network="resenc", modalities=("T1w", "FLAIR"), patch=(32, 32, 32), labels={"lesion": 1}
)


class Exported(nn.Module):
    def __init__(self, *parts: str) -> None:
        super().__init__()
        for part in parts:
            self.add_module(part, nn.Conv3d(2, 2, 1))


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        (["encoder"], "encoder"),
        (["encoder", "decoder"], "encoder-decoder"),
        (["encoder", "decoder", "head"], "segmentation"),
        (["encoder", "head"], "classification"),
    ],
)
def test_round_trip(tmp_path, parts, kind):
    module = Exported(*parts)
    save_model(tmp_path / "model", module, DESCRIPTION)
    weights, description = load_model(tmp_path / "model")
    assert all(torch.equal(weights[name], value) for name, value in module.state_dict().items())
    assert description == DESCRIPTION.model_copy(update={"kind": kind, "sha256": description.sha256})
    assert description.identity == f"generative-resenc-{description.sha256[:12]}"


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path / "model", Exported("encoder"), DESCRIPTION)
    return tmp_path / "model"


def test_changed_weights_are_noticed(folder):
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="was changed or damaged, restore the folder from a copy"):
        load_model(folder)


def test_cut_or_missing_weights(folder):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_model(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other/2"}, r"format is 'other/2', this version reads 'oligovox-model/1'"),
        ({"format": None}, r"format is None"),
        ({"patch": "big"}, r"patch = 'big': .* expected a model folder written by oligovox"),
        ({"colour": "red"}, r"unknown key 'colour'"),
    ],
)
def test_a_foreign_description(folder, change, message):
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        read_description(folder)


def test_no_model_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"model.json: cannot be read as JSON .* expected a model folder"):
        load_model(tmp_path)
