from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from oligovox.engine.fit import Training, build_optimizer, lr_at
from oligovox.engine.log import read_log
from oligovox.errors import CheckpointError, NonFiniteLoss, RunError, SettingsError


class Killed(Exception):
    """Stands for a process that ends without a word."""


def dying(toy: ModuleType, at: int):
    def batches(step: int, micro: int):
        if step == at:
            raise Killed
        return toy.batches(step, micro)

    return batches


def same(toy: ModuleType, a: Path, b: Path) -> bool:
    first, second = toy.all_tensors(a), toy.all_tensors(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(toy, tmp_path, optimizer, channels_last):
    training = toy.settings(12, accumulate=2, optimizer=optimizer, channels_last=channels_last)
    whole = toy.train(tmp_path / "whole", training)
    for at in (2, 4, 8, 11):
        with pytest.raises(Killed):
            toy.train(tmp_path / "parts", training, batches=dying(toy, at))
    parts = toy.train(tmp_path / "parts", training)
    assert same(toy, whole.last, parts.last)
    log, other = ([(row["step"], row["terms"]) for row in read_log(result.log)] for result in (whole, parts))
    assert log == other
    assert [step for step, _ in log] == list(range(12))


def test_kill_minus_nine_at_random_moments(toy, toy_script, tmp_path):
    done = subprocess.run(
        [sys.executable, toy_script, "kill", tmp_path / "killed"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["-9"] * 4 + ["0"]
    whole = toy.train(tmp_path / "whole", toy.settings(60, checkpoint_every=60))
    assert same(toy, whole.last, tmp_path / "killed" / "checkpoints" / "step-00000060")
    assert [row["step"] for row in read_log(tmp_path / "killed" / "log.jsonl")] == list(range(60))
    assert len(list((tmp_path / "killed" / "checkpoints").iterdir())) == 2  # the last state and the index


def test_two_processes_follow_one_that_accumulates(toy, toy_script, tmp_path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--standalone",
        toy_script,
        "ranks",
        tmp_path,
    ]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    one = toy.train(tmp_path / "one", toy.settings(8, accumulate=2))
    first, second = toy.all_tensors(one.last), toy.all_tensors(tmp_path / "good" / "checkpoints" / "step-00000008")
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], rtol=0, atol=1e-6) for name in first)
    log, other = read_log(one.log), read_log(tmp_path / "good" / "log.jsonl")
    assert [row["total"] for row in log] == pytest.approx([row["total"] for row in other], abs=1e-6)
    messages = {(tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1)}
    assert len(messages) == 1  # only the second process saw the NaN
    assert "step 2: loss term 'error' is nan (cases sub-1a, sub-1b)" in messages.pop()


def test_a_wider_step_is_resumed_by_two_processes_or_one(toy, tmp_path):
    """What counts is the number of micro-batches in a step, not who computes them."""
    toy.train(tmp_path, toy.settings(4, accumulate=2))
    saved = json.loads((tmp_path / "checkpoints" / "step-00000004" / "state.json").read_text())
    assert saved["identity"]["training"]["micro_batches"] == 2
    assert "accumulate" not in saved["identity"]["training"]


def test_a_non_finite_loss_names_step_term_and_cases_and_leaves_the_weights(toy, tmp_path):
    training = toy.settings(9, accumulate=2, checkpoint_every=1)
    with pytest.raises(NonFiniteLoss, match=r"step 5: loss term 'error' is nan \(cases sub-1a, sub-1b\)") as caught:
        toy.train(tmp_path / "bad", training, poison_step=5)
    assert (caught.value.step, caught.value.term) == (5, "error")
    weights = toy.all_tensors(tmp_path / "bad" / "checkpoints" / "step-00000005")
    assert all(value.isfinite().all() for value in weights.values())


def test_a_gradient_that_is_not_finite_is_an_error_before_the_weights_move(toy, tmp_path):
    method = toy.Toy()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.never.register_hook(lambda grad: grad * torch.inf)
    method.losses = _with_root_of_zero(method)
    with pytest.raises(NonFiniteLoss, match="gradient norm"):
        toy.fit(method, toy.batches, toy.settings(3), tmp_path, progress=False)
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())


def _with_root_of_zero(method):
    inner = type(method).losses

    def losses(views, clock):
        found = inner(method, views, clock)
        return type(found)(terms={**found.terms, "root": (method.never * 0).sum().sqrt()}, carry=found.carry)

    return losses


def test_learning_rate_worked_values():
    training = Training(steps=10, warmup=0.2, lr=1.0)
    assert [lr_at(step, training) for step in (0, 1, 2, 6)] == pytest.approx([0.5, 1.0, 1.0, 0.5])
    assert lr_at(9, training) == pytest.approx(0.0380602, abs=1e-7)  # (1 + cos(7π/8)) / 2
    floored = Training(steps=10, warmup=0, lr=1.0, final_lr=0.5)
    assert lr_at(5, floored) == pytest.approx(0.75)


def test_after_step_runs_once_per_optimiser_step(toy, tmp_path):
    assert toy.train(tmp_path, toy.settings(5, accumulate=3)).method.after == [0, 1, 2, 3, 4]


