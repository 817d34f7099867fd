"""How true `oligovox plan` is: its forecast against a run of its own recipe, for three very different cohorts.

Simulated: MS at 2 mm with three sequences; glioma at 1 mm with four, cut to the slab of 48 slices that holds most of the tumour; an abdomen at
3 mm. One cohort after the other is planned and then run, both as a user starts them, with STEPS steps of each training; the forecast is the plan's
own, for that recipe. Time is that of everything, from the start of Python to the page: CPU seconds of the process and its children, which other
work on the machine hardly touches, and wall seconds, which it does. Memory is the highest sum over the process and its workers (Pss, every
0.1 s), or the highest resident set of the main process (VmHWM) where that is more. A name (`plan_accuracy.py ms`) does one cohort and writes nothing.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import yaml

from bench_memory import proportional_kib, tree
from common import QUICK, headline, progress, table, write
from oligovox.experiment.cohorts import read_cohort
from oligovox.experiment.planning_facts import facts_of_cohort
from oligovox.experiment.planning_forecast import Measured, forecast
from oligovox.experiment.recipe import read_recipe

STEPS = 4 if QUICK else 40
MINUTES = 0.05 if QUICK else 0.3
SLAB = 48
COHORTS = {
    "ms": ("ms-3t", 4, "spacing=2", "lesion"),
    "glioma": ("glioma-2023", 3, "spacing=1", "tumour"),
    "abdomen": ("chaos", 4, "anatomy.spacing=[3,3,3]", "organs"),
}
"""Name → preset, people, a change, which label."""
RUN = """
import json, resource, sys, time
from pathlib import Path

begun = time.time()

if __name__ == "__main__":
    from oligovox.cli import app
    from oligovox.experiment import study

    def now():
        spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return time.time(), sum(usage.ru_utime + usage.ru_stime for usage in spent)

    stages = {}

    def clocked(stage, work):
        def timed(*given, **named):
            before = now()
            result = work(*given, **named)
            spent = stages.setdefault(stage, [0, 0])
            for clock, (a, b) in enumerate(zip(before, now())):
                spent[clock] += b - a
            return result
        return timed

    stages["start"] = [now()[0] - begun, now()[1]]
    for stage, names in {"prepare": ("check_cohort", "check_grids", "prepare_cohort"), "pretrain": ("pretrain",), "finetune": ("finetune",),
                         "predict": ("predict_cases",), "score": ("score_pairs",), "page": ("collect", "write_report")}.items():
        for name in names:
            setattr(study, name, clocked(stage, getattr(study, name)))
    app(["run", sys.argv[1], "--out", sys.argv[2]], standalone_mode=False)
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    wall, cpu = now()
    found = {"wall": wall - begun, "cpu": cpu, "largest": peak, "stages": stages}
    Path(sys.argv[3]).write_text(json.dumps(found))
