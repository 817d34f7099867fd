"""How fast random patches are read: our store against NIfTI files, with a bare slice of a memory-mapped array as the floor.

The same corners for every arm, one thread, the allocator set as in training. `store` gives a finished Batch: float32 image, label and foreground; the other arms read the image only.
Files are in the page cache: this is the cost of decoding and copying, not of a disk.
"""

import tempfile
from pathlib import Path
from statistics import median

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage

from common import alternate, headline, progress, ratio, table, write
from oligovox.engine.runtime import tune_allocator
from oligovox.prepare.geometry import Placement
from oligovox.prepare.store import Plan, StoredCase, some_voxels
from oligovox.sample.patches import PatchSource, Stream

SHAPE, MODALITIES, CASES = (182, 218, 182), ("T1w", "T1wGd", "T2w", "FLAIR"), 2
SIDES, ROUNDS = (64, 96), 5
PATCHES = {"store": 16, "npy float16": 16, "npy float32": 16, "nii.gz sliced": 1, "nii.gz whole": 1}  # a round


def smooth(rng):
    """A random smooth volume; 0 outside an ellipsoid that fills 30 % of it."""
    coarse = rng.standard_normal([side // 14 + 1 for side in SHAPE])
    field = ndimage.zoom(coarse, [side / small for side, small in zip(SHAPE, coarse.shape, strict=True)], order=1)
    return field + 0.1 * rng.standard_normal(SHAPE)


def ellipsoid():
    axes = np.meshgrid(*[np.linspace(-1, 1, side) for side in SHAPE], indexing="ij", sparse=True)
    return sum((axis / 0.83) ** 2 for axis in axes) < 1


def write_case(folder, seed):
    folder.mkdir()
    rng, inside = np.random.default_rng(seed), ellipsoid()
    image = np.stack([np.where(inside, smooth(rng), 0) for _ in MODALITIES]).astype(np.float32)
    arrays = {"image": image.astype(np.float16), "float32": image, "foreground": inside,
              "label": (inside & (image[0] > 2)).astype(np.int8), "foreground_voxels": some_voxels(inside, rng)}  # fmt: skip
    arrays["lesion_voxels"] = some_voxels(arrays["label"] > 0, rng)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    for name, channel in zip(MODALITIES, image, strict=True):
        raw = np.where(inside, 1000 + 200 * channel, 0).clip(0, 4000).astype(np.int16)
        nib.save(nib.Nifti1Image(raw, np.eye(4)), folder / f"{name}.nii.gz")
    return StoredCase(
        folder=folder,
        name=folder.name,
        person=folder.name,
        dataset="",
        present=(True,) * len(MODALITIES),
        shape=SHAPE,
        spacing=(1.0, 1.0, 1.0),
        labelled=True,
        lesion_voxels=int(arrays["label"].sum()),
        placement=Placement(SHAPE, np.eye(4), SHAPE, np.eye(4)),
        sources={},
    )


def sliced(cut, side, name):
    array = np.load(cut.case.folder / f"{name}.npy", mmap_mode="r")
    return torch.from_numpy(np.array(array[(slice(None), *box(cut, side))])).float()


def box(cut, side):
    return tuple(slice(corner, corner + side) for corner in cut.corner)


def nifti_whole(cut, side):
    volumes = [nib.load(cut.case.folder / f"{name}.nii.gz").get_fdata(dtype=np.float32) for name in MODALITIES]
    return torch.from_numpy(np.stack([volume[box(cut, side)] for volume in volumes]))


def nifti_sliced(cut, side):
    parts = [nib.load(cut.case.folder / f"{name}.nii.gz").dataobj[box(cut, side)] for name in MODALITIES]
    return torch.from_numpy(np.stack(parts).astype(np.float32))


def arms(source, side):
    """Arm → a function that reads that arm's patches of one round; every round goes on where the last stopped."""
    read = {
        "store": lambda step: source.batch(step, 0),
        "npy float16": lambda step: sliced(source.draw(step, 0, 0), side, "image"),
        "npy float32": lambda step: sliced(source.draw(step, 0, 0), side, "float32"),
        "nii.gz sliced": lambda step: nifti_sliced(source.draw(step, 0, 0), side),
        "nii.gz whole": lambda step: nifti_whole(source.draw(step, 0, 0), side),
    }
    counters = dict.fromkeys(read, 0)

    def several(arm):
        for _ in range(PATCHES[arm]):
            read[arm](counters[arm])
            counters[arm] += 1

    return {arm: (lambda arm=arm: several(arm)) for arm in read}


def main():
    torch.set_num_threads(1)
    tune_allocator()  # as in training
    raw, results, rows, lines = {}, {}, [], []
    with tempfile.TemporaryDirectory() as folder:
        cases = tuple(write_case(Path(folder) / f"case{number}", number) for number in range(CASES))
        progress("volumes written")
        for side in SIDES:
            source = PatchSource(Plan(modalities=MODALITIES), [Stream(cases, 1)], (side,) * 3, seed=0)
            times = alternate(arms(source, side), ROUNDS)
            progress(f"{side}³ read")
            each = {arm: [t / PATCHES[arm] for t in clocks["cpu"]] for arm, clocks in times.items()}
            raw[f"{side}³"] = times
            rates = {arm: round(1 / median(seconds), 1) for arm, seconds in each.items()}
            gains = {arm: ratio(each[arm], each["store"]) for arm in each if arm != "store"}
            results[f"{side}³"] = {"patches_per_second": rates, "seconds_over_store": gains}
            rows += [
                [f"{side}³", arm, rates[arm], f"{gains[arm]['ratio']:.2f}" if arm in gains else "1"] for arm in each
            ]
            value = "{:.0f} patches/s".format(rates["store"]) + "".join(
                f"; {gains[arm]['ratio']:.3g} × {name} ({gains[arm]['low']:.3g} … {gains[arm]['high']:.3g})"
                for arm, name in (("nii.gz whole", "whole nii.gz"), ("nii.gz sliced", "sliced nii.gz"), ("npy float16", "a bare float16 slice"))
            )  # fmt: skip
            lines.append(headline(f"patches of {side}³ × 4 from the store", value))
    table(["patch", "arm", "patches/s", "time / store's"], rows)
    settings = {"volumes": SHAPE, "modalities": len(MODALITIES), "cases": CASES, "patches_in_a_round": PATCHES,
                "rounds": ROUNDS, "threads": 1, "page_cache": "warm"}  # fmt: skip
    clock = "cpu of one thread; ratio of the medians over rounds, lowest and highest round"
    write(__file__, clock=clock, settings=settings, raw=raw, results=results, headlines=lines)


if __name__ == "__main__":
    main()
