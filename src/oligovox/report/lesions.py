"""The page of classified lesions: scores, curves, and the lesions themselves, those first that classifier and expert disagree on."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oligovox.files import atomic_file
from oligovox.report import tables
from oligovox.report.lesion_figures import LesionView, curves_plot, lesions_png
from oligovox.report.page import banner, document, figure
from oligovox.report.text import UNDEFINED, Html, count, escape, interval, number

_TITLES = {
    "roc_auc": "ROC-AUC",
    "partial_auc": "pAUC (standardised)",
    "partial_auc_raw": "pAUC",
    "pr_auc": "PR-AUC",
    "balanced_accuracy": "Balanced accuracy",
    "f1": "F1",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "PPV",
    "accuracy": "Accuracy",
    "prevalence": "Share of Rim+",
    "pearson_r": "Pearson r of counts",
    "mse": "Mean squared error of counts",
    "bias": "Called − true, a person",
}
_REGIONS = {"lesion": "Lesions", "count": "Rim+ lesions a person"}
_SHOWN = (
    "The axial slice through the middle of each patch, as the classifier sees it, but for the QSM's contrast: black to white are the middle half of its scale "
    "(−150 to 150 ppb, unless set otherwise). FLAIR by its percentiles; black where nothing is shown; the yellow line is the lesion. Radiological convention: "
    "the patient's right is on the left."
)
_RESTS = (
    " Third and fourth picture: the QSM, then the FLAIR, is hidden cube by cube; red where the answer then falls, so that what is there speaks for a rim, "
    "blue where it rises. Both are on one scale: full colour is the larger of the two numbers written on them, by which the network's logit changes at most. "
    "They say what this classifier uses, not what is a rim."
)
_CURVES = (
    "Lesions of all tested people pooled; intervals draw people, each with all their lesions. Grey lines: chance, the share of Rim+, perfect calibration; "
    "numbers at the points: lesions in the bin. Net benefit: found Rim+ minus false alarms, each weighed by the odds of the threshold."
)


def write_lesion_page(
    path: Path,
    *,
    title: str,
    views: Sequence[LesionView],
    order: str,
    rows: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
    simulated: bool = False,
) -> Path:
    """Write the page, complete or not at all.

    Args:
        path: file to write.
        title: heading.
        views: lesions drawn, in their order.
        order: says how they are sorted.
        rows: all lesions: "lesion", "person", "grade" (1, 0, -1), "probability", "called", and "x", "y", "z" (mm), "volume_mm3" or None.
        scores: content of scores.json; None where nobody knows the grades.
        warnings: on top.
        simulated: every number is about simulated people.

    Raises:
        OutputError: it cannot be written.
    """
    parts = [banner("Numbers on simulated subjects. They say nothing about patients.")] if simulated else []
    parts += [banner(text) for text in warnings]
    parts += ['<p class="over">oligovox · lesions</p>', f"<h1>{escape(title)}</h1>"]
    if scores:
        parts += [_sentence(scores), figure(curves_plot(scores), _CURVES), "<h2>Scores</h2>", *_scores(scores)]
    if views:
        picture = base64.b64encode(lesions_png(views)).decode()
        words = escape("; ".join(f"{view.name}: {view.words}" for view in views))
        caption = f"{order} {_SHOWN}" + (_RESTS if any(view.saliency is not None for view in views) else "")
        parts += [
            "<h2>Lesions</h2>",
            figure(Html(f'<img src="data:image/png;base64,{picture}" alt="{words}">'), caption),
        ]
    parts += ["<h2>All lesions</h2>", _all(rows)]
    with atomic_file(path) as temporary:
        temporary.write_text(document(title, parts), encoding="utf-8")
    return path


def _sentence(scores: Mapping[str, Any]) -> str:
    lesion = scores["scores"]["lesion"]
    words = (
        f"{count(scores['lesions'], 'lesion')} of {scores['people']} people, {scores['rim_plus']} of them Rim+: PR-AUC {_interval(lesion['pr_auc'])}, "
        f"ROC-AUC {_interval(lesion['roc_auc'])}."
    )
    more = (
        f"<p>{escape(count(scores['ungraded'], 'lesion'))} of unknown or uncertain grade are not scored.</p>"
        if scores["ungraded"]
        else ""
    )
    counted = scores.get("missed_rims_scored") or 0
    if counted:
        more += f"<p>{escape(count(counted, 'Rim+ lesion'))} of the grades counted in the scores of people as not called: the masks miss them, or they are too small.</p>"
    if missed := (scores["missed_rims"] or 0) - counted:
        more += f"<p>{escape(count(missed, 'Rim+ lesion'))} of the grades in no score: the masks miss them, or they are too small.</p>"
    return f'<div class="verdict"><strong>{escape(words)}</strong>{more}</div>'


def _scores(scores: Mapping[str, Any]) -> list[Html]:
    found = []
    difference = scores.get("difference", {})
    for region, metrics in scores["scores"].items():
        rows = [
            [_TITLES.get(name, name), _interval(estimate)]
            + ([_interval(difference[region][name], sign=True)] if difference else [])
            for name, estimate in metrics.items()
        ]
        title = (
            _REGIONS.get(region) or f"People with at least {count(int(region.removeprefix('patient_')), 'Rim+ lesion')}"
        )
        head = ["Metric", "Value [95 %]", *(["Difference to the other [95 %]"] if difference else [])]
        found.append(tables.table(head, rows, title))
    if each := scores["folds"]["each"]:
        names = list(scores["folds"]["over"])
        rows = [
            [f"fold {name}", fold["lesions"], number(fold["threshold"], 2), *(number(fold[m], 3) for m in names)]
            for name, fold in each.items()
        ]
        over = scores["folds"]["over"]
        rows.append(["mean ± sd", "", "", *(_mean_sd(over[m]) for m in names)])
        head = ["Fold", "Lesions", "Threshold", *(_TITLES.get(m, m) for m in names)]
        chosen = "" if "threshold" in scores["settings"] else "Thresholds were chosen on each fold's validation people."
        found.append(tables.table(head, rows, "Each fold by itself", chosen))
    return found


def _all(rows: Sequence[Mapping[str, Any]]) -> Html:
    grade = {1: "Rim+", 0: "Rim−"}
    body = [
        [
            row["lesion"], row["person"], grade.get(row["grade"], UNDEFINED), number(row["probability"], 3),
            "Rim+" if row["called"] else "Rim−", ", ".join(number(row[axis], 0) for axis in "xyz"),
            number(row["volume_mm3"], 0),
        ]
        for row in rows
    ]  # fmt: skip
    head = ["Lesion", "Person", "Grade", "Probability of a rim", "Called", "x, y, z (mm, RAS)", "mm³"]
    listed = tables.table(head, body, "As the pictures are sorted", words=[1, 2, 4])
    return Html(f"<details><summary>{escape(count(len(body), 'lesion'))}</summary>{listed}</details>")


def _interval(estimate: Mapping[str, Any], *, sign: bool = False) -> str:
    return interval(estimate["value"], estimate["low"], estimate["high"], 3, sign=sign)


def _mean_sd(over: Mapping[str, Any]) -> str:
    return f"{number(over['mean'], 3)} ± {number(over['sd'], 3)}" if over["sd"] is not None else number(over["mean"], 3)
