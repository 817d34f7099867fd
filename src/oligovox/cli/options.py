"""What several commands share: their options, and how they speak."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from oligovox.errors import SettingsError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of text.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write; a killed run resumes there.")]
Set = Annotated[list[str], typer.Option("--set", help="Change a setting, e.g. training.steps=500 (repeatable).")]
Layout = Annotated[
    str,
    typer.Option(
        help="bids, nnunet, brats, isbi2015, msseg2016, ljubljana, chaos, dicom, series, datalist, table, named; default: as it looks."
    ),
]
Sequence = Annotated[
    list[str], typer.Option("--sequence", help="What the folder calls a sequence, as MRI=FLAIR (repeatable).")
]
Labels = Annotated[
    list[str],
    typer.Option(help="Value of a class in the label files, as lesion=1 (repeatable); default: as the folder says."),
]
Fusion = Annotated[str | None, typer.Option(help="How sequences meet in the network: early (default) or stems.")]
Overlap = Annotated[
    float | None,
    typer.Option(
        help="Of neighbouring windows of the segmentation, share of a side; default: 0.5; 0.25 takes less than half of the time.",
        min=0,
        max=0.99,
    ),
]
Workers = Annotated[int, typer.Option(help="Worker processes.", min=1)]


def say(result: Mapping[str, Any], json: bool) -> None:
    """Results on stdout, of one process only: one JSON object, or one line each."""
    from oligovox.engine.log import in_main_process

    if not in_main_process():
        return
    if json:
        typer.echo(json_module.dumps(result, indent=2, default=str))
        return
    for key, value in result.items():
        typer.echo(f"{key}: {value}")


def bar(title: str) -> Callable[[int, int, str], None]:
    """A progress bar with time left on a terminal, one line at the end elsewhere; called as (done, total, name)."""
    from oligovox.engine.log import counting_bar

    return counting_bar(title)


def schedule(steps: int | None) -> list[str]:
    """--steps as a change of settings."""
    return [f"training.steps={steps}"] if steps else []


def words(text: str) -> tuple[str, ...]:
    """'T1w, FLAIR' → ("T1w", "FLAIR")."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def numbers(text: str) -> tuple[float, float, float]:
    """'1,1,3' → (1.0, 1.0, 3.0), in mm.

    Raises:
        SettingsError: anything else than three numbers.
    """
    try:
        x, y, z = (float(word) for word in words(text))
    except ValueError:
        raise SettingsError(f"spacing '{text}': expected three numbers in mm, for example 1,1,1") from None
    return x, y, z
