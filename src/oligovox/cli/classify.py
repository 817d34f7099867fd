"""`oligovox classify …`: lesions with a paramagnetic rim."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from oligovox.cli.options import Json, Out, Overlap, Set, Workers, bar, say, schedule, words
from oligovox.errors import SettingsError

app = typer.Typer(
    help="Lesions with a paramagnetic rim, from QSM and FLAIR: cut, train and test by cross-validation, predict, score.",
    no_args_is_help=True,
)


class Size(StrEnum):
    """How much is trained."""

    PAPER, CPU = "paper", "cpu"


@app.command()
def extract(
    data: Annotated[Path, typer.Argument(help="BIDS folder, or a cohort table (.tsv), with QSM and FLAIR.")],
    lesions: Annotated[Path, typer.Argument(help="Lesion store to write; a killed run resumes there.")],
    masks: Annotated[
        Path | None, typer.Option(help="Folder of predicted masks; default: the masks of the data.")
    ] = None,
    mask: Annotated[str, typer.Option(help="Name of the lesion mask in derivatives (desc- or label-).")] = "lesion",
    grades: Annotated[
        str, typer.Option(help="Table of grades (.tsv), auto: what each exam has in derivatives, or none.")
    ] = "auto",
    people: Annotated[str, typer.Option(help="Only these, comma separated.")] = "",
    workers: Workers = 2,
    change: Annotated[
        list[str], typer.Option("--set", help="Change a setting, e.g. lesions.split=watershed (repeatable).")
    ] = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Cut a patch of QSM and FLAIR around every lesion of every exam."""
    from oligovox import experiment

    result = experiment.classify_extract(
        data, lesions,
        masks=masks, mask=mask, grades=grades, people=words(people), changes=change, workers=workers, show=bar,
    )  # fmt: skip
    say(result, json)


@app.command()
def train(
    lesions: Annotated[Path, typer.Argument(help="Lesion store with grades.")],
    out: Out,
    method: Annotated[
        str | None,
        typer.Option(help="A classifier of `oligovox methods`, or radiomics_forest; default: lesion_classification."),
    ] = None,
    pretext: Annotated[
        str | None, typer.Option(help="Self-supervised start, made anew in each fold; default: from scratch.")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="Network: frodo (default), rimnet, resnet18, resenc.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Size of the network; of frodo: paper (default), cpu, nano.")
    ] = None,
    size: Annotated[
        Size,
        typer.Option(
            help="Network, patch and schedule: the paper's, or minutes a fold on two cores; no matter to a forest."
        ),
    ] = Size.PAPER,
    folds: Annotated[int | None, typer.Option(help="Folds of people; default: 5.", min=2)] = None,
    labels: Annotated[
        int | None, typer.Option(help="Use the grades of so many people a fold; default: all.", min=3)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of each fold.", min=1)] = None,
    change: Set = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Train and test a classifier by cross-validation over people, with thresholds from inner folds, and one page."""
    from oligovox import experiment
    from oligovox.experiment.classification_recipe import Classify, cpu_size
    from oligovox.experiment.classification_scores import score_headlines
    from oligovox.experiment.recipe import changed

    chosen = {
        "method": method,
        "pretrain.method": pretext,
        "network.name": encoder,
        "network.settings.preset": preset,
        "folds": folds,
        "labels": labels,
    }
    said = [f"{key}={value}" for key, value in chosen.items() if value is not None]
    said += [*change, *schedule(steps)]
    settings = changed(Classify, said, "classify")
    if size is Size.CPU:
        settings = changed(Classify, [*cpu_size(settings), *said], "classify")
    result = experiment.classify_train(lesions, out, chosen=settings, show=bar)
    say(result if json else score_headlines(result), json)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Finished run folder of `classify train`.")],
    data: Annotated[Path, typer.Argument(help="BIDS folder, or a cohort table (.tsv), with QSM and FLAIR.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    segment: Annotated[
        Path | None, typer.Option(help="Run or model folder of `finetune`: predict the lesion masks first.")
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(help="Folder of predicted masks; default: the masks of the data.")
    ] = None,
    mask: Annotated[str, typer.Option(help="Name of the lesion mask in derivatives (desc- or label-).")] = "lesion",
    people: Annotated[str, typer.Option(help="Only these, comma separated.")] = "",
    qsm_units: Annotated[
        str, typer.Option(help="Of the QSM files: ppb, ppm, or auto: by the sidecar, else guessed from the values.")
    ] = "auto",
    page: Annotated[bool, typer.Option(help="Also draw classify.html.")] = True,
    overlap: Overlap = None,
    workers: Workers = 2,
    json: Json = False,
) -> None:
    """Classify the lesions of new patients on their own grid; with --segment from the images alone."""
    from oligovox import experiment
    from oligovox.experiment.recipe import Predict

    if segment and masks:
        raise SettingsError("--segment predicts the masks that --masks gives; choose one of them")
    if overlap is not None and not segment:
        raise SettingsError("--overlap is of the windows of --segment; name a segmentation model, or leave it out")
    options = None if overlap is None else Predict(overlap=overlap)
    result = experiment.classify_predict(
        run, data, out,
        segmenter=segment, masks=masks, mask=mask, people=words(people), qsm_units=qsm_units, page=page, options=options,
        workers=workers, show=bar,
    )  # fmt: skip
    if not json:
        del result["files"]
    say(result, json)


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of `classify train` or `predict`, or a predictions.tsv.")],
    out: Out,
    against: Annotated[
        Path | None, typer.Option(help="The same of another classifier: differences with intervals over people.")
    ] = None,
    lesions: Annotated[
        Path | None, typer.Option(help="Lesion store with the grades, where the table has none; also for pictures.")
    ] = None,
    change: Annotated[
        list[str], typer.Option("--set", help="Change a setting of the protocol, e.g. max_fpr=0.05 (repeatable).")
    ] = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Score classified lesions by lesion and by person, and compare two classifiers on the same lesions."""
    from oligovox import experiment
    from oligovox.experiment.classification_scores import score_headlines
    from oligovox.experiment.recipe import nested

    result = experiment.classify_evaluate(predictions, out, against=against, lesions=lesions, changes=nested(change))
    say(result if json else score_headlines(result), json)
