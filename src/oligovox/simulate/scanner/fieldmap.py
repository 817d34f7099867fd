"""From the phases of gradient echoes to the field that the tissue itself makes: fit over echoes, unwrapping, background removal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from oligovox.errors import SettingsError
from oligovox.simulate.fields import Volume
from oligovox.simulate.physics.dipole import cropped, laplacian_symbol, padded

Box: TypeAlias = tuple[slice, ...]

_TURN = np.float32(2 * np.pi)


def fit_phase(echoes: NDArray[np.complex64], te: Sequence[float]) -> NDArray[np.float32]:
    """Phase gained from one echo to the next, by a line through the phases of all echoes.

    Phases are unwrapped over time: what the signal turns between two echoes is taken to be less than half a turn. Where it turns
    more, the result is off by a whole turn, as a wrap in space that `unwrap` removes. The line has an offset, which takes up the
    phase of the coils, and is weighted with the squared magnitude, as the variance of a phase is that of the noise over it.
    With one echo the result is its phase.

    Args:
        echoes: (n, echo) complex signal.
        te: evenly spaced echo times, any unit.

    Returns:
        (n,) radians.
    """
    if len(te) == 1:
        return np.asarray(np.angle(echoes[:, 0]), dtype=np.float32)
    turns = np.angle(echoes[:, 1:] * echoes[:, :-1].conj())
    phase = np.concatenate([np.zeros_like(turns[:, :1]), np.cumsum(turns, axis=1)], axis=1)
    weight = echoes.real**2 + echoes.imag**2
    weight /= weight.sum(axis=1, keepdims=True) + np.float32(1e-20)
    number = np.arange(len(te), dtype=np.float32)
    middle = number - (weight @ number)[:, None]
    weight *= middle
    return np.asarray((weight * phase).sum(axis=1) / ((weight * middle).sum(axis=1) + np.float32(1e-20)))


def fit_error(magnitude: NDArray[np.float32]) -> NDArray[np.float32]:
    """Standard deviation of `fit_phase` per unit of noise in a channel: (n, echo) magnitudes → (n,).

    The variance of a weighted slope is 1 / sum w (t - mean t)², where w = magnitude² / noise²; with one echo it is 1 / magnitude².
    """
    square = np.maximum(magnitude, np.float32(1e-20)) ** 2
    if magnitude.shape[1] == 1:
        return np.asarray(1 / np.sqrt(square[:, 0]))
    number = np.arange(magnitude.shape[1], dtype=np.float32)
    middle = number - (square @ number / square.sum(axis=1))[:, None]
    return np.asarray(1 / np.sqrt((square * middle**2).sum(axis=1)))


def unwrap(phase: Volume, mask: NDArray[np.bool_], spacing: Sequence[float]) -> Volume:
    """Remove wraps in space: the map whose Laplacian inside the mask is that of the phase without its jumps.

    Differences between neighbours are brought into half a turn, summed to the Laplacian and integrated in k-space. The result
    differs from the true phase by a map that is harmonic in the mask, which `remove_background` takes away.
    Source: Ghiglia and Romero 1994, J Opt Soc Am A 11:107 (the differences); Schofield and Zhu 2003, Opt Lett 28:1194 (the
    Laplacian for MRI); both from memory.

    Args:
        phase: (x, y, z) radians.
        mask: where it means something.
        spacing: voxel size along (x, y, z), mm.

    Returns:
        (x, y, z) radians, 0 outside the mask.
    """
    shape = padded(phase.shape, 0.0)
    laplacian = np.zeros(shape, np.float32)
    for axis, h in enumerate(spacing):
        low, high, step = _steps(phase, mask, axis)
        step /= np.float32(h * h)
        laplacian[low] += step
        laplacian[high] -= step
    symbol = laplacian_symbol(shape, spacing)
    symbol[0, 0, 0] = 1
    spectrum = fft.rfftn(laplacian, overwrite_x=True) / symbol
    spectrum[0, 0, 0] = 0
    return cropped(fft.irfftn(spectrum, shape, overwrite_x=True), phase.shape) * mask


def traceable(phase: Volume, mask: NDArray[np.bool_], limit: float = 2.2) -> NDArray[np.bool_]:
    """The mask less the voxels whose phase differs from a neighbour's by more than `limit`, radians: too steep to unwrap.

    A step of more than pi cannot be told from a smaller one the other way; 2.2 leaves room for noise (chosen).
    """
    kept = mask.copy()
    for axis in range(3):
        low, high, step = _steps(phase, mask, axis)
        steep = np.abs(step) > limit
        kept[low] &= ~steep
        kept[high] &= ~steep
    return kept


def remove_background(
    field: Volume,
    mask: NDArray[np.bool_],
    spacing: Sequence[float],
    radii: Sequence[float],
    threshold: float = 0.05,
) -> tuple[Volume, NDArray[np.bool_]]:
    """V-SHARP: what sources outside the mask add to the field is harmonic, so equal to its mean over any sphere inside.

    The field less its mean over the largest of the spheres that still fits in the mask, then the filter of the largest sphere is undone.
    The brain loses its border: what remains is where the smallest sphere fits.
    Source: Schweser et al. 2011, NeuroImage 54:2789 (SHARP); Wu et al. 2012, Magn Reson Med 67:137 (several radii); from memory.

    Args:
        field: (x, y, z), any unit.
        mask: the brain.
        spacing: voxel size along (x, y, z), mm.
        radii: of the spheres, mm; those below the voxel size are left out, for they hold one voxel and find nothing.
        threshold: of the filter's transform, below which it is not undone.

    Returns:
        The local field (x, y, z), 0 outside what remains of the mask, and that mask.

    Raises:
        SettingsError: all radii are below the voxel size.
    """
    usable = sorted(radius for radius in radii if radius >= max(spacing))
    if not usable:
        raise SettingsError(
            f"radii {tuple(radii)} mm are all below the voxel size of {max(spacing):g} mm; give one that is not"
        )
    depth = ndimage.distance_transform_edt(mask, sampling=spacing)
    shape = padded([n + round(usable[-1] / h) for n, h in zip(field.shape, spacing, strict=True)], 0.0)
    spectrum = fft.rfftn(np.where(mask, field, 0), shape)
    local = np.zeros_like(field)
    undo = np.zeros(spectrum.shape, np.float32)
    for radius in usable:
        smooth = fft.rfftn(_sphere(shape, spacing, radius))
        inside = depth > radius
        mean = cropped(fft.irfftn(spectrum * smooth, shape, overwrite_x=True), field.shape)
        local[inside] = (field - mean)[inside]
        undo = 1 - smooth.real
    kept = depth > usable[0]
    spectrum = fft.rfftn(local, shape)
    spectrum *= np.where(undo > threshold, 1 / np.maximum(undo, np.float32(threshold + 1e-6)), 0)
    local = cropped(fft.irfftn(spectrum, shape, overwrite_x=True), field.shape)
    return local * kept, kept


def _sphere(shape: Sequence[int], spacing: Sequence[float], radius: float) -> Volume:
    """A ball around voxel (0, 0, 0) of a periodic grid, its sum 1."""
    squares = [(h * np.rint(n * fft.fftfreq(n))) ** 2 for n, h in zip(shape, spacing, strict=True)]
    ball = (squares[0][:, None, None] + squares[1][:, None] + squares[2] <= radius**2).astype(np.float32)
    return np.asarray(ball / ball.sum())


def _steps(phase: Volume, mask: NDArray[np.bool_], axis: int) -> tuple[Box, Box, Volume]:
    """Along one axis: the lower and the upper of two neighbours, and what the phase gains between them, brought into half a turn."""
    low, high = (
        tuple(piece if a == axis else slice(0, n) for a, n in enumerate(phase.shape))
        for piece in (slice(0, phase.shape[axis] - 1), slice(1, phase.shape[axis]))
    )
    step = phase[high] - phase[low]
    step -= _TURN * np.round(step / _TURN)
    step *= mask[high] & mask[low]
    return low, high, step
