"""How much of training is waiting for data, in the demo's own settings.

A few simulated patients are prepared as in the demo; pre-training and fine-tuning then run for some steps with the demo's patch, batch,
augmentation, network, precision and threads. Both numbers are those of log.jsonl: `waited` / `seconds`, without the first step, which starts the
threads. Each stage runs three times.
"""

import logging
import tempfile
from importlib.resources import as_file, files
from pathlib import Path

from common import QUICK, headline, progress, spread, table, write
from oligovox.cohort.bids import read_bids
from oligovox.engine.log import read_log
from oligovox.experiment.recipe import Recipe, read_recipe
from oligovox.experiment.verbs import finetune, pretrain
from oligovox.prepare.pipeline import prepare
from oligovox.simulate.write import simulate_cohort

PATIENTS, STEPS, RUNS = 4, 6 if QUICK else 40, 1 if QUICK else 3


def demo() -> Recipe:
    with as_file(files("oligovox") / "recipes" / "demo.yaml") as path:
        return read_recipe(path, (f"pretrain.training.steps={STEPS}", f"finetune.training.steps={STEPS}"))


def main():
    logging.disable(logging.INFO)
    recipe, raw, results, rows, lines = demo(), {}, {}, [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen = recipe.cohorts["simulated"].simulate
        simulate_cohort(folder / "bids", chosen.recipe, subjects=PATIENTS, seed=chosen.seed)
        progress("patients simulated")
        store = prepare(read_bids(folder / "bids"), recipe.prepare, folder / "store")
        progress("patients prepared")
        stages = {
            "pre-training": lambda out: pretrain(store, out, stage=recipe.pretrain, network=recipe.network),
            "fine-tuning": lambda out: finetune(store, out, stage=recipe.finetune, network=recipe.network, labels=2),
        }
        raw = {stage: {"seconds": [], "waited": []} for stage in stages}
        for run in range(RUNS):
            for stage, train in stages.items():
                train(folder / f"{stage}-{run}")
                steps = read_log(folder / f"{stage}-{run}" / "log.jsonl")[1:]
                for key in ("seconds", "waited"):
                    raw[stage][key].append([row[key] for row in steps])
                progress(f"{stage}, run {run + 1} of {RUNS}")
    for stage, found in raw.items():
        runs = list(zip(found["waited"], found["seconds"], strict=True))
        share = spread([sum(waited) / sum(seconds) for waited, seconds in runs])
        step = spread([1e3 * sum(seconds) / len(seconds) for _, seconds in runs], 1)
        results[stage] = {"waiting_share": share, "step_ms": step}
        percent = "{:.2f} % ({:.2f} … {:.2f})".format(*(100 * share[key] for key in ("median", "low", "high")))
        rows.append([stage, f"{step['median']:.0f}", percent])
        lines.append(headline(f"waiting for data, {stage}", percent, "≤ 5 %", share["median"] <= 0.05))
    table(["stage", "step, ms", "waiting"], rows)
    settings = {"recipe": "demo", "patients": PATIENTS, "steps": STEPS, "runs": RUNS,
                "network": recipe.network.model_dump(), "patch": recipe.pretrain.patch, "batch": recipe.pretrain.batch,
                "threads": recipe.pretrain.training.threads, "workers": recipe.pretrain.training.workers}  # fmt: skip
    clock = "wall, as in log.jsonl; median of the runs, lowest and highest"
    write(__file__, clock=clock, settings=settings, raw=raw, results=results, headlines=lines)


if __name__ == "__main__":
    main()
