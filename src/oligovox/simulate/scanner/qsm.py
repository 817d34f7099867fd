"""Quantitative susceptibility mapping as a scanner and its software do it: tissue → field → noisy echoes → local field → map.

Nothing of the truth reaches the map but through the phases, so that streaks, blur, the lost border of the brain and the
underestimation of each inversion come out as they do in vivo.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy import ndimage

from oligovox.errors import SettingsError
from oligovox.settings import Settings
from oligovox.simulate.fields import Volume, smooth_field
from oligovox.simulate.physics.dipole import divide, field_shift, solve
from oligovox.simulate.physics.scene import Palette, Part, Parts, mix
from oligovox.simulate.physics.sequences import GRE, gre_signal
from oligovox.simulate.physics.tissues import Tissue, TissueName
from oligovox.simulate.scanner.fieldmap import fit_error, fit_phase, remove_background, traceable, unwrap

S = TypeVar("S", np.float32, np.complex64)
Box: TypeAlias = tuple[slice, slice, slice]

GAMMA = 42.577478
"""Gyromagnetic ratio of the proton over 2 pi, MHz/T, so also Hz per ppm and T."""

_GAIN = 1000.0  # magnitude of the typical brain voxel in the first echo, arbitrary units
_WHOLE_HEAD: frozenset[TissueName] = frozenset({"bone", "skin", "air"})
_COIL_SCALE = 80.0  # mm over which the phase of the coils changes

_CAVITIES = (
    ((0.50, 0.72, 0.17), (11.0, 12.0, 9.0)),  # sphenoid sinus
    ((0.50, 0.87, 0.19), (12.0, 16.0, 9.0)),  # ethmoid cells
    ((0.50, 1.04, 0.40), (14.0, 5.0, 10.0)),  # frontal sinus
    ((0.50, 0.90, 0.02), (14.0, 24.0, 14.0)),  # nasal cavity
    ((0.06, 0.40, 0.10), (9.0, 11.0, 10.0)),  # left mastoid and ear canal
    ((0.94, 0.40, 0.10), (9.0, 11.0, 10.0)),  # right
)
"""Air outside the brain: middle as a share of the brain's box along (x, y, z), half axes in mm (chosen, after the shape of a skull)."""
_SMOOTH = 1.665  # voxels; susceptibility outside the brain is smoothed (weights 1/4, 1/2, 1/4), or its jumps at air would ring in k-space
_WALL = 3.0  # mm between air and brain at least
_NECK = 50.0  # mm by which the lowest slice of a head goes on below the field of view (chosen)
_FAR = 0.75  # padding around a head, as a share of the field of view (chosen; more costs memory)


class QSMSettings(Settings):
    """How phases are acquired and turned into a map; ranges are (lowest, highest), drawn anew per scan."""

    snr: tuple[float, float] = Field((60.0, 140.0), description="typical brain signal in the first echo over the noise")
    blur: float = Field(0.8, ge=0, le=1.4, description="full width at half maximum of the point spread, voxels")
    tilt: tuple[float, float] = Field((0.0, 20.0), description="angle between the head and B0, degrees")
    air: tuple[float, float] = Field((0.6, 1.0), description="air in cavities near a brain without head; 1 is pure air")
    coil_phase: float = Field(1.0, ge=0, description="standard deviation of the phase of the coils, radians")
    radii: tuple[float, ...] = Field((3.0, 6.0, 9.0, 12.0, 15.0), min_length=1, description="spheres of V-SHARP, mm")
    sharp_threshold: float = Field(0.1, ge=0, lt=1, description="part of the V-SHARP filter that is not undone")
    inversion: Literal["iterative", "tkd"] = Field(
        "iterative", description="iterative, or thresholded k-space division"
    )
    threshold: float = Field(0.19, gt=0, lt=1 / 3, description="smallest divisor of the division")
    corrected: bool = Field(True, description="make up for what the division loses on average")
    regularisation: float = Field(0.002, gt=0, description="weight of the gradient in the iterative inversion, voxel²")
    iterations: int = Field(6, ge=1, le=100, description="steps of the iterative inversion")

    @model_validator(mode="after")
    def _possible(self) -> QSMSettings:
        limits = {"snr": (1.0, 1e7), "tilt": (0.0, 90.0), "air": (0.0, 1.0)}
        for name, (least, most) in limits.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(f"{name} = ({low}, {high}); expected {least:g} <= lowest <= highest <= {most:g}")
        if min(self.radii) <= 0:
            raise ValueError(f"radii = {self.radii}; expected mm above 0")
        return self


