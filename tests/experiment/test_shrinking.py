"""Training out of memory: what is given up, what is said, and that a run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oligovox import experiment
from oligovox.errors import RunError
from oligovox.experiment.recipe import Finetune, NetworkChoice
from oligovox.experiment.shrinking import Limits, Size, is_out_of_memory, smaller, until_it_fits
from oligovox.sample.batch import Batch
from oligovox.sample.patches import PatchSource
from oligovox.settings import parse

ASKED = Size(counts=(4, 2), patch=(32, 16, 16))


def test_a_method_that_tells_patches_apart_keeps_two(tmp_path: Path) -> None:
    assert smaller(Size(counts=(4,), patch=(32, 32, 32)), Limits(8, 2)) == Size(counts=(2,), patch=(32, 32, 32))
    assert smaller(Size(counts=(2,), patch=(32, 32, 32)), Limits(8, 2)) == Size(counts=(2,), patch=(24, 32, 32))
    assert smaller(Size(counts=(2, 2), patch=(32, 32, 32)), Limits(8, 2)) == Size(counts=(1, 1), patch=(32, 32, 32))


def test_the_batch_is_halved_then_the_longest_side_is_cut() -> None:
    found = [ASKED]
    while following := smaller(found[-1], Limits(8)):
        found.append(following)
    assert [(size.counts, size.patch) for size in found[1:]] == [
        ((2, 1), (32, 16, 16)),
        ((1, 1), (32, 16, 16)),
        ((1, 1), (24, 16, 16)),
        ((1, 1), (16, 16, 16)),
        ((1, 1), (8, 16, 16)),
        ((1, 1), (8, 8, 16)),
    ], "two voxels are left at the deepest stride, which a norm needs"


def test_a_method_that_takes_cubes_only_is_given_smaller_cubes() -> None:
    limits = Limits(8, takes=lambda patch: len(set(patch)) == 1)
    found = [Size(counts=(1,), patch=(32, 32, 32))]
    while following := smaller(found[-1], limits):
        found.append(following)
    assert [size.patch for size in found] == [(32, 32, 32), (24, 24, 24), (16, 16, 16)]
    deep = Limits(8, takes=lambda patch: min(patch[:2]) >= 16)  # blocks along x and y that no strip may swallow
    assert smaller(Size(counts=(1,), patch=(16, 16, 16)), deep) == Size(counts=(1,), patch=(16, 16, 8))


@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=3), st.tuples(*[st.integers(1, 5)] * 3), st.sampled_from([4, 16])
)
def test_every_size_is_smaller_and_still_one_the_network_takes(
    counts: list[int], sides: tuple[int, int, int], multiple: int
) -> None:
    size = Size(counts=tuple(counts), patch=tuple(multiple * side for side in sides))  # type: ignore[arg-type]
    while following := smaller(size, Limits(multiple)):
        assert sum(following.counts) * sum(following.patch) < sum(size.counts) * sum(size.patch)
        assert min(following.counts) >= 1
        assert all(side >= multiple and side % multiple == 0 for side in following.patch)
        assert max(following.patch) >= 2 * multiple or following.patch == size.patch
        size = following


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, memory: bool) -> None:
    assert is_out_of_memory(error) is memory


def test_a_smaller_size_is_said_noted_and_used_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tried: list[Size] = []

    def work(size: Size) -> str:
        tried.append(size)
        if max(size.counts) > 1:
            raise MemoryError
        return "done"

    assert until_it_fits(work, ASKED, lambda: Limits(8), tmp_path) == "done"
    assert [size.counts for size in tried] == [(4, 2), (2, 1), (1, 1)]
    lines = capsys.readouterr().err.strip().splitlines()
    assert (
        lines[0]
        == f"{tmp_path}: out of memory with batch 4 + 2, patch 32 x 16 x 16; goes on with batch 2 + 1, patch 32 x 16 x 16"
    )
    assert json.loads((tmp_path / "smaller.json").read_text())["used"] == {"counts": [1, 1], "patch": [32, 16, 16]}
    tried.clear()
    until_it_fits(work, ASKED, lambda: Limits(8), tmp_path)
    assert [size.counts for size in tried] == [(1, 1)], "a resumed run does not fail twice"
    tried.clear()
    other = Size(counts=(2,), patch=(16, 16, 16))
    until_it_fits(work, other, lambda: Limits(8), tmp_path)
    assert tried[0] == other, "other settings are another run"


def test_nothing_smaller_is_one_line_and_other_errors_pass(tmp_path: Path) -> None:
    def never(size: Size) -> None:
        raise MemoryError

    with pytest.raises(RunError, match=r"out of memory even with batch 1, patch 8 x 8 x 16; choose a smaller network"):
        until_it_fits(never, Size(counts=(1,), patch=(16, 8, 16)), lambda: Limits(8), tmp_path)

    def broken(size: Size) -> None:
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        until_it_fits(broken, ASKED, lambda: Limits(8), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_training_goes_on_from_its_checkpoint_with_half_the_batch(
    make_phantom: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_phantom(tmp_path / "phantom", subjects=2, labelled=2, side=20)
    experiment.prepare(tmp_path / "phantom", tmp_path / "store", workers=1)
    cut, real = [], PatchSource.batch

    def batch(self: PatchSource, step: int, micro: int) -> Batch:
        if step >= 3 and self.size > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")
        cut.append((step, self.size))
        return real(self, step, micro)

    monkeypatch.setattr(PatchSource, "batch", batch)
    training = {"steps": 5, "checkpoint_every": 2, "threads": 1, "prefetch": 1, "workers": 1, "tensorboard": "off"}
    stage = parse(Finetune, {"patch": [16, 16, 16], "batch": 2, "training": training}, "test")
    network = NetworkChoice(settings={"preset": "nano"})
    model = experiment.finetune(tmp_path / "store", tmp_path / "run", stage=stage, network=network)
    assert [step for step, size in cut if size == 1] == [2, 3, 4], (
        "from the checkpoint after two steps, not from the start"
    )
    rows = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert rows == [0, 1, 2, 3, 4]
    before = len(cut)
    assert experiment.finetune(tmp_path / "store", tmp_path / "run", stage=stage, network=network) == model
    assert len(cut) == before, "a finished run returns at once"
