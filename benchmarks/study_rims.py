"""Which classifier finds paramagnetic rims? Five folds of people for every arm, on simulated people → study_rims.json beside this file, and the tables
of study_rims.md, which has the plans.

    OMP_NUM_THREADS=1 python benchmarks/study_rims.py --out FOLDER [--cohort shape] [--workers 2] [--tune] [--arms NAME …] [--collect]

There are two cohorts: `iron`, as the preset was at first, where the amount of iron tells nearly everything, and `shape`, where it does not; `longer` is `shape`
with four times as many steps of each classifier.
Start it again to resume: what is finished is kept, and arms that another folder finished are taken from studies/*.predictions.tsv. `--tune` compares
learning rates on people for development. `--quick` is a few coarse people, two folds and two steps, to see that it works; nothing is written
but to FOLDER.
"""

import argparse
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from common import QUICK, machine, progress, versions
from oligovox.experiment import classify_extract, classify_train
from oligovox.experiment.budget_claims import claimed
from oligovox.experiment.classification_recipe import Classify
from oligovox.experiment.classification_scores import missed_of
from oligovox.experiment.recipe import changed
from oligovox.experiment.verbs import simulate
from oligovox.files import hash_json, read_json, read_tsv, write_json, write_tsv
from oligovox.metrics.lesion_curves import reliability
from oligovox.metrics.protocols.prl import MAIN, Settings, lesion_differences, lesion_intervals, score_lesions
from oligovox.prepare.lesion_store import LesionStore

HERE = Path(__file__).parent
PAGE = Path(__file__).with_suffix(".md")
KINDS = ("none", "core", "vein")
FOREST = "radiomics + forest"
SIMULATED = ("sequences=[FLAIR,QSM]", *(("spacing=4", "rims.people=1", "rims.share=[0.4,0.6]") if QUICK else ()))
CUT = ("spacing=4", "patch=16") if QUICK else ()


@dataclass(frozen=True)
class Ground:
    """Seeds and numbers of a cohort's people, what is asked of the simulator beside the preset, how every network is trained, and where its results go."""

    seeds: dict[str, int]
    people: dict[str, int]
    changes: tuple[str, ...]
    steps: int
    name: str
    lr: str = "3e-4"
    usual: tuple[str, ...] = ()

    @property
    def result(self):
        return HERE / f"study_{self.name}.json"

    @property
    def table(self):
        return HERE / "studies" / f"{self.name}.predictions.tsv"

    @property
    def marks(self):
        return f"<!-- tables of {self.name}: written by study_rims.py -->", f"<!-- end of the tables of {self.name} -->"


SHAPE = (
    "rims.volume_power=1.5",
    "rims.core_mimics=0.25",
    "rims.core_fade_mm=[0,0.5]",
    "rims.core_strength=[0.1,1.0]",
    "rims.thickness_mm=[0.8,1.5]",
)
IRON = Ground({"tune": 1700, "study": 1701}, {"tune": 24, "study": 88}, (), 300, "rims")
BY_SHAPE = Ground(
    {"tune": 1710, "study": 1711}, {"tune": 48, "study": 88}, SHAPE, 300, "rims_shape", "1e-3", ("mirror=true",)
)
GROUNDS = {"iron": IRON, "shape": BY_SHAPE, "longer": replace(BY_SHAPE, steps=1200, name="rims_longer")}
FRODO = (f"network.settings.preset={'nano' if QUICK else 'cpu'}",)
START = (
    "pretrain.method=frodo",
    "pretrain.batch=16",
    f"pretrain.training.steps={2 if QUICK else 300}",
    "pretrain.training.threads=1",
)
COMMON = ("training.threads=1", "training.tensorboard=off")
LAST = "training.channels_last=true"  # what they are faster with
RATES = {"no start": ("3e-4", "1e-3", "3e-3"), "ResNet-18": ("3e-4", "1e-3"), "RimNet": ("3e-4", "1e-3")}
"""Arms whose rate is chosen on people for development, and what is tried."""


