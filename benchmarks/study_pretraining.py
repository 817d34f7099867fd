"""Why does generative pre-training show no gain in the demo? A small study on a cohort of its own → study_pretraining.json beside this file.

    OMP_NUM_THREADS=1 python benchmarks/study_pretraining.py --out FOLDER

One thread, about 35 minutes. Start it again to resume: finished runs are kept. Plan, results and reading: study_pretraining.md.
"""

import argparse
import json
import platform
import shutil
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from scipy import ndimage, stats

from oligovox.cohort.bids import read_bids
from oligovox.cohort.splits import draw_split, nested_budgets
from oligovox.engine.checkpoint import Checkpoints, load_weights
from oligovox.engine.fit import Training
from oligovox.engine.log import read_log
from oligovox.engine.model import load_model, save_model
from oligovox.experiment.recipe import Finetune, NetworkChoice, Pretrain
from oligovox.experiment.training import Job, build_encoder, build_method, load_network, train
from oligovox.experiment.verbs import pretrain
from oligovox.infer.window import predict_case
from oligovox.metrics.bootstrap import bootstrap_mean, paired_difference
from oligovox.metrics.overlap import dice
from oligovox.prepare.pipeline import prepare
from oligovox.prepare.store import Plan
from oligovox.sample.augment import Augmentation
from oligovox.sample.patches import Stream
from oligovox.simulate.recipe import make_recipe
from oligovox.simulate.write import simulate_cohort

RESULT = Path(__file__).with_suffix(".json")
NETWORK = NetworkChoice(settings={"preset": "tiny"})
PATCH = (40, 40, 40)
PEOPLE, COHORT_SEED, TUNING, FINAL, POOL = 54, 101, 8, 16, 16  # the other 14 are seen by pre-training only
WATCHED = 6  # tuning people that every run is scored on
CURVE = (25, 50, 100, 200, 400)  # steps at which the tuning people are scored
FINAL_DRAWS = (10, 11, 12)
LESION_VOXELS = 10  # smallest lesion whose contrast is measured: 80 mm³

