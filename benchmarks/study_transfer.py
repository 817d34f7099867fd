"""What makes a pre-trained start worth something? Rates, norms, lengths, one by one → study_transfer.json beside this file.

    OMP_NUM_THREADS=1 python benchmarks/study_transfer.py --out FOLDER [--draws 3] [--workers 2] [--arms NAME …]

The ground is that of `ms` version 2, size cpu, with other people: their seeds (960 and up) are in no ground, so that all of this is development.
Plan, results, reading: study_transfer.md. Start it again to resume: what is finished is kept.
"""

import argparse
import json
import os
import platform
import time
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean

import numpy as np
import yaml
from sklearn.metrics import average_precision_score

from oligovox.engine.log import say
from oligovox.experiment.budget_claims import claimed
from oligovox.experiment.budget_ground import build_ground, open_ground
from oligovox.experiment.budget_plan import read_study
from oligovox.experiment.budget_scoring import HALF, LIMITS, operating_point, predicted, scored_at
from oligovox.experiment.verbs import finetune, pretrain
from oligovox.files import read_json, write_json
from oligovox.metrics.paired import difference_over_draws, mean_over_draws

HERE = Path(__file__).parent
RESULT = HERE / "study_transfer.json"
SEEDS = {"clinic": 961, "archive": 962, "check": 963, "exams": 964}
LABELS = 2
READINGS = ("dice", "dice, operating point", "average precision")


@dataclass(frozen=True)
class Start:
    """A pre-training: the pretext, its settings, its length."""

    method: str
    settings: dict = field(default_factory=dict)
    steps: int = 1000
    lr: float = 3e-3


@dataclass(frozen=True)
class Arm:
    """What is fine-tuned, how, and at which rate."""

    start: str | None
    lr: float = 9e-3
    finetune: dict = field(default_factory=dict)


STARTS = {
    "implanted": Start("implanted_lesions", {"nested": 0}),
    "implanted 3000": Start("implanted_lesions", {"nested": 0}, 3000),
    "no decoys": Start("implanted_lesions", {"nested": 0, "decoys": [0, 0]}),
    "implanted 9e-3": Start("implanted_lesions", {"nested": 0}, lr=9e-3),
    "no decoys 3000 9e-3": Start("implanted_lesions", {"nested": 0, "decoys": [0, 0]}, 3000, 9e-3),
    "generative": Start("generative", {"block": 8}),
    "masked": Start("masked_reconstruction", {"block": 8}),
    "context": Start("context_restoration"),
}
RESET = {"norm_reset": True}
ARMS = {
    "scratch": Arm(None),
    "scratch, 3e-3": Arm(None, 3e-3),
    "implanted": Arm("implanted"),
    "implanted, 3e-3": Arm("implanted", 3e-3),
    "implanted, 1e-3": Arm("implanted", 1e-3),
    "scratch, 2000 steps": Arm(None, finetune={"training": {"steps": 2000}}),
    "generative": Arm("generative"),
    "no decoys": Arm("no decoys"),
    "implanted 9e-3": Arm("implanted 9e-3"),
    "implanted 3000": Arm("implanted 3000"),
    "no decoys 3000 9e-3": Arm("no decoys 3000 9e-3"),
    "generative, reset": Arm("generative", finetune=RESET),
    "generative, shuffled": Arm("generative", finetune={"shuffled": True}),
    "implanted, reset": Arm("implanted", finetune=RESET),
    "masked": Arm("masked"),
    "masked, reset": Arm("masked", finetune=RESET),
    "context": Arm("context"),
}


def ground_of(out):
    """The study file of ground ms with people for development, and 12 of them tested."""
    ground = yaml.safe_load((HERE / "grounds" / "ms.yaml").read_text())
    common, cpu = ground["common"], ground["cpu"]
    for name, cohort in common["cohorts"].items():
        cohort["simulate"]["seed"] = SEEDS[name]
        cohort["simulate"]["recipe"] |= cpu["cohorts"][name]["simulate"]["recipe"]
    common["cohorts"]["exams"]["simulate"]["subjects"] = 12
    study = {
        "name": "development", "cohorts": common["cohorts"], "prepare": common["prepare"] | cpu["prepare"],
        "split": common["split"], "network": cpu["network"], "metric": "dice", "counts": [LABELS], "draws": 8,
        "lr": [9e-3], "pretrain": cpu["pretrain"], "finetune": cpu["finetune"], "arms": {"scratch": {"start": "scratch"}},
    }  # fmt: skip
    file = out / "development.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    return read_study(file)


