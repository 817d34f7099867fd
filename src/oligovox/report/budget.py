"""The page of a label-budget study: budget.json (the content), budget.html (the same to read), and the curves as pictures of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from oligovox.errors import CheckpointError
from oligovox.files import atomic_file, read_json, write_json
from oligovox.report import budget_figures as figures
from oligovox.report import tables
from oligovox.report.budget_choice import advice, two_by_two, which_to_take
from oligovox.report.budget_content import (
    BOTH,
    FEWEST_DRAWS,
    LEARNING,
    LEVEL,
    ArmFacts,
    BudgetReport,
    Difference,
    Labelling,
    Range,
    Saved,
    measure,
    numbers_of,
    p_text,
    sentence,
)
from oligovox.report.labels import LabelView
from oligovox.report.page import banner, document, drawn_labels, figure
from oligovox.report.text import UNDEFINED, Html, count, duration, escape, interval, number
from oligovox.settings import parse

_FORMAT = 1
_LEARNED = {"pretext": "pre-training", "semi-supervised": "semi-supervised strategies", BOTH: "both together"}
_CHIPS = {"gain": "gain-shown", "loss": "worse"}  # colours of the style sheet


def write_budget(report: BudgetReport, folder: Path, views: Sequence[LabelView] = ()) -> Path:
    """Write budget.json, budget.html, curves.png and curves.svg into `folder`, each complete or not at all; returns the path of the page.

    Args:
        report: the content.
        folder: where to.
        views: people of the first draw whose labels are shown, where some of them are labelled in part.

    Raises:
        OutputError: the folder cannot be written.
    """
    page = render_budget(report, views)
    figures.write_curves(report, folder)
    words = [sentence(report, difference) for difference in report.differences]
    content = {"format": _FORMAT, "headline": headline(report), "sentences": words,
               "advice": [advice(report, choice) for choice in report.choices]}  # fmt: skip
    write_json(folder / "budget.json", content | {"report": report.model_dump(mode="json")})
    with atomic_file(folder / "budget.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / "budget.html"


def load_budget(path: Path) -> BudgetReport:
    """Read budget.json.

    Raises:
        CohortError: the file is missing or is not JSON.
        CheckpointError: it is not such a file, or of another version of the format.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != _FORMAT or not isinstance(content.get("report"), dict):
        raise CheckpointError(f"{path}: not a label-budget study of format {_FORMAT}; run `oligovox budget` again")
    return parse(BudgetReport, content["report"], str(path))


def render_budget(report: BudgetReport, views: Sequence[LabelView] = ()) -> str:
    """The page as one HTML document without scripts or outside resources."""
    sections = {
        "choice": ("Which one to take", which_to_take(report)),
        "square": ("Pre-trained or not, semi-supervised or not", two_by_two(report)),
        "comparisons": ("Every comparison", _comparisons(report)),
        "scores": ("Scores", _scores(report)),
        "saved": ("Labels saved", _saved(report)),
        "cost": ("What each arm costs", _costs(report)),
        "rates": ("Learning rates", _rates(report)),
        "people": ("People and draws", _people(report, views)),
        "study": ("The study as it was written down", _study(report)),
        "repeat": ("How to repeat it", [f"<pre>{escape(report.command)}</pre>", tables.facts(report.software)]),
    }
    filled = {key: section for key, section in sections.items() if section[1]}
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, (title, _) in filled.items())
    parts = [*_first_screen(report), f'<nav aria-label="Sections"><ul>{links}</ul></nav>']
    for key, (title, body) in filled.items():
        parts += [f'<section id="{key}"><h2>{title}</h2>', *body, "</section>"]
    return document(report.title, parts)


