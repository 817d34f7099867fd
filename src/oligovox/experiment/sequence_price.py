"""What a model makes of an exam when sequences are missing, and what each sequence is worth to it.

A model is shown every combination of its sequences; an exam counts for the combinations it has. The price of a sequence is the
score with it minus the score without it, in the same exam:

| hidden from | mean over |
| --- | --- |
| the whole exam | one pair: all that the exam has, with and without |
| every subset | all pairs of combinations that differ by this sequence; an exam of M sequences has 2^(M−1) − 1 |

Sessions of one person are averaged before the mean over people and its interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any, Literal, TypeAlias

from oligovox.experiment.summary import by_person, in_words
from oligovox.metrics.bootstrap import bootstrap_mean
from oligovox.metrics.judge import Direction

Measure: TypeAlias = tuple[str, str]
"""Region and metric."""

Scores: TypeAlias = Mapping[frozenset[str], Mapping[str, Mapping[Measure, float | None]]]
"""Sequences shown → case → measure → value; None where undefined."""

HiddenFrom: TypeAlias = Literal["the whole exam", "every subset"]


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
        drops = [kept - lost for kept, lost in both_scores if kept is not None and lost is not None]
        found[case] = fmean(drops) if drops else None
    return found


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
