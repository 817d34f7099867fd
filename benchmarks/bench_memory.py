"""Peak memory of each verb on one large case: 240 × 240 × 155 voxels of 1 mm, four sequences, brain mask and label.

Every verb runs as a process of its own, as a user starts it. `largest process` is the kernel's own maximum of the resident set
(ru_maxrss); `all processes` is the highest sum over the process and its workers, sampled every 100 ms, with shared pages counted once (Pss).
The case is made of smooth random fields. `report` draws the page of a run on two such cases.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from common import QUICK, headline, progress, table, write

SHAPE = (96, 96, 62) if QUICK else (240, 240, 155)
PATCH, STEPS = 32 if QUICK else 96, 3
SEQUENCES = {"T1w": "T1w", "T1wGd": "ce-gadolinium_T1w", "T2w": "T2w", "FLAIR": "FLAIR"}
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
RECIPE = """
name: report
cohorts: {{one: {{bids: {bids}}}}}
prepare: {{modalities: [T1w, T1wGd, T2w, FLAIR], spacing: [3, 3, 3]}}
split: {{test: 1, validation: 0, labels: 1}}
pretrain: null
finetune: {{patch: [32, 32, 32], training: {{steps: 2}}}}
arms: {{scratch: {{start: scratch}}}}
"""


def volumes():
    """Name → array: four sequences with three tissues and smooth shading, a brain mask, a label."""
    rng = np.random.default_rng(0)

    def smooth():
        coarse = rng.standard_normal([side // 12 + 1 for side in SHAPE])
        return ndimage.zoom(coarse, [side / small for side, small in zip(SHAPE, coarse.shape, strict=True)], order=1)

    axes = np.meshgrid(*[np.linspace(-1, 1, side) for side in SHAPE], indexing="ij", sparse=True)
    brain = (axes[0] / 0.6) ** 2 + (axes[1] / 0.75) ** 2 + (axes[2] / 0.85) ** 2 < 1
    tissue = np.digitize(smooth(), (-0.4, 0.4))
    lesion = brain & (smooth() > 1.6)
    found = {"desc-brain_mask": brain.astype(np.uint8), "label-lesion_mask": lesion.astype(np.uint8)}
    for name in SEQUENCES.values():
        levels = rng.permutation([300.0, 500.0, 700.0])
        image = levels[tissue] * (1 + 0.1 * smooth()) + 250 * lesion + rng.normal(0, 20, SHAPE)
        found[name] = np.where(brain, image, 0).clip(0).astype(np.int16)
    return found


def write_bids(root, subjects):
    made = volumes()
    for subject in subjects:
        for name, array in made.items():
            home = root / "derivatives" / "manual" if name.endswith("mask") else root
            path = home / subject / "anat" / f"{subject}_{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, AFFINE), path)
    for home in (root, root / "derivatives" / "manual"):
        (home / "dataset_description.json").write_text('{"Name": "benchmark", "BIDSVersion": "1.10.0"}')


def tree(root):
    """Process numbers of a process and its descendants."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def proportional_kib(pid):
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0


def peak(command):
    """Run it; MiB of its largest process, MiB of all of them, most processes at once, wall seconds."""
    begun, together, most = time.perf_counter(), 0, 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while True:
        done, status, usage = os.wait4(process.pid, os.WNOHANG)
        if done:
            break
        processes = tree(process.pid)
        together, most = max(together, sum(map(proportional_kib, processes))), max(most, len(processes))
        time.sleep(0.1)
    process.returncode = os.waitstatus_to_exitcode(status)
    errors = process.stderr.read().decode()
    process.stderr.close()
    if process.returncode:
        raise SystemExit(f"bench_memory: {command} failed\n{errors}")
    return {
        "largest_process_mib": round(usage.ru_maxrss / 1024),
        "all_processes_mib": round(together / 1024),
        "processes": most,
        "seconds": round(time.perf_counter() - begun, 1),
    }


def verbs(folder):
    """Name → its command, in an order in which each finds what it needs."""
    oligovox = [sys.executable, "-m", "oligovox"]
    bids, store, scores = folder / "bids", folder / "store", folder / "scores"
    pre, fine, predicted = folder / "pretrained", folder / "finetuned", folder / "predicted"
    patch = ["--set", f"patch=[{PATCH},{PATCH},{PATCH}]", "--steps", STEPS]
    simulate = [*oligovox, "simulate", "ms-3t", folder / "simulated", "--subjects", 1]
    return {
        "import": [sys.executable, "-c", "import oligovox.experiment, lightning_fabric, monai.inferers.utils"],
        "simulate": [*simulate, *(["--set", "spacing=3"] if QUICK else [])],
        "prepare": [*oligovox, "prepare", bids, store],
        "pretrain": [*oligovox, "pretrain", store, "--out", pre, *patch],
        "finetune": [*oligovox, "finetune", store, "--out", fine, "--from", pre, *patch],
        "predict": [*oligovox, "predict", fine, store, predicted],
        "evaluate": [*oligovox, "evaluate", predicted, bids, "--out", scores],
        "report": [*oligovox, "report", folder / "run"],
    }


def main():
    if not Path("/proc/self/smaps_rollup").exists():
        print("bench_memory: skipped, it reads /proc of Linux\n")
        return
    results, rows, lines = {}, [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_bids(folder / "bids", ["sub-01"])
        write_bids(folder / "two", ["sub-01", "sub-02"])
        progress("cases written")
        recipe = folder / "recipe.yaml"
        recipe.write_text(RECIPE.format(bids=folder / "two"))
        peak([sys.executable, "-m", "oligovox", "run", str(recipe), "--out", str(folder / "run")])
        progress("a run for the report is done")
        for verb, command in verbs(folder).items():
            results[verb] = found = peak(list(map(str, command)))
            progress(f"{verb}, {found['seconds']} s")
            rows.append([verb, *found.values()])
            value = f"{found['largest_process_mib'] / 1024:.1f} GiB"
            if found["processes"] > 1:
                value += f" in one process, {found['all_processes_mib'] / 1024:.1f} GiB in all {found['processes']}"
            lines.append(headline(f"peak memory of {verb}", value))
    table(["verb", "largest process, MiB", "all processes, MiB", "processes", "s"], rows)
    settings = {"volume": SHAPE, "sequences": list(SEQUENCES), "network": "resenc tiny", "patch": PATCH, "batch": 2,
                "steps": STEPS, "simulate": "one subject, 1 mm"}  # fmt: skip
    clock = "seconds are wall, with the start of Python and its imports; memory was measured once"
    write(__file__, clock=clock, settings=settings, raw={}, results=results, headlines=lines)


if __name__ == "__main__":
    main()
