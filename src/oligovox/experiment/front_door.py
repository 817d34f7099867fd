"""`oligovox run FOLDER OUT`: from a folder that somebody hands you to predictions and a page, in one command.

    OUT/asked.json          what was asked; the folder belongs to it
    OUT/inputs.json         SHA-256 of every file of every exam; from the plan on nothing of it may change
    OUT/tables/*/NAME.tsv   who there is: as given, mended and ready, and who has no label
    OUT/converted/          NIfTI files of layouts that have none; of DICOM with the table that says what each series is
    OUT/check/              the data doctor's page, asked again where files changed; with fix: OUT/mended/, a mended copy
    OUT/ready/              where some show heads, or do not lie on each other: all exams, registered and with a brain mask
    OUT/plan/plan.yaml      the recipe, chosen for this machine
    OUT/run/                everything the recipe says, and report.html
    OUT/predictions/        exams without a label, by the arm that was best on validation people, or the final model; of ready exams also OUT/original_grids/
    OUT/index.html          where to look

Every stage resumes: start the same command again.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from oligovox.cohort import dicom, layouts
from oligovox.cohort.manifest import Cohort
from oligovox.cohort.series import TABLE
from oligovox.engine.log import say
from oligovox.errors import CohortError, OutputError, SettingsError
from oligovox.experiment.checking import check_data
from oligovox.experiment.cohorts import Show, quiet, read_cohort
from oligovox.experiment.final import CAUTION, best_arm
from oligovox.experiment.folders import series
from oligovox.experiment.front_door_claim import claim
from oligovox.experiment.front_door_raw import not_aligned, why_raw
from oligovox.experiment.planning import plan
from oligovox.experiment.readying import ready, ready_back
from oligovox.experiment.recipe import Recipe, read_recipe
from oligovox.experiment.study import run_recipe
from oligovox.experiment.verbs import predict
from oligovox.files import hash_file, hash_json, read_json, write_json
from oligovox.report.front import Stop, write_front
from oligovox.report.page import load_report
from oligovox.report.text import count
from oligovox.report.verdict import verdict

Raw = Literal["auto", "always", "never"]
"""Whether exams are registered and their brain is found: auto: where one shows the whole head, or its sequences do not lie on each other."""


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

    Raises:
        SettingsError: hours or minutes that are no time.
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

    def __post_init__(self) -> None:
        for name, value in (("hours", self.hours), ("minutes", self.minutes)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise SettingsError(f"{name} is {value}; expected a number above 0")


@dataclass(frozen=True)
class _Way:
    """What every stage needs.

    Attributes:
        name: of the data, for tables and page.
        out: folder of the run.
        asked: see `Asked`.
        workers: processes.
        show: progress.
        stops: stages that are done, for the page.
    """

    name: str
    out: Path
    asked: Asked
    workers: int
    show: Show
    stops: list[Stop] = field(default_factory=list)

    def stop(self, name: str, said: str, link: str) -> None:
        """A stage is done."""
        say(f"{name.lower()}: {said}")
        self.stops.append(Stop(name, said, link))

    def table(self, cohort: Cohort, stage: str) -> Path:
        """Write down who there is."""
        path = self.out / "tables" / stage / f"{self.name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        cohort.save(path)
        return path


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
        CohortError: the folder is not understood, nobody has a label, or the doctor found what has to be mended first.
        SettingsError: it cannot run on this machine, the folder belongs to another command, or no recipe can have the changes.
        InputError, RunError: of the stages; what was finished stays.
    """
    data, out, asked = Path(data), Path(out), asked or Asked()
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", data.resolve().stem).strip("-.") or "cohort"
    claim(data, out, name, vars(asked))
    way = _Way(name, out, asked, workers, show)
    used = _checked(_given(data, way), way)
    raw = is_raw(used, out, asked.raw, show)
    used = _ready(used, way) if raw else used
    recipe = _planned(used, way)
    done = run_recipe(recipe, out / "run", show=show)
    arm = best_arm(recipe, out / "run")
    said = verdict(load_report(out / "run" / "report.json")).sentence
    final = recipe.final == "all"
    unlabelled = _unlabelled(used, recipe)
    of_whom = "the final model" if final else f"'{arm}'"
    way.stop("Report", f"{said} Predictions are those of {of_whom}." if unlabelled else said, "run/report.html")
    if final:
        way.stop("Final model", f"'{arm}', {CAUTION}", "run/final/model/model.json")
    model = out / "run" / "final" if final else out / "run" / "arms" / arm
    predictions = _predicted(unlabelled, model, raw, way) if unlabelled else None
    page = write_front(out / "index.html", title=data.resolve().name, stops=way.stops)
    say(f"start here: {page.resolve()}")
    return {
        "page": str(page),
        "report": done["page"],
        "run": done["run"],
        "predictions": predictions and str(predictions),
    }


