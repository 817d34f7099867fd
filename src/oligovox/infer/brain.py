"""The brain in a scan of the whole head, in any contrast: a mask from a small network whose weights come with the package.

The network has never seen a person: it learned from simulated heads whose tissues had brightnesses drawn at random
(`benchmarks/train_brain_mask.py`; docs/explanation/brain-mask.md has what it reaches and where it ends).
It looks at the whole field of view on a 4 mm grid, then again at the part in which it found a brain, as wide as an image in training was.
The logits of all sequences are averaged and brought back linearly.

Source: Hoopes et al. 2022, "SynthStrip", NeuroImage 260:119474; Billot et al. 2023, "SynthSeg", Med Image Anal 86:102789: training on
    images of random contrast made from label maps.
Deviates: see the training script; the network gives logits of the mask, not distances to its surface.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from scipy import ndimage

from oligovox.errors import CheckpointError, GeometryError, ImageError, InputError
from oligovox.files import hash_file, read_json
from oligovox.networks import resenc
from oligovox.networks.compose import SegmentationNetwork
from oligovox.networks.decoder import Decoder
from oligovox.networks.heads import SegmentationHead
from oligovox.prepare.geometry import Shape, Volume, inside, ras_grid, resample_to, spacing_of

WEIGHTS = Path(__file__).parents[1] / "weights" / "brain_mask.safetensors"
"""Of the network; made by benchmarks/train_brain_mask.py."""
DESCRIPTION = WEIGHTS.with_suffix(".json")
"""What they are: hash, settings, command, seed, versions and scores."""

SPACING_MM = 4.0
"""Of the grid the network sees."""
GRID: Shape = (48, 56, 48)
"""Voxels along R, A, S that a training image had; smaller fields of view are filled up to it with 0."""
CHANNELS = ("any",)
"""One image, whatever its contrast."""
NETWORK = resenc.Settings(preset="tiny")
"""Of the encoder."""
LITRES = (0.7, 2.2)
"""Between these a mask can be that of an adult's brain with the CSF around it."""

_LOOKS = 2  # more, at the part of the grid in which a brain was found; chosen on simulated heads
_BELOW_MM = (0.0, 0.0, 15.0)  # how far the middle of a training image lay below that of its brain, on average
_NO_BRAIN = -5.0  # logit
_CUT_MM2 = 400.0  # a mask that lies on more than this of a side of the field of view is cut off there
_SIDES = {"L": "left", "R": "right", "P": "back", "A": "front", "I": "bottom", "S": "top"}
_OPPOSITE = dict(zip("LRPAIS", "RLAPSI", strict=True))

Window: TypeAlias = tuple[slice, ...]
"""A part of a grid along x, y, z, in its voxels; starts may be negative and ends beyond the last."""

_log = logging.getLogger(__name__)


def brain_mask(volumes: Mapping[str, Volume]) -> NDArray[np.bool_]:
    """Brain and the thin CSF around it, sulci closed; one 26-connected piece without holes.

    What `doubts` finds is logged as a warning.

    Args:
        volumes: name → image of the whole head, or of a brain stripped already; any contrast and orientation; aligned with each other, but on
            grids of their own. Units do not matter.

    Returns:
        (x, y, z) on the grid of the first volume. All False where no brain is found.

    Raises:
        GeometryError: no volume.
        ImageError: a volume has the same value everywhere, or NaN or infinite voxels.
        CheckpointError: the weights of the package are missing or damaged.
    """
    mask = finished(brain_logits(volumes) > 0)
    first = next(iter(volumes.values()))
    for doubt in doubts(mask, first.affine):
        _log.warning("brain mask from %s: %s; look at it before you use it", ", ".join(volumes), doubt)
    return mask


def brain_logits(volumes: Mapping[str, Volume]) -> NDArray[np.float32]:
    """Log odds of brain (x, y, z) on the grid of the first volume, mean over the sequences that see a voxel; see `brain_mask`."""
    if not volumes:
        raise GeometryError("brain mask: no volume was given, expected at least one image of the head")
    first = next(iter(volumes.values()))
    affine, shape = ras_grid(first.affine, first.shape, (SPACING_MM,) * 3)
    seen = [inside(volume, affine, shape) for volume in volumes.values()]
    images = [
        resample_to(_finite(name, volume), affine, shape, 1, smooth=True).array for name, volume in volumes.items()
    ]
    logits = _mean_logits(images, seen, tuple(slice(0, n) for n in shape))
    for _ in range(_LOOKS):
        brain = finished(logits > 0)
        if not brain.any():
            break
        logits = _mean_logits(images, seen, _window(brain))
    return np.asarray(resample_to(Volume(logits, affine), first.affine, first.shape, 1).array)


def scaled(image: NDArray[np.float32], seen: NDArray[np.bool_]) -> NDArray[np.float32]:
    """An image (x, y, z) as the network wants it: its 0.5 and 99.5 percentile in what was `seen` become 0 and 1; 0 elsewhere."""
    low, high = np.percentile(image[seen], (0.5, 99.5))
    result = ((image - low) / max(float(high - low), 1e-12)).clip(0, 1)
    return np.where(seen, result, 0).astype(np.float32)


