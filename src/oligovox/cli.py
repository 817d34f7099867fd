"""The command line: a thin skin over `experiment`. Results go to stdout (`--json`: one JSON object), everything else to stderr.

Exit codes: 0 done, 1 failed, 2 wrong usage or input (nothing is written). Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import json as json_module
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from oligovox.errors import InputError, OligovoxError, SettingsError

app = typer.Typer(
    name="oligovox",
    help="Learn from every unlabelled multi-sequence MRI, label a handful: lesion models, predictions and an honest report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of text.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write; a killed run resumes there.")]
Set = Annotated[list[str], typer.Option("--set", help="Change a setting, e.g. training.steps=500 (repeatable).")]
Layout = Annotated[
    str,
    typer.Option(
        help="bids, nnunet, brats, isbi2015, msseg2016, ljubljana, series, datalist, table; default: as it looks."
    ),
]
Sequence = Annotated[
    list[str], typer.Option("--sequence", help="What the folder calls a sequence, as MRI=FLAIR (repeatable).")
]
Workers = Annotated[int, typer.Option(help="Worker processes.", min=1)]


@app.command()
def demo(out: Out = Path("demo"), change: Set = [], json: Json = False) -> None:  # noqa: B006
    """Simulate → pre-train → fine-tune → compare with scratch → one page. Minutes on two cores."""
    from oligovox import experiment

    _say(experiment.demo(out, tuple(change), show=_bar), json)


@app.command("run")
def run_recipe(
    recipe: Annotated[Path, typer.Argument(help="A recipe (YAML).")],
    out: Out,
    change: Set = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Everything one recipe says, from cohorts to the page."""
    from oligovox import experiment

    _say(experiment.run(recipe, out, tuple(change), show=_bar), json)


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
        changes=(*_sparse(annotate), *change), show=_bar,
    )  # fmt: skip
    _say(result, json)


cohort = typer.Typer(help="Cohorts before they are prepared.", no_args_is_help=True)
app.add_typer(cohort, name="cohort")


@cohort.command("look")
def cohort_look(
    data: Annotated[Path, typer.Argument(help="A folder, a datalist (.json) or a table (.csv, .tsv).")],
    layout: Layout = "",
    sequence: Sequence = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Which layout a folder has and why, who is in it, and with which sequences and labels; nothing is written."""
    from oligovox import experiment

    found = experiment.look_at(data, layout=layout, sequences=sequence)
    lines = {name: "; ".join(value) if isinstance(value, list) else value for name, value in found.items()}
    _say(found if json else lines, json)


@cohort.command("write")
def cohort_write(
    data: Annotated[Path, typer.Argument(help="A folder, a datalist (.json) or a table (.csv, .tsv).")],
    out: Annotated[Path, typer.Argument(help="New folder; a .json for a datalist, a .tsv for a table.")],
    to: Annotated[str, typer.Option(help="bids, nnunet, datalist, table.")] = "bids",
    layout: Layout = "",
    mask: Annotated[str, typer.Option(help="Which label, in the words of the layout, such as rater2.")] = "lesion",
    sequence: Sequence = [],  # noqa: B006
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
        to=to, layout=layout, mask=mask, sequences=sequence, modalities=_words(modalities), incomplete=incomplete, link=link,
    )  # fmt: skip
    _say(result, json)


@cohort.command("series")
def cohort_series(
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
    _say(result, json)


@cohort.command()
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
        kind=kind, changes=change, people=_words(people), seed=seed, mask=mask, picture=picture, show=_bar,
    )  # fmt: skip
    _say(result, json)


@app.command()
def prepare(
    data: Annotated[Path, typer.Argument(help="A folder as `oligovox cohort look` knows it, or a list or table.")],
    store: Annotated[Path, typer.Argument(help="Store to write.")],
    modalities: Annotated[str, typer.Option(help="Sequences, comma separated; default: all that occur.")] = "",
    spacing: Annotated[str, typer.Option(help="Voxel size in mm, comma separated.")] = "1,1,1",
    mask: Annotated[str, typer.Option(help="Name of the lesion mask in derivatives (desc- or label-).")] = "lesion",
    layout: Layout = "",
    sequence: Sequence = [],  # noqa: B006
    workers: Workers = 2,
    json: Json = False,
) -> None:
    """Check, reorient, resample, crop and normalise every case into a store."""
    from oligovox import experiment

    result = experiment.prepare(
        data, store,
        modalities=_words(modalities), spacing=_numbers(spacing), mask=mask, layout=layout, sequences=sequence,
        workers=workers, show=_bar,
    )  # fmt: skip
    _say(result, json)


@app.command()
def pretrain(
    store: Annotated[Path, typer.Argument(help="Prepared store.")],
    out: Out,
    method: Annotated[str, typer.Option(help="See `oligovox methods`.")] = "generative",
    encoder: Annotated[str | None, typer.Option(help="Network: resenc (default) or swin.")] = None,
    preset: Annotated[str | None, typer.Option(help="Size of a resenc: tiny (default), S, M, L.")] = None,
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

    stage = changed(Pretrain, [*change, *_steps(steps)], "pretrain", method=method)
    split = Split.load(exclude) if exclude else None
    model = experiment.pretrain(store, out, stage=stage, network=NetworkChoice.named(encoder, preset), split=split)
    result = {"model": str(model)}
    _say(result, json)


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
    stage = changed(Finetune, [*strategy, *change, *_steps(steps)], "finetune")
    if start and (encoder or preset):
        raise SettingsError("--from brings its own network; leave out --encoder and --preset")
    network = None if start else NetworkChoice.named(encoder, preset)
    held_out = Split.load(split) if split else None
    model = experiment.finetune(
        store, out, stage=stage, network=network, start=start, labels=labels, split=held_out, tensors=tensors
    )
    result = {"model": str(model)}
    _say(result, json)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Run or model folder of `finetune`.")],
    data: Annotated[Path, typer.Argument(help="BIDS folder, cohort table (.tsv) or prepared store.")],
    out: Annotated[Path, typer.Argument(help="Folder for the predictions (BIDS derivatives).")],
    people: Annotated[str, typer.Option(help="Only these, comma separated.")] = "",
    mirror: Annotated[bool, typer.Option(help="Average over the eight mirror images (8 times slower).")] = False,
    probabilities: Annotated[bool, typer.Option(help="Also write probability maps.")] = False,
    json: Json = False,
) -> None:
    """Predict on each input's own grid."""
    from oligovox import experiment
    from oligovox.experiment.recipe import Predict

    options = Predict(mirror=mirror, save_probabilities=probabilities)
    result = experiment.predict(model, data, out, people=_words(people), options=options, show=_bar)
    if not json:
        del result["files"]
    _say(result, json)


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
        protocol=protocol, changes=change, by=by, mask=mask, people=_words(people), workers=workers, show=_bar,
    )  # fmt: skip
    lines = price_headlines if subsets else headlines
    _say(result if json else lines(result), json)  # the tables in `out` have every case and lesion


