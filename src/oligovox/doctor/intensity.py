"""What can be wrong with the values of one image: slices that are lost or repeated, clipping, noise, ghosts of motion, an uneven field.

Thresholds lie beyond what simulated scanners and the real exams of the tests have; `benchmarks/check_defects.py` counts what they find and what
they should not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.doctor.finding import Finding, Severity
from oligovox.doctor.region import inside_head
from oligovox.doctor.seen import Seen
from oligovox.doctor.stripped import Covering
from oligovox.prepare.geometry import spacing_of

CLIPPED = 2e-4
"""Share of the foreground that has the very highest value: whole exams have about 1e-6, unless they were cut off."""

SNR = 5.0
"""Median of the foreground over the noise; below, lesions of a few voxels drown."""

GHOST = 0.05
"""Signal in the air along one axis of the head beyond that along the other, root mean square, as a share of the head's own."""

UNEVEN = 0.35
"""Half the range (5th to 95th percentile) of the smooth part of a stripped brain, relative to its middle."""

UNEVEN_HEAD = 3.5
"""How many times brighter a brain in a head is at one end of `_ACROSS_MM` than at the other; whole exams have up to 2.9."""

_CLIP_RATIO = 10.0  # and so many times more than values a little lower have
_CLIP_SERIOUS = 5e-3
_SIGNED = ("QSM",)  # no magnitude: neither an SNR nor a field around 1
_MAD = 1.4826  # sd of a normal distribution over its median absolute deviation
_KERNEL_NORM = 6.0  # sd that [1 -2 1] in two directions makes of white noise of sd 1
_SMOOTH_MM = 24.0  # sd of the smooth part
_ACROSS_MM = 130.0  # of brain, that a steady drift is told for
_FIT = 5, 2.0  # rounds; residuals so many times the usual one count a quarter
_BELOW_TOP_MM = 65.0  # of a head, where there is neither face nor neck beside it
_AIR_MM = 15.0  # around the head, left out of the air: as much as a scalp that is too dark to be seen
_LEAST_AIR = 300  # voxels of the small copy
_LEAST_INNER = 500  # every second or so along each axis
_AXES = ("left-right", "front-back", "head-foot")


@dataclass(frozen=True)
class Slices:
    """Slices of one axis, counted from 0 in RAS order.

    Attributes:
        axis: 0 to 2.
        empty: without any variation, between others that have some.
        repeated: the same, voxel by voxel, as the slice before.
        of: slices that have some variation.
    """

    axis: int
    empty: tuple[int, ...]
    repeated: tuple[int, ...]
    of: int


def odd_slices(array: NDArray[np.float32]) -> tuple[Slices, ...]:
    """Empty and repeated slices along each axis of (x, y, z)."""
    found = []
    for axis in range(3):
        across = tuple(a for a in range(3) if a != axis)
        varied = array.max(axis=across) > array.min(axis=across)
        shown = np.flatnonzero(varied)
        if not shown.size:
            continue
        inside = np.arange(shown[0], shown[-1] + 1)
        one, other = (
            tuple(slice(*ends) if a == axis else slice(None) for a in range(3)) for ends in ((1, None), (None, -1))
        )
        same = (array[one] == array[other]).all(axis=across)
        repeated = np.flatnonzero(same & varied[1:]) + 1
        empty = inside[~varied[inside]]
        found.append(Slices(axis, tuple(empty.tolist()), tuple(repeated.tolist()), int(shown.size)))
    return tuple(found)


def clipped_share(seen: Seen) -> tuple[float, float]:
    """Share of the foreground at the highest value, and how many times that is the share of an interval of the same kind below it.

    The values below are those of the uppermost twentieth of the range; each that occurs counts as one interval.
    """
    array = seen.array
    top = float(array.max())
    foreground = int((array > seen.level).sum())
    at = int((array == top).sum())
    below = array[(array < top) & (array >= top - 0.05 * (top - seen.level))]
    usual = below.size / max(1, np.unique(below).size)
    return at / max(1, foreground), at / max(1.0, usual)


