from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from oligovox.engine.runtime import Hardware, Runtime, tune_allocator
from oligovox.errors import SettingsError


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_where_there_is_none_is_one_clear_line():
    with pytest.raises(
        SettingsError, match=r"device: cuda, but PyTorch .* sees no GPU here; set device: cpu"
    ) as caught:
        Runtime(Hardware(device="cuda"))
    assert "\n" not in str(caught.value)


def test_cluster_variables_that_contradict_each_other_are_one_clear_line(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_NNODES", "1")
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    with pytest.raises(
        SettingsError, match=r"2 process\(es\) on 1 node\(s\) cannot start: .*--ntasks-per-node"
    ) as caught:
        Runtime(Hardware(device="cpu"))
    assert "\n" not in str(caught.value)


def test_randomness_is_a_pure_function_of_seed_step_and_micro_batch():
    runtime = Runtime(Hardware(device="cpu"))
    draws = {}
    for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0)]:
        views = torch.rand(1, generator=runtime.seeded(*key)).item()
        dropout = torch.rand(1).item()
        assert draws.setdefault(key, (views, dropout)) == (views, dropout)
    values = [value for pair in draws.values() for value in pair]
    assert len(set(values)) == len(values)
    assert draws[0, 0, 0] == pytest.approx(
        (0.11343264579772949, 0.9516546130180359)
    )  # pinned: an old run must go on with a new release


def test_precision_is_resolved_and_applied():
    runtime = Runtime(Hardware(device="cpu", precision="bf16-mixed"))
    with runtime.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert Runtime(Hardware(device="cpu")).precision in ("32-true", "bf16-mixed")


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("kind", [nn.Conv3d, nn.ConvTranspose3d])
def test_bfloat16_on_the_cpu_has_the_gradients_of_float32_on_small_grids(kind, side):
    torch.manual_seed(0)
    conv, image = kind(16, 32, 3, padding=1), torch.randn(2, 16, side, side, side)
    conv(image).square().sum().backward()
    expected = conv.weight.grad
    for _ in range(5):
        conv.weight.grad = None
        rubbish = [torch.full((conv.weight.numel(),), 1e30) for _ in range(4)]
        del rubbish  # what a kernel that does not write its whole output would show
        with Runtime(Hardware(device="cpu", precision="bf16-mixed")).autocast():
            out = conv(image)
        out.float().square().sum().backward()
        assert torch.allclose(conv.weight.grad, expected, rtol=0, atol=0.05 * expected.abs().max())


def test_the_allocator_is_tuned_on_glibc_only():
    assert tune_allocator() == (platform.libc_ver()[0] == "glibc")


def test_models_are_read_without_the_distributed_runtime():
    code = "import sys, oligovox.engine.model, oligovox.engine.fit; assert 'lightning_fabric' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_fabric_says_nothing(caplog, capfd):
    caplog.set_level("INFO")
    Runtime(Hardware(device="cpu", precision="bf16-mixed"))  # here Fabric announces the precision by itself
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
