"""Where are labels really what is missing? Scratch training under one factor at a time → study_grounds.json beside this file.

    OMP_NUM_THREADS=1 python benchmarks/study_grounds.py --out FOLDER [CONDITION …]

Each condition is a label-budget study with one network from scratch and a FLAIR threshold: what do 1, 2, 4, 8 labels reach, and how much of
the way to 8 is left at the first ones? All people are for development: their seeds (900 and up) are in no ground. Plan, results, reading:
study_grounds.md. Start it again to resume: finished runs are kept.
"""

import argparse
import json
import os
import platform
import shlex
import time
from collections.abc import Mapping
from pathlib import Path

import yaml

from oligovox.experiment import budget
from oligovox.experiment.recipe import overlaid
from oligovox.metrics.paired import mean_over_draws

RESULT = Path(__file__).with_suffix(".json")
QUIET = dict.fromkeys(("caps", "dirty", "age_related", "perivascular", "arteries"), 0)
THREE = ["T1w", "T2w", "FLAIR"]


def people(subjects, seed, preset="ms-3t", *, mask="lesion", **recipe):
    """A simulated cohort, at 2 mm where it is not said."""
    simulated = {"subjects": subjects, "seed": seed, "preset": preset, "recipe": {"spacing": 2.0, **recipe}}
    return {"simulate": simulated, "mask": mask, "labels": {"lesion": 1} if mask == "rater1" else None}


def study(clinic, exams, *, draws=None, **changes):
    """Labels are drawn from the people of `clinic`, twelve of `exams` are tested."""
    base = {
        "name": "development",
        "cohorts": {"clinic": clinic, "exams": exams},
        "prepare": {"modalities": THREE, "spacing": [2, 2, 2]},
        "split": {"test": 12, "validation": 0, "labels": ["clinic"]},
        "network": {"settings": {"preset": "tiny"}},
        "draws": draws or {1: 3, 2: 1, 4: 1, 8: 1},
        "lr": [9e-3],
        "finetune": {
            "patch": [32, 32, 32],
            "training": {"steps": 400, "threads": 1, "channels_last": True, "tensorboard": "off"},
        },
        "arms": {"scratch": {"start": "scratch"}, "threshold": {"classical": "flair_threshold"}},
    }
    return overlaid(base, changes)


ONE = {"acquisition": {"sites": 1}}
EASY = {**ONE, "confounders": QUIET}
MANY = {"fields": [3.0, 1.5], "acquisition": {"sites": 12, "timing": 0.15, "bias": [0.03, 0.3]}}
FAINT = {"lesions": {"load_ml": [0.3, 8.0], "severity": [0.05, 0.35]}}
RIMMED = {"rims": {"people": 1.0, "share": [0.15, 0.5]}, "lesions": {"load_ml": [3.0, 40.0]}, "spacing": 1.5}
UNEVEN = {"raters": {"raters": 1, "bias_mm": [-0.8, 1.2], "half_seen_mm3": [10.0, 60.0], "false_lesions": 6.0}}

