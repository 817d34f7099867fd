"""The label-budget study: freeze it, build its ground, do its runs in as many processes as there are, write the table and the page.

    STUDY/
      study.yaml, added-<k>.yaml     the study, written before it ran; see `budget_freeze`
      cohorts/, store/               simulated cohorts, prepared volumes (a store given in the study stays where it is)
      people.json                    who is tested, validated on, and the order of the labelled people in each draw
      claims/                        who works on what at this moment; see `budget_claims`
      pretrain/, trials/, runs/      see `budget_jobs`
      chosen.json                    learning rate of each arm, with all trials
      records.jsonl                  all results, to be taken over by other studies; see `budget_records`
      budget.tsv                     one row a run, person and metric
      budget.json, budget.html       means, differences, costs; the page
      curves.png, curves.svg         the figure of it
      logs/worker-<k>.log            what the processes said

Every piece of work is done once, by whichever process comes first; start the same command again to go on.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from oligovox.engine.log import say
from oligovox.errors import OligovoxError, RunError, SettingsError
from oligovox.experiment.budget_claims import awaited
from oligovox.experiment.budget_freeze import check_freeze, freeze, frozen_versions
from oligovox.experiment.budget_ground import build_ground, check_study, open_ground
from oligovox.experiment.budget_jobs import check_numerics, jobs_of, work, write_choices
from oligovox.experiment.budget_labels import label_views
from oligovox.experiment.budget_plan import Run, Study, read_study
from oligovox.experiment.budget_records import check_records, link_ground, read_records, take_over, write_records
from oligovox.experiment.budget_result import collect_budget, finished_runs, write_table
from oligovox.experiment.cohorts import Show, quiet
from oligovox.files import check_writable
from oligovox.processes import end_with_parent
from oligovox.report.budget import write_budget

_POLL_SECONDS = 0.5


def budget(
    study: Path | str,
    out: Path | str,
    *,
    workers: int = 1,
    job: str = "1/1",
    changes: Sequence[str] = (),
    reuse: Path | str | None = None,
    show: Show = quiet,
) -> dict[str, Any]:
    """Do a label-budget study; start it again with the same folder to go on. Several processes and machines may work on one folder.

    Args:
        study: YAML file; its resolved form is frozen in `out` before the first run.
        out: folder of the study.
        workers: processes; worker k computes on GPU k, where there are GPUs.
        job: "K/N": do only the K-th of N shares of the runs, and what they need; for job arrays. The last to finish writes the page.
        changes: settings changed, as "finetune.training.steps=50".
        reuse: folder or records.jsonl of another study on the same ground: work that both have in common is taken over.
        show: progress.

    Returns:
        page, table and report (paths), study (first 12 digits of its SHA-256), finished and planned (runs).

    Raises:
        InputError: study, data or folder cannot be used, or the folder holds another study; nothing is written then.
        RunError: a run failed; what was finished stays.
    """
    out, share = Path(out), _share(job)
    asked = read_study(Path(study), tuple(changes))
    check_freeze(asked, out)
    check_writable(out)
    check_study(asked, out)
    check_numerics(asked, out)
    records = read_records(Path(reuse)) if reuse else None
    if records:
        check_records(records, asked)
    frozen, _ = freeze(asked, out)
    say(f"study {frozen.sha256[:12]}, frozen {frozen.date}: {len(asked.runs)} runs")
    if records:
        with awaited(out / "claims" / "ground"):
            link_ground(records, out)
    build_ground(asked, out, workers=workers, show=show)
    if records:
        taken = take_over(records, asked, open_ground(asked, out), out)
        say(f"{taken} finished pieces of work taken over from study {records.sha256[:12]}")
    runs = asked.runs[share]
    if workers > 1:
        _in_processes(out, job, workers, runs, asked, show)
    else:
        work(asked, open_ground(asked, out), out, runs, lambda done, of, name: say(f"{done + 1} of {of}: {name}"))
    return write_result(out)


def write_result(out: Path) -> dict[str, Any]:
    """Write the table and the page of what is finished.

    Args:
        out: folder of a study.

    Raises:
        SettingsError: it is not one.
    """
    if not (versions := frozen_versions(out)):
        raise SettingsError(f"{out}: no study.yaml in it; expected the folder of a label-budget study")
    frozen, *added = versions
    study = versions[-1].study
    with awaited(out / "claims" / "result"):
        done, ground = finished_runs(study, out), open_ground(study, out)
        write_choices(study, out)
        write_table(done, frozen, out / "budget.tsv")
        write_records(frozen, study, out)
        report = collect_budget(frozen, added, done, ground, out, command=_command())
        page = write_budget(report, out, label_views(study, ground))
    paths = {"page": page, "table": out / "budget.tsv", "report": out / "budget.json"}
    return {name: str(path.resolve()) for name, path in paths.items()} | {
        "study": frozen.sha256[:12], "finished": len(done), "planned": len(study.runs)
    }  # fmt: skip


def _share(job: str) -> slice:
    """Every N-th run from the K-th on: shares are as equal as can be, draw by draw."""
    number, _, of = job.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise SettingsError(f"job '{job}': expected K/N with 1 ≤ K ≤ N, for example 3/8")
    return slice(int(number) - 1, None, int(of))


def _in_processes(out: Path, job: str, workers: int, runs: Sequence[Run], study: Study, show: Show) -> None:
    """Start the workers and wait for them.

    Raises:
        RunError: one of them failed or was killed; the others are told to stop, and save what they have.
    """
    spawn, devices = get_context("spawn"), _devices()
    processes = [
        spawn.Process(
            target=_worker, args=(str(out), job, k, devices[k % len(devices)] if devices else ""), daemon=False
        )
        for k in range(workers)
    ]
    for process in processes:
        process.start()
    try:
        failed = _watch(processes, [out / piece.result for piece in jobs_of(study, runs, out)], show)
    finally:
        for process in processes:
            process.terminate()  # nothing, where it has ended
            process.join()
    if failed is not None:
        log = _log(out, failed)
        said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()] or [""]
        raise RunError(f"worker {failed} ended with {processes[failed].exitcode}: {said[-1]} (all of it is in {log}); what is "
                       "finished stays, start the same command again to go on")  # fmt: skip


def _watch(processes: Sequence[BaseProcess], results: Sequence[Path], show: Show) -> int | None:
    """Show how much is done, until all workers have ended or one of them has failed; the number of that one."""
    note, seen = show("budget"), -1
    while True:
        running = any(process.is_alive() for process in processes)
        failed = next((number for number, process in enumerate(processes) if process.exitcode), None)
        done = sum(path.is_file() for path in results)
        if done != seen:
            note(seen := done, len(results), "")
        if failed is not None or not running:
            return failed
        time.sleep(_POLL_SECONDS)


def _worker(out: str, job: str, number: int, device: str) -> None:
    """A process that works on a study; what it says goes into its log."""
    end_with_parent()
    log = _log(Path(out), number)
    log.parent.mkdir(exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # read when CUDA is used for the first time
    study = frozen_versions(Path(out))[-1].study
    try:
        ground = open_ground(study, Path(out))
        work(
            study, ground, Path(out), study.runs[_share(job)], lambda done, of, name: say(f"{done + 1} of {of}: {name}")
        )
    except OligovoxError as error:
        say(f"{type(error).__name__}: {error}")
        sys.exit(1)


def _devices() -> list[str]:
    """Names of the GPUs this process may use, as CUDA_VISIBLE_DEVICES has them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in given.split(",") if name.strip()]
    return names or [str(number) for number in range(torch.cuda.device_count())]


def _log(out: Path, number: int) -> Path:
    return out / "logs" / f"worker-{number}.log"


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
