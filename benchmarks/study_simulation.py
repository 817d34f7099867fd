"""Does the simulator teach what patients need? Two studies → study_simulation.json beside this file.

    OLIGOVOX_DATA=FOLDER OMP_NUM_THREADS=1 python benchmarks/study_simulation.py labels develop ms tumour --out FOLDER

labels   scratch training with 1, 2, 4, 8 labelled simulated subjects, drawn two to six times, scored on development subjects.
ms       trained on simulated multiple sclerosis only, scored on the two labelled openms patients, beside a FLAIR threshold fitted on the other.
develop  trained on simulated gliomas only, scored on the two cases of brats, whose labels are those of algorithms: for development.
tumour   the same networks, scored on the five brats13_nc patients (whole tumour, FLAIR and T1w after gadolinium).

Start it again to resume: finished runs are kept. Plan, results and reading: study_simulation.md.
"""

import argparse
import json
import os
import platform
import shlex
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np

from oligovox.cohort.bids import read_bids
from oligovox.cohort.manifest import Case, Cohort
from oligovox.cohort.splits import draw_split, nested_budgets
from oligovox.engine.fit import Training
from oligovox.experiment.prediction import predict_cases
from oligovox.experiment.recipe import Finetune, NetworkChoice, Predict
from oligovox.experiment.training import Job, load_network, train
from oligovox.infer.window import predict_case
from oligovox.metrics.lesions import match_lesions
from oligovox.metrics.overlap import dice
from oligovox.metrics.paired import mean_over_draws
from oligovox.prepare.geometry import read_volume, spacing_of
from oligovox.prepare.pipeline import prepare
from oligovox.prepare.store import Plan
from oligovox.sample.patches import Stream
from oligovox.simulate.recipe import make_recipe
from oligovox.simulate.write import simulate_cohort

RESULT = Path(__file__).with_suffix(".json")
NETWORK = NetworkChoice(settings={"preset": "tiny"})
PATCH = (40, 40, 40)
SEED = 7

DRAWS = {1: (0, 1, 2, 3, 4, 7), 2: (0, 1), 4: (0,), 8: (0, 1, 2)}  # labelled people → which draws of them
POOL, DEVELOPMENT = 16, 12


@dataclass(frozen=True)
class Arm:
    """One way to simulate the training cohort, and how long to train on it."""

    preset: str
    changes: dict = field(default_factory=dict)
    spacing: float = 2.0
    subjects: int = 40
    steps: int = 2000
    patch: tuple = PATCH


MS = {
    "default": Arm("ms-3t"),
    "1 mm": Arm("ms-3t", spacing=1.0, steps=1000, patch=(56, 56, 56)),
    "one site": Arm("ms-3t", {"acquisition": {"sites": 1}}),
    "no confounders": Arm(
        "ms-3t", {"confounders": dict.fromkeys(("caps", "dirty", "age_related", "perivascular", "arteries"), 0)}
    ),
    "no bias field": Arm("ms-3t", {"acquisition": {"bias": [0.0, 0.0]}}),
    "many sites, 1.5 and 3 T": Arm("ms-multisite"),
}
TWO = {"sequences": ["T1wGd", "FLAIR"]}  # what the patients have
TUMOUR = {
    "default": Arm("glioma-2023", TWO, steps=1000),
    "no bias field": Arm("glioma-2023", TWO | {"acquisition": {"bias": [0.0, 0.0]}}, steps=1000),
    "one site": Arm("glioma-2023", TWO | {"acquisition": {"sites": 1}}, steps=1000),
}


def ground(out, name, arm, subjects):
    """A simulated cohort as a store."""
    recipe = make_recipe(arm.preset, {**arm.changes, "spacing": arm.spacing})
    folder = out / name
    if not (folder / "store" / "store.json").is_file():
        simulate_cohort(folder / "cohort", recipe, subjects=subjects, seed=SEED, workers=2)
    plan = Plan(modalities=recipe.sequences, spacing=(arm.spacing,) * 3)
    return prepare(read_bids(folder / "cohort"), plan, folder / "store", workers=2)


def trained(out, store, people, arm, seed=0, threads=1):
    """A model folder: from scratch on the labels of these people."""
    training = Training(
        steps=arm.steps, lr=9e-3, seed=seed, threads=threads, workers=1, checkpoint_every=arm.steps, tensorboard="off"
    )
    job = Job(
        method="segmentation", settings={"labels": {"lesion": 1}}, network=NETWORK,
        stage=Finetune(patch=arm.patch, batch=2, training=training), streams=(Stream(store.of(people), 2, "lesion", 0.5),),
    )  # fmt: skip
    if not (out / "model" / "model.json").is_file():
        train(job, store, out)
    return out / "model"


