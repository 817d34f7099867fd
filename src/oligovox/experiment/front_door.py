"""`oligovox run FOLDER OUT`: from a folder that somebody hands you to predictions and a page, in one command.

    OUT/asked.json          what was asked; the folder belongs to it
    OUT/tables/*.tsv        who there is: as given, as used, and who has no label
    OUT/converted/          images of layouts that are not NIfTI files
    OUT/check/              the data doctor's page; with fix: OUT/mended/, a mended copy
    OUT/ready/              exams as the scanner gave them, registered and with a brain mask
    OUT/plan/plan.yaml      the recipe, chosen for this machine
    OUT/run/                everything the recipe says, and report.html
    OUT/predictions/        exams without a label, by the arm that was best on validation people; of ready exams also OUT/original_grids/
    OUT/index.html          where to look

Every stage resumes: start the same command again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from oligovox.cohort.manifest import Case, Cohort
from oligovox.doctor.seen import Seen
from oligovox.doctor.stripped import outline
from oligovox.engine.log import read_log, say
from oligovox.errors import CohortError, SettingsError
from oligovox.experiment.checking import check_data
from oligovox.experiment.cohorts import Show, quiet, read_cohort
from oligovox.experiment.planning import plan
from oligovox.experiment.readying import ready, ready_back
from oligovox.experiment.recipe import Recipe, read_recipe
from oligovox.experiment.study import run_recipe
from oligovox.experiment.verbs import predict
from oligovox.files import check_writable, read_json, write_json
from oligovox.prepare.geometry import read_volume
from oligovox.report.front import Stop, write_front

Raw = Literal["auto", "always", "never"]
"""Whether exams are registered and their brain is found: auto: where an image shows the whole head and nobody gave a brain mask."""


_LOOKED_AT = 8
"""Exams that decide whether a cohort is raw."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How the folder is to be read, and what is to be done with it.

    Attributes:
        layout, sequences, labels, mask: as for `prepare`.
        raw: see `Raw`.
        fix: go on with a copy that the doctor mended.
        hours: the whole run shall take at most so long; None: the usual number of steps.
        minutes: of measuring before the plan.
        changes: settings of the recipe that differ from the plan's, as "finetune.training.steps=500".
    """

    layout: str = ""
    sequences: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    mask: str = "lesion"
    raw: Raw = "auto"
    fix: bool = False
    hours: float | None = None
    minutes: float = 1.0
    changes: tuple[str, ...] = ()


def run_folder(
    data: Path | str, out: Path | str, asked: Asked | None = None, *, workers: int = 2, show: Show = quiet
) -> dict[str, Any]:
    """Check → mend → make ready → plan → pre-train and fine-tune → score → predict, for segmenting lesions.

    Args:
        data: a folder of any layout that is known, or a list or table of files; it is only read.
        out: folder to write, outside of `data`; a killed run goes on there.
        asked: None: the defaults.
        workers: processes that read and prepare.
        show: progress.

    Returns:
        page (index.html), report, predictions (folder; None where everybody has a label), run.

    Raises:
        CohortError: the folder is not understood, or the doctor found what has to be mended first.
        SettingsError: it cannot run on this machine, or the folder belongs to another command.
        InputError, RunError: of the stages; what was finished stays.
    """
    data, out, asked = Path(data), Path(out), asked or Asked()
    _claim(data, out, asked)
    tables, stops = out / "tables", list[Stop]()
    cohort = read_cohort(
        data,
        mask=asked.mask,
        layout=asked.layout,
        sequences=asked.sequences,
        labels=asked.labels,
        work=out / "converted",
    )
    given = _table(cohort, tables / "given.tsv")
    used = _checked(given, out, asked, stops, workers, show)
    raw = _is_raw(used, asked, out)
    if raw:
        made = ready(used, out / "ready", workers=workers, show=show)
        stops.append(
            Stop(
                "Ready",
                f"{made['exams']} exams on one grid each, {made['registered']} sequences registered",
                "ready/ready.html",
            )
        )
        used = _table(read_cohort(out / "ready"), tables / "used.tsv")
    recipe = _planned(used, out, asked, stops, show)
    done = run_recipe(recipe, out / "run", show=show)
    arm = best_arm(recipe, out / "run")
    stops.append(
        Stop("Report", f"{len(recipe.arms)} ways compared; predictions are those of '{arm}'", "run/report.html")
    )
    predictions = _predicted(used, out, arm, raw, stops, workers, show)
    page = write_front(out / "index.html", title=data.resolve().name, stops=stops)
    say(f"start here: {page.resolve()}")
    return {
        "page": str(page),
        "report": done["page"],
        "run": done["run"],
        "predictions": predictions and str(predictions),
    }


def best_arm(recipe: Recipe, run: Path) -> str:
    """The arm with the highest Dice on validation people; without any, the last one."""
    best = {}
    for name in recipe.arms:
        rows = read_log(run / "arms" / name / "log.jsonl")
        best[name] = max((row["validation"]["dice"] for row in rows if row.get("validation")), default=-1.0)
    return max(reversed(list(best)), key=lambda name: best[name])


def _claim(data: Path, out: Path, asked: Asked) -> None:
    """Make the folder this command's own.

    Raises:
        CohortError: there are no data, or `out` lies among them.
        SettingsError: it belongs to another command, or to nobody of oligovox.
    """
    if not data.exists():
        raise CohortError(f"{data}: no such folder; expected one with images, or a list or table of them")
    home = (data if data.is_dir() else data.parent).resolve()
    if out.resolve().is_relative_to(home) or home.is_relative_to(out.resolve()):
        raise CohortError(f"{out}: lies in the folder of the data ({home}), or around it; choose another folder")
    content = {"data": str(data.resolve()), **{key: _plain(value) for key, value in vars(asked).items()}}
    file = out / "asked.json"
    if file.is_file():
        if (before := read_json(file)) != content:
            other = next(key for key in content if before.get(key) != content[key])
            raise SettingsError(
                f"{out}: was begun with {other} {before.get(other)!r}, now it is {content[other]!r}; choose another folder, or remove this one"
            )
        return
    if out.exists() and any(out.iterdir()):
        raise SettingsError(f"{out}: is not empty and was not begun by this command; choose another folder")
    check_writable(out)
    write_json(file, content)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _table(cohort: Cohort, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cohort.save(path)
    return path


def _checked(given: Path, out: Path, asked: Asked, stops: list[Stop], workers: int, show: Show) -> Path:
    """Ask the doctor; the table to go on with.

    Raises:
        CohortError: there are errors, and nobody asked to mend them, or they cannot be mended.
    """
    mended = out / "mended"
    found = check_data(given, out / "check", fix=mended if asked.fix else None, workers=workers, show=show)
    said = f"{found['error']} errors, {found['warning']} warnings, {found['note']} notes in {found['cases']} exams"
    stops.append(Stop("Check", said, "check/check.html"))
    say(f"check: {said}")
    if not found["error"]:
        return given
    if asked.fix:
        copy = read_cohort(mended)
        again = check_data(mended, workers=workers, show=show)
        if not again["error"]:
            stops.append(
                Stop("Mended", f"a copy of {len(copy)} exams; what was changed is in mended.json", "mended/mended.json")
            )
            return _table(copy, out / "tables" / "mended.tsv")
        found = again
    first = next(row for row in found["findings"] if row["severity"] == "error")
    todo = "only a person can mend what is left" if asked.fix else "mend it, or say --fix to go on with a mended copy"
    raise CohortError(
        f"{found['error']} errors, first: {', '.join(first['files'])}: {first['found']}; {first['remedy']} "
        f"(all of them: {out / 'check' / 'check.html'}); {todo}"
    )


def _is_raw(table: Path, asked: Asked, out: Path) -> bool:
    """Whether exams are made ready first; decided once, from the pictures of the first exams without a brain mask."""
    if asked.raw != "auto":
        return asked.raw == "always"
    if (out / "ready").is_dir():
        return True
    if (out / "plan" / "plan.yaml").is_file():
        return False
    bare = [case for case in Cohort.load(table).cases if not case.brain]
    return any(_shows_head(case) for case in bare[:_LOOKED_AT])


def _shows_head(case: Case) -> bool:
    """Whether some image of a case shows more than a brain."""
    seen = (Seen.of(name, path, read_volume(path)) for name, path in case.images.items())
    return any(outline(one).covering == "head" for one in seen)


def _planned(used: Path, out: Path, asked: Asked, stops: list[Stop], show: Show) -> Recipe:
    """The recipe; measured and chosen once."""
    file = out / "plan" / "plan.yaml"
    if not file.is_file():
        found = plan(used, hours=asked.hours, minutes=asked.minutes, out=file.parent, show=show)
        for line in found["lines"]:
            say(f"plan: {line}")
    stops.append(Stop("Plan", "; ".join(read_json(file.with_suffix(".json"))["lines"]), "plan/plan.yaml"))
    return read_recipe(file, asked.changes)


def _predicted(used: Path, out: Path, arm: str, raw: bool, stops: list[Stop], workers: int, show: Show) -> Path | None:
    """Predictions of everybody without a label; None where there is nobody."""
    cohort = Cohort.load(used)
    rest = [case for case in cohort.cases if not case.label]
    if not rest:
        return None
    table = _table(replace(cohort, cases=tuple(rest)), out / "tables" / "unlabelled.tsv")
    folder = out / "predictions"
    predict(out / "run" / "arms" / arm, table, folder, workers=workers, show=show)
    stops.append(Stop("Predictions", f"{len(rest)} exams without a label", "predictions"))
    if raw:
        ready_back(folder, out / "ready", out / "original_grids", show=show)
        stops.append(
            Stop("Original grids", "the same, on the grid of each image as the scanner gave it", "original_grids")
        )
    return folder
