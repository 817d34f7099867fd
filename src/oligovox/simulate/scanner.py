"""What a scanner does to the ideal signal: its own timing, resolution, gain, uneven sensitivity, texture and noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.simulate.fields import Volume, smooth_field
from oligovox.simulate.sequences import FLAIR, MPRAGE, TSE, Sequence

_TIMING = 0.03  # standard deviation of TR, TE, TI between scanners, relative


@dataclass(frozen=True)
class Scan:
    """How one sequence of one person was acquired.

    Attributes:
        sequence: timing.
        blur: full width at half maximum of the point spread function along (x, y, z), mm.
        gain: arbitrary units per unit of signal.
        noise: standard deviation per channel, as a fraction of white matter.
        bias: half the 5-95 % range of the smooth field around 1.
        texture: standard deviation of the variation within a tissue, relative.
    """

    sequence: Sequence
    blur: tuple[float, float, float]
    gain: float
    noise: float
    bias: float
    texture: float


def vary(rng: np.random.Generator, sequence: Sequence) -> Sequence:
    """The same sequence as another site runs it: each time (and the flip angle) a few per cent longer or shorter."""
    names = {MPRAGE: ("tr", "ti", "flip"), TSE: ("tr", "te"), FLAIR: ("tr", "ti", "te")}[type(sequence)]
    factors = 1 + _TIMING * rng.standard_normal(len(names)).clip(-2, 2)
    if isinstance(sequence, FLAIR):  # sites that change TR change TI with it: CSF stays dark
        factors[1] = 1 + 0.3 * (factors[0] - 1) + 0.3 * (factors[1] - 1)
    return sequence.model_copy(
        update={name: round(getattr(sequence, name) * float(f), 2) for name, f in zip(names, factors, strict=True)}
    )


def blur(image: Volume, width: tuple[float, float, float], spacing: float) -> Volume:
    """Gaussian point spread function of a full width at half maximum in mm along (x, y, z)."""
    sigma = [w / 2.3548 / spacing for w in width]
    return np.asarray(ndimage.gaussian_filter(image, sigma, truncate=3.0), dtype=np.float32)


def bias_field(
    rng: np.random.Generator, shape: tuple[int, ...], spacing: float, strength: float, where: NDArray[np.bool_]
) -> Volume:
    """Smooth positive factor (x, y, z) whose 5-95 % range within `where` is 1 - strength … 1 + strength, about."""
    field = smooth_field(rng, shape, spacing, 90.0) + 0.35 * smooth_field(rng, shape, spacing, 45.0)
    low, middle, high = np.percentile(field[where][::17], (5, 50, 95))
    return np.asarray(np.exp(2 * strength * (field - middle) / (high - low)), dtype=np.float32)


def texture(rng: np.random.Generator, shape: tuple[int, ...], spacing: float, strength: float) -> Volume:
    """Factor (x, y, z) of mean 1: variation within a tissue on scales of some millimetres."""
    field = smooth_field(rng, shape, spacing, 4.0) + smooth_field(rng, shape, spacing, 9.0)
    return np.asarray(1 + strength / np.sqrt(2) * field, dtype=np.float32)


def rician(rng: np.random.Generator, image: Volume, sigma: float) -> Volume:
    """Magnitude of the image with Gaussian noise of `sigma` in the real and the imaginary channel.

    The mean square is the signal's plus 2 sigma²; without signal the mean is sigma sqrt(pi / 2) (Gudbjartsson and Patz 1995,
    Magn Reson Med 34:910).
    """
    real = image + np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32)
    imaginary = np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(np.hypot(real, imaginary))