CONDITIONS = {
    "easy": study(people(10, 910, **EASY), people(13, 911, **EASY)),
    "sites": study(people(10, 910, **EASY), people(13, 911, **MANY, confounders=QUIET)),
    "confounders": study(people(10, 910, **ONE), people(13, 911, **ONE)),
    "faint": study(people(10, 910, **EASY, **FAINT), people(13, 911, **EASY, **FAINT)),
    "raters": study(people(10, 910, **EASY, **UNEVEN, mask="rater1"), people(13, 911, **EASY)),
    "missing": study(people(10, 910, **EASY), people(13, 911, **EASY, missing=0.3)),
    "all": study(
        people(10, 910, **ONE, **FAINT, **UNEVEN, mask="rater1"), people(13, 911, **MANY, **FAINT, missing=0.3)
    ),
    "larger network": study(
        people(10, 910, **EASY),
        people(13, 911, **EASY),
        draws=1,
        counts=[1, 8],
        network={"settings": {"preset": "S", "stem_stride": 2}},
        finetune={"patch": [64, 64, 64]},  # what five halvings after a stem of stride 2 need
    ),
    "7 T": study(people(10, 920, "ms-7t"), people(13, 921, "ms-7t")),
    "glioma": study(
        people(10, 930, "glioma-2023", mask="tumour", acquisition={"sites": 1}),
        people(13, 931, "glioma-2023", mask="tumour"),
        prepare={"modalities": ["T1w", "T1wGd", "T2w", "FLAIR"], "spacing": [2, 2, 2]},
        finetune={"settings": {"labels": {"NCR": 1, "ED": 2, "ET": 3}}},
        metric="dice",
    ),
    "chaos": study(
        {"simulate": {"subjects": 10, "seed": 940, "preset": "chaos"}, "mask": "organs"},
        {
            "simulate": {"subjects": 13, "seed": 941, "preset": "chaos", "recipe": {"acquisition": {"sites": 6}}},
            "mask": "organs",
        },
        prepare={"modalities": ["T1in", "T1out", "T2spir"], "spacing": [3, 3, 3]},
    ),
}
del CONDITIONS["chaos"]["arms"]["threshold"]  # an abdomen has no FLAIR
CONDITIONS["chaos, no flips"] = overlaid(CONDITIONS["chaos"], {"finetune": {"augmentation": {"flip": 0.0}}})
CONDITIONS["rims"] = study(
    people(10, 950, "rim", mask="rims", **RIMMED),
    people(13, 951, "rim", mask="rims", **RIMMED),
    prepare={"modalities": ["QSM", "FLAIR", "T1w"], "spacing": [1.5, 1.5, 1.5]},
    finetune={"settings": {"labels": {"lesion": 1, "rim": 2}}},
)
LONGER = {"finetune": {"training": {"steps": 1200}}, "draws": {1: 2, 2: 1, 4: 1, 8: 1}}
CONDITIONS["chaos, 1200 steps"] = overlaid(CONDITIONS["chaos, no flips"], LONGER)
CONDITIONS["rims, 1200 steps"] = overlaid(CONDITIONS["rims"], LONGER)


def run(name, out):
    """Do a condition; its scores as label count → draw → person → Dice, and the threshold's."""
    folder, file = out / name.replace(" ", "_").replace(",", ""), out / f"{name.replace(' ', '_')}.yaml"
    file.write_text(yaml.safe_dump(CONDITIONS[name], sort_keys=False))
    begun = time.time()
    budget(file, folder, workers=2)
    found = {}
    for path in sorted((folder / "runs").glob("*/*/scores.json")):
        row = json.loads(path.read_text())
        scores = {person: {k: v for k, v in m.items() if k.endswith("dice")} for person, m in row["scores"].items()}
        found.setdefault(row["arm"], {}).setdefault(str(row["count"]), {})[str(row["draw"])] = scores
    return {"scores": found, "mean": means(found), "seconds": round(time.time() - begun)}


def means(found: Mapping):
    """Arm → metric → labels → mean with its interval over draws and people."""
    result = {}
    for arm, counts in found.items():
        metrics = sorted({m for draws in counts.values() for s in draws.values() for row in s.values() for m in row})
        for metric in metrics:
            for count, draws in counts.items():
                defined = {
                    draw: {p: row[metric] for p, row in scores.items() if row[metric] is not None}
                    for draw, scores in draws.items()
                }
                if all(defined.values()):
                    result.setdefault(arm, {}).setdefault(metric, {})[count] = mean_over_draws(defined, seed=0).as_row()
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conditions", nargs="*", default=list(CONDITIONS), help=", ".join(CONDITIONS))
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    result = json.loads(RESULT.read_text()) if RESULT.is_file() else {"conditions": {}}
    for name in chosen.conditions:
        result["conditions"][name] = {"study": CONDITIONS[name], **run(name, chosen.out)}
        result["command"] = f"python {shlex.join(['benchmarks/study_grounds.py', *chosen.conditions])} --out FOLDER"
        result["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        for arm, metrics in result["conditions"][name]["mean"].items():
            print(name, arm, {n: round(row["mean"], 3) for n, row in metrics["dice"].items()}, flush=True)


if __name__ == "__main__":
    main()