def _given(data: Path, way: _Way) -> Path:
    """The folder as a table.

    Raises:
        CohortError: it is not understood, a person should look at what DICOM was taken for, or nobody has a label.
    """
    asked, work = way.asked, way.out / "converted"
    source = _series(data, work) if asked.layout in ("", dicom.LAYOUT) and _is_dicom(data) else data
    cohort = read_cohort(
        source, mask=asked.mask, layout="" if source is work else asked.layout, sequences=asked.sequences,
        labels=asked.labels, work=work,
    )  # fmt: skip
    if _lies_in(cohort, way.out) and source is data:
        raise OutputError(f"{way.out}: images of {data} lie in it; choose another folder")
    _hold(cohort, way)
    table = way.table(cohort, "given")
    if not cohort.labelled:
        where = (
            f"name them in the column label of {work / TABLE}"
            if source is work
            else f"the images are listed in {table}"
        )
        raise CohortError(
            f"{data}: {count(len(cohort), 'exam')}, none with a label; draw lesion masks for two people or more ({where}), "
            "or learn from images alone with `oligovox prepare` and `oligovox pretrain`"
        )
    return table


def _lies_in(cohort: Cohort, folder: Path) -> bool:
    """Whether an image of a cohort lies in a folder, but for what was converted there."""
    home, made = folder.resolve(), (folder / "converted").resolve()
    files = (path.resolve() for case in cohort.cases for path in case.images.values())
    return any(path.is_relative_to(home) and not path.is_relative_to(made) for path in files)