def headline(report: BudgetReport) -> str:
    """How many comparisons show what: with training from scratch, of pre-training, of strategies and of both together, where there is any of them;
    without later additions where there are frozen ones."""
    kinds = {arm.name: arm.kind for arm in report.arms}
    learned = [d for d in report.differences if kinds[d.arm] in LEARNING and kinds[d.against] not in LEARNING]
    counted = learned or list(report.differences)
    counted = [d for d in counted if not d.exploratory] or counted
    if not counted:
        return "Nothing is compared yet."
    if not learned:
        return _tally(counted, "with scratch")
    of = {what: [d for d in counted if kinds[d.arm] == kind] for kind, what in _LEARNED.items()}
    return " ".join(_tally(some, f"of {what} with training from scratch") for what, some in of.items() if some)


def _tally(differences: Sequence[Difference], what: str) -> str:
    found = Counter(d.outcome for d in differences)
    words = ", ".join(f"{found[outcome]} × {outcome}" for outcome in ("gain", "loss", "no difference shown"))
    few = f", {found['too few draws to tell']} × too few draws to tell" if found["too few draws to tell"] else ""
    return f"{count(len(differences), 'comparison')} {what}: {words}{few}."


def _first_screen(report: BudgetReport) -> list[str]:
    parts = [banner("Numbers on simulated subjects. They say nothing about patients.")] if report.simulated else []
    first = report.versions[0]
    ground = f" · ground {escape(report.ground)}" if report.ground else ""
    parts += [
        f'<p class="over">oligovox label-budget study · {escape(report.created.replace("T", " "))}{ground}</p>',
        f"<h1>{escape(report.title)}</h1>",
        f'<div class="verdict"><strong>{escape(headline(report))}</strong>'
        f"<p>Study <code>{escape(first.sha256[:12])}</code>, written down {escape(first.date.replace('T', ' '))}, before its first run."
        f"{_later(report)}</p></div>",
        _tiles(report),
    ]
    if report.cautions:
        parts.append(f'<ul class="warnings">{"".join(f"<li>{escape(words)}</li>" for words in report.cautions)}</ul>')
    if report.cells:
        caption = (
            "Mean over draws of labelled people and test people; bars: 95 % intervals over both. Pale dots: the mean of each draw. "
            "Arms stand beside each other at the same number of labels. Hollow: exploratory."
        )
        parts.append(figure(figures.curves(report), caption))
    return parts


def _later(report: BudgetReport) -> str:
    words = [f" Added {escape(v.date[:10])}, exploratory: {escape(v.words)}." for v in report.versions[1:]]
    return "".join(words)


def _tiles(report: BudgetReport) -> str:
    draws = sorted(set(report.draws.values()))
    tiles = [
        ("Test people", str(report.people.get("test", 0)), "scored once in each run"),
        ("Draws of labelled people", "–".join(dict.fromkeys((str(draws[0]), str(draws[-1])))), f"of {report.people.get('labels that may be drawn', 0)} people{_in_part(report)}"),
        ("Arms", str(len(report.arms)), f"{count(len(report.seeds), 'seed')}, {count(len(report.counts), 'number')} of labels"),
        ("Runs finished", f"{report.finished} <small>of {report.planned}</small>", ""),
    ]  # fmt: skip
    return '<ul class="tiles">{}</ul>'.format("".join(
        f'<li><span class="what">{escape(what)}</span><span class="value">{value}</span><span class="more">{escape(more)}</span></li>'
        for what, value, more in tiles
    ))  # fmt: skip


def _in_part(report: BudgetReport) -> str:
    part = sum(kind.people for kind in report.labelling if kind.in_part)
    return f", {part} of them labelled in part" if part else ""


def _comparisons(report: BudgetReport) -> list[str]:
    if not report.differences:
        return []
    rule = (
        f"Differences are paired by draw and test person; intervals (95 %) hold the spread of both. Gain or loss is said only where the interval "
        f"excludes 0, the Wilcoxon signed-rank test over people (means over draws) has p < {LEVEL} after Holm's correction for all comparisons, and "
        f"there are at least {FEWEST_DRAWS} draws. Everything else is no difference shown, which is not the same as no difference."
    )
    parts = [
        f"<p>{escape(rule)}</p>",
        figure(figures.differences(report), "Every comparison of the study, in the same form."),
    ]
    for pair in dict.fromkeys((d.arm, d.against) for d in report.differences):
        lines = [_line(report, d) for d in report.differences if (d.arm, d.against) == pair]
        parts.append(f"<h3>{escape(pair[0])} − {escape(pair[1])}</h3><ul>{''.join(lines)}</ul>")
    listed = tables.table(
        ["Difference", "Labels", "Mean [95 %]", "Draws", "People", "p", "p, Holm", "Outcome"],
        [_row(report, d) for d in report.differences],
        "The same as a table",
        "p of the Wilcoxon signed-rank test. Holm's correction: of the frozen study by itself; of exploratory comparisons together with all others.",
        words=[7],
    )
    return [*parts, f"<details><summary>The same as a table</summary>{listed}</details>"]


