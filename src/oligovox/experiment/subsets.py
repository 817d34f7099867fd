"""`oligovox evaluate MODEL TRUTH --subsets`: one model, shown every combination of its sequences.

    OUT/store/                           the labelled exams, prepared by the model's plan
    OUT/subsets/<T1w+FLAIR>/             predictions/ and the files of `scoring`, of the exams that have these sequences
    OUT/subsets.tsv, prices.tsv          means with intervals of each combination; what each sequence is worth
    OUT/losses.tsv                       what each combination loses against all sequences, in the same exams
    OUT/subsets.json, subsets.html       the tables; the same to read. In the model folder, `predict` reads the first of them

Who is scored: the labelled people that the model was not trained on, by their names; those that are asked for by name in any case, and then line and
file say whom training has seen (`scored_and_trained_on`), since their scores promise too much.

Resumes: a prediction that stands there is kept. Calibration is measured on the prepared grid, in the foreground (the brain). The grid, the
foreground and the grey values of a sequence are those of the whole exam, also where others are hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oligovox.cohort.manifest import Case, Cohort
from oligovox.engine.log import say
from oligovox.engine.model import ModelDescription
from oligovox.errors import CohortError
from oligovox.experiment.cohorts import Show, quiet, read_cohort
from oligovox.experiment.pairs import Pair
from oligovox.experiment.prediction import load_segmentation, predict_cases
from oligovox.experiment.recipe import Predict, nested
from oligovox.experiment.scoring import check_grids, score_pairs
from oligovox.experiment.sequence_price import (
    MEASURED,
    SEEN,
    Measure,
    Scores,
    loss_rows,
    name_of,
    price_rows,
    subset_rows,
    subsets,
)
from oligovox.experiment.summary import columns_of
from oligovox.experiment.training import model_folder
from oligovox.files import check_writable, read_json, write_json, write_tsv
from oligovox.infer.native import prediction_paths
from oligovox.metrics.bootstrap import defined
from oligovox.metrics.calibration import calibration
from oligovox.metrics.judge import DEFAULT, Direction, load_protocol, protocol_settings
from oligovox.prepare.pipeline import prepare as prepare_cohort
from oligovox.prepare.store import Plan, Store, StoredCase
from oligovox.report.subsets import write_subsets
from oligovox.settings import Settings, parse

FOREGROUND = "foreground"
"""Region of the calibration: any lesion against the rest of the brain."""

_CALIBRATION = "Calibration"  # entry of a prediction's sidecar
_BEST: Mapping[str, Direction] = {"ece": "low", "brier": "low"}
_SEED = 0


@dataclass(frozen=True)
class _Bench:
    """A model on the bench: what is predicted, by which rules it is scored."""

    model: Path
    description: ModelDescription
    cohort: Cohort
    store: Store
    out: Path
    protocol: str
    settings: Settings
    by: Sequence[str]
    options: Predict
    workers: int
    show: Show
    seen: tuple[str, ...]

    @property
    def sequences(self) -> tuple[str, ...]:
        """Those the model knows."""
        return self.store.plan.sequences


def evaluate_subsets(
    model: Path | str,
    truth: Path | str,
    out: Path | str,
    *,
    protocol: str = DEFAULT,
    changes: Sequence[str] = (),
    by: Sequence[str] = (),
    mask: str = "lesion",
    people: Sequence[str] = (),
    options: Predict | None = None,
    workers: int = 2,
    show: Show = quiet,
) -> dict[str, Any]:
    """Predict and score with every combination of sequences hidden, and say what each sequence is worth.

    Args:
        model: run or model folder of `finetune`.
        truth: BIDS folder or cohort table with label masks.
        out: folder to write; a killed run resumes there.
        protocol: generic, isbi2015, msseg2016, brats2023, brats2024 or chaos.
        changes: settings of the protocol that differ from the challenge's, as key=value.
        by: columns of participants.tsv by which the summary of each combination is split as well.
        mask: name of the label masks in derivatives.
        people: only these, trained on or not; empty: everyone labelled whom the model was not trained on.
        options: sliding window; None: the defaults.
        workers: processes that prepare and score.
        show: progress.

    Returns:
        "scores" (the folder), "page", and the rows of "subsets", "prices" and "losses".

    Raises:
        CheckpointError: not a segmentation model.
        CohortError: nobody labelled has a sequence of the model, or the model was trained on all who have.
        InputError: as `evaluate`.
    """
    out, model, given = Path(out), model_folder(Path(model)), nested(changes)
    protocol_settings(protocol, given)  # a mistyped name is said before any folder is read
    description = load_segmentation(model)[1]
    plan = parse(Plan, description.plan, "plan of the model")
    cohort = _labelled(read_cohort(truth, mask=mask), plan, people)
    cohort, seen = _apart(cohort, description.trained_on, asked=bool(people))
    check_grids(cohort.cases, plan)
    check_writable(out)
    store = prepare_cohort(cohort, plan, out / "store", workers=workers, progress=show("prepare"))
    settings = protocol_settings(protocol, given, cohort.labels)
    bench = _Bench(
        model, description, cohort, store, out, protocol, settings, by, options or Predict(), workers, show, seen
    )  # fmt: skip
    scores = {}
    for shown in subsets(plan.sequences):
        if having := [case for case in cohort.cases if set(shown) <= set(case.images)]:
            scores[frozenset(shown)] = _scored(bench, shown, having)
        else:
            say(f"{name_of(shown, plan.sequences)}: no labelled exam has all of these; left out")
    return _write(bench, scores)


def _labelled(cohort: Cohort, plan: Plan, people: Sequence[str]) -> Cohort:
    """Who can be scored."""
    chosen = cohort.of(people) if people else cohort.cases
    kept = tuple(case for case in chosen if case.label and set(case.images) & set(plan.modalities))
    if not kept:
        raise CohortError(
            f"{cohort.name}: nobody with a label mask has a sequence that the model knows ({', '.join(plan.modalities)}); "
            "label somebody, or name the files by their sequence"
        )
    return replace(cohort, cases=kept)


def _apart(cohort: Cohort, trained_on: Sequence[str], *, asked: bool) -> tuple[Cohort, tuple[str, ...]]:
    """Without those that the model was trained on, unless they are asked for; and those of them who stay."""
    seen = tuple(sorted({case.person for case in cohort.cases if _is_of(case, trained_on)}))
    if seen and asked:
        say(f"the model was trained on {_some(seen)}, who are scored here: what they lose promises too much")
    if asked or not seen:
        return cohort, seen
    kept = tuple(case for case in cohort.cases if case.person not in seen)
    if not kept:
        raise CohortError(
            f"{cohort.name}: by their names the model was trained on everybody with a label mask ({_some(seen)}); bring others, or name with --people "
            "whom to score all the same"
        )
    say(
        f"left out, since by their names the model was trained on them: {_some(seen)}; --people scores them all the same"
    )
    return replace(cohort, cases=kept), ()


def _is_of(case: Case, people: Sequence[str]) -> bool:
    """Whether a case is one of these people's; a model of several cohorts calls them <cohort>_<subject>."""
    return case.person in people or (not case.dataset and any(name.endswith(f"_{case.subject}") for name in people))


