"""An upper abdomen from the domes of the diaphragm to below the kidneys, with liver, kidneys and spleen labelled.

Everything is placed in the coordinates of a standard torso (mm): x from −140 to 140, positive to the patient's right as in RAS, y from 0
(the back muscles' surface) to 190 (the front of the abdominal wall), z = 0 near the second lumbar vertebra, up. It is stretched to a
person's size, turned a little and deformed by smooth random fields. The solids are drawn by eye; no atlas is copied.

Sources of organ volumes: liver 1281 ± 219 mL and spleen 195 ± 78 mL (Jasper 2019, J Clin Diagn Res, doi 10.7860/JCDR/2019/41932.13038,
abstract), spleen 198 ± 88 mL (Caglar et al. 2014, Folia Morphol, article FM.2014.0038, abstract). The format of the data it resembles is
that of CHAOS (Kavur et al., Med Image Anal, arXiv 2001.06535; cited from its abstract): four organs in thick axial slices. All other numbers are chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from oligovox.settings import Settings
from oligovox.simulate.anatomy.organs import ORGANS, lay_organs
from oligovox.simulate.anatomy.solids import Canvas, Frame, Solid, blend, ellipsoid, stack
from oligovox.simulate.anatomy.trunk import lay_back, lay_spine, lay_vessels, lay_wall
from oligovox.simulate.anatomy.viscera import lay_bowel, lay_stomach
from oligovox.simulate.fields import Volume, smooth_field, smoothstep
from oligovox.simulate.physics.scene import Parts

Range = tuple[float, float]

_WIDTH, _DEPTH = 140.0, 190.0  # half the width and the depth of the standard torso without its fat, mm
_HEIGHT = 8.0  # of the middle slice, mm
_AIR = 12.0  # air around the body, mm
_SKIN = 2.0  # mm
_WARPS = ((90.0, 5.0), (40.0, 2.5))  # displacement: lattice mm, standard deviation mm


class Abdomen(Settings):
    """What an abdomen is like; ranges are (lowest, highest), drawn anew for each person."""

    spacing: tuple[float, float, float] = Field(
        (1.6, 1.6, 6.0), description="voxel size along x, y and z, mm; 1 to 10 each"
    )
    length_mm: Range = Field((205.0, 245.0), description="from the lowest slice to the highest, mm")
    width_mm: Range = Field((255.0, 310.0), description="width of the trunk without the fat under the skin, mm")
    depth_mm: Range = Field((170.0, 205.0), description="depth of the trunk without that fat, mm")
    subcutaneous_mm: Range = Field((6.0, 32.0), description="fat under the skin at the sides, mm")
    visceral_mm: Range = Field((0.0, 28.0), description="how far fat between the organs pushes the belly out, mm")
    liver_ml: Range = Field((1000.0, 2000.0), description="volume of the liver with the vessels in it, mL")
    spleen_ml: Range = Field((100.0, 350.0), description="volume of the spleen, mL")
    kidney_ml: Range = Field((120.0, 200.0), description="volume of one kidney without its sinus, mL")
    liver_fat: Range = Field(
        (0.0, 0.25), description="fat in the liver, part of its volume; most people are near the low end"
    )
    turned_degrees: float = Field(
        3.0, ge=0, le=15, description="standard deviation of the body's rotation about its long axis"
    )

    @model_validator(mode="after")
    def _possible(self) -> Abdomen:
        if not all(1 <= size <= 10 for size in self.spacing):
            raise ValueError(f"spacing = {self.spacing}; expected three sizes from 1 to 10 mm")
        for name, least, most in _LIMITS:
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(f"{name} = ({low}, {high}); expected {least} ≤ lowest ≤ highest ≤ {most}")
        return self


_LIMITS = (
    ("length_mm", 150.0, 300.0), ("width_mm", 220.0, 360.0), ("depth_mm", 150.0, 260.0), ("subcutaneous_mm", 3.0, 60.0),
    ("visceral_mm", 0.0, 50.0), ("liver_ml", 700.0, 2500.0), ("spleen_ml", 60.0, 600.0), ("kidney_ml", 80.0, 260.0), ("liver_fat", 0.0, 0.5),
)  # fmt: skip


@dataclass(frozen=True)
class AbdomenBody:
    """One person's abdomen.

    Attributes:
        parts: what is in each voxel; what no part takes is air, around the body, in lungs and in bowels.
        labels: (x, y, z) organ of each voxel, 0 = none; each organ is where it fills at least half of a voxel.
        classes: name → value in `labels`, the order of CHAOS.
        body: (x, y, z) inside the skin, lungs and bowels included.
        affine: voxel → RAS mm.
        spacing: voxel size along (x, y, z), mm.
        facts: what was drawn, plain JSON values, units in the keys.
    """

    parts: Parts
    labels: NDArray[np.uint8]
    classes: Mapping[str, int]
    body: NDArray[np.bool_]
    affine: NDArray[np.float64]
    spacing: tuple[float, float, float]
    facts: Mapping[str, float]


def draw_abdomen(rng: np.random.Generator, settings: Abdomen) -> AbdomenBody:
    """A new person; the liver lies at positive x, which is right in RAS.

    Volumes are met on the slices there are. An organ for which a small torso has no room stays smaller than asked: see `facts`.
    """
    width, depth, fat, belly = (
        float(rng.uniform(*r))
        for r in (settings.width_mm, settings.depth_mm, settings.subcutaneous_mm, settings.visceral_mm)
    )
    frame, affine = _frame(rng, settings, width, depth, fat, belly)
    core, cavity = _core(frame, belly)
    skin = _skin(rng, frame, core, fat)
    canvas = Canvas(frame, frame.cover(skin))
    body = canvas.room > 0.5
    lay_spine(rng, canvas)
    lay_back(rng, canvas)
    canvas.lay(Solid(frame.whole, -skin - np.float32(_SKIN)), "skin")
    canvas.lay(Solid(frame.whole, -core), {"fat": 0.95, "skin": 0.05})
    lay_wall(rng, canvas, core, cavity)
    _lay_chest(rng, canvas)
    lay_vessels(rng, canvas)
    voxel_ml = float(np.prod(settings.spacing)) / 1000
    targets = {name: _drawn(rng, getattr(settings, field)) for name, field in ORGANS.items()}
    share = settings.liver_fat[0] + (settings.liver_fat[1] - settings.liver_fat[0]) * float(rng.beta(0.7, 3.0))
    found = lay_organs(rng, canvas, targets, voxel_ml, share)
    lay_stomach(rng, canvas)
    lay_bowel(rng, canvas)
    canvas.pour(
        frame.whole, np.ones(frame.shape, dtype=np.float32), {"fat": 0.93, "venous_blood": 0.04, "muscle": 0.03}
    )
    labels = np.zeros(frame.shape, dtype=np.uint8)
    classes = {name: number + 1 for number, name in enumerate(ORGANS)}
    for name, fraction in found.items():
        labels[fraction > 0.5] = classes[name]
    volumes = {
        f"{name}_mL": round(float(np.count_nonzero(labels == value) * voxel_ml), 1) for name, value in classes.items()
    }
    facts = {"width_mm": width, "depth_mm": depth, "subcutaneous_mm": fat, "visceral_mm": belly, "liver_fat": share}
    return AbdomenBody(
        parts=canvas.parts(),
        labels=labels,
        classes=classes,
        body=body,
        affine=affine,
        spacing=settings.spacing,
        facts={name: round(value, 3) for name, value in facts.items()} | volumes,
    )


def _drawn(rng: np.random.Generator, of: Range) -> float:
    """From the inner part of a range, so that the labelled voxels are in it too."""
    low, high = of
    pad = 0.04 * (low + high) / 2 if high > 1.1 * low else 0
    return float(rng.uniform(low + pad, high - pad))


def _frame(
    rng: np.random.Generator, settings: Abdomen, width: float, depth: float, fat: float, belly: float
) -> tuple[Frame, NDArray[np.float64]]:
    """The grid in the coordinates of the standard torso, and its affine; RAS mm have their origin in the torso's middle."""
    across, along = width / 2 / _WIDTH, depth / _DEPTH
    half = (
        width / 2 + fat + belly / 2 + 2 * _AIR,
        depth / 2 + 1.2 * fat + belly + 2 * _AIR,
        float(rng.uniform(*settings.length_mm)) / 2,
    )
    counts = [2 * int(np.ceil(h / s)) + 1 for h, s in zip(half[:2], settings.spacing[:2], strict=True)]
    counts.append(max(4, round(2 * half[2] / settings.spacing[2])))
    world = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(counts, settings.spacing, strict=True)]
    affine = np.diag([*settings.spacing, 1.0])
    affine[:3, 3] = [w[0] for w in world]
    tall = 1 + 0.5 * (np.cbrt(across * along) - 1)
    middle = float(rng.normal(0, 4))
    axes = (world[0] / across, world[1] / along + _DEPTH / 2, world[2] / tall + _HEIGHT + middle)
    x, y, z = (axis.astype(np.float32) for axis in axes)
    shift = np.zeros((3, *counts), dtype=np.float32)
    for scale, amplitude in _WARPS:
        for axis in range(3):
            shift[axis] += np.float32(amplitude) * smooth_field(rng, counts, settings.spacing, scale)
    angle = np.float32(np.radians(rng.normal(0, settings.turned_degrees)))
    shift[0] += -angle * (y[:, None] - np.float32(_DEPTH / 2))
    shift[1] += angle * x[:, None, None]
    return Frame((x, y, z), shift), affine


