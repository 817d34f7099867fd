"""Probabilities of lesions, and which parts of a patch they rest on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oligovox.errors import RunError
from oligovox.infer.window import FLIPS
from oligovox.prepare.lesion_store import LesionPlan, StoredLesion
from oligovox.sample.batch import Batch
from oligovox.sample.lesions import lesion_batch

Classifier = Callable[..., Tensor]
"""(image (b, m, x, y, z), present (b, m)) → logit (b,) or (b, 1) of a rim; one with `reads_lesion` gets the lesion's mask (b, x, y, z) as a third.
A module is in evaluation mode."""


class Mirrored:
    """A classifier's mean logit over all 8 flips: what is left and right, front and back, top and bottom makes no difference, for 8 times the work.

    Args:
        network: any classifier.
    """

    def __init__(self, network: Classifier) -> None:
        self.network = network
        self.reads_lesion = bool(getattr(network, "reads_lesion", False))

    def __call__(self, image: Tensor, present: Tensor, *lesion: Tensor) -> Tensor:
        """As the classifier."""
        logits = [self.network(image.flip(axes), present, *(mask.flip(axes) for mask in lesion)) for axes in FLIPS]
        return torch.stack(logits).mean(0)


def predict_lesions(
    network: Classifier,
    lesions: Sequence[StoredLesion],
    *,
    patch: int,
    plan: LesionPlan,
    batch: int = 16,
    device: torch.device | str = "cpu",
) -> NDArray[np.float64]:
    """Probability of a rim of each lesion, in the order given, in [0, 1].

    Args:
        network: where `device` is.
        lesions: to look at.
        patch: side in voxels, as in training.
        plan: how they were cut.
        batch: lesions at once.
        device: where to compute; in float32, as bfloat16 has too few digits to order lesions by.

    Raises:
        RunError: a probability is not a number; names the lesion.
    """
    found = [np.zeros(0)]
    with torch.inference_mode(), torch.autocast(torch.device(device).type, enabled=False):
        for start in range(0, len(lesions), batch):
            part = lesion_batch(lesions[start : start + batch], patch, plan).to(torch.device(device))
            found.append(_logits(network, part.image, part.present, part.label).sigmoid().numpy())
    chance: NDArray[np.float64] = np.concatenate(found)
    if wrong := [lesion.name for lesion, value in zip(lesions, chance, strict=True) if not np.isfinite(value)]:
        raise RunError(
            f"{wrong[0]}: the network gave no number; look at this lesion, or train again with a smaller rate"
        )
    return chance


def occlusion(
    network: Classifier,
    batch: Batch,
    sample: int,
    *,
    side: int,
    neutral: Sequence[float],
    through: int | None = None,
    at_once: int = 16,
) -> NDArray[np.float32]:
    """How much the logit falls where a cube of one sequence of a lesion's patch is hidden: (m, x, y, z), one map a sequence.

    Cubes overlap by half; a voxel has the mean over the cubes that hide it. Positive: what is there speaks for a rim. A difference
    of the network's answer, not of the tissue.

    Args:
        network: on the CPU.
        batch: on the CPU.
        sample: which lesion of it.
        side: of the cubes, voxels.
        neutral: what hides each sequence, the first ones where there are fewer: 0 is 0 ppb in QSM, the middle of the range in FLAIR.
        through: hide only the cubes that this axial slice (z, voxels) goes through; the map is right in the slice, and not elsewhere. None: all.
        at_once: cubes looked at together.

    Source: Zeiler and Fergus 2014, arXiv 1311.2901.
    """
    image, present, seen = batch.image[sample], batch.present[sample : sample + 1], batch.foreground[sample, 0]
    label = None if batch.label is None else batch.label[sample : sample + 1]
    step = max(side // 2, 1)
    starts = [range(0, max(length - step, 1), step) for length in seen.shape]
    boxes = [tuple(slice(c, c + side) for c in corner) for corner in product(*starts)]
    boxes = [box for box in boxes if seen[box].any() and (through is None or box[2].start <= through < box[2].stop)]
    result = np.zeros(image.shape, np.float32)
    with torch.inference_mode():
        for channel, value in enumerate(neutral):
            total, times = torch.zeros(seen.shape), torch.zeros(seen.shape)
            for start in range(0, len(boxes), at_once):
                part = boxes[start : start + at_once]
                # The first is shown as it is: an answer is rounded otherwise in a batch of another size.
                shown = image.expand(1 + len(part), *image.shape).clone()
                for row, box in zip(shown[1:], part, strict=True):
                    row[(channel, *box)] = torch.where(seen[box], value, row[(channel, *box)])
                logit = _logits(network, shown, present, label)
                falls = logit[0] - logit[1:]
                for box, fall in zip(part, falls, strict=True):
                    total[box] += fall
                    times[box] += 1
            result[channel] = (total / times.clamp_min(1) * seen).numpy()
    return result


def _logits(network: Classifier, image: Tensor, present: Tensor, label: Tensor | None) -> Tensor:
    """(b,) in float64, on the CPU; of one sample, sequences and lesion stand for all."""
    b = len(image)
    told = [image, present.expand(b, -1)]
    if getattr(network, "reads_lesion", False) and label is not None:
        told.append((label == 1).expand(b, -1, -1, -1))
    return network(*told).double().reshape(b).cpu()
