"""How true `oligovox plan` is: its forecast against the stages of its own recipe, for three very different cohorts.

Simulated: MS at 2 mm with three sequences; glioma at 1 mm with four sequences, cut to a slab of few slices; an abdomen at 3 mm. The plan is made, then everything its
recipe says is run as `oligovox run` runs it, in a process of its own, with STEPS steps of each training; the forecast is for the same STEPS.
Seconds are CPU seconds of all processes, since other work on the machine changes wall time but hardly those; memory is the highest resident
set (VmHWM) of the process that trains. A name (`python benchmarks/plan_accuracy.py ms`) does one cohort only.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import yaml

from common import QUICK, headline, progress, table, write
from oligovox.engine.log import read_log
from oligovox.experiment.planning import plan

STEPS = 20 if QUICK else 200
MINUTES = 0.05 if QUICK else 1.0
COHORTS = {
    "ms": ("ms-3t", 4, ["spacing=2"], None),
    "glioma": ("glioma-2023", 3, ["spacing=1"], slice(50, 98)),
    "abdomen": ("chaos", 4, ["spacing=3"], None),
}
"""Name → preset, people, changes, axial slices that are kept."""
RUN = """
import json, resource, sys
from pathlib import Path
from oligovox.experiment import run
if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2])
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    own, others = (sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    Path(sys.argv[3]).write_text(json.dumps({"memory": peak, "own": own, "workers": others}))
"""


def simulated(name, folder):
    preset, people, changes, slices = COHORTS[name]
    data = folder / name
    settings = [word for change in changes for word in ("--set", change)]
    command = [sys.executable, "-m", "oligovox", "simulate", preset, str(data), "--subjects", str(people), *settings]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for path in data.rglob("*.nii.gz") if slices else ():
        image = nib.load(path)
        nib.save(image.slicer[:, :, slices], path)
    return data


def truth(recipe, folder):
    """CPU seconds and peak bytes of the run."""
    script, found = folder / "run.py", folder / "found.json"
    script.write_text(RUN)
    subprocess.run([sys.executable, str(script), str(recipe), str(folder / "run"), str(found)], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    rows = {stage: list(read_log(path)) for stage, path in (("pretrain", folder / "run/pretrain/log.jsonl"),
            *((f"arm {arm.name}", arm / "log.jsonl") for arm in sorted((folder / "run/arms").iterdir())))}  # fmt: skip
    wall = {stage: sum(row["seconds"] for row in each) for stage, each in rows.items()}
    return json.loads(found.read_text()) | {"wall_of_steps": wall}


def compared(name, folder):
    data = simulated(name, folder)
    progress(f"{name}: simulated")
    found = plan(data, out=folder / "plan", minutes=MINUTES)
    progress(f"{name}: planned, {found['choice']['finetune']['patch']}")
    content = yaml.safe_load((folder / "plan" / "plan.yaml").read_text())
    ratio = STEPS / content["finetune"]["training"]["steps"]
    for stage in ("pretrain", "finetune"):
        content[stage]["training"] |= {"steps": STEPS, "validate_every": STEPS}
    recipe = folder / "short.yaml"
    recipe.write_text(yaml.safe_dump(content))
    cpu, measured = found["forecast"]["cpu_seconds"], found["measured"]["training"]
    arms = 2
    expected = (cpu["pretrain"] + arms * measured["finetune"]["cpu"] * STEPS / ratio) * ratio
    validation = (
        found["measured"]["typical"] * measured["predict"]["validation_cpu"] * content["split"]["validation"] * arms
    )
    expected += validation + cpu["predict"] + cpu["prepare"]
    true = truth(recipe, folder)
    return {
        "choice": found["choice"], "steps": STEPS,
        "cpu_forecast": round(expected, 1), "cpu_true": round(true["own"] + true["workers"], 1),
        "memory_forecast_gib": round(measured["memory"] / 2**30, 3), "memory_true_gib": round(true["memory"] / 2**30, 3),
        "wall_of_steps": true["wall_of_steps"],
    }  # fmt: skip


def main():
    results, rows, lines = {}, [], []
    for name in [name for name in COHORTS if name in sys.argv] or COHORTS:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = found = compared(name, Path(folder))
        time, memory = (100 * (found[f] / found[t] - 1) for f, t in (
            ("cpu_forecast", "cpu_true"), ("memory_forecast_gib", "memory_true_gib")))  # fmt: skip
        rows.append([name, found["cpu_forecast"], found["cpu_true"], f"{time:+.0f} %", found["memory_forecast_gib"],
                     found["memory_true_gib"], f"{memory:+.0f} %"])  # fmt: skip
        value = f"time {time:+.0f} %, memory {memory:+.0f} %"
        lines.append(headline(f"plan against run, {name}", value, "within 25 %", max(abs(time), abs(memory)) <= 25))
    table(["cohort", "CPU s forecast", "true", "", "GiB forecast", "true", ""], rows)
    settings = {"steps": STEPS, "minutes": MINUTES, "cohorts": {k: list(map(str, v)) for k, v in COHORTS.items()}}
    clock = "CPU seconds of all processes; the true ones include start, scores and page, which the forecast leaves out"
    write(__file__, clock=clock, settings=settings, raw={}, results=results, headlines=lines)


if __name__ == "__main__":
    main()
