"""Figures of a label-budget study: curves over the number of labels, and every difference with its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import log2
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oligovox.files import atomic_file
from oligovox.report.budget_content import LEARNING, BudgetReport, Cell, Difference
from oligovox.report.figures import ARMS, INK, RULE, SOFT, drawing, svg
from oligovox.report.text import Html, count, interval, visible

_MARKERS = ("o", "s", "^", "D", "v", "P")
_ON_PAPER = {INK: "#1b2026", SOFT: "#59636e", RULE: "#dcdfe3"} | dict(
    zip(ARMS, ("#0072b2", "#c8550a", "#008a66", "#a8508a"), strict=True)
)
"""What the stand-in colours are outside of a page, where no style sheet replaces them."""

Paint = Callable[[str], str]


class Look(NamedTuple):
    """How an arm is drawn."""

    colour: str
    line: str
    marker: str


def looks(report: BudgetReport) -> dict[str, Look]:
    """Classical rules grey, scratch black, pretexts in colours; what is not plain scratch or a first-four pretext is dashed."""
    found: dict[str, Look] = {}
    pretexts = 0
    for place, arm in enumerate(report.arms):
        marker = _MARKERS[place % len(_MARKERS)]
        if arm.kind in LEARNING:
            found[arm.name] = Look(ARMS[pretexts % len(ARMS)], "-" if pretexts < len(ARMS) else "--", marker)
            pretexts += 1
        else:
            colour, line = {"classical": (SOFT, ":"), "scratch": (INK, "-")}.get(arm.kind, (INK, "--"))
            found[arm.name] = Look(colour, line, marker)
    return found


def curves(report: BudgetReport) -> Html:
    """The primary metric over the number of labels, one curve an arm, for the page."""
    with drawing(4.2) as figure:
        _draw_curves(figure, report, str)
        return svg(figure, _curves_in_words(report))


def write_curves(report: BudgetReport, folder: Path) -> None:
    """Write curves.png and curves.svg: the same figure in fixed colours, for slides and papers.

    Raises:
        OutputError: the folder cannot be written.
    """
    with drawing(4.2) as figure:
        style = {k: _ON_PAPER[v] for k, v in matplotlib.rcParams.items() if isinstance(v, str) and v in _ON_PAPER}
        with matplotlib.rc_context({**style, "svg.hashsalt": report.title}):
            _draw_curves(figure, report, _ON_PAPER.__getitem__)
            with atomic_file(folder / "curves.png") as temporary:
                figure.savefig(temporary, dpi=200, facecolor="white")
            with atomic_file(folder / "curves.svg") as temporary:
                figure.savefig(temporary, facecolor="white", metadata={"Date": None})


def differences(report: BudgetReport) -> Html:
    """Every difference with its interval, whatever it shows."""
    rows = report.differences
    pairs = list(dict.fromkeys((row.arm, row.against) for row in rows))
    with drawing(0.8 + 0.27 * len(rows) + 0.34 * len(pairs)) as figure:
        axes = figure.subplots()
        look, height, ticks = looks(report), 0.0, []
        for arm, against in pairs:
            axes.text(
                0,
                height,
                f"{visible(arm)} − {visible(against)}",
                transform=axes.get_yaxis_transform(),
                va="center",
                weight="bold",
            )
            height += 1
            for row in (row for row in rows if (row.arm, row.against) == (arm, against)):
                _draw_difference(axes, row, height, look[arm])
                added = ", with additions" if row.exploratory else ""
                ticks.append((height, f"{count(row.count, 'label')}{added}"))
                height += 1
            height += 0.3
        axes.axvline(0, color=SOFT, lw=1)
        axes.set_yticks([place for place, _ in ticks], [words for _, words in ticks])
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        ends = [abs(end) for row in rows for end in (row.mean, row.low, row.high) if end is not None]
        reach = 1.15 * max([*ends, 0.02])
        better = "right" if report.measure.higher_is_better else "left"
        axes.set(
            title=f"Difference in {_titled(report)} ({better} is better)",
            xlim=(-reach, 1.5 * reach),
            ylim=(height - 0.2, -0.8),
        )
        return svg(figure, _differences_in_words(report))


def _draw_curves(figure: Figure, report: BudgetReport, paint: Paint) -> None:
    axes = figure.subplots()
    step = min([log2(b / a) for a, b in pairwise(report.counts)], default=1.0)
    for place, arm in enumerate(report.arms):
        look = looks(report)[arm.name]
        shift = (place - (len(report.arms) - 1) / 2) * min(0.07, 0.7 / len(report.arms)) * step
        cells = [cell for n in report.counts if (cell := report.cell(arm.name, n))]
        _draw_curve(axes, report.metric, cells, shift, look._replace(colour=paint(look.colour)))
        added = " (exploratory)" if arm.exploratory else ""
        style: dict[str, Any] = {"color": paint(look.colour), "ls": look.line, "marker": look.marker}
        axes.plot([], [], label=visible(arm.name) + added, lw=1.7, ms=6, **style)
    axes.set_xticks([log2(n) for n in report.counts], [str(n) for n in report.counts])
    axes.grid(axis="y")
    axes.grid(visible=False, axis="x")
    axes.set(xlabel="labelled people", title=f"{_titled(report)} of test people")
    figure.legend(loc="outside upper left", ncols=min(5, len(report.arms)), borderpad=0)


def _draw_curve(axes: Axes, metric: str, cells: Sequence[Cell], shift: float, look: Look) -> None:
    """Means joined by a line, their intervals, and the mean of each draw."""
    x, y = [], []
    for cell in cells:
        found, at = cell.metrics[metric], log2(cell.count) + shift
        if found.mean is None:
            continue
        x.append(at)
        y.append(found.mean)
        values = [value for value in cell.by_draw if value is not None]
        axes.plot([at] * len(values), values, "o", color=look.colour, ms=3.5, alpha=0.35, mew=0, zorder=2)
        if found.low is not None and found.high is not None:
            axes.plot([at, at], [found.low, found.high], color=look.colour, lw=1.7, solid_capstyle="butt", zorder=3)
        face = "none" if cell.exploratory else look.colour
        axes.plot(at, found.mean, look.marker, color=look.colour, ms=6, mew=1.5, mfc=face, zorder=4)
    axes.plot(x, y, color=look.colour, ls=look.line, lw=1.7, zorder=3)


def _draw_difference(axes: Axes, row: Difference, height: float, look: Look) -> None:
    face = "none" if row.exploratory else look.colour
    if row.low is not None and row.high is not None:
        axes.plot([row.low, row.high], [height, height], color=look.colour, lw=2, solid_capstyle="butt")
    if row.mean is not None:
        axes.plot(row.mean, height, look.marker, color=look.colour, ms=6, mfc=face, mew=1.5)
    style: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "ha": "right", "color": SOFT}
    axes.text(1.0, height, row.outcome, **style)


def _titled(report: BudgetReport) -> str:
    metric = report.measure
    return f"{metric.title} ({metric.unit})" if metric.unit else metric.title


def _curves_in_words(report: BudgetReport) -> str:
    words = [f"Curves of the mean {report.measure.title} over the number of labelled people."]
    for arm in report.arms:
        cells = [cell for n in report.counts if (cell := report.cell(arm.name, n))]
        means = [(cell.count, cell.metrics[report.metric]) for cell in cells]
        words.append(f"{arm.name}: " + ", ".join(f"{n}: {interval(m.mean, m.low, m.high, 3)}" for n, m in means) + ".")
    return " ".join(words)


def _differences_in_words(report: BudgetReport) -> str:
    rows = [
        f"{d.arm} minus {d.against}, {count(d.count, 'label')}: {interval(d.mean, d.low, d.high, 3, sign=True)}, {d.outcome}."
        for d in report.differences
    ]
    return " ".join(["Intervals of the differences.", *rows])