PRETEXTS = {
    "gen": {"block": 8},  # the demo's
    "gen-lw3": {"block": 8, "lesion_weight": 3.0, "ssim_weight": 0.0},
    "mask-lw10": {
        "block": 8, "policy": "masked", "ratio_alone": 0.5, "lesion_weight": 10.0, "lesion_flair": 1.5,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One fine-tuning."""

    start: str = "scratch"
    labels: int = 2
    draw: int = 0
    lr: float = 9e-3
    steps: int = 200
    reset: bool = False
    parts: tuple = ("encoder", "decoder")

    @property
    def arm(self):
        """Start and how it is transferred."""
        return self.start + ("-reset" if self.reset else "") + ("-encoder" if len(self.parts) == 1 else "")

    @property
    def name(self):
        """Unique name, also of its folder."""
        return f"{self.arm}_n{self.labels}_d{self.draw}_lr{self.lr:g}_s{self.steps}"


def exploration():
    """Every run on tuning people that was planned, the most telling first."""
    pairs = (0, 1)
    runs = [Run(draw=d) for d in (0, 1, 2)]
    runs += [Run("gen", draw=d) for d in pairs]
    runs += [Run("gen", draw=d, reset=True) for d in pairs]
    runs += [Run(labels=16), Run(labels=1), Run(labels=1, draw=1)]
    runs += [Run("mask-lw10", draw=d) for d in pairs]
    runs += [Run(start, draw=d, lr=2e-2) for start in ("scratch", "gen") for d in pairs]
    runs += [Run(start, draw=d, lr=3e-3) for start in ("scratch", "gen") for d in pairs]
    runs += [Run("gen", draw=d, reset=True, lr=2e-2) for d in pairs]
    runs += [Run("gen-lw3", draw=d) for d in pairs]
    runs += [Run("gen-shuffled", draw=0)]
    runs += [Run("gen", draw=d, parts=("encoder",)) for d in pairs]
    runs += [Run(labels=4), Run(labels=1, draw=2)]
    return runs


class Ground:
    """The cohort and who is what in it."""

    def __init__(self, out):
        simulate_cohort(
            out / "cohort", make_recipe("ms-3t", {"spacing": 2.0}), subjects=PEOPLE, seed=COHORT_SEED, workers=1
        )
        cohort = read_bids(out / "cohort")
        plan = Plan(modalities=("T1w", "T2w", "FLAIR"), spacing=(2.0, 2.0, 2.0))
        self.store = prepare(cohort, plan, out / "store", workers=1)
        split = draw_split(sorted(self.store.people), validation=TUNING, test=FINAL, seed=COHORT_SEED)
        self.tuning, self.final, self.free = split.validation, split.test, split.train
        self.pool = nested_budgets(self.free, [POOL], COHORT_SEED)[POOL]
        self.watched = self.tuning[:WATCHED]

    def labelled(self, labels, draw):
        """People whose labels a draw uses; smaller draws are part of larger ones."""
        return nested_budgets(self.pool, [labels], draw)[labels]


def dice_of(network, cases, plan):
    """Person → Dice on the prepared grid."""
    found = {}
    for case in cases:
        mask = predict_case(network, case, plan, patch=PATCH, overlap=0.25).argmax(0)
        found[case.person] = dice(mask, case.label())
    return found


def watcher(ground):
    """Scores the watched people at the steps of CURVE. The weights kept are always the last: what fit calls dice only grows."""
    calls = 0

    def watch(network):
        nonlocal calls
        calls += 1
        wanted = 25 * calls in CURVE
        scores = dice_of(network, ground.store.of(ground.watched), ground.store.plan) if wanted else {}
        return {"dice": float(calls), **scores}

    return watch


def finetuned(run, ground, out):
    """Fine-tune, or read what stands: {"dice": step → person → Dice, "loss": step → mean of the last 25, "seconds"}."""
    folder = out / "runs" / run.name
    if not (folder / "model" / "model.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        training = Training(
            steps=run.steps, lr=run.lr, seed=run.draw, threads=1, workers=1, validate_every=25, checkpoint_every=run.steps,
            tensorboard="off",
        )  # fmt: skip
        cases = ground.store.of(ground.labelled(run.labels, run.draw))
        job = Job(
            method="segmentation", settings={"labels": {"lesion": 1}}, network=NETWORK,
            stage=Finetune(patch=PATCH, batch=2, training=training), streams=(Stream(cases, 2, "lesion", 0.5),),
            start=None if run.start == "scratch" else out / "pretrain" / run.start,
            parts=run.parts, norm_reset=run.reset,
        )  # fmt: skip
        train(job, ground.store, folder, validate=watcher(ground))
    rows = read_log(folder / "log.jsonl")
    scored = [(row["step"] + 1, {k: v for k, v in row["validation"].items() if k != "dice"})
              for row in rows if row.get("validation")]  # fmt: skip
    loss = {
        step: float(np.mean([row["total"] for row in rows[step - 25 : step]])) for step in CURVE if step <= run.steps
    }
    seconds = sum(row["seconds"] for row in rows)
    return {"dice": {step: scores for step, scores in scored if scores}, "loss": loss, "seconds": seconds}


def pretrained(name, ground, out):
    """Pre-train on everyone who is neither tuning nor final; images only. Also the shuffled control."""
    folder = out / "pretrain" / name
    if (folder / "model" / "model.json").is_file():
        return
    if name == "gen-shuffled":
        weights, description = load_model(out / "pretrain" / "gen" / "model")
        rng = torch.Generator().manual_seed(0)
        for tensor in (t for t in weights.values() if t.ndim == 5):
            tensor.copy_(tensor.flatten()[torch.randperm(tensor.numel(), generator=rng)].view_as(tensor))
        module = build_method(
            "generative", description.settings, build_encoder(NETWORK, description.modalities)
        ).export()
        module.load_state_dict(weights)
        save_model(folder / "model", module, description)
        return
    training = Training(steps=800, lr=3e-3, threads=1, workers=1, tensorboard="off")
    stage = Pretrain(
        method="generative", settings=PRETEXTS[name], patch=PATCH, batch=2, training=training,
        augmentation=Augmentation(),  # the default when this was run; since then flips and rotations only
    )  # fmt: skip
    pretrain(ground.store, folder, stage=stage, network=NETWORK, people=ground.free)


def norms(name, out):
    """Part → norm of its convolutions after pre-training over the norm at the start, geometric mean."""
    weights, description = load_model(out / "pretrain" / name / "model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the training's seed
        fresh = build_method(
            "generative", description.settings, build_encoder(NETWORK, description.modalities)
        ).export()
    ratios = {}
    for key, before in fresh.state_dict().items():
        if before.ndim == 5:
            part = ".".join(key.split(".")[:3]) if "stages" in key else ".".join(key.split(".")[:2])
            ratios.setdefault(part, []).append(float((weights[key].norm() / before.norm()).log()))
    return {part: round(float(np.exp(np.mean(values))), 2) for part, values in ratios.items()}


def restored_flair(network, case, modalities, hide):
    """(true, made) FLAIR, hidden as a whole or in every second 8³ block."""
    image = torch.from_numpy(np.array(case.image(), dtype=np.float32))
    flair = modalities.index("FLAIR")
    made = torch.zeros(image.shape[1:])

    def fill(hidden, shown):
        visible = image.clone()
        visible[flair][hidden] = 0
        present = torch.tensor([m != "FLAIR" or shown for m in modalities])

        def guess(windows):
            return network.generate(network.network(windows, present.expand(len(windows), -1)))[:, flair : flair + 1]

        with torch.inference_mode():
            answer = sliding_window_inference(visible[None], PATCH, 2, guess, 0.25, "gaussian")[0, 0]
        made[hidden] = answer[hidden]

    if hide == "all":
        fill(torch.ones_like(made, dtype=torch.bool), shown=False)
    else:
        board = sum(torch.meshgrid(*(torch.arange(n) // 8 for n in made.shape), indexing="ij")) % 2 == 0
        fill(board, shown=True)
        fill(~board, shown=True)
    return image[flair].numpy(), made.numpy()


def contrasts(volume, case):
    """Lesion minus its ring (2 voxels around, no lesion, in the brain), z-score units, for each lesion that is large enough."""
    label = case.label() > 0
    parts, count = ndimage.label(label, np.ones((3, 3, 3)))
    found = []
    for number in range(1, count + 1):
        lesion = parts == number
        ring = ndimage.binary_dilation(lesion, iterations=2) & ~label & case.foreground()
        if lesion.sum() >= LESION_VOXELS and ring.sum() >= LESION_VOXELS:
            found.append(float(volume[lesion].mean() - volume[ring].mean()))
    return found


def slope(true, made):
    """Least squares of made on true contrast through the origin, the mean of both, and the correlation."""
    t, m = np.array(true), np.array(made)
    return {"slope": round(float((t * m).sum() / (t * t).sum()), 3), "correlation": round(float(np.corrcoef(t, m)[0, 1]), 3),
            "true": round(float(t.mean()), 3), "made": round(float(m.mean()), 3), "lesions": len(t)}  # fmt: skip


def restoration(name, ground, out):
    """How much of the lesions' FLAIR contrast a pretext restores in the watched people."""
    modalities = ground.store.plan.modalities
    network = build_method("generative", PRETEXTS[name], build_encoder(NETWORK, modalities))
    load_weights(Checkpoints(out / "pretrain" / name / "checkpoints").find("last"), network)
    network.eval()
    found = {}
    for hide in ("all", "blocks"):
        true, made = [], []
        for case in ground.store.of(ground.watched):
            volumes = restored_flair(network, case, modalities, hide)
            true += contrasts(volumes[0], case)
            made += contrasts(volumes[1], case)
        found[hide] = slope(true, made)
    return found


def voxelwise(ground):
    """The same for a quadratic regression of FLAIR on T1w and T2w, voxel by voxel, fitted on the pool."""

    def features(image):
        a, b = image[0], image[1]
        return np.stack([np.ones_like(a), a, b, a * a, b * b, a * b], -1)

    rng, x, y = np.random.default_rng(0), [], []
    for case in ground.store.of(ground.pool):
        image = np.array(case.image(), dtype=np.float32)
        inside = rng.permutation(np.flatnonzero(case.foreground()))[:5000]
        x.append(features(image).reshape(-1, 6)[inside])
        y.append(image[2].ravel()[inside])
    weights = np.linalg.lstsq(np.concatenate(x), np.concatenate(y), rcond=None)[0]
    true, made = [], []
    for case in ground.store.of(ground.watched):
        image = np.array(case.image(), dtype=np.float32)
        true += contrasts(image[2], case)
        made += contrasts(features(image) @ weights, case)
    return slope(true, made)


def lesion_like(ground):
    """FLAIR z-score above which a voxel counts as lesion-like → mean over the pool: share of lesion voxels found, share that is lesion, share of the brain."""
    found = {}
    for limit in (1.0, 1.5, 2.0):
        rows = []
        for case in ground.store.of(ground.pool):
            image, lesion = np.array(case.image(), dtype=np.float32), case.label() > 0
            like = (image[2] > limit) & (image[0] > -0.5) & (image[0] < 2.0) & case.foreground()
            hit = (like & lesion).sum()
            rows.append((hit / lesion.sum(), hit / like.sum(), like.sum() / case.foreground().sum()))
        found[limit] = dict(zip(("recall", "precision", "of_brain"), np.mean(rows, 0).round(4).tolist(), strict=True))
    return found


def threshold(ground, labels, draw):
    """Dice of the watched people by one FLAIR threshold in the brain, the best for the labelled people of a draw."""
    limits = np.arange(0.5, 3.0, 0.05)

    def scores(case, chosen):
        flair = np.array(case.image()[2], dtype=np.float32)
        return [dice((flair > limit) & case.foreground(), case.label()) for limit in chosen]

    labelled = [scores(case, limits) for case in ground.store.of(ground.labelled(labels, draw))]
    limit = limits[np.mean(labelled, 0).argmax()]
    people = {case.person: scores(case, [limit])[0] for case in ground.store.of(ground.watched)}
    return {"limit": round(float(limit), 2), "dice": bootstrap_mean(people.values(), seed=0).as_row()}


def last(result):
    """Person → Dice at the last step."""
    return result["dice"][max(result["dice"])]


def mean_over(results):
    """Person → mean over runs, so that people are the units of the bootstrap."""
    return {person: float(np.mean([scores[person] for scores in results])) for person in results[0]}


def choose(results):
    """Best rate of scratch, and best (arm, rate) of a pre-trained start, by mean Dice of draws 0 and 1 at 2 labels."""
    table = {}
    for run, result in results.items():
        if run.labels == 2 and run.draw in (0, 1) and run.steps == 200 and run.start != "gen-shuffled":
            table.setdefault((run.start, run.reset, run.parts, run.lr), {})[run.draw] = np.mean(
                list(last(result).values())
            )
    means = {key: float(np.mean(list(v.values()))) for key, v in table.items() if len(v) == 2}
    best = {}
    for wanted in (True, False):
        best[wanted] = max((k for k in means if (k[0] == "scratch") is wanted), key=means.__getitem__)
    return best[True], best[False]


def confirm(choices, ground, out):
    """Fine-tune as the demo does (400 steps) on new draws; score the final people, once."""
    file = out / "final.json"
    if file.exists():
        return json.loads(file.read_text())
    found = {"arms": {}}
    for start, reset, parts, lr in choices:
        runs = [Run(start, 2, draw, lr, 400, reset, parts) for draw in FINAL_DRAWS]
        curves = [finetuned(run, ground, out) for run in runs]
        scores = []
        for run in runs:
            network, _ = load_network(out / "runs" / run.name)
            with torch.autocast("cpu", torch.bfloat16):
                scores.append(dice_of(network, ground.store.of(ground.final), ground.store.plan))
        found["arms"][f"{runs[0].arm} lr {lr:g}"] = {
            "draws": dict(zip(FINAL_DRAWS, scores, strict=True)),
            "tuning_curves": [{k: float(np.mean(list(v.values()))) for k, v in c["dice"].items()} for c in curves],
            "mean": bootstrap_mean(mean_over(scores).values(), seed=0).as_row(),
        }
    scratch, other = ([*arm["draws"].values()] for arm in found["arms"].values())
    found["difference"] = paired_difference(mean_over(other), mean_over(scratch), seed=0).as_row()
    found["difference_per_draw"] = [
        paired_difference(o, s, seed=0).as_row() for o, s in zip(other, scratch, strict=True)
    ]
    found["difference_over_draws"] = over_draws([row["mean"] for row in found["difference_per_draw"]])
    file.write_text(json.dumps(found, indent=1))
    return found


def summary(results):
    """One row a run, with the paired difference to scratch of the same labels, draw, rate and steps."""
    rows = []
    for run, result in results.items():
        scores = last(result)
        row = {
            "run": run.name,
            "arm": run.arm,
            "labels": run.labels,
            "draw": run.draw,
            "lr": run.lr,
            "steps": run.steps,
        }
        row["dice"] = bootstrap_mean(scores.values(), seed=0).as_row()
        row["curve"] = {step: round(float(np.mean(list(s.values()))), 4) for step, s in result["dice"].items()}
        row["loss"] = {step: round(value, 4) for step, value in result["loss"].items()}
        row["people"] = {person: round(value, 4) for person, value in scores.items()}
        row["seconds"] = round(result["seconds"], 1)
        twin = results.get(Run(labels=run.labels, draw=run.draw, lr=run.lr, steps=run.steps))
        if twin and run.start != "scratch":
            row["minus_scratch"] = paired_difference(scores, last(twin), seed=0).as_row()
        rows.append(row)
    return rows


def arms(results):
    """Arm and rate at 2 labels, draws 0 and 1: mean of both, and the paired difference to scratch of the same rate over people."""
    found = {}
    for run in results:
        pair = [Run(run.start, 2, draw, run.lr, 200, run.reset, run.parts) for draw in (0, 1)]
        twins = [Run(lr=run.lr, draw=draw) for draw in (0, 1)]
        if run.draw == 0 and all(r in results for r in pair + twins):
            ours, theirs = ([last(results[r]) for r in group] for group in (pair, twins))
            row = {"draws": [round(float(np.mean(list(o.values()))), 4) for o in ours]}
            row["dice"] = bootstrap_mean(mean_over(ours).values(), seed=0).as_row()
            row["minus_scratch"] = paired_difference(mean_over(ours), mean_over(theirs), seed=0).as_row()
            found[f"{run.arm} lr {run.lr:g}"] = row
    return found


def over_draws(differences):
    """Mean of the draws' differences with its 95 % t interval: what the few draws say about another draw's mean."""
    low, high = stats.t.interval(0.95, len(differences) - 1, np.mean(differences), stats.sem(differences))
    return {"mean": float(np.mean(differences)), "low": float(low), "high": float(high), "n": len(differences)}


def write(content):
    """The JSON beside this file."""
    RESULT.write_text(json.dumps(content, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--until", type=float, default=None, help="start no new exploratory run after so many minutes")
    parser.add_argument("--explore", action="store_true", help="do not touch the final people")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out, begun = arguments.out, time.monotonic()
    ground = Ground(out)
    content = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/study_pretraining.py --out FOLDER",
        "versions": {"python": platform.python_version()}
        | {k: version(k) for k in ("oligovox", "torch", "monai", "numpy", "scipy")},
        "cohort": {"simulated": PEOPLE, "seed": COHORT_SEED, "spacing_mm": 2.0},
        "people": {"unlabelled_and_pool": ground.free, "pool": ground.pool, "tuning": ground.tuning,
                   "watched": ground.watched, "final": ground.final},
        "load_ml": {c.person: round(c.lesion_voxels * 0.008, 2) for c in ground.store.cases},
        "labelled": {f"{n} labels, draw {d}": ground.labelled(n, d) for n in (1, 2) for d in (0, 1, 2, *FINAL_DRAWS)},
        "pretexts": PRETEXTS, "pretraining": {}, "voxelwise_regression": voxelwise(ground),
        "lesion_like": lesion_like(ground),
        "flair_threshold": {f"{n} labels, draw {d}": threshold(ground, n, d) for n in (1, 2) for d in (0, 1, 2)},
    }  # fmt: skip
    results = {}
    for run in exploration():
        stands = (out / "runs" / run.name / "model" / "model.json").is_file()
        if not stands and arguments.until is not None and time.monotonic() - begun > 60 * arguments.until:
            continue
        if run.start not in ("scratch", *content["pretraining"]):
            pretrained(run.start, ground, out)
            content["pretraining"][run.start] = {"norm_growth": norms(run.start, out)}
            if run.start in PRETEXTS:
                rows = read_log(out / "pretrain" / run.start / "log.jsonl")
                content["pretraining"][run.start] |= {
                    "seconds": round(sum(row["seconds"] for row in rows), 1),
                    "loss": {
                        s: round(float(np.mean([r["total"] for r in rows[s - 100 : s]])), 4) for s in (100, 400, 800)
                    },
                    "flair_contrast": restoration(run.start, ground, out),
                }
        results[run] = finetuned(run, ground, out)
        write(content | {"exploration": summary(results)})
        print(f"{run.name}  {np.mean(list(last(results[run]).values())):.3f}", flush=True)
    choices = choose(results)
    content |= {"arms": arms(results), "exploration": summary(results), "chosen": [list(choice) for choice in choices]}
    write(content)
    print("chosen on tuning people:", choices, flush=True)
    if not arguments.explore:
        write(content | {"final": confirm(choices, ground, out)})


if __name__ == "__main__":
    main()
