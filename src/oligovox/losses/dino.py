"""Self-distillation loss: a student names the soft class that its teacher gives to the other view.

Source: Caron et al. 2021 (DINO, arXiv 2104.14294): centred, sharpened teacher; no gradient into it.
Deviates: rows are any descriptors (voxels, images), not only images; no row at all gives 0.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def dino_loss(
    student: Float[Tensor, "n k"],
    teacher: Float[Tensor, "n k"],
    centre: Float[Tensor, " k"],
    student_temperature: float,
    teacher_temperature: float,
) -> Float[Tensor, ""]:
    """Mean over the rows of −Σ q ln p, q = softmax((teacher − centre) / τ_t), p = softmax(student / τ_s), in nats.

    Args:
        student: one row an item; the gradient goes here alone.
        teacher: row i is of the same item as row i of `student`.
        centre: running mean of the teacher's rows, which keeps one class from winning everywhere.
        student_temperature: τ_s > 0.
        teacher_temperature: τ_t > 0; below τ_s it sharpens.

    Returns:
        Float32, ≥ 0; 0 (gradient 0) without rows. It is smallest, the entropy of q, where p equals q.
    """
    wanted = torch.softmax((teacher.detach().float() - centre.detach().float()) / teacher_temperature, dim=1)
    error = -(wanted * torch.log_softmax(student.float() / student_temperature, dim=1)).sum()
    return error / max(1, len(student))
