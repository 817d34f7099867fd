"""Brain masks of real and of simulated exams that the network of `infer/brain.py` has never seen, against the masks given with them.

    python benchmarks/brain_mask.py --data ../shared/data [--pictures FOLDER] [--quick]

Real exams measure only: nothing was trained or chosen on them. Without --quick writes brain_mask.json.
"""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from time import process_time

import numpy as np
import torch
from scipy import ndimage

from common import QUICK, machine, progress, table, versions
from oligovox.infer.brain import DESCRIPTION, brain_mask, doubts
from oligovox.metrics.overlap import dice, volume_ml
from oligovox.metrics.surface import hd95_mm
from oligovox.prepare.geometry import Volume, read_volume, resample_to, spacing_of, to_ras
from oligovox.simulate.anatomy.head import Head
from oligovox.simulate.recipe import BrainRecipe
from oligovox.simulate.subject import simulate_subject

SIMULATED = 1 if QUICK else 4  # people, 2 mm
SEQUENCES = ("T1w", "T1wGd", "T2w", "PDw", "FLAIR", "T2starw")
STRIPPED_OPENMS = ("cs07", "cs19", "lo01", "lo09", "lo20")
TUMOURS = ("BraTS-GLI-00001-000", "TCGA-DU-7294-000")
DEFACED = (("lo03", 1), ("lo03", 2), ("lo19", 1), ("lo19", 2))  # heads without a mask of their own: pictures only


def compared(mask, truth, spacing):
    return {
        "dice": round(dice(mask, truth), 4),
        "hd95_mm": round(hd95_mm(mask, truth, spacing), 2),
        "litres": round(volume_ml(mask, spacing) / 1000, 3),
        "given_litres": round(volume_ml(truth, spacing) / 1000, 3),
    }


def tissue_dice(mask, truth, flair):
    """Dice without what is darker on FLAIR than half of the middle of the brain: fluid and bone, of which masks hold more or less."""
    middle = np.median(flair[ndimage.binary_erosion(mask & truth, iterations=8)])
    kept = flair >= 0.5 * middle
    return round(dice(mask & kept, truth & kept), 4)


def timed_mask(volumes):
    begun = process_time()
    mask = brain_mask(volumes)
    return mask, round(process_time() - begun, 2)


def exam(name, volumes, truth):
    """Each sequence alone and all together, on the grid of the first. `truth` is a Volume, or None where there is none."""
    rows = []
    sets = {one: {one: volume} for one, volume in volumes.items()}
    if len(volumes) > 1:
        sets["all"] = volumes
    for which, given in sets.items():
        first = next(iter(given.values()))
        mask, seconds = timed_mask(given)
        row = {"exam": name, "sequence": which, "cpu_seconds": seconds, "doubts": list(doubts(mask, first.affine))}
        spacing = spacing_of(first.affine)
        if truth is None:
            row["litres"] = round(volume_ml(mask, spacing) / 1000, 3)
        else:
            there = resample_to(truth, first.affine, first.shape, 0).array > 0
            row |= compared(mask, there, spacing)
            if which == "FLAIR":
                row["dice_without_fluid"] = tissue_dice(mask, there, first.array)
        progress(f"{name} {which}: {row.get('dice', row.get('litres'))}")
        rows.append(row)
        if PICTURES:
            picture(f"{name}_{which}", first, mask)
    return rows


