"""Does every pretext learn what it sets out to? Each one before and after a short training, on people it has not seen → study_learning.json beside
this file, and the tables of study_learning.md, which has the plan.

    OMP_NUM_THREADS=1 python benchmarks/study_learning.py --cohort ms --out FOLDER
    OMP_NUM_THREADS=1 python benchmarks/study_learning.py --cohort glioma --out FOLDER

One thread. Start it again to resume: finished methods are kept. All people are for development: their seeds (950, 951) are in no ground. `--quick`
is two people on either side and three steps, to see that it works; nothing is written but to FOLDER.
"""

import argparse
import math
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from bench_pretexts import encoder_of, methods
from common import QUICK, machine, progress, versions
from oligovox.engine.checkpoint import Checkpoints, load_weights
from oligovox.engine.fit import Training
from oligovox.engine.log import read_log
from oligovox.engine.runtime import Runtime
from oligovox.errors import OligovoxError
from oligovox.experiment.cohorts import read_cohort
from oligovox.experiment.recipe import Pretrain
from oligovox.experiment.training import build_encoder, build_method
from oligovox.experiment.verbs import pretrain
from oligovox.files import read_json, write_json
from oligovox.metrics.bootstrap import bootstrap_mean, paired_difference
from oligovox.prepare.geometry import Volume, resample_to
from oligovox.prepare.pipeline import prepare
from oligovox.prepare.store import Plan
from oligovox.simulate.body import draw_body
from oligovox.simulate.recipe import make_recipe
from oligovox.simulate.subject import _streams, subject_seed
from oligovox.simulate.write import simulate_cohort
from study_learning_probe import CHANCE, LOWER_IS_BETTER, SIDE, Intensities, features, measured, person

RESULT, PAGE = Path(__file__).with_suffix(".json"), Path(__file__).with_suffix(".md")
BEGIN, END = "<!-- tables: written by study_learning.py -->", "<!-- end of the tables -->"
TRAINING, UNSEEN = (2, 2) if QUICK else (12, 6)
SPACING, SEED = 2.0, 0
LR = {"resenc": 3e-3, "vit": 1e-3}
COHORTS = {
    "ms": ("ms-3t", 950, "lesion", ("T1w", "T2w", "FLAIR")),
    "glioma": ("glioma-2023", 951, "tumour", ("T1w", "T1wGd", "T2w", "FLAIR")),
}
SETTINGS = {
    **{name: {"block": 8} for name in ("generative", "m3ae", "masked_reconstruction", "spark")},
    "slem": {"per_block": True},
}
IMPLANTS = {"ms": {"nested": 0.0}, "glioma": {"nested": 0.8, "lesions": [0, 2]}}
TISSUES = (("csf",), ("grey_matter", "limbic_grey_matter"), ("white_matter",))
PURE = 0.7  # part of a voxel that its tissue takes at least


class Ground:
    """A cohort, who is trained on, and the patches that are asked about."""

    def __init__(self, name, out, device):
        preset, seed, mask, modalities = COHORTS[name]
        people, recipe = TRAINING + UNSEEN, make_recipe(preset, {"spacing": SPACING})
        folder = out / f"{people} people"
        simulate_cohort(folder / "cohort", recipe, subjects=people, seed=seed, workers=1)
        plan = Plan(modalities=modalities, spacing=(SPACING,) * 3)
        self.store = prepare(read_cohort(folder / "cohort", mask=mask), plan, folder / "store", workers=1)
        self.name, self.modalities = name, modalities
        self.training, self.unseen = self.store.people[:TRAINING], self.store.people[TRAINING:]
        asked = {}
        for number, case in enumerate(self.store.cases, start=1):
            tissue = tissues(case, recipe, subject_seed(seed, number), folder / "tissue" / f"{case.name}.npy")
            unseen = case.person in self.unseen
            asked[case.person] = person(case, plan, tissue, device, seed=10 * number, unseen=unseen)
        self.fitted = [asked[name] for name in self.training]
        self.asked = {name: asked[name] for name in self.unseen}


