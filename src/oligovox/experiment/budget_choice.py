"""Which arm of a study to take, at each number of labels: the one with the best mean, or what is cheaper and not shown to be worse.

Arms are compared with those that start from the same material: nothing, or the images of the same people. The best is chosen by validation people where
every run has written down their score (a study that chooses its operating point on them knows it anyway), else by the test people. What it is
compared with, and what is shown of it, are scores of test people. A rule without a network is no arm to take here; it stands in the comparisons.

| interval of best − other | draws | other is |
| --- | --- | --- |
| excludes 0, in favour of the best | at least `FEWEST_DRAWS` | worse |
| all else | any | not shown to be worse |
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from oligovox.experiment.budget_plan import Study
from oligovox.experiment.budget_tables import Tables, Values, comparisons, interval_of, kind_of, parts_of
from oligovox.metrics.paired import difference_over_draws, mean_over_draws
from oligovox.report.budget_content import BOTH, FEWEST_DRAWS, ArmFacts, Choice, Kind, Margin, Square


def choices_of(tables: Tables, arms: Sequence[ArmFacts]) -> tuple[Choice, ...]:
    """One for each material and number of labels; where runs were added, a second, exploratory one has them all.

    Args:
        tables: scores of the finished runs.
        arms: what each arm costs.
    """
    seconds = {arm.name: arm.seconds for arm in arms}
    groups = _materials(tables.study)
    if sum(map(len, groups.values())) < 2:
        return ()
    found: list[Choice] = []
    for material, names in groups.items():
        for count in sorted(tables.study.counts):
            grown = any(tables.grown(name, count) for name in names)
            for everything in (False, True) if grown else (False,):
                found += _choice(tables, seconds, (material, names), count, everything)
    return tuple(found)


def square_of(study: Study) -> Square | None:
    """The four arms of {scratch, pre-trained} × {supervised, semi-supervised}; None where the study has others of these kinds, or not all."""
    kinds: tuple[Kind, ...] = ("scratch", "pretext", "semi-supervised", BOTH)
    of = {kind: [name for name in study.arms if kind_of(study, name) == kind] for kind in kinds}
    if any(len(names) != 1 for names in of.values()):
        return None
    scratch, start, semi, both = (names[0] for names in of.values())
    same = parts_of(study, both) == (parts_of(study, start)[0], parts_of(study, semi)[1])
    return Square(scratch=scratch, pretrained=start, semi=semi, both=both) if same else None


def _materials(study: Study) -> dict[str, list[str]]:
    """What arms with a network start from, in words → these arms."""
    found: dict[str, list[str]] = {}
    for name, arm in study.arms.items():
        if not arm.classical:
            found.setdefault(_material(study, name), []).append(name)
    return found


def _material(study: Study, name: str) -> str:
    if not study.arms[name].pretext:
        return "from scratch"
    stage = study.pretraining(name, seed=0)
    words = f"pre-trained on {', '.join(stage.cohorts) or 'all exams'}"
    words += ", those of test people included" if stage.transductive else ""
    return words if stage.share_labelled else f"{words}, without those of people whose labels are used"


def _choice(
    tables: Tables, seconds: Mapping[str, float | None], of: tuple[str, Sequence[str]], count: int, everything: bool
) -> list[Choice]:
    """The choice among the arms of a material, over the draws that all of them have; nothing where nobody is scored."""
    study, (material, names) = tables.study, of
    sign = 1.0 if study.higher_is_better else -1.0
    values = dict(_values(tables, names, count, everything))
    draws = set.intersection(*map(set, values.values())) if values else set()
    values = {name: {draw: table[draw] for draw in draws} for name, table in values.items()}
    tested = {name: mean for name, table in values.items() if (mean := _mean(table)) is not None}
    if not tested:
        return []
    validated = {name: tables.validated(name, count, draws, everything=everything) for name in tested}
    known = {name: mean for name, mean in validated.items() if mean is not None}
    ranked = known if len(known) == len(tested) else tested
    best, *others = sorted(ranked, key=lambda name: -sign * ranked[name])
    margins = {name: _margin(tables, best, name, values[best], values[name]) for name in others}
    alike = [best, *(name for name in others if not (margins[name].apart and sign * (margins[name].mean or 0.0) > 0))]
    take = min(alike, key=lambda name: math.inf if (cost := seconds.get(name)) is None else cost)
    against = (_against_scratch(tables, name, count, values[name], everything) for name in dict.fromkeys((best, take)))
    return [Choice(
        count=count, material=material, exploratory=everything, best=best, arms=len(tested), alike=tuple(alike), take=take, seconds=seconds.get(take),
        chosen_by="validation people" if ranked is known else "test people",
        score=interval_of(mean_over_draws(values[best], seed=study.seed)),
        runner_up=margins[others[0]] if others else None,
        against_scratch=tuple(margin for margin in against if margin),
    )]  # fmt: skip


def _values(tables: Tables, names: Sequence[str], count: int, everything: bool) -> Iterator[tuple[str, Values]]:
    for name in names:
        if found := tables.values(name, count, tables.study.metric, everything=everything):
            yield name, found


def _against_scratch(tables: Tables, name: str, count: int, values: Values, everything: bool) -> Margin | None:
    """From compute-matched scratch, or where the arm is compared with none, from scratch."""
    against = [other for arm, other in comparisons(tables.study, tables.before) if arm == name]
    kinds = {other: kind_of(tables.study, other) for other in against}
    chosen = [other for kind in ("compute-matched scratch", "scratch") for other in against if kinds[other] == kind]
    for other in chosen:
        scratch = tables.values(other, count, tables.study.metric, everything=everything)
        if scratch.keys() & values.keys():
            return _margin(tables, name, other, values, scratch)
    return None


def _margin(tables: Tables, arm: str, against: str, a: Values, b: Values) -> Margin:
    found, draws = interval_of(difference_over_draws(a, b, seed=tables.study.seed)), len(a.keys() & b.keys())
    told = draws >= FEWEST_DRAWS and found.low is not None and found.high is not None
    return Margin(
        arm=arm, against=against, mean=found.mean, low=found.low, high=found.high, draws=draws, n=found.n,
        apart=told and not (found.low or 0.0) <= 0 <= (found.high or 0.0),
    )  # fmt: skip


def _mean(values: Values) -> float | None:
    defined = [value for people in values.values() for value in people.values() if value is not None]
    return fmean(defined) if defined else None