def picture(name, volume, mask):
    """Three planes through the middle of the mask and two more slices, its border in red."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ras, shown = to_ras(volume), to_ras(Volume(mask.astype(np.float32), volume.affine)).array
    at = [int(v) for v in np.argwhere(shown).mean(0)] if shown.any() else [n // 2 for n in shown.shape]
    x, y, z = spacing_of(ras.affine)
    low, high = np.percentile(ras.array, (1, 99.5))
    up, third = at[2], max(1, shown.shape[2] // 6)
    planes = [(2, max(up - third, 0), y / x), (2, up, y / x), (2, min(up + third, shown.shape[2] - 1), y / x)]
    planes += [(1, at[1], z / x), (0, at[0], z / y), (0, max(at[0] - int(25 / x), 0), z / y)]
    figure, axes = plt.subplots(1, 6, figsize=(18, 3.4))
    for axis, (along, index, aspect) in zip(axes, planes, strict=True):
        axis.imshow(ras.array.take(index, along).T, origin="lower", cmap="gray", vmin=low, vmax=high, aspect=aspect)
        if (cut := shown.take(index, along)).any():
            axis.contour(cut.T, [0.5], colors="red", linewidths=0.8)
        axis.axis("off")
    figure.suptitle(name, fontsize=8)
    figure.tight_layout(pad=0.1)
    PICTURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURES / f"{name}.png", dpi=70)
    plt.close(figure)


def images_of(folder, pattern):
    found = {
        path.name.removesuffix(".nii.gz").split("_", 1)[-1].replace("ce-gadolinium_T1w", "T1wGd"): path
        for path in sorted(folder.glob(pattern))
    }
    return {name.split("_")[-1].split("-")[-1]: read_volume(path) for name, path in found.items()}


def whole_heads(data):
    raw = data / "openms" / "sourcedata" / "sub-lo12" / "ses-1"
    given = data / "openms" / "derivatives" / "sub-lo12" / "ses-1" / "anat" / "sub-lo12_ses-1_desc-brain_mask.nii.gz"
    rows = exam("lo12 raw", images_of(raw, "*.nii.gz"), read_volume(given))
    if not QUICK:
        for person, visit in DEFACED:
            folder = data / "openms" / f"sub-{person}" / f"ses-{visit}" / "anat"
            rows += exam(f"{person} {visit}", images_of(folder, "*.nii.gz"), None)
        stroke = data / "other" / "stroke" / "sub-stroke01_T2w.nii.gz"
        rows += exam("stroke01", {"T2w": read_volume(stroke)}, None)
    return rows


def stripped(data):
    """Exams whose outside is 0 already; the truth is the mask given, or where any sequence is not 0."""
    rows = []
    for person in STRIPPED_OPENMS[: 1 if QUICK else None]:
        folder = sorted((data / "openms" / f"sub-{person}").rglob("anat"))[0]
        masks = data / "openms" / "derivatives" / folder.relative_to(data / "openms")
        rows += exam(person, images_of(folder, "*.nii.gz"), read_volume(next(masks.glob("*desc-brain_mask.nii.gz"))))
    for person in TUMOURS[: 1 if QUICK else None]:
        volumes = images_of(data / "brats" / person, f"{person}-t*.nii.gz")
        first = next(iter(volumes.values()))
        anything = np.any([volume.array != 0 for volume in volumes.values()], axis=0)
        rows += exam(person, volumes, Volume(anything.astype(np.float32), first.affine))
    return rows


def simulated():
    rows = []
    recipe = BrainRecipe(spacing=2.0, head=Head(), sequences=SEQUENCES)
    for seed in range(9001, 9001 + SIMULATED):
        person = simulate_subject(recipe, seed)
        volumes = {name: Volume(image, person.affine) for name, image in person.images.items()}
        rows += exam(f"simulated {seed}", volumes, Volume(person.brain.astype(np.float32), person.affine))
    return rows


def summary(rows):
    """Over single sequences, and over exams with all of their sequences."""
    found = {}
    for name, wanted in (("one sequence", False), ("all sequences", True)):
        values = [row["dice"] for row in rows if "dice" in row and (row["sequence"] == "all") == wanted]
        if values:
            found[name] = {"masks": len(values), "dice_mean": round(float(np.mean(values)), 4), "dice_min": min(values)}
    return found | {"cpu_seconds_max": max(row["cpu_seconds"] for row in rows)}


def main():
    torch.set_num_threads(1)
    groups = {"simulated": simulated(), "whole heads": whole_heads(DATA), "stripped": stripped(DATA)}
    for name, rows in groups.items():
        print(f"\n{name}")
        keys = ("exam", "sequence", "dice", "hd95_mm", "litres", "given_litres", "cpu_seconds", "doubts")
        table(keys, [[row.get(key, "") for key in keys] for row in rows])
    if QUICK:
        return
    content = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/brain_mask.py --data ../shared/data",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "weights": json.loads(DESCRIPTION.read_text(encoding="utf-8"))["sha256"],
        "versions": versions(),
        "machine": machine(),
        "summary": {name: summary(rows) for name, rows in groups.items()},
        "results": groups,
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(content["summary"], indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    DATA, PICTURES = given.data, given.pictures
    main()
