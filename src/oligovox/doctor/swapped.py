"""T1w and FLAIR under each other's name: fluid is dark in both, so it is white matter that tells, and only the two together.

White matter is the most even tissue of a brain. Without fluid and its borders, it is brighter than all that is less even in T1w, and darker than it
in FLAIR, where cortex and lesions are bright. Which voxels are even is read from both images at once, and each voxel is compared with what lies
within some 10 mm of it, so neither a field nor a gain nor a large tumour has much to say. One image alone is never judged, and T1wGd not at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.doctor.finding import Finding
from oligovox.doctor.region import LEAST, brain_region
from oligovox.doctor.seen import Seen
from oligovox.doctor.stripped import Covering
from oligovox.prepare.geometry import resample_to, spacing_of

BRIGHT = 0.4
"""What is called FLAIR is like T1w where even tissue is brighter than the rest by so many standard deviations (T1w has 0.5 to 1.1)."""

LEAD = 0.35
"""And where what is called T1w lies so far below that; under the right names it lies 0.3 to 1.6 above."""

_EVEN, _UNEVEN = 0.35, 0.5  # share of the tissue that counts as even; the quantile above which it is uneven
_WIDE_MM, _NEAR_MM = 20.0, 10.0  # sd of the neighbourhood that fluid is looked for in, and that tissue is compared with
_DARKER, _DARK = (
    -0.35,
    -0.2,
)  # logarithm against the neighbourhood: fluid is below the one in one image, below the other in the other
_ROUNDS = 2  # of looking for fluid
_NAMES = ("T1w", "FLAIR")
_UNSURE = ("empty_slices", "noisy", "uneven", "contrast")  # of an image with one of these findings nothing more is said
_OFF_MM = 4.0  # nor of two that lie farther off each other: white matter of one would be looked for in the cortex of the other


def check_swapped(
    case: str, seen: Sequence[Seen], coverings: Sequence[Covering], found: Sequence[Finding]
) -> list[Finding]:
    """A warning where a case has a T1w and a FLAIR, and each of them looks like the other.

    Args:
        case: its name.
        seen: its images.
        coverings: what each shows.
        found: what was found in them already, their alignment included.
    """
    named = {one.sequence: (one, covering) for one, covering in zip(seen, coverings, strict=True)}
    if not set(_NAMES) <= set(named) or any(map(_unsure, found)):
        return []
    (first, covering), (second, _) = (named[name] for name in _NAMES)
    leads = even_over_uneven(first, second, covering)
    if leads is None or leads[1] < BRIGHT or leads[1] - leads[0] < LEAD:
        return []
    return [
        Finding(
            check="contrast",
            severity="warning",
            case=case,
            files=(first.path, second.path),
            found="T1w and FLAIR seem swapped: white matter is the brighter tissue in what is named FLAIR, not in what is named T1w",
            expected="white matter brighter than cortex in T1w, darker in FLAIR",
            remedy="look at the two side by side; where they were swapped, swap their names",
            numbers={"even_over_uneven_t1w": leads[0], "even_over_uneven_flair": leads[1]},
        )
    ]


def _unsure(finding: Finding) -> bool:
    if finding.check == "not_aligned":
        return float(finding.numbers["mm"]) > _OFF_MM
    return finding.sequence in _NAMES and finding.check in _UNSURE


def even_over_uneven(one: Seen, other: Seen, covering: Covering) -> tuple[float, float] | None:
    """How much brighter even tissue is than uneven, in each of two images of a head that lie on each other.

    Args:
        one: its small copy is the grid.
        other: brought onto it by the headers.
        covering: what `one` shows.

    Returns:
        Of each image the difference of the two means of the logarithm against its neighbourhood, in standard deviations of that in all tissue;
        None where too little brain is in both.
    """
    region, spacing = brain_region(one, covering), np.array(spacing_of(one.coarse.affine))
    moved = resample_to(other.coarse, one.coarse.affine, one.coarse.array.shape, 1).array
    arrays = [array - np.float32(of.background or 0.0) for array, of in ((one.coarse.array, one), (moved, other))]
    region = region & (arrays[0] > 0) & (arrays[1] > 0)
    if region.sum() < LEAST:
        return None
    box = ndimage.find_objects(region.astype(np.int8))[0]
    region = region[box]
    logs = [_logarithm(array[box], region) for array in arrays]
    tissue = region
    for _ in range(_ROUNDS):
        a, b = _against(logs, tissue, _WIDE_MM / spacing)
        fluid = region & (((a < _DARKER) & (b < _DARK)) | ((b < _DARKER) & (a < _DARK)))
        tissue = region & ~ndimage.binary_dilation(fluid)
    if tissue.sum() < LEAST:
        return None
    spreads = [spread[tissue] for spread in map(_spread, logs)]
    unevenness = sum(spread / max(float(np.median(spread)), 1e-6) for spread in spreads)
    even, uneven = unevenness <= np.quantile(unevenness, _EVEN), unevenness > np.quantile(unevenness, _UNEVEN)
    first, second = (near[tissue] for near in _against(logs, tissue, _NEAR_MM / spacing))
    return _lead(first, even, uneven), _lead(second, even, uneven)


def _logarithm(values: NDArray[np.float32], region: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Of the values over their median in the region; what is far darker or brighter than tissue is cut off."""
    return np.asarray(np.log((values / np.median(values[region])).clip(0.125, 4.5)), dtype=np.float32)


def _against(
    logs: Sequence[NDArray[np.float32]], where: NDArray[np.bool_], sigma: NDArray[np.float64]
) -> list[NDArray[np.float32]]:
    """Each image less its mean around a voxel, of voxels in `where` only; `sigma` in voxels."""
    weight = np.maximum(_blurred(where.astype(np.float32), sigma), 1e-3)
    means = [_blurred(np.where(where, log, 0), sigma) / weight for log in logs]
    return [np.asarray(log - mean, dtype=np.float32) for log, mean in zip(logs, means, strict=True)]


def _blurred(array: NDArray[np.float32], sigma: NDArray[np.float64]) -> NDArray[np.float32]:
    """Two boxes, which are nearly a Gaussian and take no longer for a wide one."""
    width = [max(1, round(size)) for size in np.sqrt(6) * sigma]
    return np.asarray(ndimage.uniform_filter(ndimage.uniform_filter(array, width), width), dtype=np.float32)


def _spread(log: NDArray[np.float32]) -> NDArray[np.float32]:
    """Standard deviation among the 27 voxels around each."""
    mean = ndimage.uniform_filter(log, 3)
    return np.asarray(np.sqrt(np.maximum(ndimage.uniform_filter(log**2, 3) - mean**2, 0)))


def _lead(values: NDArray[np.float32], even: NDArray[np.bool_], uneven: NDArray[np.bool_]) -> float:
    return float((values[even].mean() - values[uneven].mean()) / max(float(values.std()), 1e-6))
