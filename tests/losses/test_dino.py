"""Self-distillation: a worked value, its smallest value, no gradient into the teacher."""

from __future__ import annotations

import math

import pytest
import torch

from oligovox.losses.dino import dino_loss


def test_a_worked_value() -> None:
    student, teacher = torch.tensor([[0.1, 0.0]]), torch.tensor([[0.5, 0.5]])
    centre = torch.tensor([0.5 - 0.04 * math.log(3), 0.5])  # the teacher says 3 : 1
    found = dino_loss(student, teacher, centre, 0.1, 0.04)
    p = math.e / (math.e + 1)
    assert found.item() == pytest.approx(-0.75 * math.log(p) - 0.25 * math.log(1 - p), abs=1e-6)


def test_it_is_the_mean_cross_entropy_row_by_row() -> None:
    rng = torch.Generator().manual_seed(0)
    student, teacher, centre = (torch.randn(shape, generator=rng) for shape in ((5, 7), (5, 7), (7,)))
    rows = []
    for s, t in zip(student, teacher, strict=True):
        q, p = ((t - centre) / 0.5).exp(), (s / 2.0).exp()
        rows.append(-(q / q.sum() * (p / p.sum()).log()).sum())
    torch.testing.assert_close(dino_loss(student, teacher, centre, 2.0, 0.5), torch.stack(rows).mean())


def test_it_is_smallest_where_the_student_says_what_the_teacher_says() -> None:
    rng = torch.Generator().manual_seed(0)
    teacher, centre = torch.randn(6, 4, generator=rng), torch.randn(4, generator=rng)
    student = ((teacher - centre) * 0.1 / 0.04).requires_grad_()
    least = dino_loss(student, teacher, centre, 0.1, 0.04)
    least.backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.zeros_like(student), atol=1e-5, rtol=0)
    for _ in range(5):
        other = student.detach() + 0.1 * torch.randn(6, 4, generator=rng)
        assert dino_loss(other, teacher, centre, 0.1, 0.04) > least


def test_only_the_student_is_taught() -> None:
    student, teacher, centre = (torch.randn(shape).requires_grad_() for shape in ((3, 4), (3, 4), (4,)))
    dino_loss(student, teacher, centre, 0.1, 0.04).backward()
    assert student.grad is not None
    assert student.grad.any()
    assert teacher.grad is None
    assert centre.grad is None


def test_half_precision_and_no_rows() -> None:
    half = torch.randn(3, 4).bfloat16()
    assert dino_loss(half, half, torch.zeros(4), 0.1, 0.04).dtype == torch.float32
    none = torch.zeros(0, 4).requires_grad_()
    loss = dino_loss(none, none, torch.zeros(4), 0.1, 0.04)
    loss.backward()
    assert loss.item() == 0
