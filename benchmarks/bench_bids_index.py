"""How long a BIDS folder of 10,000 exams takes to be looked at and read, and how much memory; files are empty, as only names are read.

    python benchmarks/bench_bids_index.py [EXAMS]

Writes bench_bids_index.json beside itself.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from oligovox.cohort.layouts import detect, read

EXAMS = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
SEQUENCES = ("T1w", "ce-gadolinium_T1w", "T2w", "FLAIR")


def build(root: Path) -> int:
    """5,000 people seen twice, four sequences with a sidecar each, every second exam labelled; returns the number of files."""
    files = 0
    for exam in range(EXAMS):
        person, visit = f"sub-{exam // 2:05d}", f"ses-{exam % 2 + 1}"
        folders = {root / person / visit / "anat", root / "derivatives" / "manual" / person / visit / "anat"}
        for folder in folders:
            folder.mkdir(parents=True)
        anat, derived = sorted(folders, key=lambda folder: "derivatives" in folder.parts)
        names = [anat / f"{person}_{visit}_{name}{end}" for name in SEQUENCES for end in (".nii.gz", ".json")]
        names.append(derived / f"{person}_{visit}_desc-brain_mask.nii.gz")
        if exam % 2:
            names.append(derived / f"{person}_{visit}_label-lesion_mask.nii.gz")
        for name in names:
            name.touch()
        files += len(names)
    rows = "".join(f"sub-{n:05d}\t{20 + n % 60}\n" for n in range(EXAMS // 2))
    (root / "participants.tsv").write_text("participant_id\tage\n" + rows)
    return files


def main() -> None:
    """Build, look, read."""
    with tempfile.TemporaryDirectory() as home:
        root = Path(home) / "bids"
        files = build(root)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began, cpu = time.perf_counter(), time.process_time()
        layout = detect(root).layout
        looked = time.perf_counter() - began
        cohort = read(root)
        result = {
            "exams": len(cohort),
            "files": files,
            "layout": layout,
            "labelled": len(cohort.labelled),
            "look_s": round(looked, 2),
            "look_and_read_s": round(time.perf_counter() - began, 2),
            "cpu_s": round(time.process_time() - cpu, 2),
            "peak_MiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "before_MiB": round(before / 1024),
        }
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
