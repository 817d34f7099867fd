"""A toy method with all that makes resuming hard (dropout, random views, an EMA copy, a queue), and a script that trains it.

python toy.py OUT STEPS [key=value of Training …]
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from oligovox.engine.checkpoint import read_tensors
from oligovox.engine.fit import FitResult, Training, fit
from oligovox.engine.log import read_log
from oligovox.errors import NonFiniteLoss
from oligovox.method import Clock, Losses, Method
from oligovox.sample.batch import Batch


@dataclass(frozen=True)
class Views:
    noisy: Tensor
    target: Tensor


class Toy(Method[Views]):
    """Denoise two channels. `odd` is used in every second micro-batch only, `never` in none."""

    def __init__(self, width: int = 2, poison_step: int | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv3d(2, width, 3, padding=1), nn.Dropout(0.2), nn.GELU(), nn.Conv3d(width, 2, 1))
        self.mean_net = nn.Conv3d(width, 2, 1).requires_grad_(False)
        self.odd, self.never = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
        self.register_buffer("queue", torch.zeros(4))
        self.poison_step = poison_step
        self.after: list[int] = []

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        noise = torch.randn(batch.image.shape, generator=rng, device=rng.device)
        return Views(batch.image + 0.1 * noise, batch.image)

    def losses(self, views: Views, clock: Clock) -> Losses:
        out = self.net(views.noisy)
        error = (out - views.target).square().mean()
        if views.target.mean() > 0:
            error = error + (self.odd - 1).square().mean()
        if clock.step == self.poison_step:
            error = error * torch.where(views.target.mean() > 0, torch.nan, 1.0)
        return Losses(
            terms={"error": error, "size": out.square().mean()},
            weights={"size": 0.01},
            notes={"progress": clock.progress},
            carry={"mean": out.mean()},
        )

    def after_step(self, losses: Losses, clock: Clock) -> None:
        self.after.append(clock.step)
        assert not losses.carry["mean"].requires_grad
        self.queue.copy_(torch.cat([self.queue[1:], losses.carry["mean"].view(1)]))
        for mine, theirs in zip(self.mean_net.parameters(), self.net[3].parameters(), strict=True):
            mine.lerp_(theirs, 0.1)

    def export(self) -> nn.Module:
        return self.net


def batches(step: int, micro: int) -> Batch:
    """A pure function of both. Even micro-batches have a negative mean, odd ones a positive."""
    rng = np.random.default_rng((step, micro))
    image = torch.from_numpy(rng.normal(size=(2, 2, 4, 4, 4)).astype(np.float32))
    image = image - image.mean() + (0.1 if micro % 2 else -0.1)
    return Batch(
        image=image,
        present=torch.ones(2, 2, dtype=torch.bool),
        foreground=torch.ones(2, 1, 4, 4, 4, dtype=torch.bool),
        spacing=torch.ones(2, 3),
        modalities=("T1w", "FLAIR"),
        cases=(f"sub-{micro}a", f"sub-{micro}b"),
    )


def train(
    out: Path, training: Training, *, width: int = 2, poison_step: int | None = None, **options: Any
) -> FitResult:
    """A fresh toy, always with the same first weights."""
    torch.manual_seed(0)
    return fit(Toy(width, poison_step), options.pop("batches", batches), training, out, progress=False, **options)


def settings(steps: int, **changes: Any) -> Training:
    return Training(
        **{
            "steps": steps,
            "device": "cpu",
            "precision": "32-true",
            "threads": 1,
            "tensorboard": "off",
            "checkpoint_every": 3,
            "validate_every": 4,
            **changes,
        }
    )


def all_tensors(folder: Path) -> dict[str, Tensor]:
    """Weights and optimiser memory of a checkpoint."""
    return read_tensors(folder / "weights.safetensors") | read_tensors(folder / "optimizer.safetensors")


def kill_often(out: Path, training: Training, after: tuple[int, ...]) -> None:
    """Train in a child process, kill -9 it at a random moment past so many steps, again and again; then let it finish."""
    chance = random.Random(0)
    for steps in (*after, None):
        child = os.fork()
        if child == 0:
            train(out, training)
            os._exit(0)
        if steps is not None:
            while len(read_log(out / "log.jsonl")) < steps:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.008))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)} ")


if __name__ == "__main__":
    import lightning_fabric  # noqa: F401  # before the forks, since it takes seconds

    mode, folder = sys.argv[1], Path(sys.argv[2])
    if mode == "kill":
        kill_often(folder, settings(60, checkpoint_every=1), after=(1, 8, 20, 35))
    elif mode == "ranks":
        train(folder / "good", settings(8))
        try:
            train(folder / "bad", settings(8), poison_step=2)
        except NonFiniteLoss as error:
            (folder / f"rank{os.environ['RANK']}.txt").write_text(str(error))
