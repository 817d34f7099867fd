"""Plots as inline SVG: scores by subject, learning curves, lesions found by size.

Drawn on figure objects (no global state), the same bytes for the same numbers. Text and colours are left to the page's
style sheet, so that a plot follows its light, dark and print colours.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter

from oligovox.report.content import METRICS, Arm, Comparison, Report, SizeBin, Stage
from oligovox.report.text import Html, escape, interval, number, visible

INK, SOFT, RULE = "#010101", "#020202", "#030303"
ARMS = ("#040400", "#040401", "#040402", "#040403")
MOST_ARMS = len(ARMS)
"""A figure shows at most so many arms; there is a colour for each."""
_MARKERS = ("o", "s", "^", "D")
_THEME = {INK: "--ink", SOFT: "--soft", RULE: "--rule"} | {c: f"--arm-{i}" for i, c in enumerate(ARMS)}
"""Stand-in colours, replaced by variables of the style sheet in the finished SVG."""

_STYLE: dict[Any, Any] = {
    "axes.edgecolor": RULE,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "axes.axisbelow": True,
    "axes.labelcolor": SOFT,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.dpi": 72,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": RULE,
    "xtick.labelcolor": SOFT,
    "ytick.color": RULE,
    "ytick.labelcolor": SOFT,
}
_WIDTH = 9.0  # inches at 72 dpi
_POINTS = 400  # a curve is thinned to about this many points
_MOST_ROWS = 40  # with more subjects their names are left out


def scores_by_case(report: Report) -> Html:
    """Dice of every test case in every arm; where two arms are compared, their differences with mean and interval beside."""
    arms = report.ordered[:MOST_ARMS]
    scores = {arm.name: {row.case: row.dice for row in arm.cases if row.dice is not None} for arm in arms}
    cases = sorted({case for by_case in scores.values() for case in by_case}, key=lambda c: _rank(c, arms, scores))
    comparison = report.compared("dice")
    with drawing(0.9 + max(4, len(cases) + 2) * min(0.3, 9 / max(1, len(cases)))) as figure:
        left, right = (
            figure.subplots(1, 2, width_ratios=(1.35, 1), sharey=True) if comparison else (figure.subplots(), None)
        )
        for place, arm in reversed(list(enumerate(arms))):
            rows = [row for row, case in enumerate(cases) if case in scores[arm.name]]
            values = [scores[arm.name][cases[row]] for row in rows]
            face = ARMS[place] if place == 0 else "none"
            left.plot(
                values, rows, _MARKERS[place], color=ARMS[place], mfc=face, ms=6.5, mew=1.6, label=visible(arm.name)
            )
            _mean(left, arm.means.get("dice"), len(cases) + 0.6 + 0.35 * place, place)
        for row, case in enumerate(cases if len(arms) > 1 else ()):
            values = [scores[arm.name][case] for arm in arms if case in scores[arm.name]]
            left.plot([min(values), max(values)], [row, row], color=RULE, lw=2, zorder=1)
        _rows(left, cases)
        left.set(title="Dice of each test case", xlim=(-0.02, 1.02), ylim=(len(cases) + 1.4, -0.7))
        if len(arms) > 1:
            figure.legend(*_in_order(left), loc="outside upper left", ncols=4, handletextpad=0.2, borderpad=0)
        if right is not None and comparison is not None:
            _differences(right, cases, scores, comparison)
        return svg(figure, _scores_in_words(report))


def learning_curves(stages: Sequence[Stage], arms: Sequence[str] = ()) -> Html:
    """Loss (raw and smoothed) of stages of one phase, and beside it the validation Dice where there is one.

    Args:
        stages: curves drawn together.
        arms: names of the arms in the order of their colours.
    """
    validated = any(stage.validation for stage in stages)
    with drawing(2.7 + 0.22 * (len(stages) > 1)) as figure:
        left, right = figure.subplots(1, 2) if validated else (figure.subplots(), None)
        for number, stage in enumerate(stages):
            place = (arms.index(stage.arm) if stage.arm in arms else number) % MOST_ARMS
            steps, losses = _curve(stage.losses)
            left.plot(*_thin(steps, losses), color=ARMS[place], lw=0.7, alpha=0.3)
            left.plot(*_thin(steps, _smooth(losses)), color=ARMS[place], lw=1.8, label=visible(stage.name))
            if right is not None:
                style = {"ls": "--" if place else "-", "marker": _MARKERS[place], "mfc": "none" if place else None}
                right.plot(*_curve(stage.validation), color=ARMS[place], ms=5, lw=1.4, **style)
        drawn = np.concatenate([_curve(stage.losses)[1] for stage in stages])
        if drawn.size and drawn.min() > 0 and drawn.max() / drawn.min() > 30:
            left.set_yscale("log")
            left.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            left.yaxis.set_minor_formatter(NullFormatter())
        left.set(title="Training loss", xlabel="step")
        left.grid(axis="y")
        if right is not None:
            right.set(title="Dice on validation subjects", xlabel="step", ylim=(-0.02, 1.02))
            right.grid(axis="y")
        if len(stages) > 1:
            figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=3, borderpad=0)
        return svg(figure, " ".join(_curve_in_words(stage) for stage in stages))


def lesions_found(bins: Sequence[SizeBin], arms: Sequence[Arm]) -> Html:
    """Share of lesions that each arm found, by lesion size; empty bins are named but have no bar."""
    arms = arms[:MOST_ARMS]
    step = 0.8 / max(1, len(arms))
    with drawing(0.8 + len(bins) * (0.26 + 0.2 * len(arms))) as figure:
        axes = figure.subplots()
        for row, size in enumerate(bins):
            for place, arm in enumerate(arms):
                height = row + (place - (len(arms) - 1) / 2) * step
                share = size.found.get(arm.name, 0) / size.count if size.count else 0.0
                face = ARMS[place] if place == 0 else "none"
                axes.barh(height, share, 0.7 * step, color=face, edgecolor=ARMS[place], lw=1.4)
                words = f"{size.found.get(arm.name, 0)} of {size.count}" if size.count else "no lesion of this size"
                if size.count or place == 0:
                    axes.text(share + 0.012, height, words, va="center", color=SOFT)
        axes.set_yticks(range(len(bins)), [bin_title(size) for size in bins])
        axes.set_xticks(np.linspace(0, 1, 6), [f"{percent} %" for percent in range(0, 101, 20)])
        axes.tick_params(length=0)
        axes.set(title="Share of lesions found", xlim=(0, 1.12), ylim=(len(bins) - 0.5, -0.5))
        if len(arms) > 1:
            keys = [
                Patch(fc="none" if i else ARMS[i], ec=ARMS[i], label=visible(arm.name)) for i, arm in enumerate(arms)
            ]
            figure.legend(handles=keys, loc="outside upper left", ncols=4, borderpad=0)
        return svg(figure, _bins_in_words(bins, arms))


def bin_title(size: SizeBin) -> str:
    """'10 – 100 mm³'."""
    low = f"{size.low_mm3:.0f}"
    if size.high_mm3 is None:
        return f"≥ {low} mm³"
    return f"{low} – {size.high_mm3:.0f} mm³" if size.low_mm3 else f"< {size.high_mm3:.0f} mm³"


@contextmanager
def drawing(height: float) -> Iterator[Figure]:
    """A figure of `height` inches in the style of the page."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a name in letters that the measuring font lacks
        yield Figure(figsize=(_WIDTH, height), layout="constrained")


