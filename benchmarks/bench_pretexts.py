"""What a step of every pretext costs: speed against supervised segmentation, parameters, peak memory of the process.

Residual encoder tiny, 3 sequences, 32³, batch 2, one thread, the precision and the settings that training has by default; `bm_mae` on the small ViT
that its page names, and a larger patch where a method asks for one: the row says so. A step is what `engine.fit` does: views, losses under
autocast, backward, clipping, AdamW, what follows the step. Patches are read before, and nothing augments them but the method itself. Each
method has a process of its own: there it takes a few steps alone, in which its peak memory is read, then its steps and those of
segmentation alternate one by one. Segmentation against itself says how far a ratio can be trusted. Patches are those of two simulated MS
patients, the same four batches in turn.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch.nn.utils import clip_grad_norm_

from common import QUICK, alternate, headline, progress, ratio, table, write
from oligovox.catalogue import entries
from oligovox.engine.fit import Training, build_optimizer
from oligovox.engine.runtime import Runtime
from oligovox.experiment.budget_jobs import _Memory
from oligovox.experiment.recipe import NetworkChoice
from oligovox.experiment.training import build_encoder, build_method
from oligovox.experiment.verbs import prepare, simulate
from oligovox.method import Clock
from oligovox.prepare.store import Store
from oligovox.sample.patches import PatchSource, Stream

YARDSTICK = "segmentation"
MODALITIES, SIDE, BATCH = ("T1w", "T2w", "FLAIR"), 32, 2
BATCHES, ALONE, ROUNDS = 4, 4, 16  # different batches; steps before the peak is read; timed steps of each arm
RESENC = NetworkChoice(settings={"preset": "tiny"})
ENCODERS = {"bm_mae": NetworkChoice(name="vit", settings={"width": 48, "depth": 2})}
SETTINGS = {"frodo": {"primary": "T1w"}}  # there is no QSM


def methods(room):
    """Names of the methods of pretext/, semi/ or tasks/, found by folder."""
    return [entry.name for entry in entries("METHOD").values() if entry.room == room]


def streams_of(name, cases):
    """What a micro-batch is made of: as in training, a strategy sees as many patches without a label beside the labelled ones."""
    labelled = Stream(cases, BATCH)
    return (labelled, Stream(cases, BATCH, use_labels=False)) if name in methods("semi") else (labelled,)


def encoder_of(method):
    return ENCODERS.get(method, RESENC)


def side_of(method):
    """The smallest side from `SIDE` on that it takes."""
    return -(-SIDE // method.needs.patch_multiple) * method.needs.patch_multiple


class Steps:
    """Takes an optimiser step of one method when it is called."""

    def __init__(self, name, store, runtime, training):
        torch.manual_seed(0)
        self.method = build_method(name, SETTINGS.get(name, {}), build_encoder(encoder_of(name), store.plan.modalities))
        self.runtime, self.training, self.done = runtime, training, 0
        runtime.place(self.method)
        self.method.train()
        self.optimizer = build_optimizer(self.method, training)
        self.side = side_of(self.method)
        source = PatchSource(store.plan, streams_of(name, store.cases), (self.side,) * 3, 0)
        self.batches = [source.batch(number, 0).to(runtime.device) for number in range(BATCHES)]

    def __call__(self):
        clock, rng = Clock(self.done, self.training.steps), self.runtime.seeded(0, self.done, 0)
        with torch.no_grad():
            views = self.method.views(self.batches[self.done % BATCHES], rng)
        with self.runtime.autocast():
            losses = self.method.losses(views, clock)
        self.runtime.backward(losses.total)
        clip_grad_norm_([p for p in self.method.parameters() if p.requires_grad], self.training.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            carry = {name: value.detach() for name, value in losses.carry.items()}
            self.method.after_step(replace(losses, terms={}, carry=carry), clock)
        self.done += 1


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def by_batches(seconds):
    """Sums over steps that saw every batch once."""
    return [sum(seconds[start : start + BATCHES]) for start in range(0, len(seconds), BATCHES)]


def measure(name, store):
    """In a process of its own: parameters, MB before the method was built and at its peak, seconds of a step beside segmentation's."""
    training = Training(threads=1)
    runtime = Runtime(training)
    imported = _Memory().peak()["memory_mb"]
    memory = _Memory()
    method = Steps(name, store, runtime, training)
    for _ in range(ALONE):
        method()
    peak = memory.peak()["memory_mb"]
    times = alternate({"method": method, YARDSTICK: Steps(YARDSTICK, store, runtime, training)}, ROUNDS)
    exported = count(method.method.export())
    return {
        "network": encoder_of(name).model_dump(),
        "side": method.side,
        "precision": runtime.precision,
        "exported": exported,
        "training_only": count(method.method) - exported,
        "peak_mb": peak,
        "imports_mb": imported,
        "step_ms": round(1e3 * median(times["method"]["cpu"]), 1),
        "speed": ratio(*(by_batches(times[arm]["cpu"]) for arm in (YARDSTICK, "method"))),
        "times": times,
    }


