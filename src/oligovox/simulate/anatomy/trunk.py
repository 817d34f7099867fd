"""Spine, muscles, ribs and large vessels of the trunk, in the coordinates of the standard torso (see abdomen.py); drawn by eye."""

from __future__ import annotations

import numpy as np

from oligovox.simulate.anatomy.solids import Canvas, Content, Knots, Solid, ellipsoid, rotation, stack, tube
from oligovox.simulate.fields import Volume, smooth_field, smoothstep

_LONG = (-300.0, 300.0)  # through all slices, mm
_PITCH, _DISC = 35.0, 8.5  # from one vertebra to the next, and the disc between, mm
_SHELL = 1.6  # compact bone around marrow, mm
_MARROW: Content = {"marrow": 0.6, "venous_blood": 0.15, "muscle": 0.15, "bone": 0.1}
_RIBS = 27.0  # from one rib to the next, mm


def lay_spine(rng: np.random.Generator, canvas: Canvas) -> None:
    """Cord and cauda equina in CSF, vertebrae and discs, arches with spinous and transverse processes."""
    frame = canvas.frame
    zero = (0.0, 0.0)
    offset = rng.uniform(-_PITCH / 2, _PITCH / 2)
    conus = rng.normal(15, 10)
    canvas.lay(tube(frame, [(0, 37, conus, 1.5), (0, 38, conus + 25, 4.2), (0, 38, 300, 4.5)]), "white_matter")
    canal = tube(frame, [(0, 37, -300, 7.5), (0, 38, 300, 8.0)], around=3)
    canvas.lay(canal, {"csf": 0.85, "white_matter": 0.15})
    canvas.lay(Solid(canal.box, canal.level - 1.5), "fat")
    body = stack(frame, _LONG, (zero, (62.0, 62.0)), ((22.0, 22.0), (16.5, 16.5)), power=2.5)
    z = frame.at(body.box)[2]
    disc = np.abs((z + offset) % _PITCH - _PITCH / 2) - _DISC / 2
    waist = 2.0 * smoothstep(disc, 3, 12)
    nucleus = np.maximum(body.level + 5, disc + 1)
    canvas.lay(Solid(body.box, nucleus), {"spinal_disc": 0.8, "csf": 0.2})
    canvas.lay(Solid(body.box, np.maximum(body.level - 1, disc)), {"spinal_disc": 0.5, "bone": 0.5})
    canvas.lay(Solid(body.box, np.maximum(body.level + waist, 1 - disc) + _SHELL), _MARROW)
    canvas.lay(Solid(body.box, body.level + waist), "bone")
    low, high = frame.axes[2][[0, -1]]
    for level in np.arange(np.floor(low / _PITCH) * _PITCH - offset, high + _PITCH, _PITCH):
        for s in (-1, 1):
            canvas.lay_lined(ellipsoid(frame, (s * 15, 42, level + 6), (6, 9, 8)), _MARROW, _SHELL, "bone")
            canvas.lay_lined(
                ellipsoid(frame, (s * 32, 34, level + 4), (18, 4, 6), rotation(z=s * -12.0)), _MARROW, _SHELL, "bone"
            )
            canvas.lay_lined(ellipsoid(frame, (s * 15, 28, level - 4), (8, 7, 13)), _MARROW, _SHELL, "bone")
            canvas.lay_lined(
                ellipsoid(frame, (s * 8, 24, level - 2), (9, 3.5, 10), rotation(z=s * 30.0)), _MARROW, _SHELL, "bone"
            )
        canvas.lay_lined(ellipsoid(frame, (0, 13, level - 6), (3.5, 13, 10)), _MARROW, _SHELL, "bone")


def lay_back(rng: np.random.Generator, canvas: Canvas) -> None:
    """Back muscles with streaks of fat, more in some people, the psoas and the crura of the diaphragm."""
    frame = canvas.frame
    streaks = smoothstep(smooth_field(rng, frame.shape, frame.voxel, 5.0), 0.2, 1.8)
    bulk = rng.normal(1, 0.08)
    amount = rng.uniform(0.1, 0.6)
    for s in (-1, 1):
        back = stack(frame, _LONG, ((s * 31.0,) * 2, (21.0, 21.0)), ((27 * bulk,) * 2, (17.5, 17.5)), power=2.6)
        quadratus = stack(
            frame,
            (-300.0, 10.0, 30.0),
            ((s * 64.0, s * 56.0, s * 50.0), (36.0, 36.0, 36.0)),
            ((17.0, 13, 5), (8.0, 7, 4)),
        )
        psoas = tube(
            frame,
            [(s * 44, 66, -200, 24 * bulk), (s * 39, 64, -90, 20 * bulk), (s * 32, 62, -35, 13), (s * 25, 60, 5, 5)],
        )
        crus = tube(frame, [(s * 10, 82, -40, 2), (s * 16, 84, 0, 5), (s * 17, 86, 45, 4.5), (s * 14, 92, 75, 3.5)])
        for muscle, fatty in ((back, amount), (quadratus, amount / 2), (psoas, amount / 5), (crus, 0.0)):
            fat = (fatty * streaks[muscle.box] + 0.03).clip(0, 1)
            canvas.lay(muscle, {"muscle": 1 - fat, "fat": fat})


