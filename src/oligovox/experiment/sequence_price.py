"""What a model makes of an exam when sequences are missing, and what each sequence is worth to it.

A model is shown every combination of its sequences; an exam counts for the combinations it has. The price of a sequence is the
score with it minus the score without it, in the same exam:

| hidden from | mean over |
| --- | --- |
| the whole exam | one pair: all that the exam has, with and without |
| every subset | all pairs of combinations that differ by this sequence; an exam of M sequences has 2^(M−1) − 1 |

The loss of a combination is the score with all that the model knows minus the score with these alone, in the exams that have all.

Sessions of one person are averaged before the mean over people and its interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeAlias

from oligovox.engine.log import say
from oligovox.errors import CheckpointError
from oligovox.experiment.summary import by_person, in_words
from oligovox.files import read_json
from oligovox.metrics.bootstrap import bootstrap_mean
from oligovox.metrics.judge import Direction

Measure: TypeAlias = tuple[str, str]
"""Region and metric."""

Scores: TypeAlias = Mapping[frozenset[str], Mapping[str, Mapping[Measure, float | None]]]
"""Sequences shown → case → measure → value; None where undefined."""

HiddenFrom: TypeAlias = Literal["the whole exam", "every subset"]

MEASURED = "subsets.json"
"""File of `evaluate --subsets` that says what a model loses; in a model folder `predict` finds it."""

SEEN = "scored_and_trained_on"
"""Its key of the people whom training has seen: what they lose promises too much."""

NOT_MEASURED = (
    "not measured: run oligovox evaluate MODEL TRUTH --subsets and put its subsets.json into the model folder"
)
"""In place of an expected loss."""

_NUMBER = (int, float, type(None))
_LOSS: Mapping[str, type | tuple[type, ...]] = {
    "subset": str,
    "region": str,
    "metric": str,
    "mean": _NUMBER,
    "low": _NUMBER,
    "high": _NUMBER,
    "n": int,
}
"""Columns of a loss that are read back, and of which kind they are."""


def subsets(sequences: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The 2^M − 1 combinations that are not empty, the largest first, each in the order given."""
    sizes = range(len(sequences), 0, -1)
    return tuple(chosen for size in sizes for chosen in combinations(sequences, size))


def subset_rows(
    scores: Scores, sequences: Sequence[str], people: Mapping[str, str], best: Mapping[str, Direction], *, seed: int
) -> list[dict[str, Any]]:
    """One row a subset and measure: which sequences are shown (1 or 0), mean and interval over people."""
    rows = []
    for shown, cases in scores.items():
        head = {"subset": name_of(shown, sequences), **{name: int(name in shown) for name in sequences}}
        for measure in _measures(scores):
            region, metric = measure
            values = by_person(({"person": people[case], metric: cases[case].get(measure)} for case in cases), metric)
            found = bootstrap_mean(values.values(), seed=seed).as_row()
            rows.append({**head, "region": region, "metric": metric, "best": best.get(metric), **found})
    return rows


def price_rows(
    scores: Scores, sequences: Sequence[str], people: Mapping[str, str], best: Mapping[str, Direction], *, seed: int
) -> list[dict[str, Any]]:
    """One row a sequence, measure and way of hiding: mean of (with − without) over people, with its interval."""
    rows = []
    ways: tuple[HiddenFrom, ...] = ("the whole exam", "every subset")
    for sequence in sequences:
        for hidden_from in ways:
            for measure in _measures(scores):
                region, metric = measure
                prices = _prices(scores, sequence, hidden_from, measure)
                values = by_person(({"person": people[case], metric: price} for case, price in prices.items()), metric)
                found = bootstrap_mean(values.values(), seed=seed).as_row()
                head = {"sequence": sequence, "hidden_from": hidden_from, "region": region, "metric": metric}
                rows.append({**head, "best": best.get(metric), **found})
    return rows


def loss_rows(
    scores: Scores, sequences: Sequence[str], people: Mapping[str, str], best: Mapping[str, Direction], *, seed: int
) -> list[dict[str, Any]]:
    """One row a combination and measure: mean of (all − these alone) over people, with its interval; none where no exam has all."""
    rows = []
    everything = scores.get(frozenset(sequences), {})
    for shown, cases in scores.items() if everything else ():
        for measure in _measures(scores) if len(shown) < len(sequences) else ():
            region, metric = measure
            both = {case: (everything[case].get(measure), cases[case].get(measure)) for case in everything}
            drops = ({"person": people[case], metric: _drop(*pair)} for case, pair in both.items())
            found = bootstrap_mean(by_person(drops, metric).values(), seed=seed).as_row()
            head = {"subset": name_of(shown, sequences), "region": region, "metric": metric}
            rows.append({**head, "best": best.get(metric), **found})
    return rows


