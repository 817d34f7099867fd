"""The BraTS protocols on one large case, against the challenge's own script and against panoptica: CPU seconds on one core.

The case: 240 × 240 × 155 voxels, 50 lesions of three tissues; the prediction is shifted by one voxel, misses four lesions and adds four.

* Challenge: `get_LesionWiseResults` of 2023, from two NIfTI files to the table of WT, TC and ET; ours reads the same files.
* panoptica: components, matching by overlap, Dice and HD95 of each lesion of one region, arrays in memory. Ours does more on the same
  masks: the region as a whole as well, and one row a lesion.

The 2024 script of the challenge dilates the whole volume twice for each pair of lesions of two tissues: hours for this case, so
only ours is timed there.

Run it where panoptica, pandas and connected-components-3d are installed, with the path of a checkout of BraTS-2023-Metrics
(https://github.com/rachitsaluja/BraTS-2023-Metrics); its script is run as it is, with the names that newer versions of numpy, scipy and
pandas dropped put back:

    OMP_NUM_THREADS=1 python benchmarks/metrics_speed.py --challenge path/to/BraTS-2023-Metrics
"""

import importlib.util
import math
import sys
import tempfile
import types
from pathlib import Path
from statistics import median

import nibabel as nib
import numpy as np
import pandas as pd
from panoptica import (
    ConnectedComponentsInstanceApproximator,
    InputType,
    Metric,
    NaiveThresholdMatching,
    disable_citation_reminder,
)
from panoptica import Panoptica_Evaluator as Evaluator
from scipy import ndimage

from common import QUICK, alternate, headline, progress, ratio, spread, table, write
from oligovox.metrics.protocols import brats2023, brats2024

SHAPE = (90, 90, 60) if QUICK else (240, 240, 155)
COUNTS = (2, 2, 1) if QUICK else (5, 5, 2)  # lesions along each axis
ROUNDS, CHALLENGE_ROUNDS = 9, 1  # the script takes minutes
SPACING = (1.0, 1.0, 1.0)


def ball(radius, rng):
    """A rough ball of ET around NCR, inside ED."""
    width = math.ceil(radius) + 3
    grid = np.indices((2 * width + 1,) * 3) - width
    distance = np.sqrt((grid**2).sum(axis=0)) + ndimage.gaussian_filter(rng.normal(0, 3, grid.shape[1:]), 1.5)
    return np.select([distance <= 0.35 * radius, distance <= 0.65 * radius, distance <= radius], [1, 3, 2], 0).astype(
        np.uint8
    )


def write_lesion(volume, centre, lesion):
    width = lesion.shape[0] // 2
    view = volume[tuple(slice(c - width, c + width + 1) for c in centre)]
    np.maximum(view, lesion, out=view)


