"""Do the sequences of a case lie on each other? Normalised mutual information inside the head, as it is and moved a little.

The measure is (H(a) + H(b)) / H(a, b) of a joint histogram (Studholme et al. 1999, Pattern Recognition 32:71), at points well inside the
foreground: the border of a mask, which is the same in images that were stripped together, says nothing about what is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.doctor.finding import Finding
from oligovox.doctor.seen import Seen
from oligovox.prepare.geometry import Volume, spacing_of

OFF_MM = 2.0
"""Mean displacement in the head from which on two images are said not to lie on each other."""

GAIN = 0.01
"""How much better the moved copy must be: rise of (measure − 1), as a share of it."""

_POINTS = 12_000
_BINS = 32
_INSIDE_MM = 8.0  # points keep so far from the border of the foreground
_STEPS = ((4.0, 4.0), (2.0, 2.0), (1.0, 1.0), (0.5, 0.5))  # mm, degrees
_MOST_TURNS = 12  # rounds of the search at one step
_LEFT_OUT = ("QSM",)  # its contrast has no edges where others have them

Move = NDArray[np.float64]
"""Six numbers: mm along R, A, S, then degrees about them, about the middle of the points."""


@dataclass(frozen=True)
class Shift:
    """How far one image is from where it fits another best.

    Attributes:
        mm: mean displacement of the points.
        along: mean displacement along R, A, S, mm.
        turn: rotation about R, A, S, degrees.
        before: measure as the files lie.
        after: measure at the best place found.
    """

    mm: float
    along: tuple[float, float, float]
    turn: tuple[float, float, float]
    before: float
    after: float

    @property
    def off(self) -> bool:
        """Whether this is beyond what a registered exam has."""
        return self.mm >= OFF_MM and self.after - self.before >= GAIN * (self.before - 1)


def shift_between(fixed: Seen, moving: Seen) -> Shift | None:
    """Where `moving` fits `fixed` best, within some mm; None where they have too little in common."""
    points, values = _points(fixed)
    target = _Target(moving.coarse, moving.level)
    if len(points) < _POINTS // 20 or target.inside(points).mean() < 0.5:
        return None
    middle = points.mean(axis=0)
    binned = _binned(values)

    def measure(move: Move) -> float:
        return target.measure(_moved(points, middle, move), binned)

    start = np.zeros(6)
    before = measure(start)
    best, after = _search(measure, start, before)
    way = _moved(points, middle, best) - points
    along, turn = way.mean(axis=0).tolist(), best[3:].tolist()
    return Shift(
        float(np.linalg.norm(way, axis=1).mean()),
        (along[0], along[1], along[2]),
        (turn[0], turn[1], turn[2]),
        before,
        after,
    )


def check_alignment(case: str, seen: Sequence[Seen]) -> list[Finding]:
    """A warning for each sequence that does not lie on the one with the smallest voxels; on all others, where that one is the stranger."""
    images = sorted((one for one in seen if one.sequence not in _LEFT_OUT), key=lambda one: float(np.prod(one.spacing)))
    if len(images) < 2:
        return []
    fixed, *others = images
    off = [(other, shift) for other in others if (shift := _off(fixed, other))]
    if len(off) > 1 and len(off) == len(others):
        between = shift_between(off[0][0], off[1][0])
        if between and not between.off:
            return [_finding(case, fixed, off[0][0], off[0][1], f"the {len(others)} other sequences")]
    return [_finding(case, other, fixed, shift, fixed.sequence) for other, shift in off]


def _off(fixed: Seen, moving: Seen) -> Shift | None:
    """How far `moving` is off, where the search the other way round says so too: between a tumour and its oedema one of them may lose its way."""
    shift = shift_between(fixed, moving)
    if shift is None or not shift.off:
        return None
    back = shift_between(moving, fixed)
    return shift if back is not None and back.off else None


def _finding(case: str, moved: Seen, against: Seen, shift: Shift, name: str) -> Finding:
    turned = max(map(abs, shift.turn))
    words = f"{shift.mm:.1f} mm on average" + (f", turned by {turned:.0f}°" if turned >= 1.5 else "")
    return Finding(
        check="not_aligned",
        severity="warning",
        case=case,
        sequence=moved.sequence,
        files=(moved.path, against.path),
        found=f"{moved.sequence} seems off {name} by {words}",
        expected=f"within {OFF_MM:g} mm, as after registration",
        remedy="register the sequences of this exam to one of them, as `oligovox ready` does",
        numbers={
            "mm": shift.mm,
            "along_mm": shift.along,
            "turn_deg": shift.turn,
            "nmi_as_is": shift.before,
            "nmi_moved": shift.after,
        },
    )


def _points(fixed: Seen) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Points (n, 3) in mm on a regular sub-grid well inside the foreground, and the image there."""
    spacing = spacing_of(fixed.coarse.affine)
    inward = ndimage.distance_transform_edt(np.pad(fixed.coarse_foreground, 1), spacing)[1:-1, 1:-1, 1:-1]
    index = np.argwhere(inward > _INSIDE_MM)
    index = index[:: max(1, len(index) // _POINTS)]
    values = fixed.coarse.array[tuple(index.T)]
    return index @ fixed.coarse.affine[:3, :3].T + fixed.coarse.affine[:3, 3], values


class _Target:
    """The image that is moved under the points."""

    def __init__(self, volume: Volume, level: float) -> None:
        self.array = volume.array
        self.back = np.linalg.inv(volume.affine)
        shown = self.array[self.array > level]
        low, high = np.percentile(shown, (0.5, 99.5)) if shown.size else (0.0, 1.0)
        self.low, self.high = float(low), float(high)

    def inside(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        at = points @ self.back[:3, :3].T + self.back[:3, 3]
        return np.asarray(((at >= 0) & (at <= np.array(self.array.shape) - 1)).all(axis=1))

    def measure(self, points: NDArray[np.float64], binned: NDArray[np.intp]) -> float:
        at = points @ self.back[:3, :3].T + self.back[:3, 3]
        values = ndimage.map_coordinates(self.array, at.T, order=1, mode="constant", cval=np.nan)
        known = np.isfinite(values)
        other = (
            ((values[known] - self.low) / max(self.high - self.low, 1e-12) * _BINS).clip(0, _BINS - 1).astype(np.intp)
        )
        joint = np.bincount(binned[known] * _BINS + other, minlength=_BINS**2).reshape(_BINS, _BINS)
        return _normalised(ndimage.gaussian_filter(joint.astype(np.float64), 0.7))


def _binned(values: NDArray[np.float32]) -> NDArray[np.intp]:
    low, high = np.percentile(values, (0.5, 99.5))
    return np.asarray(((values - low) / max(high - low, 1e-12) * _BINS).clip(0, _BINS - 1).astype(np.intp))


def _normalised(joint: NDArray[np.float64]) -> float:
    """(H(a) + H(b)) / H(a, b): 1 where the two have nothing in common, 2 where one tells the other."""
    share = joint / max(joint.sum(), 1e-12)
    together = _entropy(share)
    return (_entropy(share.sum(0)) + _entropy(share.sum(1))) / together if together > 0 else 2.0


def _entropy(share: NDArray[np.float64]) -> float:
    some = share[share > 0]
    return float(-(some * np.log(some)).sum())


def _moved(points: NDArray[np.float64], middle: NDArray[np.float64], move: Move) -> NDArray[np.float64]:
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_euler("xyz", move[3:], degrees=True).as_matrix()
    return np.asarray((points - middle) @ turn.T + middle + move[:3])


def _search(measure: Callable[[Move], float], start: Move, value: float) -> tuple[Move, float]:
    """Along one axis after the other, uphill, with steps that shrink; ends at once where no large step is better."""
    best = start
    for mm, degrees in _STEPS:
        for _ in range(_MOST_TURNS):
            before = value
            for axis in range(6):
                for sign in (1, -1):
                    tried = best.copy()
                    tried[axis] += sign * (mm if axis < 3 else degrees)
                    if (found := measure(tried)) > value:
                        best, value = tried, found
                        break
            if value <= before:
                break
    return best, value