@dataclass(frozen=True)
class GREScan:
    """A gradient echo scan and the susceptibility map made from it.

    Attributes:
        magnitude: (x, y, z, echo) arbitrary units; 0 outside the brain where there is no head.
        phase: (x, y, z, echo) radians, -pi to pi; it grows with time where the field is stronger than the shim leaves it on average,
            as inside a paramagnetic vein along B0.
        chi: (x, y, z) ppb as reconstructed, mean 0 in `mask`, 0 outside.
        mask: (x, y, z) the brain less the border that background removal costs.
        true_chi: (x, y, z) ppb relative to CSF, 0 outside the brain.
    """

    magnitude: NDArray[np.float32]
    phase: NDArray[np.float32]
    chi: Volume
    mask: NDArray[np.bool_]
    true_chi: Volume


def acquire_gre(
    rng: np.random.Generator,
    parts: Parts,
    palette: Palette,
    gre: GRE,
    field_T: float,
    brain: NDArray[np.bool_],
    affine: NDArray[np.float64],
    spacing: float,
    settings: QSMSettings,
) -> GREScan:
    """Scan a head (or a stripped brain with air cavities put around it) and map its susceptibility.

    Args:
        rng: the only source of chance.
        parts: what is in each voxel.
        palette: the tissues at this field strength.
        gre: timing.
        field_T: T.
        brain: (x, y, z) where a map is wanted.
        affine: voxel → RAS mm.
        spacing: voxel size, mm.
        settings: see there.

    Raises:
        SettingsError: echo times are not evenly spaced, or no sphere of V-SHARP fits in the brain or holds several voxels.
    """
    steps = np.diff(gre.te)
    if len(steps) and (steps.min() <= 0 or np.ptp(steps) > 1e-3 * steps.mean()):
        raise SettingsError(f"echo times {gre.te} ms are not evenly spaced; give times such as 5, 11, 17")
    b0 = _direction(rng, affine, settings)
    chi = np.asarray(mix(parts, palette, lambda tissue: np.asarray(tissue.chi)))
    head = any(part.tissue in _WHOLE_HEAD for part in parts)
    outside = np.where(brain, 0, chi) + _around(rng, parts, palette, brain, spacing, head, settings)
    field = _field(chi, outside, brain, float(palette["air"].chi) if head else 0.0, spacing, b0)
    del outside
    field = shimmed(field, brain) * np.float32(GAMMA * field_T / 1000)  # ppb to Hz
    noise = _GAIN / rng.uniform(*settings.snr)
    near = _box(brain)
    seen = (slice(None),) * 3 if head else near  # where there is anything to receive
    scene = tuple(_cut(part, seen) for part in parts)
    magnitude, phase = np.zeros((2, len(gre.te), *brain.shape), np.float32)
    inside = np.empty((np.count_nonzero(brain), len(gre.te)), np.complex64)
    signals = _echoes(rng, scene, palette, gre, field_T, field[seen], brain[seen], spacing, settings)
    for echo, signal in enumerate(signals):
        signal.real += np.float32(noise) * rng.standard_normal(signal.shape, dtype=np.float32)
        signal.imag += np.float32(noise) * rng.standard_normal(signal.shape, dtype=np.float32)
        if not head:
            signal[~brain[seen]] = 0
        inside[:, echo] = signal[brain[seen]]
        magnitude[echo][seen], phase[echo][seen] = np.abs(signal), np.angle(signal)
    found, mask = np.zeros_like(chi), np.zeros_like(brain)
    found[near], mask[near] = reconstruct(inside, brain[near], gre, field_T, spacing, b0, settings)
    return GREScan(np.moveaxis(magnitude, 0, -1), np.moveaxis(phase, 0, -1), found, mask, chi * brain)


