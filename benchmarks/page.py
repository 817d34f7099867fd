"""Write docs/reference/benchmarks.md from the docstrings of bench_*.py and the JSON beside them. `make bench` ends with it."""

import ast
import json
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "reference" / "benchmarks.md"
ORDER = ("loop", "waiting", "patches", "augment", "window", "memory", "networks", "pretexts", "strategies", "gpu")
HEAD = """# Benchmarks

<!-- Written by benchmarks/page.py from the scripts and their JSON: do not edit. -->

Every number we quote about speed and memory, with the script that makes it. `make bench` runs them all, one after another; `--quick` tries one
without writing anything. Data are simulated or random, seeds are fixed, and what is compared is measured side by side in one run. A range
in brackets goes from the lowest to the highest round. Raw times, settings, versions and the machine are in `benchmarks/<name>.json`.
"""
TAIL = """## What is not measured

- Cold disks, network disks and object storage: files lie in the page cache.
- More than one GPU, more than one machine, and GPUs other than the one named above, if one is.
- CPUs without bf16, other operating systems, other numbers of cores.
- How good a model is: that is what a run's own report says.
- Times of a shared machine are noisy. `load` is the number of processes that wanted a core when a script ended, its own included; a
  load well above the script's threads means that other work was going on, and that only ratios, CPU seconds and memory can be trusted.
"""


def section(name):
    script = HERE / f"bench_{name}.py"
    about = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
    parts = [f"## bench_{name}", " ".join(about.split("\n\n")[0].split()), *about.split("\n\n")[1:]]
    result = script.with_suffix(".json")
    if not result.exists():
        return [*parts, f"`python benchmarks/bench_{name}.py`: no numbers yet."]
    found = json.loads(result.read_text(encoding="utf-8"))
    rows = ["| what | number | aim |", "| --- | --- | --- |"]
    for line in found["headlines"]:
        verdict = {True: ", met", False: ", **missed**", None: ""}[line["met"]]
        rows.append(f"| {line['what']} | {line['value']} | {line['aim']}{verdict} |")
    machine, versions = found["machine"], found["versions"]
    where = f"{found['settings']['gpu']}, " if "gpu" in found["settings"] else ""
    where += f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, load {machine['load_1min']}"
    return [
        *parts,
        "\n".join(rows),
        f"`{found['command']}`, {found['date'][:10]}, commit {versions['commit']}; {where}; "
        f"Python {versions['python']}, torch {versions['torch']}, MONAI {versions['monai']}. Clock: {found['clock']}.",
    ]


def main():
    parts = [HEAD.strip(), *(part for name in ORDER for part in section(name)), TAIL.strip()]
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8")
    print("wrote docs/reference/benchmarks.md")


if __name__ == "__main__":
    main()
