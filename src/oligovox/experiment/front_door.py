"""`oligovox run FOLDER OUT`: from a folder that somebody hands you to predictions and a page, in one command.

    OUT/asked.json          what was asked; the folder belongs to it
    OUT/inputs.json         SHA-256 of every file of every exam; from the plan on nothing of it may change
    OUT/tables/*/NAME.tsv   who there is: as given, mended and ready, and who has no label
    OUT/converted/          NIfTI files of layouts that have none; of DICOM with the table that says what each series is
    OUT/check/              the data doctor's page, asked again where files changed; with fix: OUT/mended/, a mended copy
    OUT/ready/              exams as the scanner gave them, registered and with a brain mask
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
from oligovox.cohort.manifest import Case, Cohort
from oligovox.cohort.series import TABLE
from oligovox.doctor.seen import Seen
from oligovox.doctor.stripped import outline
from oligovox.engine.log import say
from oligovox.errors import CohortError, OutputError, SettingsError
from oligovox.experiment.checking import check_apart, check_data
from oligovox.experiment.cohorts import Show, quiet, read_cohort
from oligovox.experiment.final import CAUTION, best_arm
from oligovox.experiment.folders import series
from oligovox.experiment.planning import plan
from oligovox.experiment.readying import ready, ready_back
from oligovox.experiment.recipe import Recipe, read_recipe
from oligovox.experiment.study import run_recipe
from oligovox.experiment.verbs import predict
from oligovox.files import check_writable, hash_file, hash_json, read_json, write_json
from oligovox.prepare.geometry import read_volume
from oligovox.report.front import Stop, write_front
from oligovox.report.page import load_report
from oligovox.report.text import count
from oligovox.report.verdict import verdict

Raw = Literal["auto", "always", "never"]
"""Whether exams are registered and their brain is found: auto: where an image shows the whole head and nobody gave a brain mask."""


_OF_BODIES = {"T1in", "T1out", "T2spir"}
"""Sequences of the abdomen, where no brain is looked for."""

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
        SettingsError: it cannot run on this machine, or the folder belongs to another command.
        InputError, RunError: of the stages; what was finished stays.
    """
    data, out, asked = Path(data), Path(out), asked or Asked()
    _claim(data, out, asked)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", data.resolve().stem).strip("-.") or "cohort"
    way = _Way(name, out, asked, workers, show)
    used = _checked(_given(data, way), way)
    raw = is_raw(used, out, asked.raw)
    used = _ready(used, way) if raw else used
    recipe = _planned(used, way)
    done = run_recipe(recipe, out / "run", show=show)
    arm = best_arm(recipe, out / "run")
    said = verdict(load_report(out / "run" / "report.json")).sentence
    final = recipe.final == "all"
    of_whom = "the final model" if final else f"'{arm}'"
    way.stop("Report", f"{said} Predictions are those of {of_whom}.", "run/report.html")
    if final:
        way.stop("Final model", f"'{arm}', {CAUTION}", "run/final/model/model.json")
    predictions = _predicted(used, out / "run" / "final" if final else out / "run" / "arms" / arm, raw, way)
    page = write_front(out / "index.html", title=data.resolve().name, stops=way.stops)
    say(f"start here: {page.resolve()}")
    return {
        "page": str(page),
        "report": done["page"],
        "run": done["run"],
        "predictions": predictions and str(predictions),
    }


def _claim(data: Path, out: Path, asked: Asked) -> None:
    """Make the folder this command's own.

    Raises:
        CohortError: there are no data.
        OutputError: `out` lies among them.
        SettingsError: it belongs to another command, or to nobody of oligovox.
    """
    if not data.exists():
        raise CohortError(f"{data}: no such folder; expected one with images, or a list or table of them")
    check_apart(data, out)
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(asked).items()}
    content = {"data": str(data.resolve()), **listed}
    file = out / "asked.json"
    if file.is_file():
        free = () if (out / "plan" / "plan.yaml").is_file() else ("hours", "minutes")  # nothing stands on them yet
        before, now = _binding(read_json(file)), _binding(content)
        if other := next((key for key in now if key not in free and before.get(key) != now[key]), None):
            raise SettingsError(
                f"{out}: was begun with {other} {before.get(other)!r}, now it is {now[other]!r}; "
                "choose another folder, or remove this one"
            )
        write_json(file, content)
        return
    if out.exists() and any(out.iterdir()):
        raise SettingsError(f"{out}: is not empty and was not begun by this command; choose another folder")
    check_writable(out)
    write_json(file, content)


