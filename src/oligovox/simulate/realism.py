"""How an image looks, in numbers: the same estimators for simulated and for real images (`comparison` sets them side by side).

Arrays in, numbers out. Every volume of one subject lies on one grid (x, y, z) = RAS with `spacing` in mm. What depends on an
atlas, a network or a label of tissue is left out on purpose: nobody drew tissue labels on the real images, so the tissue classes
come from the intensities on both sides, by the same few steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.simulate.fields import Volume

Mask: TypeAlias = NDArray[np.bool_]
Spacing: TypeAlias = tuple[float, float, float]

WHITE, GREY, CSF = "WM", "GM", "CSF"
RING_MM = (1.0, 3.0)
"""The surroundings of a lesion: voxels farther than the first and at most as far as the second from it."""
HISTOGRAM_EDGES = np.linspace(0.0, 6.0, 201)
"""Edges of the histogram bins, in units of the median of white matter."""

ANATOMY = "anatomy"
"""Stands where a sequence is named, in rows that belong to none."""

_CLASSES = (CSF, GREY, WHITE)  # dark to bright on T1w
_START = (0.03, 0.35, 0.80)  # quantiles of T1w at which the classes start
_CORE = 0.9  # a voxel belongs to a class where its posterior is higher than this
_FAR = 4.0  # and where it lies at most so many standard deviations from the class: vessels and dura fit none
_SURFACE_MM = 3.0  # skin of the brain mask that is left out: stripping errors, dura
_SAMPLE = 60_000  # voxels that a fit sees
_CLIP = (0.5, 99.5)  # percentiles, before the mean and standard deviation of a brain
_SMOOTH_MM = 2.0  # noise is what a Gaussian of this standard deviation takes away
_DEEP_MM = 15.0  # edges are measured at the ventricles, so far below the surface


class Row(NamedTuple):
    """One number about one subject: `Row("FLAIR", "lesion / WM", 1.37)`."""

    sequence: str
    quantity: str
    value: float


def tissue_classes(t1w: Volume, t2w: Volume | None, brain: Mask, lesion: Mask, spacing: Spacing) -> dict[str, Mask]:
    """The cores of white matter, grey matter and CSF, by the intensities alone.

    K-means from fixed quantiles of T1w, on T1w and T2w (clipped at 1 and 99 %, in standard deviations), in the brain without
    lesions and without its outer 3 mm; then the posterior under normal classes of one common covariance and equal weight. Voxels
    with a posterior above 0.9 that lie within 4 standard deviations are the core. All of it twice: in between, a quadratic field
    fitted to white matter is divided out, so that a bias field does not move the classes.

    Args:
        t1w: (x, y, z), CSF darkest and white matter brightest.
        t2w: the same for T2w, or None.
        brain: brain mask.
        lesion: what is left out: lesions, tumour, resection cavity.
        spacing: mm.

    Returns:
        "WM", "GM", "CSF" → mask; a class that is not there is empty.
    """
    inside = _eroded(brain, _SURFACE_MM, spacing) & ~lesion
    volumes = [v for v in (t1w, t2w) if v is not None]
    if inside.sum() < 100:
        return {name: np.zeros(brain.shape, bool) for name in _CLASSES}
    values = np.stack([v[inside] for v in volumes], axis=1).astype(np.float64)
    places = np.argwhere(inside)
    found = _classify(values)
    white = found == _CLASSES.index(WHITE)
    for column in range(values.shape[1]):
        if white.sum() > 100:
            values[:, column] /= _quadratic(places[white], values[white, column], places)
    found = _classify(values)
    classes = {}
    for number, name in enumerate(_CLASSES):
        classes[name] = np.zeros(brain.shape, bool)
        classes[name][inside] = found == number
    return classes


def _classify(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """(n, sequences) → class of each voxel, −1 where it is of none; T1w comes first."""
    low, high = np.percentile(values, (1, 99), axis=0)
    clipped = values.clip(low, high)
    scaled = (clipped - clipped.mean(0)) / np.maximum(clipped.std(0), 1e-12)
    seen = scaled[:: max(1, len(scaled) // _SAMPLE)]
    centres = np.quantile(seen[:, :1], _START, axis=0)
    nearest = np.abs(seen[:, :1] - centres.T).argmin(1)
    for _ in range(100):
        centres = np.stack(
            [seen[nearest == k].mean(0) if (nearest == k).any() else np.full(seen.shape[1], np.inf) for k in range(3)]
        )
        moved = _squares(seen, centres, np.eye(seen.shape[1])).argmin(1)
        if (moved == nearest).all():
            break
        nearest = moved
    rest = seen - centres[nearest]
    inverse = np.linalg.inv(rest.T @ rest / len(rest) + 1e-6 * np.eye(seen.shape[1]))
    squares = _squares(scaled, centres, inverse)
    chance = np.exp(-0.5 * (squares - squares.min(1, keepdims=True)))
    chance /= chance.sum(1, keepdims=True)
    sure = (chance.max(1) > _CORE) & (squares.min(1) < _FAR**2)
    return np.asarray(np.where(sure, chance.argmax(1), -1))


def _squares(
    values: NDArray[np.float64], centres: NDArray[np.float64], inverse: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n, classes) squared distance of each voxel to each centre; a lost class (infinite centre) is infinitely far."""
    with np.errstate(invalid="ignore"):
        away = [values - centre for centre in centres]
        squares = np.stack([((a @ inverse) * a).sum(1) for a in away], axis=1)
    return np.asarray(np.nan_to_num(squares, nan=np.inf, posinf=np.inf))


