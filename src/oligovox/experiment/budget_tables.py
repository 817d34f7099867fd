"""Means and differences of a label-budget study, over draws and test people.

Values of a draw are averaged over seeds first. A mean or difference is over draws and test people, both a sample (`metrics.paired`). Nothing that
was added after the study had begun enters the numbers of the frozen study: where runs were added, a second, exploratory number has them all.

| family of Holm's correction | comparisons |
| --- | --- |
| frozen | all of the frozen study |
| exploratory | all of the frozen study and all exploratory ones |
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, TypeAlias

from oligovox.experiment.budget_plan import Run, Study
from oligovox.experiment.recipe import Semi
from oligovox.metrics.bootstrap import Interval as Spread
from oligovox.metrics.paired import difference_over_draws, holm, mean_over_draws, wilcoxon
from oligovox.report.budget_content import BOTH, LEARNING, Cell, Difference, Kind, judge
from oligovox.report.content import METRICS, Interval

Done: TypeAlias = Mapping[Run, Mapping[str, Any]]
"""Finished run → what stands in its scores.json."""

Values: TypeAlias = dict[int, dict[str, float | None]]
"""Draw → person → value, mean over seeds."""

_Start: TypeAlias = tuple[str | None, Mapping[str, Any], Mapping[str, Any]]
"""Pretext, its settings, what differs in pre-training."""

_SCRATCH_START: _Start = (None, {}, {})

_Key: TypeAlias = tuple[str, str, int, bool]
"""Arm, against, count, with all runs."""


@dataclass(frozen=True)
class Tables:
    """Scores of the finished runs, with or without those that were added.

    Attributes:
        study: as it is now.
        before: as it was frozen.
        done: the finished runs.
    """

    study: Study
    before: Study
    done: Done

    @cached_property
    def frozen(self) -> frozenset[Run]:
        """The runs of the frozen study."""
        return frozenset(self.before.runs)

    def grown(self, arm: str, count: int) -> bool:
        """Whether runs were added to an arm at a number of labels."""
        return any(run not in self.frozen for run in self._runs(arm, count))

    def stood(self, arm: str, count: int) -> bool:
        """Whether it has runs of the frozen study."""
        return any(run in self.frozen for run in self._runs(arm, count))

    def values(self, arm: str, count: int, metric: str, *, everything: bool) -> Values:
        """Draw → person → value; `everything`: also runs that were added."""
        found: dict[int, dict[str, list[float]]] = {}
        for run in self._runs(arm, count):
            if everything or run in self.frozen:
                people = found.setdefault(run.draw, {})
                for person, row in self.done[run]["scores"].items():
                    value = row.get(metric)
                    people.setdefault(person, []).extend([] if value is None else [value])
        return {draw: {p: fmean(v) if v else None for p, v in people.items()} for draw, people in found.items()}

    def validated(self, arm: str, count: int, draws: Collection[int], *, everything: bool) -> float | None:
        """Mean of the primary metric on validation people over the runs of these draws; None where some of them do not say it."""
        runs = [run for run in self._runs(arm, count) if run.draw in draws and (everything or run in self.frozen)]
        found = [self.done[run].get("validation") for run in runs]
        return None if None in found else _mean(found)

    def _runs(self, arm: str, count: int) -> list[Run]:
        return [run for run in self.done if (run.arm, run.count) == (arm, count)]

    @property
    def metrics(self) -> list[str]:
        """The metrics that are summarised: the primary one first."""
        known = {name for result in self.done.values() for row in result["scores"].values() for name in row}
        others = [name for name in sorted(known) if name.rpartition("/")[2] in METRICS and name != self.study.metric]
        return [self.study.metric, *others]


def cells_of(tables: Tables) -> tuple[Cell, ...]:
    """Means of every arm at every number of labels."""
    cells = []
    for arm in tables.study.arms:
        for count in sorted(tables.study.counts):
            for everything in _variants(tables.stood(arm, count), tables.grown(arm, count)):
                by_metric = {m: tables.values(arm, count, m, everything=everything) for m in tables.metrics}
                primary = by_metric[tables.study.metric]
                cells.append(Cell(
                    arm=arm, count=count, exploratory=everything, draws=len(primary),
                    by_draw=tuple(_mean(people.values()) for _, people in sorted(primary.items())),
                    metrics={m: interval_of(mean_over_draws(v, seed=tables.study.seed)) for m, v in by_metric.items()},
                ))  # fmt: skip
    return tuple(cells)


def _variants(stood: bool, grown: bool) -> tuple[bool, ...]:
    """Which numbers there are: of the frozen runs, and of all runs where some were added."""
    return tuple(everything for everything, there in ((False, stood), (True, grown)) if there)


def differences_of(tables: Tables) -> tuple[Difference, ...]:
    """Every arm against scratch, pretexts and strategies also against compute-matched scratch, at every number of labels."""
    found: dict[_Key, tuple[Spread, float, int]] = {}
    for arm, against in comparisons(tables.study, tables.before):
        for count in sorted(tables.study.counts):
            stood = tables.stood(arm, count) and tables.stood(against, count)
            grown = tables.grown(arm, count) or tables.grown(against, count)
            for everything in _variants(stood, grown):
                a, b = (
                    tables.values(name, count, tables.study.metric, everything=everything) for name in (arm, against)
                )
                if shared := a.keys() & b.keys():
                    spread = difference_over_draws(a, b, seed=tables.study.seed)
                    p = wilcoxon(*(_by_person(values, shared) for values in _paired(a, b)))
                    found[arm, against, count, everything] = (spread, p, len(shared))
    p_all = {key: p for key, (_, p, _) in found.items()}
    corrected = _holm(p_all) | _holm({key: p for key, p in p_all.items() if not key[3]})
    return tuple(_difference(key, *found[key], corrected[key], tables.study.higher_is_better) for key in found)


def comparisons(study: Study, before: Study) -> list[tuple[str, str]]:
    """(arm, against): those of the study as it was frozen, then those that came with later arms."""
    first = _pairs(before, None)
    plain = next((against for _, against in first if kind_of(before, against) == "scratch"), None)
    return list(dict.fromkeys([*first, *_pairs(study, plain)]))


def _pairs(study: Study, plain: str | None) -> list[tuple[str, str]]:
    """Every arm against plain scratch (if not given, the first one). What has a pretext and a strategy also against what has one of the two.
    Pretexts also against scratch with the steps of their pre-training, or, where there is none with as many, against all that have extra steps;
    strategies, whose steps cost more than those of scratch, against all that have, with a pretext or without."""
    kinds = {name: kind_of(study, name) for name in study.arms}
    plain = plain or next((name for name, kind in kinds.items() if kind == "scratch"), None)
    matched = [name for name, kind in kinds.items() if kind == "compute-matched scratch"]
    pairs = [(name, plain) for name in kinds if plain and name != plain]
    parts = {name: parts_of(study, name) for name, kind in kinds.items() if kind != "classical"}
    for name in (name for name, kind in kinds.items() if kind == BOTH):
        start, semi = parts[name]
        alone = ((start, None), (_SCRATCH_START, semi))
        pairs += [(name, other) for other, has in parts.items() if has in alone]
    for name in (name for name, kind in kinds.items() if kind in LEARNING):
        steps = study.pretraining(name, seed=0).training.steps if kinds[name] == "pretext" else None
        equal = [other for other in matched if study.arms[other].extra_steps == steps]
        pairs += [(name, other) for other in equal or matched]
    return pairs


def kind_of(study: Study, name: str) -> Kind:
    """What an arm is among the others."""
    arm = study.arms[name]
    if arm.classical:
        return "classical"
    if parts_of(study, name)[1]:
        return BOTH if arm.pretext else "semi-supervised"
    return "pretext" if arm.pretext else "compute-matched scratch" if arm.extra_steps else "scratch"


def parts_of(study: Study, name: str) -> tuple[_Start, Semi | None]:
    """Where an arm with a network starts, and its semi-supervised strategy."""
    return study.arms[name].origin, study.finetuning(name, lr=study.lr[0], seed=0).semi


def _difference(key: _Key, spread: Spread, p: float, draws: int, p_holm: float, higher: bool) -> Difference:
    arm, against, count, everything = key
    numbers = interval_of(spread)
    tested = None if math.isnan(p_holm) else p_holm
    return Difference(
        arm=arm, against=against, count=count, exploratory=everything, draws=draws, mean=numbers.mean, low=numbers.low,
        high=numbers.high, n=numbers.n, p=p, p_holm=tested, outcome=judge(numbers, draws, tested, higher_is_better=higher),
    )  # fmt: skip


def _holm(p: Mapping[_Key, float]) -> dict[_Key, float]:
    names = {repr(key): key for key in p}
    return {names[name]: value for name, value in holm({name: p[key] for name, key in names.items()}).items()}


def _paired(a: Values, b: Values) -> tuple[Values, Values]:
    """Both with the values only that the other has as well, so that means over draws are of the same draws."""

    def kept(one: Values, other: Values) -> Values:
        return {
            draw: {p: v for p, v in one[draw].items() if v is not None and other[draw].get(p) is not None}
            for draw in one.keys() & other.keys()
        }

    return kept(a, b), kept(b, a)


def _by_person(values: Values, draws: Iterable[int]) -> dict[str, float | None]:
    """Mean over draws."""
    people: dict[str, list[float]] = {}
    for draw in draws:
        for person, value in values[draw].items():
            people.setdefault(person, []).extend([] if value is None else [value])
    return {person: fmean(found) if found else None for person, found in people.items()}


def interval_of(spread: Spread) -> Interval:
    """As it stands on a page."""
    return Interval(mean=spread.mean, low=spread.low, high=spread.high, n=spread.n, undefined=spread.skipped)


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return fmean(defined) if defined else None
