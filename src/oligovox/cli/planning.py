"""`oligovox plan`: what this machine can do with this cohort, before anything long is begun."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oligovox.cli.options import Json, Labels, Layout, Sequence, bar, say


def plan(
    data: Annotated[
        Path, typer.Argument(help="A folder as `oligovox cohort look` knows it, a list, a table or a store.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for plan.yaml, a recipe; without it nothing is written.")
    ] = None,
    hours: Annotated[float | None, typer.Option(help="The whole run shall take at most so long.", min=0.01)] = None,
    minutes: Annotated[float, typer.Option(help="To spend on measuring.", min=0.0)] = 1.0,
    mask: Annotated[str, typer.Option(help="Which label, in the words of the layout.")] = "lesion",
    layout: Layout = "",
    sequence: Sequence = [],  # noqa: B006
    labels: Labels = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Patch, batch, spacing, network and hours for this machine, after a minute of measuring; refuses what cannot run."""
    from oligovox.cohort.layouts import must_exist

    must_exist(data)  # before torch is loaded
    from oligovox.experiment.planning import plan as make

    result = make(
        data,
        out=out,
        hours=hours,
        minutes=minutes,
        mask=mask,
        layout=layout,
        sequences=sequence,
        labels=labels,
        show=bar,
    )
    if json:
        say(result, json)
        return
    for line in (f"machine: {result['machine']}", *result["why"], *result["lines"]):
        typer.echo(line)
    if result["recipe"]:
        typer.echo(f"recipe: {result['recipe']}")
