"""Two processes started by torchrun follow one process that takes as many micro-batches in a step, through the command line.

They follow it within rounding only: gradients are added in another order. What is compared is what leaves the run (the model folder)
and its log. Micro-batches are numbered over all processes (rank · accumulate + a), so two processes see exactly the patches and draw
exactly the augmentation of one that accumulates.

One process with literally the doubled batch sees other patches: places are numbered within a micro-batch, (micro 1, slot 0) in one case
and (micro 0, slot 2) in the other, and a patch is a function of (seed, step, micro, slot). What can be asked there is asked of the same
patches, put together by hand, with augmentation off: `test_two_micro_batches_are_one_of_twice_the_size`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from oligovox import experiment
from oligovox.cohort.splits import Split
from oligovox.engine.fit import Training, fit
from oligovox.engine.log import read_log
from oligovox.engine.model import load_model
from oligovox.experiment.recipe import Finetune, NetworkChoice, Pretrain, Semi
from oligovox.experiment.training import build_encoder, build_method
from oligovox.prepare.store import Store
from oligovox.sample.batch import Batch
from oligovox.sample.patches import PatchSource, Stream

NANO = NetworkChoice.named("resenc", "nano")
PATCH = (16, 16, 16)
STEPS = 6


def training(accumulate: int = 1) -> Training:
    return Training(
        steps=STEPS, accumulate=accumulate, device="cpu", precision="32-true", threads=1, tensorboard="off",
        checkpoint_every=2, validate_every=3,
    )  # fmt: skip


OPTIONS = [
    *("--steps", str(STEPS)),
    *(part for change in (
        "patch=[16,16,16]", "training.device=cpu", "training.precision=32-true", "training.threads=1",
        "training.tensorboard=off", "training.checkpoint_every=2", "training.validate_every=3",
    ) for part in ("--set", change)),
]  # fmt: skip


def two_processes(verb: str, *arguments: object) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "oligovox"]
    done = subprocess.run(
        [*command, verb, *map(str, arguments)], capture_output=True, text=True, timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def follows(one: Path, two: Path) -> None:
    """The same model and losses within rounding, and one whole run folder."""
    (first, about), (second, other) = load_model(one / "model"), load_model(two / "model")
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert about.model_copy(update={"sha256": ""}) == other.model_copy(update={"sha256": ""})
    log, log_two = read_log(one / "log.jsonl"), read_log(two / "log.jsonl")
    assert [row["step"] for row in log_two] == list(range(STEPS))
    for row, row_two in zip(log, log_two, strict=True):
        assert row_two["terms"] == pytest.approx(row["terms"], rel=1e-4, abs=1e-5)
        assert row_two["norm"] == pytest.approx(row["norm"], rel=1e-3)
        assert row_two.get("validation") == pytest.approx(row.get("validation"), abs=1e-3)
    assert sorted(p.relative_to(two) for p in two.rglob("*")) == sorted(p.relative_to(one) for p in one.rglob("*"))
    assert not list(two.rglob(".tmp-*"))


def test_pretrain_and_finetune_in_two_processes(phantom: Path, tmp_path: Path) -> None:
    experiment.prepare(phantom, tmp_path / "store", workers=1)
    store, start = tmp_path / "store", tmp_path / "pretrain"
    experiment.pretrain(store, start, stage=Pretrain(patch=PATCH, training=training(2)), network=NANO)
    two_processes("pretrain", store, "--out", tmp_path / "pretrain_two", "--preset", "nano", *OPTIONS)
    follows(start, tmp_path / "pretrain_two")

    split = Split(train=("01", "02"), validation=("03",), test=("04",), seed=0)
    split.save(tmp_path / "split.json")
    stage = Finetune(patch=PATCH, training=training(2))
    experiment.finetune(store, tmp_path / "finetune", stage=stage, start=start, split=split)
    chosen = ["--from", start, "--split", tmp_path / "split.json"]
    two_processes("finetune", store, "--out", tmp_path / "finetune_two", *chosen, *OPTIONS)
    follows(tmp_path / "finetune", tmp_path / "finetune_two")


def test_what_heads_read_is_standardised_alike_in_two_processes(phantom: Path, tmp_path: Path) -> None:
    experiment.prepare(phantom, tmp_path / "store", workers=1)
    store, patch = tmp_path / "store", (32, 32, 32)
    stage = Pretrain(method="slem", patch=patch, training=training(2), settings={"per_block": True})
    experiment.pretrain(store, tmp_path / "one", stage=stage, network=NANO)
    chosen = [
        "--method",
        "slem",
        "--set",
        "settings.per_block=true",
        "--preset",
        "nano",
        *OPTIONS,
        "--set",
        "patch=[32,32,32]",
    ]
    two_processes("pretrain", store, "--out", tmp_path / "two", *chosen)
    follows(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("strategy", ["mean_teacher", "cross_pseudo"])
def test_a_strategy_in_two_processes(phantom: Path, tmp_path: Path, strategy: str) -> None:
    """A teacher and a second network are the same on both, and exams without a label are shared out as the others are."""
    experiment.prepare(phantom, tmp_path / "store", workers=1)
    store = tmp_path / "store"
    split = Split(train=("01", "02"), validation=("03",), test=("04",), seed=0)
    split.save(tmp_path / "split.json")
    stage = Finetune(patch=PATCH, training=training(2), semi=Semi(name=strategy))
    experiment.finetune(store, tmp_path / "one", stage=stage, network=NANO, labels=1, split=split)
    chosen = ["--split", tmp_path / "split.json", "--labels", "1", "--semi", strategy, "--preset", "nano"]
    two_processes("finetune", store, "--out", tmp_path / "two", *chosen, *OPTIONS)
    follows(tmp_path / "one", tmp_path / "two")


def joined(parts: list[Batch]) -> Batch:
    """One batch of several."""
    tensors = {
        f.name: torch.cat([getattr(part, f.name) for part in parts])
        for f in fields(Batch)
        if isinstance(getattr(parts[0], f.name), Tensor)
    }
    return replace(parts[0], **tensors, cases=tuple(case for part in parts for case in part.cases))


def test_two_micro_batches_are_one_of_twice_the_size(phantom: Path, tmp_path: Path) -> None:
    """Segmentation without augmentation on the same patches: the mean over samples is the mean over micro-batches.

    Every sample has labelled voxels here; a loss that is a mean over labelled samples would otherwise weigh them differently.
    """
    experiment.prepare(phantom, tmp_path / "store", workers=1)
    store = Store.open(tmp_path / "store")
    source = PatchSource(store.plan, [Stream(store.labelled, 2, "lesion")], PATCH, seed=0)

    def run(name: str, accumulate: int) -> dict[str, Tensor]:
        torch.manual_seed(0)
        method = build_method("segmentation", {}, build_encoder(NANO, store.plan.modalities))

        def batches(step: int, micro: int) -> Batch:
            both = [source.batch(step, number) for number in (0, 1)]
            return both[micro] if accumulate == 2 else joined(both)

        fit(method, batches, training(accumulate), tmp_path / name, progress=False)
        return method.export().state_dict()

    micro, double = run("micro", 2), run("double", 1)
    for name, value in micro.items():
        torch.testing.assert_close(double[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
