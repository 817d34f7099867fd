"""One network for every subset of its sequences: dropout against zero filling, early fusion against stems → study_missing.json beside this file.

    OMP_NUM_THREADS=1 python benchmarks/study_missing.py --out FOLDER [--workers 1] [--collect] [--real BIDS]
    OMP_NUM_THREADS=1 python benchmarks/study_missing.py --question confirm --out FOLDER [--workers 1]
    OMP_NUM_THREADS=1 python benchmarks/study_missing.py --question longer --out FOLDER [--workers 1]
    OMP_NUM_THREADS=1 python benchmarks/study_missing.py --question held --out FOLDER [--workers 1] [--real BIDS]

The second asks again, on new people and with new seeds, what was chosen after the first → study_missing_confirm.json. The third trains longer, hides
sequences another way, and calls voxels where validation people are scored best → study_missing_longer.json. The last asks of new people whether what the
third found holds → study_missing_held.json.
Plans, results, reading: study_missing.md. Start it again to resume: what is finished is kept. With other `--steps`, `--people`
or `--seeds` (to see that it works) the result goes to FOLDER.
"""

import argparse
import json
import os
import platform
import time
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean

import torch

from oligovox.engine.fit import Training
from oligovox.engine.log import say
from oligovox.experiment.budget_claims import claimed
from oligovox.experiment.budget_scoring import HALF, LIMITS
from oligovox.experiment.cohorts import read_cohort
from oligovox.experiment.recipe import Finetune, NetworkChoice, Semi
from oligovox.experiment.sequence_price import name_of, subsets
from oligovox.experiment.training import load_network
from oligovox.experiment.verbs import finetune, prepare, simulate
from oligovox.files import read_json, write_json
from oligovox.infer.window import predict_case
from oligovox.metrics.bootstrap import defined
from oligovox.metrics.overlap import dice
from oligovox.metrics.paired import difference_over_draws, mean_over_draws
from oligovox.prepare.store import Store
from oligovox.sample.augment import Augmentation

HERE = Path(__file__).parent
SEQUENCES = ("T1w", "T2w", "FLAIR")
PATCH = (32, 32, 32)


@dataclass(frozen=True)
class Network:
    """What is trained, and for how many times the steps of the question."""

    fusion: str
    drop: float = 0.0
    some: float = 0.0
    times: int = 1
    semi: str = ""


NETWORKS = {
    "early": Network("early"),
    "early, dropout": Network("early", drop=0.4),
    "stems, dropout": Network("stems", drop=0.4),
    "early, dropout 0.2": Network("early", drop=0.2),
    "stems, dropout 0.2": Network("stems", drop=0.2),
    "early, some": Network("early", some=0.5),
    "stems, some": Network("stems", some=0.5),
    "early, some, twice": Network("early", some=0.5, times=2),
    "early, both": Network("early", semi="hidden_sequences"),
}


@dataclass(frozen=True)
class Question:
    """Who is labelled, tested and validated (how many, seed), the seeds of training, what is trained and for how long. Where people are
    validated, each row calls voxels of each subset where it scores them best."""

    people: dict[str, tuple[int, int]]
    trainings: tuple[int, ...]
    networks: tuple[str, ...]
    result: str
    steps: int = 1000


QUESTIONS = {
    "first": Question({"labelled": (8, 970), "tested": (10, 971)}, (0, 1), tuple(NETWORKS)[:5], "study_missing.json"),
    "confirm": Question(
        {"labelled": (8, 980), "tested": (16, 981)},
        (2, 3, 4, 5),
        ("early", "stems, dropout 0.2"),
        "study_missing_confirm.json",
    ),
    "longer": Question(
        {"labelled": (8, 990), "tested": (16, 991), "validated": (4, 992)},
        (6, 7, 8, 9),
        ("early", "early, some", "stems, some", "early, some, twice", "early, both"),
        "study_missing_longer.json",
        steps=3000,
    ),
    "held": Question(
        {"labelled": (8, 993), "tested": (16, 994), "validated": (4, 995)},
        (10, 11, 12),
        ("early", "early, both"),
        "study_missing_held.json",
        steps=3000,
    ),
}
ROWS = {
    "zero filling": ("early", False),
    "early": ("early", True),
    **{name: (name, True) for name in list(NETWORKS)[1:]},
}
"""Row of the table → network, and whether it is told which sequences are absent."""