def _line(report: BudgetReport, difference: Difference) -> str:
    chip = f'<strong class="chip {_CHIPS.get(difference.outcome, "")}">{escape(difference.outcome)}</strong>'
    words = escape(numbers_of(report, difference))
    return f"<li>{count(difference.count, 'label')}: {chip}, {words}{_mark(difference.exploratory)}</li>"


def _row(report: BudgetReport, d: Difference) -> list[object]:
    chip = Html(f'<span class="chip {_CHIPS.get(d.outcome, "")}">{escape(d.outcome)}</span>{_mark(d.exploratory)}')
    numbers = interval(d.mean, d.low, d.high, report.measure.digits, sign=True)
    return [f"{d.arm} − {d.against}", d.count, numbers, d.draws, d.n, p_text(d.p), p_text(d.p_holm), chip]


def _mark(exploratory: bool) -> Html:
    return Html(" <em>exploratory</em>" if exploratory else "")


def _scores(report: BudgetReport) -> list[str]:
    names = [report.metric, *sorted({name for cell in report.cells for name in cell.metrics} - {report.metric})]
    drawn: list[str] = [
        _score_table(report, name) for name in names if any(name in cell.metrics for cell in report.cells)
    ]
    if len(drawn) < 2:
        return drawn
    return [drawn[0], f"<details><summary>Other scores</summary>{''.join(drawn[1:])}</details>"]


def _score_table(report: BudgetReport, name: str) -> Html:
    metric, rows = measure(name), []
    for arm in report.arms:
        for exploratory in (False, True):
            cells = {
                c.count: c
                for c in report.cells
                if (c.arm, c.exploratory) == (arm.name, exploratory) and name in c.metrics
            }
            if cells:
                found = {n: cell.metrics[name] for n, cell in cells.items()}
                shown = {n: tables.stacked(interval(m.mean, m.low, m.high, metric.digits)) for n, m in found.items()}
                rows.append(
                    [Html(escape(arm.name) + _mark(exploratory)), *(shown.get(n, UNDEFINED) for n in report.counts)]
                )
    primary = ", the primary metric" if name == report.metric else ""
    unit = f" ({metric.unit})" if metric.unit else ""
    note = "Mean over draws and test people [95 % interval over both]." + (
        "" if metric.higher_is_better else " Lower is better."
    )
    head = ["Arm", *(count(n, "label") for n in report.counts)]
    return tables.table(head, rows, f"{metric.title}{unit}{primary}", note)


def _saved(report: BudgetReport) -> list[str]:
    if not report.saved:
        return []
    rows = [
        [f"{s.arm}, {count(s.count, 'label')}", number(s.score, report.measure.digits), s.against, _needed(report, s)]
        for s in report.saved
    ]
    note = (
        "Where the curve of the means of the other arm first reaches the same score, by straight lines over log2(labels). Of means, without an "
        "interval: a small difference between flat curves is worth many labels here and nothing in fact."
    )
    head = ["Arm", f"Reaches {report.measure.title}", "For which", "needs labels"]
    return [tables.table(head, rows, "What a score is worth in labels", note, words=[2])]


def _needed(report: BudgetReport, saved: Saved) -> str:
    if saved.needed is not None:
        return number(saved.needed, 1)
    return f"more than {max(report.counts)}" if saved.beyond == "more" else f"fewer than {min(report.counts)}"