def _core(frame: Frame, belly: float) -> tuple[Volume, Volume]:
    """Levels on the whole grid: the trunk without the fat under its skin, and the cavity inside its wall."""
    heights = (-200.0, -130.0, -60.0, 0.0, 60.0, 130.0, 200.0)
    out = np.array([1.0, 1.0, 1.0, 0.9, 0.4, 0.0, 0.0]) * belly
    half = np.array([131.0, 131, 133, 138, 143, 139, 130]) + 0.5 * out
    front = np.array([184.0, 186, 189, 190, 187, 176, 160]) + out
    back = np.array([0.0, 0, 0, 0, 0, 2, 6])
    core = stack(
        frame,
        heights,
        ((0.0,) * 7, tuple((front + back) / 2)),
        (tuple(half), tuple((front - back) / 2)),
        power=2.35,
        around=500,
    )
    x, y, _ = frame.at(frame.whole)
    groove = 6.0 * np.exp(-((x / 9.0) ** 2)) * smoothstep(-y, -40, 0)  # over the spinous processes
    level = np.asarray(core.level + groove, dtype=np.float32)
    return level, np.asarray(level + 11.0 + 4.0 * smoothstep(-y, -60, -20), dtype=np.float32)


def _skin(rng: np.random.Generator, frame: Frame, core: Volume, fat: float) -> Volume:
    """The trunk and the fat under its skin, thickest at the flanks and on the belly, thin over the ribs in front."""
    x, y, z = frame.at(frame.whole)
    low = smoothstep(-z, -70, 30)
    flank = smoothstep(np.abs(x), 50, 120) * smoothstep(-y, -120, -40)
    front = smoothstep(y, 120, 185)
    thick = fat * (0.45 + 0.5 * flank * low + 0.65 * front * low)
    voxel = frame.voxel
    thick = thick * np.exp(0.12 * smooth_field(rng, frame.shape, voxel, 50.0))
    navel = ellipsoid(frame, (0, 200, -75), (9, 14, 8))
    skin = np.asarray(core - thick - _SKIN, dtype=np.float32)
    if navel.level.size:
        skin[navel.box] = -blend(-skin[navel.box], navel.level, 8.0)
    return skin