def test_weight_decay_spares_biases_and_frozen_parameters_are_not_trained(toy):
    method = toy.Toy()
    wide, narrow = build_optimizer(method, Training(weight_decay=0.3)).param_groups
    assert (wide["weight_decay"], narrow["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in narrow["params"]} == {1}
    trained = {id(p) for group in (wide, narrow) for p in group["params"]}
    assert not trained & {id(p) for p in method.mean_net.parameters()}
    with pytest.raises(SettingsError, match="nothing to train"):
        build_optimizer(method.requires_grad_(False), Training())


def test_the_best_and_the_last_state_are_kept(toy, tmp_path):
    values = iter([0.2, 0.7, float("nan"), 0.7, 0.1])
    seen = []

    def validate(method):
        seen.append((method.training, torch.is_grad_enabled()))
        return {"dice": next(values)}

    result = toy.train(tmp_path, toy.settings(9, validate_every=2, checkpoint_every=100), validate=validate)
    assert seen == [(False, False)] * 5
    assert (result.best, result.best_step, result.chosen.name, result.last.name) == (
        0.7,
        4,
        "step-00000004",
        "step-00000009",
    )
    assert result.method.training
    assert {f.name for f in (tmp_path / "checkpoints").iterdir()} == {"index.json", "step-00000004", "step-00000009"}
    rows = {row["step"]: row["validation"]["dice"] for row in read_log(result.log) if "validation" in row}
    assert rows == {1: 0.2, 3: 0.7, 5: None, 7: 0.7, 8: 0.1}
    best = {name: value.clone() for name, value in result.best_method().state_dict().items()}
    assert all(torch.equal(value, toy.all_tensors(result.chosen)[name]) for name, value in best.items())


def test_a_finished_run_returns_at_once_with_its_weights(toy, tmp_path):
    first = toy.train(tmp_path, toy.settings(3))
    again = toy.train(tmp_path, toy.settings(3), batches=dying(toy, 0))
    assert again.steps == 3
    assert all(torch.equal(a, b) for a, b in zip(first.method.parameters(), again.method.parameters(), strict=True))


def test_a_run_that_stops_short_is_the_first_part_of_the_whole_one(toy, tmp_path):
    whole = toy.train(tmp_path / "whole", toy.settings(12))
    with pytest.raises(Killed):
        toy.train(tmp_path / "short", toy.settings(12, stop_at=7), batches=dying(toy, 5))
    short = toy.train(tmp_path / "short", toy.settings(12, stop_at=7))
    assert short.steps == 7
    log, other = ([(row["lr"], row["terms"]) for row in read_log(result.log)] for result in (whole, short))
    assert log[:7] == other
    assert short.last.name == "step-00000007"
    assert toy.settings(12, stop_at=99).taken == toy.settings(12).taken == 12


def test_an_unknown_metric_is_named(toy, tmp_path):
    with pytest.raises(SettingsError, match=r"best_by = 'dice', but validation returns f1"):
        toy.train(tmp_path, toy.settings(2), validate=lambda method: {"f1": 0.1})


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"lr": 0.5}, {}, r"training.lr = 0.001, asked for 0.5; use the same settings"),
        ({"steps": 5}, {}, r"training.steps = 4, asked for 5"),
        ({"accumulate": 2}, {}, r"training.micro_batches = 1, asked for 2"),
        ({"precision": "bf16-mixed"}, {}, r"training.precision = \"32-true\", asked for \"bf16-mixed\""),
        ({}, {"describe": {"method": {"ratio": 0.5}}}, r"describe.method.ratio = 0.75, asked for 0.5"),
        (
            {},
            {"width": 3},
            r"tensor 'mean_net.weight' is shape \(2, 2, 1, 1, 1\) in the file and shape \(2, 3, 1, 1, 1\)",
        ),
    ],
)
def test_another_run_in_the_same_folder_is_refused(toy, tmp_path, changes, options, message):
    described = {"describe": {"method": {"ratio": 0.75}, "version": "1"}}
    toy.train(tmp_path, toy.settings(4), **described)
    with pytest.raises(CheckpointError, match=message):
        toy.train(tmp_path, toy.settings(changes.pop("steps", 4), **changes), **(described | options))


def test_other_hardware_and_another_version_may_go_on(toy, tmp_path):
    toy.train(tmp_path, toy.settings(4), describe={"version": "1"})
    toy.train(tmp_path, toy.settings(4, channels_last=True, workers=1, checkpoint_every=1), describe={"version": "2"})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(toy, tmp_path, number):
    def batches(step: int, micro: int):
        if step == 5:
            os.kill(os.getpid(), number)
            time.sleep(0.05)  # until the main thread has seen it
        return toy.batches(step, micro)

    training = toy.settings(40, checkpoint_every=100)
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(
        RunError, match=rf"stopped by {number.name} after step \d+ of 40; .* run the same command again"
    ):
        toy.train(tmp_path / "parts", training, batches=batches)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert same(toy, toy.train(tmp_path / "parts", training).last, toy.train(tmp_path / "whole", training).last)


def test_global_randomness_is_given_back(toy, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    method = toy.Toy()
    torch.manual_seed(5)
    toy.fit(method, toy.batches, toy.settings(2), tmp_path, progress=False)
    assert torch.equal(torch.rand(3), expected)


def test_terms_that_come_and_go_are_refused(toy, tmp_path):
    method = toy.Toy()
    inner = type(method).losses

    def losses(views, clock):
        found = inner(method, views, clock)
        return (
            found if views.target.mean() > 0 else type(found)(terms={"error": found.terms["error"]}, carry=found.carry)
        )

    method.losses = losses
    with pytest.raises(RunError, match="the same terms for every batch"):
        toy.fit(method, toy.batches, toy.settings(2, accumulate=2), tmp_path, progress=False)