def people(chosen):
    """Simulate and prepare; who is there is kept."""
    for name, (count, seed) in chosen.question.people.items():
        cohort = chosen.out / f"{name}_cohort"
        simulate(
            cohort,
            subjects=min(count, chosen.people or count),
            seed=seed,
            changes=("spacing=2",),
            workers=chosen.workers,
        )
        prepare(cohort, chosen.out / name, modalities=SEQUENCES, spacing=(2.0, 2.0, 2.0), workers=chosen.workers)


def hiding(network, shown, told):
    """The network with only these sequences shown; without `told` the others are zeros that are said to be there."""
    kept = torch.tensor([name in shown for name in SEQUENCES])

    def answer(image, present):
        return network(image * kept[:, None, None, None], present & kept if told else present)

    return answer


def scored(network, told, store, limits=(HALF,)):
    """Subset → limit → person → Dice, voxels being called above the limit."""
    found = {}
    for shown in subsets(SEQUENCES):
        by_limit = found[name_of(shown, SEQUENCES)] = {limit: {} for limit in limits}
        for case in store.labelled:
            lesion = predict_case(hiding(network, shown, told), case, store.plan, patch=PATCH, overlap=0.25)[1]
            for limit, scores in by_limit.items():
                scores[case.person] = defined(dice(lesion > limit, case.label()))
    return found


def tested(network, told, chosen):
    """Subset → person → Dice of the tested, called at a half, or where the validated are scored best; and that limit."""
    test = Store.open(chosen.out / "tested")
    if "validated" not in chosen.question.people:
        found = {subset: by_limit[HALF] for subset, by_limit in scored(network, told, test).items()}
        return found, dict.fromkeys(found, HALF)
    validated = scored(network, told, Store.open(chosen.out / "validated"), LIMITS)
    best = {
        subset: max(LIMITS, key=lambda limit: fmean(value or 0.0 for value in by_limit[limit].values()))
        for subset, by_limit in validated.items()
    }
    found = scored(network, told, test, LIMITS)
    return {subset: found[subset][limit] for subset, limit in best.items()}, best


def done(name, seed, chosen):
    """Train one network and score its rows; False while another process does."""
    folder, network = chosen.out / "runs" / f"{name}_s{seed}", NETWORKS[name]
    with claimed(chosen.out / "claims" / f"{name}_s{seed}") as ours:
        if not ours or (folder / "scores.json").is_file():
            return ours
        begun = time.process_time()
        training = Training(
            steps=chosen.steps * network.times,
            lr=9e-3,
            seed=seed,
            threads=1,
            channels_last=True,
            precision="32-true",
            tensorboard="off",
        )
        hidden = Augmentation(drop_sequences=network.drop, some_sequences=network.some)
        semi = Semi(name=network.semi) if network.semi else None
        stage = Finetune(patch=PATCH, training=training, augmentation=hidden, semi=semi)
        choice = NetworkChoice(name="resenc", settings={"preset": "tiny", "fusion": network.fusion})
        model, _ = load_network(finetune(chosen.out / "labelled", folder, stage=stage, network=choice))
        trained = time.process_time()
        answers = {row: tested(model, told, chosen) for row, (owner, told) in ROWS.items() if owner == name}
        seconds = {"train": round(trained - begun), "score": round(time.process_time() - trained)}
        rows, limits = ({row: answer[part] for row, answer in answers.items()} for part in (0, 1))
        write_json(folder / "scores.json", {"rows": rows, "limits": limits, "cpu_seconds": seconds})
    return True


def work(chosen):
    """Do what is not done, seed by seed."""
    torch.set_num_threads(1)
    todo = [(name, seed) for seed in chosen.seeds for name in chosen.question.networks]
    while todo:
        left = [(name, seed) for name, seed in todo if not done(name, seed, chosen)]
        if len(left) == len(todo):
            time.sleep(5)
        todo = left


