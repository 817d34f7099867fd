"""The page of a model with missing sequences: the matrix of all combinations, and what each sequence is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from oligovox.files import atomic_file
from oligovox.report import tables
from oligovox.report.figures import ARMS, RULE, drawing, svg
from oligovox.report.page import document, figure
from oligovox.report.text import UNDEFINED, Html, escape, interval, visible

Rows = Sequence[Mapping[str, Any]]

_MATRIX = (
    "Each row is one combination of sequences: filled circles are shown to the network, hollow ones are hidden. Mean over the people whose "
    "exams have the combination, and 95 % interval."
)
_PRICE = (
    "Score with the sequence minus score without it, in the same exam; mean over people [95 % interval]. The whole exam: only this sequence is "
    "hidden. Every subset: the mean over all combinations with it and without it."
)


def write_subsets(rows: Rows, prices: Rows, sequences: Sequence[str], folder: Path, *, title: str) -> Path:
    """Write subsets.html.

    Args:
        rows: a row a combination and measure: "subset", each sequence (1 shown, 0 hidden), "region", "metric", "mean", "low", "high", "n".
        prices: a row a sequence, measure and way of hiding: "sequence", "hidden_from", and as above.
        sequences: in the order of the columns.
        folder: where to write.
        title: heading.

    Returns:
        Path of the page.

    Raises:
        OutputError: the folder cannot be written.
    """
    parts = [f"<h1>{escape(title)}</h1>", figure(subset_matrix(rows, sequences), _MATRIX)]
    parts += ["<h2>What each sequence is worth</h2>"]
    parts += _tables(prices, {"sequence": "Sequence", "hidden_from": "Hidden from"}, _PRICE, sign=True)
    parts += ["<h2>All combinations</h2>"]
    parts += _tables(rows, {"subset": "Shown"}, "Mean over people [95 % interval].", sign=False)
    path = folder / "subsets.html"
    with atomic_file(path) as temporary:
        temporary.write_text(document(title, parts), encoding="utf-8")
    return path


def subset_matrix(rows: Rows, sequences: Sequence[str]) -> Html:
    """Combinations of sequences from top to bottom; the first measure of the first and of the last region beside them."""
    measures = list(dict.fromkeys((row["region"], row["metric"]) for row in rows))
    names = list(dict.fromkeys(row["subset"] for row in rows))
    last = next(measure for measure in measures if measure[0] == measures[-1][0])
    drawn = list(dict.fromkeys((measures[0], last)))
    with drawing(1.1 + 0.27 * len(names)) as picture:
        dots, *panels = picture.subplots(1, 1 + len(drawn), sharey=True, width_ratios=(0.8, *[1] * len(drawn)))
        for column, sequence in enumerate(sequences):
            for shown, face in ((1, ARMS[0]), (0, "none")):
                places = {names.index(row["subset"]) for row in rows if row[sequence] == shown}
                dots.plot([column] * len(places), sorted(places), "o", ms=7, color=ARMS[0] if shown else RULE, mfc=face)
        dots.set_xticks(range(len(sequences)), [visible(name) for name in sequences], rotation=30, ha="right")
        dots.set(title="Shown", ylim=(len(names) - 0.4, -0.6), xlim=(-0.6, len(sequences) - 0.4))
        dots.set_yticks([])
        dots.grid(visible=False)
        dots.spines[["left", "bottom"]].set_visible(False)
        for axes, (region, metric) in zip(panels, drawn, strict=True):
            chosen = [row for row in rows if (row["region"], row["metric"]) == (region, metric)]
            _intervals(axes, [(names.index(row["subset"]), row) for row in chosen])
            axes.set_title(visible(f"{metric}, {region}"))
        words = (f"{row['subset']}: {_words(row)}." for row in rows if (row["region"], row["metric"]) == drawn[0])
        return svg(picture, f"{drawn[0][1]} of each combination of sequences. {' '.join(words)}")


def _intervals(axes: Axes, rows: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
    for place, row in rows:
        if row["low"] is not None and row["high"] is not None:
            axes.plot([row["low"], row["high"]], [place, place], color=ARMS[0], lw=2.2, solid_capstyle="butt")
        if row["mean"] is not None:
            axes.plot(row["mean"], place, "|", color=ARMS[0], ms=10, mew=2.2)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)


def _tables(rows: Rows, heads: Mapping[str, str], note: str, *, sign: bool) -> list[Html]:
    """One table a region: a line for each value of the head columns, a column for each metric."""
    found = []
    for region in dict.fromkeys(row["region"] for row in rows):
        inside = [row for row in rows if row["region"] == region]
        metrics = list(dict.fromkeys(row["metric"] for row in inside))
        lines: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
        for row in inside:
            lines.setdefault(tuple(row[head] for head in heads), {})[row["metric"]] = row
        body = [
            [
                *line,
                max(row["n"] for row in cells.values()),
                *(tables.stacked(_words(cells[m], sign=sign)) for m in metrics),
            ]
            for line, cells in lines.items()
        ]
        found.append(
            tables.table([*heads.values(), "People", *metrics], body, region, note, words=range(1, len(heads)))
        )
    return found


def _words(row: Mapping[str, Any], *, sign: bool = False) -> str:
    return interval(row["mean"], row["low"], row["high"], 3, sign=sign) if row["mean"] is not None else UNDEFINED
