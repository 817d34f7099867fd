"""Pictures of classified lesions: QSM beside FLAIR, what the answer rests on, and the curves of all of them.

Axes: patches are (x, y, z) = RAS; pictures follow the radiological convention, as in `overlay.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from oligovox.report.figures import ARMS, RULE, SOFT, drawing, svg
from oligovox.report.overlay import outlines
from oligovox.report.text import Html, number, visible

_PANEL = 1.25  # inch, side of a picture
_ABREAST = {False: 3, True: 2}  # lesions beside each other: without and with what the answer rests on
_WIDE = 8 * _PANEL + 0.4  # of all lesions of a row
_MARGIN = 3  # voxels around what is seen
_WINDOW = (0.25, 0.75)  # of the QSM's scale, black to white: -150 to 150 ppb where it runs from -300 to 300
_NOTHING = 1e-6  # a smaller fall of the logit is rounding
_BESIDE = 1e-5  # so is a smaller share of the other sequence's fall
_NAMES = ("QSM", "FLAIR")
_LESION, _FOR, _AGAINST = "#f0e442", (0.85, 0.15, 0.1), (0.1, 0.35, 0.9)


@dataclass(frozen=True)
class LesionView:
    """One lesion as it is drawn, in the axial slice through the middle of its patch.

    Attributes:
        name: of the lesion.
        words: what is said of it, one short line.
        qsm: (x, y) in [0, 1].
        flair: (x, y) in [0, 1].
        seen: (x, y) uint8: 0 outside, 1 around the lesion, 2 the lesion.
        saliency: (2, x, y) fall of the logit where this is hidden in the QSM, and where it is in the FLAIR; None: not computed.
    """

    name: str
    words: str
    qsm: NDArray[np.float32]
    flair: NDArray[np.float32]
    seen: NDArray[np.uint8]
    saliency: NDArray[np.float32] | None = None


def lesions_png(views: Sequence[LesionView]) -> bytes:
    """All lesions as one PNG: QSM, FLAIR and, where it was computed, how far the answer falls where a cube of each is hidden."""
    rows = _rows(views)
    wide, high = _WIDE + 0.2, len(rows) * (_PANEL + 0.36)
    figure = Figure(figsize=(wide, high), dpi=110, facecolor="white")
    for line, row in enumerate(rows):
        for place, view in enumerate(row):
            left, top = 0.1 + place * _WIDE / _ABREAST[view.saliency is not None], high - line * (_PANEL + 0.36)
            figure.text(left / wide, (top - 0.05) / high, visible(view.words), fontsize=7, va="top", parse_math=False)
            for panel in range(2 if view.saliency is None else 4):
                box = (
                    (left + panel * _PANEL) / wide, (top - 0.25 - _PANEL) / high,
                    0.97 * _PANEL / wide, _PANEL / high,
                )  # fmt: skip
                _panel(figure.add_axes(box), view, panel % 2, rests_on=panel > 1)
    picture = BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _rows(views: Sequence[LesionView]) -> list[list[LesionView]]:
    """The lesions in their order, as many beside each other as there is room for."""
    rows: list[list[LesionView]] = []
    for explained, group in groupby(views, key=lambda view: view.saliency is not None):
        together, abreast = list(group), _ABREAST[explained]
        rows += [together[start : start + abreast] for start in range(0, len(together), abreast)]
    return rows


def curves_plot(content: Mapping[str, Any]) -> Html:
    """ROC, precision and recall, reliability and net benefit; None in the points is left out."""
    curves, calibration, share = content["curves"], content["calibration"], content["rim_plus"] / content["lesions"]
    lesion = content["scores"]["lesion"]
    with drawing(6.4) as figure:
        (roc, recall), (reliable, decision) = figure.subplots(2, 2)
        roc.plot([0, 1], [0, 1], color=RULE, lw=1.2)
        _line(roc, *curves["roc"])
        roc.set(title=f"ROC, area {_words(lesion['roc_auc'])}", xlabel="1 − specificity", ylabel="sensitivity")
        recall.axhline(share, color=RULE, lw=1.2)
        _line(recall, *curves["precision_recall"])
        recall.set(title=f"Precision and recall, area {_words(lesion['pr_auc'])}", xlabel="recall", ylabel="precision")
        reliable.plot([0, 1], [0, 1], color=RULE, lw=1.2)
        _line(reliable, calibration["probability"], calibration["rim_share"], marker="o", ms=5)
        for x, y, n in zip(calibration["probability"], calibration["rim_share"], calibration["lesions"], strict=True):
            if x is not None:
                reliable.annotate(str(n), (x, y), (4, -9), textcoords="offset points", color=SOFT, fontsize=7.5)
        reliable.set(
            title=f"Calibration, ECE {number(calibration['ece'], 3)}", xlabel="mean probability", ylabel="share of Rim+"
        )
        for axes in (roc, recall, reliable):
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
        _net_benefit(decision, curves["decision"], share)
        for axes in (roc, recall, reliable, decision):
            axes.grid(axis="both")
        words = f"Curves of {content['lesions']} lesions: area under ROC {_words(lesion['roc_auc'])}, under precision and recall {_words(lesion['pr_auc'])}."
        return svg(figure, words)


def _net_benefit(axes: Axes, curve: Mapping[str, Any], share: float) -> None:
    axes.axhline(0, color=SOFT, lw=1)
    _line(axes, curve["threshold"], curve["everyone"], color=SOFT, ls="--", lw=1.2, label="look at every lesion again")
    _line(axes, curve["threshold"], curve["classifier"], label="look at those above the threshold")
    axes.set(
        title="Decision curve", xlabel="threshold probability", ylabel="net benefit", xlim=(0, 1),
        ylim=(-0.25 * max(share, 0.02), 1.1 * max(share, 0.02)),
    )  # fmt: skip
    axes.legend(loc="upper right", fontsize=8)


def _line(axes: Axes, x: Sequence[float | None], y: Sequence[float | None], **style: Any) -> None:
    kept = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
    axes.plot([a for a, _ in kept], [b for _, b in kept], **{"color": ARMS[0], "lw": 1.8, **style})


def _words(estimate: Mapping[str, Any]) -> str:
    if estimate["low"] is None:
        return number(estimate["value"], 3)
    return f"{number(estimate['value'], 3)} [{number(estimate['low'], 3)}, {number(estimate['high'], 3)}]"


def _panel(axes: Axes, view: LesionView, sequence: int, *, rests_on: bool) -> None:
    """One picture: a sequence as it is, or dimmed below what the answer rests on in it."""
    box = tuple(_extent(view.seen > 0, axis) for axis in range(2))
    plane = (view.qsm, view.flair)[sequence][box]
    grey = plane if sequence else np.clip((plane - _WINDOW[0]) / (_WINDOW[1] - _WINDOW[0]), 0, 1)
    colours = np.repeat(_as_seen(grey * (view.seen[box] > 0))[..., None], 3, axis=2)
    words = _NAMES[sequence]
    if rests_on:
        assert view.saliency is not None
        strength, words = _strength(view.saliency, sequence)
        shown = _as_seen(strength[box])[..., None]
        colours = 0.55 * colours * (1 - np.abs(shown)) + np.abs(shown) * np.where(shown > 0, _FOR, _AGAINST)
    axes.imshow(colours.clip(0, 1), interpolation="nearest", aspect="equal")
    for loop in outlines(_as_seen((view.seen == 2)[box])):
        rows, columns = np.array([*loop, loop[0]]).T - 0.5
        axes.plot(columns, rows, color=_LESION, lw=0.8)
    axes.text(0.03, 0.96, words, transform=axes.transAxes, color="white", fontsize=6.5, va="top")
    axes.set_axis_off()


def _strength(saliency: NDArray[np.float32], sequence: int) -> tuple[NDArray[np.float32], str]:
    """(x, y) in [-1, 1] of one sequence, on the scale of both; and what is written on it."""
    largest = [float(np.abs(plane).max()) for plane in saliency]
    if largest[sequence] < max(_NOTHING, _BESIDE * max(largest)):
        return np.zeros_like(saliency[sequence]), f"{_NAMES[sequence]}: no influence"
    return saliency[sequence] / max(largest), f"{_NAMES[sequence]} hidden\nup to {largest[sequence]:.2g}"


def _as_seen(plane: NDArray[Any]) -> NDArray[Any]:
    """(x, y) as it is looked at: (row from the top, column from the left)."""
    return plane[::-1, ::-1].T


def _extent(mask: NDArray[np.bool_], axis: int) -> slice:
    there = np.flatnonzero(mask.any(axis=1 - axis))
    return slice(max(int(there[0]) - _MARGIN, 0), int(there[-1]) + 1 + _MARGIN) if there.size else slice(None)
