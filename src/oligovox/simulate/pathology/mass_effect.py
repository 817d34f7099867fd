"""Mass effect: a growing tumour pushes the brain away, a resected one lets it sink in.

The core is a source of volume in an otherwise incompressible medium: displacement is the gradient of a potential whose Laplacian is
the core, so it points away from the core and, outside a ball of it, falls with the square of the distance. It fades to nothing towards
the skull, where the sulci close instead, and far away. Deviates from mechanics: no falx holds the upper midline.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import fft, ndimage

from oligovox.simulate.anatomy.brain import Anatomy
from oligovox.simulate.anatomy.deformation import jacobian
from oligovox.simulate.fields import Volume, smoothstep
from oligovox.simulate.pathology.tumour_shapes import coarsen, crop, put_back, refine

_SKULL = 22.0  # depth under the surface at which tissue moves freely, mm
_NEAR, _FAR = 20.0, 65.0  # from here on the push fades, and ends, mm from the core
_LEAST_JACOBIAN = 0.12  # smallest local change of volume allowed; the core itself is what is stretched most
_STILL = 0.03  # less than this is not movement, voxels
_ROOM = 1.5  # the grid of the Fourier transform, relative to the brain's: it must not feel its own repetition


def mass_effect(anatomy: Anatomy, core: Volume, factor: int, peak: float) -> Volume:
    """Where in the undisturbed brain each voxel of the displaced one comes from.

    Args:
        anatomy: the undisturbed brain.
        core: what pushes, 0 to 1, on the grid `factor` times coarser.
        factor: see `core`.
        peak: the largest displacement, mm; negative: towards the core. It is reduced where the map would come close to folding.

    Returns:
        (3, x, y, z) voxel coordinates, float32; the determinant of their derivative is above 0.
    """
    spacing = anatomy.spacing * factor
    brain = coarsen(anatomy.brain.astype(np.float32), factor) > 0.5
    depth = ndimage.distance_transform_edt(brain, sampling=spacing).astype(np.float32)
    far = ndimage.distance_transform_edt(core < 0.5, sampling=spacing).astype(np.float32)
    push = _away(core, spacing) * smoothstep(depth, 0.0, _SKULL) * (1 - smoothstep(far, _NEAR, _FAR))
    length = float(np.sqrt((push**2).sum(0)).max())
    push *= np.float32(peak / spacing / max(length, 1e-9))
    grid = np.indices(core.shape, dtype=np.float32)
    while jacobian(grid - push).min() < _LEAST_JACOBIAN:
        push *= np.float32(0.85)
    where = np.indices(anatomy.wm.shape, dtype=np.float32)
    for axis in range(3):
        where[axis] -= factor * refine(push[axis], factor, anatomy.wm.shape)
    return np.asarray(where)


def displaced(anatomy: Anatomy, where: Volume) -> Anatomy:
    """`Anatomy.displaced` in the box in which anything moves; the rest of the brain stays as it is."""
    still = np.ogrid[tuple(slice(n) for n in where.shape[1:])]
    offset = np.max([np.abs(w - i) for w, i in zip(where, still, strict=True)], axis=0)
    found = ndimage.find_objects((offset > _STILL).astype(np.int8))
    if not found:
        return replace(anatomy, veins=())
    reach = int(np.ceil(offset.max())) + 1  # what moves comes from inside the box
    x, y, z = (slice(max(s.start - reach, 0), s.stop + reach) for s in found[0])
    local = crop(anatomy, (x, y, z))
    last = np.array(local.wm.shape) - 1
    inside = [(w[x, y, z] - s.start).clip(0, n) for w, s, n in zip(where, (x, y, z), last, strict=True)]
    return put_back(anatomy, local.displaced(np.stack(inside)), (x, y, z))


def _away(core: Volume, spacing: float) -> Volume:
    """The gradient field whose divergence is `core`: (3, x, y, z), up to a factor."""
    shape = [round(_ROOM * n) for n in core.shape]
    soft = ndimage.gaussian_filter(core, 3.0 / spacing)
    waves = np.meshgrid(*(fft.fftfreq(n) for n in shape[:2]), fft.rfftfreq(shape[2]), indexing="ij")
    square = np.sum(np.square(waves), axis=0)
    square[0, 0, 0] = np.inf
    potential = fft.rfftn(soft, shape) / square
    fields = [fft.irfftn(-1j * wave * potential, shape)[tuple(slice(n) for n in core.shape)] for wave in waves]
    return np.stack(fields).astype(np.float32)