def contrast(
    images: Mapping[str, Volume],
    classes: Mapping[str, Mask],
    targets: Mapping[str, Mask],
    brain: Mask,
    spacing: Spacing,
    *,
    reference: str = WHITE,
) -> list[Row]:
    """Contrast, noise, field and sharpness of every sequence.

    Args:
        images: sequence → (x, y, z).
        classes: tissue → core mask; `reference` and those it is compared with.
        targets: what was labelled: {"lesion": mask}, or the classes of a label map.
        brain: brain mask.
        spacing: mm.
        reference: name of the tissue whose median is 1.

    Returns:
        Rows; a number that does not exist (no lesion, no CSF) has none. Ratios are ratios of medians. Of a sequence whose
        reference is not above 0 (a susceptibility map) only the ring contrast is given.
    """
    union = np.logical_or.reduce([np.zeros(brain.shape, bool), *targets.values()])
    core = _core(classes[reference])
    away = ndimage.distance_transform_edt(~union, sampling=spacing) if union.any() else np.full(brain.shape, np.inf)
    ring = brain & (away > RING_MM[0]) & (away <= RING_MM[1])
    edge = _ventricle_walls(classes, brain, spacing) & (away > RING_MM[1])
    rows = [
        Row(ANATOMY, f"{name} core, % of brain", 100 * float(mask.sum()) / max(1, int(brain.sum())))
        for name, mask in classes.items()
        if name in _CLASSES
    ]
    for sequence, image in images.items():
        found = _ring_contrast(image, union, ring, brain)
        level = _median(image, classes[reference])
        if level is not None and level > 0:
            found |= _ratios(image, classes, targets, ring, reference)
            found |= _noise(image / level, core, spacing)
            found |= _field(image, classes[reference])
            found |= _edge_width(image, classes, edge, spacing)
        rows += [Row(sequence, quantity, float(value)) for quantity, value in found.items() if np.isfinite(value)]
    return rows


def _ratios(
    image: Volume, classes: Mapping[str, Mask], targets: Mapping[str, Mask], ring: Mask, reference: str
) -> dict[str, float]:
    level, spread = float(np.median(image[classes[reference]])), float(image[classes[reference]].std())
    found = {}
    for name, mask in targets.items():
        if not mask.any():
            continue
        low, middle, high = np.percentile(image[mask], (10, 50, 90))
        found[f"{name} / {reference}"] = middle / level
        found[f"{name} / {reference}, 10 %"], found[f"{name} / {reference}, 90 %"] = low / level, high / level
        if grey := _median(image, classes.get(GREY)):
            found[f"{name} / {GREY}"] = middle / grey
        found[f"({name} − {reference}) / sd"] = (middle - level) / max(spread, 1e-12)
    for name, mask in classes.items():
        if name != reference and (median := _median(image, mask)) is not None:
            found[f"{name} / {reference}"] = median / level
    if (around := _median(image, ring)) is not None:
        found[f"ring / {reference}"] = around / level
    return found


def _ring_contrast(image: Volume, lesion: Mask, ring: Mask, brain: Mask) -> dict[str, float]:
    """Mean over the lesions minus mean over their ring, in standard deviations of the brain (clipped at 0.5 and 99.5 %)."""
    if not (lesion.any() and ring.any()):
        return {}
    low, high = np.percentile(image[brain], _CLIP)
    spread = float(image[brain].clip(low, high).std())
    return {"ring contrast": float(image[lesion].mean() - image[ring].mean()) / max(spread, 1e-12)}