def pretrained(name, study, ground, out):
    """Pre-train once; None while another process does."""
    folder = out / "pretrain" / name
    with claimed(out / "claims" / f"pretrain_{name}") as ours:
        if not ours:
            return None
        if not (folder / "done.json").is_file():
            start, begun = STARTS[name], time.time()
            changes = {"method": start.method, "settings": start.settings}
            stage = study.pretrain.model_validate(
                study.pretrain.model_dump()
                | changes
                | {"training": study.pretrain.training.model_dump() | {"steps": start.steps, "lr": start.lr}}
            )
            pretrain(ground.store, folder, stage=stage, network=study.network, people=ground.pretraining(study, stage))
            write_json(folder / "done.json", {"seconds": round(time.time() - begun)})
    return folder


def judged(model, study, ground):
    """Scores of test people at a half and at the operating point of validation people; average precision of their foreground voxels."""
    validation = scored_at(predicted(model, ground.split.validation, study, ground.store), LIMITS)
    limit, seen = operating_point(validation, study), list(predicted(model, ground.split.test, study, ground.store))
    at = scored_at(seen, sorted({HALF, limit}))
    precision = {}
    for one in seen:
        inside = np.asarray(one.case.foreground())
        precision[one.case.person] = float(average_precision_score(one.truth[0][inside], one.probability[0][inside]))
    return {"scores": at[HALF], "chosen": at[limit], "limit": limit, "average_precision": precision}


def tuned(name, draw, study, ground, out):
    """Fine-tune and score once; False while that, or what it needs, is another process's work."""
    arm, folder = ARMS[name], out / "runs" / f"{name}_d{draw}"
    with claimed(out / "claims" / f"run_{name}_d{draw}") as ours:
        if not ours:
            return False
        if (folder / "scores.json").is_file():
            return True
        start = pretrained(arm.start, study, ground, out) if arm.start else None
        if arm.start and start is None:
            return False
        own = study.finetune.model_dump() | {k: v for k, v in arm.finetune.items() if k != "training"}
        training = own["training"] | arm.finetune.get("training", {}) | {"lr": arm.lr, "seed": draw}
        stage = study.finetune.model_validate(own | {"training": training})
        people, begun = ground.labels(study, LABELS, draw), time.time()
        model = finetune(
            ground.store, folder, stage=stage, network=study.network, start=start, people=people, split=ground.split
        )
        write_json(folder / "scores.json", judged(model, study, ground) | {"seconds": round(time.time() - begun)})
    return True


def work(out, draws, arms):
    """Do what is not done, draw by draw."""
    study = ground_of(out)
    ground = open_ground(study, out)
    todo = [(name, draw) for draw in range(draws) for name in arms]
    while todo:
        left = [(name, draw) for name, draw in todo if not tuned(name, draw, study, ground, out)]
        if len(left) == len(todo):
            time.sleep(2)
        todo = left


def collect(out, draws):
    """Means, and differences to scratch and to compute-matched scratch, over draws and people, for each reading."""
    found = {reading: {} for reading in READINGS}
    for name in ARMS:
        for draw in range(draws):
            file = out / "runs" / f"{name}_d{draw}" / "scores.json"
            if file.is_file():
                row = read_json(file)
                of = {
                    "dice": {p: r["dice"] for p, r in row["scores"].items()},
                    "dice, operating point": {p: r["dice"] for p, r in row["chosen"].items()},
                    "average precision": row["average_precision"],
                }
                for reading, values in of.items():
                    found[reading].setdefault(name, {})[str(draw)] = values
    result = {"command": "OMP_NUM_THREADS=1 python benchmarks/study_transfer.py --out FOLDER", "labels": LABELS,
              "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}", "readings": {}}  # fmt: skip
    for reading, arms in found.items():
        table = result["readings"].setdefault(reading, {})
        for name, rows in arms.items():
            table[name] = {"mean": mean_over_draws(rows, seed=0).as_row(), "people": rows}
            for reference in ("scratch", "scratch, 2000 steps"):
                if name != reference and set(rows) & set(arms.get(reference, {})):
                    minus = difference_over_draws(rows, arms[reference], seed=0).as_row()
                    table[name].setdefault("minus", {})[reference] = minus
            each = {draw: round(fmean(people.values()), 3) for draw, people in rows.items()}
            say(f"{reading:22s} {name:24s} {table[name]['mean']['mean']:.3f} {each}")
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--collect", action="store_true", help="only write the result of what is finished")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    if not chosen.collect:
        build_ground(ground_of(chosen.out), chosen.out, workers=chosen.workers, show=lambda _: lambda *_: None)
        spawn = get_context("spawn")
        processes = [
            spawn.Process(target=work, args=(chosen.out, chosen.draws, chosen.arms)) for _ in range(chosen.workers)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    collect(chosen.out, chosen.draws)


if __name__ == "__main__":
    main()
