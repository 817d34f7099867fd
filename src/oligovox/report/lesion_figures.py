"""Pictures of classified lesions: QSM beside FLAIR, what the answer rests on, and the curves of all of them.

Axes: patches are (x, y, z) = RAS; pictures follow the radiological convention, as in `overlay.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from oligovox.report.figures import ARMS, RULE, SOFT, drawing, svg
from oligovox.report.overlay import outlines
from oligovox.report.text import Html, number, visible

_PANEL = 1.25  # inch, side of a picture
_CARDS = 3  # lesions beside each other
_MARGIN = 3  # voxels around what is seen
_WINDOW = (0.25, 0.75)  # of the QSM's scale, black to white: -150 to 150 ppb where it runs from -300 to 300
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
        saliency: (x, y) fall of the logit where this is hidden in the QSM; None: not computed.
    """

    name: str
    words: str
    qsm: NDArray[np.float32]
    flair: NDArray[np.float32]
    seen: NDArray[np.uint8]
    saliency: NDArray[np.float32] | None = None


def lesions_png(views: Sequence[LesionView]) -> bytes:
    """All lesions as one PNG: QSM, FLAIR and, where it was computed, what the answer rests on, over the QSM."""
    rows = -(-len(views) // _CARDS)
    wide, high = _CARDS * (3 * _PANEL + 0.3), rows * (_PANEL + 0.36)
    figure = Figure(figsize=(wide, high), dpi=110, facecolor="white")
    for place, view in enumerate(views):
        row, column = divmod(place, _CARDS)
        left, top = column * (3 * _PANEL + 0.3) + 0.1, high - row * (_PANEL + 0.36)
        figure.text(left / wide, (top - 0.05) / high, visible(view.words), fontsize=7, va="top", parse_math=False)
        for panel, (title, values) in enumerate((("QSM", view.qsm), ("FLAIR", view.flair), ("", view.saliency))):
            if values is None:
                continue
            box = ((left + panel * _PANEL) / wide, (top - 0.25 - _PANEL) / high, 0.97 * _PANEL / wide, _PANEL / high)
            _panel(figure.add_axes(box), view, title, values)
    picture = BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


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


def _panel(axes: Axes, view: LesionView, title: str, values: NDArray[np.float32]) -> None:
    box = tuple(_extent(view.seen > 0, axis) for axis in range(2))
    flair = title == "FLAIR"
    grey = _as_seen(
        view.flair[box] if flair else np.clip((view.qsm[box] - _WINDOW[0]) / (_WINDOW[1] - _WINDOW[0]), 0, 1)
    )
    grey = grey * _as_seen(view.seen[box] > 0)
    colours = np.repeat(grey[..., None], 3, axis=2)
    if not title:
        strength = _as_seen(values[box])
        strength = np.clip(strength / max(float(np.abs(strength).max()), 1e-6), -1, 1)[..., None]
        colours = 0.55 * colours * (1 - np.abs(strength)) + np.abs(strength) * np.where(strength > 0, _FOR, _AGAINST)
    axes.imshow(colours.clip(0, 1), interpolation="nearest", aspect="equal")
    for loop in outlines(_as_seen((view.seen == 2)[box])):
        rows, columns = np.array([*loop, loop[0]]).T - 0.5
        axes.plot(columns, rows, color=_LESION, lw=0.8)
    axes.text(0.03, 0.96, title or "rests on", transform=axes.transAxes, color="white", fontsize=6.5, va="top")
    axes.set_axis_off()


def _as_seen(plane: NDArray[Any]) -> NDArray[Any]:
    """(x, y) as it is looked at: (row from the top, column from the left)."""
    return plane[::-1, ::-1].T


def _extent(mask: NDArray[np.bool_], axis: int) -> slice:
    there = np.flatnonzero(mask.any(axis=1 - axis))
    return slice(max(int(there[0]) - _MARGIN, 0), int(there[-1]) + 1 + _MARGIN) if there.size else slice(None)
