"""The first page of a run from a folder: its stages in order, one line and one link each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from oligovox.files import atomic_file
from oligovox.report.page import document
from oligovox.report.text import escape


@dataclass(frozen=True)
class Stop:
    """A stage.

    Attributes:
        name: heading.
        said: what came out, one line.
        link: page, file or folder, relative to the first page.
    """

    name: str
    said: str
    link: str


def write_front(path: Path, *, title: str, stops: Sequence[Stop]) -> Path:
    """Write the page.

    Raises:
        OutputError: it cannot be written.
    """
    rows = "".join(
        f'<li><a href="{escape(quote(stop.link))}">{escape(stop.name)}</a>: {escape(stop.said)}</li>' for stop in stops
    )
    parts = [f"<h1>{escape(title)}</h1>", f"<ol>{rows}</ol>"]
    with atomic_file(path) as temporary:
        temporary.write_text(document(title, parts), encoding="utf-8")
    return path
