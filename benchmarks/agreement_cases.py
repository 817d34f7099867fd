"""Pairs of masks and of tissue maps that metrics_agreement.py scores: random ones of known kinds, and real ones.

Every pair has a seed; the same call gives the same arrays. Grids are small, because some of the code compared with is slow.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

GRID = (40, 44, 34)
SPACINGS = ((1.0, 1.0, 1.0), (0.9, 0.9, 3.0), (1.0, 1.0, 3.0), (0.5, 0.5, 0.5), (0.57, 0.57, 4.0), (1.2, 0.8, 1.0))
UNIT = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Case:
    """A prediction and a reference on one grid; `spacing` in mm."""

    name: str
    kind: str
    prediction: np.ndarray
    truth: np.ndarray
    spacing: tuple[float, float, float]


def blobs(rng: np.random.Generator, count: int, radius: tuple[float, float], shape=GRID, margin: int = 0) -> np.ndarray:
    """Ellipsoids of random place and radius (in voxels); those near a face are cut by it."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    found = np.zeros(shape, bool)
    for _ in range(count):
        centre = [rng.integers(margin, side - margin) for side in shape]
        half = rng.uniform(*radius) * rng.uniform(0.6, 1.4, 3)
        found |= sum(((grid[a] - centre[a]) / half[a]) ** 2 for a in range(3)) <= 1
    return found


def cloud(rng: np.random.Generator, smooth: float, share: float, shape=GRID) -> np.ndarray:
    """Smoothed noise above its own quantile: ragged regions with bays, holes and islands."""
    field = ndimage.gaussian_filter(rng.normal(size=shape), smooth)
    return field > np.quantile(field, 1 - share)


def jitter(mask: np.ndarray, rng: np.random.Generator, drop: float = 0.2, extra: int = 4) -> np.ndarray:
    """A plausible prediction: each lesion kept or lost, moved by a voxel, grown or shrunk; some false ones beside."""
    labels, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    found = blobs(rng, extra, (0.6, 2.0), mask.shape) if extra else np.zeros_like(mask)
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        if rng.random() < drop:
            continue
        box = tuple(slice(max(side.start - 2, 0), side.stop + 2) for side in box)
        lesion = np.roll(labels[box] == number, rng.integers(-1, 2, 3), (0, 1, 2))
        change = rng.integers(3)
        found[box] |= (lesion, ndimage.binary_dilation(lesion), ndimage.binary_erosion(lesion))[change]
    return found


def many(rng):
    truth = blobs(rng, 45, (0.8, 2.2))
    return jitter(truth, rng), truth


def large(rng):
    truth = cloud(rng, 3.5, 0.12)
    return cloud(rng, 3.5, 0.1) & ndimage.binary_dilation(truth, iterations=3) | truth & cloud(rng, 2, 0.6), truth


def border(rng):
    truth = blobs(rng, 12, (2, 5)) & ~np.pad(np.ones([s - 14 for s in GRID], bool), 7)
    return jitter(truth, rng, 0.1, 0), truth


def tiny(rng):
    return (rng.random(GRID) < 0.0008), (rng.random(GRID) < 0.0008)


def noise(rng):
    return (rng.random(GRID) < 0.02), (rng.random(GRID) < 0.02)


def split(rng):
    truth = blobs(rng, 6, (4, 8))
    cut = np.zeros(GRID, bool)
    cut[::4], cut[:, 1::6] = True, True
    return truth & ~cut, truth


def merged(rng):
    truth = blobs(rng, 30, (0.8, 2))
    return ndimage.binary_dilation(truth, iterations=int(rng.integers(1, 4))), truth


def apart(rng):
    side = np.zeros(GRID, bool)
    side[: GRID[0] // 2] = True
    return blobs(rng, 8, (1, 4)) & side, blobs(rng, 8, (1, 4)) & ~side


def no_prediction(rng):
    return np.zeros(GRID, bool), blobs(rng, 5, (0.6, 4))


def no_reference(rng):
    return blobs(rng, 5, (0.6, 4)), np.zeros(GRID, bool)


def equal(rng):
    truth = blobs(rng, int(rng.integers(0, 2)) * 7, (0.6, 4))
    return truth.copy(), truth


def shells(rng):
    truth = blobs(rng, 5, (4, 8))
    truth &= ~ndimage.binary_erosion(truth, iterations=2)
    return np.roll(truth, int(rng.integers(0, 3)), 1) ^ (rng.random(GRID) < 0.001), truth


KINDS: tuple[Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]], ...] = (
    many, large, border, tiny, noise, split, merged, apart, no_prediction, no_reference, equal, shells,
)  # fmt: skip