def _noise(image: Volume, core: Mask, spacing: Spacing) -> dict[str, float]:
    """Fine variation inside eroded white matter, % of its median, and how alike neighbouring voxels are in it.

    The image minus a Gaussian mean over the mask (standard deviation 2 mm), by the median absolute deviation, corrected for what
    the mean itself takes from white noise. Texture counts as noise, so this is an upper bound.
    """
    if core.sum() < 100:
        return {}
    sigma = [_SMOOTH_MM / s for s in spacing]
    weight = ndimage.gaussian_filter(core.astype(np.float32), sigma)
    smooth = ndimage.gaussian_filter(np.where(core, image, 0).astype(np.float32), sigma) / np.maximum(weight, 1e-3)
    rest = np.where(core, image - smooth, 0)
    delta = np.zeros([2 * round(4 * s) + 1 for s in sigma])
    delta[tuple(size // 2 for size in delta.shape)] = 1
    kept = float(((delta - ndimage.gaussian_filter(delta, sigma)) ** 2).sum())
    spread = 1.4826 * float(np.median(np.abs(rest[core] - np.median(rest[core])))) / np.sqrt(kept)
    alike = []
    for axis in range(3):
        one, other = (
            tuple(slice(a, b) if i == axis else slice(None) for i in range(3)) for a, b in ((0, -1), (1, None))
        )
        both = core[one] & core[other]
        if both.sum() > 100:
            alike.append(float(np.corrcoef(rest[one][both], rest[other][both])[0, 1]))
    return {"noise, %": 100 * spread} | ({"grain": float(np.mean(alike))} if alike else {})


def _field(image: Volume, white: Mask) -> dict[str, float]:
    """5 and 95 % of a quadratic function of position fitted to white matter, relative to its median."""
    places = np.argwhere(white)
    if len(places) < 100:
        return {}
    field = _quadratic(places, image[white].astype(np.float64), places)
    low, high = np.percentile(field / np.median(field), (5, 95))
    return {"field, 5 %": float(low), "field, 95 %": float(high)}


def _quadratic(places: NDArray[np.intp], values: NDArray[np.float64], at: NDArray[np.intp]) -> NDArray[np.float64]:
    """A quadratic function of position fitted to `values` at `places`, evaluated `at` others, relative to the median value.

    Kept between 0.3 and 3.
    """
    centre, scale = places.mean(0), np.maximum(places.std(0), 1e-6)

    def terms(points: NDArray[np.intp]) -> NDArray[np.float64]:
        x, y, z = ((points - centre) / scale).T
        return np.stack([np.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, x * z, y * z], axis=1)

    every = max(1, len(places) // _SAMPLE)
    level = max(float(np.median(values)), 1e-12)
    weights, *_ = np.linalg.lstsq(terms(places[::every]), values[::every] / level, rcond=None)
    return np.asarray(terms(at) @ weights).clip(0.3, 3.0)


def _ventricle_walls(classes: Mapping[str, Mask], brain: Mask, spacing: Spacing) -> Mask:
    """Where white matter meets CSF deep in the brain: both cores together at most 3.5 mm away."""
    white, csf = classes.get(WHITE), classes.get(CSF)
    if white is None or csf is None or not (white.any() and csf.any()):
        return np.zeros(brain.shape, bool)
    apart = sum(ndimage.distance_transform_edt(~m, sampling=spacing) for m in (white, csf))
    return np.asarray((apart <= max(3.5, 2.5 * max(spacing))) & _eroded(brain, _DEEP_MM, spacing))


def _edge_width(image: Volume, classes: Mapping[str, Mask], walls: Mask, spacing: Spacing) -> dict[str, float]:
    """Full width at half maximum, in mm, of the blur that would give the slope found half-way up the ventricle walls.

    A Gaussian blur of a step of height h has its steepest slope h · 0.94 / FWHM. Central differences on the voxel grid widen
    this by themselves, to about 1.9 voxels for a perfect step: compare at one voxel size only.
    """
    if walls.sum() < 50:
        return {}
    dark, bright = float(np.median(image[classes[CSF]])), float(np.median(image[classes[WHITE]]))
    if abs(bright - dark) < 4 * float(image[classes[WHITE]].std()):
        return {}
    slope = np.sqrt(sum(np.gradient(image, step, axis=axis) ** 2 for axis, step in enumerate(spacing)))
    way = (image - dark) / (bright - dark)
    middle = walls & (way > 0.3) & (way < 0.7)
    if middle.sum() < 50:
        return {}
    return {"edge width, mm": 0.94 * abs(bright - dark) / max(float(np.median(slope[middle])), 1e-12)}


def _median(image: Volume, mask: Mask | None) -> float | None:
    return float(np.median(image[mask])) if mask is not None and mask.any() else None


def _core(mask: Mask) -> Mask:
    """Without its outer voxels; all of it where that leaves too little."""
    inner = np.asarray(ndimage.binary_erosion(mask))
    return inner if inner.sum() > 500 else mask


def _eroded(mask: Mask, by: float, spacing: Spacing) -> Mask:
    padded = np.pad(mask, 1)  # the edge of the array is outside
    return np.asarray(ndimage.distance_transform_edt(padded, sampling=spacing)[1:-1, 1:-1, 1:-1] > by)


def histograms(
    images: Mapping[str, Volume], masks: Mapping[str, Mask], reference: Mask
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Sequence → mask → share of its voxels in each bin of `HISTOGRAM_EDGES`; what lies beyond is in the outermost bins."""
    found: dict[str, dict[str, NDArray[np.float64]]] = {}
    for sequence, image in images.items():
        level = _median(image, reference)
        if level is None or level <= 0:
            continue
        found[sequence] = {}
        for name, mask in masks.items():
            if mask.any():
                values = (image[mask] / level).clip(HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1])
                found[sequence][name] = np.histogram(values, HISTOGRAM_EDGES)[0] / values.size
    return found
