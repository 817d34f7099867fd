"""Is the sequence what its name says? Fluid and grey matter against white matter, in one image alone.

White matter is the most common value where the brain is even; fluid is far darker or far brighter than it; grey matter lies between or above.
Positions are not used beyond a region that is all brain, so the image need not be registered, and the skull may be on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.doctor.finding import Finding
from oligovox.doctor.intensity import unevenness
from oligovox.doctor.seen import Seen
from oligovox.doctor.stripped import Covering
from oligovox.prepare.geometry import Spacing, spacing_of

Look = Literal["T1w", "T2w", "FLAIR", "T1w or FLAIR"]
"""What fluid and grey matter can tell."""

GREY_BRIGHTER, GREY_DARKER = 0.42, 0.2
"""Of the tissue that differs from white matter, the share that is brighter: above the one in FLAIR, below the other in T1w."""

_KINDS: Mapping[str, Look] = {"T1w": "T1w", "T1wGd": "T1w", "T2w": "T2w", "FLAIR": "FLAIR"}
_WORDS: Mapping[Look, str] = {
    "T1w": "fluid and grey matter darker than white matter",
    "T2w": "fluid much brighter than white matter",
    "FLAIR": "fluid darker and grey matter brighter than white matter",
    "T1w or FLAIR": "fluid darker than white matter",
}
_SOME_BRIGHT, _SOME_DARK = 0.03, 0.015  # share of the brain that is fluid, at least
_MOSTLY_BRIGHT, _MOSTLY_DARK = 0.12, 0.2  # dark share of what is far from white matter: below, above
_TOO_UNEVEN = 0.25  # beyond such a field in a brain, values say little about tissue
_RIM_MM = 6.0  # left out along the border of a stripped brain
_BELOW_VERTEX_MM = 65.0  # the middle of the brain under the top of the head
_INNER_MM = (50.0, 62.0, 42.0)  # half axes of an ellipsoid that lies in any adult's brain
_DARK, _BRIGHT = 0.6, 1.5  # of white matter: fluid is beyond
_EVEN = 0.3  # share of the voxels that count as even
_NEAR = (
    0.35,
    0.15,
)  # white matter lies so near to the most common value; first under an uneven field, then under what is left of it
_DIFFERS = 0.05  # tissue that differs from white matter by more is grey
_FIELD_MM = 20.0  # sd of the smooth field


@dataclass(frozen=True)
class Tissue:
    """What the values in the brain are like.

    Attributes:
        white: the value of white matter, units of the file.
        dark: share of voxels far darker than it.
        bright: share of voxels far brighter.
        above: share of the voxels of tissue (neither dark nor bright) that are brighter than white matter by a twentieth.
        below: the same, darker.
        voxels: how many were looked at.
    """

    white: float
    dark: float
    bright: float
    above: float
    below: float
    voxels: int


def brain_region(seen: Seen, covering: Covering) -> NDArray[np.bool_]:
    """Voxels of the small copy that are brain: a stripped one without its rim, or an ellipsoid under the top of a head."""
    foreground, spacing = seen.coarse_foreground, np.array(spacing_of(seen.coarse.affine))
    if covering == "stripped":
        inward = ndimage.distance_transform_edt(np.pad(foreground, 1), spacing)[1:-1, 1:-1, 1:-1]
        return np.asarray(inward > _RIM_MM)
    area = foreground.sum(axis=(0, 1)) * spacing[0] * spacing[1] / 100
    tall = np.flatnonzero(area > 10)
    if not tall.size:
        return np.zeros_like(foreground)
    middle = tall[-1] - _BELOW_VERTEX_MM / spacing[2]
    slab = slice(max(0, int(middle - 15 / spacing[2])), max(1, int(middle + 25 / spacing[2])))
    around = np.asarray(foreground[:, :, slab].any(axis=2))
    at = [(np.flatnonzero(around.any(axis=1 - axis))[[0, -1]]).mean() if around.any() else 0.0 for axis in (0, 1)]
    grid = np.ogrid[tuple(slice(0, n) for n in foreground.shape)]
    ellipsoid = sum(
        ((g - c) * s / half) ** 2 for g, c, s, half in zip(grid, (*at, middle), spacing, _INNER_MM, strict=True)
    )
    return np.asarray(foreground & (ellipsoid < 1))


def tissue(seen: Seen, covering: Covering) -> Tissue | None:
    """Measure an image; None where too little brain is in it."""
    region = brain_region(seen, covering)
    if region.sum() < 2000:
        return None
    values = seen.coarse.array - np.float32(seen.background or 0.0)
    mean = ndimage.uniform_filter(values, 3)
    spread = np.sqrt(np.maximum(ndimage.uniform_filter(values**2, 3) - mean**2, 0))
    even = region & (spread <= np.quantile(spread[region], _EVEN))
    white = _mode(mean[even])
    if white <= 0:
        return None
    field = np.ones_like(mean)
    for near in _NEAR:
        field = _field(mean, even & (np.abs(mean / field / white - 1) < near), spacing_of(seen.coarse.affine))
    inner, smooth = values[region] / field[region], mean[region] / field[region]
    level = _mode(smooth[even[region]])
    if level <= 0:
        return None
    inner, smooth = inner / level, smooth / level
    dark, bright = inner < _DARK, inner > _BRIGHT
    rest = smooth[~(dark | bright)]
    if not rest.size:
        return None
    shares = (dark.mean(), bright.mean(), (rest > 1 + _DIFFERS).mean(), (rest < 1 - _DIFFERS).mean())
    far_dark, far_bright, above, below = map(float, shares)
    return Tissue(white, far_dark, far_bright, above, below, int(region.sum()))


def _mode(values: NDArray[np.float32]) -> float:
    """The most common value."""
    counts, edges = np.histogram(values, 100)
    most = int(ndimage.gaussian_filter1d(counts.astype(np.float64), 2).argmax())
    return float(edges[most] + edges[most + 1]) / 2


def _field(mean: NDArray[np.float32], white: NDArray[np.bool_], spacing: Spacing) -> NDArray[np.float32]:
    """The smooth field that white matter shows, about 1 on average, so that a bright coil is not taken for grey matter."""
    sigma = [_FIELD_MM / step for step in spacing]
    level = float(mean[white].mean()) if white.any() else 1.0
    weight = ndimage.gaussian_filter(white.astype(np.float32), sigma) + np.float32(1e-3)
    total = ndimage.gaussian_filter(np.where(white, mean / level, 0).astype(np.float32), sigma) + np.float32(1e-3)
    return np.asarray(total / weight)


def looks_like(found: Tissue, covering: Covering) -> Look | None:
    """What the values are those of; None where fluid is on neither side.

    Fluid brighter than white matter: T2w. Darker, with brighter grey matter: FLAIR. Both darker: T1w, with or without gadolinium. In a head the
    region holds too little cortex to tell the last two apart.
    """
    fluid = found.dark / max(found.dark + found.bright, 1e-12)
    if found.bright > _SOME_BRIGHT and fluid < _MOSTLY_BRIGHT:
        return "T2w"
    if found.dark < _SOME_DARK or fluid < _MOSTLY_DARK:
        return None
    grey = found.above / max(found.above + found.below, 1e-12)
    if covering == "head" or GREY_DARKER <= grey <= GREY_BRIGHTER:
        return "T1w or FLAIR"
    return "FLAIR" if grey > GREY_BRIGHTER else "T1w"


def check_contrast(case: str, seen: Seen, covering: Covering) -> list[Finding]:
    """A warning where an image named T1w, T1wGd, T2w or FLAIR clearly looks like another of them; T1w and T1wGd are not told apart.

    Args:
        case: its name.
        seen: the image.
        covering: whether it shows the head or the brain alone.
    """
    expected = _KINDS.get(seen.sequence)
    if expected is None or (covering == "stripped" and unevenness(seen, covering) > _TOO_UNEVEN):
        return []
    if (measured := tissue(seen, covering)) is None:
        return []
    look = looks_like(measured, covering)
    if look is None or expected in look.split(" or "):
        return []
    if seen.sequence == "T1wGd" and look == "FLAIR":  # a tumour that takes up gadolinium is brighter than white matter
        return []
    return [
        Finding(
            check="contrast",
            severity="warning",
            case=case,
            sequence=seen.sequence,
            files=(seen.path,),
            found=f"named {seen.sequence}, but it looks like {look}: {_WORDS[look]}",
            expected=f"{_WORDS[expected]}, as in {seen.sequence}",
            remedy="look at it beside the other sequences; where two were swapped, swap their names",
            numbers={**asdict(measured), "looks_like": look},
        )
    ]
