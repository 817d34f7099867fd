"""Predictions against reference masks, by one protocol: a row for each case and region, a row for each lesion, and their summary.

    OUT/scores.tsv       one row a case and region
    OUT/lesions.tsv      one row a lesion of the reference or of the prediction
    OUT/scores.json      the rows of both
    OUT/summary.tsv      means over people with intervals, in all and by group; numbers of the whole cohort
    OUT/summary.json     the same, with protocol and settings

A worker holds the voxels of one case at a time; what it sends back are numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from oligovox.cohort.manifest import Case
from oligovox.errors import CohortError, GeometryError, LabelError
from oligovox.experiment.pairs import Pair, refusal, strata
from oligovox.experiment.summary import by_person, columns_of, summarise, summary_rows
from oligovox.files import write_json, write_tsv
from oligovox.metrics.bootstrap import paired_difference
from oligovox.metrics.judge import DEFAULT, load_protocol, score_files
from oligovox.metrics.protocols.result import CaseResult
from oligovox.prepare.geometry import read_volume, same_grid
from oligovox.prepare.store import Plan
from oligovox.prepare.workers import run_cases
from oligovox.settings import Settings

Rows = Sequence[Mapping[str, Any]]

_LESION_COLUMNS = ("case", "person", "region", "side", "number", "volume_mm3", "x", "y", "z", "outcome")


def score_pairs(
    pairs: Sequence[Pair],
    out: Path,
    *,
    protocol: str = DEFAULT,
    settings: Settings | None = None,
    by: Sequence[str] = (),
    notes: Mapping[str, Any] | None = None,
    workers: int = 1,
    seed: int = 0,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> dict[str, Any]:
    """Score every pair and write the files named above.

    Args:
        pairs: prediction and reference of each case.
        out: folder to write; nothing is written before the last case is scored.
        protocol: name of a file in `metrics/protocols`.
        settings: of the protocol; None: its defaults, which are the challenge's.
        by: columns of `Pair.info` by which the summary is split as well.
        notes: further entries of summary.json.
        workers: processes.
        seed: of the bootstrap over people.
        progress: called with (cases done, cases in all, name) after each case.

    Returns:
        The content of summary.json.

    Raises:
        CohortError: nothing to score, or nobody has a column of `by`.
        GeometryError: prediction and reference lie on different grids.
        LabelError: a file holds a value that is no label, or none the protocol knows.
        SettingsError: no such protocol.
    """
    if not pairs:
        raise CohortError("nothing to score: no case has both a prediction and a reference mask")
    rules = load_protocol(protocol)
    settings = settings or rules.Settings()
    groups = {column: strata(pairs, column) for column in by}
    ordered = {pair.case: pair for pair in sorted(pairs, key=lambda pair: pair.case)}
    results = run_cases(
        partial(score_files, protocol=protocol, settings=settings),
        {case: (pair.prediction, pair.truth) for case, pair in ordered.items()},
        workers,
        _counted(progress, len(pairs)),
    )
    head = {"protocol": protocol, "settings": settings.model_dump(mode="json"), "seed": seed, **(notes or {})}
    summary = head | summarise(protocol, settings, results, ordered, groups, seed=seed)
    rows = [row for case, pair in ordered.items() for row in _rows(pair, results[case], by)]
    lesions = [
        {"case": case, "person": pair.person, **lesion}
        for case, pair in ordered.items()
        for lesion in results[case].lesions
    ]
    _write(out, rows, lesions, summary, summary_rows(summary, rules.BEST))
    return summary


def check_grids(cases: Iterable[Case], plan: Plan) -> None:
    """Say before training whether test cases can be scored: predictions are written on the reference image's grid.

    Raises:
        GeometryError: a mask lies on the grid of another sequence.
        LabelError: only a part of a case is labelled.
    """
    for case in cases:
        if case.label and case.sparse:
            raise LabelError(refusal(case.name, case.label))
        used = [name for name in (*plan.reference, *plan.modalities) if name in plan.modalities and name in case.images]
        reference = next(iter(used), "")
        if not case.label or not case.label.is_file() or not reference:
            continue
        if not same_grid(read_volume(case.images[reference]), read_volume(case.label, empty_ok=True)):
            raise GeometryError(
                f"{case.name}: {case.label} does not lie on the grid of {reference}, on which predictions are written; "
                "name the sequence it was drawn on first in prepare.reference"
            )


def compare(
    arm: Iterable[Mapping[str, Any]], against: Iterable[Mapping[str, Any]], metric: str, *, seed: int = 0
) -> dict[str, float | int | None]:
    """Paired difference arm − against in one metric, from rows of one region; a person's sessions are averaged first.

    A session counts where both have a score.
    """
    ours, theirs = ({row["case"]: row for row in rows if row[metric] is not None} for rows in (arm, against))
    both = [case for case in ours if case in theirs]
    a, b = (by_person([side[case] for case in both], metric) for side in (ours, theirs))
    return paired_difference(a, b, seed=seed).as_row()


def _rows(pair: Pair, result: CaseResult, by: Sequence[str]) -> list[dict[str, Any]]:
    """One row a region."""
    head = {"case": pair.case, "person": pair.person, **{column: pair.info.get(column) for column in by}}
    return [{**head, "region": region, **metrics} for region, metrics in result.regions.items()]


def _write(out: Path, rows: Rows, lesions: Rows, summary: Mapping[str, Any], table: Rows) -> None:
    write_tsv(out / "scores.tsv", rows, columns_of(rows))
    write_tsv(out / "lesions.tsv", lesions, columns_of(lesions) or _LESION_COLUMNS)
    write_json(out / "scores.json", {"cases": rows, "lesions": lesions})
    write_tsv(out / "summary.tsv", table, columns_of(table))
    write_json(out / "summary.json", summary)


def _counted(progress: Callable[[int, int, str], None], total: int) -> Callable[[str], None]:
    """A function of the case's name that counts the cases done."""
    numbers = count(1)
    return lambda name: progress(next(numbers), total, name)
