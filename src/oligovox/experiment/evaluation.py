"""`oligovox evaluate`: predictions against references, by one protocol, in all and by group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oligovox.engine.log import say
from oligovox.experiment.cohorts import Show, quiet
from oligovox.experiment.matching import match
from oligovox.experiment.recipe import nested
from oligovox.experiment.scoring import score_pairs
from oligovox.files import check_writable
from oligovox.metrics.judge import DEFAULT, protocol_settings


def evaluate(
    predictions: Path | str,
    truth: Path | str,
    out: Path | str,
    *,
    protocol: str = DEFAULT,
    changes: Sequence[str] = (),
    by: Sequence[str] = (),
    mask: str = "lesion",
    people: Sequence[str] = (),
    workers: int = 2,
    show: Show = quiet,
) -> dict[str, Any]:
    """Score predictions against reference masks on the same grid; every reference must have a prediction, and the other way round.

    Args:
        predictions: folder written by `predict`, or of files named as the references.
        truth: BIDS folder or cohort table with the masks, or a folder of plain NIfTI files.
        out: folder for scores.tsv, lesions.tsv, scores.json, summary.tsv, summary.json.
        protocol: generic, isbi2015, msseg2016, brats2023, brats2024 or chaos.
        changes: settings of the protocol that differ from the challenge's, as key=value.
        by: columns of participants.tsv by which the summary is split as well, or "sequences": what each exam has. A column of more than
            five different numbers is split at its tertiles.
        mask: name of the label masks in derivatives.
        people: only these; empty: everyone.
        workers: processes; each holds one case in memory.
        show: progress.

    Returns:
        "scores" (the folder) and the content of summary.json.

    Raises:
        CohortError: a prediction or a reference is missing or there twice, nothing is labelled, or nobody has a column.
        GeometryError: a prediction lies on another grid than its reference.
        LabelError: a label that the protocol does not know.
        SettingsError: no such protocol or setting.
    """
    predictions, truth, out = Path(predictions), Path(truth), Path(out)
    given = nested(changes)
    protocol_settings(protocol, given)  # a mistyped name is said before any folder is read
    found = match(predictions, truth, mask=mask, people=people)
    check_writable(out)
    summary = score_pairs(
        found.pairs,
        out,
        protocol=protocol,
        settings=protocol_settings(protocol, given, found.labels),
        by=by,
        notes={"without_reference": list(found.without_reference)},
        workers=workers,
        progress=show("score"),
    )
    if found.without_reference:
        say(
            f"{len(found.without_reference)} predicted cases have no reference and are not scored, first "
            f"{found.without_reference[0]}"
        )
    return {"scores": str(out), **summary}
