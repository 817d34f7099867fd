"""The commands that are one word each, the groups of the others, and the entry point."""

from __future__ import annotations

import json as json_module
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from oligovox.cli import classify, cohort, planning, ready, running
from oligovox.cli.options import (
    Fusion,
    Json,
    Labels,
    Layout,
    Out,
    Overlap,
    Sequence,
    Set,
    Workers,
    bar,
    numbers,
    say,
    schedule,
    words,
)
from oligovox.errors import InputError, OligovoxError, SettingsError

app = typer.Typer(
    name="oligovox",
    help="Learn from every unlabelled multi-sequence MRI, label a handful: lesion models, predictions and an honest report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(cohort.app, name="cohort")
app.add_typer(classify.app, name="classify")
app.command()(running.run)
app.command()(planning.plan)
app.command()(ready.ready)
app.command()(ready.back)


@app.command()
def demo(out: Out = Path("demo"), change: Set = [], json: Json = False) -> None:  # noqa: B006
    """Simulate → pre-train → fine-tune → compare with scratch → one page. Minutes on two cores."""
    from oligovox import experiment

    say(experiment.demo(out, tuple(change), show=bar), json)


@app.command()
def simulate(
    preset: Annotated[
        str, typer.Argument(help="Which cohort: ms-3t, ms-7t, ms-multisite, rim, glioma-2023, glioma-2024, chaos.")
    ],
    out: Annotated[Path, typer.Argument(help="BIDS folder to write.")],
    subjects: Annotated[int, typer.Option(help="How many.", min=1)] = 40,
    seed: int = 0,
    labelled: Annotated[int | None, typer.Option(help="Write labels for the first N only.", min=0)] = None,
    page: Annotated[
        bool, typer.Option("--page", help="Also draw a page: what the cohort looks like, measured.")
    ] = False,
    real: Annotated[Path | None, typer.Option(help="With --page: BIDS folder of real images to put beside it.")] = None,
    masks: Annotated[
        Path | None, typer.Option(help="With --page: folder of real lesion masks to compare lesions with.")
    ] = None,
    annotate: Annotated[
        str,
        typer.Option(
            help="Also write labels of a part: slices, lesions, … with settings, as lesions:share=0.5,margin_mm=3."
        ),
    ] = "",
    workers: Workers = 2,
    change: Set = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Write a simulated cohort with labels and truth tables as BIDS."""
    from oligovox import experiment

    result = experiment.simulate(
        out, preset=preset, subjects=subjects, seed=seed, labelled=labelled, page=page, real=real, masks=masks,
        workers=workers,
        changes=(*_sparse(annotate, change), *change), show=bar,
    )  # fmt: skip
    say(result, json)


@app.command()
def check(
    data: Annotated[Path, typer.Argument(help="A folder as `oligovox cohort look` knows it, or a list or table.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for check.html, check.json and check.tsv.")
    ] = None,
    fix: Annotated[Path | None, typer.Option(help="New folder for a mended copy, with what was done to it.")] = None,
    split: Annotated[
        Path | None,
        typer.Option(help="Split file, to see who is in training and in test; default: as the folder says."),
    ] = None,
    layout: Layout = "",
    sequence: Sequence = [],  # noqa: B006
    labels: Labels = [],  # noqa: B006
    mask: Annotated[str, typer.Option(help="Which label, in the words of the layout, such as rater2.")] = "lesion",
    workers: Workers = 2,
    json: Json = False,
) -> None:
    """What is wrong with a folder, in which file, and what would mend it; exit code 1 where something is an error."""
    from oligovox import experiment
    from oligovox.experiment.checking import lines

    result = experiment.check_data(
        data, out,
        fix=fix, split=split, layout=layout, sequences=sequence, labels=labels, mask=mask, workers=workers, show=bar,
    )  # fmt: skip
    if json:
        say(result, json)
    else:
        typer.echo("\n".join(lines(result)))
    if result["error"]:
        raise typer.Exit(1)


@app.command()
def prepare(
    data: Annotated[Path, typer.Argument(help="A folder as `oligovox cohort look` knows it, or a list or table.")],
    store: Annotated[Path, typer.Argument(help="Store to write.")],
    modalities: Annotated[str, typer.Option(help="Sequences, comma separated; default: all that occur.")] = "",
    spacing: Annotated[str, typer.Option(help="Voxel size in mm, comma separated.")] = "1,1,1",
    mask: Annotated[str, typer.Option(help="Name of the lesion mask in derivatives (desc- or label-).")] = "lesion",
    layout: Layout = "",
    sequence: Sequence = [],  # noqa: B006
    labels: Labels = [],  # noqa: B006
    workers: Workers = 2,
    json: Json = False,
) -> None:
    """Check, reorient, resample, crop and normalise every case into a store."""
    from oligovox import experiment

    result = experiment.prepare(
        data, store,
        modalities=words(modalities), spacing=numbers(spacing), mask=mask, layout=layout, sequences=sequence, labels=labels,
        workers=workers, show=bar,
    )  # fmt: skip
    say(result, json)


@app.command()
def pretrain(
    store: Annotated[Path, typer.Argument(help="Prepared store.")],
    out: Out,
    method: Annotated[str, typer.Option(help="See `oligovox methods`.")] = "generative",
    encoder: Annotated[str | None, typer.Option(help="Network: resenc (default) or swin.")] = None,
    preset: Annotated[str | None, typer.Option(help="Size of a resenc: tiny (default), S, M, L.")] = None,
    fusion: Fusion = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.", min=1)] = None,
    exclude: Annotated[
        Path | None, typer.Option(help="Split file: its test and validation people are not seen.")
    ] = None,
    change: Set = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Learn from every exam, labelled or not, without labels."""
    from oligovox import experiment
    from oligovox.cohort.splits import Split
    from oligovox.experiment.recipe import NetworkChoice, Pretrain, changed

    stage = changed(Pretrain, [*change, *schedule(steps)], "pretrain", method=method)
    split = Split.load(exclude) if exclude else None
    model = experiment.pretrain(
        store, out, stage=stage, network=NetworkChoice.named(encoder, preset, fusion), split=split
    )
    result = {"model": str(model)}
    say(result, json)


@app.command()
def finetune(
    store: Annotated[Path, typer.Argument(help="Prepared store with labels.")],
    out: Out,
    start: Annotated[
        Path | None, typer.Option("--from", help="Pre-training run or model folder; without it: from scratch.")
    ] = None,
    labels: Annotated[
        int | None, typer.Option(help="How many labelled people to use (nested draw by seed); default: all.", min=1)
    ] = None,
    split: Annotated[
        Path | None,
        typer.Option(
            help="Split file: its test people are not used, its validation people choose the best checkpoint."
        ),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Network where there is no --from: resenc (default) or swin.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Size of a resenc: tiny (default), S, M, L.")] = None,
    fusion: Fusion = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.", min=1)] = None,
    semi: Annotated[
        str | None,
        typer.Option(help="A semi-supervised strategy, such as mean_teacher: exams without a label teach as well."),
    ] = None,
    tensors: Annotated[bool, typer.Option(help="Print what became of each tensor of --from.")] = False,
    change: Set = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Train a segmentation network on a few labels, from scratch or from a pre-trained start."""
    from oligovox import experiment
    from oligovox.cohort.splits import Split
    from oligovox.experiment.recipe import Finetune, NetworkChoice, changed

    strategy = [f"semi.name={semi}"] if semi else []
    stage = changed(Finetune, [*strategy, *change, *schedule(steps)], "finetune")
    if start and (encoder or preset or fusion):
        raise SettingsError("--from brings its own network; leave out --encoder, --preset and --fusion")
    network = None if start else NetworkChoice.named(encoder, preset, fusion)
    held_out = Split.load(split) if split else None
    model = experiment.finetune(
        store, out, stage=stage, network=network, start=start, labels=labels, split=held_out, tensors=tensors
    )
    result = {"model": str(model)}
    say(result, json)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Run or model folder of `finetune`.")],
    data: Annotated[Path, typer.Argument(help="BIDS folder, cohort table (.tsv) or prepared store.")],
    out: Annotated[Path, typer.Argument(help="Folder for the predictions (BIDS derivatives).")],
    people: Annotated[str, typer.Option(help="Only these, comma separated.")] = "",
    mirror: Annotated[bool, typer.Option(help="Average over the eight mirror images (8 times slower).")] = False,
    probabilities: Annotated[bool, typer.Option(help="Also write probability maps.")] = False,
    overlap: Overlap = None,
    losses: Annotated[
        Path | None,
        typer.Option(help="subsets.json of `evaluate --subsets` about this model: what missing sequences cost."),
    ] = None,
    json: Json = False,
) -> None:
    """Predict on each input's own grid."""
    from oligovox import experiment
    from oligovox.experiment.recipe import Predict

    of_windows = {} if overlap is None else {"overlap": overlap}
    options = Predict(mirror=mirror, save_probabilities=probabilities, **of_windows)
    result = experiment.predict(model, data, out, people=words(people), options=options, losses=losses, show=bar)
    if not json:
        del result["files"]
    say(result, json)


@app.command()
def evaluate(
    predictions: Annotated[
        Path,
        typer.Argument(help="Folder written by `predict`, or files named as the references; with --subsets a model."),
    ],
    truth: Annotated[
        Path, typer.Argument(help="BIDS folder or cohort table with the masks, or a folder of plain NIfTI files.")
    ],
    out: Out,
    protocol: Annotated[
        str, typer.Option(help="Whose rules: generic, isbi2015, msseg2016, brats2023, brats2024, chaos.")
    ] = "generic",
    change: Annotated[
        list[str], typer.Option("--set", help="Change a setting of the protocol, e.g. connectivity=6 (repeatable).")
    ] = [],  # noqa: B006
    by: Annotated[
        list[str], typer.Option(help="Also split by a column of participants.tsv, or by 'sequences' (repeatable).")
    ] = [],  # noqa: B006
    subsets: Annotated[
        bool, typer.Option("--subsets", help="Hide sequences from the model in every combination.")
    ] = False,
    mask: Annotated[str, typer.Option(help="Name of the lesion mask in derivatives (desc- or label-).")] = "lesion",
    people: Annotated[str, typer.Option(help="Only these, comma separated.")] = "",
    workers: Workers = 2,
    json: Json = False,
) -> None:
    """Score predictions against the truth by the rules of a challenge, with intervals over people."""
    from oligovox import experiment
    from oligovox.experiment.sequence_price import price_headlines
    from oligovox.experiment.summary import headlines

    judge = experiment.evaluate_subsets if subsets else experiment.evaluate
    result = judge(
        predictions, truth, out,
        protocol=protocol, changes=change, by=by, mask=mask, people=words(people), workers=workers, show=bar,
    )  # fmt: skip
    lines = price_headlines if subsets else headlines
    say(result if json else lines(result), json)  # the tables in `out` have every case and lesion


@app.command()
def budget(
    study: Annotated[Path, typer.Argument(help="A study file (YAML).")],
    out: Out,
    workers: Annotated[
        int, typer.Option(help="Processes; each has a GPU of its own, where there are enough.", min=1)
    ] = 1,
    job: Annotated[str, typer.Option(help="K/N: only the K-th of N shares of the runs, for job arrays.")] = "1/1",
    reuse: Annotated[
        Path | None, typer.Option(help="Folder or records.jsonl of another study: take over what both have in common.")
    ] = None,
    change: Set = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Label-budget study: arms × label counts × draws × seeds, with intervals over draws and people; written down before it runs."""
    from oligovox import experiment

    result = experiment.budget(study, out, workers=workers, job=job, changes=tuple(change), reuse=reuse, show=bar)
    say(result, json)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of `run` or `demo`.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the overview page, for several runs.")
    ] = None,
    json: Json = False,
) -> None:
    """Write report.html and report.json of a run again, or an overview of several."""
    from oligovox import experiment

    say(experiment.report(runs, out), json)


@app.command()
def methods(
    name: Annotated[str, typer.Argument(help="Only this one.")] = "",
    views: Annotated[Path | None, typer.Option(help="Draw on a patch of this store what the network is shown.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture to write (PNG).")] = Path("views.png"),
    network: Annotated[str, typer.Option(help="Encoder, for methods that ask for one of a kind.")] = "resenc",
    patch: Annotated[int, typer.Option(help="Side of the patch in voxels.", min=8)] = 48,
    change: Set = [],  # noqa: B006
    json: Json = False,
) -> None:
    """What there is, from which paper, with which settings; with --views a picture on your own data."""
    from oligovox import experiment

    if views:
        say(experiment.views(name, views, out, changes=change, network=network, patch=patch), json)
        return
    found = experiment.methods(name)
    if json:
        say({"methods": found}, json)
        return
    for entry in found:
        typer.secho(f"{entry['name']}  ({entry['room']})", bold=True)
        typer.echo(f"  {entry['summary']}\n  Source: {entry['source']}\n  Deviates: {entry['deviates']}")
        for setting in entry["settings"]:
            typer.echo(f"    {setting['name']} = {setting['default']}    {setting['description']}")


def main() -> None:
    """Entry point: errors raised on purpose become one line and an exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        app()
    except OligovoxError as error:
        if "--json" in sys.argv:
            typer.echo(json_module.dumps({"error": type(error).__name__, "message": str(error)}))
        typer.secho(f"error: {error}", err=True, fg="red")
        sys.exit(2 if isinstance(error, InputError) else 1)


def _sparse(annotate: str, changes: list[str]) -> list[str]:
    """'lesions:share=0.5,margin_mm=3' as settings of a simulated cohort.

    Raises:
        SettingsError: these or the other changes name a kind as well.
    """
    if not annotate:
        return []
    kind, _, settings = annotate.partition(":")
    given = [f"sparse.{change}" for change in words(settings)]
    if other := [change for change in (*given, *changes) if change.startswith("sparse.kind=")]:
        raise SettingsError(f"--annotate {kind}: {other[0]} among the settings; name one kind, by --annotate only")
    return [f"sparse.kind={kind}", *given]
