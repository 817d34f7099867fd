"""What a network does in its first 500 steps, by the probability with which its head expects a lesion → study_plateau.json beside this file.

    oligovox budget benchmarks/studies/dev_prior.yaml --out STUDY
    OMP_NUM_THREADS=1 python benchmarks/study_plateau.py --study STUDY --out FOLDER

Two labels of that study (draws 0 and 1), from scratch and from its pre-trained start, the first half of its schedule; Dice of its four validation people at a
half every 125 steps. Reading: study_transfer.md, "The plateau". Start it again to resume.
"""

import argparse
from itertools import product
from pathlib import Path
from statistics import fmean

from common import machine, progress, versions
from oligovox.engine.log import read_log
from oligovox.experiment.budget_ground import open_ground
from oligovox.experiment.budget_jobs import pretraining_of
from oligovox.experiment.budget_plan import read_study
from oligovox.experiment.verbs import finetune
from oligovox.files import write_json

RESULT = Path(__file__).with_suffix(".json")
STOP, EVERY = 500, 125
ARMS, PRIORS, DRAWS = ("scratch", "implanted lesions"), (0.5, 0.01), (0, 1)


def begun(study, ground, home, out, arm, prior, draw):
    """Train half of the schedule; what validation and the training loss say on the way."""
    stage = study.finetuning(arm, lr=study.lr[0], seed=draw)
    training = stage.training.model_copy(update={"stop_at": STOP, "validate_every": EVERY})
    stage = stage.model_copy(update={"training": training, "settings": {**stage.settings, "prior": prior}})
    start = home / pretraining_of(study, arm, 0).folder if study.arms[arm].pretext else None
    people, run = ground.labels(study, 2, draw), out / f"{arm}_{prior}_{draw}"
    finetune(ground.store, run, stage=stage, network=study.network, start=start, people=people, split=ground.split)
    rows = read_log(run / "log.jsonl")
    return {
        "arm": arm, "prior": prior, "draw": draw,
        "validation_dice": {row["step"] + 1: round(row["validation"]["dice"], 4) for row in rows if "validation" in row},
        "dice_loss": {at + EVERY: round(fmean(row["terms"]["dice"] for row in rows[at : at + EVERY]), 4) for at in range(0, STOP, EVERY)},
        "gradient_norm": {at + EVERY: round(fmean(row["norm"] for row in rows[at : at + EVERY]), 4) for at in range(0, STOP, EVERY)},
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, required=True, help="folder of the finished study dev_prior")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    study = read_study(chosen.study / "study.yaml")
    ground, rows = open_ground(study, chosen.study), []
    for draw, arm, prior in product(DRAWS, ARMS, PRIORS):
        progress(f"{arm}, {prior}, draw {draw}")
        rows.append(begun(study, ground, chosen.study, chosen.out, arm, prior, draw))
    command = "OMP_NUM_THREADS=1 python benchmarks/study_plateau.py --study STUDY --out FOLDER"
    write_json(RESULT, {"command": command, "machine": machine(), "versions": versions(), "rows": rows})
    for row in rows:
        print(row["arm"], row["prior"], row["draw"], row["validation_dice"])


if __name__ == "__main__":
    main()
