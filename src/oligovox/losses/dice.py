"""Soft Dice and cross-entropy over the voxels somebody has labelled.

Source: Milletari et al. 2016 (V-Net, arXiv 1606.04797) for Dice; Isensee et al. 2021 (nnU-Net) for its sum with cross-entropy.
Deviates: every loss is reduced inside a sample first and then over the samples with a labelled voxel, so that it does not depend
    on how samples are gathered into batches; Dice is smoothed by one voxel (see `dice_loss`).
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from oligovox.losses.masked import masked_mean, mean_over_samples

SMOOTH = 1.0
"""Voxels added to both sides of the Dice ratio."""


def dice_loss(
    probability: Float[Tensor, "b c x y z"], target: Bool[Tensor, "b c x y z"], counted: Bool[Tensor, "b x y z"]
) -> Float[Tensor, ""]:
    """1 − mean Dice, Dice = (2 Σ p t + 1) / (Σ p + Σ t + 1) with sums over the counted voxels of one sample and class.

    The one voxel decides what happens to a class that is absent from a sample: the loss is 0 if nothing is predicted and
    grows with every predicted voxel (one half at the first), so that empty patches still teach silence. Against a present lesion of
    n voxels it weighs 1 / n.

    Args:
        probability: in [0, 1]; give the foreground classes only, background has no Dice of its own.
        target: True where the class is.
        counted: False where nobody looked; nothing at these voxels changes the loss.

    Returns:
        In [0, 1], mean over the samples with a counted voxel; 0 (gradient 0) where there is none.
    """
    known = counted[:, None]
    p, t = probability.float().where(known, 0.0), target.float().where(known, 0.0)
    overlap, mass = (p * t).sum((2, 3, 4)), (p + t).sum((2, 3, 4))
    dice = (2.0 * overlap + SMOOTH) / (mass + SMOOTH)
    return masked_mean(1.0 - dice.mean(1), counted.flatten(1).any(1))


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