def label_counts(out, save):
    """Dice of the development subjects by number of labelled subjects and draw."""
    arm = Arm("ms-3t", steps=1600)
    store = ground(out, "labels", arm, POOL + DEVELOPMENT)
    split = draw_split(sorted(store.people), validation=DEVELOPMENT, test=0, seed=SEED)
    found = {}
    for count, draws in DRAWS.items():
        for draw in draws:
            budgets = nested_budgets(split.train, list(DRAWS), draw)
            network, _ = load_network(trained(out / f"labels-runs/n{count}_d{draw}", store, budgets[count], arm, draw))
            scores = {}
            for case in store.of(split.validation):
                mask = predict_case(network, case, store.plan, patch=PATCH, overlap=0.25).argmax(0)
                scores[case.person] = dice(mask, case.label())
            found.setdefault(str(count), {})[str(draw)] = scores
            print(f"{count} labels, draw {draw}: Dice {np.mean(list(scores.values())):.3f}", flush=True)
            save({"cases": found})
    means = {}
    for count, draws in found.items():
        means[count] = mean_over_draws(draws, seed=0).as_row()
    return {"cases": found, "mean": means}


def real_ms():
    """The two labelled patients."""
    cohort = read_bids(data() / "openms")
    return Cohort(cases=tuple(c for c in cohort.cases if c.label), labels=cohort.labels, name="openms")


def real_tumours(name, pattern):
    """Patients of brats or of BRATS 2013; whole tumour is any label above 0."""
    cases = []
    for folder in sorted((data() / name).glob(pattern)):
        stem = folder / folder.name
        images = {"T1wGd": Path(f"{stem}-t1c.nii.gz"), "FLAIR": Path(f"{stem}-t2f.nii.gz")}
        cases.append(Case(subject=folder.name.replace("-", ""), images=images, label=Path(f"{stem}-seg.nii.gz")))
    return Cohort(cases=tuple(cases), labels={"NCR": 1, "ED": 2, "ET": 3}, name=name)


def transfer(out, arms, cohort, title, save):
    """Train each arm on simulation, score on real patients, on their own grids."""
    found, threshold = {}, flair_threshold(out, cohort, title)
    for name, arm in arms.items():
        training = out / arm.preset / name.replace(" ", "-").replace(",", "")
        store = ground(out / arm.preset, training.name, arm, arm.subjects)
        model = trained(training / "run", store, sorted(store.people), arm)
        place = out / title / training.name
        plan = Plan(modalities=store.plan.modalities, spacing=(arm.spacing,) * 3)
        real = prepare(cohort, plan, place / "real", workers=2)
        written = predict_cases(model, real.cases, place / "predictions", Predict(overlap=0.5), lambda *_: None)
        rows = {}
        for case in cohort.cases:
            truth = read_volume(case.label, empty_ok=True)
            mask = read_volume(written[case.name], empty_ok=True).array > 0
            rows[case.person] = scored(mask, truth.array > 0, spacing_of(truth.affine))
        found[name] = rows
        print(f"{title}, {name}: {rows}", flush=True)
        save({"arms": found, "threshold": threshold})
    return {"arms": found, "threshold": threshold}


def flair_threshold(out, cohort, title):
    """One FLAIR threshold (z-score in the brain), the best for the other patients, on the prepared 1 mm grid."""
    store = prepare(cohort, Plan(modalities=("FLAIR",), spacing=(1.0, 1.0, 1.0)), out / title / "flair", workers=1)
    limits = np.arange(0.5, 4.0, 0.05)

    def mask(case, limit):
        return (np.asarray(case.image()[0], dtype=np.float32) > limit) & case.foreground()

    table = {case.person: [dice(mask(case, limit), case.label() > 0) for limit in limits] for case in store.cases}
    found = {}
    for case in store.cases:
        others = [scores for person, scores in table.items() if person != case.person]
        limit = float(limits[np.mean(others, 0).argmax()])
        scores = scored(mask(case, limit), case.label() > 0, case.spacing)
        found[case.person] = {**scores, "limit": round(limit, 2)}
    return found


def scored(mask, truth, spacing):
    """Dice and lesion-wise F1 of one patient."""
    f1 = match_lesions(mask, truth, spacing).f1
    return {"dice": round(dice(mask, truth), 4), "lesion_f1": round(f1, 4)}


def data():
    """Where the real images are."""
    return Path(os.environ.get("OLIGOVOX_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def main():
    """Run the parts that were named and write what is known so far."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=("labels", "develop", "ms", "tumour"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", help="only these arms of ms, develop and tumour; default: all")
    given = parser.parse_args()

    def chosen(arms):
        return {name: arm for name, arm in arms.items() if not given.arms or name in given.arms}

    for part in given.parts:
        start = time.monotonic()

        def save(found, part=part, start=start):
            """Whatever is known so far, so that a run that ends early leaves what it has."""
            result = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
            result |= {
                part: found | {"seconds": round(time.monotonic() - start)},
                "command": shlex.join(["python", "benchmarks/study_simulation.py", *given.parts, *(["--arms", *given.arms] if given.arms else []), "--out", "FOLDER"]),
                "versions": {n: version(n) for n in ("oligovox", "torch", "monai", "numpy")} | {"python": platform.python_version()},
            }  # fmt: skip
            RESULT.write_text(json.dumps(result, indent=1) + "\n")

        if part == "labels":
            save(label_counts(given.out, save))
        elif part == "ms":
            save(transfer(given.out, chosen(MS), real_ms(), part, save))
        elif part == "develop":
            save(transfer(given.out, chosen(TUMOUR), real_tumours("brats", "*-*-*"), part, save))
        else:
            save(transfer(given.out, chosen(TUMOUR), real_tumours("brats13_nc", "BRATS13-*"), part, save))


if __name__ == "__main__":
    main()
