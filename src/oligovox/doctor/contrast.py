"""Is the sequence what its name says? Only what cannot be missed is judged: whether fluid is bright, as in T2w, or dark, as in T1w and FLAIR.

Ventricles lie in the middle of every brain, amid white matter and deep grey matter. Two rules look there, and a name is doubted only where both
contradict it: the side to which the values are skewed, which needs no level of white matter; and the largest pieces left and right that are far
brighter, and far darker, than the most common even tissue: ventricles are on both sides, oedema mostly on one. Fluid does not tell T1w from FLAIR;
where a case has both, `swapped.py` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.doctor.finding import Finding
from oligovox.doctor.intensity import snr, unevenness
from oligovox.doctor.region import LEAST, brain_region, ellipsoid
from oligovox.doctor.seen import Seen
from oligovox.doctor.stripped import Covering
from oligovox.prepare.geometry import spacing_of

Fluid = Literal["bright", "dark"]
"""Fluid against the tissue around it."""

SKEW_BRIGHT, SKEW_DARK = 0.15, -0.1
"""Skew of the values in the middle of the brain: above the one fluid is bright, below the other dark."""

PIECE_ML = 1.0
"""The largest piece of fluid on each side must be as large as small ventricles are."""

_FLUID: Mapping[str, Fluid] = {"T1w": "dark", "T1wGd": "dark", "T2w": "bright", "FLAIR": "dark"}
_LIKE: Mapping[Fluid, str] = {"bright": "T2w", "dark": "T1w or FLAIR"}
_OPPOSITE = 0.1  # the largest piece of the other kind on either side, as a share of the smaller of these
_UNEVEN, _THICK_MM, _SNR = 0.2, 4.5, 8.0  # in a more uneven brain, thicker slices or more noise, nothing is said
_MIDDLE_MM = (28.0, 38.0, 28.0)  # half axes of an ellipsoid that holds the ventricles and hardly any cortex
_DARK, _BRIGHT = 0.6, 1.8  # of white matter: fluid is beyond
_EVEN = 0.3  # share of the voxels that count as even


@dataclass(frozen=True)
class Middle:
    """What the values in the middle of a brain are like.

    Attributes:
        skew: (p95 + p5 − 2 · median) / (p95 − p5): above 0 where the extremes are bright.
        dark_ml: largest piece far darker than even tissue, mL; in the left half and in the right.
        bright_ml: largest pieces far brighter.
    """

    skew: float
    dark_ml: tuple[float, float]
    bright_ml: tuple[float, float]


def middle(seen: Seen, covering: Covering) -> Middle | None:
    """Measure an image; None where too little brain is in it."""
    region, spacing = brain_region(seen, covering), np.array(spacing_of(seen.coarse.affine))
    if region.sum() < LEAST:
        return None
    centre = ndimage.center_of_mass(region)
    core = region & ellipsoid(region.shape, centre, _MIDDLE_MM, spacing)
    values = seen.coarse.array - np.float32(seen.background or 0.0)
    low, median, high = np.percentile(values[core], (5, 50, 95)) if core.any() else (0.0, 0.0, 0.0)
    mean = ndimage.uniform_filter(values, 3)
    spread = np.sqrt(np.maximum(ndimage.uniform_filter(values**2, 3) - mean**2, 0))
    if high <= low or (white := _mode(mean[core & (spread <= np.quantile(spread[core], _EVEN))])) <= 0:
        return None
    voxel, half = float(np.prod(spacing)) / 1000, round(centre[0])
    return Middle(
        skew=float((high + low - 2 * median) / (high - low)),
        dark_ml=_largest(core & (mean < _DARK * white), half, voxel),
        bright_ml=_largest(core & (mean > _BRIGHT * white), half, voxel),
    )


def _mode(values: NDArray[np.float32]) -> float:
    """The most common value."""
    counts, edges = np.histogram(values.astype(np.float64), 100)
    most = int(ndimage.gaussian_filter1d(counts.astype(np.float64), 2).argmax())
    return float(edges[most] + edges[most + 1]) / 2


def _largest(mask: NDArray[np.bool_], half: int, voxel: float) -> tuple[float, float]:
    """The largest connected piece in each half of the first axis."""
    sizes = [np.bincount(ndimage.label(part)[0].ravel())[1:].max(initial=0) for part in (mask[:half], mask[half:])]
    return float(sizes[0]) * voxel, float(sizes[1]) * voxel


def fluid(found: Middle) -> Fluid | None:
    """Bright or dark where both rules say so; None where they disagree, or one of them is not sure."""
    if found.skew > SKEW_BRIGHT and _outweighs(found.bright_ml, found.dark_ml):
        return "bright"
    if found.skew < SKEW_DARK and _outweighs(found.dark_ml, found.bright_ml):
        return "dark"
    return None


def _outweighs(pieces: tuple[float, float], others: tuple[float, float]) -> bool:
    return min(pieces) >= PIECE_ML and max(others) <= _OPPOSITE * min(pieces)


def check_contrast(case: str, seen: Seen, covering: Covering) -> list[Finding]:
    """A warning where fluid in an image named T1w, T1wGd, T2w or FLAIR is clearly that of another name.

    Args:
        case: its name.
        seen: the image.
        covering: whether it shows the head or the brain alone.
    """
    expected = _FLUID.get(seen.sequence)
    if expected is None or not _clear(seen, covering) or (measured := middle(seen, covering)) is None:
        return []
    if (found := fluid(measured)) is None or found == expected:
        return []
    return [
        Finding(
            check="contrast",
            severity="warning",
            case=case,
            sequence=seen.sequence,
            files=(seen.path,),
            found=f"named {seen.sequence}, but fluid is {found} in it, as in {_LIKE[found]}",
            expected=f"fluid {'much brighter' if expected == 'bright' else 'darker'} than white matter",
            remedy="look at it beside the other sequences; where two were swapped, swap their names",
            numbers={**asdict(measured), "looks_like": _LIKE[found]},
        )
    ]


def _clear(seen: Seen, covering: Covering) -> bool:
    """Whether values say enough about tissue. The field of a head is not asked: scalp and neck are part of it."""
    ratio = snr(seen)
    if max(seen.spacing) > _THICK_MM or (ratio is not None and ratio < _SNR):
        return False
    return covering == "head" or unevenness(seen) <= _UNEVEN
