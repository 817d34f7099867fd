"""The table of lesions: one row for each connected component of a mask."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.simulate.anatomy.brain import Anatomy
from oligovox.simulate.pathology.lesion_canvas import Canvas
from oligovox.simulate.pathology.lesion_shapes import NEIGHBOURS, Place

Change: TypeAlias = Literal["first visit", "stable", "enlarging", "shrinking", "new"]
Instances: TypeAlias = NDArray[np.int32]
Rows: TypeAlias = tuple[dict[str, Any], ...]

_TOUCHES_VENTRICLE, _TOUCHES_CORTEX = 2.0, 1.5  # mm, at least a voxel and a half
_LARGER = 1.2  # ratio of volumes from which a lesion is enlarging; below its inverse it is shrinking


def describe(
    anatomy: Anatomy, canvas: Canvas, before: tuple[Instances, Rows] | None = None
) -> tuple[Instances, Rows, Rows]:
    """Number the connected components and describe each: see `lesions.Lesions`.

    Args:
        anatomy: of the person.
        canvas: the lesions as drawn.
        before: components and rows of the visit before.

    Returns:
        Components (x, y, z), one row for each, and the rows of the visit before that have no lesion any more.
    """
    instances, count = ndimage.label(canvas.fraction > 0.5, NEIGHBOURS, output=np.int32)
    where = np.nonzero(instances)
    owner = instances[where]
    voxel = anatomy.spacing**3
    counts = np.bincount(owner, minlength=count + 1)[1:]
    volumes = np.asarray(counts * voxel, dtype=np.float64)

    def total(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(np.bincount(owner, weights=values, minlength=count + 1)[1:], dtype=np.float64)

    centres = np.stack([total(axis) / counts for axis in where], axis=1)
    world = centres @ anatomy.affine[:3, :3].T + anatomy.affine[:3, 3]
    severity = total(canvas.severity[where]) / counts
    enhancing = total(canvas.enhancing[where]) * voxel
    regions = _regions(anatomy, where, owner, total(anatomy.below[where]) / counts)
    owners = _owners(canvas, instances, count)
    changes = _changes(instances, volumes, before)
    rows = tuple(
        {
            "id": i + 1,
            "volume_mm3": round(float(volumes[i]), 3),
            "x_mm": round(float(world[i, 0]), 2),
            "y_mm": round(float(world[i, 1]), 2),
            "z_mm": round(float(world[i, 2]), 2),
            "region": regions[i],
            "severity": round(float(severity[i]), 3),
            "black_hole": int(canvas.lesions[owners[i] - 1].black_hole),
            "enhancing_mm3": round(float(enhancing[i]), 2),
            "central_vein": int(canvas.lesions[owners[i] - 1].on_vein),
            "change": changes[i],
        }
        for i in range(count)
    )
    if before is None:
        return instances, rows, ()
    there = set(np.unique(before[0][instances > 0]).tolist())
    return instances, rows, tuple(row for row in before[1] if row["id"] not in there)


def _regions(
    anatomy: Anatomy, where: tuple[NDArray[np.intp], ...], owner: Instances, below: NDArray[np.float64]
) -> list[Place]:
    """Infratentorial first, then what touches the ventricles, then what touches the cortex."""
    ventricle, cortex = (np.full(len(below) + 1, np.inf) for _ in range(2))
    np.minimum.at(ventricle, owner, anatomy.to_ventricle[where])
    np.minimum.at(cortex, owner, anatomy.to_cortex[where])
    least = 1.5 * anatomy.spacing
    found: list[Place] = []
    for b, v, c in zip(below, ventricle[1:], cortex[1:], strict=True):
        if b > 0.5:
            found.append("infratentorial")
        elif v <= max(_TOUCHES_VENTRICLE, least):
            found.append("periventricular")
        else:
            found.append("juxtacortical" if c <= max(_TOUCHES_CORTEX, least) else "deep")
    return found


def _owners(canvas: Canvas, instances: Instances, count: int) -> NDArray[np.intp]:
    """For each component the drawn lesion that holds most of it."""
    where = instances > 0
    pairs = instances[where].astype(np.int64) * (len(canvas.lesions) + 1) + canvas.owner[where]
    found, sizes = np.unique(pairs, return_counts=True)
    component, owner = np.divmod(found, len(canvas.lesions) + 1)
    most = np.zeros(count, dtype=np.intp)
    order = np.argsort(sizes, kind="stable")  # the largest is written last
    most[component[order] - 1] = owner[order]
    return most


def _changes(instances: Instances, volumes: NDArray[np.float64], before: tuple[Instances, Rows] | None) -> list[Change]:
    """By volume against all components of the visit before that overlap."""
    if before is None:
        return ["first visit"] * len(volumes)
    old = np.array([0.0, *(row["volume_mm3"] for row in before[1])])
    pairs = np.unique(np.stack([instances[instances > 0], before[0][instances > 0]]), axis=1)
    overlapped = np.bincount(pairs[0], weights=old[pairs[1]], minlength=len(volumes) + 1)[1:]
    changes: list[Change] = []
    for now, then in zip(volumes, overlapped, strict=True):
        if then == 0:
            changes.append("new")
        elif now >= _LARGER * then:
            changes.append("enlarging")
        else:
            changes.append("shrinking" if now * _LARGER <= then else "stable")
    return changes
