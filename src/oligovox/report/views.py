"""Picture of what a method shows its network and asks of it: a row for each volume among its views, a line for everything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from oligovox.files import atomic_file

_INCH = 1.7  # side of a panel
_TEXT = 1.35  # width of the column with names, in panels
_WINDOW = (1.0, 99.5)  # percentiles shown as black and white


@dataclass(frozen=True)
class Row:
    """One field of the views, of one sample.

    Attributes:
        name: of the field.
        meaning: what its docstring says.
        slices: one picture a channel, (x, y) with x to the right and y upwards; empty where the field is no volume.
        channels: name of each slice.
        text: the value of a field that is no volume.
    """

    name: str
    meaning: str
    slices: tuple[NDArray[Any], ...] = ()
    channels: tuple[str, ...] = ()
    text: str = ""


def write_views(title: str, rows: Sequence[Row], path: Path) -> None:
    """Write the picture as PNG.

    Args:
        title: above it.
        rows: in the order of the method's file.
        path: file to write.

    Raises:
        OSError: it cannot be written.
    """
    drawn, said = [row for row in rows if row.slices], [row for row in rows if not row.slices]
    columns = max((len(row.slices) for row in drawn), default=1)
    text = "\n".join(fill(f"{row.name} = {row.text}: {row.meaning}", 40 + 22 * columns) for row in said)
    below = 0.3 + 0.17 * (text.count("\n") + 1)
    title = fill(title, 28 + 17 * columns)
    above = 0.25 + 0.17 * (title.count("\n") + 1)
    size = (_INCH * (columns + _TEXT), _INCH * len(drawn) + below + above)
    figure = Figure(figsize=size, dpi=110, facecolor="white")
    figure.text(0.02, 1 - 0.12 / size[1], title, va="top", fontsize=10, weight="bold", parse_math=False)
    figure.text(0.02, 0.1 / size[1], text, va="bottom", fontsize=7, family="monospace", parse_math=False)
    for number, row in enumerate(drawn):
        bottom = (below + _INCH * (len(drawn) - 1 - number)) / size[1]
        figure.text(
            0.02, bottom + 0.85 * _INCH / size[1], row.name, fontsize=9, weight="bold", va="top", parse_math=False
        )
        meaning = fill(row.meaning, 30)
        figure.text(0.02, bottom + 0.72 * _INCH / size[1], meaning, fontsize=6.5, va="top", parse_math=False)
        for place, (values, channel) in enumerate(zip(row.slices, row.channels, strict=True)):
            left = (_TEXT + place) / (columns + _TEXT)
            axes = figure.add_axes((left, bottom, 0.94 / (columns + _TEXT), 0.88 * _INCH / size[1]))
            _panel(axes, values, channel)
    with atomic_file(path) as part:
        figure.savefig(part, format="png")


def _panel(axes: Any, values: NDArray[Any], channel: str) -> None:
    """Grey for intensities; black and white for masks; colours for classes."""
    picture = np.asarray(values).T
    if picture.dtype == bool:
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, origin="lower", interpolation="nearest")
    elif np.issubdtype(picture.dtype, np.integer):
        axes.imshow(picture, cmap="viridis", vmin=min(0, picture.min()), origin="lower", interpolation="nearest")
    else:
        low, high = np.percentile(picture, _WINDOW)
        axes.imshow(picture, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin="lower", interpolation="nearest")
    axes.set_title(channel, fontsize=7, pad=2, parse_math=False)
    axes.set_axis_off()
