"""Structural similarity of volumes.

Source: Wang et al. 2004 (Image quality assessment: from error visibility to structural similarity), window and constants as there.
Deviates: 3-D; windows are cut at the border of the patch and of the mask (local statistics are weighted means over the counted
    voxels), so that nothing outside the mask has a say; inside, away from borders, it is the classical index.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from oligovox.losses.masked import masked_mean

C1, C2 = 0.01**2, 0.03**2
"""Constants for images with a range of about 1."""


def ssim(
    prediction: Float[Tensor, "b c x y z"],
    target: Float[Tensor, "b c x y z"],
    counted: Bool[Tensor, "b c x y z"],
    *,
    window: int = 11,
    sigma: float = 1.5,
) -> Float[Tensor, "b c"]:
    """Mean structural similarity over the counted voxels of each sample and channel; 1 where the two agree, 0 where none count.

    Args:
        prediction: scaled like the target.
        target: scaled to a range of about 1.
        counted: voxels the windows may look at, and over which the mean is taken.
        window: edge of the Gaussian window in voxels, odd.
        sigma: its standard deviation in voxels.
    """
    with torch.autocast(prediction.device.type, enabled=False):  # differences of squares need float32
        weight = counted.float()
        p, t = prediction.float().where(counted, 0.0), target.float().where(counted, 0.0)
        inside = _blur(weight, window, sigma).clamp(min=1e-6)
        mean_p, mean_t, square_p, square_t, product = (
            _blur(value, window, sigma) / inside for value in (p, t, p * p, t * t, p * t)
        )
        variance_p = (square_p - mean_p.square()).clamp(min=0.0)
        variance_t = (square_t - mean_t.square()).clamp(min=0.0)
        covariance = product - mean_p * mean_t
        similarity = ((2 * mean_p * mean_t + C1) * (2 * covariance + C2)) / (
            (mean_p.square() + mean_t.square() + C1) * (variance_p + variance_t + C2)
        )
        return masked_mean(similarity, weight, dim=(2, 3, 4))


def _blur(value: Float[Tensor, "b c x y z"], window: int, sigma: float) -> Float[Tensor, "b c x y z"]:
    """Gaussian-weighted sum around every voxel, one axis after the other; zeros beyond the border."""
    offset = torch.arange(window, dtype=value.dtype, device=value.device) - (window - 1) / 2
    kernel = torch.softmax(-offset.square() / (2 * sigma**2), dim=0)
    blurred = value.flatten(0, 1)[:, None]
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = window
        blurred = F.conv3d(blurred, kernel.view(shape), padding=tuple(side // 2 for side in shape[2:]))
    return blurred.view_as(value)