def case(rng):
    """Prediction and reference."""
    step = [side // count for side, count in zip(SHAPE, COUNTS, strict=True)]
    cells = [[int((i + 0.5) * s) for i, s in zip(index, step, strict=True)] for index in np.ndindex(*COUNTS)]
    truth, prediction = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    for number, centre in enumerate(cells):
        lesion = ball(16 if number == 0 else rng.uniform(2.5, 8), rng)
        write_lesion(truth, centre, lesion)
        if number % 13 != 12:
            write_lesion(
                prediction, [c + int(shift) for c, shift in zip(centre, rng.integers(-1, 2, 3), strict=True)], lesion
            )
    for centre in [cell for cell in cells if cell[0] == cells[0][0]][1:5]:  # between two cells: false
        write_lesion(prediction, [centre[0] + step[0] // 2, *centre[1:]], ball(3, rng))
    return prediction, truth


def challenge_script(folder):
    """The script of the challenge as a module; puts back what newer libraries dropped."""
    for name, value in (("Inf", np.inf), ("NaN", np.nan)):
        setattr(np, name, value)
    ndimage.filters = types.SimpleNamespace(correlate=ndimage.correlate)
    ndimage.morphology = types.SimpleNamespace(distance_transform_edt=ndimage.distance_transform_edt)
    pd.DataFrame.append = lambda self, other: pd.concat([self, other], ignore_index=True)
    original = pd.DataFrame.replace

    def replace(self, old, new, inplace=False):  # cells that hold arrays are left alone
        plain = [column for column in self if not self[column].map(lambda cell: isinstance(cell, np.ndarray)).any()]
        replaced = self if inplace else self.copy()
        for column in plain:
            replaced[column] = original(self[[column]], old, new)[column]
        return None if inplace else replaced

    pd.DataFrame.replace = replace
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location("challenge", folder / "metrics.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def against_challenge(prediction, truth, folder, tmp):
    files = {}
    for name, labels in (("prediction", prediction), ("truth", truth)):
        files[name] = str(tmp / f"{name}.nii")
        nib.save(nib.Nifti1Image(labels, np.eye(4)), files[name])
    script, found = challenge_script(folder), {}

    def ours():
        labels = [np.asarray(nib.load(files[name]).dataobj) for name in ("prediction", "truth")]
        found["ours"] = brats2023.score(*labels, SPACING).regions

    def theirs():
        progress("challenge's script")
        found["theirs"] = script.get_LesionWiseResults(files["prediction"], files["truth"], "BraTS-GLI").set_index(
            "Labels"
        )

    times = alternate({"ours": ours, "challenge": theirs}, CHALLENGE_ROUNDS, warm=0)
    names = {
        "LesionWise_Score_Dice": "lesionwise_dice",
        "LesionWise_Score_HD95": "lesionwise_hd95_mm",
        "Legacy_HD95": "hd95_mm",
    }
    off = max(
        abs(float(found["theirs"].loc[region, their]) - row[own])
        for region, row in found["ours"].items()
        for their, own in names.items()
    )
    return times, off


def against_panoptica(prediction, truth):
    masks = [(labels > 0).astype(np.uint8) for labels in (prediction, truth)]
    evaluator = Evaluator(
        expected_input=InputType.SEMANTIC,
        instance_approximator=ConnectedComponentsInstanceApproximator(),
        instance_matcher=NaiveThresholdMatching(matching_threshold=1e-6),
        instance_metrics=[Metric.DSC, Metric.HD95],
        global_metrics=[],
    )
    of_edema = [mask * np.uint8(2) for mask in masks]  # the whole tumour and no other region
    return alternate(
        {
            "ours": lambda: brats2023.score(*of_edema, SPACING),
            "panoptica": lambda: evaluator.evaluate(*masks, verbose=False),
        },
        ROUNDS,
    )


def main():
    disable_citation_reminder()
    folder = Path(sys.argv[sys.argv.index("--challenge") + 1]).resolve()
    prediction, truth = case(np.random.default_rng(4))
    lesions = ndimage.label(truth > 0)[1]
    whole = alternate(
        {
            "2023": lambda: brats2023.score(prediction, truth, SPACING),
            "2024": lambda: brats2024.score(prediction, truth, SPACING),
        },
        ROUNDS,
    )
    one = against_panoptica(prediction, truth)
    with tempfile.TemporaryDirectory() as tmp:
        script, off = against_challenge(prediction, truth, folder, Path(tmp))
    rows = [
        *((f"BraTS {year}, ours", times["cpu"]) for year, times in whole.items()),
        *((f"2023 from files, {arm}", times["cpu"]) for arm, times in script.items()),
        *((f"one region, {arm}", times["cpu"]) for arm, times in one.items()),
    ]
    table(("what", "median CPU s", "lowest", "highest"), [(name, *spread(cpu).values()) for name, cpu in rows])
    faster = {
        "challenge": ratio(script["challenge"]["cpu"], script["ours"]["cpu"]),
        "panoptica": ratio(one["panoptica"]["cpu"], one["ours"]["cpu"]),
    }
    seconds = {year: median(times["cpu"]) for year, times in whole.items()}
    write(
        __file__,
        clock="CPU seconds (time.process_time) of the arms in turn, one process, one thread",
        settings={"shape": SHAPE, "lesions": lesions, "rounds": ROUNDS, "challenge_rounds": CHALLENGE_ROUNDS},
        raw={"protocol": whole, "files": script, "one_region": one},
        results={"times_faster": faster, "largest_difference_to_challenge": off},
        headlines=[
            *(headline(f"BraTS {year}, {lesions} lesions", f"{s:.2f} s", "≤ 1 s", s <= 1) for year, s in seconds.items()),
            headline("faster than the challenge's 2023 script", f"{faster['challenge']['ratio']:.0f} ×", "≥ 5 ×", faster["challenge"]["ratio"] >= 5),
            headline("faster than panoptica (Dice, HD95)", f"{faster['panoptica']['ratio']:.1f} ×", "≥ 1.5 ×", faster["panoptica"]["ratio"] >= 1.5),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