def reconstruct(
    echoes: NDArray[np.complex64],
    brain: NDArray[np.bool_],
    gre: GRE,
    field_T: float,
    spacing: float,
    b0: Sequence[float],
    settings: QSMSettings,
) -> tuple[Volume, NDArray[np.bool_]]:
    """Susceptibility from the complex signal of the brain's voxels, as a scanner's software finds it.

    Args:
        echoes: (n, echo) for the n voxels of the brain, in their order in `brain`.
        brain: (x, y, z).
        gre: timing.
        field_T: T.
        spacing: voxel size, mm.
        b0: direction of B0 in voxel axes.
        settings: see there.

    Returns:
        (x, y, z) ppb with mean 0 over the mask that comes with it, and 0 outside that.

    Raises:
        SettingsError: no sphere of V-SHARP fits in the brain or holds several voxels.
    """
    size = (spacing,) * 3
    step = (gre.te[1] - gre.te[0] if len(gre.te) > 1 else gre.te[0]) / 1000  # s
    phase, weight = np.zeros((2, *brain.shape), np.float32)
    phase[brain] = fit_phase(echoes, gre.te)
    weight[brain] = 1 / fit_error(np.abs(echoes))
    brain = traceable(phase, brain)
    field = unwrap(phase, brain, size) * np.float32(1000 / (2 * np.pi * step * GAMMA * field_T))  # radians to ppb
    local, mask = remove_background(field, brain, size, settings.radii, settings.sharp_threshold)
    if not mask.any():
        raise SettingsError(f"no sphere of radii {settings.radii} mm fits in the brain; give smaller radii")
    if settings.inversion == "tkd":
        chi = divide(local, size, b0, settings.threshold, settings.corrected)
    else:
        certain = np.minimum(weight / np.median(weight[mask]), 1) * mask
        chi = solve(local, certain, size, b0, settings.regularisation, settings.iterations)
    return np.where(mask, chi - chi[mask].mean(), 0).astype(np.float32), mask


def shimmed(field: Volume, brain: NDArray[np.bool_]) -> Volume:
    """The field less the constant and linear terms that fit it best in the brain, as the shim and the centre frequency take them."""
    at = np.argwhere(brain)[::29]
    terms = np.linalg.lstsq(np.column_stack([at, np.ones(len(at))]), field[tuple(at.T)], rcond=None)[0]
    x, y, z = np.ogrid[tuple(slice(n) for n in field.shape)]
    return np.asarray(field - (terms[0] * x + terms[1] * y + terms[2] * z + terms[3]), dtype=np.float32)


def _echoes(
    rng: np.random.Generator,
    parts: Parts,
    palette: Palette,
    gre: GRE,
    field_T: float,
    field: Volume,
    brain: NDArray[np.bool_],
    spacing: float,
    settings: QSMSettings,
) -> Iterator[NDArray[np.complex64]]:
    """Complex signal (x, y, z) of each echo, without noise; a voxel in which the field (Hz) varies loses signal by sinc of its turns."""
    angle = np.float32(settings.coil_phase) * smooth_field(rng, field.shape, spacing, _COIL_SCALE)
    slope = np.sqrt(np.sum([np.square(g) for g in np.gradient(field)], axis=0, dtype=np.float32))
    complete = any(np.any(palette[part.tissue].fat) for part in parts)  # without fat all tissues are in phase
    gain, before = 1.0, 0.0
    for echo, te in enumerate(gre.te):

        def received(tissue: Tissue, echo: int = echo) -> NDArray[Any]:
            value = gre_signal(tissue, gre, field_T)[..., echo]
            return value if complete else value.real

        ideal = mix(parts, palette, received)
        if echo == 0:
            gain = _GAIN / float(np.median(np.abs(ideal[brain])))
        ideal *= np.float32(gain) * np.sinc(slope * np.float32(te / 1000))
        angle += np.float32(2 * np.pi * (te - before) / 1000) * field
        before = te
        turned = np.empty(field.shape, np.complex64)
        turned.real, turned.imag = np.cos(angle), np.sin(angle)
        turned *= ideal
        yield _blurred(turned, settings.blur)


