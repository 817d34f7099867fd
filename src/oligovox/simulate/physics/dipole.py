"""From susceptibility to the magnetic field and back, by the unit dipole in k-space.

Convention: a susceptibility chi, relative to what surrounds it, shifts the field by the relative amount B/B0 - 1 = d * chi, where the
transform of the dipole d is D(k) = 1/3 - (k·b)² / |k|² (b: unit vector along B0) and D(0) = 0. The 1/3 is the Lorentz sphere: the
field inside a uniform sphere is not shifted, and what is constant over the whole grid shifts nothing.
Source: Salomir et al. 2003, Concepts Magn Reson B 19B:26; Marques and Bowtell 2005, Concepts Magn Reson B 25B:65 (both from memory).

Transforms run on as many threads as `scipy.fft.set_workers` says, one unless it was called.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from oligovox.simulate.fields import Volume

HEAD_FOOT = (0.0, 0.0, 1.0)
"""Direction of B0 along the third axis, as for a head that lies straight in the scanner."""


def dipole_kernel(shape: Sequence[int], spacing: Sequence[float], b0: Sequence[float] = HEAD_FOOT) -> Volume:
    """The dipole D(k), laid out for `scipy.fft.rfftn` of an array of `shape`.

    Args:
        shape: voxels along (x, y, z).
        spacing: voxel size along (x, y, z), mm.
        b0: direction of B0 in voxel axes; its length does not matter.

    Returns:
        (x, y, z // 2 + 1), float32, from -2/3 along B0 to 1/3 across it, 0 at k = 0.
    """
    k = _frequencies(shape, spacing)
    unit = np.asarray(b0, dtype=np.float64) / np.linalg.norm(b0)
    square = np.asarray(k[0] ** 2 + k[1] ** 2 + k[2] ** 2)
    square[0, 0, 0] = 1
    along = np.float32(unit[0]) * k[0] + np.float32(unit[1]) * k[1] + np.float32(unit[2]) * k[2]
    along *= along
    along /= square
    kernel = np.subtract(np.float32(1 / 3), along, out=along)
    kernel[0, 0, 0] = 0
    return np.asarray(kernel)


def field_shift(chi: Volume, spacing: Sequence[float], b0: Sequence[float] = HEAD_FOOT, pad: float = 1.0) -> Volume:
    """The relative shift of the field that a susceptibility map makes.

    Args:
        chi: (x, y, z) ppb.
        spacing: voxel size along (x, y, z), mm.
        b0: direction of B0 in voxel axes.
        pad: zeros added behind each axis, as a share of its length, so that the field does not come round to the other side.

    Returns:
        (x, y, z) ppb of B0.
    """
    shape = padded(chi.shape, pad)
    spectrum = fft.rfftn(chi, shape)
    spectrum *= dipole_kernel(shape, spacing, b0)
    return cropped(fft.irfftn(spectrum, shape, overwrite_x=True), chi.shape)


def divide(
    field: Volume,
    spacing: Sequence[float],
    b0: Sequence[float] = HEAD_FOOT,
    threshold: float = 0.19,
    corrected: bool = True,
    pad: float = 0.25,
) -> Volume:
    """Thresholded k-space division: the field's transform over D, where |D| below the threshold is replaced by sign(D) times it.

    Source: Shmueli et al. 2009, Magn Reson Med 62:1510; correction: Schweser et al. 2013, Magn Reson Med 69:1582 (from memory).

    Args:
        field: (x, y, z) ppb, 0 outside the brain.
        spacing: voxel size along (x, y, z), mm.
        b0: direction of B0 in voxel axes.
        threshold: smallest divisor, 0 to 1/3.
        corrected: divide by `division_factor`, the share of a susceptibility that the division gives back.
        pad: zeros added behind each axis, as a share of its length.

    Returns:
        (x, y, z) ppb.
    """
    shape = padded(field.shape, pad)
    kernel = dipole_kernel(shape, spacing, b0)
    small = np.abs(kernel) < threshold
    kernel[small] = np.copysign(np.float32(threshold), kernel[small])
    spectrum = fft.rfftn(field, shape)
    spectrum /= kernel * np.float32(division_factor(threshold) if corrected else 1.0)
    spectrum[0, 0, 0] = 0
    return cropped(fft.irfftn(spectrum, shape, overwrite_x=True), field.shape)


def division_factor(threshold: float) -> float:
    """Share of a sphere's susceptibility that thresholded division gives back, without noise: the mean of min(1, |D| / threshold).

    With u the cosine between k and B0, uniform from 0 to 1, D = 1/3 - u² and the integral is closed; 1 at threshold 0, and
    0.83 at 0.19. Any isotropic object gives this share, because its spectrum is the same in all directions.
    Source: the idea of Schweser et al. 2013, Magn Reson Med 69:1582, who take the mean over their grid (from memory).
    """
    if threshold == 0:
        return 1.0
    low, middle, high = math.sqrt(max(1 / 3 - threshold, 0)), math.sqrt(1 / 3), min(math.sqrt(1 / 3 + threshold), 1.0)
    inner, root, outer = ((u - u**3) / 3 for u in (low, middle, high))
    return 1 - (high - low) + (2 * root - inner - outer) / threshold


def solve(
    field: Volume,
    weight: Volume,
    spacing: Sequence[float],
    b0: Sequence[float] = HEAD_FOOT,
    regularisation: float = 0.02,
    iterations: int = 8,
    pad: float = 0.25,
) -> Volume:
    """The map x that minimises |w (d*x - field)|² + r |gradient of x|², by preconditioned conjugate gradients.

    Where the weight is 0 the field is free. The unknown is kept in k-space, where dipole and gradient are diagonal: two transforms a step.
    Source: de Rochefort et al. 2010, Magn Reson Med 63:194 (weighted least squares); Bilgic et al. 2014, J Magn Reson Imaging 40:181
    (gradient penalty, and its closed form as preconditioner); both from memory. Deviates: no edge weights in the penalty.

    Args:
        field: (x, y, z) ppb.
        weight: (x, y, z) 0 to 1, relative certainty of the field, 0 outside the brain.
        spacing: voxel size along (x, y, z), mm.
        b0: direction of B0 in voxel axes.
        regularisation: r, in voxel² (the gradient is taken per voxel of the smallest spacing).
        iterations: steps; few of them also keep noise out.
        pad: zeros added behind each axis, as a share of its length.

    Returns:
        (x, y, z) ppb.
    """
    shape = padded(field.shape, pad)
    inner = tuple(slice(n) for n in field.shape)
    kernel = dipole_kernel(shape, spacing, b0)
    penalty = np.float32(regularisation) * _gradient_square(shape, spacing)
    square = weight * weight
    typical = np.float32(square[square > 0].mean())

    def certain(image: Volume) -> NDArray[np.complex64]:
        return np.asarray(fft.rfftn(square * image, shape) * kernel)

    def normal(x: NDArray[np.complex64]) -> NDArray[np.complex64]:
        return certain(fft.irfftn(kernel * x, shape, overwrite_x=True)[inner]) + penalty * x

    closed = 1 / (typical * kernel**2 + penalty + np.float32(1e-6))
    closed[0, 0, 0] = 0  # the mean is not determined
    residual = certain(field)
    x = np.zeros_like(residual)
    step = ready = closed * residual
    size = _inner(residual, ready, shape)
    for _ in range(iterations):
        if size == 0:
            break
        image = normal(step)
        length = np.float32(size / _inner(step, image, shape))
        x += length * step
        residual -= length * image
        ready = closed * residual
        before, size = size, _inner(residual, ready, shape)
        step = ready + np.float32(size / before) * step
    return cropped(fft.irfftn(x, shape, overwrite_x=True), field.shape)


def padded(shape: Sequence[int], pad: float) -> tuple[int, ...]:
    """Lengths grown by the share `pad`, and on to the next that transforms fast."""
    return tuple(fft.next_fast_len(math.ceil(n * (1 + pad)), real=axis == 2) for axis, n in enumerate(shape))


def cropped(volume: Volume, shape: Sequence[int]) -> Volume:
    """The first voxels along each axis, as an array of its own."""
    return np.ascontiguousarray(volume[tuple(slice(n) for n in shape)], dtype=np.float32)


def laplacian_symbol(shape: Sequence[int], spacing: Sequence[float]) -> Volume:
    """Transform of the six-neighbour Laplacian, 1/mm², laid out for `rfftn`; 0 at k = 0 and negative elsewhere."""
    k = _frequencies(shape, spacing)
    parts = (
        (2 * np.cos(2 * np.pi * axis * np.float32(h)) - 2) / np.float32(h * h)
        for axis, h in zip(k, spacing, strict=True)
    )
    return np.asarray(sum(parts), dtype=np.float32)


def _gradient_square(shape: Sequence[int], spacing: Sequence[float]) -> Volume:
    return -laplacian_symbol(shape, spacing) * np.float32(min(spacing) ** 2)


def _frequencies(shape: Sequence[int], spacing: Sequence[float]) -> list[Volume]:
    """k along each axis, cycles per mm, ready to broadcast; half of the last axis only."""
    nx, ny, nz = shape
    k = (fft.fftfreq(nx, spacing[0]), fft.fftfreq(ny, spacing[1]), fft.rfftfreq(nz, spacing[2]))
    return [
        axis.astype(np.float32).reshape(view)
        for axis, view in zip(k, ((-1, 1, 1), (1, -1, 1), (1, 1, -1)), strict=True)
    ]


def _inner(a: NDArray[np.complex64], b: NDArray[np.complex64], shape: Sequence[int]) -> float:
    """Inner product of two real images by the halves of their spectra that `rfftn` keeps, but for a constant factor."""
    planes = np.einsum("xyz,xyz->z", a.real, b.real) + np.einsum("xyz,xyz->z", a.imag, b.imag)
    once = planes[0] + (planes[-1] if shape[2] % 2 == 0 else 0)
    return float(2 * planes.sum(dtype=np.float64) - once)
