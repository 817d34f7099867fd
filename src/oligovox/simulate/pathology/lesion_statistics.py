"""What a lesion mask is like, in numbers: to set simulated masks beside real ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.simulate.anatomy.template import Template
from oligovox.simulate.fields import Volume
from oligovox.simulate.pathology.implants import brain_frame
from oligovox.simulate.pathology.lesion_canvas import SPECK
from oligovox.simulate.pathology.lesion_shapes import NEIGHBOURS, Mask


@dataclass(frozen=True)
class LesionStatistics:
    """A mask in numbers; its 26-connected components of at least 3 mm³ are its lesions.

    Attributes:
        count: number of lesions.
        load_ml: their volume, mL.
        volumes_mm3: (count,) volume of each, mm³.
        largest_share: volume of the largest over the load.
        voxel_distance_mm: (voxels,) distance of each lesion voxel to the lateral ventricles of the average brain, mm.
        nearest_mm: (count,) the least of them in each lesion, mm.
        infratentorial: share of lesion voxels below the tentorium.
        left: share of lesion voxels left of the middle.
    """

    count: int
    load_ml: float
    volumes_mm3: NDArray[np.float64]
    largest_share: float
    voxel_distance_mm: NDArray[np.float64]
    nearest_mm: NDArray[np.float64]
    infratentorial: float
    left: float


def lesion_statistics(mask: Mask, brain: Mask, spacing: float, average: Template) -> LesionStatistics:
    """Measure a mask; places are read in the average brain after scaling this brain to its size along x, y and z.

    Real and simulated masks are measured alike, whatever is known of the ventricles of the brain.

    Args:
        mask: (x, y, z) lesion, with at least one of 3 mm³.
        brain: (x, y, z) brain, RAS order.
        spacing: isotropic voxel size, mm.
        average: the average brain.
    """
    parts, count = ndimage.label(mask, NEIGHBOURS)
    volumes = np.bincount(parts.ravel(), minlength=count + 1) * spacing**3
    kept = volumes >= SPECK
    kept[0] = False
    voxels = np.argwhere(kept[parts])
    (middle, size), (middle_there, size_there) = brain_frame(brain), brain_frame(average.cover > 0.5)
    at = ((voxels - middle) / size * size_there + middle_there).T

    def read(volume: Volume) -> NDArray[np.float64]:
        return np.asarray(ndimage.map_coordinates(volume, at, order=1, mode="nearest"), dtype=np.float64)

    distance = read(average.to_ventricle)
    nearest = ndimage.minimum(distance, parts[tuple(voxels.T)], np.flatnonzero(kept))
    sizes = np.asarray(volumes[kept], dtype=np.float64)
    return LesionStatistics(
        count=int(kept.sum()),
        load_ml=float(sizes.sum() / 1000),
        volumes_mm3=sizes,
        largest_share=float(sizes.max() / sizes.sum()),
        voxel_distance_mm=distance,
        nearest_mm=np.asarray(nearest, dtype=np.float64),
        infratentorial=float(np.mean(read(average.below) > 0.5)),
        left=float(np.mean(at[0] < middle_there[0])),
    )
