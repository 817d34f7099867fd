"""New patients: segment (if asked), cut the lesions, ask the classifiers of all folds, write what they say on the patient's own grid.

    OUT/segmentation/                          predicted masks, where a segmentation model is given
    OUT/lesions/                               the lesion store
    OUT/predictions.tsv, .json                 one row a lesion; by which classifiers, and what has to be known of them
    OUT/sub-01/anat/sub-01_desc-rim_probseg.nii.gz    each lesion coloured by its probability of a rim, 0 elsewhere
                    sub-01_desc-rim_probseg.tsv, .json    its lesions; where it comes from
    OUT/classify.html                          the same to look at

The probability is the mean over the folds' classifiers, the threshold the mean of their thresholds. The cross-validation does not score this
combination: it scores single classifiers, each with its own threshold, and every person is tested by one of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oligovox.engine.log import say
from oligovox.engine.runtime import Hardware, Runtime
from oligovox.errors import CheckpointError
from oligovox.experiment.classification import PREDICTIONS, prediction_rows
from oligovox.experiment.classification_maps import write_map
from oligovox.experiment.classification_page import PREDICTED, lesion_views
from oligovox.experiment.classification_recipe import FORMAT
from oligovox.experiment.cohorts import Show, quiet
from oligovox.experiment.lesion_cohorts import NONE, read_exams, say_guessed_units
from oligovox.experiment.radiomics_forest import FOREST, RadiomicsForest, lesion_rows
from oligovox.experiment.recipe import Predict
from oligovox.experiment.training import load_network
from oligovox.experiment.verbs import predict
from oligovox.files import check_writable, read_json, write_json, write_tsv
from oligovox.infer.calibration import Calibration
from oligovox.infer.lesions import Mirrored, predict_lesions
from oligovox.prepare.lesion_store import LesionPlan, LesionStore
from oligovox.prepare.lesions import extract_lesions
from oligovox.report.lesions import write_lesion_page
from oligovox.settings import parse

_EXPLAINED = 3  # lesions whose answer is explained: it takes longer than the answer


def classify_predict(
    run: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    segmenter: Path | str | None = None,
    masks: Path | str | None = None,
    mask: str = "lesion",
    people: Sequence[str] = (),
    qsm_units: str = "auto",
    page: bool = True,
    options: Predict | None = None,
    workers: int = 2,
    hardware: Hardware | None = None,
    show: Show = quiet,
) -> dict[str, Any]:
    """Classify every lesion of new exams, from masks that are there or from images alone.

    A lesion's probability is the mean of what the folds' classifiers say, and the threshold the mean of theirs. The cross-validation has scored single
    classifiers, never this combination.

    Args:
        run: finished run folder of `classify_train`.
        data: BIDS folder or cohort table with QSM and FLAIR.
        out: folder to write; a killed run resumes there.
        segmenter: run or model folder of `finetune`: lesion masks are predicted first.
        masks: folder of predicted masks; without both: the masks of `data`.
        mask: name of the lesion masks in the derivatives of `data`.
        people: only these; empty: everyone.
        qsm_units: of these exams' QSM, whatever those of the training had: auto (by the sidecar, else guessed from the values, and said), ppb or ppm.
        page: also draw classify.html.
        options: sliding window of the segmenter; None: the defaults.
        workers: processes that prepare and cut.
        hardware: device, precision, threads; None: what there is.
        show: progress.

    Returns:
        "predictions" (the table), "exams", "lesions", "called" and "files" (exam → NIfTI).

    Raises:
        CheckpointError: not a finished run of `classify_train`.
        CohortError: no exam has QSM, FLAIR and a mask.
        InputError: one line for the first thing that is wrong with the data.
    """
    run, data, out = Path(run), Path(data), Path(out)
    about, models = _finished(run)
    plan = parse(LesionPlan, about["extraction"] | {"qsm_units": qsm_units}, f"{run}: extraction")
    check_writable(out)
    (out / "classify.html").unlink(missing_ok=True)  # of an earlier call, maybe of other people
    given: Path | dict[str, Path] | None = Path(masks) if masks else None
    if segmenter:
        made = predict(
            segmenter, data, out / "segmentation", people=people, options=options, workers=workers, hardware=hardware, show=show
        )  # fmt: skip
        given = {name: Path(path) for name, path in made["files"].items()}
    exams = read_exams(data, masks=given, mask=mask, grades=NONE, people=people)
    store = extract_lesions(exams, plan, out / "lesions", workers=workers, progress=show("extract"), empty_ok=True)
    say_guessed_units(store)
    if about["settings"]["method"] == FOREST:
        probability, seen_in_training = _by_forests(models, store)
    else:
        probability, seen_in_training = _by_networks(models, store, about["settings"], Runtime(hardware))
    seen_in_training |= {person for fold in about["folds"] for part in ("train", "validation") for person in fold[part]}
    threshold = float(np.mean([read_json(model.parents[1] / "fold.json")["threshold"] for model in models]))
    rows = prediction_rows(store.lesions, probability, np.full(len(store), threshold), None)
    warnings = _warnings(about, {exam.case.person for exam in exams} & seen_in_training)
    told = {"Classifier": str(run)} | ({"Warnings": warnings} if warnings else {})
    files = {exam.case.name: str(write_map(out, store, exam.case.name, rows, told)) for exam in exams}
    write_json(out / PREDICTED, {"Classifier": str(run), "Warnings": warnings})
    write_tsv(out / "predictions.tsv", rows, PREDICTIONS)
    for warning in warnings:
        say(warning)
    if not store.lesions:
        say(f"no lesion of at least {plan.lesions.min_volume_mm3:g} mm³ in {len(exams)} exams: nothing to classify")
    elif page:
        drawn = None if about["settings"]["method"] == FOREST else int(about["settings"]["patch"])
        _page(out, store, rows, models, drawn, warnings)
    called = sum(row["called"] for row in rows)
    return {
        "predictions": str(out / "predictions.tsv"),
        "exams": len(exams),
        "lesions": len(rows),
        "called": called,
        "files": files,
    }


def _finished(run: Path) -> tuple[dict[str, Any], list[Path]]:
    """classify.json of a run, and the models of its folds."""
    table = run / "classify.json"
    if not table.is_file():
        raise CheckpointError(f"{run}: no classify.json in it; expected a run folder of `oligovox classify train`")
    about: dict[str, Any] = read_json(table)
    if about.get("format") != FORMAT:
        raise CheckpointError(f"{table}: a run of format {about.get('format')}, expected {FORMAT}; train again")
    if not about.get("finished"):
        raise CheckpointError(
            f"{run}: training was not finished; run the same `oligovox classify train` again, it goes on"
        )
    kind = "forest" if about["settings"]["method"] == FOREST else "model"
    return about, [run / f"fold-{number}" / "train" / kind for number in range(1, len(about["folds"]) + 1)]


def _warnings(about: Mapping[str, Any], seen: Collection[str]) -> list[str]:
    """What has to be known of the classifiers of a run before anybody believes them, a sentence each.

    Args:
        about: classify.json of the run.
        seen: of the people that are asked about, those by whose name the run learned or chose.
    """
    found = []
    if seen:
        found.append(
            f"The classifiers have seen people of the same name as {len(seen)} of these, first {min(seen)}: if they are the same people, "
            "what is said of them proves nothing."
        )
    if about.get("simulated"):
        found.append(
            "The classifiers were trained on simulated people only: they are not tested on patients. Not for clinical use."
        )
    if (about["settings"].get("pretrain") or {}).get("transductive"):
        found.append(
            "The classifiers' start saw the lesions of tested people (transductive): the scores of their run promise more than new patients get."
        )
    return found


def _by_forests(folders: Sequence[Path], store: LesionStore) -> tuple[NDArray[np.float64], set[str]]:
    """Mean over the folds' forests, and whom they have learned from."""
    forests = [RadiomicsForest.load(folder) for folder in folders]
    rows = lesion_rows(store.lesions, store.plan, forests[0].settings.bin_ppb)
    people = {person for forest in forests for person in forest.trained_on}
    return np.mean([forest.predict(rows) for forest in forests], axis=0), people


