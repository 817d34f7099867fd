"""Contrastive losses: worked values, a second implementation, and two processes that act as one."""

from __future__ import annotations

import subprocess
import sys
from math import e, log
from pathlib import Path

import pytest
import torch
from torch import Tensor

from oligovox.errors import SettingsError
from oligovox.losses.contrast import info_nce, nt_xent


def embeddings(n: int = 4, d: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, n, d, generator=rng, dtype=torch.float32)
    return first.requires_grad_(), second.requires_grad_()


def by_hand(first: Tensor, second: Tensor, temperature: float) -> float:
    """Equation 1 of the paper, term by term."""
    n, z = len(first), torch.cat([first, second]).detach()
    similar = [[float(torch.cosine_similarity(a, b, dim=0)) / temperature for b in z] for a in z]
    terms = []
    for i in range(2 * n):
        others = sum(e ** similar[i][k] for k in range(2 * n) if k != i)
        terms.append(-log(e ** similar[i][(i + n) % (2 * n)] / others))
    return sum(terms) / (2 * n)


def test_nt_xent_worked_value() -> None:
    first = torch.tensor([[2.0, 0.0], [0.0, 5.0]])  # two pairs at right angles: cosines 1, 0, 0
    assert nt_xent(first, 3 * first, 0.5).item() == pytest.approx(log(e**2 + 2) - 2, abs=1e-6)
    assert nt_xent(first, first.flip(0), 1.0).item() == pytest.approx(log(e + 2), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_nt_xent_is_equation_1(temperature: float) -> None:
    first, second = embeddings()
    assert nt_xent(first, second, temperature).item() == pytest.approx(by_hand(first, second, temperature), rel=1e-5)


def test_info_nce_worked_value_and_direction() -> None:
    query, key = torch.eye(3), torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0]])
    rows = [log(2 * e + 1) - 1, log(3), log(e + 2) - 1]  # its own key is one of two alike, at a right angle, the best
    assert info_nce(query, 7 * key, 1.0).item() == pytest.approx(sum(rows) / 3, abs=1e-6)
    assert info_nce(key, query, 1.0).item() != pytest.approx(sum(rows) / 3, abs=1e-3)


def test_gradients_reach_both_sides_and_nobody_is_a_gradient_of_zero() -> None:
    for loss in (nt_xent, info_nce):
        first, second = embeddings()
        loss(first, second, 0.5).backward()
        assert first.grad is not None
        assert second.grad is not None
        assert first.grad.any()
        assert second.grad.any()
        nobody, none = embeddings(n=0)
        empty = loss(nobody, none, 0.5)
        empty.backward()
        assert empty.item() == 0.0


def test_one_pair_is_refused_where_nothing_else_is_there() -> None:
    with pytest.raises(SettingsError, match="one pair in all"):
        nt_xent(*embeddings(n=1), 0.5)


def test_half_precision_is_compared_in_float32() -> None:
    first, second = embeddings(n=8)
    expected = nt_xent(first, second, 0.07)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(nt_xent(first, second, 0.07), expected)


# One start of Python, which then splits: torch is slow to import.
_TWO = """
import os, sys, torch
from datetime import timedelta
from torch import distributed
from oligovox.losses.contrast import info_nce, nt_xent
torch.set_num_threads(1)
folder, child = sys.argv[1], os.fork()
rank = int(child == 0)
rows = slice(0, 3) if rank == 0 else slice(3, 6)
first, second = (part[rows].clone().requires_grad_() for part in torch.load(f"{folder}/whole.pt"))
distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60))
found = {}
for name, loss in (("nt_xent", nt_xent), ("info_nce", info_nce)):
    value = loss(first, second, 0.5)
    found[name] = (value.detach(), *(g / 2 for g in torch.autograd.grad(value, (first, second))))
uneven = info_nce(first[rank:], second[rank:], 0.5)
found["uneven"] = (uneven.detach(),)
torch.autograd.grad(uneven, second)
torch.save(found, f"{folder}/{rank}.pt")
distributed.destroy_process_group()
sys.exit(0 if rank else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_two_processes_are_one_with_all_pairs(tmp_path: Path) -> None:
    """Mean of the losses and gradients over the processes, as the training loop takes it."""
    first, second = embeddings(n=6)
    torch.save((first.detach(), second.detach()), tmp_path / "whole.pt")
    subprocess.run([sys.executable, "-c", _TWO, str(tmp_path)], check=True, timeout=120)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for name, loss in (("nt_xent", nt_xent), ("info_nce", info_nce)):
        value = loss(first, second, 0.5)
        gradients = torch.autograd.grad(value, (first, second))
        torch.testing.assert_close((parts[0][name][0] + parts[1][name][0]) / 2, value.detach())
        for side, whole in enumerate(gradients, start=1):
            torch.testing.assert_close(torch.cat([part[name][side] for part in parts]), whole)
    kept = [0, 1, 2, 4, 5]  # the second process held one pair less
    uneven = (3 * parts[0]["uneven"][0] + 2 * parts[1]["uneven"][0]) / 5
    torch.testing.assert_close(uneven, info_nce(first[kept], second[kept], 0.5).detach())