def svg(figure: Figure, alt: str) -> Html:
    """The figure as an inline SVG element: no XML head, no metadata, no address, no fixed colour or font."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": alt}):  # names inside the SVG are unique on a page, and always the same
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    body = out.getvalue()
    body = re.sub(r"<metadata>.*?</metadata>", "", body[body.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r' id="[a-z0-9.]+_\d+"', "", body)
    body = re.sub(r'^<svg [^>]*?viewBox="([^"]+)"[^>]*>', _head(alt), body)
    for colour, variable in _THEME.items():
        body = body.replace(colour, f"var({variable})")
    return Html(body.strip())


def _head(alt: str) -> str:
    label = escape(" ".join(alt.split())).replace("\\", "\\\\")
    return rf'<svg class="plot" viewBox="\1" role="img" aria-label="{label}">'


def _rank(case: str, arms: Sequence[Arm], scores: dict[str, dict[str, float]]) -> tuple[float, str]:
    """Best case of the first arm on top."""
    return (-scores[arms[0].name].get(case, -1.0), case)


def _rows(axes: Axes, cases: Sequence[str]) -> None:
    names = [_short(case) for case in cases] if len(cases) <= _MOST_ROWS else [""] * len(cases)
    axes.set_yticks([*range(len(cases)), len(cases) + 0.75], [*names, "mean"])
    axes.get_yticklabels()[-1].set(weight="bold", color=INK)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    axes.axhline(len(cases) - 0.15, color=RULE, lw=1)


def _mean(axes: Axes, mean: object, row: float, place: int) -> None:
    middle, low, high = (getattr(mean, name, None) for name in ("mean", "low", "high"))
    if middle is None:
        return
    if low is not None and high is not None:
        axes.plot([low, high], [row, row], color=ARMS[place], lw=2.4, solid_capstyle="butt")
    axes.plot(middle, row, "|", color=ARMS[place], ms=11, mew=2.4)


def _differences(axes: Axes, cases: Sequence[str], scores: dict[str, dict[str, float]], comparison: Comparison) -> None:
    ours, theirs = scores[comparison.arm], scores[comparison.against]
    paired = [(row, ours[case] - theirs[case]) for row, case in enumerate(cases) if case in ours and case in theirs]
    for row, difference in paired:
        axes.plot([0, difference], [row, row], color=RULE, lw=2, zorder=1)
        axes.plot(difference, row, _MARKERS[0], color=ARMS[0], ms=6.5)
    _mean(axes, comparison, len(cases) + 0.75, 0)
    axes.axvline(0, color=SOFT, lw=1)
    reach = [abs(d) for _, d in paired] + [abs(v) for v in (comparison.low, comparison.high) if v is not None]
    widest = 1.25 * max([*reach, 0.02])
    numbers = interval(comparison.mean, comparison.low, comparison.high, METRICS["dice"].digits, sign=True)
    axes.set(title="Difference (right is better)", xlim=(-widest, widest), xlabel=f"mean {numbers}")
    axes.tick_params(length=0, labelleft=False)
    axes.spines["left"].set_visible(False)
    axes.axhline(len(cases) - 0.15, color=RULE, lw=1)


def _in_order(axes: Axes) -> tuple[list[Any], list[str]]:
    handles, labels = axes.get_legend_handles_labels()
    return handles[::-1], labels[::-1]


def _short(name: str, longest: int = 28) -> str:
    name = visible(name)
    return name if len(name) <= longest else f"{name[: longest - 10]}…{name[-9:]}"


def _curve(points: Sequence[tuple[int, float | None]]) -> tuple[np.ndarray, np.ndarray]:
    kept = [(step, value) for step, value in points if value is not None]
    return np.array([step for step, _ in kept]), np.array([value for _, value in kept])


def _thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    every = max(1, len(steps) // _POINTS)
    return steps[::every], values[::every]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over about a twentieth of the curve, centred, shorter at the ends."""
    half = len(values) // 40
    total = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    start, stop = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    return np.asarray((total[stop] - total[start]) / (stop - start))


def _scores_in_words(report: Report) -> str:
    means = [
        f"{arm.name}: mean {interval(m.mean, m.low, m.high, 3)}, {m.n} subjects."
        for arm in report.ordered
        if (m := arm.means.get("dice"))
    ]
    return " ".join(["Plot of the Dice score of every test case.", *means])


def _curve_in_words(stage: Stage) -> str:
    _, losses = _curve(stage.losses)
    words = f"Learning curve of {stage.name}: "
    smooth = _smooth(losses)
    words += f"loss from {number(smooth[0], 3)} to {number(smooth[-1], 3)}." if losses.size else "no loss was logged."
    _, dice = _curve(stage.validation)
    return f"{words} Validation Dice at the end {number(dice[-1], 3)}." if dice.size else words


def _bins_in_words(bins: Sequence[SizeBin], arms: Sequence[Arm]) -> str:
    words = [
        f"{bin_title(size)}: "
        + ", ".join(f"{arm.name} {size.found.get(arm.name, 0)} of {size.count}" for arm in arms)
        + "."
        for size in bins
    ]
    return " ".join(["Bars: lesions found by size.", *words])
