"""The verbs, one by one. Each takes folders, writes one folder, and resumes where it was killed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from oligovox import catalogue
from oligovox.cohort.manifest import Cohort
from oligovox.cohort.splits import Split, nested_budgets
from oligovox.engine.log import say
from oligovox.engine.model import ModelDescription, read_description
from oligovox.engine.runtime import Hardware
from oligovox.errors import CheckpointError, CohortError, LabelError, SettingsError
from oligovox.experiment.cohorts import Show, quiet, read_cohort
from oligovox.experiment.people import seen_unlabelled
from oligovox.experiment.prediction import check_head, load_segmentation, predict_cases, region_outputs
from oligovox.experiment.realism import realism_page
from oligovox.experiment.recipe import Finetune, NetworkChoice, Predict, Pretrain, nested
from oligovox.experiment.training import Job, model_folder, of_finetuning, start_network, train
from oligovox.files import check_writable
from oligovox.infer.window import predict_case
from oligovox.metrics.overlap import dice
from oligovox.prepare.pipeline import prepare as prepare_cohort
from oligovox.prepare.store import Plan, Store, StoredCase
from oligovox.report.page import load_report, write_index, write_report
from oligovox.sample.patches import Stream
from oligovox.settings import parse
from oligovox.simulate.recipe import make_recipe
from oligovox.simulate.write import simulate_cohort


def simulate(
    out: Path | str,
    *,
    preset: str = "ms-3t",
    subjects: int = 40,
    seed: int = 0,
    labelled: int | None = None,
    page: bool = False,
    real: Path | str | None = None,
    masks: Path | str | None = None,
    workers: int = 2,
    changes: Sequence[str] = (),
    show: Show = quiet,
) -> dict[str, Any]:
    """Write a simulated cohort as BIDS.

    Args:
        out: folder to write.
        preset: which cohort; one of `simulate.recipe.presets()`.
        subjects: how many.
        seed: of the cohort; subject k is the same whatever the number of subjects.
        labelled: write labels and truth tables for the first so many only; None: for all.
        page: also draw derivatives/realism/realism.html in it: slices, histograms, contrasts, lesions.
        real: with page: BIDS folder of real images to put beside it.
        masks: with page: folder of real lesion masks to compare the lesions with.
        workers: processes.
        changes: settings of `simulate.recipe` that differ from the preset, as key=value.
        show: progress.

    Raises:
        SettingsError: unknown preset or setting.
        OutputError: the folder cannot be written.
    """
    out = Path(out)
    if (real or masks) and not page:
        raise SettingsError("real and masks are for the page; give page (--page) as well")
    recipe = make_recipe(preset, nested(changes))
    check_writable(out)
    beside = read_cohort(real) if real else None  # a wrong folder is said before the long work
    simulate_cohort(
        out,
        recipe,
        subjects=subjects,
        seed=seed,
        labelled=labelled,
        workers=workers,
        progress=show(f"simulate {preset}"),
    )
    done: dict[str, Any] = {"cohort": str(out), "preset": preset, "subjects": subjects, "seed": seed}
    if page:
        name = "organs" if recipe.body == "abdomen" else "tumour" if recipe.glioma else "lesion"
        done["page"] = str(
            realism_page(out, out / "derivatives" / "realism", real=beside, masks=masks, mask=name, show=show)
        )
    return done


def prepare(
    data: Path | str,
    store: Path | str,
    *,
    modalities: Sequence[str] = (),
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    mask: str = "lesion",
    layout: str = "",
    sequences: Sequence[str] = (),
    labels: Sequence[str] = (),
    workers: int = 2,
    show: Show = quiet,
) -> dict[str, Any]:
    """Turn a folder of any layout that is known, or a list or table of files, into a store.

    Args:
        data: BIDS, nnU-Net raw, BraTS, …; a datalist (.json) or a table (.tsv, .csv).
        store: folder to write.
        modalities: sequences to keep, in order; empty: all that occur.
        spacing: voxel size in mm.
        mask: which label, in the words of the layout; of BIDS the name of the lesion masks in derivatives.
        layout: name of the layout; '': as it looks.
        sequences: what the folder calls a sequence whose name is not known, as NAME=FLAIR.
        labels: value of each class in the label files, as hole=2; empty: as the folder says.
        workers: processes.
        show: progress.

    Raises:
        InputError: one line for the first thing that is wrong with the data.
    """
    store = Path(store)
    cohort = read_cohort(data, mask=mask, layout=layout, sequences=sequences, labels=labels)
    plan = parse(Plan, {"modalities": tuple(modalities) or cohort.modalities, "spacing": spacing}, "prepare")
    check_writable(store)
    made = prepare_cohort(cohort, plan, store, workers=workers, progress=show("prepare"))
    labelled = sum(case.labelled for case in made.cases)
    return {"store": str(store), "cases": len(made.cases), "labelled": labelled, "modalities": list(plan.modalities)}


def pretrain(
    store: Store | Path | str,
    out: Path | str,
    *,
    stage: Pretrain | None = None,
    network: NetworkChoice | None = None,
    people: Sequence[str] | None = None,
    split: Split | None = None,
) -> Path:
    """Pre-train on images; labels are not read.

    Args:
        store: prepared volumes.
        out: run folder: checkpoints/, log.jsonl, model/.
        stage: method, patch, batch, schedule; None: the defaults.
        network: the encoder; None: the default.
        people: whose images are seen; None: everyone, without those whom `split` holds out.
        split: who is held out.

    Returns:
        The model folder.

    Raises:
        SettingsError: method, network, patch and data do not fit; said before the first step.
    """
    out = Path(out)
    store, stage = _opened(store), stage or Pretrain()
    if people is None:
        people = [person for person in store.people if split is None or person not in split.held_out]
    check_writable(out)
    job = Job(
        method=stage.method,
        settings=stage.settings,
        network=network or NetworkChoice(),
        stage=stage,
        streams=(Stream(store.of(people), stage.batch, use_labels=False),),
        transductive=stage.transductive,
    )
    return train(job, store, out)


def finetune(
    store: Store | Path | str,
    out: Path | str,
    *,
    stage: Finetune | None = None,
    network: NetworkChoice | None = None,
    start: Path | str | None = None,
    people: Sequence[str] | None = None,
    labels: int | None = None,
    split: Split | None = None,
    tensors: bool = False,
) -> Path:
    """Train a segmentation network on few labels, and with `stage.semi` on exams without a label as well.

    Args:
        store: prepared volumes.
        out: run folder: checkpoints/, log.jsonl, model/.
        stage: patch, batch, schedule; None: the defaults.
        network: the encoder; None: that of `start`, or the default.
        start: pre-trained run or model folder; None: from scratch.
        people: whose labels are used; None: everyone labelled, without those whom `split` holds out.
        labels: use so many of them, a nested draw by the training's seed; None: all.
        split: who is held out; the best checkpoint is chosen by Dice on its validation people, without any the last is kept.
        tensors: say what became of each tensor of the start.

    Returns:
        The model folder.

    Raises:
        LabelError: nobody has a label, or fewer than `labels` have.
        SettingsError: network, patch and data do not fit; said before the first step.
    """
    out, start = Path(out), Path(start) if start else None
    store, stage = _opened(store), stage or Finetune()
    if people is None:
        people = sorted({case.person for case in store.labelled} - (split.held_out if split else set()))
    cases = tuple(case for case in store.of(people) if case.labelled)
    if not cases or len(people) < (labels or 0):
        raise LabelError(
            f"{store.root}: {len(people) if cases else 0} people with a label may be used, {labels or 'at least 1'} wanted; "
            "label more cases, or hold out fewer people"
        )
    if labels:
        people = nested_budgets(people, [labels], stage.training.seed)[labels]
        cases = tuple(case for case in cases if case.person in people)
    check_writable(out)
    held_out = store.of(split.validation) if split else ()
    watched = [(case, label) for case in held_out if (label := case.label()) is not None]
    if held_out and not watched:
        say("no validation case has a label: the last checkpoint is kept, not the best")
    seen = {*read_description(model_folder(start)).trained_on} & {*split.test} if start and split else set()
    if seen:
        say(f"{start} has seen images of {len(seen)} test people, first {min(seen)}: this run is transductive")
    streams = [Stream(cases, stage.batch, "lesion", stage.lesion_share)]
    if stage.semi and (more := seen_unlabelled(store, stage.semi, cases, split)):
        streams.append(Stream(more, stage.semi.batch, use_labels=False))
    method, settings = of_finetuning(stage, store.labels)
    if start and "head" in stage.parts:
        check_head(start, settings)
    job = Job(
        method=method,
        settings=settings,
        network=network or (start_network(start) if start else NetworkChoice()),
        stage=stage,
        streams=tuple(streams),
        start=start,
        parts=stage.parts,
        norm_reset=stage.norm_reset,
        shuffled=stage.shuffled,
        transductive=bool(seen),
        tensors=tensors,
        watched=tuple(case.name for case, _ in watched),
    )
    return train(job, store, out, validate=_validator(watched, store.plan, job) if watched else None)


def _opened(store: Store | Path | str) -> Store:
    return store if isinstance(store, Store) else Store.open(Path(store))


def _validator(
    cases: Sequence[tuple[StoredCase, NDArray[Any]]], plan: Plan, job: Job
) -> Callable[[nn.Module], Mapping[str, float]]:
    """Mean Dice of the validation cases on the prepared grid, any class against background; undefined ones do not count."""

    regions = region_outputs(job.settings)

    def validate(network: nn.Module) -> Mapping[str, float]:
        values = []
        for case, label in cases:
            activation: Literal["sigmoid", "softmax"] = "sigmoid" if regions else "softmax"
            found = predict_case(network, case, plan, patch=job.stage.patch, overlap=0.25, activation=activation)
            values.append(dice(np.any(found > 0.5, axis=0) if regions else found.argmax(0), label))
        defined = [value for value in values if math.isfinite(value)]
        return {"dice": fmean(defined) if defined else math.nan}

    return validate


def predict(
    model: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    people: Sequence[str] = (),
    options: Predict | None = None,
    losses: Path | str | None = None,
    workers: int = 2,
    hardware: Hardware | None = None,
    show: Show = quiet,
) -> dict[str, Any]:
    """Predict every case of `data` on its own grid, as BIDS derivatives.

    Args:
        model: run or model folder of `finetune`.
        data: BIDS folder, cohort table or store; what is not a store is prepared with the model's own plan, in `out`.
        out: folder for the predictions.
        people: only these; empty: everyone.
        options: sliding window; None: the defaults.
        losses: subsets.json that `evaluate` wrote about this model: what to expect where sequences are missing; None: the model folder's own, if any.
        workers: processes that prepare.
        hardware: device, precision, threads; None: what there is.
        show: progress.

    Raises:
        CheckpointError: not a segmentation model.
        CohortError: no case has a sequence that the model knows.
    """
    model, data, out = Path(model), Path(data), Path(out)
    model = model_folder(model)
    _, description = load_segmentation(model)
    check_writable(out)
    cases = _prepared(data, description, people, out, workers, show)
    beside = Path(losses) if losses else None
    written = predict_cases(model, cases, out, options or Predict(), show("predict"), hardware, losses=beside)
    return {
        "predictions": str(out),
        "cases": len(written),
        "files": {name: str(path) for name, path in written.items()},
    }


def _prepared(
    data: Path, description: ModelDescription, people: Sequence[str], out: Path, workers: int, show: Show
) -> tuple[StoredCase, ...]:
    """Cases of the store given, if it was prepared as the model wants it; otherwise of a new one below `out`. Labels are not read."""
    plan = parse(Plan, description.plan, "plan of the model")
    if (data / "store.json").is_file():
        store = Store.open(data)
        if store.plan != plan:
            raise CheckpointError(
                f"{data}: prepared by another plan than the model's ({plan}); predict from the BIDS folder"
            )
        return store.of(people) if people else store.cases
    cohort = read_cohort(data, mask=None)
    wanted = cohort.of(people) if people else cohort.cases
    known = [replace(case, label=None) for case in wanted if set(case.images) & set(plan.modalities)]
    if not known:
        raise CohortError(
            f"{data}: no case has a sequence that the model knows ({', '.join(plan.modalities)}), {wanted[0].name} has "
            f"{', '.join(wanted[0].images)}; name the files by their sequence, or use a model trained on these"
        )
    for case in wanted:
        if not set(case.images) & set(plan.modalities):
            say(f"{case.name}: left out; it has {', '.join(case.images)}, the model knows {', '.join(plan.modalities)}")
    cohort = Cohort(cases=tuple(known), labels=description.labels, name=cohort.name)
    return prepare_cohort(cohort, plan, out / "sourcedata" / "store", workers=workers, progress=show("prepare")).cases


def report(runs: Sequence[Path], out: Path | None = None) -> dict[str, Any]:
    """Draw the page of each run again; with several runs also an overview in `out`.

    Raises:
        CohortError: a folder has no report.json; `oligovox run` writes it.
    """
    reports = [load_report(run / "report.json") for run in runs]
    pages = [str(write_report(content, run)) for content, run in zip(reports, runs, strict=True)]
    if out is not None:
        check_writable(out)
        links = [Path(os.path.relpath(page, out)).as_posix() for page in pages]
        pages.append(str(write_index(reports, out, links)))
    return {"pages": pages}


def methods(name: str = "") -> list[dict[str, Any]]:
    """Every method, or the one of this name: name, room, summary, source, deviations, settings with default and meaning.

    Raises:
        SettingsError: there is none of this name; says the nearest one.
    """
    found, known = [], catalogue.entries("METHOD")
    if name:
        catalogue.load("METHOD", name)
    for entry in [known[name]] if name else known.values():
        fields = catalogue.load("METHOD", entry.name).Settings.model_fields
        settings = [
            {
                "name": name,
                "default": field.get_default(call_default_factory=True),
                "description": field.description or "",
            }
            for name, field in fields.items()
        ]
        found.append({**asdict(entry), "settings": settings})
    return found
