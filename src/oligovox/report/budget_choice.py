"""Of the page of a label-budget study: which arm to take, and the two by two of pre-training and strategy."""

from __future__ import annotations

from oligovox.report import tables
from oligovox.report.budget_content import FEWEST_DRAWS, BudgetReport, Choice, Margin
from oligovox.report.text import UNDEFINED, count, duration, escape, interval


def advice(report: BudgetReport, choice: Choice) -> str:
    """Which arm to take, with its uncertainty, in words: what is recommended first, then why."""
    later = ", with what was added later" if choice.exploratory else ""
    return f"{count(choice.count, 'label')}, {choice.material}{later}: take {choice.take}{' '.join([_reason(choice), *_numbers(report, choice)])}"


def which_to_take(report: BudgetReport) -> list[str]:
    """The section; nothing where there is nothing to choose from."""
    if not report.choices:
        return []
    parts = [f"<p>{escape(_how(report))}</p>"]
    for material in dict.fromkeys(choice.material for choice in report.choices):
        lines = [_line(report, choice) for choice in report.choices if choice.material == material]
        parts.append(f"<h3>{escape(material[:1].upper() + material[1:])}</h3><ul>{''.join(lines)}</ul>")
    return parts


def two_by_two(report: BudgetReport) -> list[str]:
    """{scratch, pre-trained} × {supervised, semi-supervised}, one table a number of labels."""
    if report.square is None:
        return []
    square, methods = report.square, {arm.name: arm.method for arm in report.arms}
    head = ["Start", "supervised", f"semi-supervised ({methods[square.semi]})"]
    starts = {
        "scratch": (square.scratch, square.semi),
        f"pre-trained ({methods[square.pretrained]})": (square.pretrained, square.both),
    }
    note = "Mean over draws and test people [95 % interval over both]." + (
        "" if report.measure.higher_is_better else " Lower is better."
    )
    return [
        tables.table(
            head,
            [[start, *(_score(report, arm, n) for arm in arms)] for start, arms in starts.items()],
            f"{report.measure.title}, {count(n, 'label')}",
            note,
        )
        for n in report.counts
    ]


def _line(report: BudgetReport, choice: Choice) -> str:
    numbers = "".join(f"<li>{escape(words)}</li>" for words in _numbers(report, choice))
    later = " <em>exploratory</em>" if choice.exploratory else ""
    take = f"<strong>take {escape(choice.take)}</strong>{escape(_reason(choice))}{later}"
    return f"<li>{count(choice.count, 'label')}: {take}<ul>{numbers}</ul></li>"


def _score(report: BudgetReport, arm: str, n: int) -> str:
    cell = report.cell(arm, n)
    if cell is None:
        return UNDEFINED
    found = cell.metrics[report.metric]
    return tables.stacked(interval(found.mean, found.low, found.high, report.measure.digits))


def _how(report: BudgetReport) -> str:
    """How the choice is made, and by whom."""
    chosen = {choice.chosen_by for choice in report.choices}
    rule = (
        "Among arms that start from the same material, the one with the best mean, unless a cheaper one is not shown to be worse (cheaper by the measured seconds of a run, without pre-training). Two arms are told apart "
        f"where the interval (95 %, over draws and test people, not corrected for the number of arms) of their difference excludes 0, over at least {FEWEST_DRAWS} "
        "draws. What cannot be told apart need not be equal."
    )
    if any(arm.kind == "classical" for arm in report.arms):
        rule += " Rules without a network are not among them."
    if "validation people" in chosen:
        rule += " The best mean is that of validation people; the scores shown are those of test people, who did not choose it."
    if "test people" in chosen:
        whose = " Elsewhere the" if len(chosen) > 1 else " The"
        rule += f"{whose} best of many arms is chosen by the same test people who score it, which makes its score, and its lead, too good."
    return rule


def _reason(choice: Choice) -> str:
    """Why this one is taken."""
    cost = "" if choice.seconds is None else f" ({duration(choice.seconds)} a run)"
    if choice.arms == 1:
        return ", the only arm."
    if len(choice.alike) == 1:
        return f"{cost}, which has the best mean and is told apart from all others."
    return f"{cost}, chosen for cost{_of_several(choice)} ({', '.join(choice.alike)})."


def _numbers(report: BudgetReport, choice: Choice) -> list[str]:
    """The score of the best arm, and how far it and the one to take are from others."""
    by = " of validation people" if choice.chosen_by == "validation people" else ""
    score = interval(choice.score.mean, choice.score.low, choice.score.high, report.measure.digits)
    margins = [margin for margin in (choice.runner_up, *choice.against_scratch) if margin]
    unique = {(margin.arm, margin.against): margin for margin in margins}
    best = f"{choice.best} has the best mean{by}; on test people {score}."
    return [best, *(_in_words(report, margin) for margin in unique.values())]


def _of_several(choice: Choice) -> str:
    draws = choice.runner_up.draws if choice.runner_up else 0
    if draws < FEWEST_DRAWS:
        return f" alone: with {count(draws, 'draw')} none of the {len(choice.alike)} can be told apart"
    alike = (
        "cannot be told apart" if choice.chosen_by == "test people" else f"are not shown to be worse than {choice.best}"
    )
    return f": the cheapest of {len(choice.alike)} that {alike}"


def _in_words(report: BudgetReport, margin: Margin) -> str:
    """'semi − matched scratch: +0.041 [+0.012, +0.070] (8 draws, 16 people), told apart.'"""
    numbers = interval(margin.mean, margin.low, margin.high, report.measure.digits, sign=True)
    over = f"{count(margin.draws, 'draw')}, {count(margin.n, 'person').replace('persons', 'people')}"
    few = ", too few draws" if margin.draws < FEWEST_DRAWS else ""
    verdict = "told apart" if margin.apart else f"cannot be told apart{few}"
    return f"{margin.arm} − {margin.against}: {numbers} ({over}), {verdict}."
