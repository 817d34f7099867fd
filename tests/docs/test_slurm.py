"""docs/how-to/slurm.sh with stand-ins for SLURM's commands: told that time is up, it saves and requeues; started again, it finishes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "docs" / "how-to" / "slurm.sh"
STAND_INS = {
    "srun": '"$@" & echo $! > "$CALLS/pid"; wait $!',
    "scancel": 'echo "$@" >> "$CALLS/scancel"; kill -TERM "$(cat "$CALLS/pid")"',
    "scontrol": 'echo "$@" >> "$CALLS/scontrol"',
}


def test_a_job_whose_time_is_up_goes_on_later(
    oligovox: Callable[..., subprocess.CompletedProcess[str]], phantom: Path, tmp_path: Path
) -> None:
    store, run, calls, bin_ = (tmp_path / name for name in ("store", "run", "calls", "bin"))
    oligovox("prepare", phantom, store, "--workers", 1)
    calls.mkdir()
    bin_.mkdir()
    for name, body in STAND_INS.items():
        (bin_ / name).write_text(f"#!/bin/bash\n{body}\n")
        (bin_ / name).chmod(0o755)
    path = os.pathsep.join([str(bin_), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "CALLS": str(calls), "SLURM_JOB_ID": "7", "OMP_NUM_THREADS": "1"}
    options = [
        "--preset",
        "nano",
        "--steps",
        "60",
        "--set",
        "patch=[16,16,16]",
        "--set",
        "training.checkpoint_every=60",
    ]
    command = ["bash", str(SCRIPT), str(store), str(run), *options]

    job = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    log, deadline = run / "log.jsonl", time.monotonic() + 120
    while not log.exists() or len(log.read_text().splitlines()) < 2:
        assert job.poll() is None, job.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    _, words = job.communicate(timeout=120)
    assert job.returncode == 1
    assert "stopped by SIGTERM after step" in words
    assert (calls / "scancel").read_text() == "--signal=TERM 7\n"
    assert (calls / "scontrol").read_text() == "requeue 7\n"
    done = len(log.read_text().splitlines())
    assert 2 <= done < 60

    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    assert len(log.read_text().splitlines()) == 60
    assert (run / "model" / "model.json").is_file()
    assert (calls / "scontrol").read_text() == "requeue 7\n"  # a finished job is not queued again
