from __future__ import annotations

import json

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from oligovox.engine.checkpoint import (
    Checkpoints,
    State,
    difference,
    load_weights,
    read_tensors,
    restore,
    write_tensors,
)
from oligovox.errors import CheckpointError, OutputError


def test_shared_and_strided_tensors_survive(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    tensors = {"a": shared, "again": shared, "turned": shared.T, "part": shared[:, 1], "scalar": torch.tensor(3)}
    write_tensors(tmp_path / "t.safetensors", tensors)
    back = read_tensors(tmp_path / "t.safetensors")
    assert all(torch.equal(back[name], value) for name, value in tensors.items())


@pytest.fixture
def saved(tmp_path):
    method = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(method.parameters())
    method(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    folder = Checkpoints(tmp_path).save(method, optimizer, State(step=7, identity={}))
    return method, optimizer, folder


@pytest.mark.parametrize("keep", [0, 7, 40, -1])
@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors"])
def test_a_cut_file_is_a_clear_error(saved, file, keep):
    method, optimizer, folder = saved
    path = folder / file
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=rf"{file}: cannot be read as safetensors .* restore it from a copy"):
        restore(folder, method, optimizer)


def test_a_header_that_lies_about_its_length_is_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        read_tensors(tmp_path / "w.safetensors")


def test_a_pickle_is_not_opened(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        read_tensors(tmp_path / "w.safetensors")


def test_a_missing_file_is_named(saved):
    method, _, folder = saved
    (folder / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"weights.safetensors: is missing"):
        load_weights(folder, method)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"last": "../elsewhere"}', '{"last": "step-00000009"}', '{"last": "step-1/.."}']
)
def test_a_damaged_index_is_an_error_that_says_what_to_do(saved, text):
    index = saved[2].parent / "index.json"
    index.write_text(text)
    with pytest.raises(CheckpointError, match=r"index.json: .* restore it from a copy, or remove .* to start anew"):
        Checkpoints(index.parent).find("last")


def test_the_index_is_switched_only_when_the_new_state_is_complete(saved, monkeypatch):
    method, optimizer, folder = saved
    checkpoints = Checkpoints(folder.parent)
    monkeypatch.setattr("oligovox.engine.checkpoint.save_file", _full_disk)
    with pytest.raises(OutputError, match=r"step-00000008: cannot be written \(.*No space left"):
        checkpoints.save(method, optimizer, State(step=8, identity={}))
    assert checkpoints.find("last") == folder
    assert [f.name for f in folder.parent.glob("step-*")] == ["step-00000007"]
    restore(folder, method, optimizer)


def _full_disk(tensors: object, path: object) -> None:
    raise SafetensorError("I/O error: No space left on device (os error 28)")


def test_leftovers_that_the_index_does_not_name_are_removed(saved):
    stray = saved[2].parent / "step-00000009"
    stray.mkdir()
    Checkpoints(stray.parent).tidy()
    assert not stray.exists()
    assert json.loads((stray.parent / "index.json").read_text()) == {"last": "step-00000007", "best": None}


def test_difference_names_the_first_place():
    assert difference({"a": {"b": [1, 2]}, "version": 1}, {"a": {"b": [1, 2]}, "version": 2}) is None
    assert difference({"a": {"b": 1}}, {"a": {"b": 2}}) == "a.b = 1, asked for 2"
    assert difference({"a": 1}, {"a": 1, "z": "x"}) == 'z = null, asked for "x"'
