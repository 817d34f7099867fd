"""The tables of a report as HTML; every cell is escaped unless it is `Html` already."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from oligovox.report.content import METRICS, Arm, Interval, MetricName, Report, ShownCase, SizeBin, Stage
from oligovox.report.figures import bin_title
from oligovox.report.text import UNDEFINED, Html, count, duration, escape, interval, number
from oligovox.report.verdict import judge

_FOOTNOTE = (
    f"{UNDEFINED} undefined: a score that does not exist where a mask is empty, or a number that was not recorded."
)


def table(
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    title: object,
    note: str = "",
    words: Collection[int] = (),
) -> Html:
    """A table in a frame that scrolls when it is wider than the page; the first column heads the rows.

    A footnote explains the dash wherever one occurs.

    Args:
        head: titles of the columns.
        rows: cells; what is not `Html` is escaped.
        title: caption.
        note: shown below.
        words: columns of words, aligned at the left; all others but the first are aligned at the right.
    """
    body = [[escape(cell) for cell in row] for row in rows]
    if any(cell == UNDEFINED for row in body for cell in row):
        note = f"{note} {_FOOTNOTE}".strip()
    style = [' class="words"' if column in words else "" for column in range(len(head))]
    top = "".join(f'<th scope="col"{kind}>{escape(cell)}</th>' for kind, cell in zip(style, head, strict=True))
    lines = []
    for first, *others in body:
        cells = "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(style[1:], others, strict=True))
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return Html(
        f'<div class="table"><table><caption>{escape(title)}</caption><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>{below}"
    )


def facts(pairs: Mapping[str, object]) -> Html:
    """A list of names and values, for settings and versions."""
    items = (f"<div><dt>{escape(k)}</dt><dd>{escape(_plain(v))}</dd></div>" for k, v in pairs.items())
    return Html(f'<dl class="facts">{"".join(items)}</dl>')


def arm_name(name: str, arms: Sequence[Arm]) -> Html:
    """The name of an arm with a swatch of its colour."""
    place = next((place for place, arm in enumerate(arms) if arm.name == name), 0)
    return Html(f'<span class="swatch arm-{place % 4}"></span>{escape(name)}')


def stacked(numbers: str) -> Html:
    """A mean with its interval in a second line."""
    mean, _, ends = numbers.partition(" ")
    return Html(f'<span class="stacked">{escape(mean)} <small>{escape(ends)}</small></span>') if ends else escape(mean)


def means(report: Report) -> Html:
    """One row an arm: mean and interval of every score."""
    shown = [name for name in METRICS if any(name in arm.means for arm in report.arms)]
    rows = []
    for arm in report.ordered:
        cells = [stacked(_mean(arm.means, name)) for name in shown]
        n = max((m.n + m.undefined for m in arm.means.values()), default=0)
        rows.append([arm_name(arm.name, report.ordered), arm.start, arm.labels, n, *cells])
    skipped = sorted(
        {f"{METRICS[k].title}: {m.undefined}" for arm in report.arms for k, m in arm.means.items() if m.undefined}
    )
    note = "Mean over test subjects [95 % interval]."
    if skipped:
        note += f" Subjects left out because the score is undefined for them (at most): {', '.join(skipped)}."
    head = ["Arm", "Start", "Labelled subjects", "Test subjects", *(_titled(name) for name in shown)]
    return table(head, rows, "Scores of each arm", note, words=[1])


def classes(report: Report) -> Html:
    """One row a class and arm: mean and interval of every score."""
    rows = [
        [name, arm_name(arm.name, report.ordered), *(stacked(_mean(found, metric)) for metric in METRICS)]
        for name in dict.fromkeys(name for arm in report.ordered for name in arm.classes)
        for arm in report.ordered
        if (found := arm.classes.get(name))
    ]
    note = "Each class against all else, mean over test subjects [95 % interval]."
    return table(["Class", "Arm", *(_titled(name) for name in METRICS)], rows, "Scores of each class", note, words=[1])


def comparisons(report: Report) -> Html:
    """One row a paired difference, with its outcome."""
    rows = []
    for c in report.comparisons:
        metric = METRICS[c.metric]
        outcome = judge(c)
        rows.append(
            [
                Html(f"{arm_name(c.arm, report.ordered)} − {arm_name(c.against, report.ordered)}"),
                _titled(c.metric),
                interval(c.mean, c.low, c.high, metric.digits, sign=True),
                "higher" if metric.higher_is_better else "lower",
                c.n,
                Html(f'<span class="chip {outcome.replace(" ", "-")}">{escape(outcome)}</span>'),
            ]
        )
    note = "Paired by subject [95 % interval]. Each row is judged by itself: of many rows, some show a gain by chance."
    head = ["Difference", "Score", "Mean difference", "Better", "Subjects", "Outcome"]
    return table(head, rows, "Differences", note, words=[1, 3, 5])


def cases(arm: Arm) -> Html:
    """One row a test case: scores, volumes and counts; without reference masks only what was predicted."""
    if all(row.volume_true_ml is None and row.dice is None for row in arm.cases):
        rows = [[row.case, number(row.volume_predicted_ml, 2), _whole(row.lesions_predicted)] for row in arm.cases]
        return table(["Case", "Predicted mL", "Predicted lesions"], rows, f"Test cases, {arm.name}")
    scored = [
        [
            row.case,
            *(number(getattr(row, name), metric.digits) for name, metric in METRICS.items()),
            number(row.volume_true_ml, 2),
            number(row.volume_predicted_ml, 2),
            _whole(row.lesions_true),
            _whole(row.lesions_predicted),
        ]
        for row in sorted(arm.cases, key=lambda row: (row.dice is None, -(row.dice or 0.0), row.case))
    ]
    head = ["Case", *(_titled(name) for name in METRICS), "True mL", "Pred. mL", "True lesions", "Pred. lesions"]
    return table(head, scored, f"Test cases, {arm.name}, best first")


def bins(sizes: Sequence[SizeBin], arms: Sequence[Arm]) -> Html:
    """Lesions of the whole test set by size, and how many each arm found."""
    rows = [[bin_title(size), size.count, *(size.found.get(arm.name, UNDEFINED) for arm in arms)] for size in sizes]
    head = ["Lesion volume", "In the reference", *(Html(f"Found by {arm_name(arm.name, arms)}") for arm in arms)]
    return table(head, rows, "Lesions found, by size")


def lesions(case: ShownCase, arms: Sequence[Arm]) -> Html:
    """Every lesion of one case, largest first, folded below a line with the counts."""
    shown = [arm for arm in arms if any(arm.name in lesion.found for lesion in case.lesions)]
    rows = []
    for lesion in sorted(case.lesions, key=lambda lesion: -lesion.volume_mm3):
        cells = [_found(lesion.found.get(arm.name), lesion.overlap.get(arm.name)) for arm in shown]
        rows.append([lesion.number, number(lesion.volume_mm3, 0), ", ".join(map(str, lesion.centre)), *cells])
    head = ["Lesion", "mm³", "Centre (voxel x, y, z)", *(arm_name(arm.name, arms) for arm in shown)]
    hits = "".join(f"; {arm.name} found {sum(row.found.get(arm.name, False) for row in case.lesions)}" for arm in shown)
    note = "In brackets: the share of the lesion's voxels that were predicted."
    listed = table(head, rows, "Largest first", note)
    return Html(f"<details><summary>{escape(count(len(rows), 'lesion') + hits)}</summary>{listed}</details>")


def stages(done: Sequence[Stage]) -> Html:
    """One row a training run."""
    rows = [
        [s.name, s.phase, s.method, s.network, s.steps, duration(s.seconds), f"{number(100 * s.waited, 0)} %"]
        for s in done
    ]
    head = ["Stage", "Phase", "Method", "Network", "Steps", "Time", "Waiting for data"]
    return table(head, rows, "Training runs", words=[1, 2, 3])


def cohorts(report: Report) -> Html:
    """One row a source of images, with the number of cases that have each sequence."""
    sequences = sorted({name for cohort in report.data.cohorts for name in cohort.sequences})
    rows = [
        [c.name, c.people, c.cases, c.labelled, *(c.sequences.get(name, 0) for name in sequences)]
        for c in report.data.cohorts
    ]
    head = ["Cohort", "People", "Cases", "Labelled cases", *(f"with {name}" for name in sequences)]
    return table(head, rows, "Where the images come from")


def splits(report: Report) -> Html:
    """Who was used for what."""
    rows = [[name, len(people), ", ".join(people) or "nobody"] for name, people in report.data.splits.items()]
    return Html(
        f'<div class="people">{table(["Used for", "People", "Who"], rows, "Who was used for what", words=[2])}</div>'
    )


def _mean(means: Mapping[MetricName, Interval], name: MetricName) -> str:
    found = means.get(name)
    return interval(found.mean, found.low, found.high, METRICS[name].digits) if found else UNDEFINED


def _found(found: bool | None, overlap: float | None) -> str:
    if found is None:
        return UNDEFINED
    share = f" ({number(100 * overlap, 0)} %)" if overlap is not None else ""
    return f"{'found' if found else 'missed'}{share}"


def _whole(value: int | None) -> str:
    return UNDEFINED if value is None else str(value)


def _titled(name: Any) -> str:
    metric = METRICS[name]
    return f"{metric.title} ({metric.unit})" if metric.unit else metric.title


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_plain(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return (
            " × ".join(map(str, value))
            if value and all(isinstance(v, int | float) for v in value)
            else ", ".join(map(_plain, value))
        )
    return str(value)
