"""Radiomics: sixty numbers that say how bright, how shaped and how textured one lesion is.

| group | numbers |
| --- | --- |
| first order, 19 | of the values in the lesion; entropy and uniformity of their histogram |
| shape, 17 | of the mask, in mm |
| texture, 24 | of the grey-level co-occurrence matrix: how often two grey levels are neighbours, symmetric, in each of 13 pairs of opposite directions; then the mean over those that have a pair |

Histogram and matrix have bins of fixed width that begin at multiples of it.

Source: Haralick et al. 1973 (IEEE Trans SMC 3(6):610) for the matrix; names and definitions after the Image Biomarker Standardisation Initiative
(Zwanenburg et al. 2020, doi 10.1148/radiol.2020191145), as PyRadiomics has them (both from memory). Surface: Crofton's formula with the
13 directions and the weights of Ohser and Mücklich 2000.
Deviates: surface and volume are counted on voxels, not on a mesh; compactness, share of the bounding box, equivalent and inscribed diameter
stand beside PyRadiomics' shape; no filtered images, so 60 numbers where QSMRim-Net has 527.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial.distance import pdist

from oligovox.errors import GeometryError, LabelError

Numbers = NDArray[np.float64]

FIRST_ORDER = (
    *("energy", "total_energy", "entropy", "minimum", "percentile_10", "percentile_90", "maximum", "mean", "median"),
    *("interquartile_range", "range", "mean_absolute_deviation", "robust_mean_absolute_deviation", "root_mean_square"),
    *("standard_deviation", "skewness", "kurtosis", "variance", "uniformity"),
)
SHAPE = (
    *("volume_mm3", "surface_mm2", "surface_to_volume", "sphericity", "compactness", "diameter_mm", "diameter_xy_mm"),
    *("diameter_xz_mm", "diameter_yz_mm", "major_axis_mm", "minor_axis_mm", "least_axis_mm", "elongation", "flatness"),
    *("box_share", "equivalent_diameter_mm", "inscribed_diameter_mm"),
)
TEXTURE = (
    *("autocorrelation", "joint_average", "cluster_prominence", "cluster_shade", "cluster_tendency", "contrast"),
    *(
        "correlation",
        "difference_average",
        "difference_entropy",
        "difference_variance",
        "joint_energy",
        "joint_entropy",
    ),
    *("information_correlation_1", "information_correlation_2", "inverse_difference_moment", "maximal_correlation"),
    *("normalised_inverse_difference_moment", "inverse_difference", "normalised_inverse_difference"),
    *("inverse_variance", "maximum_probability", "sum_average", "sum_entropy", "sum_of_squares"),
)
FEATURES = (*FIRST_ORDER, *SHAPE, *TEXTURE)
"""Names of the sixty, in order."""

_HALF = tuple(step for step in product((-1, 0, 1), repeat=3) if step > (0, 0, 0))
_WEIGHT = {1: 2 * 0.045778, 2: 2 * 0.036981, 3: 2 * 0.035196}  # share of all directions, by steps along axes


def radiomics(
    image: NDArray[np.floating], lesion: NDArray[np.bool_], spacing_mm: Sequence[float], bin_width: float
) -> Numbers:
    """The features of one lesion, (60,) in the order of `FEATURES`; all finite.

    Args:
        image: (x, y, z), in any unit; 25 ppb is the usual bin for QSM in ppb.
        lesion: the same shape.
        spacing_mm: sides of a voxel, in mm.
        bin_width: of the histogram and the matrix, in units of the image, above 0.

    Raises:
        GeometryError: the shapes differ.
        LabelError: the lesion has no voxel.
    """
    if image.shape != lesion.shape or image.ndim != 3:
        raise GeometryError(f"radiomics: image {image.shape} and lesion {lesion.shape}; expected one 3-D shape")
    if not lesion.any():
        raise LabelError("radiomics: the lesion has no voxel; leave it out, or look at its mask")
    box = tuple(slice(int(where.min()), int(where.max()) + 1) for where in np.nonzero(lesion))
    mask, values = lesion[box], image[box].astype(np.float64)
    bins = np.floor(values / bin_width).astype(np.int64)
    levels = np.where(mask, bins - bins[mask].min() + 1, 0)
    spacing = np.asarray(spacing_mm, np.float64)
    return np.concatenate(
        [_first_order(values[mask], levels[mask], float(spacing.prod())), _shape(mask, spacing), _texture(levels)]
    )


def _first_order(values: Numbers, levels: NDArray[np.int64], voxel_mm3: float) -> Numbers:
    share = np.bincount(levels)[1:] / len(levels)
    p10, p25, p75, p90 = np.percentile(values, (10, 25, 75, 90))
    mean, energy = values.mean(), np.square(values).sum()
    apart = values - mean
    variance = np.square(apart).mean()
    inner = values[(values >= p10) & (values <= p90)]
    inner = values if len(inner) == 0 else inner
    flat = variance <= 1e-12 * max(1.0, mean**2)
    return np.array(
        [
            *(energy, energy * voxel_mm3, _entropy(share), values.min(), p10, p90, values.max(), mean),
            *(np.median(values), p75 - p25, np.ptp(values), np.abs(apart).mean(), np.abs(inner - inner.mean()).mean()),
            *(math.sqrt(energy / len(values)), math.sqrt(variance)),
            *((0.0, 0.0) if flat else ((apart**3).mean() / variance**1.5, (apart**4).mean() / variance**2)),
            *(variance, np.square(share).sum()),
        ]
    )


def _shape(mask: NDArray[np.bool_], spacing: Numbers) -> Numbers:
    places = np.argwhere(mask) * spacing
    volume = len(places) * float(spacing.prod())
    surface = _surface_mm2(mask, spacing)
    scatter = np.cov(places.T, bias=True) if len(places) > 1 else np.zeros((3, 3))
    least, minor, major = np.sqrt(np.linalg.eigvalsh(scatter).clip(0))
    outer = _outermost(mask) * spacing
    inside = distance_transform_edt(np.pad(mask, 1), sampling=spacing).max()
    return np.array(
        [
            *(volume, surface, surface / volume, (36 * math.pi * volume**2) ** (1 / 3) / surface),
            volume / math.sqrt(math.pi * surface**3),
            *(_diameter(outer), *(_diameter_across(np.argwhere(mask), axis, spacing) for axis in (2, 1, 0))),
            *(4 * major, 4 * minor, 4 * least),
            *((minor / major, least / major) if major > 0 else (1.0, 1.0)),
            *(mask.mean(), (6 * volume / math.pi) ** (1 / 3), 2 * inside),
        ]
    )


def _surface_mm2(mask: NDArray[np.bool_], spacing: Numbers) -> float:
    """2 · the mean over directions of what the surface covers, seen along them: crossings times the area of a line."""
    padded = np.pad(mask, 1)
    covered = 0.0
    for step in _HALF:
        crossings = np.count_nonzero(padded != np.roll(padded, step, (0, 1, 2)))
        area = spacing.prod() / np.linalg.norm(spacing * step)
        covered += _WEIGHT[sum(map(abs, step))] * crossings * area
    return 2 * covered


def _outermost(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """First and last voxel of every line along z: the two that are furthest apart are among them."""
    kept = mask & ((np.cumsum(mask, 2) == 1) | (np.cumsum(mask[..., ::-1], 2)[..., ::-1] == 1))
    return np.argwhere(kept)


def _diameter(places: Numbers) -> float:
    return float(pdist(places).max()) if len(places) > 1 else 0.0


def _diameter_across(voxels: NDArray[np.int64], axis: int, spacing: Numbers) -> float:
    """Largest diameter within one slice across the axis."""
    within = [other for other in range(3) if other != axis]
    widest = 0.0
    for level in np.unique(voxels[:, axis]):
        there = voxels[voxels[:, axis] == level][:, within]
        plane = np.zeros((1, *(there.max(0) + 1)), bool)
        plane[0, there[:, 0], there[:, 1]] = True
        widest = max(widest, _diameter(_outermost(plane)[:, 1:] * spacing[within]))
    return widest


def co_occurrence(levels: NDArray[np.int64]) -> Numbers:
    """Grey-level co-occurrence matrices (directions, n, n), symmetric, each of sum 1; directions without a pair are left out.

    Args:
        levels: (x, y, z), 1 … n in the lesion and 0 outside.
    """
    n, found = int(levels.max()), []
    padded = np.pad(levels, 1)
    for step in _HALF:
        moved = np.roll(padded, step, (0, 1, 2))
        both = (padded > 0) & (moved > 0)
        counts = np.bincount((padded[both] - 1) * n + moved[both] - 1, minlength=n * n).reshape(n, n)
        if both.any():
            found.append((counts + counts.T) / (2 * counts.sum()))
    return np.array(found).reshape(-1, n, n)


def _texture(levels: NDArray[np.int64]) -> Numbers:
    """Mean over the directions; of a lesion without neighbours, that of a matrix of one level."""
    p = co_occurrence(levels)
    if len(p) == 0:
        p = np.ones((1, 1, 1))
    n = p.shape[1]
    i, j = np.arange(1, n + 1)[:, None], np.arange(1, n + 1)[None]
    apart, both = np.abs(i - j), i + j
    margin = p.sum(2)
    mean = (np.arange(1, n + 1) * margin).sum(1)
    centred = both - 2 * mean[:, None, None]
    variance = (np.square(np.arange(1, n + 1) - mean[:, None]) * margin).sum(1)
    difference, total = _summed(p, apart, n), _summed(p, both - 2, 2 * n - 1)
    k = np.arange(n)

    def expected(value: Numbers | NDArray[np.int64]) -> Numbers:
        found: Numbers = (value * p).sum((1, 2))
        return found

    average = (k * difference).sum(1)
    joint, one, two = _entropy(p), *_information(p, margin)
    product = expected(i * j)
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.where(variance > 1e-12, (product - mean**2) / variance, 1.0)
    rows = [
        *(product, mean, expected(centred**4), expected(centred**3), expected(centred**2), expected(apart**2)),
        *(correlation, average, _entropy(difference), (np.square(k - average[:, None]) * difference).sum(1)),
        *(np.square(p).sum((1, 2)), joint, one, two, expected(1 / (1 + apart**2)), _maximal_correlation(p, margin)),
        *(expected(1 / (1 + apart**2 / n**2)), expected(1 / (1 + apart)), expected(1 / (1 + apart / n))),
        expected(np.where(apart > 0, 1 / np.maximum(apart, 1) ** 2, 0.0)),
        *(p.max((1, 2)), (np.arange(2, 2 * n + 1) * total).sum(1), _entropy(total), variance),
    ]
    means: Numbers = np.array(rows).mean(1)
    return means


def _summed(p: Numbers, index: NDArray[np.int64], size: int) -> Numbers:
    """(directions, size): what lies in the cells of each index."""
    rows = size * np.arange(len(p))[:, None, None] + index
    found = np.bincount(rows.ravel(), weights=p.ravel(), minlength=size * len(p))
    return found.reshape(len(p), size).astype(np.float64)


def _entropy(p: Numbers) -> Numbers:
    """In bits, over all axes but the first of several; of one distribution, a number."""
    logarithm = np.log2(p, out=np.zeros_like(p), where=p > 0)
    found: Numbers = -(p * logarithm).sum(tuple(range(1 if p.ndim > 1 else 0, p.ndim)))
    return found


def _information(p: Numbers, margin: Numbers) -> tuple[Numbers, Numbers]:
    """The two informational measures of correlation."""
    alone = margin[:, :, None] * margin[:, None]
    logarithm = np.log2(alone, out=np.zeros_like(alone), where=alone > 0)
    joint, single = _entropy(p), _entropy(margin)
    crossed, independent = -(p * logarithm).sum((1, 2)), -(alone * logarithm).sum((1, 2))
    first = np.divide(joint - crossed, single, out=np.zeros_like(single), where=single > 1e-12)
    return first, np.sqrt((1 - np.exp(-2 * (independent - joint).clip(0))).clip(0))


def _maximal_correlation(p: Numbers, margin: Numbers) -> Numbers:
    """Second largest singular value of p(i, j) / √(p(i) p(j)); 1 where there is one level only."""
    root = np.sqrt(margin)
    inverse = np.divide(1, root, out=np.zeros_like(root), where=root > 0)
    values = np.sort(np.abs(np.linalg.eigvalsh(inverse[:, :, None] * p * inverse[:, None])), 1)
    one = (margin > 0).sum(1) < 2
    return np.where(one, 1.0, values[:, -2] if p.shape[1] > 1 else 1.0)