def read_losses(path: Path, identity: str) -> list[dict[str, Any]]:
    """The rows of `loss_rows` in a file that `evaluate --subsets` wrote about this model; says it where they are of people that training has seen.

    Args:
        path: subsets.json.
        identity: of the model.

    Raises:
        CheckpointError: of another model, or not such a file.
        CohortError: cannot be read.
    """
    content = read_json(path)
    about = content if isinstance(content, dict) else {}
    if about.get("model") != identity:
        raise CheckpointError(
            f"{path}: is about the model {about.get('model')!s:.80}, this is {identity}; run oligovox evaluate --subsets with this "
            "model, or take the file away"
        )
    rows = about.get("losses")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= _LOSS.keys() for row in rows):
        raise CheckpointError(f"{path}: has no table of losses; write it again with oligovox evaluate --subsets")
    for row in rows:
        if not all(isinstance(row[key], kinds) for key, kinds in _LOSS.items()):
            raise CheckpointError(
                f"{path}: a row of its losses is damaged; write it again with oligovox evaluate --subsets"
            )
    if seen := about.get(SEEN):
        say(f"{path}: the model was trained on people whose losses are in it ({len(seen)}): they promise too much")
    return rows


def expected_loss(
    rows: Sequence[Mapping[str, Any]], shown: Iterable[str], sequences: Sequence[str]
) -> list[dict[str, Any]]:
    """What a model is expected to lose with these sequences alone: one row a region and metric, the main one first; empty where not measured."""
    name = name_of(shown, sequences)
    return [{key: row[key] for key in _LOSS if key != "subset"} for row in rows if row["subset"] == name]


def loss_in_words(found: Sequence[Mapping[str, Any]]) -> str:
    """The first row: 'expected loss of lesion dice 0.123 [0.050, 0.201], 10 people', or that nothing was measured."""
    if not found:
        return f"expected loss {NOT_MEASURED}"
    return f"expected loss of {found[0]['region']} {found[0]['metric']} {in_words(found[0])}"


def price_headlines(found: Mapping[str, Any]) -> dict[str, str]:
    """What to show on a terminal: where the page is, and the first measure of each combination and each sequence."""
    rows, prices = found["subsets"], found["prices"]
    first = rows[0]["region"], rows[0]["metric"]
    lines = {"scores": found["scores"], "page": found["page"]}
    lines |= {f"{row['subset']}: {first[1]}": in_words(row) for row in rows if (row["region"], row["metric"]) == first}
    return lines | {
        f"price of {row['sequence']}, hidden from {row['hidden_from']}": in_words(row)
        for row in prices
        if (row["region"], row["metric"]) == first
    }


def name_of(shown: Iterable[str], sequences: Sequence[str]) -> str:
    """'T1w+FLAIR', in the order of `sequences`."""
    kept = set(shown)
    return "+".join(name for name in sequences if name in kept)


def _prices(scores: Scores, sequence: str, hidden_from: HiddenFrom, measure: Measure) -> dict[str, float | None]:
    """Case → price; None where no pair has both scores. A case that has nothing but the sequence is left out."""
    pairs: dict[str, list[tuple[float | None, float | None]]] = {}
    for case, shown in _pairs(scores, sequence, hidden_from):
        both = scores[shown][case].get(measure), scores[shown - {sequence}][case].get(measure)
        pairs.setdefault(case, []).append(both)
    found: dict[str, float | None] = {}
    for case, both_scores in pairs.items():
        drops = [drop for pair in both_scores if (drop := _drop(*pair)) is not None]
        found[case] = fmean(drops) if drops else None
    return found


def _drop(kept: float | None, lost: float | None) -> float | None:
    """Score with minus score without; None where one of them is undefined."""
    return None if kept is None or lost is None else kept - lost


def _pairs(scores: Scores, sequence: str, hidden_from: HiddenFrom) -> Iterator[tuple[str, frozenset[str]]]:
    """(case, sequences shown) of each comparison, where the sequence is one of those shown and not the only one."""
    whole: dict[str, frozenset[str]] = {}
    for shown, cases in scores.items():
        for case in cases:
            whole[case] = max(whole.get(case, frozenset()), shown, key=len)
    for shown, cases in scores.items():
        if sequence in shown and len(shown) > 1:
            yield from ((case, shown) for case in cases if hidden_from == "every subset" or shown == whole[case])


def _measures(scores: Scores) -> list[Measure]:
    """Every measure, in the order in which they occur."""
    return list(dict.fromkeys(m for cases in scores.values() for values in cases.values() for m in values))