def tissues(case, recipe, seed, file):
    """1 CSF, 2 cortex, 3 white matter, 0 none of them alone: what the simulator put there, on the grid of the prepared case."""
    if not file.is_file():
        body = draw_body(recipe, _streams(seed), 1)

        def brought(array, order):
            return resample_to(Volume(array, body.affine), case.placement.prepared_affine, case.shape, order).array

        assert np.array_equal(brought(body.truth.labels, 0), case.label()), f"{case.name} is another person"
        parts = [[p.fraction for p in body.parts if p.tissue in names and p.towards is None] for names in TISSUES]
        fractions = np.stack([brought(np.sum(part, axis=0, dtype=np.float32), 1) for part in parts])
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.where(fractions.max(0) >= PURE, fractions.argmax(0) + 1, 0).astype(np.uint8))
    return np.load(file)


def settings_of(name, cohort):
    return IMPLANTS[cohort] if name == "implanted_lesions" else SETTINGS.get(name, {})


def stage_of(name, cohort, steps):
    training = Training(steps=steps, lr=LR[encoder_of(name).name], seed=SEED, threads=1, workers=1, checkpoint_every=steps,
                        tensorboard="off")  # fmt: skip
    return Pretrain(method=name, settings=settings_of(name, cohort), patch=(SIDE,) * 3, batch=2, training=training)


def one(name, ground, steps, out):
    """Measure, train, measure again; or what stands from an earlier call."""
    file = out / f"{name}.json"
    if file.is_file():
        return read_json(file)
    begun, stage, network = time.process_time(), stage_of(name, ground.name, steps), encoder_of(name)
    runtime = Runtime(stage.training)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)  # the weights that training begins with
        method = build_method(name, stage.settings, build_encoder(network, ground.modalities))
    runtime.place(method)
    before = measured(name, method, ground.fitted, ground.asked, runtime, steps)
    pretrain(ground.store, out / name, stage=stage, network=network, people=ground.training)
    load_weights(Checkpoints(out / name / "checkpoints").find("last"), method)
    after = measured(name, method, ground.fitted, ground.asked, runtime, steps)
    log = read_log(out / name / "log.jsonl")
    found = {
        "network": network.model_dump(),
        "settings": stage.settings,
        "training": stage.training.model_dump(mode="json"),
        "precision": runtime.precision,
        "loss_of_training": {end: float(np.mean([row["total"] for row in rows]))
                             for end, rows in (("first 20", log[:20]), ("last 20", log[-20:]))},
        "before": before,
        "after": after,
        "measures": compared(before, after),
        "cpu_seconds": round(time.process_time() - begun, 1),
    }  # fmt: skip
    write_json(file, found := plain(found))
    shutil.rmtree(out / name / "checkpoints", ignore_errors=True)
    return found


def compared(before, after):
    """Measure → means before, after and by chance; what training gained, and what is left above chance: positive is better, paired by person."""
    found = {}
    for measure in dict.fromkeys(measure for row in after.values() for measure in row):
        if not measure.endswith(CHANCE):
            old, new = ({who: row.get(measure) for who, row in rows.items()} for rows in (before, after))
            chance = {who: row.get(measure + CHANCE) for who, row in after.items()}
            found[measure] = {
                "before": mean(old.values()),
                "after": mean(new.values()),
                "chance": mean(chance.values()),
                "gain": better(measure, new, old),
                "above_chance": better(measure, new, chance),
            }
    return found


def better(measure, new, old):
    pair = (old, new) if measure in LOWER_IS_BETTER else (new, old)
    return paired_difference(*pair, seed=0).as_row()


def mean(values):
    return bootstrap_mean(values, seed=0).as_row()["mean"]


