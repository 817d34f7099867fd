"""Methods and networks found by folder: the name is the path, no list is edited.

A module in `pretext/`, `semi/` or `tasks/` that sets `METHOD = <class>` is a method, one in `networks/` that sets
`NETWORK = <class>` is a network; each has a `Settings` class beside it. Looking (`entries`) reads the source as text and
imports nothing, so that a listing answers at once; `load` imports the one module.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Literal

from oligovox.errors import SettingsError, nearest

Marker = Literal["METHOD", "NETWORK"]
_ROOMS: dict[Marker, tuple[str, ...]] = {"METHOD": ("pretext", "semi", "tasks"), "NETWORK": ("networks",)}
_HOME = Path(__file__).parent


@dataclass(frozen=True)
class Entry:
    """One method or network.

    Attributes:
        name: file stem, what a recipe says.
        room: folder it lives in.
        summary: first line of the module's docstring.
        source: what follows 'Source:' in it, or ''.
        deviates: what follows 'Deviates:' in it, or ''.
    """

    name: str
    room: str
    summary: str
    source: str
    deviates: str


def entries(marker: Marker) -> dict[str, Entry]:
    """All methods or networks by name, in alphabetical order."""
    found = {}
    for room in _ROOMS[marker]:
        for file in sorted((_HOME / room).glob("[!_]*.py")):
            names, doc = _read(file, file.stat().st_mtime_ns)
            if marker in names:
                found[file.stem] = Entry(
                    file.stem, room, doc.split("\n", 1)[0], _paragraph(doc, "Source:"), _paragraph(doc, "Deviates:")
                )
    return dict(sorted(found.items()))


def load(marker: Marker, name: str) -> ModuleType:
    """Import the module of a method or network; it has `Settings` and the class under the marker's name.

    Raises:
        SettingsError: no such name; says the nearest one.
    """
    known = entries(marker)
    if name not in known:
        raise SettingsError(f"unknown {marker.lower()} '{name}'; {nearest(name, known)}")
    return import_module(f"oligovox.{known[name].room}.{name}")


@cache  # a study asks for every one of its arms
def _read(file: Path, changed: int) -> tuple[frozenset[str], str]:
    """The names that a module assigns at its top, and its docstring; of the file as it was when it was last changed."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assigned = (target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets)
    names = frozenset(target.id for target in assigned if isinstance(target, ast.Name))
    return names, ast.get_docstring(tree) or ""


def _paragraph(doc: str, head: str) -> str:
    lines = iter(doc.splitlines())
    for line in lines:
        if line.startswith(head):
            taken = [line.removeprefix(head)]
            for following in lines:
                if not following.startswith(" "):
                    break
                taken.append(following)
            return " ".join(part.strip() for part in taken).strip()
    return ""