@dataclass(frozen=True)
class Arm:
    """A classifier.

    Attributes:
        changes: settings of `oligovox classify train`, beside COMMON.
        network: has steps to take at all.
    """

    changes: tuple[str, ...] = ()
    network: bool = True

    def settings(self, ground, lr=None, more=()):
        """As `oligovox classify train` would read them. The rate is chosen on people for development (study_rims.md); that of a start is half of it, as in the paper."""
        steps = ground.steps
        size = ("patch=32", "batch=16", f"training.steps={steps}", f"training.validate_every={steps // 6}")
        quick = ("patch=16", "batch=4", "training.steps=2", "training.validate_every=1", "folds=2")
        rate, said = float(lr or ground.lr), []
        if self.network:
            said = [*(quick if QUICK else size), *COMMON, *ground.usual, f"training.lr={rate:g}"]
            if any(change.startswith("pretrain.") for change in self.changes):
                said.append(f"pretrain.training.lr={rate / 2:g}")
        elif QUICK:
            said = ["folds=2"]
        return changed(Classify, [*said, *self.changes, *more], "classify")


def resnet(*more):
    return ("network.name=resnet18", f"network.settings.preset={'nano' if QUICK else 'cpu'}", *more)


ARMS = {
    "FRODO": Arm((*FRODO, *START)),
    "no start": Arm(FRODO),
    "no contrast": Arm((*FRODO, *START, "settings.contrast=false")),
    "neither": Arm((*FRODO, "settings.contrast=false")),
    "QSM alone": Arm((*FRODO, "network.settings.fusion=alone")),
    "FLAIR alone": Arm((*FRODO, "network.settings.fusion=alone", "network.settings.primary=FLAIR")),
    "early fusion": Arm((*FRODO, "network.settings.fusion=early")),
    FOREST: Arm(("method=radiomics_forest",), network=False),
    "ResNet-18": Arm(resnet("settings.contrast=false")),
    "QSMRim-Net": Arm(resnet("method=qsmrim_net")),
    "RimNet": Arm(("network.name=rimnet", LAST, "network.settings.preset=cpu", "settings.contrast=false", "settings.grid=4", "settings.hidden=[256,128,64]")),
    "residual encoder": Arm(("network.name=resenc", "network.settings.preset=tiny", LAST)),
    "residual encoder, Vox-MMSD": Arm(("network.name=resenc", "network.settings.preset=tiny", LAST, *START, "pretrain.method=vox_mmsd")),
    "late fusion": Arm((*FRODO, "network.settings.fusion=late")),
    "no FiLM": Arm((*FRODO, "network.settings.fusion=concat")),
    "both directions": Arm((*FRODO, *START, "pretrain.settings.directions=both")),
    "QSMRim-Net with FRODO's network": Arm((*FRODO, "method=qsmrim_net")),
    "no start, 1200 steps": Arm((*FRODO, "training.steps=1200", "training.validate_every=200")),
    **{f"FRODO, {n} people": Arm((*FRODO, *START, f"labels={n}")) for n in (5, 10, 20, 40)},
    **{f"no start, {n} people": Arm((*FRODO, f"labels={n}")) for n in (5, 10, 20, 40)},
    **{f"forest, {n} people": Arm(("method=radiomics_forest", f"labels={n}"), network=False) for n in (5, 10, 20, 40)},
}  # fmt: skip


def lesions_of(which, ground, out, workers):
    """Lesion store of a cohort, made once."""
    cohort, store, people = out / f"{which}_people", out / f"{which}_lesions", 10 if QUICK else ground.people[which]
    changes = (*SIMULATED, *ground.changes)
    simulate(cohort, preset="rim", subjects=people, seed=ground.seeds[which], changes=changes, workers=workers)
    begun = time.process_time(), time.perf_counter()
    counts = classify_extract(cohort, store, changes=CUT, workers=1)
    seconds = {"cpu": round(time.process_time() - begun[0], 1), "wall": round(time.perf_counter() - begun[1], 1)}
    if not (out / f"{which}.json").is_file():
        write_json(out / f"{which}.json", counts | {"lesions": store.name, "seconds": seconds})
    return store


