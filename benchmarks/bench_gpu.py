"""Training on a GPU: steps per second, busy share, peak memory, for the sizes a study uses. Without a GPU it says so and ends with exit code 0.

96³ × 4 sequences, batch 2, bf16: residual encoder M and Swin with feature size 48, each in pre-training (generative, masked reconstruction) and
fine-tuning, through `engine.fit` with the default augmentation on the device. Batches are made beforehand: reading is another benchmark.
Busy share: the part of the wall time in which kernels ran, from torch.profiler over a few steps; nvidia-ml's own utilisation beside it,
where pynvml is installed.
"""

import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from common import QUICK, headline, progress, spread, table, write
from oligovox.engine.fit import Training, fit
from oligovox.engine.runtime import Runtime
from oligovox.experiment.recipe import NetworkChoice
from oligovox.experiment.training import build_encoder, build_method
from oligovox.sample.augment import Augmentation, augment
from oligovox.sample.batch import Batch

MODALITIES, SIDE, BATCH = ("T1w", "T1wGd", "T2w", "FLAIR"), 96, 2
WARM, TIMED, PROFILED = 4, 4 if QUICK else 24, 6
NETWORKS = {
    "resenc M": NetworkChoice(name="resenc", settings={"preset": "M"}),
    "swin 48": NetworkChoice(name="swin", settings={"feature_size": 48}),
}
METHODS = ("generative", "masked_reconstruction", "segmentation")


def make_batches():
    made = []
    for number in range(4):
        rng = torch.Generator().manual_seed(number)
        foreground = torch.zeros(BATCH, 1, SIDE, SIDE, SIDE, dtype=torch.bool)
        foreground[..., 8:-8, 8:-8, 8:-8] = True
        image = torch.randn(BATCH, len(MODALITIES), SIDE, SIDE, SIDE, generator=rng) * foreground
        made.append(
            Batch(
                image=image,
                present=torch.ones(BATCH, len(MODALITIES), dtype=torch.bool),
                foreground=foreground,
                spacing=torch.ones(BATCH, 3),
                modalities=MODALITIES,
                cases=("a",) * BATCH,
                label=(image[:, 0] > 2).long(),
            )
        )
    return lambda step, micro: made[step % len(made)]


class Watch:
    """Given to `fit` as its augmentation, which it calls once at the start of each step; profiles the last steps, times those before."""

    def __init__(self):
        self.starts, self.utilisation, self.profiler, self.begun = [], [], None, 0.0

    def __call__(self, batch, rng):
        step = len(self.starts)
        if step == WARM + TIMED:
            torch.cuda.synchronize()
            self.profiler = profile(activities=[ProfilerActivity.CUDA])
            self.profiler.start()
            self.begun = time.perf_counter()
        self.starts.append(time.perf_counter())
        if WARM < step <= WARM + TIMED:
            self._ask()
        return augment(batch, Augmentation(), rng)

    def _ask(self):
        try:
            self.utilisation.append(torch.cuda.utilization())
        except (ImportError, ModuleNotFoundError, RuntimeError):
            self.utilisation = []

    def busy(self):
        """Share of the wall time of the profiled steps in which at least one kernel ran."""
        torch.cuda.synchronize()
        wall = time.perf_counter() - self.begun
        self.profiler.stop()
        spans = sorted(
            (event.time_range.start, event.time_range.end)
            for event in self.profiler.events()
            if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
        )
        covered, reached = 0.0, float("-inf")
        for start, end in spans:
            covered += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        return covered * 1e-6 / wall


def measure(method, network, batches):
    training = Training(
        steps=WARM + TIMED + PROFILED, device="cuda", precision="bf16-mixed", tensorboard="off",
        checkpoint_every=10_000, validate_every=10_000,
    )  # fmt: skip
    runtime, watch, busy = Runtime(training), Watch(), []
    torch.manual_seed(0)
    built = build_method(method, {}, build_encoder(network, MODALITIES))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()

    def last(_):  # `fit` validates once, right after the last step and before it is saved
        busy.append(watch.busy())
        return {"dice": 0.0}

    with tempfile.TemporaryDirectory() as folder:
        fit(
            built,
            batches,
            training,
            Path(folder) / "run",
            runtime=runtime,
            augment=watch,
            validate=last,
            progress=False,
        )
    starts = watch.starts[WARM : WARM + TIMED + 1]
    return {
        "step_s": [b - a for a, b in pairwise(starts)],
        "busy_share": round(busy[0], 3),
        "nvidia_ml_percent": median(watch.utilisation) if watch.utilisation else None,
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
    }


def main():
    if not torch.cuda.is_available():
        print("bench_gpu: skipped, PyTorch sees no GPU here\n")
        return
    raw, results, rows, lines = {}, {}, [], []
    batches = make_batches()
    for label, network in NETWORKS.items():
        for method in METHODS:
            name = f"{label}, {method}"
            found = measure(method, network, batches)
            rate = spread([1 / seconds for seconds in found["step_s"]], 2)
            raw[name], results[name] = {"step_s": found.pop("step_s")}, {"steps_per_second": rate, **found}
            rows.append(
                [
                    name,
                    rate["median"],
                    f"{100 * found['busy_share']:.0f} %",
                    found["nvidia_ml_percent"],
                    found["peak_gib"],
                ]
            )
            value = f"{rate['median']} steps/s, busy {100 * found['busy_share']:.0f} %, {found['peak_gib']} GiB"
            lines.append(headline(f"GPU, {name}", value))
            progress(name)
    table(["training", "steps/s", "busy", "nvidia-ml %", "peak GiB"], rows)
    settings = {"gpu": torch.cuda.get_device_name(), "patch": SIDE, "modalities": len(MODALITIES), "batch": BATCH, "precision": "bf16-mixed",
                "steps": TIMED, "steps_to_warm_up": WARM, "steps_profiled": PROFILED, "tf32": torch.backends.cudnn.allow_tf32}  # fmt: skip
    clock = "wall between the starts of steps (each step waits for the device once); median, lowest, highest"
    write(__file__, clock=clock, settings=settings, raw=raw, results=results, headlines=lines)


if __name__ == "__main__":
    main()
