"""Which lesions a page shows, in which order, and what each answer rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from oligovox.experiment.classification_recipe import FORMAT
from oligovox.experiment.radiomics_forest import FOREST
from oligovox.experiment.training import load_network
from oligovox.files import read_json
from oligovox.infer.lesions import occlusion
from oligovox.prepare.lesion_store import LesionPlan, LesionStore, StoredLesion
from oligovox.report.lesion_figures import LesionView
from oligovox.report.lesions import write_lesion_page
from oligovox.sample.lesions import lesion_batch

PREDICTED = "predictions.json"
"""Beside the predictions.tsv of `classify_predict`: by which classifiers, and warnings."""

SHOWN, EXPLAINED = 24, 6
"""Lesions drawn, and of these, from the first on, those whose answer is explained."""

_CUBE_MM = 6.0  # side of what is hidden at once: wider than a rim, narrower than most lesions
_NEUTRAL = (0.0, 0.0)  # 0 ppb, and the middle of FLAIR's range: what a patch has where nothing is seen


def draw_page(
    content: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], run: Path, out: Path, store: LesionStore | None
) -> Path:
    """The page of scored predictions; pictures where the lesion store is known.

    Args:
        content: of scores.json.
        rows: all lesions with the grades that were scored.
        run: folder of the predictions.
        out: folder to write.
        store: has the patches.
    """
    rows = sorted(rows, key=_agreement)
    classify = run / "classify.json"
    about = read_json(classify) if classify.is_file() else {}
    models = {
        str(number): run / f"fold-{number}" / "train" / "model" for number in range(1, len(about.get("folds", ())) + 1)
    }
    method = about.get("settings", {}).get("method", "")
    warnings = (
        ["The start saw the lesions of tested people, without their grades (transductive)."]
        if content["transductive"]
        else []
    )
    beside = run / PREDICTED
    warnings += read_json(beside)["Warnings"] if beside.is_file() else []
    settings = about.get("settings", {})
    patch = settings.get("patch") if method != FOREST else None
    if store and patch and (why := _unexplained(about, store)):
        warnings.append(f"What answers rest on is not shown: {why}.")
        models, patch = {}, None
    explained = " Explained is the answer without its mirror images." if settings.get("mirror") else ""
    return write_lesion_page(
        out / "classify.html",
        title=f"Lesions classified by {method}" if method else "Classified lesions",
        views=lesion_views(rows, store, models, patch) if store else (),
        order=f"The {min(SHOWN, len(rows))} of {len(rows)} lesions that grade and probability disagree on most, the worst first.{explained}",
        rows=rows,
        scores=content,
        warnings=warnings,
        simulated=content["simulated"],
    )


def lesion_views(
    rows: Sequence[Mapping[str, Any]],
    store: LesionStore,
    models: Mapping[str, Path],
    patch: int | None,
    explained: int = EXPLAINED,
) -> list[LesionView]:
    """The first lesions of a table as they are drawn.

    Args:
        rows: of predictions.tsv, in the order of the page.
        store: has their patches; a lesion it does not have is left out.
        models: fold → model folder whose answer is explained; those that are not there explain nothing.
        patch: side that the models saw, which is what is drawn; None: all that is stored.
        explained: how many, from the first on.
    """
    known = {lesion.name for lesion in store.lesions}
    networks: dict[Path, nn.Module] = {}
    views = []
    for place, row in enumerate([row for row in rows if row["lesion"] in known][:SHOWN]):
        lesion, model = store.named(row["lesion"]), models.get(str(row["fold"] or "1"))
        saliency = None
        if place < explained and patch and model is not None and (model / "model.json").is_file():
            if model not in networks:
                networks[model] = load_network(model)[0]
            saliency = _rests_on(networks[model], lesion, patch, store.plan)
        views.append(_view(lesion, row, patch or lesion.seen().shape[0], saliency))
    return views


def _unexplained(about: Mapping[str, Any], store: LesionStore) -> str:
    """Why the run's networks cannot be asked about the store's patches; empty where they can."""
    if about.get("format") != FORMAT:
        return f"the run is of format {about.get('format')}, and its networks were given other numbers than those of format {FORMAT}"
    cut, apart = store.plan.model_dump(mode="json"), ("qsm_units", "grades")
    other = [key for key, value in about.get("extraction", {}).items() if key not in apart and cut.get(key) != value]
    return f"the lesion store was cut with other {', '.join(other)} than the run's" if other else ""


def _rests_on(network: nn.Module, lesion: StoredLesion, patch: int, plan: LesionPlan) -> np.ndarray:
    """(2, patch, patch) fall of the logit where QSM, and where FLAIR, is hidden: the axial slice through the middle."""
    batch = lesion_batch([lesion], patch, plan)
    side = max(2, round(_CUBE_MM / plan.spacing))
    falls = occlusion(network, batch, 0, side=side, neutral=_NEUTRAL, through=patch // 2)
    slices: np.ndarray = falls[:, :, :, patch // 2]
    return slices


def _view(lesion: StoredLesion, row: Mapping[str, Any], patch: int, saliency: np.ndarray | None) -> LesionView:
    start = (lesion.seen().shape[0] - patch) // 2
    inner = (slice(start, start + patch),) * 3
    seen, image = lesion.seen()[inner], lesion.image()[(slice(None), *inner)]
    middle = patch // 2
    grade = {1: "Rim+", 0: "Rim−", -1: "grade unknown"}[row["grade"]]
    return LesionView(
        name=lesion.name,
        words=f"{lesion.name}: {row['probability']:.2f}, {grade}{'?' if lesion.uncertain and row['grade'] >= 0 else ''}",
        qsm=image[0, :, :, middle].astype(np.float32),
        flair=image[1, :, :, middle].astype(np.float32),
        seen=np.asarray(seen[:, :, middle]),
        saliency=saliency,
    )


def _agreement(row: Mapping[str, Any]) -> tuple[float, str]:
    """Sort key: the largest difference of grade and probability first; lesions of unknown grade last."""
    return (-abs(row["grade"] - row["probability"]) if row["grade"] >= 0 else 1.0, row["lesion"])