def lay_wall(rng: np.random.Generator, canvas: Canvas, core: Volume, cavity: Volume) -> None:
    """The wall between `core` and `cavity` (levels on the whole grid): ribs and what is between them, three flat muscles, the recti in front."""
    frame = canvas.frame
    x, y, z = frame.at(frame.whole)
    costal = -38.0 + 125.0 * smoothstep(y, 40, 190)  # lower edge of the ribs
    along = (z + 0.55 * y + rng.uniform(0, _RIBS)) % _RIBS - _RIBS / 2
    depth = -core
    rib = np.maximum(np.hypot(along / 1.0, (depth - 6.5) * 1.4) - 6.2, (costal - z) * 0.5).astype(np.float32)
    rib = np.maximum(rib, 34 - np.abs(x) - 0.3 * y)
    canvas.lay(Solid(frame.whole, rib + 1.5), _MARROW)
    canvas.lay(Solid(frame.whole, rib), "bone")
    chest = smoothstep(z - costal, -6, 6)
    planes = np.exp(-(((depth - 4.0) / 0.9) ** 2)) + np.exp(-(((depth - 7.6) / 0.9) ** 2))
    midline = np.exp(-((x / 2.5) ** 2)) + np.exp(-(((np.abs(x) - 62) / 2.5) ** 2))
    belly = np.maximum(0.6 * planes * smoothstep(np.abs(x), 55, 75), 0.85 * midline * smoothstep(y, 120, 150))
    fat = np.clip(chest * 0.3 + (1 - chest) * belly, 0, 1).astype(np.float32)
    canvas.lay(Solid(frame.whole, -cavity), {"muscle": 1 - fat, "fat": fat})


def lay_vessels(rng: np.random.Generator, canvas: Canvas) -> None:
    """Aorta, inferior vena cava and their larger branches, the portal system up to the liver, the oesophagus."""
    frame = canvas.frame
    wide, cava = rng.uniform(8, 11.5), rng.uniform(9, 12.5)
    a, b = rng.normal(0, 2, 2)
    arteries: tuple[Knots, ...] = (
        (
            (-10 + a, 90, -300, wide * 0.85),
            (-9 + a, 90, 0, wide),
            (-10 + a, 82, 90, wide * 1.1),
            (-16, 74, 250, wide * 1.15),
        ),
        ((-4, 98, 16, 4), (-2, 112, 14, 3.5), (16, 116, 20, 2.5)),
        ((-4, 98, 4, 4), (-3, 112, -14, 3.8), (0, 118, -120, 3)),
        ((0, 92, -18, 3), (26, 76, -26, 2.8), (48, 66, -34, 2.5)),
        ((-14, 90, -14, 3), (-30, 78, -18, 2.8), (-48, 66, -22, 2.5)),
    )
    veins: tuple[Knots, ...] = (
        (
            (22 + b, 90, -300, cava),
            (23 + b, 88, 0, cava),
            (24, 84, 70, cava * 1.1),
            (22, 92, 110, cava),
            (16, 100, 150, cava),
        ),
        ((14, 98, -18, 3.5), (-8, 104, -16, 4), (-30, 86, -18, 4), (-48, 68, -22, 3.5)),
        ((28, 84, -28, 4), (48, 68, -34, 3.5)),
        ((14, 116, -120, 4.5), (10, 108, -20, 5.5), (14, 96, 4, 6.5)),
        ((12, 104, 2, 4.5), (-30, 98, 10, 4.2), (-78, 78, 28, 3.8)),
    )
    for knots in arteries:
        canvas.lay(tube(frame, knots), "arterial_blood")
    for knots in veins:
        canvas.lay(tube(frame, knots), "venous_blood")
    canvas.lay(tube(frame, [(-14, 100, 150, 7), (-18, 98, 90, 7), (-36, 96, 72, 8)]), {"muscle": 0.6, "bowel": 0.4})
    for s in (-1, 1):
        adrenal = [(s * 36 - 4, 66, 28, 2.2), (s * 34, 74, 22, 2.8), (s * 42, 60, 10, 2)]
        canvas.lay(tube(frame, adrenal), {"muscle": 0.5, "bowel": 0.5})
