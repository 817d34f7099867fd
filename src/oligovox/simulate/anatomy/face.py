"""Face and ears: the outline, eyes, nose, sinuses, jaw and muscles, in the coordinates of the standard head (see head.py); drawn by eye."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from oligovox.simulate.anatomy.solids import (
    Canvas,
    Content,
    Frame,
    Knots,
    Solid,
    blend,
    ellipsoid,
    rotation,
    stack,
    tube,
)
from oligovox.simulate.fields import Volume, smooth_field, smoothstep

_MARROW: Content = {"marrow": 0.8, "bone": 0.2}
_WALL = 1.2  # bone around a sinus, mm
_HALF_JAW: Knots = (
    (49, -4, -56, 5.5), (51, 0, -80, 6), (50, 8, -102, 7.5), (38, 48, -115, 7.5), (20, 76, -119, 7.5), (0, 84, -120, 8)
)  # fmt: skip
_EYE = 13.2  # radius of an eye in the standard head; 24 mm across in a person


class _Outline(NamedTuple):
    """Ellipses of an outline; y of the front and of the back, half the width, mm."""

    z: tuple[float, ...]
    front: tuple[float, ...]
    back: tuple[float, ...]
    half: tuple[float, ...]


_FACE = _Outline(
    z=(-148, -138, -128, -118, -106, -95, -82, -68, -52, -38, -26, -12),
    front=(20, 62, 84, 91, 89, 92, 92, 89, 87, 84, 88, 84),
    back=(-30, -30, -28, -28, -28, -28, -28, -28, -28, -28, -28, -28),
    half=(40, 48, 54, 58, 62, 65, 68, 71, 72, 70, 66, 58),
)
_NECK = _Outline(
    z=(-260, -150, -110, -85, -60),
    front=(20, 22, 26, 26, 10),
    back=(-104, -88, -79, -78, -84),
    half=(66, 61, 60, 62, 58),
)


def with_face(rng: np.random.Generator, frame: Frame, scalp: Volume) -> Volume:
    """Level of the skin (x, y, z), mm: the scalp joined to face, nose, chin, ears and neck."""
    wide, long = rng.normal(1, 0.03, 2).clip(0.93, 1.07)
    skin = scalp
    for outline, over in ((_NECK, 14.0), (_FACE, 16.0)):
        front, back = np.multiply(outline.front, long), np.asarray(outline.back, dtype=float)
        solid = stack(
            frame,
            outline.z,
            ((0.0,) * len(front), tuple((front + back) / 2)),
            (tuple(np.multiply(outline.half, wide)), tuple((front - back) / 2)),
            power=2.3,
            around=over,
        )
        skin = _join(skin, solid, over)
    tip = rng.uniform(110, 121)
    nose = [(0, 82, -34, 6), (0, (tip + 84) / 2, -52, 7), (0, tip - 9, -68, 9)]
    skin = _join(skin, tube(frame, nose, around=20), 8.0)
    skin = _join(skin, ellipsoid(frame, (0, 92, -62), (12, 15, 17), around=8), 8.0)
    for side in (-1, 1):
        skin = _join(skin, ellipsoid(frame, (side * 9, tip - 18, -71), (8, 12, 8), around=6), 6.0)
        ear = ellipsoid(frame, (side * 84.0, -34, -42), (4.0, 15, 29), rotation(z=side * -22.0, y=side * 8.0), around=3)
        skin = _join(skin, ear, 3.0)
    skin = _join(skin, ellipsoid(frame, (0, 86, -124), (18, 12, 12), around=10), 10.0)
    return np.asarray(_join(skin, ellipsoid(frame, (0, 90, -92), (22, 12, 13), around=8), 8.0))


def plump(frame: Frame) -> Volume:
    """How much thicker fat under the skin is than on the scalp (x, y, z), mm: cheeks, the chin, the back of the neck; none on nose and lids."""
    x, y, z = frame.at(frame.whole)

    def around(cx: float, cy: float, cz: float, wide: float) -> Volume:
        return np.asarray(np.exp(-((np.abs(x) - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) / (2 * wide**2)))

    neck = smoothstep(-z, 70, 110) * smoothstep(-y, 30, 80)
    return np.asarray(
        9 * around(52, 62, -78, 19)
        + 7 * around(0, 40, -135, 20)
        + 4 * neck
        - 3 * around(0, 100, -52, 14)
        - 3 * around(33, 82, -38, 10)
    )


def lay_face(rng: np.random.Generator, canvas: Canvas, lining: float) -> None:
    """Eyes, air and the bones of the face; `lining` is the thickness of the mucosa, mm."""
    _lay_eyes(rng, canvas)
    _lay_air(rng, canvas, lining)
    _lay_ears(rng, canvas)
    _lay_jaws(canvas)


def _lay_eyes(rng: np.random.Generator, canvas: Canvas) -> None:
    """Eyes that look the same way, their muscles and nerves, in fat between thin walls of bone."""
    frame = canvas.frame
    gaze, tilt = rng.normal(0, 4, 2)
    for side in (-1, 1):
        eye = np.array([side * 33.0, 65.0, -37.0])
        look = rotation(z=gaze, x=tilt)
        front = look @ np.array([0.0, 1.0, 0.0])
        canvas.lay(ellipsoid(frame, eye + 7.5 * front, (5.2, 2.4, 5.2), look), "lens")
        canvas.lay_lined(ellipsoid(frame, eye, (_EYE,) * 3), "vitreous", 1.2, {"skin": 0.7, "bone": 0.3})
        apex = np.array([side * 15.0, 22.0, -30.0])
        back = eye - 0.95 * _EYE * front
        nerve = [(*p, 3.0) for p in (back, (back + apex) / 2 - np.array([0, 0, 2.0]), apex, (side * 5.0, 6.0, -24.0))]
        canvas.lay_lined(tube(frame, nerve), "white_matter", 1.2, "csf")
        for dx, dz in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            belly = (eye + apex) / 2 + np.array([9.0 * dx, 0, 8.0 * dz])
            insertion = eye + np.array([0.86 * _EYE * dx, 5, 0.86 * _EYE * dz])
            canvas.lay(tube(frame, [(*insertion, 0.9), (*belly, 2.3), (*apex, 1.2)]), "muscle")
        cone = ((33, 76, -37, 12), (33, 66, -37, 17.5), (28, 45, -36, 14.5), (17, 24, -31, 5))
        fat = tube(frame, [(side * x, y, z, r) for x, y, z, r in cone], around=2)
        canvas.lay(fat, "fat")
        canvas.lay(Solid(fat.box, np.maximum(fat.level - 1.3, frame.at(fat.box)[1] - 72)), "bone")


def _cave(canvas: Canvas, solid: Solid, lining: float, cells: Volume | None = None) -> None:
    """A hole full of air with its lining and a thin wall of bone; many cells where the field `cells` is far from 0."""
    air = solid.level + np.float32(lining)
    if cells is not None:
        air = np.maximum(air, 1 - 4 * np.abs(cells[solid.box]))
    canvas.lay(Solid(solid.box, air), "air")
    canvas.lay(solid, "mucosa")
    canvas.lay(Solid(solid.box, solid.level - _WALL), "bone")


def _lay_air(rng: np.random.Generator, canvas: Canvas, lining: float) -> None:
    """Nasal cavity with septum and conchae, and the paranasal sinuses; frontal and sphenoid sinuses differ most between people."""
    frame = canvas.frame
    for s in (-1, 1):
        canvas.lay(ellipsoid(frame, (s * 7, 50, -69), (4, 26, 6)), "mucosa")  # lower and middle concha
        canvas.lay(ellipsoid(frame, (s * 6.5, 46, -57), (3.5, 22, 5)), "mucosa")
        canvas.lay(tube(frame, [(s * 6, 86, -66, 4), (s * 8, 100, -76, 4), (s * 8, 101, -90, 4)]), "air")
    nose = ellipsoid(frame, (0, 50, -63), (13.5, 38, 16))
    x, y, _ = frame.at(nose.box)
    septum = np.abs(x - np.float32(rng.normal(0, 1.2)) * np.sin((y - 10) / 25)) - 2
    canvas.lay(Solid(nose.box, np.maximum(nose.level, septum)), "mucosa")
    _cave(canvas, nose, 1.0)
    cells = smooth_field(rng, frame.shape, frame.voxel, 4.0)
    for side in (-1, 1):
        a, b, c = rng.lognormal(0, 0.22, 3).clip(0.6, (1.35, 1.35, 1.1))
        sinuses = (
            ((side * 8.5 * b, 21.0, -42.0), (8.5 * b, 12 * b, 10.0)),  # sphenoid
            ((side * 11.0, 78.5, -13 + 3 * a), (10 * a, 6.0, 10 * a)),  # frontal
            ((side * 31.0, 52.0, -65.0), (13 * c, 17.0, 16 * c)),  # maxillary
        )
        for centre, radii in sinuses:
            _cave(canvas, ellipsoid(frame, centre, radii), lining)
        ethmoid = ellipsoid(frame, (side * 9.0, 50, -39), (8.5, 24, 11))
        _cave(canvas, ethmoid, 0.8, cells)


def _lay_ears(rng: np.random.Generator, canvas: Canvas) -> None:
    """Ear canals, middle ears and the cells of the mastoids in dense bone, with the fluid of the inner ear."""
    frame = canvas.frame
    cells = smooth_field(rng, frame.shape, frame.voxel, 3.5)
    for s in (-1, 1):
        canvas.lay(ellipsoid(frame, (s * 41, -20, -41), (4.0, 3.0, 3.0)), {"csf": 0.6, "bone": 0.4})
        canvas.lay(tube(frame, [(s * 24, -28, -40, 2.5), (s * 37, -24, -40, 1.8)]), "csf")
        canvas.lay(tube(frame, [(s * 92, -27, -46, 4), (s * 76, -24, -46, 3.4), (s * 58, -22, -45, 3)]), "air")
        canvas.lay(ellipsoid(frame, (s * 53, -20, -44), (4, 6, 7)), "air")
        mastoid = ellipsoid(frame, (s * 59, -37, -51), (11, 14, 21))
        _cave(canvas, mastoid, 1.0, cells)
        canvas.lay(ellipsoid(frame, (s * 59, -34, -50), (15, 19, 25)), "bone")
        canvas.lay(
            ellipsoid(frame, (s * 40, -18, -42), (20, 11, 11), rotation(z=s * 25)), {"bone": 0.75, "marrow": 0.25}
        )


def _lay_jaws(canvas: Canvas) -> None:
    """Teeth, palate, mandible, cheekbones and tongue."""
    frame = canvas.frame
    for z, front in ((-88.0, 92.0), (-101.0, 90.0)):
        arch = [(-27, 42, z, 5), (-23, 68, z, 4.5), (0, front - 7, z, 4), (23, 68, z, 4.5), (27, 42, z, 5)]
        canvas.lay(tube(frame, arch), "bone")
    canvas.lay(ellipsoid(frame, (0, 58, -80), (24, 28, 2.5)), "bone")
    jaw = [*_HALF_JAW, *((-x, y, z, r) for x, y, z, r in _HALF_JAW[-2::-1])]
    canvas.lay_lined(tube(frame, jaw), _MARROW, 2.0, "bone")
    for s in (-1, 1):
        cheek = ((s * 40, 72, -56, 7), (s * 58, 52, -52, 5.5), (s * 68, 20, -48, 3.5), (s * 68, -2, -46, 4))
        canvas.lay_lined(tube(frame, cheek), _MARROW, 1.6, "bone")
        canvas.lay(ellipsoid(frame, (s * 20, 72, -84), (11, 16, 9)), {"marrow": 0.5, "bone": 0.5})
    canvas.lay(ellipsoid(frame, (0, 46, -99), (23, 35, 17)), {"muscle": 0.8, "fat": 0.2})
    canvas.lay(ellipsoid(frame, (0, 12, -82), (14, 12, 4)), {"muscle": 0.6, "mucosa": 0.4})


_SOFT: tuple[tuple[Content, tuple[float, float, float], tuple[float, float, float]], ...] = (
    ("muscle", (58, 20, -86), (7, 16, 27)),  # masseter
    ("muscle", (37, 12, -84), (6, 13, 21)),  # medial pterygoid
    ("muscle", (36, 20, -58), (12, 14, 7)),  # lateral pterygoid
    ("muscle", (66, 22, -36), (9, 24, 26)),  # lower temporalis
    ("muscle", (14, 56, -122), (5, 24, 4)),  # floor of the mouth
    ({"fat": 0.45, "muscle": 0.55}, (57, -4, -78), (10, 15, 21)),  # parotid
    ({"mucosa": 0.4, "muscle": 0.4, "fat": 0.2}, (32, 26, -122), (8, 13, 9)),  # submandibular gland
    ("fat", (52, 42, -72), (9, 14, 20)),  # buccal fat
)


def lay_muscles(canvas: Canvas) -> None:
    """Muscles of chewing, the lips, sternomastoids and salivary glands."""
    frame = canvas.frame
    for s in (-1, 1):
        for content, (x, y, z), radii in _SOFT:
            canvas.lay(ellipsoid(frame, (s * x, y, z), radii), content)
        canvas.lay(tube(frame, [(s * 60, -44, -70, 8), (s * 50, -18, -120, 10), (s * 26, 8, -200, 9)]), "muscle")
    canvas.lay(ellipsoid(frame, (0, 92, -93), (20, 5, 9)), "muscle")


def _join(skin: Volume, solid: Solid, over: float) -> Volume:
    """The union of a level on the whole grid with a solid."""
    if solid.level.size:
        skin = skin.copy()
        skin[solid.box] = blend(skin[solid.box], solid.level, over)
    return skin
