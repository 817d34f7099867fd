"""`oligovox cohort …`: look at a folder, write it in another layout, make it of DICOM, label a part of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oligovox.cli.options import Json, Labels, Layout, Sequence, Set, bar, say, words

app = typer.Typer(help="Cohorts before they are prepared.", no_args_is_help=True)


@app.command()
def look(
    data: Annotated[Path, typer.Argument(help="A folder, a datalist (.json) or a table (.csv, .tsv).")],
    layout: Layout = "",
    sequence: Sequence = [],  # noqa: B006
    labels: Labels = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Which layout a folder has and why, who is in it, and with which sequences and labels; nothing is written."""
    from oligovox import experiment

    found = experiment.look_at(data, layout=layout, sequences=sequence, labels=labels)
    lines = {name: "; ".join(value) if isinstance(value, list) else value for name, value in found.items()}
    say(found if json else lines, json)


@app.command()
def write(
    data: Annotated[Path, typer.Argument(help="A folder, a datalist (.json) or a table (.csv, .tsv).")],
    out: Annotated[Path, typer.Argument(help="New folder; a .json for a datalist, a .tsv for a table.")],
    to: Annotated[str, typer.Option(help="bids, nnunet, datalist, table.")] = "bids",
    layout: Layout = "",
    mask: Annotated[str, typer.Option(help="Which label, in the words of the layout, such as rater2.")] = "lesion",
    sequence: Sequence = [],  # noqa: B006
    labels: Labels = [],  # noqa: B006
    modalities: Annotated[str, typer.Option(help="Only these sequences, comma separated.")] = "",
    incomplete: Annotated[
        str, typer.Option(help="For nnunet, exams that lack a sequence: refuse, 'leave out', keep.")
    ] = "refuse",
    link: Annotated[bool, typer.Option("--link", help="Link files instead of copying them.")] = False,
    json: Json = False,
) -> None:
    """Write a cohort as BIDS, nnU-Net raw, MONAI datalist or table; DICOM of CHAOS and 4-D files become NIfTI files on the way."""
    from oligovox import experiment

    result = experiment.write_cohort(
        data, out,
        to=to, layout=layout, mask=mask, sequences=sequence, labels=labels, modalities=words(modalities), incomplete=incomplete,
        link=link,
    )  # fmt: skip
    say(result, json)


@app.command()
def series(
    data: Annotated[Path, typer.Argument(help="Folder of DICOM files, at any depth.")],
    out: Annotated[Path, typer.Argument(help="New folder: NIfTI files, and series.tsv to look at and correct.")],
    json: Json = False,
) -> None:
    """DICOM to NIfTI with dcm2niix; which sequence each series is, is guessed from its tags and written into a table."""
    from oligovox import experiment

    result = experiment.series(data, out)
    if not json:
        for row in result.pop("series"):
            typer.echo(f"{row['file']}  {row['sequence'] or '-':8}  {row['description']}  ({row['why']})")
    say(result, json)


@app.command()
def annotate(
    data: Annotated[Path, typer.Argument(help="BIDS folder, or a cohort table (.tsv), with full masks.")],
    out: Annotated[Path, typer.Argument(help="Folder to write: masks, and the table cohort.tsv to prepare.")],
    kind: Annotated[
        str, typer.Option(help="slices, every, random, largest, lesions, scribbles, boxes; or full, none, rater.")
    ] = "slices",
    people: Annotated[str, typer.Option(help="Only these, comma separated; the others stay as they are.")] = "",
    seed: Annotated[int, typer.Option(help="Of the chance; each exam has its own.", min=0)] = 0,
    mask: Annotated[str, typer.Option(help="Name of the full masks in derivatives (desc- or label-).")] = "lesion",
    picture: Annotated[bool, typer.Option("--picture", help="Also draw labels.png: what is labelled.")] = False,
    change: Set = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Derive labels of a part from full masks: some slices, some lesions, scribbles, boxes; one kind for some people, another for others."""
    from oligovox import experiment

    result = experiment.annotate(
        data, out,
        kind=kind, changes=change, people=words(people), seed=seed, mask=mask, picture=picture, show=bar,
    )  # fmt: skip
    say(result, json)
