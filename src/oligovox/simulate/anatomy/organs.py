"""Liver, kidneys and spleen in the coordinates of the standard torso (see abdomen.py); drawn by eye, each with a volume that was asked for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oligovox.simulate.anatomy.solids import Canvas, Frame, Solid, blend, ellipsoid, rotation, tube
from oligovox.simulate.fields import Volume, smooth_field, smoothstep

ORGANS: Mapping[str, str] = {
    "liver": "liver_ml",
    "right_kidney": "kidney_ml",
    "left_kidney": "kidney_ml",
    "spleen": "spleen_ml",
}
"""Organ → the setting that has its volume; in the order of their labels, from 1."""

_KIDNEY_RADII = np.array([27.0, 23.0, 55.0])  # across, along the hilum's axis, up; mm
_CORTEX = 6.5  # mm
_FURTHEST, _STEP = 60.0, 0.05  # how far and how finely a surface is moved to reach a volume, mm


def lay_organs(
    rng: np.random.Generator, canvas: Canvas, volumes: Mapping[str, float], voxel_ml: float, liver_fat: float
) -> dict[str, Volume]:
    """Lay the four organs and the gall bladder.

    Args:
        rng: the only source of chance.
        canvas: with spine, walls, lungs and large vessels laid.
        volumes: organ → mL.
        voxel_ml: volume of a voxel.
        liver_fat: part of the liver that is fat, 0 to 1.

    Returns:
        organ → fraction of each voxel, (x, y, z); the vessels inside the liver count as liver.
    """
    found = {}
    for side, name in ((1, "right_kidney"), (-1, "left_kidney")):
        found[name] = _lay_kidney(rng, canvas, side, volumes[name] / voxel_ml)
    found["liver"] = _lay_liver(rng, canvas, volumes["liver"] / voxel_ml, liver_fat)
    found["spleen"] = _lay_spleen(rng, canvas, volumes["spleen"] / voxel_ml)
    return found


def _sized(solid: Solid, room: Volume, voxels: float) -> Solid:
    """The solid grown or shrunk evenly until the room in it is that many voxels."""
    steps = np.clip((solid.level + _FURTHEST) / _STEP, 0, 2 * _FURTHEST / _STEP).astype(np.int32)
    filled = np.cumsum(np.bincount(steps.ravel(), weights=room[solid.box].ravel()))
    surface = int(np.searchsorted(filled, voxels)) * _STEP - _FURTHEST
    return Solid(solid.box, solid.level - np.float32(surface))


def _spread(taken: Solid, shape: tuple[int, int, int]) -> Volume:
    whole = np.zeros(shape, dtype=np.float32)
    whole[taken.box] = taken.level
    return whole


def _lay_kidney(rng: np.random.Generator, canvas: Canvas, side: int, voxels: float) -> Volume:
    """A bean with its poles bent towards its hilum, which faces the spine and the front; cortex, pyramids, sinus with fat and urine."""
    frame = canvas.frame
    scale = (voxels * float(np.prod(frame.voxel)) / 150e3) ** (1 / 3)
    radii = _KIDNEY_RADII * scale * rng.normal(1, 0.05, 3).clip(0.9, 1.1)
    centre = np.array([side * 61.0, 60.0, -29.0 if side > 0 else -15.0]) + rng.normal(0, (3, 3, 6))
    turn = rotation(z=side * rng.normal(-28, 6)) @ rotation(y=side * rng.normal(-13, 4), x=rng.normal(10, 4))
    reach = float(radii.max()) * 1.2 + 6
    box = frame.box(centre - reach, centre + reach)
    p = np.stack(np.broadcast_arrays(*(a - np.float32(c) for a, c in zip(frame.at(box), centre, strict=True))))
    x, y, z = np.tensordot(turn.T.astype(np.float32), p, 1)
    x = -side * x - 7.0 * (z / radii[2]) ** 2 + 2.0  # towards the hilum
    level = _oval((x, y, z), radii)
    sinus = _oval((x - 17.0 * scale, y, z), np.array([20.0, 8.5, 27.0]) * scale)
    canvas.lay(Solid(box, _oval((x - 14.0 * scale, y, z), np.array([8.0, 4.0, 12.0]) * scale)), "bile")
    canvas.lay(Solid(box, np.maximum(sinus, level - 2)), {"fat": 0.8, "bile": 0.1, "venous_blood": 0.1})
    whole = _sized(Solid(box, level), canvas.room, voxels)
    depth = -whole.level
    around = np.arctan2(y, x + 12.0)
    wedge = np.sin(4.0 * around + 3.0 * np.sin(z / 9.0)) + np.sin(z / 4.6 + side)
    pyramid = smoothstep(depth, _CORTEX - 1, _CORTEX + 1.5) * (0.25 + 0.75 * smoothstep(wedge, -0.9, 0.2))
    taken = canvas.lay(whole, {"kidney_medulla": pyramid, "kidney_cortex": 1 - pyramid})
    canvas.lay(Solid(box, whole.level - 6 - 4 * smooth_field(rng, p.shape[1:], frame.voxel, 30.0)), "fat")
    return _spread(taken, frame.shape)


def _oval(p: tuple[Volume, Volume, Volume], radii: NDArray[np.float64]) -> Volume:
    """Level of an ellipsoid at the origin."""
    q = [a / np.float32(r) for a, r in zip(p, radii, strict=True)]
    outline = np.maximum(np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2), np.float32(1e-3))
    return np.asarray(np.sqrt(p[0] ** 2 + p[1] ** 2 + p[2] ** 2) * (1 - 1 / outline), dtype=np.float32)


def _lay_liver(rng: np.random.Generator, canvas: Canvas, voxels: float, fat: float) -> Volume:
    """Right lobe under its dome, left lobe that tapers, hollow below where kidney, duodenum and stomach lie; gall bladder and vessels."""
    frame = canvas.frame
    size = (voxels * float(np.prod(frame.voxel)) / 1.5e6) ** (1 / 3)
    tip = rng.uniform(68, 100)  # how far the left lobe reaches to the left, mm
    right = _everywhere(frame, (74, 96, 30 + rng.normal(0, 6)), np.array((78, 92, 88)) * size, rotation(y=8))
    left = _everywhere(
        frame, (20 - tip / 2, 132, 60 + rng.normal(0, 4)), (tip, 46, 34 * size), rotation(y=rng.normal(-10, 4), z=8)
    )
    caudate = _everywhere(frame, (14, 100, 52), (20, 18, 26))
    hollow = _everywhere(frame, (2, 70, -38), (66, 88, 84), rotation(y=rng.normal(-18, 4)))
    level = -blend(-blend(blend(right, left, 25.0), caudate, 10.0), hollow, 16.0)
    level += np.float32(1.5) * smooth_field(rng, frame.shape, frame.voxel, 25.0)
    bladder = ellipsoid(frame, (40, 132, -12), np.array((13, 30, 14)) * rng.uniform(0.75, 1.2), rotation(x=-25, z=-20))
    canvas.lay(Solid(bladder.box, bladder.level + 1.5), "bile")
    canvas.lay(bladder, "muscle")
    canvas.lay(ellipsoid(frame, (-4, 156, 28), (3.5, 34, 26), rotation(z=rng.normal(0, 8))), "fat")
    whole = _sized(Solid(frame.whole, level), canvas.room, voxels)
    taken = np.zeros(frame.shape, dtype=np.float32)
    for vessel in _liver_vessels(rng, frame):
        inside = Solid(vessel.box, np.maximum(vessel.level, whole.level[vessel.box] + 3))
        taken[vessel.box] += canvas.lay(inside, "venous_blood").level
    share = np.clip(fat * (1 + 0.15 * smooth_field(rng, frame.shape, frame.voxel, 40.0)), 0, 1).astype(np.float32)
    return taken + canvas.lay(whole, {"liver": 1 - share, "fat": share}).level


def _everywhere(frame: Frame, centre: ArrayLike, radii: ArrayLike, turn: NDArray[np.float64] | None = None) -> Volume:
    """Level of an ellipsoid on the whole grid."""
    return ellipsoid(frame, centre, radii, turn, around=np.inf).level


_TRUNKS = (  # x, y, z and radius of the knots, mm
    ((12, 94, 4, 6.5), (30, 98, 20, 6.5), (48, 98, 30, 5.5), (66, 96, 34, 4.5)),  # portal vein
    ((62, 97, 34, 4), (84, 118, 46, 3.2), (96, 140, 50, 2)),
    ((64, 96, 34, 4), (92, 74, 26, 3.2), (112, 58, 18, 2)),
    ((34, 99, 24, 4.5), (8, 122, 46, 4), (-26, 140, 56, 2.5)),
    ((24, 84, 90, 6), (62, 76, 76, 5), (108, 88, 44, 2.5)),  # hepatic veins
    ((24, 86, 88, 6), (46, 116, 66, 4.5), (60, 148, 30, 2.5)),
    ((22, 88, 88, 5), (0, 116, 74, 4), (-34, 142, 58, 2)),
)


def _liver_vessels(rng: np.random.Generator, frame: Frame) -> list[Solid]:
    """Portal and hepatic veins: trunks whose knots vary, and from each trunk thin branches at random."""
    vessels = []
    for knots in _TRUNKS:
        trunk = np.array(knots, dtype=float)
        trunk[1:, :3] += rng.normal(0, 4, (len(trunk) - 1, 3))
        vessels.append(tube(frame, trunk))
        for _ in range(7):
            t = rng.uniform(0.3, 1) * (len(trunk) - 1)
            start = np.array([np.interp(t, np.arange(len(trunk)), trunk[:, a]) for a in range(4)])
            way = rng.normal(0, 1, 3) + 0.8 * (trunk[-1] - trunk[0])[:3] / 50
            end = start[:3] + way / np.linalg.norm(way) * rng.uniform(18, 42)
            bend = (start[:3] + end) / 2 + rng.normal(0, 3, 3)
            thin = min(2.4, 0.7 * start[3])
            vessels.append(tube(frame, [(*start[:3], thin), (*bend, 0.8 * thin), (*end, 0.9)]))
    return vessels


def _lay_spleen(rng: np.random.Generator, canvas: Canvas, voxels: float) -> Volume:
    """A crescent along the left ribs under the diaphragm, hollow where the stomach and the kidney lie."""
    frame = canvas.frame
    size = (voxels * float(np.prod(frame.voxel)) / 200e3) ** (1 / 3)
    turn = rotation(x=rng.normal(22, 6), z=rng.normal(-22, 5))
    centre = np.array([-106.0, 52.0, 46.0]) + rng.normal(0, (1, 4, 6))
    outer = _everywhere(frame, centre, np.array((36, 50, 54)) * size, turn)
    hollow = _everywhere(frame, centre + np.array([40, 24, 2]), np.array((40, 44, 58)) * size, turn)
    level = -blend(-outer, hollow, 8.0) + np.float32(1.2) * smooth_field(rng, frame.shape, frame.voxel, 20.0)
    return _spread(canvas.lay(_sized(Solid(frame.whole, level), canvas.room, voxels), "spleen"), frame.shape)