def _lay_chest(rng: np.random.Generator, canvas: Canvas) -> None:
    """Heart, lungs above the domes of the diaphragm, and the diaphragm."""
    frame = canvas.frame
    x, y, z = frame.at(frame.whole)
    right, left = 103 + rng.normal(0, 5), 90 + rng.normal(0, 5)
    top = left + (right - left) * smoothstep(x, -25, 25)
    dome = (
        top
        - 62 * smoothstep(np.abs(x), 60, 150)
        - 75 * np.maximum(92 - y, 0) ** 2 / 92**2
        - 32 * np.maximum(y - 112, 0) ** 2 / 80**2
    )
    dome += 4 * smooth_field(rng, frame.shape, frame.voxel, 45.0)
    above = np.asarray((dome - z) * 0.75, dtype=np.float32)
    heart = ellipsoid(frame, (-28, 132, 128), (66, 48, 40))
    canvas.lay(Solid(heart.box, np.maximum(heart.level + 11, above[heart.box] + 3)), "venous_blood")
    canvas.lay(Solid(heart.box, np.maximum(heart.level, above[heart.box] + 2)), "muscle")
    canvas.lay(Solid(heart.box, np.maximum(heart.level - 5, above[heart.box] + 1)), "fat")
    middle = np.maximum(np.abs(x) - 26, y - 105)
    vessels = smoothstep(np.abs(smooth_field(rng, frame.shape, frame.voxel, 6.0)), 1.7, 2.1)
    lung = np.maximum(above + 1.5, -middle)
    canvas.lay(
        Solid(frame.whole, np.asarray(lung, dtype=np.float32)), {"air": 1.0, "venous_blood": 0.5 * vessels + 0.03}
    )
    canvas.lay(Solid(frame.whole, np.asarray(np.maximum(above - 1.5, -middle), dtype=np.float32)), "muscle")
    canvas.lay(Solid(frame.whole, np.asarray(np.maximum(above + 1.5, middle), dtype=np.float32)), "fat")
