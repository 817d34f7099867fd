"""`oligovox ready` and `oligovox back`: raw exams made ready, and predictions brought back to them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oligovox.cli.options import Json, Labels, Layout, Sequence, Workers, bar, say


def ready(
    data: Annotated[
        Path, typer.Argument(help="Raw exams: a folder as `oligovox cohort look` knows it, or a list or table.")
    ],
    out: Annotated[
        Path, typer.Argument(help="Folder of BIDS derivatives to write, beside DATA; a killed run goes on there.")
    ],
    bias: Annotated[bool, typer.Option("--bias", help="Divide out the bias field within the brain.")] = False,
    template: Annotated[
        Path | None, typer.Option(help="NIfTI file whose space and grid every exam is brought to.")
    ] = None,
    mask: Annotated[str, typer.Option(help="Name of the lesion mask in derivatives (desc- or label-).")] = "lesion",
    layout: Layout = "",
    sequence: Sequence = [],  # noqa: B006
    labels: Labels = [],  # noqa: B006
    workers: Workers = 2,
    change: Annotated[
        list[str], typer.Option("--set", help="Change a setting, e.g. align=always or spacing=[1,1,1] (repeatable).")
    ] = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Register the sequences of raw exams, find the brain, and write them on one grid, with a page to look at."""
    from oligovox import experiment

    said = [*(["bias=true"] if bias else []), *([f"template={template}"] if template else [])]
    result = experiment.ready(
        data, out,
        changes=[*said, *change], mask=mask, layout=layout, sequences=sequence, labels=labels, workers=workers, show=bar,
    )  # fmt: skip
    say(result, json)


def back(
    predictions: Annotated[Path, typer.Argument(help="Folder of `oligovox predict` on ready exams, or one label map.")],
    ready: Annotated[Path, typer.Argument(help="Folder that `oligovox ready` wrote.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    json: Json = False,
) -> None:
    """Bring predictions on ready exams back to the grid of every original image."""
    from oligovox import experiment

    say(experiment.ready_back(predictions, ready, out, show=bar), json)
