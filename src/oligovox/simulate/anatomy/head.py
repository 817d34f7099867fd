"""The head around a brain: CSF, skull, scalp, face and neck, grown from the distance to the brain and from simple solids.

Everything is placed in the coordinates of a standard head (mm, MNI-like: origin near the anterior commissure, x right, y front, z up)
that is stretched to the person's brain. The solids are drawn by eye after real T1w, T2w and FLAIR; no atlas is copied.

Source of the skull's thickness: 6.3 mm on average over 281 skulls, 5.3 to 7.5 mm from place to place (Moreira-Gonzalez et al. 2006,
Plast Reconstr Surg, doi 10.1097/01.prs.0000209933.78532.a7, abstract). All other numbers are chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy import ndimage

from oligovox.settings import Settings
from oligovox.simulate.anatomy.brain import Anatomy
from oligovox.simulate.anatomy.face import lay_face, lay_muscles, plump, with_face
from oligovox.simulate.anatomy.neck import lay_cord, lay_neck
from oligovox.simulate.anatomy.solids import Canvas, Content, Frame, Solid, tube
from oligovox.simulate.fields import Volume, smooth_field, smoothstep
from oligovox.simulate.physics.scene import Parts

_LOW, _HIGH = np.array([-72.0, -108.0]), np.array([72.0, 72.0])  # ends of the standard brain along x and y, mm
_TOP = 82.0  # and along z: the lower end varies with where the medulla is cut
_COARSE = 2.0  # surfaces are computed on a grid of this spacing, mm
_INNER_TABLE, _OUTER_TABLE = 1.4, 1.7  # mm
_MOST = {"csf_mm": 10.0, "skull_mm": 15.0, "marrow": 1.0, "fat_mm": 15.0, "skin_mm": 5.0, "mucosa_mm": 10.0}
"""Highest that each range may go, mm but for the marrow; chosen, beyond what is seen in people."""


class Head(Settings):
    """What a head is like; ranges are (lowest, highest), drawn anew for each person."""

    csf_mm: tuple[float, float] = Field((0.5, 2.5), description="CSF and dura between brain and skull, mm")
    skull_mm: tuple[float, float] = Field((5.3, 7.5), description="mean thickness of the skull, mm")
    uneven: float = Field(
        0.22, ge=0, le=0.4, description="relative standard deviation of that thickness over one skull"
    )
    marrow: tuple[float, float] = Field((0.4, 1.0), description="part of the diploe that is marrow; the rest is bone")
    fat_mm: tuple[float, float] = Field((1.5, 4.5), description="fat under the skin of the scalp, mm; more in the face")
    skin_mm: tuple[float, float] = Field((1.6, 2.4), description="thickness of the skin, mm")
    mucosa_mm: tuple[float, float] = Field((0.8, 2.5), description="lining of the sinuses, mm")

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Head:
        for name, most in _MOST.items():
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                raise ValueError(f"{name} = ({low}, {high}); expected 0 < lowest ≤ highest ≤ {most:g}; change it")
        return self


@dataclass(frozen=True)
class _Surfaces:
    """Levels on the whole grid, (x, y, z), mm, negative inside: the skull's inner and outer surface, the lower edge of the fat under the skin, the skin."""

    inner: Volume
    outer: Volume
    under: Volume
    skin: Volume


def draw_head(rng: np.random.Generator, anatomy: Anatomy, settings: Head) -> Parts:
    """What is around one person's brain, on the brain's grid; where the grid ends, the head is cut off as by a field of view.

    Returns:
        Parts with fractions of 0 in `anatomy.brain`; what no part takes is air, outside the head and in its cavities.
    """
    frame = _standard_frame(anatomy)
    skin_mm, lining = (float(rng.uniform(*r)) for r in (settings.skin_mm, settings.mucosa_mm))
    surfaces = _surfaces(rng, anatomy, frame, settings, skin_mm)
    canvas = Canvas(frame, frame.cover(surfaces.skin))
    canvas.room[anatomy.brain] = 0
    lay_cord(canvas, _end_of_medulla(frame, anatomy.brain))
    _lay_sinuses(canvas, surfaces.inner)
    canvas.lay(Solid(frame.whole, surfaces.inner), "csf")
    canvas.lay(Solid(frame.whole, surfaces.inner - _INNER_TABLE), "bone")
    canvas.lay(Solid(frame.whole, -surfaces.skin - skin_mm), "skin")
    lay_face(rng, canvas, lining)
    lay_neck(rng, canvas)
    _lay_skull(rng, canvas, surfaces, settings)
    lay_muscles(canvas)
    _lay_rest(rng, canvas, surfaces)
    return canvas.parts()


