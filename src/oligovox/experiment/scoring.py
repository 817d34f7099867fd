"""Predictions against reference masks: one table a case, one a lesion, one summary; JSON and TSV with the same numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from oligovox.cohort.manifest import Case
from oligovox.errors import CohortError, GeometryError
from oligovox.files import write_json, write_tsv
from oligovox.metrics.bootstrap import bootstrap_mean, paired_difference
from oligovox.metrics.case import score_case
from oligovox.prepare.geometry import read_volume, same_grid, spacing_of
from oligovox.prepare.store import Plan

METRICS = ("dice", "hd95_mm", "lesion_f1", "lesion_sensitivity", "lesion_precision")
"""Summarised with an interval; all others are in the tables only."""


def score_pairs(
    pairs: Mapping[str, tuple[Path, Path]], out: Path, *, people: Mapping[str, str] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Score every case and write `out`/scores.json, scores.tsv, lesions.tsv.

    Args:
        pairs: case name → (prediction, reference mask), on one grid.
        out: folder to write.
        people: case name → person, whose sessions are averaged before the mean and its interval; None: each case is a person.
        seed: of the bootstrap over people.

    Returns:
        {"cases": [row with "case", "person" and "lesions"], "mean": {metric: interval over people}}.

    Raises:
        CohortError: nothing to score, or a prediction is missing.
        GeometryError: prediction and reference lie on different grids.
    """
    if not pairs:
        raise CohortError("nothing to score: no case has both a prediction and a reference mask")
    missing = [f"{case} ({prediction})" for case, (prediction, _) in pairs.items() if not prediction.is_file()]
    if missing:
        raise CohortError(
            f"{len(missing)} of {len(pairs)} predictions are missing, first {missing[0]}; predict these cases first"
        )
    who = people or {}
    cases = [{"person": who.get(case, case)} | _score(case, *files) for case, files in sorted(pairs.items())]
    mean = {m: bootstrap_mean(_by_person(cases, m).values(), seed=seed).as_row() for m in METRICS}
    result = {"cases": cases, "mean": mean}
    lesions = [{"case": row["case"], **lesion} for row in cases for lesion in row["lesions"]]
    write_tsv(out / "scores.tsv", cases, [key for key in cases[0] if key != "lesions"])
    write_tsv(out / "lesions.tsv", lesions, ["case", "number", "volume_mm3", "centre", "covered", "found"])
    write_json(out / "scores.json", result)
    return result


def check_grids(cases: Iterable[Case], plan: Plan) -> None:
    """Say before training whether test cases can be scored: predictions are written on the reference image's grid.

    Raises:
        GeometryError: a mask lies on the grid of another sequence.
    """
    for case in cases:
        used = [name for name in (*plan.reference, *plan.modalities) if name in plan.modalities and name in case.images]
        reference = next(iter(used), "")
        if not case.label or not case.label.is_file() or not reference:
            continue
        if not same_grid(read_volume(case.images[reference]), read_volume(case.label, empty_ok=True)):
            raise GeometryError(
                f"{case.name}: {case.label} does not lie on the grid of {reference}, on which predictions are written; "
                "name the sequence it was drawn on first in prepare.reference"
            )


def compare(arm: Mapping[str, Any], against: Mapping[str, Any], *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Paired differences arm − against of two `score_pairs` results, by metric; a person's sessions are averaged first.

    A session counts where both have a score.
    """
    ours, theirs = ({row["case"]: row for row in result["cases"]} for result in (arm, against))
    rows = [(ours[case], theirs[case]) for case in ours if case in theirs]
    found = {}
    for metric in METRICS:
        both = [pair for pair in rows if None not in (pair[0][metric], pair[1][metric])]
        a, b = (_by_person(side, metric) for side in zip(*both, strict=True)) if both else ({}, {})
        found[metric] = paired_difference(a, b, seed=seed).as_row()
    return found


def _by_person(cases: Iterable[Mapping[str, Any]], metric: str) -> dict[str, float | None]:
    """Mean over a person's sessions that have a value; None where none has."""
    values: dict[str, list[float]] = {}
    for row in cases:
        values.setdefault(row["person"], []).extend([] if row[metric] is None else [row[metric]])
    return {person: fmean(found) if found else None for person, found in values.items()}


def _score(case: str, prediction_file: Path, truth_file: Path) -> dict[str, Any]:
    prediction, truth = read_volume(prediction_file, empty_ok=True), read_volume(truth_file, empty_ok=True)
    if not same_grid(prediction, truth):
        raise GeometryError(
            f"{case}: {prediction_file} has shape {prediction.array.shape}, {truth_file} has {truth.array.shape}, or their "
            "affines differ; expected one grid, as `oligovox predict` writes it"
        )
    score = score_case(np.rint(prediction.array), np.rint(truth.array), spacing_of(truth.affine))
    lesions = [
        {
            "number": lesion.number,
            "volume_mm3": lesion.volume_mm3,
            "centre": list(lesion.centre),
            "covered": lesion.covered,
            "found": lesion.found,
        }
        for lesion in score.lesions.reference
    ]
    return {"case": case, **score.as_row(), "lesions": lesions}
