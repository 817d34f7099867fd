"""Masked means: worked values, and what they must not see."""

from __future__ import annotations

import pytest
import torch

from oligovox.losses.masked import masked_mean


def test_worked_values() -> None:
    value = torch.tensor([[1.0, 2.0, 9.0], [4.0, 5.0, 6.0]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(value, mask).item() == 1.5
    assert masked_mean(value, mask, dim=(1,)).tolist() == [1.5, 0.0]
    assert masked_mean(value, torch.tensor([[1.0, 3.0, 0.0], [0.0, 0.0, 0.0]])).item() == 1.75


def test_uncounted_values_may_be_anything() -> None:
    value = torch.tensor([1.0, torch.nan, torch.inf], requires_grad=True)
    mean = masked_mean(value, torch.tensor([True, False, False]))
    mean.backward()
    assert mean.item() == 1.0
    assert value.grad is not None
    assert value.grad.tolist() == [1.0, 0.0, 0.0]


def test_nothing_counted_is_zero_with_a_zero_gradient() -> None:
    value = torch.ones(4, requires_grad=True)
    mean = masked_mean(value, torch.zeros(4, dtype=torch.bool))
    mean.backward()
    assert mean.item() == 0.0
    assert value.grad is not None
    assert value.grad.tolist() == [0.0] * 4


def test_half_precision_is_summed_in_float32() -> None:
    value = torch.full((100_000,), 1.5, dtype=torch.bfloat16)
    assert masked_mean(value, torch.ones(100_000, dtype=torch.bool)).item() == pytest.approx(1.5)
