"""Scores of cases → means over people with intervals, in all and by group. Sessions of one person are averaged first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from oligovox.experiment.pairs import Pair
from oligovox.metrics.bootstrap import bootstrap_mean
from oligovox.metrics.judge import Direction, load_protocol, over_cohort
from oligovox.metrics.protocols.result import CaseResult
from oligovox.report.text import interval, number
from oligovox.settings import Settings

WHOLE_COHORT = "whole cohort"
"""Stands in the place of a region for numbers that no single case has, such as the correlation of volumes."""


def summarise(
    protocol: str,
    settings: Settings,
    results: Mapping[str, CaseResult],
    pairs: Mapping[str, Pair],
    groups: Mapping[str, Mapping[str, Sequence[str]]],
    *,
    seed: int,
) -> dict[str, Any]:
    """Everything, then each group by the protocol's main metrics.

    Args:
        protocol: its name.
        settings: of the protocol.
        results: case → scores.
        pairs: case → whose it is.
        groups: column → group → cases, as `strata` gives them.
        seed: of the bootstrap over people.

    Returns:
        "cases" and "people" (numbers), "mean" (region → metric → interval), "cohort" (name → number), and "by" (column → group → the
        same four).
    """
    main = load_protocol(protocol).MAIN

    def part(cases: Sequence[str], only: Sequence[str]) -> dict[str, Any]:
        chosen = {case: results[case] for case in cases}
        return {
            "cases": len(chosen),
            "people": len({pairs[case].person for case in chosen}),
            "mean": _means(chosen, pairs, main, only, seed),
            "cohort": over_cohort(protocol, chosen, settings),
        }

    by = {column: {group: part(cases, main) for group, cases in found.items()} for column, found in groups.items()}
    return part(list(results), ()) | {"by": by}


def summary_rows(summary: Mapping[str, Any], best: Mapping[str, Direction]) -> list[dict[str, Any]]:
    """The same as one table: a row for each group, region and metric; the group of all comes first."""
    rows = []
    parts = [("", "", summary)]
    parts += [(column, group, part) for column, groups in summary["by"].items() for group, part in groups.items()]
    for column, group, part in parts:
        head = {"by": column, "group": group}
        for region, metrics in part["mean"].items():
            for metric, found in metrics.items():
                rows.append({**head, "region": region, "metric": metric, "best": best.get(metric), **found})
        for metric, value in part["cohort"].items():
            found = {"mean": value, "low": None, "high": None, "n": part["people"], "skipped": None}
            rows.append({**head, "region": WHOLE_COHORT, "metric": metric, "best": best.get(metric), **found})
    return rows


def headlines(summary: Mapping[str, Any]) -> dict[str, str]:
    """What to show on a terminal: the main metrics of all, the first of them in each group, and the numbers of the whole cohort."""
    main = load_protocol(summary["protocol"]).MAIN
    lines = {"scores": summary["scores"], "protocol": summary["protocol"]}
    lines |= {name: number(value, 3) for name, value in summary["cohort"].items()}
    lines |= {
        f"{region} {name}": in_words(found[name])
        for region, found in summary["mean"].items()
        for name in main
        if name in found
    }
    return lines | {
        f"{column} {group}: {region} {main[0]}": in_words(found[main[0]])
        for column, groups in summary["by"].items()
        for group, part in groups.items()
        for region, found in part["mean"].items()
    }


def in_words(row: Mapping[str, Any]) -> str:
    """'0.641 [0.560, 0.712], 12 people'."""
    return f"{interval(row['mean'], row['low'], row['high'], 3)}, {row['n']} {'person' if row['n'] == 1 else 'people'}"


def by_person(rows: Iterable[Mapping[str, Any]], metric: str) -> dict[str, float | None]:
    """Mean over a person's sessions that have a value; None where none has. Rows have "person" and the metric."""
    values: dict[str, list[float]] = {}
    for row in rows:
        value = row.get(metric)
        values.setdefault(row["person"], []).extend([] if value is None else [value])
    return {person: fmean(found) if found else None for person, found in values.items()}


def columns_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every key of the rows, in the order in which they occur."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _means(
    results: Mapping[str, CaseResult],
    pairs: Mapping[str, Pair],
    main: Sequence[str],
    only: Sequence[str],
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Region → metric → interval; the main metrics first."""
    regions: dict[str, list[dict[str, Any]]] = {}
    for case, result in results.items():
        for region, scores in result.regions.items():
            regions.setdefault(region, []).append({"person": pairs[case].person, **scores})
    found = {}
    for region, rows in regions.items():
        metrics = [name for name in columns_of(rows) if name != "person"]
        ordered = [*(name for name in main if name in metrics), *(name for name in metrics if name not in main)]
        found[region] = {
            name: bootstrap_mean(by_person(rows, name).values(), seed=seed).as_row()
            for name in ordered
            if not only or name in only
        }
    return found
