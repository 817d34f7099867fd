"""Stomach, pancreas, colon and small bowel in the coordinates of the standard torso (see abdomen.py); drawn by eye."""

from __future__ import annotations

import numpy as np

from oligovox.simulate.anatomy.solids import Canvas, Content, Knots, Solid, tube
from oligovox.simulate.fields import Volume, smooth_field, smoothstep

_WALL = 3.0  # mm
_FLUID: Content = {"bile": 0.5, "csf": 0.3, "bowel": 0.2}
_FAECES: Content = {"bowel": 0.55, "fat": 0.1, "bile": 0.1, "bone": 0.25}


def lay_stomach(rng: np.random.Generator, canvas: Canvas) -> None:
    """A bent sac at the left with a level of gas above its fluid (the person lies on the back), the duodenum, the pancreas behind."""
    frame = canvas.frame
    pancreas = [(36, 102, -26, 11), (22, 108, -8, 9), (0, 112, 6, 8), (-34, 104, 12, 8.5), (-76, 82, 26, 7)]
    full = rng.uniform(0.45, 1.0)
    sac = [
        (-58, 78, 74, 30),
        (-70, 106, 46, 32),
        (-64, 136, 14, 26),
        (-24, 152, -12, 18),
        (16, 142, -10, 13),
        (32, 130, -8, 8),
    ]
    _lay_gut(rng, canvas, [(x, y, z, r * full) for x, y, z, r in sac], gas=rng.uniform(118, 155), content=_FLUID)
    _lay_gut(
        rng,
        canvas,
        [(34, 128, -8, 9), (48, 110, -16, 11), (46, 98, -60, 11), (10, 100, -76, 10), (-30, 106, -60, 10)],
        400,
        _FLUID,
    )
    organ = tube(frame, pancreas)
    lobules = (0.15 + 0.35 * smoothstep(smooth_field(rng, organ.level.shape, frame.voxel, 3.5), -0.2, 1.0)).astype(
        np.float32
    )
    canvas.lay(organ, {"bowel": 1 - lobules, "fat": lobules})


def lay_bowel(rng: np.random.Generator, canvas: Canvas) -> None:
    """Colon around the outside with faeces and gas, loops of small bowel in what is left."""
    j = rng.normal(0, 5, 8)
    size = rng.uniform(0.75, 1.15)
    right = [(100, 86, -200, 24), (102, 88 + j[0], -110, 24), (94, 102, -62, 24), (78, 132 + j[1], -50, 22)]
    across = [
        (76, 136, -52, 20),
        (40, 162, -58 + j[2], 19),
        (-20, 168, -52 + j[3], 18),
        (-70, 150, -26, 18),
        (-106, 110, 4 + j[4], 18),
    ]
    left = [(-108, 104, 2, 17), (-116, 80, -40, 16), (-118, 74 + j[5], -110, 15), (-112, 76, -200, 15)]
    for knots in (right, across, left):
        gas = rng.uniform(90, 200)
        _lay_gut(rng, canvas, [(x, y, z, r * size) for x, y, z, r in knots], gas, _FAECES, haustra=3.0)
    for _ in range(int(rng.integers(10, 19))):
        start = rng.uniform((-80, 100, -150), (80, 160, -30))
        steps = rng.normal(0, (26, 18, 16), (5, 3))
        way = np.clip(start + np.cumsum(steps, axis=0) - steps.sum(0) / 2, (-92, 96, -200), (92, 172, -18))
        radius = rng.uniform(9, 13)
        content: Content = {"bowel": 0.5, "bile": 0.3, "csf": 0.2} if rng.random() < 0.6 else {"bowel": 0.9, "fat": 0.1}
        _lay_gut(rng, canvas, [(*point, radius) for point in way], rng.choice([400.0, 165.0]), content)


def _lay_gut(
    rng: np.random.Generator, canvas: Canvas, knots: Knots, gas: float, content: Content, haustra: float = 0.0
) -> None:
    """A tube with a wall; gas fills it where y is above `gas` mm. `haustra` is how much its outline bulges, mm."""
    frame = canvas.frame
    gut = tube(frame, knots, around=4.0)
    if gut.level.size == 0:
        return
    level: Volume = gut.level + np.float32(haustra) * smooth_field(rng, gut.level.shape, frame.voxel, 9.0)
    y = frame.at(gut.box)[1]
    canvas.lay(Solid(gut.box, np.maximum(level + np.float32(_WALL), np.float32(gas) - y)), "air")
    canvas.lay_lined(Solid(gut.box, level), content, _WALL, "bowel")