def work(out, which, jobs):
    """Do what is not done: (name, settings) → out/runs/name, with seconds.json beside its scores."""
    torch.set_num_threads(1)
    store, todo = out / f"{which}_lesions", list(jobs)
    while todo:
        left = []
        for name, settings in todo:
            run = out / "runs" / name
            with claimed(out / "claims" / name) as ours:
                if not ours:
                    left.append((name, settings))
                elif not (run / "seconds.json").is_file():
                    begun = time.process_time()
                    classify_train(store, run, chosen=settings)
                    write_json(run / "seconds.json", {"cpu": round(time.process_time() - begun)})
                    progress(name)
        if len(left) == len(todo):
            time.sleep(5)
        todo = left


def done(out, which, jobs, workers):
    """Work in so many processes."""
    arguments = (out, which, jobs)
    processes = [get_context("spawn").Process(target=work, args=arguments) for _ in range(workers - 1)]
    for process in processes:
        process.start()
    work(*arguments)
    for process in processes:
        process.join()


def tune(chosen):
    """Two folds of people for development and half of the steps: PR-AUC of each rate."""
    lesions_of("tune", chosen.ground, chosen.out, chosen.workers)
    short = ("folds=2", f"training.steps={1 if QUICK else chosen.ground.steps // 2}")
    jobs = [
        (f"tune {name} {rate}", ARMS[name].settings(chosen.ground, rate, short))
        for name, rates in RATES.items()
        for rate in rates
    ]
    done(chosen.out, "tune", jobs, chosen.workers)
    found = {}
    for name, _ in jobs:
        scores = read_json(chosen.out / "runs" / name / "scores.json")["scores"]["lesion"]
        found[name] = {metric: scores[metric]["value"] for metric in ("pr_auc", "roc_auc")}
        progress(f"{name}: {found[name]}")
    write_json(chosen.out / "tuned.json", found)


def predictions_of(out, before, table):
    """Lesion → its row, with a column an arm; thresholds of each arm by fold; CPU seconds. What is finished, and what `before` knows of other arms."""
    rows = {row["lesion"]: dict(row) for row in read_tsv(table)} if before else {}
    limits = {name: arm["thresholds"] for name, arm in before.get("arms", {}).items()}
    seconds = {name: arm["cpu_seconds"] for name, arm in before.get("arms", {}).items()}
    for name in ARMS:
        run = out / "runs" / name
        if not (run / "seconds.json").is_file():
            continue
        seconds[name], limits[name] = read_json(run / "seconds.json")["cpu"], {}
        for row in read_tsv(run / "predictions.tsv"):
            if row["grade"] in ("0", "1"):
                about = {key: row[key] for key in ("lesion", "person", "fold", "grade")}
                known = rows.setdefault(row["lesion"], about)
                if any(known[key] != value for key, value in about.items()):
                    raise SystemExit(
                        f"{table}: {row['lesion']} has another person, fold or grade than in {run}; the cohort is another one"
                    )
                known[name], limits[name][row["fold"]] = f"{float(row['probability']):.9g}", float(row["threshold"])
    for lesion, about in truth_of(out).items():
        rows[lesion] |= about
    return [rows[lesion] for lesion in sorted(rows)], limits, seconds


def folds_of(out, before):
    """Hash of who is in which part of the folds. Runs of code that drew them otherwise cannot stand in one table."""
    runs = [out / "runs" / name for name in ARMS if "people" not in name]
    found = {hash_json(read_json(run / "classify.json")["folds"]) for run in runs if (run / "seconds.json").is_file()}
    if len(found | {before.get("folds", "")} - {""}) > 1:
        raise SystemExit(
            f"{out}: runs with other folds than each other's, or than those of the result that is there; take one version of the code"
        )
    return found.pop() if found else before.get("folds", "")


