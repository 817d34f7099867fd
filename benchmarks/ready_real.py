"""Registration of a real raw exam against the transforms of its authors: millimetres, degrees, seconds.

    python benchmarks/ready_real.py --data FOLDER

FOLDER is the open MS data as BIDS (sourcedata/ raw, the analysis-ready exam beside it). The supplied T1w and T2w were resampled to the FLAIR by
transforms that are not there any more; they are found again by fitting the raw image to the supplied one (same contrast, so the fit is exact
but for rounding), robustly, in the brain.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from common import machine, versions
from oligovox.experiment import ready
from oligovox.prepare.geometry import read_volume
from oligovox.prepare.ready_files import record_of
from oligovox.prepare.registration import farthest, shift_and_turn

EXAM = "sub-lo12_ses-1"
RAW = {"FLAIR": "FLAIR", "T1w": "T1W", "T2w": "T2W"}
VOXELS = 20_000


def supplied(raw, ready_image, brain):
    """4×4, raw RAS mm → FLAIR RAS mm, that made `ready_image` of `raw`; and what is left of the difference, in standard deviations."""
    inside = np.argwhere(ndimage.binary_erosion(brain.array > 0, iterations=3))
    inside = inside[np.random.default_rng(0).choice(len(inside), VOXELS, replace=False)]
    places = brain.affine @ np.c_[inside, np.ones(len(inside))].T
    middle, wanted = places[:3].mean(1), ready_image.array[tuple(inside.T)]
    spline, to_voxel = ndimage.spline_filter(raw.array, 3, mode="nearest"), np.linalg.inv(raw.affine)

    def backwards(six):
        matrix = np.eye(4)
        matrix[:3, :3] = Rotation.from_rotvec(six[:3]).as_matrix()
        matrix[:3, 3] = middle - matrix[:3, :3] @ middle + six[3:]
        return matrix

    def left(six):
        voxels = (to_voxel @ backwards(six) @ places)[:3]
        found = ndimage.map_coordinates(spline, voxels, order=3, prefilter=False, mode="nearest")
        return (found - wanted) / wanted.std()

    fit = least_squares(left, np.zeros(6), x_scale=[0.01] * 3 + [1.0] * 3, loss="soft_l1")
    return np.linalg.inv(backwards(fit.x)), float(np.sqrt(np.mean(left(fit.x) ** 2)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the open MS data as BIDS")
    data = parser.parse_args().data
    anat, masks = data / "sub-lo12/ses-1/anat", data / "derivatives"
    brain = read_volume(masks / "sub-lo12/ses-1/anat" / f"{EXAM}_desc-brain_mask.nii.gz")
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        (raw / "sub-lo12/ses-1/anat").mkdir(parents=True)
        for name, file in RAW.items():
            source = (data / "sourcedata/sub-lo12/ses-1" / f"{EXAM}_raw_{file}.nii.gz").resolve()
            (raw / "sub-lo12/ses-1/anat" / f"{EXAM}_{name}.nii.gz").symlink_to(source)
        wall, cpu = time.perf_counter(), time.process_time()
        ready(raw, Path(folder) / "out", changes=[f"derivatives={masks.resolve()}"], workers=1)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        record = record_of(Path(folder) / "out/sub-lo12/ses-1")
        results = {
            "seconds_wall": round(wall, 1),
            "seconds_cpu": round(cpu, 1),
            "brain_mL": round(record["brain"]["mL"], 1),
        }
        steps = {step["sequence"]: step for step in record["steps"] if step["step"] == "register"}
        for name in ("T1w", "T2w"):
            about = record["sequences"][name]
            theirs, rest = supplied(
                read_volume(Path(about["source"])), read_volume(anat / f"{EXAM}_{name}.nii.gz"), brain
            )
            ours = np.array(about["matrix"])
            shift, turn = shift_and_turn(np.linalg.inv(theirs) @ ours, brain.affine, brain.shape)
            moved, turned = shift_and_turn(theirs, brain.affine, brain.shape)
            results[name] = {
                "supplied_moved_mm": moved, "supplied_turned_deg": turned, "fit_rest_sd": rest,
                "apart_mm": shift, "apart_deg": turn, "apart_corner_mm": farthest(theirs, ours, brain.affine, brain.shape),
                "information_before": steps[name]["information_before"], "information_after": steps[name]["information_after"],
                "within_1mm_1deg": shift < 1 and turn < 1,
            }  # fmt: skip
    content = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/ready_real.py --data DATA/openms",
        "versions": versions(),
        "machine": machine(),
        "results": results,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
