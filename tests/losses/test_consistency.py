"""Agreement and doubt: worked values, and what is finite at the ends."""

from __future__ import annotations

import pytest
import torch

from oligovox.losses.consistency import entropy, samples_with


def voxel(*probability: float) -> torch.Tensor:
    """A single voxel with these channels."""
    return torch.tensor(probability).view(1, -1, 1, 1, 1)


def test_entropy_is_a_share_of_the_largest() -> None:
    for classes in (2, 3, 5):
        assert entropy(voxel(*[1 / classes] * classes), exclusive=True).item() == pytest.approx(1.0)
    assert entropy(voxel(0.9, 0.1), exclusive=True).item() == pytest.approx(0.4690, abs=1e-4)
    each = entropy(voxel(0.5, 0.9, 0.1, 1.0), exclusive=False).flatten().tolist()
    assert each == pytest.approx([1.0, 0.4690, 0.4690, 0.0], abs=1e-4)


@pytest.mark.parametrize("exclusive", [True, False])
def test_certainty_is_0_with_a_finite_gradient(exclusive: bool) -> None:
    probability = voxel(0.0, 1.0).requires_grad_()
    found = entropy(probability, exclusive=exclusive)
    found.sum().backward()
    assert found.abs().max() <= 1e-6
    assert probability.grad is not None
    assert probability.grad.isfinite().all()


def test_samples_with_a_counted_voxel_or_the_first() -> None:
    counted = torch.zeros(4, 2, 2, 2, dtype=torch.bool)
    assert samples_with(counted).tolist() == [0]
    counted[1, 0, 0, 0] = counted[3] = True
    assert samples_with(counted).tolist() == [1, 3]