classify = typer.Typer(
    help="Lesions with a paramagnetic rim, from QSM and FLAIR: cut, train and test by cross-validation, predict, score.",
    no_args_is_help=True,
)
app.add_typer(classify, name="classify")


@classify.command("extract")
def classify_extract(
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
        masks=masks, mask=mask, grades=grades, people=_words(people), changes=change, workers=workers, show=_bar,
    )  # fmt: skip
    _say(result, json)


@classify.command("train")
def classify_train(
    lesions: Annotated[Path, typer.Argument(help="Lesion store with grades.")],
    out: Out,
    method: Annotated[
        str | None, typer.Option(help="A classifier of `oligovox methods`; default: lesion_classification.")
    ] = None,
    pretext: Annotated[
        str | None, typer.Option(help="Self-supervised start, made anew in each fold; default: from scratch.")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="Network: frodo (default), rimnet, resnet18, resenc.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Size of the network; of frodo: paper (default), cpu, nano.")
    ] = None,
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
    from oligovox.experiment.classification_recipe import Classify
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
    settings = changed(Classify, [*said, *change, *_steps(steps)], "classify")
    result = experiment.classify_train(lesions, out, chosen=settings, show=_bar)
    _say(result if json else score_headlines(result), json)


@classify.command("predict")
def classify_predict(
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
    page: Annotated[bool, typer.Option(help="Also draw classify.html.")] = True,
    workers: Workers = 2,
    json: Json = False,
) -> None:
    """Classify the lesions of new patients on their own grid; with --segment from the images alone."""
    from oligovox import experiment

    if segment and masks:
        raise SettingsError("--segment predicts the masks that --masks gives; choose one of them")
    result = experiment.classify_predict(
        run, data, out,
        segmenter=segment, masks=masks, mask=mask, people=_words(people), page=page, workers=workers, show=_bar,
    )  # fmt: skip
    if not json:
        del result["files"]
    _say(result, json)


@classify.command("evaluate")
def classify_evaluate(
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
    _say(result if json else score_headlines(result), json)


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

    result = experiment.budget(study, out, workers=workers, job=job, changes=tuple(change), reuse=reuse, show=_bar)
    _say(result, json)


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

    _say(experiment.report(runs, out), json)


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
        _say(experiment.views(name, views, out, changes=change, network=network, patch=patch), json)
        return
    found = experiment.methods(name)
    if json:
        _say({"methods": found}, json)
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


def _say(result: Mapping[str, Any], json: bool) -> None:
    from oligovox.engine.log import in_main_process

    if not in_main_process():
        return
    if json:
        typer.echo(json_module.dumps(result, indent=2, default=str))
        return
    for key, value in result.items():
        typer.echo(f"{key}: {value}")


def _bar(title: str) -> Callable[[int, int, str], None]:
    """A progress bar with time left on a terminal, one line at the end elsewhere; called as (done, total, name)."""
    from oligovox.engine.log import counting_bar

    return counting_bar(title)


def _sparse(annotate: str) -> list[str]:
    """'lesions:share=0.5,margin_mm=3' as settings of a simulated cohort."""
    kind, _, settings = annotate.partition(":")
    return [f"sparse.{change}" for change in (f"kind={kind}", *_words(settings))] if annotate else []


def _steps(steps: int | None) -> list[str]:
    return [f"training.steps={steps}"] if steps else []


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[float, float, float]:
    try:
        x, y, z = (float(word) for word in _words(text))
    except ValueError:
        raise SettingsError(f"spacing '{text}': expected three numbers in mm, for example 1,1,1") from None
    return x, y, z