def _by_networks(
    models: Sequence[Path], store: LesionStore, chosen: Mapping[str, Any], runtime: Runtime
) -> tuple[NDArray[np.float64], set[str]]:
    """Mean over the folds' networks, and whom they have learned from."""
    total, people = np.zeros(len(store)), set[str]()
    for model in models:
        network, description = load_network(model)
        if description.kind != "classification":
            raise CheckpointError(f"{model}: a model of kind {description.kind}, expected a classifier of lesions")
        people.update(description.trained_on)
        calibrate = Calibration(**read_json(model.parents[1] / "fold.json")["calibration"])
        network = network.to(runtime.device)
        said = predict_lesions(
            Mirrored(network) if chosen.get("mirror") else network, store.lesions,
            patch=int(chosen["patch"]), plan=store.plan, device=runtime.device,
        )  # fmt: skip
        total += calibrate(said)
    return total / len(models), people


def _page(
    out: Path,
    store: LesionStore,
    rows: Sequence[Mapping[str, Any]],
    models: Sequence[Path],
    patch: int | None,
    warnings: Sequence[str],
) -> Path:
    ordered = sorted(rows, key=lambda row: (-row["probability"], row["lesion"]))
    views = lesion_views(ordered, store, {"1": models[0]}, patch, explained=_EXPLAINED)
    explained = any(view.saliency is not None for view in views)
    rests = " What an answer rests on is shown of the first fold's classifier." if explained else ""
    return write_lesion_page(
        out / "classify.html",
        title="Lesions by probability of a rim",
        views=views,
        order=f"The lesions with the highest probability first.{rests}",
        rows=ordered,
        warnings=warnings,
        simulated=store.simulated,
    )