def _binding(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked, without what may be asked for later: the final model comes after everything else."""
    return {**asked, "changes": [change for change in asked.get("changes", ()) if not change.startswith("final=")]}


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
    answer = {"key": key} | {name: found.get(name, 0) for name in ("error", "warning", "note", "cases", "actions")}
    said = f"{count(found['error'], 'error')}, {count(found['warning'], 'warning')}, {count(found['note'], 'note')} in {count(found['cases'], 'exam')}"
    way.stop("Check", said, "check/check.html")
    if fix and found["actions"]:
        copy = read_cohort(mended)
        way.stop(
            "Mended",
            f"a copy of {count(len(copy), 'exam')}, with {count(found['actions'], 'repair')}",
            "mended/mended.json",
        )
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
    whole = answer.get("key") == key and (not answer["actions"] or (mended / "mended.json").is_file())
    return dict(answer) if whole else None


def is_raw(table: Path, out: Path, raw: Raw) -> bool:
    """Whether exams are made ready first; decided once, from the pictures of the first exams without a brain mask."""
    if raw != "auto":
        return raw == "always"
    if (out / "ready").is_dir():
        return True
    if (out / "plan" / "plan.yaml").is_file():
        return False
    bare = [case for case in Cohort.load(table).cases if not case.brain and not set(case.images) <= _OF_BODIES]
    return any(_shows_head(case) for case in bare[:_LOOKED_AT])


def _shows_head(case: Case) -> bool:
    """Whether some image of a case shows more than a brain."""
    seen = (Seen.of(name, path, read_volume(path)) for name, path in case.images.items())
    return any(outline(one).covering == "head" for one in seen)


def _ready(table: Path, way: _Way) -> Path:
    made = ready(table, way.out / "ready", workers=way.workers, show=way.show)
    said = f"{count(made['exams'], 'exam')} on one grid each, {count(made['registered'], 'sequence')} moved"
    way.stop("Ready", said, "ready/ready.html")
    return way.table(read_cohort(way.out / "ready"), "ready")


def _planned(used: Path, way: _Way) -> Recipe:
    """The recipe; measured and chosen once."""
    file = way.out / "plan" / "plan.yaml"
    if not file.is_file():
        # a final model that is asked for at first has its share of the hours; later it comes on top
        final: Literal["reported", "all"] = "all" if "final=all" in way.asked.changes else "reported"
        plan(used, hours=way.asked.hours, minutes=way.asked.minutes, final=final, out=file.parent, show=way.show)
    way.stop("Plan", "; ".join(read_json(file.with_suffix(".json"))["lines"]), "plan/plan.yaml")
    return read_recipe(file, way.asked.changes)


def _predicted(used: Path, model: Path, raw: bool, way: _Way) -> Path | None:
    """Predictions of everybody without a label; None where there is nobody."""
    cohort = Cohort.load(used)
    rest = tuple(case for case in cohort.cases if not case.label)
    if not rest:
        return None
    table, folder = way.table(replace(cohort, cases=rest), "unlabelled"), way.out / "predictions"
    predict(model, table, folder, workers=way.workers, show=way.show)
    way.stop("Predictions", f"{count(len(rest), 'exam')} without a label", "predictions")
    if raw:
        ready_back(folder, way.out / "ready", way.out / "original_grids", show=way.show)
        way.stop("Original grids", "the same, on the grid of each image as the scanner gave it", "original_grids")
    return folder