def finished(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest 26-connected piece of a mask (x, y, z), its holes filled."""
    pieces, count = ndimage.label(mask, np.ones((3, 3, 3)))
    if count == 0:
        return np.zeros(mask.shape, dtype=np.bool_)
    largest = 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    return np.asarray(ndimage.binary_fill_holes(pieces == largest), dtype=np.bool_)


def doubts(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> tuple[str, ...]:
    """What makes a mask (x, y, z) implausible for the brain of an adult; empty where nothing does.

    Args:
        mask: of the brain.
        affine: its 4×4, voxel → mm.
    """
    size, codes = spacing_of(affine), nib.aff2axcodes(affine)
    litres = np.count_nonzero(mask) * float(np.prod(size)) / 1e6
    found = []
    if not LITRES[0] <= litres <= LITRES[1]:
        found.append(f"its volume is {litres:.2f} L, expected {LITRES[0]} to {LITRES[1]} L")
    for axis, code in enumerate(codes):
        for layer, side in ((0, _OPPOSITE[code]), (-1, code)):
            cut = np.count_nonzero(mask.take(layer, axis)) * float(np.prod(size)) / size[axis]
            if cut > _CUT_MM2:
                found.append(f"the field of view cuts it off at the {_SIDES[side]}, over {cut / 100:.0f} cm²")
    return tuple(found)


def _finite(name: str, volume: Volume) -> Volume:
    if not np.isfinite(volume.array).all() or volume.array.min() == volume.array.max():
        raise ImageError(
            Path(name), "has the same value everywhere, or NaN or infinite voxels", "expected an image of a head"
        )
    return volume


def _window(brain: NDArray[np.bool_]) -> Window:
    """The part of the grid that a training image with this brain (x, y, z) would have shown; it may reach beyond the grid."""
    middle = np.argwhere(brain).mean(0) - np.divide(_BELOW_MM, SPACING_MM)
    low = np.rint(middle - (np.array(GRID) - 1) / 2).astype(int).tolist()
    return tuple(slice(start, start + side) for start, side in zip(low, GRID, strict=True))


def _mean_logits(
    images: Sequence[NDArray[np.float32]], seen: Sequence[NDArray[np.bool_]], window: Window
) -> NDArray[np.float32]:
    """Mean over the images that see a voxel, all (x, y, z) on one 4 mm RAS grid; beside the window no brain.

    Where nothing was seen, which is a rim at most, it is what lies beside it.
    """
    total, count = np.zeros(images[0].shape, np.float32), np.zeros(images[0].shape, np.float32)
    for image, where in zip(images, seen, strict=True):
        there = _cut(where, window)
        if there.any():
            _paste(total, np.where(there, _network_says(_cut(image, window), there), 0), window)
            _paste(count, there, window)
    any_image = np.logical_or.reduce(seen)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.float32(_NO_BRAIN))
    nearest = ndimage.distance_transform_edt(~any_image, return_distances=False, return_indices=True)
    return np.asarray(mean[tuple(nearest)])


def _overlap(shape: Sequence[int], window: Window) -> tuple[Window, Window]:
    """The part of a grid that lies in a window, in voxels of the grid and of the window."""
    ends = [(max(side.start, 0), min(side.stop, n)) for side, n in zip(window, shape, strict=True)]
    grid = tuple(slice(low, max(low, high)) for low, high in ends)
    return grid, tuple(slice(g.start - w.start, g.stop - w.start) for g, w in zip(grid, window, strict=True))


def _cut(volume: NDArray[Any], window: Window) -> NDArray[Any]:
    """What a window shows of a volume (x, y, z); 0 beyond it."""
    of_grid, of_window = _overlap(volume.shape, window)
    result = np.zeros([side.stop - side.start for side in window], volume.dtype)
    result[of_window] = volume[of_grid]
    return result


def _paste(volume: NDArray[np.float32], shown: NDArray[Any], window: Window) -> None:
    """Add what a window shows to a volume (x, y, z), in place."""
    of_grid, of_window = _overlap(volume.shape, window)
    volume[of_grid] += shown[of_window]


def _network_says(image: NDArray[np.float32], seen: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Logits (x, y, z) of an image on a 4 mm RAS grid, mean over it and its mirror image; `seen` is its field of view."""
    network = brain_network()
    multiple = network.encoder.strides[-1]
    sides = [max(least, multiple * -(-n // multiple)) for n, least in zip(image.shape, GRID, strict=True)]
    before = [(n - side) // 2 for side, n in zip(sides, image.shape, strict=True)]
    wide = _cut(scaled(image, seen), tuple(slice(low, low + side) for low, side in zip(before, sides, strict=True)))
    both = torch.from_numpy(np.stack([wide, wide[::-1]]))[:, None]
    with torch.inference_mode():
        logits = network(both, torch.ones(2, 1, dtype=torch.bool))[:, 0].numpy()
    mean = (logits[0] + logits[1, ::-1]) / 2
    return np.asarray(mean[tuple(slice(-low, n - low) for low, n in zip(before, image.shape, strict=True))])


@cache
def brain_network() -> SegmentationNetwork:
    """The network with the package's weights, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: the weights of the package are missing or damaged.
    """
    encoder = resenc.ResEnc(CHANNELS, NETWORK)
    decoder = Decoder(encoder.channels, encoder.strides)
    network = SegmentationNetwork(encoder, decoder, SegmentationHead(decoder.channels[0], 1))
    try:
        if (found := hash_file(WEIGHTS)) != (said := read_json(DESCRIPTION)["sha256"]):
            raise ValueError(f"its SHA-256 is {found[:12]}…, {DESCRIPTION.name} says {said[:12]}…")
        network.load_state_dict(load_file(WEIGHTS))
    except (OSError, InputError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{WEIGHTS}: cannot be read ({error}); it comes with oligovox, install oligovox again"
        ) from error
    return network.eval()
