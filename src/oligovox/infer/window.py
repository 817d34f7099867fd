"""Sliding window: probabilities of one prepared case.

Overlapping windows are blended as probabilities with Gaussian weights (standard deviation 1/8 of a side), so that they stay in [0, 1]
and still add up to 1. Only the box around the foreground is visited; outside it the image is 0 and the answer background.
Memory: the image of that box and the result, both float32 on the CPU, plus `batch` windows on the device.

Source: Isensee et al. 2021 (nnU-Net, doi 10.1038/s41592-020-01008-z): half overlap, Gaussian weights, mirroring.
Deviates: nnU-Net blends logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from itertools import combinations, product
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from oligovox.errors import RunError
from oligovox.metrics.overlap import Box, bounding_box
from oligovox.prepare.store import Plan, StoredCase

Network = Callable[[Tensor, Tensor], Tensor]
"""(image (b, m, x, y, z), present (b, m)) → logits (b, C, x, y, z)."""


FLIPS: list[tuple[int, ...]] = [axes for n in range(4) for axes in combinations((-3, -2, -1), n)]
"""The axes of each of the 8 mirror images, that of none first."""


def predict_case(
    network: Network,
    case: StoredCase,
    plan: Plan,
    *,
    patch: tuple[int, int, int],
    overlap: float = 0.5,
    mirror: bool = False,
    batch: int = 2,
    activation: Literal["softmax", "sigmoid"] = "softmax",
    device: torch.device | str | None = None,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
) -> NDArray[np.float32]:
    """Probabilities of one case on its prepared grid.

    Args:
        network: what `Method.export` of a segmentation gives, or any such function; a module is put into evaluation mode and back.
        case: stored case; sequences it lacks are 0 with present False.
        plan: of the store; its modalities are the channels.
        patch: window in voxels, as in training; a smaller volume is padded with 0.
        overlap: share of a window side that neighbours have in common, in [0, 1).
        mirror: average over all 8 flips: 8 times the work.
        batch: windows at once; from 2 on, because PyTorch's CPU convolutions are up to 7 times slower for a single small one.
        activation: softmax: C = background + classes; sigmoid: C = regions.
        device: where the windows are computed; None: where the network's parameters are, else the CPU.
        precision: bf16-mixed computes the network in bfloat16; probabilities are float32 either way.

    Returns:
        (C, x, y, z) in [0, 1]; outside the foreground's box background 1 (softmax) and all else 0.

    Raises:
        RunError: the network gave NaN or infinite values.
    """
    device = torch.device(device) if device is not None else _device_of(network)
    box = bounding_box(case.foreground())
    present = torch.tensor(case.present, device=device)
    flips = FLIPS if mirror else FLIPS[:1]

    def answer(windows: Tensor, axes: tuple[int, ...]) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits = network(windows.flip(axes), present.expand(len(windows), -1))
        logits = logits.float().flip(axes)
        return logits.softmax(dim=1) if activation == "softmax" else logits.sigmoid()

    def probabilities(windows: Tensor) -> Tensor:
        return reduce(torch.add, (answer(windows, axes) for axes in flips)) / len(flips)

    with torch.inference_mode(), _evaluating(network):
        blended = blend(_image(case, plan, box), patch, probabilities, overlap=overlap, batch=batch, device=device)
    if not torch.isfinite(blended).all():
        raise RunError(
            f"{case.name}: the network gave NaN or infinite values; look at this case, or predict with precision 32-true"
        )
    result = np.zeros((blended.shape[0], *case.shape), dtype=np.float32)
    result[0] = activation == "softmax"
    result[(slice(None), *box)] = blended.numpy()
    return result


def blend(
    image: Tensor,
    patch: tuple[int, int, int],
    answer: Callable[[Tensor], Tensor],
    *,
    overlap: float,
    batch: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """(m, x, y, z) → (C, x, y, z) on the CPU: the mean of what windows (b, m, *patch) are answered, by a Gaussian around each centre.

    Windows begin every (1 - overlap) of a side and the last ends at the border; an image smaller than a window is padded with 0 on both sides.
    """
    shape = image.shape[1:]
    pad = [(max(window - side, 0) // 2, max(window - side, 0)) for side, window in zip(shape, patch, strict=True)]
    if any(more for _, more in pad):
        image = nn.functional.pad(image, [n for half, all_ in reversed(pad) for n in (half, all_ - half)])
    weight = _gaussian(patch)
    total, weights = torch.zeros(()), torch.zeros(image.shape[1:])
    windows = [
        tuple(slice(at, at + side) for at, side in zip(corner, patch, strict=True))
        for corner in corners(image.shape[1:], patch, overlap)
    ]
    for first in range(0, len(windows), batch):
        places = windows[first : first + batch]
        said = answer(torch.stack([image[(slice(None), *place)] for place in places]).to(device)).cpu()
        if total.ndim == 0:
            total = torch.zeros(said.shape[1], *image.shape[1:])
        for place, found in zip(places, said, strict=True):
            total[(slice(None), *place)] += weight * found
            weights[place] += weight
    inside = [slice(half, half + side) for (half, _), side in zip(pad, shape, strict=True)]
    return total.div_(weights)[(slice(None), *inside)]


def corners(shape: Sequence[int], patch: tuple[int, int, int], overlap: float) -> list[tuple[int, ...]]:
    """Where windows begin that share `overlap` of a side with their neighbours; the last ends with the volume."""
    steps = [max(int(window * (1 - overlap)), 1) for window in patch]
    spare = [max(side - window, 0) for side, window in zip(shape, patch, strict=True)]
    return list(
        product(*([min(at, end) for at in range(0, end + step, step)] for end, step in zip(spare, steps, strict=True)))
    )


def _gaussian(patch: tuple[int, int, int]) -> Tensor:
    """1 in the middle, never less than 1/1000."""
    sides = [torch.arange(side) - (side - 1) / 2 for side in patch]
    falls = [torch.exp(-(at**2) / (2 * (side / 8) ** 2)) for at, side in zip(sides, patch, strict=True)]
    return torch.einsum("x,y,z->xyz", *falls).clamp_min(1e-3)


def _image(case: StoredCase, plan: Plan, box: Box) -> Tensor:
    """(m, x, y, z) float32 of the box; 0 where the sequence is absent."""
    image = np.zeros((len(plan.modalities), *(side.stop - side.start for side in box)), dtype=np.float32)
    image[np.array(case.present)] = case.image()[(slice(None), *box)]
    return torch.from_numpy(image)


def _device_of(network: Network) -> torch.device:
    parameter = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    return parameter.device if parameter is not None else torch.device("cpu")


@contextmanager
def _evaluating(network: Network) -> Iterator[None]:
    """Evaluation mode while inside; afterwards each part is as it was."""
    modules = list(network.modules()) if isinstance(network, nn.Module) else []
    were_training = [module for module in modules if module.training]
    try:
        for module in were_training:
            module.training = False
        yield
    finally:
        for module in were_training:
            module.training = True