def random_masks(each: int = 20) -> Iterator[Case]:
    """`each` pairs of every kind, at all spacings in turn."""
    for place, kind in enumerate(KINDS):
        for number in range(each):
            prediction, truth = kind(np.random.default_rng([4, place, number]))
            yield Case(f"{kind.__name__}-{number}", kind.__name__, prediction, truth, SPACINGS[number % len(SPACINGS)])


def random_tissues(count: int = 60, shape=(44, 46, 38)) -> Iterator[Case]:
    """Tumour maps with labels 1 to 4: ragged oedema, enhancing rims around necrosis, cavities, satellites; one in five has no prediction of some class."""
    for number in range(count):
        rng = np.random.default_rng([5, number])
        truth = tissue(rng, shape)
        prediction = np.roll(truth, tuple(rng.integers(-2, 3, 3)), (0, 1, 2))
        prediction = np.where(cloud(rng, 1.5, 0.15, shape), tissue(rng, shape), prediction).astype(np.int16)
        prediction[cloud(rng, 3, 0.2, shape)] = 0
        if number % 5 == 0:
            prediction[prediction == rng.integers(1, 5)] = 0
        if number % 7 == 0:
            truth[truth == rng.integers(1, 5)] = 0
        if number % 20 == 19:
            prediction[:] = 0
        yield Case(f"tissue-{number}", "tissue", prediction, truth, UNIT)


def tissue(rng: np.random.Generator, shape) -> np.ndarray:
    """Some foci, near and far from one another, each with a rim and a ragged core of its own."""
    whole = blobs(rng, int(rng.integers(2, 7)), (1.5, 4.5), shape) & ~cloud(rng, 1, 0.1, shape)
    label = np.where(whole, 2, 0).astype(np.int16)
    core = ndimage.binary_erosion(whole) & cloud(rng, 1.6, 0.6, shape) | blobs(rng, 4, (0.8, 3), shape)
    label[core] = 3
    label[ndimage.binary_erosion(core) | core & cloud(rng, 1.2, 0.2, shape)] = 1
    label[blobs(rng, 3, (1, 4), shape)] = 4
    return label


def real_masks(data: Path) -> Iterator[Case]:
    """Expert MS lesion masks on one 1 mm grid: each against a jittered copy of itself, and against the next patient's."""
    paths = sorted((data / "openms" / "lesion_masks_mni").glob("sub-*_desc-lesion_mask.nii.gz"))
    masks = [np.asarray(nib.load(path).dataobj) > 0 for path in paths]
    for number, (path, truth) in enumerate(zip(paths, masks, strict=True)):
        name, rng = path.name.split("_")[0], np.random.default_rng([6, number])
        other = masks[(number + 1) % len(masks)]
        box = ndimage.find_objects((truth | other).astype(np.int8))[0]
        for kind, prediction in (("jittered", jitter(truth[box], rng, extra=10)), ("next patient", other[box])):
            yield Case(f"{name}, {kind}", "real lesions", prediction, truth[box], UNIT)


def real_tumours(data: Path) -> Iterator[Case]:
    """Real glioma maps (labels 1 to 3) against themselves moved, eroded and with parts lost, on the box around them plus 12 voxels."""
    paths = sorted([*data.glob("brats/*/*-seg.nii.gz"), *data.glob("brats13_nc/*/*-seg.nii.gz")])
    for number, path in enumerate(paths):
        rng = np.random.default_rng([7, number])
        truth = np.asarray(nib.load(path).dataobj).astype(np.int16)
        box = ndimage.find_objects((truth > 0).astype(np.int8))[0]
        truth = np.pad(truth[box], 12)
        prediction = np.roll(truth, (1, -2, 1), (0, 1, 2))
        prediction[cloud(rng, 4, 0.15, truth.shape)] = 0
        prediction[blobs(rng, 6, (1, 4), truth.shape)] = 3
        yield Case(path.name.removesuffix("-seg.nii.gz"), "real tumours", prediction, truth, UNIT)
