"""From an object to a magnitude image: slices, k-space with its window, ghosts and noise, and resampling to the delivered grid.

Arrays are (x, y, z). A scan has one slice axis; the other two are encoded in k-space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from oligovox.simulate.fields import Volume

_DELIVERED = 1.0  # voxel size that noise refers to, mm
_PROBES = 16  # points along each axis at which the smoothing of an interpolation is measured


def window(count: int, spacing: float, resolution: float, ringing: float) -> NDArray[np.float32]:
    """What is kept of each frequency along an axis: nothing beyond 1 / (2 resolution), the rest weighed by a raw-data filter.

    Args:
        count: voxels along the axis.
        spacing: voxel size, mm.
        resolution: acquired voxel size, mm; finer than `spacing` cuts nothing.
        ringing: 1 = no filter, so that edges ring (Gibbs; 9 % overshoot), 0 = Hamming filter, hardly any ringing.

    Returns:
        (count,) in the order of `numpy.fft.fftfreq`.
    """
    return _filter(np.abs(fft.fftfreq(count, spacing)), resolution, ringing).astype(np.float32)


def _filter(frequency: NDArray[np.float64], resolution: float, ringing: float) -> NDArray[np.float64]:
    edge = frequency * 2 * resolution  # 1 at the highest acquired frequency
    hamming = 0.54 + 0.46 * np.cos(np.pi * np.minimum(edge, 1))
    return np.where(edge <= 1 + 1e-9, ringing + (1 - ringing) * hamming, 0)


def ghost_lines(count: int, shift: float, strength: float) -> NDArray[np.complex64]:
    """Factor of each k-space line when something moves periodically during the scan: (count,), order of `fftfreq`.

    The phase of the lines swings as a sine, so the image gets a bright copy `shift` voxels up and a dark one as far down `strength`
    times as bright (first Bessel function of the swing, for weak ghosts half of it), and much fainter ones beyond.
    """
    phase = -2 * strength * np.sin(2 * np.pi * shift * fft.fftfreq(count))
    return np.asarray(np.exp(1j * phase), dtype=np.complex64)


def slice_profile(count: int, spacing: float, thickness: float, gap: float) -> Volume:
    """Weights (slice, voxel) with which slices `thickness` mm thick and `gap` mm apart average the voxels along their axis.

    Slices sit symmetrically about the middle and do not reach beyond the ends; they are never thinner than a voxel. The identity where
    thickness is at most `spacing` and there is no gap.
    """
    thickness = max(thickness, spacing)
    pitch = thickness + gap
    slices = max(1, int(count * spacing / pitch + 1e-6))
    middle = (np.arange(slices) - (slices - 1) / 2) * pitch
    voxel = (np.arange(count) - (count - 1) / 2) * spacing
    reach = (thickness + spacing) / 2 - np.abs(middle[:, None] - voxel)
    overlap = reach.clip(0, spacing)
    return np.asarray(overlap / overlap.sum(1, keepdims=True), dtype=np.float32)


def read_out(
    rng: np.random.Generator,
    image: Volume,
    windows: tuple[NDArray[np.float32], ...],
    lines: NDArray[np.complex64],
    axes: tuple[int, int],
    sigma: float,
) -> Volume:
    """Magnitude of the image after k-space: window, ghosts, noise.

    Args:
        rng: the only source of chance.
        image: (x, y, z) signed signal.
        windows: what is kept of each frequency along the two axes.
        lines: factor of each line along the first of the axes (phase encoding).
        axes: the two axes within the slice.
        sigma: standard deviation of the noise in each channel of the reconstructed image; it passes the same window, so it is as smooth.
    """
    first, second = ([-1 if a == axis else 1 for a in range(3)] for axis in axes)
    kept = windows[0].reshape(first) * windows[1].reshape(second)
    if np.all(kept == 1) and np.all(lines == 1):
        return rician(rng, image, sigma) if sigma else np.abs(image)
    space = fft.fft2(image, axes=axes, norm="ortho")
    space *= lines.reshape(first)
    if sigma:
        noise = rng.standard_normal((*image.shape, 2), dtype=np.float32)
        noise *= np.float32(sigma / math.sqrt(float(np.mean(kept**2))))
        space += noise.view(np.complex64)[..., 0]
    space *= kept
    return np.asarray(np.abs(fft.ifft2(space, axes=axes, norm="ortho", overwrite_x=True)), dtype=np.float32)


def rician(rng: np.random.Generator, image: Volume, sigma: float) -> Volume:
    """Magnitude of the image with Gaussian noise of `sigma` in the real and the imaginary channel.

    The mean square is the signal's plus 2 sigma²; without signal the mean is sigma sqrt(pi / 2) (Gudbjartsson and Patz 1995,
    Magn Reson Med 34:910).
    """
    real = image + np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32)
    imaginary = np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(np.hypot(real, imaginary))


class Placement:
    """Where each voxel of the delivered image lies among the acquired voxels: turned and shifted about the middle.

    Args:
        shape: delivered voxels along (x, y, z).
        spacing: delivered voxel size along (x, y, z), mm; within the slice also the acquired one.
        axis: slice axis.
        slices: number of slices.
        pitch: distance between slice middles, mm.
        shift: mm along (x, y, z).
        turn: degrees about (x, y, z).
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        spacing: Sequence[float],
        axis: int,
        slices: int,
        pitch: float,
        shift: tuple[float, float, float],
        turn: tuple[float, float, float],
    ) -> None:
        acquired = [slices if a == axis else n for a, n in enumerate(shape)]
        size = np.array([pitch if a == axis else s for a, s in enumerate(spacing)])
        self.shape = tuple(shape)
        self.matrix = rotation(turn) * np.asarray(spacing) / size[:, None]
        middle = (np.array(shape) - 1) / 2
        self.offset = (np.array(acquired) - 1) / 2 + np.array(shift) / size - self.matrix @ middle

    @property
    def straight(self) -> bool:
        """Each delivered voxel is an acquired one."""
        return bool(np.allclose(self.matrix, np.eye(3)) and np.allclose(self.offset, 0))

    def deliver(self, acquired: Volume) -> Volume:
        """The acquired image on the delivered grid, by linear interpolation; voxels beyond its ends repeat the last."""
        if self.straight:
            return acquired
        return np.asarray(
            ndimage.affine_transform(
                acquired, self.matrix, self.offset, self.shape, output=np.float32, order=1, mode="nearest"
            )
        )

    def smoothing(self) -> float:
        """Standard deviation that interpolation leaves of white noise, root mean square over the image, 0 to 1."""
        if self.straight:
            return 1.0
        probes = np.meshgrid(*(np.linspace(0, n - 1, _PROBES).round() for n in self.shape), indexing="ij")
        at = np.tensordot(self.matrix, np.stack(probes), 1) + self.offset[:, None, None, None]
        part = at - np.floor(at)
        return float(np.sqrt(np.mean(np.prod(part**2 + (1 - part) ** 2, axis=0))))


