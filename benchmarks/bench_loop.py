"""What the training loop costs: `engine.fit` against a bare PyTorch loop that does the same arithmetic.

Same weights, same batches made beforehand, same optimiser, clipping, precision and memory layout; every loss must agree to 1e-6.
The two alternate step by step: before each step of `fit`, a bare loop with a network of its own takes one. A step of `fit` is all
that happens until the next, the row in log.jsonl included. Start-up and the checkpoint at the end are outside; a checkpoint is timed
apart and stated for the default distance of 200 steps.
"""

import tempfile
import time
from copy import deepcopy
from pathlib import Path
from statistics import median

import torch

from common import QUICK, headline, progress, ratio, table, write
from oligovox.engine.checkpoint import Checkpoints, State
from oligovox.engine.fit import Training, build_optimizer, fit
from oligovox.engine.log import read_log
from oligovox.engine.runtime import Runtime
from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc, Settings
from oligovox.sample.batch import Batch
from oligovox.tasks import segmentation

MODALITIES = ("T1w", "T2w", "FLAIR")
SIDE, BATCH = 40, 2
WARM, GROUP, GROUPS = 3, 10, 1 if QUICK else 9
STEPS = WARM + GROUP * GROUPS + 1


class Alternation:
    """Given to `fit` as its augmentation, which it calls at the start of each step: there a bare step is taken and timed."""

    def __init__(self, method, batches, training, runtime):
        runtime.place(method)
        self.method, self.batches, self.training, self.runtime = method, batches, training, runtime
        self.optimizer, self.rng = build_optimizer(method, training), torch.Generator()
        self.losses = []
        self.times = {arm: {"wall": [], "cpu": []} for arm in ("bare", "fit")}
        self.left = None

    def __call__(self, batch, rng):
        begun = self._now("fit", self.left)
        with torch.enable_grad():
            self.losses.append(self.step())
        self.left = self._now("bare", begun)
        return batch

    def step(self):
        """What one would write by hand."""
        step = len(self.losses)
        views = self.method.views(self.batches(step, 0), self.rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.runtime.precision == "bf16-mixed"):
            loss = self.method.losses(views, Clock(step, STEPS)).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.method.parameters(), self.training.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if step % GROUP == WARM:
            progress(f"{self.training.threads} thread(s), {self.runtime.precision}: step {step} of {STEPS}")
        return loss.item()

    def _now(self, arm, since):
        """The time; what went by since then belongs to the arm."""
        now = time.perf_counter(), time.process_time()
        if since is not None and len(self.losses) >= WARM:
            for clock, begun, ended in zip(("wall", "cpu"), since, now, strict=True):
                self.times[arm][clock].append(ended - begun)
        return now


def make_batches():
    made = []
    for number in range(4):
        image = torch.randn(BATCH, len(MODALITIES), SIDE, SIDE, SIDE, generator=torch.Generator().manual_seed(number))
        made.append(
            Batch(
                image=image,
                present=torch.ones(BATCH, len(MODALITIES), dtype=torch.bool),
                foreground=torch.ones(BATCH, 1, SIDE, SIDE, SIDE, dtype=torch.bool),
                spacing=torch.ones(BATCH, 3),
                modalities=MODALITIES,
                cases=("a",) * BATCH,
                label=(image[:, 0] > 2).long(),
            )
        )
    return lambda step, micro: made[step % len(made)]


def compare(threads, folder):
    """Seconds of each step, seconds of a checkpoint, and the precision."""
    training = Training(
        steps=STEPS, threads=threads, lr=1e-3, final_lr=1e-3, warmup=0, checkpoint_every=STEPS, tensorboard="off"
    )
    runtime, batches = Runtime(training), make_batches()
    torch.manual_seed(0)
    method = segmentation.METHOD(ResEnc(MODALITIES, Settings(preset="tiny")), segmentation.Settings())
    bare = Alternation(deepcopy(method), batches, training, runtime)
    result = fit(method, batches, training, folder / "run", runtime=runtime, augment=bare, progress=False)
    ours = [row["total"] for row in read_log(result.log)]
    assert max(abs(a - b) for a, b in zip(ours, bare.losses, strict=True)) < 1e-6, "the loops do not do the same"
    begun = time.perf_counter()
    for number in range(5):
        Checkpoints(folder / "saved").save(bare.method, bare.optimizer, State(step=number, identity={}))
    saving = (time.perf_counter() - begun) / 5
    pairs = GROUP * GROUPS
    times = {arm: {clock: values[:pairs] for clock, values in clocks.items()} for arm, clocks in bare.times.items()}
    return times, saving, runtime.precision


def grouped(values):
    """Medians of each ten steps."""
    return [median(values[start : start + GROUP]) for start in range(0, len(values), GROUP)]


def main():
    raw, results, rows, lines = {}, {}, [], []
    for threads in (1,) if QUICK else (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            times, saving, precision = compare(threads, Path(folder))
        raw[f"threads {threads}"] = times
        found = {c: ratio(grouped(times["fit"][c]), grouped(times["bare"][c])) for c in ("wall", "cpu")}
        step, ours = (1e3 * median(times[arm]["wall"]) for arm in ("bare", "fit"))
        share = 1e3 * saving / (200 * step)
        results[f"threads {threads}"] = found | {
            "bare_ms": round(step, 2), "fit_ms": round(ours, 2), "checkpoint_ms": round(1e3 * saving, 2),
            "checkpoint_share_every_200_steps": round(share, 5),
        }  # fmt: skip
        wall, cpu = ([100 * (found[c][key] - 1) for key in ("ratio", "low", "high")] for c in ("wall", "cpu"))
        quoted = "{:+.1f} % ({:+.1f} … {:+.1f})".format(*wall)
        rows.append([threads, f"{step:.1f}", f"{ours:.1f}", quoted, f"{cpu[0]:+.1f} %", f"{100 * share:.2f} %"])
        value = f"{quoted} of a {step:.0f} ms step, checkpoints {100 * share:.1f} % more"
        lines.append(headline(f"training loop, {threads} thread(s)", value, "≤ 3 %", wall[0] + 100 * share <= 3))
    table(["threads", "bare ms", "fit ms", "overhead, wall", "CPU", "a checkpoint per 200 steps"], rows)
    settings = {"network": "resenc tiny, segmentation", "patch": SIDE, "batch": BATCH, "modalities": len(MODALITIES),
                "precision": precision, "steps": GROUP * GROUPS, "steps_to_warm_up": WARM, "steps_per_group": GROUP}  # fmt: skip
    clock = "wall; ratio of the medians of ten steps, lowest and highest group of ten"
    write(__file__, clock=clock, settings=settings, raw=raw, results=results, headlines=lines)


if __name__ == "__main__":
    main()