def plain(value):
    """JSON without NaN."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    return value


def verdict(found):
    """The criteria of the plan."""
    measures = found["measures"]
    told = [row["above_chance"] for row in measures.values() if row["chance"] is not None]
    if not above(measures["own objective"]["gain"]):
        return "no"
    return "hollow" if told and not any(map(above, told)) else "yes"


def above(interval):
    """Whether it lies above 0."""
    return interval["low"] is not None and interval["low"] > 0


def cell(row, digits=3):
    """before → after, bold where the interval of the gain is above 0, in italics where it is below."""
    if row is None or None in (row["before"], row["after"]):
        return "–"
    high = row["gain"]["high"]
    mark = "**" if above(row["gain"]) else "*" if high is not None and high < 0 else ""
    return f"{row['before']:.{digits}f} → {mark}{row['after']:.{digits}f}{mark}"


FEATURES = [f"{what}, {part}" for what in ("found again", "tissue", "lesion") for part in ("encoder", "decoder")]


def tables(cohorts):
    """Both tables of each cohort, as markdown."""
    lines = []
    for cohort, content in cohorts.items():
        lines += [f"### {cohort}, {content['steps']} steps", "", "| pretext | own objective | gain [95 %] | learned | reading (by chance) |",
                  "| --- | --- | --- | --- | --- |"]  # fmt: skip
        for name, found in content["methods"].items():
            measures = found["measures"]
            gain = measures["own objective"]["gain"]
            ends = "" if gain["low"] is None else f" [{gain['low']:.3f}, {gain['high']:.3f}]"
            read = [f"{m} {cell(row)}" + ("" if row["chance"] is None else f" ({row['chance']:.3f})")
                    for m, row in measures.items() if m not in ("own objective", *FEATURES)]  # fmt: skip
            lines.append(
                f"| {name} | {cell(measures['own objective'])} | {gain['mean']:.3f}{ends} | {verdict(found)} | {'; '.join(read) or '–'} |"
            )
        lines += ["", f"| pretext | {' | '.join(FEATURES)} |", "| --- |" + " --- |" * len(FEATURES)]
        for name, found in content["methods"].items():
            lines.append(f"| {name} | " + " | ".join(cell(found["measures"].get(m)) for m in FEATURES) + " |")
        image = [content["image"].get(m) for m in FEATURES]
        lines += ["| *the image itself* | " + " | ".join("–" if v is None else f"{v:.3f}" for v in image) + " |", ""]
    return "\n".join(lines)


def publish(ground, arguments, results, image):
    """The JSON, and the tables on the page, of all methods finished so far."""
    content = read_json(RESULT) if RESULT.is_file() else {"cohorts": {}}
    preset, seed, _, modalities = COHORTS[ground.name]
    content["cohorts"][ground.name] = {
        "command": f"OMP_NUM_THREADS=1 python benchmarks/study_learning.py --cohort {ground.name} --steps {arguments.steps} --out FOLDER",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": machine(),
        "cohort": {"preset": preset, "seed": seed, "modalities": modalities, "spacing_mm": SPACING},
        "steps": arguments.steps,
        "training": ground.training,
        "unseen": ground.unseen,
        "image": image,
        "methods": {file.stem: read_json(file) for file in sorted(results.glob("*.json"))},
    }
    write_json(RESULT, content)
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n\n{tables(content['cohorts'])}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cohort", choices=list(COHORTS), default="ms")
    parser.add_argument(
        "--methods", default=",".join(methods("pretext")), help="names with commas between; all where not given"
    )
    parser.add_argument("--steps", type=int, default=3 if QUICK else 400)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    out, names = arguments.out / arguments.cohort, arguments.methods.split(",")
    runtime = Runtime(Training(threads=1))
    ground = Ground(arguments.cohort, out, runtime.device)
    with torch.no_grad():
        rows = features(Intensities(), ground.fitted, ground.asked, runtime)
    image = plain({measure: mean(row[measure] for row in rows.values()) for measure in next(iter(rows.values()))})
    progress(f"{arguments.cohort}: {TRAINING} people to train on, {UNSEEN} unseen; the image itself: {image}")
    results = out / f"{TRAINING + UNSEEN} people" / f"{arguments.steps} steps"
    finished, failed, spent = {}, [], []
    for number, name in enumerate(names, start=1):
        begun, stands = time.monotonic(), (results / f"{name}.json").is_file()
        try:
            finished[name] = one(name, ground, arguments.steps, results)
        except OligovoxError as error:
            failed.append(name)
            progress(f"[{number}/{len(names)}] {name} failed: {error}")
            continue
        if not stands:
            spent.append(time.monotonic() - begun)
        left = (len(names) - number) * np.mean(spent or [0]) / 60
        own, seconds = cell(finished[name]["measures"]["own objective"]), finished[name]["cpu_seconds"]
        progress(
            f"[{number}/{len(names)}] {name}: own objective {own}, {seconds:.0f} CPU seconds; about {left:.0f} minutes left"
        )
        if not QUICK:
            publish(ground, arguments, results, image)
    if QUICK:
        print(tables({arguments.cohort: {"steps": arguments.steps, "image": image, "methods": finished}}))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
