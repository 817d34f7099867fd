"""Pictures of a realism page: slices side by side, histograms, distributions, contrasts. Simulated is blue, real is orange and dashed."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from oligovox.report.figures import ARMS, SOFT, drawing, svg
from oligovox.report.overlay import grey_png, outlines
from oligovox.report.text import Html, escape, visible
from oligovox.simulate.comparison import DISTRIBUTIONS, Compared, Distance, HistogramDistance, Histograms, LesionFacts
from oligovox.simulate.realism import HISTOGRAM_EDGES

_WIDTH, _GAP = 960.0, 4.0
_LOGARITHMIC = ("lesions a person", "lesion load, mL")
_SIMULATED: dict[str, Any] = {"color": ARMS[0], "ls": "-"}
_REAL: dict[str, Any] = {"color": ARMS[1], "ls": (0, (4, 1.6))}


@dataclass(frozen=True)
class View:
    """One slice, as it is looked at.

    Attributes:
        grey: (row from the top, column from the left) uint8.
        masks: of each labelled class, the same shape.
        step: width and height of a pixel, mm.
    """

    grey: NDArray[np.uint8]
    masks: tuple[NDArray[np.bool_], ...]
    step: tuple[float, float]


@dataclass(frozen=True)
class Shown:
    """One person's slices.

    Attributes:
        name: of the case.
        simulated: or real.
        views: sequence → plane → slice.
    """

    name: str
    simulated: bool
    views: Mapping[str, Mapping[str, View]]

    @property
    def title(self) -> str:
        """'simulated, sub-001'."""
        return f"{'simulated' if self.simulated else 'real'}, {visible(self.name)}"


@dataclass(frozen=True)
class _Cell:
    """A slice in its place; without `outlined` the bare image."""

    view: View
    title: str
    outlined: bool
    simulated: bool


def slices(people: Sequence[Shown], sequence: str) -> Html:
    """A column a person, a row a plane; the first plane also without outlines, on top."""
    people = [person for person in people if sequence in person.views]
    planes = list(dict.fromkeys(plane for person in people for plane in person.views[sequence]))
    rows = []
    for number, (plane, outlined) in enumerate([(planes[0], False), *((plane, True) for plane in planes)]):
        rows.append(
            [
                _Cell(person.views[sequence][plane], person.title if number == 0 else plane, outlined, person.simulated)
                for person in people
            ]
        )
    names = ", ".join(person.title for person in people)
    return _grid(rows, len(people), f"{sequence}: slices of {names}")


def gallery(people: Sequence[Shown], sequence: str, columns: int = 5) -> Html:
    """The first plane of everyone, without outlines."""
    cells = [
        _Cell(next(iter(person.views[sequence].values())), person.title, False, person.simulated)
        for person in people
        if sequence in person.views
    ]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    return _grid(rows, columns, f"{sequence}: one slice of each of {len(cells)} people")


def _grid(rows: Sequence[Sequence[_Cell]], columns: int, alt: str) -> Html:
    """Pictures in rows and columns; all of a row in one scale."""
    wide = (_WIDTH - (columns - 1) * _GAP) / columns
    parts, images, top = [], {}, 0.0
    for row in rows:
        scale = min(
            wide / max(_size(cell.view)[0] for cell in row), 1.5 * wide / max(_size(cell.view)[1] for cell in row)
        )
        tall = scale * max(_size(cell.view)[1] for cell in row)
        for number, cell in enumerate(row):
            width, height = (scale * size for size in _size(cell.view))
            left, above = number * (wide + _GAP), top + (tall - height) / 2
            name, source = _embedded(cell.view, alt)
            images[name] = source
            place = f'x="{left + (wide - width) / 2:.1f}" y="{above:.1f}" width="{width:.1f}" height="{height:.1f}"'
            shape = cell.view.grey.shape
            box = f'viewBox="0 0 {shape[1]} {shape[0]}" preserveAspectRatio="none"'
            parts.append(f'<svg {place} {box}><use href="#{name}"/>{_outlined(cell)}</svg>')
            kind = "simulated" if cell.simulated else "real"
            parts.append(f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="3"/>')
            parts.append(f'<text x="{left + 7:.1f}" y="{top + 18:.1f}">{escape(_short(cell.title, wide))}</text>')
        top += tall + _GAP
    head = f'<svg class="overlay realism" viewBox="0 0 {_WIDTH:.0f} {top - _GAP:.1f}" role="img" aria-label="{escape(alt)}">'
    return Html("".join([head, "<defs>", *images.values(), "</defs>", *parts, "</svg>"]))


def _size(view: View) -> tuple[float, float]:
    """Width and height, mm."""
    rows, columns = view.grey.shape
    return columns * view.step[0], rows * view.step[1]


def _embedded(view: View, figure: str) -> tuple[str, str]:
    """Name and definition of the picture of a slice; the name is unique on the page."""
    data = grey_png(view.grey)
    name = "view-" + hashlib.sha256(data + figure.encode()).hexdigest()[:12]
    size = f'width="{view.grey.shape[1]}" height="{view.grey.shape[0]}"'
    return name, f'<image id="{name}" {size} href="data:image/png;base64,{base64.b64encode(data).decode()}"/>'


def _outlined(cell: _Cell) -> str:
    paths = []
    for number, mask in enumerate(cell.view.masks if cell.outlined else ()):
        loops = (" ".join(f"{x:.1f},{y:.1f}" for y, x in loop) for loop in outlines(mask))
        if path := "".join(f"M{loop}Z" for loop in loops):
            paths.append(f'<path class="{outline_style(number)}" d="{path}"/>')
    return "".join(paths)


def outline_style(number: int) -> str:
    """Class in the style sheet of the outlines of the label of this number."""
    return "truth" if number == 0 else f"predicted arm-{(number - 1) % 4}"


def _short(text: str, wide: float) -> str:
    most = max(8, int(wide / 7))
    return text if len(text) <= most else text[: most - 1] + "…"


def contrasts(table: Sequence[Compared]) -> Html:
    """The telling quantities of every sequence: dots are simulated people, the bar is the range of the real ones."""
    chosen = [row for row in table if _telling(row.quantity)]
    quantities = sorted(dict.fromkeys(row.quantity for row in chosen), key=_rank)
    sequences = list(dict.fromkeys(row.sequence for row in chosen))
    columns = min(4, max(1, len(quantities)))
    lines = -(-len(quantities) // columns)
    with drawing(0.5 + lines * (0.75 + 0.24 * len(sequences))) as figure:
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes in grid.flat[len(quantities) :]:
            axes.set_visible(False)
        for number, quantity in enumerate(quantities):
            axes = grid.flat[number]
            for row in (r for r in chosen if r.quantity == quantity):
                level = sequences.index(row.sequence)
                if row.real:
                    axes.plot(
                        [min(row.real), max(row.real)],
                        [level] * 2,
                        color=ARMS[1],
                        lw=7,
                        alpha=0.35,
                        solid_capstyle="butt",
                    )
                    axes.plot(row.real, [level] * len(row.real), "|", color=ARMS[1], ms=11, mew=2)
                axes.plot(row.simulated, [level] * len(row.simulated), "o", color=ARMS[0], ms=4, mfc="none", mew=1.2)
            axes.set(title=quantity, ylim=(len(sequences) - 0.5, -0.5))
            axes.margins(x=0.12)
            axes.set_yticks(range(len(sequences)), sequences if number % columns == 0 else [""] * len(sequences))
            axes.tick_params(length=0)
        keys = [
            Line2D([], [], color=ARMS[0], marker="o", mfc="none", ls="", label="one simulated person"),
            Line2D([], [], color=ARMS[1], lw=6, alpha=0.5, label="range of the real people"),
        ]
        figure.legend(
            handles=keys if any(row.real for row in chosen) else keys[:1],
            loc="outside upper left",
            ncols=2,
            borderpad=0,
        )
        return svg(
            figure,
            "Contrast, noise and sharpness of simulated and real people, by sequence; the table below has the numbers.",
        )


_ORDER = ("ring contrast", "lesion / WM", "GM / WM", "CSF / WM", "noise", "grain", "edge", "field")


def _telling(quantity: str) -> bool:
    return not any(part in quantity for part in (" %", "sd", "ring /", "/ GM", "core", "field, 5")) or quantity in (
        "noise, %",
        "field, 95 %",
    )


def _rank(quantity: str) -> float:
    return next((float(place) for place, name in enumerate(_ORDER) if quantity.startswith(name)), 1.5)


def tissue_histograms(
    simulated: Sequence[Histograms], real: Sequence[Histograms], far: Sequence[HistogramDistance]
) -> Html:
    """A row a sequence, a column a tissue; one line a person."""
    found = {(d.sequence, d.tissue): d for d in far}
    people = [*simulated, *real]
    sequences = [s for s in dict.fromkeys(s for p in people for s in p) if any(s in p for p in simulated)]
    tissues = list(dict.fromkeys(t for p in people for s in p.values() for t in s))
    centres = (HISTOGRAM_EDGES[1:] + HISTOGRAM_EDGES[:-1]) / 2
    with drawing(0.4 + 1.5 * len(sequences)) as figure:
        grid = figure.subplots(len(sequences), len(tissues), squeeze=False)
        for line, sequence in enumerate(sequences):
            for column, tissue in enumerate(tissues):
                axes = grid[line, column]
                drawn = []
                for group, style in ((simulated, _SIMULATED), (real, _REAL)):
                    for person in group:
                        shares = person.get(sequence, {}).get(tissue)
                        if shares is None:
                            continue
                        drawn.append(shares)
                        strong = group is real
                        axes.plot(
                            centres, _smoothed(shares), lw=1.6 if strong else 0.9, alpha=1 if strong else 0.6, **style
                        )
                if drawn:
                    axes.set_xlim(*_where(np.mean(drawn, axis=0)))
                if distance := found.get((sequence, tissue)):
                    words = f"{distance.simulated:.2f}" + (
                        f" ({distance.real:.2f})" if distance.real is not None else ""
                    )
                    _beside_title(axes, words)
                axes.set(title=f"{sequence}, {tissue}", ylim=(0, None), yticks=[])
                axes.spines["left"].set_visible(False)
        figure.supxlabel("intensity, median of white matter = 1", color=SOFT, fontsize=9)
        _legend(figure, bool(real))
        return svg(figure, "Histograms of the intensities of each tissue in each sequence, one line for each person.")


def _smoothed(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.convolve(shares, (0.25, 0.5, 0.25), mode="same")


def _where(shares: NDArray[np.float64]) -> tuple[float, float]:
    """Between the 0.5 and 99.5 % points of a histogram, with a margin."""
    total = np.cumsum(shares)
    low, high = np.searchsorted(total, (0.005 * total[-1], 0.995 * total[-1]))
    margin = 0.04 + 0.05 * (HISTOGRAM_EDGES[high] - HISTOGRAM_EDGES[low])
    return max(0.0, float(HISTOGRAM_EDGES[low] - margin)), float(HISTOGRAM_EDGES[min(high + 1, len(total))] + margin)


def distributions(simulated: Sequence[LesionFacts], real: Sequence[LesionFacts], far: Sequence[Distance]) -> Html:
    """Cumulative distributions of count, load, size and place of the lesions."""
    values = {
        name: [np.concatenate([[], *(of(p) for p in group)]) for group in (simulated, real)]
        for name, of in DISTRIBUTIONS.items()
    }
    names = [name for name, (ours, _) in values.items() if ours.size]
    found = {distance.quantity: distance for distance in far}
    with drawing(0.4 + 1.7 * -(-len(names) // 4)) as figure:
        grid = figure.subplots(-(-len(names) // 4), 4, squeeze=False)
        for axes in grid.flat[len(names) :]:
            axes.set_visible(False)
        for axes, name in zip(grid.flat, names, strict=False):
            for sample, style in zip(values[name], (_SIMULATED, _REAL), strict=True):
                if sample.size:
                    ordered = np.sort(sample)
                    axes.step(ordered, np.arange(1, ordered.size + 1) / ordered.size, where="post", lw=1.7, **style)
            if name in _LOGARITHMIC:
                _logarithmic(axes)
            axes.set(title=name, ylim=(0, 1.03))
            axes.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
            axes.grid(axis="y")
            if name in found:
                words = f"{found[name].simulated:.2f} ({found[name].real:.2f})"
                axes.text(0.99, 0.06, words, transform=axes.transAxes, ha="right", color=SOFT, fontsize=8.5)
        _legend(figure, bool(real))
        return svg(
            figure,
            "Cumulative distributions of the lesions of simulated and real people; the table below has the distances.",
        )


def _beside_title(axes: Axes, words: str) -> None:
    axes.set_title(words, loc="right", color=SOFT, fontsize=8.5, fontweight="normal")


def _logarithmic(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=8))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, real: bool) -> None:
    keys = [Line2D([], [], lw=2, label="simulated", **_SIMULATED), Line2D([], [], lw=2, label="real", **_REAL)]
    figure.legend(handles=keys if real else keys[:1], loc="outside upper left", ncols=2, borderpad=0)