def _hold(cohort: Cohort, way: _Way) -> None:
    """Note what every file holds; once a plan stands on it, nothing may change.

    Raises:
        SettingsError: something did.
    """
    file = way.out / "inputs.json"
    now = {
        case.name: {key: hash_file(path) for key, path in case.files.items() if path.is_file()} for case in cohort.cases
    }
    before = read_json(file) if file.is_file() else now
    if before != now:
        if (way.out / "plan" / "plan.yaml").is_file():
            raise SettingsError(f"{way.out}: {_changed(before, now)}")
        shutil.rmtree(way.out / "mended", ignore_errors=True)  # ours, of what was there before
    write_json(file, now)


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What is different, and what to do."""
    if new := sorted(set(now) - set(before)):
        todo = "predict it with `oligovox predict OUT/run/arms/NAME TABLE PREDICTIONS`, or begin in another folder to learn from it"
        return f"{new[0]} came after this run was planned; {todo}"
    if gone := sorted(set(before) - set(now)):
        return (
            f"{gone[0]} was there when this run was planned, and is not now; bring it back, or begin in another folder"
        )
    name = next(name for name in now if before[name] != now[name])
    keys = sorted(key for key in {*before[name], *now[name]} if before[name].get(key) != now[name].get(key))
    return f"{name}: {', '.join(keys)} changed after this run was planned; bring the old file back, or begin in another folder"


def _is_dicom(data: Path) -> bool:
    try:
        layouts.detect(data)
    except CohortError:
        return data.is_dir() and bool(dicom.look(data).found)
    return False


def _series(data: Path, work: Path) -> Path:
    """NIfTI files of DICOM, once; the run goes on when somebody has looked at what they were taken for.

    Raises:
        CohortError: they have just been made.
    """
    if work.is_dir():
        return work
    made = series(data, work)
    for row in made["series"]:
        say(f"{row['file']}: {row['sequence'] or 'not used'} ({row['why']})")
    raise CohortError(
        f"{data}: {count(len(made['series']), 'series')} made into NIfTI files, {made['used']} of them taken for a sequence; look at "
        f"{made['table']}, correct its column sequence, name lesion masks in its column label, and start the same command again"
    )


_COUNTED = ("error", "warning", "note", "cases", "actions", "left_out")


def _checked(given: Path, way: _Way) -> Path:
    """Ask the doctor, unless it let these very files pass before; the table to go on with.

    Raises:
        CohortError: there are errors, and nobody asked to mend them, or they cannot be mended.
    """
    fix, mended, file = way.asked.fix, way.out / "mended", way.out / "check" / "passed.json"
    parts = (way.out / "inputs.json", given, given.with_suffix(".json"))
    key = hash_json([version("oligovox"), *map(hash_file, parts)])
    passed = _passed(file, key, mended)
    found = passed or check_data(
        given, way.out / "check", fix=mended if fix else None, workers=way.workers, show=way.show
    )
    answer = {"key": key} | {name: found.get(name, 0) for name in _COUNTED}
    said = f"{count(found['error'], 'error')}, {count(found['warning'], 'warning')}, {count(found['note'], 'note')} in {count(found['cases'], 'exam')}"
    way.stop("Check", said, "check/check.html")
    if fix and (found["actions"] or found.get("left_out")):
        copy = read_cohort(mended)
        done = f"{count(found['actions'], 'repair')} and {count(found.get('left_out', 0), 'file')} left out"
        way.stop("Mended", f"a copy of {count(len(copy), 'exam')}, with {done}", "mended/mended.json")
        given = way.table(copy, "mended")
        if found["error"] and not passed:
            found = check_data(mended, workers=way.workers, show=way.show)
    if passed or not found["error"]:
        write_json(file, answer)
        return given
    first = next(row for row in found["findings"] if row["severity"] == "error")
    todo = "what is left only a person can mend" if fix else "mend it, or say --fix to go on with a mended copy"
    raise CohortError(
        f"{count(found['error'], 'error')}, first: {', '.join(first['files'])}: {first['found']}; {first['remedy']} "
        f"(all: {way.out / 'check' / 'check.html'}); {todo}"
    )


def _passed(file: Path, key: str, mended: Path) -> dict[str, Any] | None:
    """What the doctor said of these very files where the run went on, and all that it wrote is there; else None."""
    pages = [file, file.with_name("check.json"), file.with_name("check.html")]
    answer = read_json(file) if all(page.is_file() for page in pages) else {}
    copied = answer.get("actions") or answer.get("left_out")
    whole = answer.get("key") == key and (not copied or (mended / "mended.json").is_file())
    return dict(answer) if whole else None


def is_raw(table: Path, out: Path, raw: Raw, show: Show = quiet) -> bool:
    """Whether exams are made ready first; decided once, from what the doctor found in all of them and from a look at the pictures."""
    if raw != "auto":
        return raw == "always"
    if (out / "ready").is_dir():
        return True
    if (out / "plan" / "plan.yaml").is_file():
        return False
    why = why_raw(table, out, show("look"))
    nothing = "every exam shows the brain alone, with its sequences on each other"
    say(f"made ready first: {why} (--raw never goes on as they are)" if why else f"not made ready: {nothing}")
    return bool(why)


def _ready(table: Path, way: _Way) -> Path:
    changes = (f"align={_align(table, way.out)}",)
    made = ready(table, way.out / "ready", changes=changes, workers=way.workers, show=way.show)
    said = f"{count(made['exams'], 'exam')} on one grid each, {count(made['registered'], 'sequence')} moved"
    way.stop("Ready", said, "ready/ready.html")
    return way.table(read_cohort(way.out / "ready"), "ready")


def _align(table: Path, out: Path) -> str:
    """Which sequences are registered: all, where one on the grid of the reference does not lie on it; decided once."""
    about = out / "ready" / "dataset_description.json"
    if about.is_file():
        return str(read_json(about)["Settings"]["align"])
    return "always" if not_aligned(table, out) else "auto"


def _planned(used: Path, way: _Way) -> Recipe:
    """The recipe; measured and chosen once."""
    file = way.out / "plan" / "plan.yaml"
    if not file.is_file():
        # a final model that is asked for at first has its share of the hours; later it comes on top
        final: Literal["reported", "all"] = "all" if "final=all" in way.asked.changes else "reported"
        plan(used, hours=way.asked.hours, minutes=way.asked.minutes, final=final, out=file.parent, show=way.show)
    way.stop("Plan", "; ".join(read_json(file.with_suffix(".json"))["lines"]), "plan/plan.yaml")
    return read_recipe(file, way.asked.changes)


def _unlabelled(used: Path, recipe: Recipe) -> Cohort | None:
    """Everybody without a label who has a sequence that the model knows; None where there is nobody."""
    cohort, known = Cohort.load(used), set(recipe.prepare.modalities)
    rest = tuple(case for case in cohort.cases if not case.label)
    seen = tuple(case for case in rest if known & set(case.images))
    for case in rest:
        if case not in seen:
            say(
                f"{case.name}: not predicted; it has {', '.join(case.images)}, the model knows {', '.join(recipe.prepare.modalities)}"
            )
    return replace(cohort, cases=seen) if seen else None


def _predicted(cohort: Cohort, model: Path, raw: bool, way: _Way) -> Path:
    """Predictions of everybody in a cohort."""
    table, folder = way.table(cohort, "unlabelled"), way.out / "predictions"
    predict(model, table, folder, workers=way.workers, show=way.show)
    way.stop("Predictions", f"{count(len(cohort), 'exam')} without a label", "predictions")
    if raw:
        ready_back(folder, way.out / "ready", way.out / "original_grids", show=way.show)
        way.stop("Original grids", "the same, on the grid of each image as the scanner gave it", "original_grids")
    return folder
