"""The neck: spinal cord, vertebrae, throat and vessels, in the coordinates of the standard head (see head.py); drawn by eye."""

from __future__ import annotations

import numpy as np

from oligovox.simulate.anatomy.solids import Canvas, Content, Knots, Solid, ellipsoid, rotation, stack, tube
from oligovox.simulate.physics.tissues import TissueName

_HEIGHTS = (-230.0, -150.0, -110.0, -74.0)  # of the column of vertebrae, mm
_BODIES = (-38.0, -24.0, -20.0, -22.0)  # y of their middles there
_CANAL = tuple(y - 19.0 for y in _BODIES)  # and of the spinal canal
_AXIS = -92.0  # lower end of the second vertebra, mm
_PITCH, _DISC = 18.5, 5.0  # from one vertebra to the next, and the disc between, mm
_MARROW: Content = {"marrow": 0.8, "bone": 0.2}
_SHELL = 1.3  # compact bone around marrow, mm

_CAROTID: Knots = (  # x, y, z and radius, mm; it enters the skull and ends beside the sella
    (25, -8, -230, 3.6), (27, -8, -110, 3.4), (27, -12, -75, 2.8), (24, -12, -56, 2.6), (15, 0, -45, 2.6), (11, 8, -36, 2.4), (12, 3, -28, 2.2),
)  # fmt: skip
_VERTEBRAL: Knots = ((18, -24, -230, 2.0), (18, -24, -90, 2.0), (22, -38, -72, 1.9), (8, -36, -60, 1.8))


def lay_cord(canvas: Canvas, start: tuple[float, float, float]) -> None:
    """The spinal cord in its CSF, from the end of the medulla (x, y, z) down through the foramen magnum."""
    x, y, z = start
    below = list(zip((0.0,) * 3, _CANAL[::-1][1:], _HEIGHTS[::-1][1:], strict=True))
    way = [(x, y, z + 3), (0.7 * x, 0.6 * y + 0.4 * below[0][1], 0.6 * z + 0.4 * below[0][2]), *below]
    canvas.lay(tube(canvas.frame, [(*point, 5.2) for point in way]), "white_matter")
    canvas.lay(tube(canvas.frame, [(*point, 8.7) for point in way]), "csf")


def lay_neck(rng: np.random.Generator, canvas: Canvas) -> None:
    """Vertebrae, throat and vessels."""
    _lay_throat(canvas)
    _lay_vessels(rng, canvas)
    _lay_spine(rng, canvas)


def _lay_throat(canvas: Canvas) -> None:
    """Air from the back of the nose down to the trachea, and its lining; the cartilage of the larynx; the oesophagus behind."""
    frame = canvas.frame
    wide = [(0, 10, -60, 9), (0, 3, -80, 6.5), (0, 4, -105, 6.5), (0, 8, -135, 7), (0, 6, -165, 8.5), (0, -2, -230, 9)]
    air = tube(frame, wide, around=3.0)
    canvas.lay(air, "air")
    canvas.lay(Solid(air.box, air.level - 2.0), "mucosa")
    larynx = tube(frame, [(0, 12, -132, 13), (0, 10, -150, 12), (0, 6, -165, 11)])
    canvas.lay(larynx, {"bone": 0.4, "muscle": 0.4, "fat": 0.2})
    canvas.lay(tube(frame, [(0, -6, -140, 5), (0, -14, -230, 6)]), "muscle")


def _lay_vessels(rng: np.random.Generator, canvas: Canvas) -> None:
    """Carotid and vertebral arteries and the jugular veins; one jugular vein is larger than the other."""
    larger = float(rng.choice([-1.0, 1.0]))
    for side in (-1.0, 1.0):
        dx, dy = rng.normal(0, 1.5, 2)
        wide = 5.0 + 1.3 * side * larger
        jugular = ((36, -12, -230, wide + 1), (36, -16, -110, wide), (32, -24, -66, wide - 1.2), (34, -30, -58, 3.5))
        vessels: tuple[tuple[TissueName, Knots], ...] = (
            ("arterial_blood", _CAROTID), ("venous_blood", jugular), ("arterial_blood", _VERTEBRAL)
        )  # fmt: skip
        for tissue, knots in vessels:
            way = [(side * x + dx * (z < -60), y + dy * (z < -60), z, r) for x, y, z, r in knots]
            canvas.lay(tube(canvas.frame, way), tissue)


def _lay_spine(rng: np.random.Generator, canvas: Canvas) -> None:
    """A column of bodies and discs, arches and spinous processes behind it, the lateral masses of the atlas on top."""
    frame = canvas.frame
    offset = rng.uniform(-2, 2)
    column = stack(frame, _HEIGHTS, ((0.0,) * 4, _BODIES), ((11.0,) * 4, (9.0,) * 4), power=2.5)
    z = frame.at(column.box)[2]
    to_disc = np.abs((z + 84 + offset) % _PITCH - _PITCH / 2) - _DISC / 2
    to_disc = np.where(z > _AXIS, _DISC, to_disc).astype(np.float32)  # no disc in or above the axis
    canvas.lay(Solid(column.box, np.maximum(column.level, to_disc)), "spinal_disc")
    canvas.lay_lined(Solid(column.box, np.maximum(column.level, -to_disc)), _MARROW, _SHELL, "bone")
    for height in np.arange(_AXIS, _HEIGHTS[0], -_PITCH):
        y = float(np.interp(height, _HEIGHTS, _CANAL))
        length = 12.0 if height > -150 else 18.0
        spine = ellipsoid(frame, (0, y - 12 - length / 2, height - 6), (3.5, length, 5.0), rotation(x=25.0))
        canvas.lay_lined(spine, _MARROW, _SHELL, "bone")
        for side in (-1, 1):
            joint = ellipsoid(frame, (side * 16.0, y + 3, height), (6.5, 7.0, 7.5))
            arch = ellipsoid(frame, (side * 8.0, y - 11, height), (8.0, 3.2, 6.0), rotation(z=side * 35.0))
            canvas.lay_lined(joint, _MARROW, _SHELL, "bone")
            canvas.lay_lined(arch, _MARROW, _SHELL, "bone")
    canvas.lay(tube(frame, [(0, y, z, 13.5) for y, z in zip(_CANAL, _HEIGHTS, strict=True)]), "fat")
    for side in (-1, 1):
        canvas.lay_lined(ellipsoid(frame, (side * 19.0, -32, -71), (9, 11, 8)), _MARROW, _SHELL, "bone")
        longus = ((side * 9, -10, -75, 5), (side * 9, -6, -120, 5.5), (side * 10, -16, -230, 6))
        canvas.lay(tube(frame, longus), "muscle")