def _some(people: Sequence[str]) -> str:
    """'01, 02', or eight of them and how many there are."""
    return ", ".join(people[:8]) + (f" … ({len(people)} people)" if len(people) > 8 else "")


def _scored(bench: _Bench, shown: Sequence[str], cases: Sequence[Case]) -> dict[str, dict[Measure, float | None]]:
    """Predict and score the exams that have all of these sequences; case → measure → value."""
    name = name_of(shown, bench.sequences)
    home = bench.out / "subsets" / name
    predictions, stored = home / "predictions", [bench.store.case(case.name) for case in cases]
    files = predict_cases(
        bench.model, stored, predictions, bench.options, bench.show(f"predict {name}"),
        hidden=set(bench.sequences) - set(shown), measure=_calibrated,
    )  # fmt: skip
    score_pairs(
        [Pair.of(case, files[case.name]) for case in cases], home,
        protocol=bench.protocol, settings=bench.settings, by=bench.by, workers=bench.workers, seed=_SEED,
        progress=bench.show(f"score {name}"),
    )  # fmt: skip
    found: dict[str, dict[Measure, float | None]] = {case.name: {} for case in cases}
    for row in read_json(home / "scores.json")["cases"]:
        main = (metric for metric in load_protocol(bench.protocol).MAIN if metric in row)
        found[row["case"]] |= {(row["region"], metric): row[metric] for metric in main}
    for case in stored:
        sidecar = read_json(prediction_paths(case, predictions, bench.description.labels)["sidecar"])
        found[case.name] |= {(FOREGROUND, metric): value for metric, value in sidecar[_CALIBRATION].items()}
    return found


def _calibrated(case: StoredCase, probability: NDArray[np.float32]) -> dict[str, dict[str, float | None]]:
    """Calibration of one prediction on the prepared grid, where somebody looked."""
    label = case.label()
    assert label is not None, "only labelled cases are predicted here"
    found = calibration(probability, label > 0, case.foreground() & (label >= 0))
    return {_CALIBRATION: {"ece": defined(found.ece), "brier": defined(found.brier)}}


def _write(bench: _Bench, scores: Scores) -> dict[str, Any]:
    people = {case.name: case.person for case in bench.cohort.cases}
    best = {**load_protocol(bench.protocol).BEST, **_BEST}
    rows = subset_rows(scores, bench.sequences, people, best, seed=_SEED)
    prices = price_rows(scores, bench.sequences, people, best, seed=_SEED)
    losses = loss_rows(scores, bench.sequences, people, best, seed=_SEED)
    content = {"model": bench.description.identity, "protocol": bench.protocol, "seed": _SEED}
    content |= {"settings": bench.settings.model_dump(mode="json"), "sequences": list(bench.sequences)}
    content |= {SEEN: list(bench.seen)}
    write_tsv(bench.out / "subsets.tsv", rows, columns_of(rows))
    write_tsv(bench.out / "prices.tsv", prices, columns_of(prices))
    write_tsv(bench.out / "losses.tsv", losses, columns_of(losses))
    write_json(bench.out / MEASURED, content | {"subsets": rows, "prices": prices, "losses": losses})
    page = write_subsets(rows, prices, bench.sequences, bench.out, title=f"Missing sequences: {bench.cohort.name}")
    return {"scores": str(bench.out), "page": str(page), "subsets": rows, "prices": prices, "losses": losses}
