"""Sliding window: probabilities of one prepared case.

Overlapping windows are blended as probabilities with Gaussian weights (standard deviation 1/8 of a side), so that they stay in [0, 1]
and still add up to 1. Only the box around the foreground is visited; outside it the image is 0 and the answer background.
Memory: the image of that box and the result, both float32 on the CPU, plus `batch` windows on the device.

Source: Isensee et al. 2021 (nnU-Net, doi 10.1038/s41592-020-01008-z): half overlap, Gaussian weights, mirroring.
Deviates: nnU-Net blends logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from itertools import combinations
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
    from monai.inferers.utils import sliding_window_inference  # takes seconds, so only when used

    device = torch.device(device) if device is not None else _device_of(network)
    box = bounding_box(case.foreground())
    present = torch.tensor(case.present, device=device)
    flips = [axes for n in range(4) for axes in combinations((2, 3, 4), n)] if mirror else [()]

    def answer(windows: Tensor, axes: tuple[int, ...]) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits = network(windows.flip(axes), present.expand(len(windows), -1))
        logits = logits.float().flip(axes)
        return logits.softmax(dim=1) if activation == "softmax" else logits.sigmoid()

    def probabilities(windows: Tensor) -> Tensor:
        return reduce(torch.add, (answer(windows, axes) for axes in flips)) / len(flips)

    with torch.inference_mode(), _evaluating(network):
        blended = sliding_window_inference(
            _image(case, plan, box)[None],
            patch,
            batch,
            probabilities,
            overlap,
            "gaussian",
            sw_device=device,
            device="cpu",
        )[0]
    if not torch.isfinite(blended).all():
        raise RunError(
            f"{case.name}: the network gave NaN or infinite values; look at this case, or predict with precision 32-true"
        )
    result = np.zeros((blended.shape[0], *case.shape), dtype=np.float32)
    result[0] = activation == "softmax"
    result[(slice(None), *box)] = blended.numpy()
    return result


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