def _standard_frame(anatomy: Anatomy) -> Frame:
    """The grid in the coordinates of the standard head."""
    ends = [np.flatnonzero(anatomy.brain.any(axis=tuple({0, 1, 2} - {a})))[[0, -1]] for a in range(3)]
    world = [np.arange(n) * anatomy.spacing + anatomy.affine[a, 3] for a, n in enumerate(anatomy.brain.shape)]
    axes = []
    for a in (0, 1):
        low, high = world[a][ends[a]]
        axes.append(_LOW[a] + (world[a] - low) * ((_HIGH - _LOW)[a] / (high - low)))
    scale = np.mean([(axis[1] - axis[0]) / anatomy.spacing for axis in axes])
    axes.append(_TOP + (world[2] - world[2][ends[2][1]]) * scale)
    x, y, z = (axis.astype(np.float32) for axis in axes)
    return Frame((x, y, z))


def _end_of_medulla(frame: Frame, brain: NDArray[np.bool_]) -> tuple[float, float, float]:
    """The middle of the lowest brain near the midline and in front of the cerebellum; typical where there is none."""
    x, y, z = frame.axes
    across, along, up = np.abs(x) < 12, (y > -56) & (y < -22), (z > -85) & (z < -45)
    stem = brain[np.ix_(across, along, up)]
    area = stem.sum(axis=(0, 1)) * frame.voxel[0] * frame.voxel[1]
    if not (area > 60).any():  # mm²
        return 0.0, -45.0, -60.0
    low = int(np.argmax(area > 60))
    at = np.argwhere(stem[:, :, low])
    return float(x[across][at[:, 0]].mean()), float(y[along][at[:, 1]].mean()), float(z[up][low])


def _surfaces(rng: np.random.Generator, anatomy: Anatomy, frame: Frame, settings: Head, skin_mm: float) -> _Surfaces:
    """The skull follows the brain, less and less closely from the inside out; the face and the neck are joined to the scalp."""
    step = max(1, round(_COARSE / anatomy.spacing))
    coarse = Frame((frame.axes[0][::step], frame.axes[1][::step], frame.axes[2][::step]))
    size = float(np.mean(coarse.voxel))
    brain = anatomy.brain[::step, ::step, ::step]
    away = np.asarray(ndimage.distance_transform_edt(~brain, sampling=coarse.voxel), dtype=np.float32)
    close, wide = (ndimage.gaussian_filter(away, mm / size, mode="nearest") for mm in (2.5, 6.0))

    def wander(scale: float) -> Volume:
        return smooth_field(rng, coarse.shape, size, scale)

    x, y, z = coarse.at(coarse.whole)
    gap = rng.uniform(*settings.csf_mm) * np.exp(0.3 * wander(15.0))
    inner = close - gap - 1
    thick = rng.uniform(*settings.skull_mm) * (1 + settings.uneven * wander(25.0)).clip(0.5, 1.6)
    temple = (
        smoothstep(np.abs(x), 48, 62) * smoothstep(-np.abs(z + 12), -35, -15) * smoothstep(-np.abs(y - 5), -50, -25)
    )
    back = smoothstep(-y, 80, 105) * smoothstep(-np.abs(z + 15), -45, -10)
    thick = thick * (1 - 0.5 * temple + 0.35 * back)
    outer = np.minimum(wide - gap - 2.5, inner) - thick
    fat = rng.uniform(*settings.fat_mm) * np.exp(0.2 * wander(25.0)) * (1 + 0.5 * back)
    muscle = 1.2 + 7 * temple + 4 * back * smoothstep(-z, 5, 35)
    scalp = outer - muscle
    skin = with_face(rng, coarse, scalp - fat - skin_mm)
    under = skin + skin_mm + fat + plump(coarse) * rng.uniform(0.7, 1.5)
    inner, outer, under, skin = (_refine(level, coarse, frame) for level in (inner, outer, under, skin))
    return _Surfaces(inner, outer, under, skin)