def _field(
    chi: Volume, outside: Volume, brain: NDArray[np.bool_], beyond: float, spacing: float, b0: Sequence[float]
) -> Volume:
    """The field's shift, ppb, before the shim, where all around the field of view is of susceptibility `beyond`, ppb.

    Zeros around the source stand for `beyond`, for only differences shift the field. A head in air is a strong source: it goes on below
    as a neck, and gets more padding, for its field reaches far.
    """
    empty = np.float32(beyond)
    below = round(_NECK / spacing) if beyond else 0
    source = _blurred(np.pad(outside - empty, ((0, 0), (0, 0), (below, 0)), mode="edge"), _SMOOTH)
    source[..., below:][brain] = chi[brain] - empty
    return field_shift(source, (spacing,) * 3, b0, pad=_FAR if beyond else 0.25)[..., below:]


def _cut(part: Part, box: Box) -> Part:
    return replace(part, fraction=part.fraction[box], position=None if part.position is None else part.position[box])


def _blurred(image: NDArray[S], width: float) -> NDArray[S]:
    """Point spread with the variance of a Gaussian of this full width at half maximum, in voxels, by three taps along each axis."""
    side = (width / 2.3548) ** 2 / 2  # a plain number: it keeps the precision of the image
    for axis in range(3):
        line = image.swapaxes(0, axis)
        out = (1 - 2 * side) * line
        out[1:] += side * line[:-1]
        out[:-1] += side * line[1:]
        image = out.swapaxes(0, axis)
    return image


def _around(
    rng: np.random.Generator,
    parts: Parts,
    palette: Palette,
    brain: NDArray[np.bool_],
    spacing: float,
    head: bool,
    settings: QSMSettings,
) -> Volume:
    """What air adds to the susceptibility, ppb: where no tissue is, with a head; in cavities near the brain, without."""
    if head:
        covered = np.sum([part.fraction for part in parts], axis=0, dtype=np.float32)
        return np.asarray(np.clip(1 - covered, 0, 1) * np.float32(palette["air"].chi))
    strength = float(palette["air"].chi) * rng.uniform(*settings.air)
    air = np.zeros(brain.shape, np.float32)
    box = _box(brain)
    low = np.array([s.start for s in box])
    extent = np.array([s.stop for s in box]) - low
    for middle, radii in _CAVITIES:
        centre = low + extent * np.array(middle) + rng.normal(0, 2.0 / spacing, 3)
        axes = np.array(radii) * rng.uniform(0.8, 1.2, 3) / spacing
        start = np.maximum(np.floor(centre - axes).astype(int), 0)
        stop = np.minimum(np.ceil(centre + axes).astype(int) + 1, brain.shape)
        if np.any(stop <= start):
            continue
        near = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        x, y, z = (((np.arange(a, b) - c) / r) ** 2 for a, b, c, r in zip(start, stop, centre, axes, strict=True))
        inside = x[:, None, None] + y[:, None] + z < 1
        if brain[near].any():
            inside &= ndimage.distance_transform_edt(~brain[near], sampling=spacing) > _WALL
        air[near][inside] = strength
    return air


def _direction(rng: np.random.Generator, affine: NDArray[np.float64], settings: QSMSettings) -> tuple[float, ...]:
    """B0 in voxel axes: the scanner's axis, from which the head is tilted by a random angle towards a random side."""
    angle, side = math.radians(rng.uniform(*settings.tilt)), rng.uniform(0, 2 * math.pi)
    world = np.array([math.sin(angle) * math.cos(side), math.sin(angle) * math.sin(side), math.cos(angle)])
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return tuple(float(part) for part in axes.T @ world)


def _box(mask: NDArray[np.bool_]) -> Box:
    found = ndimage.find_objects(mask.astype(np.int8))[0]
    return (found[0], found[1], found[2])