def rotation(degrees: tuple[float, float, float]) -> NDArray[np.float64]:
    """Rotation matrix: about x, then y, then z."""
    turned = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        step = np.eye(3)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        step[[a, b], [a, b]] = math.cos(angle)
        step[a, b], step[b, a] = -math.sin(angle), math.sin(angle)
        turned = step @ turned
    return turned


def averaged(spacing: Sequence[float], axis: int, resolution: float, ringing: float, pitch: float) -> float:
    """Noise on a grid of `spacing` mm over the noise of the same scan on a 1 mm grid, the image averaged (or refined) to the grid.

    White noise would fall with the square root of the volume, to 0.35 at 2 mm. Noise of an interpolated scan is smooth and falls less:
    its power spectrum is that of linear interpolation (sinc⁴), within the slice times the window squared. Averaging 1 mm voxels to larger
    ones multiplies it with (sinc(k spacing) / sinc(k))².

    Args:
        spacing: voxel size along (x, y, z), mm.
        axis: slice axis.
        resolution: acquired voxel size within the slice, mm.
        ringing: of the window.
        pitch: acquired distance between slice middles, mm.
    """
    frequency = np.linspace(0, 0.5 / _DELIVERED, 200)  # cycles per mm
    power = 1.0
    for a, size in enumerate(spacing):
        within = a != axis
        width = _DELIVERED if within else max(pitch, _DELIVERED)
        spectrum = np.sinc(frequency * width) ** 4 * (_filter(frequency, resolution, ringing) ** 2 if within else 1)
        change = np.sinc(frequency * size) / np.sinc(frequency * _DELIVERED)
        power *= float(np.sum(spectrum * change**2) / np.sum(spectrum))
    return math.sqrt(power)