def truth_of(out):
    """Lesion → what the simulation made of it (a rim, or what looks like one), its median QSM, ppb, and its volume, mm³."""
    store, known, found = LesionStore.open(out / "study_lesions"), {}, {}
    for exam in store.exams:
        table = next((out / "study_people" / "derivatives").rglob(f"{exam}_desc-instances_dseg.tsv"))
        known[exam] = [
            (np.array([float(row[key]) for key in ("x_mm", "y_mm", "z_mm")]), row["mimic"]) for row in read_tsv(table)
        ]
    for lesion in store.graded:
        apart = [float(np.linalg.norm(place - lesion.position_mm)) for place, _ in known[lesion.exam]]
        kind = "rim" if lesion.grade else known[lesion.exam][int(np.argmin(apart))][1]
        qsm = (2 * lesion.image()[0][lesion.seen() == 2].astype(float) - 1) * store.plan.qsm_ppb
        found[lesion.name] = {
            "made": kind,
            "median_ppb": f"{np.median(qsm):.2f}",
            "volume_mm3": f"{lesion.volume_mm3:.0f}",
        }
    return found


def told_apart(said, made):
    """ROC-AUC of rims against each kind of lesion without one."""
    truth = made == "rim"
    return {kind: round(roc_auc(said[truth | (made == kind)], truth[truth | (made == kind)]), 3) for kind in KINDS}