def _refine(level: Volume, coarse: Frame, fine: Frame) -> Volume:
    """Linear interpolation from a coarse grid."""
    level = np.asarray(level, dtype=np.float32)
    for old, new in zip(coarse.axes, fine.axes, strict=True):
        if len(old) == len(new):
            weights = np.eye(len(old), dtype=np.float32)
        else:
            position = np.interp(new, old, np.arange(len(old)))
            weights = np.maximum(1 - np.abs(position[:, None] - np.arange(len(old))), 0).astype(np.float32)
        level = np.tensordot(level, weights, axes=(0, 1))  # contracts the first axis and appends the new one
    return np.asarray(level)


def _lay_sinuses(canvas: Canvas, inner: Volume) -> None:
    """The superior sagittal sinus along the midline of the skull and the transverse and sigmoid sinuses from its end."""
    frame = canvas.frame
    points = np.stack(
        [
            _skull_at(frame, inner, (0.0, -15.0, 10.0), (0.0, np.sin(t), np.cos(t)))
            for t in np.radians(range(70, -112, -13))
        ]
    )
    radius = np.linspace(1.5, 4.5, len(points))[:, None]
    canvas.lay(tube(frame, np.hstack([points, radius])), "venous_blood")
    for side in (-1, 1):
        way = [(np.sin(t) * side, -np.cos(t), 0.0) for t in np.radians(range(0, 75, 12))]
        bend = np.stack([_skull_at(frame, inner, (0.0, -30.0, -27.0), w) for w in way])
        down = np.array([(side * 47.0, -42.0, -42.0), (side * 34.0, -30.0, -58.0)])
        knots = np.vstack([bend, down])
        canvas.lay(tube(frame, np.hstack([knots, np.full((len(knots), 1), 3.8 + 0.5 * side)])), "venous_blood")


def _skull_at(
    frame: Frame, inner: Volume, start: tuple[float, float, float], way: tuple[float, float, float]
) -> NDArray[np.float64]:
    """Where a ray from inside the brain meets the inside of the skull."""
    line = np.array(start) + np.arange(20.0, 130.0)[:, None] * np.array(way)
    where = [
        ((line[:, a] - axis[0]) / size) for a, (axis, size) in enumerate(zip(frame.axes, frame.voxel, strict=True))
    ]
    level = ndimage.map_coordinates(inner, where, order=1, mode="nearest")
    return np.asarray(line[int(np.argmax(level > -1.5))])


def _lay_skull(rng: np.random.Generator, canvas: Canvas, surfaces: _Surfaces, settings: Head) -> None:
    """Diploe where the bone is thick enough, then the outer table."""
    frame = canvas.frame
    uneven = 1 + 0.2 * smooth_field(rng, frame.shape, frame.voxel, 6.0)
    marrow = np.clip(np.float32(rng.uniform(*settings.marrow)) * uneven, 0, 1).astype(np.float32)
    diploe: Content = {
        "marrow": 0.6 * marrow,
        "fat": 0.4 * marrow,
        "bone": 1 - marrow,
    }  # marrow of the skull is mostly fat
    canvas.lay(Solid(frame.whole, surfaces.outer + _OUTER_TABLE), diploe)
    canvas.lay(Solid(frame.whole, surfaces.outer), "bone")


def _lay_rest(rng: np.random.Generator, canvas: Canvas, surfaces: _Surfaces) -> None:
    """Fat under the skin; below it muscles of many bundles with fat between them, more fat in the face."""
    frame = canvas.frame
    canvas.lay(Solid(frame.whole, -surfaces.under), "fat")
    x, y, z = frame.voxel
    bundles = np.abs(smooth_field(rng, frame.shape, (x, y, z / 2.5), 6.0))  # muscles run up and down
    _, front, up = frame.at(frame.whole)
    face = smoothstep(front, -15, 15) * smoothstep(-up, 20, 45)
    fat = 0.08 + (0.45 + 0.25 * face) * (1 - smoothstep(bundles - 0.8 * face, 0.0, 0.45))
    canvas.pour(frame.whole, np.ones(frame.shape, dtype=np.float32), {"fat": fat, "muscle": 1 - fat})
