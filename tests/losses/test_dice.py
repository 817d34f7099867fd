"""Dice and cross-entropy: worked values, a reference of a few lines, and what must not change them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oligovox.losses.dice import binary_cross_entropy, cross_entropy, dice_loss

SHAPE = (2, 3, 4, 3, 2)


def _line(*values: float) -> Tensor:
    return torch.tensor(values).view(1, 1, -1, 1, 1)


@pytest.mark.parametrize(
    ("probability", "target", "counted", "loss"),
    [
        ((1, 1, 0, 0), (1, 1, 0, 0), (1, 1, 1, 1), 0.0),
        ((0, 0, 1, 1), (1, 1, 0, 0), (1, 1, 1, 1), 1.0),
        ((0.5, 0.5, 0, 0), (1, 1, 0, 0), (1, 1, 1, 1), 1 - 2 / 3),
        ((0, 0, 0, 0), (0, 0, 0, 0), (1, 1, 1, 1), 0.0),  # absent and not predicted
        ((1, 0, 0, 0), (0, 0, 0, 0), (1, 1, 1, 1), 0.0),  # absent: cross-entropy's business
        ((0, 1, 0, 0), (1, 1, 0, 0), (0, 1, 1, 1), 0.0),  # the miss is not counted
        ((0, 1, 0, 0), (1, 1, 0, 0), (0, 0, 0, 0), 0.0),  # nobody looked
    ],
)
def test_dice_worked_values(probability: tuple, target: tuple, counted: tuple, loss: float) -> None:
    found = dice_loss(_line(*probability).float(), _line(*target).bool(), _line(*counted).bool()[:, 0])
    assert found.item() == pytest.approx(loss)


def _draw(seed: int, samples: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    shape = (samples, *SHAPE[1:])
    logits = torch.randn(shape, generator=rng)
    target = torch.rand(shape, generator=rng) < 0.3
    counted = torch.rand((samples, *shape[2:]), generator=rng) < 0.7
    return logits, target, counted


def _reference(logits: Tensor, target: Tensor, counted: Tensor) -> tuple[float, float, float]:
    """Loops over samples, classes and counted voxels, in numpy."""
    dice, ce, bce = [], [], []
    for x, t, known in zip(logits.double().numpy(), target.numpy(), counted.numpy(), strict=True):
        if not known.any():
            continue
        x, t = x[:, known], t[:, known]
        p = 1 / (1 + np.exp(-x))
        pairs = zip(p, t, strict=True)
        dice.append(np.mean([1 - 2 * (a * b).sum() / (a.sum() + b.sum()) if b.any() else 0.0 for a, b in pairs]))
        bce.append(-np.where(t, np.log(p), np.log(1 - p)).mean())
        log_softmax = x - np.log(np.exp(x).sum(0))
        ce.append(-np.mean([log_softmax[c, i] for i, c in enumerate(t.argmax(0))]))
    return tuple(float(np.mean(v)) if v else 0.0 for v in (dice, ce, bce))


@given(seed=st.integers(0, 1000), empty=st.sets(st.integers(0, 1)))
@settings(max_examples=20, deadline=None)
def test_reference(seed: int, empty: set[int]) -> None:
    logits, target, counted = _draw(seed)
    counted[list(empty)] = False
    found = (
        dice_loss(logits.sigmoid(), target, counted),
        cross_entropy(logits, target.long().argmax(1), counted),
        binary_cross_entropy(logits, target, counted),
    )
    assert [f.item() for f in found] == pytest.approx(_reference(logits, target, counted), abs=1e-5)


def _all_three(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    label = target.long().argmax(1).where(counted, -1)
    return torch.stack(
        [
            dice_loss(logits.sigmoid(), target, counted),
            cross_entropy(logits, label, counted),
            binary_cross_entropy(logits, target, counted),
        ]
    )


def test_uncounted_voxels_change_nothing() -> None:
    logits, target, counted = _draw(1)
    unknown = ~counted[:, None]
    other = logits.where(~unknown, 1e4), target ^ unknown, counted
    assert torch.equal(_all_three(logits, target, counted), _all_three(*other))


def test_a_batch_is_the_mean_of_its_halves() -> None:
    logits, target, counted = _draw(2, samples=4)
    halves = [_all_three(logits[s], target[s], counted[s]) for s in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(_all_three(logits, target, counted), torch.stack(halves).mean(0))


def test_unlabelled_samples_do_not_dilute() -> None:
    logits, target, counted = _draw(3)
    counted[1] = False
    torch.testing.assert_close(_all_three(logits, target, counted), _all_three(logits[:1], target[:1], counted[:1]))


def test_nothing_counted_gives_zero_and_a_zero_gradient() -> None:
    logits, target, counted = _draw(4)
    logits.requires_grad_()
    losses = _all_three(logits, target, torch.zeros_like(counted))
    losses.sum().backward()
    assert losses.tolist() == [0.0, 0.0, 0.0]
    assert logits.grad is not None
    assert not logits.grad.any()


def test_an_absent_class_is_left_to_cross_entropy() -> None:
    logits = torch.zeros(1, 3, 4, 4, 4, requires_grad=True)
    label = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    label[0, :2, 0, 0] = 1  # class 2 is absent
    target = torch.stack([label == 1, label == 2], dim=1)
    dice = dice_loss(logits.softmax(1)[:, 1:], target, label >= 0)
    p = 1 / 3
    assert dice.item() == pytest.approx((1 - 2 * 2 * p / (64 * p + 2)) / 2)
    (own,) = torch.autograd.grad(dice_loss(logits.sigmoid()[:, 1:], target, label >= 0), logits)
    assert not own[:, 2].any()
    (silence,) = torch.autograd.grad(cross_entropy(logits, label, label >= 0), logits)
    assert (silence[:, 2] > 0).all()


def test_a_class_that_most_patches_lack_is_learned() -> None:
    """Two kinds of bright voxels, the second in one patch of four; with Dice smoothed by one voxel its probability ends at 0.00002."""
    rng = torch.Generator().manual_seed(0)
    net = torch.nn.Conv3d(2, 3, 1)
    torch.nn.init.zeros_(net.weight)
    torch.nn.init.zeros_(net.bias)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    for step in range(150):
        label = torch.zeros(1, 12, 12, 12, dtype=torch.long)
        label[0, 2:6, 2:6, 2:6] = 1
        if step % 4 == 0:
            label[0, 8:10, 8:10, 8:10] = 2
        image = torch.stack([(label > 0).float(), (label == 2).float()], dim=1)
        logits = net(image + 0.2 * torch.randn(image.shape, generator=rng))
        target = torch.stack([label == 1, label == 2], dim=1)
        loss = dice_loss(logits.softmax(1)[:, 1:], target, label >= 0) + cross_entropy(logits, label, label >= 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rare = net(torch.ones(1, 2, 1, 1, 1)).softmax(1)[0, :, 0, 0, 0]
    assert rare[2] > 0.9, rare


def test_cross_entropy_is_torch_s_where_all_is_counted() -> None:
    logits, target, counted = _draw(5)
    label = target.long().argmax(1)
    torch.testing.assert_close(cross_entropy(logits, label, torch.ones_like(counted)), F.cross_entropy(logits, label))
