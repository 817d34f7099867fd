"""The Sinkhorn operator: doubly stochastic, sharp where the scores are, and differentiable."""

from __future__ import annotations

import torch

from oligovox.losses.sinkhorn import log_sinkhorn


def _scores(n: int = 8) -> torch.Tensor:
    return 2.0 * torch.randn(3, n, n, generator=torch.Generator().manual_seed(0))


def test_rows_and_columns_sum_to_one() -> None:
    soft = log_sinkhorn(_scores()).exp()
    ones = torch.ones(3, 8)
    torch.testing.assert_close(soft.sum(-1), ones, atol=1e-3, rtol=0)
    torch.testing.assert_close(soft.sum(-2), ones, atol=1e-5, rtol=0)


def test_two_by_two_is_a_sigmoid() -> None:
    (a, b), (c, d) = scores = torch.tensor([[1.0, -0.5], [0.3, 2.0]])
    p = torch.sigmoid((a + d - b - c) / 2)
    torch.testing.assert_close(log_sinkhorn(scores).exp(), torch.stack([p, 1 - p, 1 - p, p]).view(2, 2))


def test_a_scaled_permutation_matrix_is_recovered_whatever_is_added_to_its_rows_and_columns() -> None:
    rng = torch.Generator().manual_seed(1)
    permutation = torch.eye(27)[torch.randperm(27, generator=rng)]
    shift = 10 * torch.randn(27, 1, generator=rng) + 10 * torch.randn(1, 27, generator=rng)
    for scores in (50 * permutation, 50 * permutation + shift):
        torch.testing.assert_close(log_sinkhorn(scores).exp(), permutation)


def test_the_gradient_is_right_and_finite_at_large_scores() -> None:
    scores = _scores(3).double().requires_grad_()

    def reference(given: torch.Tensor) -> torch.Tensor:
        soft = given.exp()
        for _ in range(20):
            soft = soft / soft.sum(-1, keepdim=True)
            soft = soft / soft.sum(-2, keepdim=True)
        return soft.log()

    weight = _scores(3).double()
    (expected,) = torch.autograd.grad((weight * reference(scores)).sum(), scores)
    (found,) = torch.autograd.grad((weight * log_sinkhorn(scores)).sum(), scores)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    large = (1e4 * _scores()).to(torch.bfloat16).requires_grad_()
    soft = log_sinkhorn(large)
    soft.exp().square().sum().backward()
    assert soft.dtype == torch.float32
    assert large.grad is not None
    assert large.grad.isfinite().all()