def _costs(report: BudgetReport) -> list[str]:
    rows = [
        [
            Html(escape(arm.name) + _mark(arm.exploratory)), arm.kind, arm.method or UNDEFINED, arm.pretraining_steps,
            _time(arm.pretraining_seconds), arm.steps, _time(arm.seconds), _time(arm.trial_seconds), number(arm.memory_mb, 0),
            number(arm.gpu_memory_mb, 0),
        ]
        for arm in report.arms
    ]  # fmt: skip
    note = (
        "Time in optimiser steps, without validation and test. Pre-training once a seed, for all runs together. Memory: the highest of the process, "
        "with its libraries, and of the GPU."
    )
    head = [
        "Arm",
        "Kind",
        "Method",
        "Steps before",
        "Time before",
        "Steps of a run",
        "Time of a run",
        "Trials",
        "MB",
        "GPU MB",
    ]
    return [tables.table(head, rows, "Steps, time and memory", note, words=[1, 2])]


def _time(seconds: float | None) -> str:
    return UNDEFINED if seconds is None else duration(seconds)


def _rates(report: BudgetReport) -> list[str]:
    tried = [arm for arm in report.arms if arm.tried]
    if not tried:
        return []
    rates = list(dict.fromkeys(rate for arm in tried for rate in arm.tried))
    rows = [[arm.name, *(_rate(arm, rate, report.measure.digits) for rate in rates)] for arm in tried]
    note = "Mean over validation people; the strong one was taken for all runs of the arm. Every arm had the same trials. A dash: training diverged."
    return [tables.table(["Arm", *rates], rows, f"{report.measure.title} by learning rate", note)]


def _rate(arm: ArmFacts, rate: str, digits: int) -> Html | str:
    text = number(arm.tried.get(rate), digits)
    return Html(f"<strong>{escape(text)}</strong>") if arm.lr is not None and rate == f"{arm.lr:g}" else text


def _people(report: BudgetReport, views: Sequence[LabelView]) -> list[str]:
    people = {f"people, {name}": number for name, number in report.people.items()}
    draws = {f"draws of {count(n, 'label')}": d for n, d in report.draws.items()}
    parts: list[str] = [tables.facts(people | draws | {"seeds": list(report.seeds)})]
    if report.labelling:
        parts.append(_labelling(report.labelling))
    if views:
        parts.append(drawn_labels(views, "The first people of the first draw"))
    return parts


def _labelling(labelling: Sequence[Labelling]) -> Html:
    rows = [
        [_how(kind), kind.people, _spread(kind.looked_at, 100, " %"), _slices(kind), _spread(kind.lesions)]
        for kind in labelling
    ]
    note = (
        "Mean over exams (least to most). Slices are those of the prepared grid, where somebody looked at whole ones; lesions are what is connected of "
        "those that were drawn, so that one cut by slices can count more than once."
    )
    head = ["Labelled", "People", "Of the brain", "Slices", "Lesions"]
    return tables.table(head, rows, "What is labelled of those whose labels may be drawn", note)


def _how(kind: Labelling) -> str:
    return f"in part{kind.how and ': '}{kind.how}" if kind.in_part else "in full"


def _slices(kind: Labelling) -> str:
    return _spread(kind.slices) if kind.slices else "no whole ones" if kind.in_part else "all"


def _spread(found: Range, factor: float = 1.0, unit: str = "") -> str:
    """'9.1 % (8.0 to 10.2)'."""
    mean, least, most = (f"{value * factor:.3g}" for value in (found.mean, found.least, found.most))
    return f"{mean}{unit}" if least == most else f"{mean}{unit} ({least} to {most})"


def _study(report: BudgetReport) -> list[str]:
    rows = [[v.date, v.sha256, v.words or "everything"] for v in report.versions]
    listed = tables.table(["Written down", "SHA-256 of the file", "What"], rows, "Versions", words=[1, 2])
    return [
        f'<div class="people">{listed}</div>',
        f"<details><summary>study.yaml</summary><pre>{escape(report.study)}</pre></details>",
    ]