"""


def quietly(command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"plan_accuracy: {command} failed\n{done.stderr}")


def simulated(name, folder):
    preset, people, change, mask = COHORTS[name]
    data = folder / name
    quietly([sys.executable, "-m", "oligovox", "simulate", preset, data, "--subjects", people, "--set", change])
    for subject in data.glob("sub-*") if mask == "tumour" else ():
        tumour = nib.load(next(data.rglob(f"{subject.name}_*tumour_dseg.nii.gz"))).get_fdata() > 0
        voxels = np.convolve(tumour.sum((0, 1)), np.ones(SLAB), "valid")
        begin = int(voxels.argmax())
        assert voxels.max() > 1000
        for path in data.rglob(f"{subject.name}_*.nii.gz"):
            cut = nib.load(path).slicer[:, :, begin : begin + SLAB]
            cut = nib.Nifti1Image(np.asanyarray(cut.dataobj), cut.affine, cut.header)  # read before it is overwritten
            nib.save(cut, path)
    return data


def truth(recipe, folder):
    """Seconds, and bytes at most, of the whole run; seconds of its stages."""
    script, found = folder / "run.py", folder / "found.json"
    script.write_text(RUN)
    command = [sys.executable, script, recipe, folder / "run", found]
    together = 0
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen([str(word) for word in command], stdout=said, stderr=said)
        while process.poll() is None:
            together = max(together, sum(map(proportional_kib, tree(process.pid))))
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"plan_accuracy: the run failed\n{(folder / 'said.txt').read_text()}")
    true = json.loads(found.read_text())
    return true | {"memory": max(true["largest"], 1024 * together)}


def compared(name, folder):
    data, mask = simulated(name, folder), COHORTS[name][-1]
    progress(f"{name}: simulated")
    command = ["plan", data, "--out", folder / "plan", "--minutes", MINUTES, "--mask", mask]
    begun = time.perf_counter()
    quietly([sys.executable, "-m", "oligovox", *command])
    planned = time.perf_counter() - begun
    content = yaml.safe_load((folder / "plan" / "plan.yaml").read_text())
    for stage in ("pretrain", "finetune"):
        content[stage]["training"] |= {"steps": STEPS, "validate_every": STEPS // 2}
    short = folder / "short.yaml"
    short.write_text(yaml.safe_dump(content))
    found = json.loads((folder / "plan" / "plan.json").read_text())
    facts = facts_of_cohort(read_cohort(data, mask=mask))
    expected = forecast(Measured(**found["measured"]), read_recipe(short), facts)
    progress(
        f"{name}: planned in {planned:.0f} s, {found['choice']['network']['settings']}, {found['choice']['finetune']['patch']}"
    )
    true = truth(short, folder)
    stages = {
        stage: {"forecast": [round(expected.seconds.get(stage, 0), 2), round(expected.cpu.get(stage, 0), 2)],
                "true": [round(value, 2) for value in true["stages"].get(stage, [0, 0])]}
        for stage in dict.fromkeys((*expected.seconds, *true["stages"]))
    }  # fmt: skip
    return {
        "choice": found["choice"], "steps": STEPS, "measured": found["measured"],
        "cpu_s": {"forecast": round(sum(expected.cpu.values()), 1), "true": round(true["cpu"], 1)},
        "wall_s": {"forecast": round(sum(expected.seconds.values()), 1), "true": round(true["wall"], 1)},
        "memory_gib": {"forecast": round(expected.memory / 2**30, 3), "true": round(true["memory"] / 2**30, 3)},
        "stages_wall_cpu_s": stages, "largest_process_gib": round(true["largest"] / 2**30, 3),
    }  # fmt: skip


def main():
    results, rows, lines = {}, [], []
    asked = [name for name in COHORTS if name in sys.argv]
    for name in asked or COHORTS:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = found = compared(name, Path(folder))
        off = {
            key: 100 * (found[key]["forecast"] / found[key]["true"] - 1) for key in ("cpu_s", "wall_s", "memory_gib")
        }
        rows.append([name, *(cell for key, miss in off.items() for cell in (*found[key].values(), f"{miss:+.0f} %"))])
        value = f"CPU time {off['cpu_s']:+.0f} %, memory {off['memory_gib']:+.0f} % (wall time {off['wall_s']:+.0f} %)"
        met = max(abs(off["cpu_s"]), abs(off["memory_gib"])) <= 25
        lines.append(headline(f"plan against run, {name}", value, "within 25 %", met))
        for stage, spent in found["stages_wall_cpu_s"].items():
            progress(f"{name} {stage}: forecast {spent['forecast']}, true {spent['true']} (wall, CPU s)")
    table(["cohort", "CPU s forecast", "true", "", "wall s forecast", "true", "", "GiB forecast", "true", ""], rows)
    if asked:
        print(*(f"{line['what']}: {line['value']}" for line in lines), sep="\n")
        return
    settings = {"steps": STEPS, "minutes": MINUTES, "cohorts": {k: list(map(str, v)) for k, v in COHORTS.items()}}
    clock = "CPU seconds of all processes decide, since other work on the machine hardly touches them; wall seconds stand beside them"
    write(__file__, clock=clock, settings=settings, raw={}, results=results, headlines=lines)


if __name__ == "__main__":
    main()
