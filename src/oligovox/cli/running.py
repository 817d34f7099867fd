"""`oligovox run`: a recipe, or a folder somebody hands you."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from oligovox.cli.options import Json, Labels, Layout, Sequence, Set, bar, say
from oligovox.errors import SettingsError

RECIPES = (".yaml", ".yml")


class Task(StrEnum):
    """What a folder is run for."""

    LESION = "lesion"


class Raw(StrEnum):
    """Whether exams are registered and stripped first."""

    AUTO, ALWAYS, NEVER = "auto", "always", "never"


def run(
    what: Annotated[Path, typer.Argument(help="A recipe (YAML), or a folder as `oligovox cohort look` knows it.")],
    folder: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="Folder to write; a killed run resumes there.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The same, as an option.")] = None,
    task: Annotated[Task | None, typer.Option(help="Of a folder: what to segment.")] = None,
    hours: Annotated[float | None, typer.Option(help="Of a folder: the whole run shall take at most so long.")] = None,
    minutes: Annotated[float, typer.Option(help="Of a folder: measure so long before the plan.")] = 1.0,
    fix: Annotated[
        bool, typer.Option("--fix", help="Of a folder: go on with a copy that the data doctor mended.")
    ] = False,
    raw: Annotated[
        Raw,
        typer.Option(
            help="Of a folder: register exams and find the brain; auto: where a head is seen, or sequences that do not lie on each other."
        ),
    ] = Raw.AUTO,
    mask: Annotated[str, typer.Option(help="Of a folder: which label, in the words of the layout.")] = "lesion",
    layout: Layout = "",
    sequence: Sequence = [],  # noqa: B006
    labels: Labels = [],  # noqa: B006
    workers: Annotated[int | None, typer.Option(help="Of a folder: worker processes; default: 2.", min=1)] = None,
    change: Set = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Everything, from a recipe or from a folder of exams, to predictions and the page."""
    target = folder or out
    if target is None or (folder and out):
        raise SettingsError("say once which folder to write: oligovox run WHAT OUT")
    if what.suffix.lower() in RECIPES:
        read = (fix, layout, sequence, labels, raw != Raw.AUTO, minutes != 1.0, mask != "lesion")
        if any(read) or any(value is not None for value in (task, hours, workers)):
            raise SettingsError(f"{what}: a recipe says itself what to do; give it only --out, --set and --json")
        from oligovox import experiment

        say(experiment.run(what, target, tuple(change), show=bar), json)
        return
    if task is None:
        raise SettingsError(f"{what}: of a folder say what to segment: --task lesion")
    from oligovox.cohort.layouts import must_exist

    must_exist(what)  # before torch is loaded
    from oligovox.experiment.front_door import Asked, run_folder

    asked = Asked(
        layout=layout, sequences=tuple(sequence), labels=tuple(labels), mask=mask, raw=raw.value, fix=fix, hours=hours,
        minutes=minutes, changes=tuple(change),
    )  # fmt: skip
    say(run_folder(what, target, asked, workers=workers or 2, show=bar), json)