def in_a_process(name, folder):
    """`measure` there."""
    command = [sys.executable, __file__, "--method", name, str(folder), *(["--quick"] if QUICK else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def unusual(found):
    """What of a row is not as in the others, for its name."""
    said = [] if found["network"]["name"] == RESENC.name else [f"encoder {found['network']['name']}"]
    said += [] if found["side"] == SIDE else [f"patch {found['side']}³"]
    return f" ({', '.join(said)})" if said else ""


def main(file, names):
    """Measure these methods beside segmentation, and write what was found beside `file`."""
    results, raw, rows, lines = {}, {}, [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulate(folder / "cohort", subjects=2, workers=1, changes=["spacing=2.0"])
        prepare(folder / "cohort", folder / "store", modalities=MODALITIES, spacing=(2.0, 2.0, 2.0), workers=1)
        progress("two people simulated and prepared")
        for method in (YARDSTICK, *(names[:3] if QUICK else names)):
            found = in_a_process(method, folder / "store")
            raw[method], results[method] = found.pop("times"), found
            speed = "{ratio:.2f} ({low:.2f} … {high:.2f})".format(**found["speed"])
            parameters = [f"{found[key] / 1e3:,.1f} k" for key in ("exported", "training_only")]
            memory = [found["peak_mb"], found["peak_mb"] - found["imports_mb"]]
            rows.append([method + unusual(found), speed, f"{found['step_ms']:.0f}", *parameters, *memory])
            value = f"{speed} × as many steps/s as {YARDSTICK}, {found['step_ms']:.0f} ms; parameters {parameters[0]} exported, "
            value += f"{parameters[1]} in training only; peak memory {memory[0]} MB, {memory[1]} beyond the imports"
            lines.append(headline(f"a step of {method}{unusual(found)}", value))
            progress(f"{method}, {found['step_ms']:.0f} ms a step")
    table(["method", "steps/s", "ms", "exported", "training only", "peak MB", "beyond imports"], rows)
    yardstick = results[YARDSTICK]
    settings = {"network": "resenc tiny", "modalities": MODALITIES, "patch": SIDE, "batch": BATCH, "threads": 1,
                "precision": yardstick["precision"], "batches": BATCHES, "steps": ROUNDS, "steps_before_the_peak": ALONE}  # fmt: skip
    clock = "cpu of one thread; ratio of the medians of four steps, lowest and highest four; memory once, in MB of 10⁶ bytes"
    write(file, clock=clock, settings=settings, raw=raw, results=results, headlines=lines)


if __name__ == "__main__":
    if "--method" in sys.argv:
        at = sys.argv.index("--method")
        print(json.dumps(measure(sys.argv[at + 1], Store.open(Path(sys.argv[at + 2])))))
    else:
        main(__file__, methods("pretext"))
