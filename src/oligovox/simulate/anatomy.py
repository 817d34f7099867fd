"""A person's brain: fractions of grey matter, white matter and CSF in each voxel, and where the ventricles and the cortex are.

Source of the maps: the symmetric ICBM152 2009a average that nilearn ships (Fonov et al. 2011, NeuroImage 54:313; Fonov et al. 2009;
Collins et al. 1999). They are read where nilearn keeps them, nothing is copied here. nilearn gives their licence as "unknown" (its
datasets/description/icbm152_2009.rst); to our knowledge the McConnell Brain Imaging Centre, Montreal Neurological Institute, who made
them, permits use, copying, modification and distribution without fee where its copyright notice appears: read the notice at its
source before you pass on data simulated from them.

There is a brain in a thin envelope of CSF and nothing else: no skull, no scalp, no eyes, as after perfect skull stripping.
An average of 152 people is blurred and shows narrow sulci; the maps are sharpened and each person's CSF is weighted up at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.errors import ImageError, SettingsError
from oligovox.simulate.fields import Volume, smooth_field, smoothstep

_SHARPEN = 2.5  # power put on the probabilities of the average
_ENVELOPE = 1.5  # CSF around the brain, mm
_MARGIN = 8.0  # empty space around the template, mm
_SCALES = ((60.0, 2.2), (24.0, 0.9), (11.0, 0.3))  # displacement: lattice mm, standard deviation mm
_SHRINK = 1.11  # mean linear scale, template / person: the template is larger than people are
_STRETCH, _SHEAR = 0.04, 0.03  # standard deviations of the affine part
_LEAST_JACOBIAN = 0.25  # smallest local change of volume allowed
_OUTSIDE = 60.0  # a distance where there is no brain, mm


@dataclass(frozen=True)
class Template:
    """The average brain on the simulation grid; all maps (x, y, z), float32.

    Attributes:
        gm, wm, csf: fractions, 0 to 1; their sum is 1 in the brain and falls to 0 over its envelope.
        to_ventricle: distance to the lateral ventricles, mm.
        to_cortex: distance to cortical grey matter, mm.
        deep: the region of the basal ganglia and the thalamus, 0 or 1.
        push: (3, x, y, z), in mm; direction and strength with which larger ventricles move what is around them.
        affine: voxel → RAS mm.
        spacing: voxel size, mm.
    """

    gm: Volume
    wm: Volume
    csf: Volume
    to_ventricle: Volume
    to_cortex: Volume
    deep: Volume
    push: Volume
    affine: NDArray[np.float64]
    spacing: float


@dataclass(frozen=True)
class Anatomy:
    """One person's brain; all maps (x, y, z), float32.

    Attributes:
        gm, wm, csf: fractions, 0 to 1; their sum is 1 in the brain and 0 outside.
        brain: what skull stripping left: brain and an uneven layer of CSF.
        to_ventricle, to_cortex, deep: carried over from the template.
        affine: voxel → RAS mm.
        spacing: voxel size, mm.
    """

    gm: Volume
    wm: Volume
    csf: Volume
    brain: NDArray[np.bool_]
    to_ventricle: Volume
    to_cortex: Volume
    deep: Volume
    affine: NDArray[np.float64]
    spacing: float


@cache
def template(spacing: float) -> Template:
    """The average brain at an isotropic spacing in mm; made once per process and spacing.

    Raises:
        SettingsError: nilearn is not installed.
        ImageError: its maps are missing or unreadable.
    """
    gm, wm, t1 = (_read(name) for name in ("gm", "wm", "t1"))
    hull = ndimage.binary_fill_holes(t1 > 0)
    csf = np.where(hull, np.clip(1 - gm - wm, 0, 1), 0)
    maps = [fraction**_SHARPEN for fraction in (gm, wm, csf)]
    total = np.maximum(sum(maps), 1e-6)
    box = _box(hull, round(_MARGIN))
    coarse = [_resample((m / total)[box] * hull[box], spacing) for m in maps]
    cover = _resample(_envelope(hull[box]), spacing)
    gm, wm = coarse[0], coarse[1]
    csf = np.clip(cover - gm - wm, 0, 1)
    corner = np.array([axis.start for axis in box]) + _ORIGIN + (spacing - 1) / 2
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = corner
    ventricles = _lateral_ventricles(csf, cover, affine)
    gm, wm, csf = _without_false_rim(gm, wm, csf, ventricles, spacing)
    deep = _deep(gm.shape, affine)
    return Template(
        gm=gm,
        wm=wm,
        csf=csf,
        to_ventricle=_distance(ventricles, spacing),
        to_cortex=_distance((gm > 0.5) & (deep == 0), spacing),
        deep=deep,
        push=_push(ventricles, spacing),
        affine=affine,
        spacing=spacing,
    )


def draw_anatomy(rng: np.random.Generator, average: Template) -> Anatomy:
    """A new person: the average deformed, its ventricles and sulci made wider or narrower."""
    where = deformation(rng, average)
    atrophy = rng.uniform(0.3, 2.2)
    cover = _pull(average.gm + average.wm + average.csf, where, None)
    uneven = 0.85 + 0.3 * smooth_field(rng, cover.shape, average.spacing, 7.0)  # how much CSF skull stripping left
    brain = cover > uneven.clip(0.3, 0.99)
    inside = np.nonzero(brain)
    near = _pull(average.to_ventricle, where, inside, _OUTSIDE)
    gm, wm = (_pull(m, where, inside) for m in (average.gm, average.wm))
    csf = np.clip(cover - gm - wm, 0, None)
    shape, spacing = cover.shape, average.spacing
    folds = [smooth_field(rng, shape, spacing, scale) for scale in (5.0, 5.0)]
    gain = np.exp(atrophy * smoothstep(near, 2.0, 6.0) + 0.45 * folds[0])  # sulci, not the ventricles' border
    csf *= gain
    gm *= np.exp(0.35 * folds[1])
    total = np.maximum(gm + wm + csf, 1e-6)
    gm, wm, csf = (np.where(brain, m / total, 0).astype(np.float32) for m in (gm, wm, csf))
    return Anatomy(
        gm=gm,
        wm=wm,
        csf=csf,
        brain=brain,
        to_ventricle=near,
        to_cortex=_pull(average.to_cortex, where, inside, _OUTSIDE),
        deep=_pull(average.deep, where, inside),
        affine=average.affine,
        spacing=spacing,
    )


def deformation(rng: np.random.Generator, average: Template) -> Volume:
    """Where in the template each voxel of the new brain comes from.

    Affine scale and shear about the middle, smooth displacement on three scales, and larger ventricles; the smooth part is
    shrunk until the Jacobian determinant is above 0.25 everywhere, so that the map folds nowhere and can be inverted.

    Returns:
        (3, x, y, z) template voxel coordinates.
    """
    shape, spacing = average.gm.shape, average.spacing
    matrix = _SHRINK * np.eye(3) + np.diag(rng.normal(0, _STRETCH, 3).clip(-2 * _STRETCH, 2 * _STRETCH))
    matrix += np.triu(rng.normal(0, _SHEAR, (3, 3)), 1)
    smooth = average.push * np.float32(rng.uniform(-0.5, 5.0))
    for scale, amplitude in _SCALES:
        for axis in range(3):
            smooth[axis] += np.float32(amplitude) * smooth_field(rng, shape, spacing, scale)
    smooth /= spacing
    middle = (np.array(shape) - 1) / 2
    straight = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij"))
    straight = np.tensordot(matrix.astype(np.float32), straight - middle[:, None, None, None].astype(np.float32), 1)
    straight += middle[:, None, None, None].astype(np.float32)
    while jacobian(straight + smooth).min() < _LEAST_JACOBIAN:
        smooth *= np.float32(0.8)
    return np.asarray(straight + smooth)


def jacobian(where: Volume) -> Volume:
    """Determinant of the derivative of a coordinate map (3, x, y, z) by central differences: (x, y, z)."""
    d = [np.gradient(component) for component in where]
    return np.asarray(
        d[0][0] * (d[1][1] * d[2][2] - d[1][2] * d[2][1])
        - d[0][1] * (d[1][0] * d[2][2] - d[1][2] * d[2][0])
        + d[0][2] * (d[1][0] * d[2][1] - d[1][1] * d[2][0])
    )


_ORIGIN = np.array([-98.0, -134.0, -72.0])  # RAS mm of the first voxel of nilearn's maps, 1 mm grid


def _read(name: str) -> Volume:
    spec = find_spec("nilearn")  # finds the folder without importing nilearn, which takes seconds
    if spec is None or spec.origin is None:
        raise SettingsError("simulating needs the brain maps that come with nilearn; install nilearn")
    path = Path(spec.origin).parent / "datasets" / "data" / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    try:
        return np.asarray(nib.load(path).dataobj, dtype=np.float32) / np.float32(255)
    except (OSError, EOFError, nib.filebasedimages.ImageFileError) as error:
        raise ImageError(path, f"cannot be read ({error})", "install nilearn again, version 0.12 or newer") from error


def _box(mask: NDArray[np.bool_], margin: int) -> tuple[slice, ...]:
    found = ndimage.find_objects(mask.astype(np.int8))[0]
    return tuple(
        slice(max(s.start - margin, 0), min(s.stop + margin, n)) for s, n in zip(found, mask.shape, strict=True)
    )


def _resample(volume: Volume, spacing: float) -> Volume:
    """From 1 mm to `spacing`, each voxel the mean of what it covers (box, then linear); first voxel corners coincide."""
    if spacing == 1:
        return volume.astype(np.float32)
    for axis, count in enumerate(volume.shape):
        edges = np.arange(int(count / spacing) + 1) * spacing
        total = np.concatenate([np.zeros_like(volume.take([0], axis)), np.cumsum(volume, axis, dtype=np.float64)], axis)
        low = np.floor(edges).astype(int).clip(0, count - 1)
        part = (edges - low).reshape([-1 if a == axis else 1 for a in range(3)])
        reached = total.take(low, axis) * (1 - part) + total.take(low + 1, axis) * part
        volume = np.asarray(np.diff(reached, axis=axis) / spacing, dtype=np.float32)
    return volume


def _envelope(hull: NDArray[np.bool_]) -> Volume:
    """Soft cover of the brain with its sulci closed and a thin layer of CSF around, on the 1 mm grid."""
    closed = ndimage.gaussian_filter(hull.astype(np.float32), 3.0) > 0.42
    return smoothstep(ndimage.gaussian_filter((closed | hull).astype(np.float32), 1.3), 0.15 - 0.05 * _ENVELOPE, 0.35)


def _lateral_ventricles(csf: Volume, cover: Volume, affine: NDArray[np.float64]) -> NDArray[np.bool_]:
    """CSF well inside the brain, in the box of the lateral ventricles."""
    x, y, z = _world(csf.shape, affine)
    box = (np.abs(x) < 42) & (y > -62) & (y < 42) & (z > -24) & (z < 34)
    box &= ~((np.abs(x) < 13) & (y < -28)) & ~((np.abs(x) < 4) & (z > 20))  # cisterns and the cleft between the halves
    depth = ndimage.distance_transform_edt(cover > 0.5, sampling=affine[0, 0])
    parts, count = ndimage.label((csf > 0.6) & box & (depth > 22))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:] * affine[0, 0] ** 3
    keep = np.flatnonzero(sizes > 300) + 1  # mm³
    return np.asarray(np.isin(parts, keep))


def _without_false_rim(
    gm: Volume, wm: Volume, csf: Volume, ventricles: NDArray[np.bool_], spacing: float
) -> tuple[Volume, Volume, Volume]:
    """Near the ventricles, thin grey matter is white matter mixed with CSF that the average misread: give it back."""
    size = 2 * round(1.5 / spacing) + 1
    thick = ndimage.grey_opening(gm, size) if size > 1 else gm
    near = 1 - smoothstep(_distance(ventricles, spacing), 2.5, 6.0)
    thin = np.clip(gm - thick, 0, None) * near
    return gm - thin, wm + 0.6 * thin, csf + 0.4 * thin


def _push(ventricles: NDArray[np.bool_], spacing: float) -> Volume:
    soft = ndimage.gaussian_filter(ventricles.astype(np.float32), 6.0 / spacing)
    slope = np.stack(np.gradient(soft, spacing)).astype(np.float32)
    return np.asarray(slope / np.linalg.norm(slope, axis=0).max())  # 1 mm at most, towards the ventricles


def _deep(shape: tuple[int, ...], affine: NDArray[np.float64]) -> Volume:
    """The region of the basal ganglia and the thalamus: an ellipsoid in template space, 1 inside."""
    x, y, z = _world(shape, affine)
    return np.asarray((x / 33) ** 2 + ((y + 6) / 34) ** 2 + ((z - 1) / 19) ** 2 < 1, dtype=np.float32)


def _world(shape: tuple[int, ...], affine: NDArray[np.float64]) -> tuple[Volume, Volume, Volume]:
    """RAS mm along each axis, ready to broadcast."""
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    x, y, z = (axes[a] * affine[a, a] + affine[a, 3] for a in range(3))
    return x, y, z


def _distance(mask: NDArray[np.bool_], spacing: float) -> Volume:
    return np.asarray(ndimage.distance_transform_edt(~mask, sampling=spacing), dtype=np.float32)


def _pull(volume: Volume, where: Volume, inside: tuple[NDArray[np.intp], ...] | None, outside: float = 0.0) -> Volume:
    """Read a template map at the coordinates `where`, at the voxels `inside` only (None: at all of them)."""
    if inside is None:
        return np.asarray(ndimage.map_coordinates(volume, where, order=1, output=np.float32))
    result = np.full(where.shape[1:], outside, dtype=np.float32)
    at = np.stack([component[inside] for component in where])
    result[inside] = ndimage.map_coordinates(volume, at, order=1, output=np.float32, mode="nearest")
    return result