def within_folds(said, truth, people, rows, resamples=500):
    """Mean PR-AUC of the folds, each of lesions that one classifier has judged; its interval draws the people of each fold."""
    fold, person, rng = np.array([row["fold"] for row in rows]), np.array(people), np.random.default_rng(0)
    drawn = []
    for name in sorted(set(fold)):
        of = fold == name
        names, owner = np.unique(person[of], return_inverse=True)
        times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), resamples)
        weights = [np.ones(of.sum()), *times[:, owner]]
        rims = truth[of] > 0
        drawn.append(
            [average_precision_score(rims, said[of], sample_weight=w) if w[rims].any() else np.nan for w in weights]
        )
    means = np.nanmean(drawn, axis=0)
    low, high = np.quantile(means[1:], (0.025, 0.975))
    return {"value": round(float(means[0]), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def roc_auc(said, truth):
    score = score_lesions(said, truth.astype(int), [str(i) for i in range(len(truth))]).regions["lesion"]["roc_auc"]
    return float(score)


def collect(chosen):
    """Scores, and differences from FRODO, of what is finished here or was before."""
    ground = chosen.ground
    before = read_json(ground.result) if ground.result.is_file() and not QUICK else {}
    folds = folds_of(chosen.out, before)  # refuses, before anything is scored
    rows, limits, seconds = predictions_of(chosen.out, before, ground.table)
    truth, people = np.array([int(row["grade"]) for row in rows]), [row["person"] for row in rows]
    said = {name: np.array([float(row[name]) for row in rows]) for name in limits}
    called = {name: np.array([limits[name][row["fold"]] for row in rows]) for name in limits}
    made, median, volume = (np.array([row[key] for row in rows]) for key in ("made", "median_ppb", "volume_mm3"))
    missed = missed_of(LesionStore.open(chosen.out / "study_lesions"), rows)
    numbers = {
        "median_qsm": 1 / (1 + np.exp(-median.astype(float) / 20)),
        "volume": 1 - 1 / (1 + volume.astype(float) / 500),
    }
    alone = {name: lesion_intervals(n, truth, people, Settings(), seed=0)["lesion"] for name, n in numbers.items()}
    alone = {
        name: {metric: scores[metric].as_row() for metric in ("pr_auc", "roc_auc")}
        | {"told_apart": told_apart(numbers[name], made)}
        for name, scores in alone.items()
    }
    arms = {}
    for name in (name for name in ARMS if name in limits):
        found = lesion_intervals(said[name], truth, people, Settings(), seed=0, thresholds=called[name], missed=missed)
        arms[name] = {
            "settings": ARMS[name].settings(ground).model_dump(mode="json", exclude_unset=True), "cpu_seconds": seconds[name], "thresholds": limits[name],
            "scores": {metric: found["lesion"][metric].as_row() for metric in MAIN}, "ece": reliability(said[name], truth).ece,
            "told_apart": told_apart(said[name], made), "pr_auc_within_folds": within_folds(said[name], truth, people, rows),
            "people": {region: {metric: estimate.as_row() for metric, estimate in found[region].items()} for region in ("patient_1", "count")},
        }  # fmt: skip
        if name != "FRODO" and "FRODO" in limits:
            less = lesion_differences(
                said["FRODO"], said[name], truth, people, Settings(), seed=0, thresholds=(called["FRODO"], called[name])
            )
            arms[name]["frodo_minus"] = {metric: less["lesion"][metric].as_row() for metric in MAIN}
        if name != FOREST and FOREST in limits:
            less = lesion_differences(said[FOREST], said[name], truth, people, Settings(), seed=0)["lesion"]
            arms[name]["forest_minus"] = {metric: less[metric].as_row() for metric in ("pr_auc", "roc_auc")}
    result = {
        "command": f"OMP_NUM_THREADS=1 python benchmarks/study_rims.py --cohort {chosen.cohort} --out FOLDER --workers 2", "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(), "versions": versions(), "cohort": read_json(chosen.out / "study.json"), "people": len(set(people)), "arms": arms,
        "one_number": alone, "folds": folds,
        "lesions_made_as": {kind: int((made == kind).sum()) for kind in ("rim", *KINDS)},
    }  # fmt: skip
    tuned = chosen.out / "tuned.json"
    result["tuned"] = before.get("tuned", {}) | (read_json(tuned) if tuned.is_file() else {})
    write_json(chosen.out / ground.result.name if QUICK else ground.result, result)
    write_tsv(
        chosen.out / ground.table.name if QUICK else ground.table,
        rows,
        ("lesion", "person", "fold", "grade", "made", "median_ppb", "volume_mm3", *arms),
    )
    table = tables(arms, alone)
    if not QUICK:
        text, (begin, end) = PAGE.read_text(encoding="utf-8"), ground.marks
        PAGE.write_text(text[: text.index(begin)] + f"{begin}\n\n{table}\n{text[text.index(end) :]}", encoding="utf-8")
    progress("\n" + table)


def told(estimate, sign=""):
    """0.71 [0.60, 0.80]"""
    if estimate["value"] is None:
        return "undefined"
    ends = "" if estimate["low"] is None else f" [{estimate['low']:{sign}.2f}, {estimate['high']:{sign}.2f}]"
    return f"{estimate['value']:{sign}.2f}{ends}"


def kinds(row):
    return " / ".join(f"{row['told_apart'][kind]:.2f}" for kind in KINDS)


def tables(rows, alone):
    """One row an arm, and one for each number alone."""
    lines = [
        "| classifier | PR-AUC | FRODO − it | forest − it | PR-AUC, mean of the folds | ROC-AUC | partial AUC | balanced accuracy | rims against lesions of no iron / iron throughout / a vein, ROC-AUC | ECE | CPU min |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        scores = row["scores"]
        cells = [
            told(scores["pr_auc"]),
            *(told(row[less]["pr_auc"], "+") if less in row else "" for less in ("frodo_minus", "forest_minus")),
            told(row["pr_auc_within_folds"]),
            *(told(scores[m]) for m in ("roc_auc", "partial_auc", "balanced_accuracy")),
            kinds(row),
            f"{row['ece']:.2f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['cpu_seconds'] / 60:.0f} |")
    for name, called in (("median_qsm", "median QSM of the lesion"), ("volume", "volume of the lesion")):
        found = alone[name]
        lines.append(
            f"| {called}, no learning | {told(found['pr_auc'])} | | | | {told(found['roc_auc'])} | | | {kinds(found)} | | |"
        )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cohort", choices=list(GROUNDS), default="iron")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS), metavar="NAME")
    parser.add_argument("--tune", action="store_true", help="only compare learning rates, on people for development")
    parser.add_argument("--collect", action="store_true", help="only write the result of what is finished")
    parser.add_argument("--quick", action="store_true", help="to see that it works")
    chosen = parser.parse_args()
    chosen = argparse.Namespace(**vars(chosen) | {"out": chosen.out.resolve(), "ground": GROUNDS[chosen.cohort]})
    chosen.out.mkdir(parents=True, exist_ok=True)
    if chosen.tune:
        tune(chosen)
        return
    if not chosen.collect:
        lesions_of("study", chosen.ground, chosen.out, chosen.workers)
        jobs = [(name, ARMS[name].settings(chosen.ground)) for name in chosen.arms]
        done(chosen.out, "study", jobs, chosen.workers)
    collect(chosen)


if __name__ == "__main__":
    main()
