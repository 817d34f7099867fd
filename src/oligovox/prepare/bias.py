"""The bias field: slow changes of brightness that the coils leave, estimated by N4 in the brain and divided out.

Source: Tustison et al. 2010, IEEE Trans Med Imaging 29:1310-1320, as SimpleITK has it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oligovox.prepare import geometry
from oligovox.prepare.geometry import Volume
from oligovox.prepare.registration import itk_image, simple_itk

_ESTIMATED_MM = 4.0  # voxel size the field is estimated at
_ITERATIONS = (50, 50, 50, 30)  # of each level of splines, coarse to fine
_CONVERGED = 1e-3


@dataclass(frozen=True)
class Field:
    """What was divided out, within the mask; 1 is no change.

    Attributes:
        low: lowest factor.
        high: highest factor.
        sd: standard deviation of its logarithm: 0.1 is a field that changes brightness by about 10 %.
    """

    low: float
    high: float
    sd: float


def correct_bias(volume: Volume, mask: NDArray[np.bool_]) -> tuple[Volume, Field]:
    """Divide the bias field out.

    The field is estimated in the mask at 4 mm and is smooth, so it is known everywhere; its geometric mean in the mask is 1, and the image
    keeps its brightness.

    Args:
        volume: an image without negative values.
        mask: (x, y, z), where tissue is.

    Returns:
        The image without the field (float32), and what the field was; nothing changes where the mask holds no brightness.

    Raises:
        SettingsError: SimpleITK is not installed.
    """
    sitk = simple_itk()
    bright = mask & (volume.array > 0)
    if not bright.any():
        return volume, Field(1.0, 1.0, 0.0)
    image = itk_image(Volume(volume.array.astype(np.float32), volume.affine))
    inside = itk_image(Volume(bright.astype(np.uint8), volume.affine))
    sizes = zip(geometry.spacing_of(volume.affine), volume.shape, strict=True)
    shrink = [max(1, min(round(_ESTIMATED_MM / step), count // 4)) for step, count in sizes]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfThreads(1)
    n4.SetMaximumNumberOfIterations(list(_ITERATIONS))
    n4.SetConvergenceThreshold(_CONVERGED)
    small = sitk.Shrink(inside, shrink)
    if not sitk.GetArrayViewFromImage(small).any():  # a mask thinner than the step
        return volume, Field(1.0, 1.0, 0.0)
    n4.Execute(sitk.Shrink(image, shrink), small)
    logarithm = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).T
    logarithm -= logarithm[bright].mean()
    factor = np.exp(logarithm[bright])
    array = (volume.array / np.exp(logarithm)).astype(np.float32)
    return Volume(array, volume.affine), Field(float(factor.min()), float(factor.max()), float(logarithm[bright].std()))