def noise(seen: Seen) -> float:
    """Standard deviation of the noise, units of the file: median absolute deviation of the second differences in the finest plane (Immerkær 1996,
    Comput Vis Image Underst 64:300), in the foreground. Smoothing, as by interpolation, hides noise from it.
    """
    thick = int(np.argmax(seen.spacing))
    array = np.moveaxis(seen.array, thick, 0)
    array = array[:: max(1, len(array) // 24)]
    second = array[:, 2:] - 2 * array[:, 1:-1] + array[:, :-2]
    both = second[:, :, 2:] - 2 * second[:, :, 1:-1] + second[:, :, :-2]
    inner = ndimage.minimum_filter(array, (1, 3, 3))[:, 1:-1, 1:-1] > seen.level
    values = both[inner]
    return float(_MAD * np.median(np.abs(values - np.median(values))) / _KERNEL_NORM) if values.size > 1000 else 0.0


def snr(seen: Seen) -> float | None:
    """Median of the foreground over the noise; None where no noise can be seen."""
    sigma = noise(seen)
    values = seen.coarse.array[seen.coarse_foreground] - (seen.background or 0.0)
    return float(np.median(values)) / sigma if sigma > 0 and values.size else None


def ghosts(seen: Seen) -> tuple[float, int] | None:
    """Signal in the air beside the head along one axis beyond that along the other, over the head's median; and that axis.

    A head that moves while it is scanned is copied along the phase-encoding axis, into the air before and behind it, or beside it. Squares are
    compared, to which noise adds the same everywhere, so a ghost counts as much in a noisy image. Only the upper part of the head is looked at.
    None where there is too little air, or all of it was set to one value.
    """
    spacing = spacing_of(seen.coarse.affine)
    shown = np.flatnonzero(seen.coarse_foreground.any(axis=(0, 1)))
    if not shown.size:
        return None
    upper = slice(max(0, int(shown[-1] - _BELOW_TOP_MM / spacing[2])), None)
    array, head = seen.coarse.array[..., upper], seen.coarse_foreground[..., upper]
    near = ndimage.distance_transform_edt(~head, spacing) <= _AIR_MM
    values = array - np.float32(seen.background if seen.background is not None else 0.0)
    powers, noisy = [], False
    for axis in (0, 1):
        part = values[head.any(axis=axis, keepdims=True) & ~near.any(axis=1 - axis, keepdims=True) & ~near]
        if part.size < _LEAST_AIR:
            return None
        powers.append(float(np.mean(part.astype(np.float64) ** 2)))
        noisy |= bool((part != 0).mean() > 0.5)
    if not noisy:
        return None
    axis = int(powers[1] > powers[0])
    typical = float(np.median(values[head]))
    return float(np.sqrt(powers[axis] - powers[1 - axis])) / max(typical, 1e-12), axis


def unevenness(seen: Seen) -> float:
    """Half the 5-95 % range of the smooth part of the logarithm in a stripped brain: 0.1 is ± 10 %.

    The brain is all that is not background: a threshold would leave out the dark end of a strong field.
    """
    step = tuple(slice(None, None, max(1, round(4 / size))) for size in spacing_of(seen.coarse.affine))
    size = np.array(spacing_of(seen.coarse.affine)) * [part.step for part in step]
    values = seen.coarse.array[step] - np.float32(seen.background or 0.0)
    mask = ndimage.binary_erosion(values > 0)  # a block at the border is part background
    if not mask.any():
        return 0.0
    level = np.median(values[mask])
    logs = np.where(mask, np.log(np.maximum(values, level / 20) / level), 0).clip(-1.5, 1.5).astype(np.float32)
    sigma = _SMOOTH_MM / size
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma)
    smooth = ndimage.gaussian_filter(logs, sigma) / np.maximum(weight, 1e-3)
    low, high = np.percentile(smooth[mask], (5, 95))
    return float(high - low) / 2


def drift(seen: Seen) -> float | None:
    """How many times brighter the brain in a head is at one end of 130 mm than at the other, along the steepest way; None where it is not found.

    A plane through the logarithm inside the brain. Fluid and what else lies far off it counts little, and a field that is bright in the middle, as at
    7 T, has no slope.
    """
    inner = inside_head(seen)
    if inner is None:
        return None
    step = tuple(slice(None, None, max(1, round(4 / size))) for size in spacing_of(seen.coarse.affine))
    values = seen.coarse.array[step] - np.float32(seen.background or 0.0)
    mask = inner[step] & (values > 0)
    if mask.sum() < max(_LEAST_INNER, 0.5 * inner[step].sum()):  # or values around 0, of which no ratio can be told
        return None
    size = np.array(spacing_of(seen.coarse.affine)) * [part.step for part in step]
    places = np.argwhere(mask) * size / _ACROSS_MM
    logs = np.log(values[mask] / np.median(values[mask])).clip(-2.5, 2.5)
    terms = np.c_[np.ones(len(places)), places - places.mean(axis=0)]
    weights, slopes = np.ones(len(places)), np.zeros(4)
    for _ in range(_FIT[0]):
        slopes = np.linalg.lstsq(terms * weights[:, None], logs * weights, rcond=None)[0]
        away = np.abs(logs - terms @ slopes)
        weights = 1 / (1 + (away / max(_FIT[1] * _MAD * float(np.median(away)), 1e-6)) ** 2)
    return float(np.exp(np.linalg.norm(slopes[1:])))


def check_intensity(case: str, seen: Seen, covering: Covering) -> list[Finding]:
    """Everything that is odd about the values of one image.

    Args:
        case: name of the case.
        seen: the image.
        covering: whether it shows the head or the brain alone.
    """
    findings = [*_slices(case, seen), *_clipping(case, seen)]
    if seen.sequence in _SIGNED:
        return findings
    if (ratio := snr(seen)) is not None and ratio < SNR:
        remedy = "look at it; leave the image out, or denoise it the same way as all others"
        findings.append(
            _one(
                case,
                seen,
                "noisy",
                "warning",
                f"signal {ratio:.1f} times the noise",
                f"at least {SNR:g}",
                remedy,
                snr=ratio,
            )
        )
    if covering == "head" and (ghost := ghosts(seen)) and ghost[0] > GHOST:
        found = (
            f"the air {_AXES[ghost[1]]} of the head is brighter by {100 * ghost[0]:.0f} % of the head, as from motion"
        )
        remedy = "look at it; where lesions cannot be told from ghosts, leave the image out"
        findings.append(
            _one(
                case,
                seen,
                "ghosts",
                "warning",
                found,
                f"less than {100 * GHOST:.0f} %",
                remedy,
                ghost=ghost[0],
                axis=ghost[1],
            )
        )
    return [*findings, *_field(case, seen, covering)]


def _field(case: str, seen: Seen, covering: Covering) -> list[Finding]:
    remedy = "correct the bias field before training (N4, in the preparation of raw exams)"
    if covering == "stripped" and (uneven := unevenness(seen)) > UNEVEN:
        found = f"brightness drifts by ± {100 * uneven:.0f} % across the brain"
        expected = f"less than ± {100 * UNEVEN:.0f} %"
        return [_one(case, seen, "uneven", "warning", found, expected, remedy, uneven=uneven)]
    if covering == "head" and (times := drift(seen)) is not None and times > UNEVEN_HEAD:
        found = f"one end of the brain is {times:.1f} times as bright as the other"
        expected = f"less than {UNEVEN_HEAD:g} times"
        return [_one(case, seen, "uneven", "warning", found, expected, remedy, times=times)]
    return []


def _slices(case: str, seen: Seen) -> list[Finding]:
    findings = []
    for odd in odd_slices(seen.array):
        where = f"of {seen.array.shape[odd.axis]} slices along {_AXES[odd.axis]}"
        numbers = {"axis": odd.axis, "of": odd.of}
        if odd.empty:
            found = f"{len(odd.empty)} {where} hold one value only: {_ranges(odd.empty)}"
            remedy = "export the image again; a lesion in these slices can be neither seen nor learnt"
            findings.append(
                _one(
                    case,
                    seen,
                    "empty_slices",
                    "error",
                    found,
                    "none between slices that show something",
                    remedy,
                    slices=odd.empty,
                    **numbers,
                )
            )
        if odd.repeated:
            found = f"{len(odd.repeated)} {where} repeat the one before: {_ranges(odd.repeated)}"
            remedy = "export the image again; if it was resampled to thinner slices by copying, take the original"
            findings.append(
                _one(
                    case,
                    seen,
                    "repeated_slices",
                    "warning",
                    found,
                    "no two slices alike",
                    remedy,
                    slices=odd.repeated,
                    **numbers,
                )
            )
    return findings


def _clipping(case: str, seen: Seen) -> list[Finding]:
    share, ratio = clipped_share(seen)
    if share < CLIPPED or ratio < _CLIP_RATIO:
        return []
    severity: Severity = "warning" if share >= _CLIP_SERIOUS else "note"
    found = f"{100 * share:.2g} % of the foreground has the highest value, {seen.array.max():g}: cut off"
    remedy = "export it without windowing; what was brighter cannot be told apart any more"
    return [_one(case, seen, "clipped", severity, found, f"less than {100 * CLIPPED:g} %", remedy, share=share)]


def _one(
    case: str, seen: Seen, check: str, severity: Severity, found: str, expected: str, remedy: str, **numbers: object
) -> Finding:
    return Finding(
        check=check,
        severity=severity,
        case=case,
        sequence=seen.sequence,
        files=(seen.path,),
        found=found,
        expected=expected,
        remedy=remedy,
        numbers=numbers,
    )


def _ranges(numbers: Iterable[int]) -> str:
    """'4-6, 9' counted from 1, with the first few only."""
    ordered = sorted(n + 1 for n in numbers)
    starts = [ordered[0], *(b for a, b in pairwise(ordered) if b > a + 1)]
    ends = [*(a for a, b in pairwise(ordered) if b > a + 1), ordered[-1]]
    parts = [f"{a}-{b}" if b > a else str(a) for a, b in zip(starts, ends, strict=True)]
    return ", ".join(parts[:6]) + (" …" if len(parts) > 6 else "")