def on_real(chosen):
    """Score every finished network on the labelled people of a BIDS folder, at the voxel size of the study."""
    cohort, table = read_cohort(chosen.real), chosen.out / "real.tsv"
    replace(cohort, cases=cohort.labelled).save(table)
    prepare(table, chosen.out / "real", modalities=SEQUENCES, spacing=(2.0, 2.0, 2.0), workers=chosen.workers)
    store = Store.open(chosen.out / "real")
    for seed in chosen.seeds:
        for name in chosen.question.networks:
            folder = chosen.out / "runs" / f"{name}_s{seed}"
            if (folder / "scores.json").is_file() and not (folder / "real.json").is_file():
                model, _ = load_network(folder)
                rows = {
                    row: {subset: by_limit[HALF] for subset, by_limit in scored(model, told, store).items()}
                    for row, (owner, told) in ROWS.items()
                    if owner == name
                }
                write_json(folder / "real.json", rows)


def collect(chosen):
    """Of each row and subset the mean, and the difference to zero filling, over seeds and people."""
    found, seconds, real, limits = {}, {}, {}, {}
    for seed in chosen.seeds:
        for name in chosen.question.networks:
            if (beside := chosen.out / "runs" / f"{name}_s{seed}" / "real.json").is_file():
                for row, scores in read_json(beside).items():
                    real.setdefault(row, {})[str(seed)] = scores
            file = chosen.out / "runs" / f"{name}_s{seed}" / "scores.json"
            if file.is_file():
                content = read_json(file)
                seconds[f"{name}_s{seed}"] = content["cpu_seconds"]
                limits[f"{name}_s{seed}"] = content["limits"]
                for row, scores in content["rows"].items():
                    for subset, values in scores.items():
                        found.setdefault(row, {}).setdefault(subset, {})[str(seed)] = values
    result = {
        "command": f"OMP_NUM_THREADS=1 python benchmarks/study_missing.py --question {chosen.name} --out FOLDER", "steps": chosen.steps,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}", "cpu_seconds": seconds, "operating_points": limits,
        "rows": {}, "real": real,
    }  # fmt: skip
    for row, by_subset in found.items():
        for subset, values in by_subset.items():
            told = {"mean": mean_over_draws(values, seed=0).as_row(), "people": values}
            for other in ("zero filling", "early, dropout"):
                against = found.get(other, {}).get(subset, {})
                if other != row and (seeds := set(against) & set(values)):
                    pair = ({key: scores[key] for key in sorted(seeds)} for scores in (values, against))
                    told.setdefault("minus", {})[other] = difference_over_draws(*pair, seed=0).as_row()
            result["rows"].setdefault(row, {})[subset] = told
    for row in (name for name in ROWS if name not in ("zero filling", "early") and name in found):
        gains = [told["minus"]["zero filling"] for told in result["rows"][row].values() if "minus" in told]
        held = [gain["low"] > -0.02 for gain in gains if gain["low"] is not None]
        said = f"{sum(held)} of {len(gains)} subsets" if held else "one seed, so there is no interval to judge by"
        result.setdefault("at_least_as_good_as_zero_filling", {})[row] = said
    full = (chosen.steps, chosen.people, tuple(chosen.seeds)) == (
        chosen.question.steps,
        None,
        chosen.question.trainings,
    )
    file = (HERE if full else chosen.out) / chosen.question.result
    file.write_text(json.dumps(result, indent=1) + "\n")
    for row, by_subset in found.items():
        means = {
            subset: round(fmean(v for p in seeds.values() for v in p.values() if v is not None), 3)
            for subset, seeds in by_subset.items()
        }
        say(f"{row:16s} {means}")
    say(str(result.get("at_least_as_good_as_zero_filling", "")))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--question", choices=QUESTIONS, default="first", dest="name")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--people", type=int, help="at most so many labelled, and so many tested")
    parser.add_argument("--seeds", type=int, nargs="*", help="of training")
    parser.add_argument("--real", type=Path, help="BIDS folder of real exams: its labelled people are scored as well")
    parser.add_argument("--collect", action="store_true", help="only write the result of what is finished")
    chosen = parser.parse_args()
    chosen.question = QUESTIONS[chosen.name]
    chosen.steps = chosen.steps or chosen.question.steps
    chosen.seeds = chosen.seeds or list(chosen.question.trainings)
    chosen.out.mkdir(parents=True, exist_ok=True)
    if not chosen.collect:
        people(chosen)
        processes = [get_context("spawn").Process(target=work, args=(chosen,)) for _ in range(chosen.workers - 1)]
        for process in processes:
            process.start()
        work(chosen)
        for process in processes:
            process.join()
    if chosen.real:
        on_real(chosen)
    collect(chosen)


if __name__ == "__main__":
    main()
