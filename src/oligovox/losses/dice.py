"""Soft Dice and cross-entropy over the voxels somebody has labelled.

Source: Milletari et al. 2016 (V-Net, arXiv 1606.04797) for Dice; Isensee et al. 2021 (nnU-Net) for its sum with cross-entropy.
Deviates: every loss is reduced inside a sample first and then over the samples with a labelled voxel, so that it does not depend
    on how samples are gathered into batches; Dice is not smoothed, and leaves out classes a sample does not have (see `dice_loss`).
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from oligovox.losses.masked import masked_mean, mean_over_samples


def dice_loss(
    probability: Float[Tensor, "b c x y z"], target: Bool[Tensor, "b c x y z"], counted: Bool[Tensor, "b x y z"]
) -> Float[Tensor, ""]:
    """1 − Dice, Dice = 2 Σ p t / (Σ p + Σ t) with sums over the counted voxels of one sample and class; 0 for a class that the sample does not have.

    Where a class is absent, cross-entropy alone teaches silence. Smoothed by one voxel, as many write it, Dice would push an absent class
    down with a gradient of one per voxel, against 1 / n where n voxels of it are present: a small class beside a large one is then never
    predicted at all (benchmarks/study_grounds.md: lesions with a rim, Dice 0.00 against 0.43).

    Args:
        probability: in [0, 1]; give the foreground classes only, background has no Dice of its own.
        target: True where the class is.
        counted: False where nobody looked; nothing at these voxels changes the loss.

    Returns:
        In [0, 1], mean over the classes, then over the samples with a counted voxel; 0 (gradient 0) where there is none.
    """
    known = counted[:, None]
    p, t = probability.float().where(known, 0.0), target.float().where(known, 0.0)
    overlap, mass, size = (p * t).sum((2, 3, 4)), (p + t).sum((2, 3, 4)), t.sum((2, 3, 4))
    dice = 2.0 * overlap / mass.clamp(min=1.0)  # a class that is there has a mass of 1 or more
    missed = (1.0 - dice).where(size > 0, 0.0)
    return masked_mean(missed.mean(1), counted.flatten(1).any(1))


def cross_entropy(
    logits: Float[Tensor, "b c x y z"], label: Int[Tensor, "b x y z"], counted: Bool[Tensor, "b x y z"]
) -> Float[Tensor, ""]:
    """Softmax cross-entropy in nats: mean over a sample's counted voxels, then over the samples that have any.

    Args:
        logits: one channel a class, background first.
        label: channel of the true class; anything where not counted.
        counted: False where nobody looked.
    """
    error = F.cross_entropy(logits.float(), label.where(counted, 0), reduction="none")
    return mean_over_samples(error, counted)


def binary_cross_entropy(
    logits: Float[Tensor, "b c x y z"], target: Bool[Tensor, "b c x y z"], counted: Bool[Tensor, "b x y z"]
) -> Float[Tensor, ""]:
    """Sigmoid cross-entropy in nats: mean over channels and a sample's counted voxels, then over the samples that have any."""
    error = F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
    return mean_over_samples(error.mean(1), counted)
