"""Every command and file that a page offers for copying, in the order of the page, in one folder per page with a BIDS folder `exams`.

A snippet that is not run says why in the line above it (`<!-- not run: reason -->`), and its `oligovox` lines must still parse.
One that is meant to fail says with which exit code (`<!-- fails: 2 -->`). A page that trains as another one does begins with `<!-- slow -->`: it is run by
`make bench` only.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from oligovox import cli
from oligovox.experiment.recipe import read_recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"(?:^ *<!-- (not run|fails): (.+?) -->\n)?^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
RUN_IN = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-W", "error::SyntaxWarning", "-c"]}


@dataclass(frozen=True)
class Snippet:
    """One fenced block."""

    mark: str
    note: str
    kind: str
    body: str


def snippets(page: Path) -> list[Snippet]:
    """The fenced blocks of a page; their indentation is taken off."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [Snippet(m, note, kind, re.sub(f"^{indent}", "", body, flags=re.M)) for m, note, indent, kind, body in found]


def marked(page: Path) -> object:
    slow = page.read_text(encoding="utf-8").startswith("<!-- slow -->\n")
    return pytest.param(page, id=page.name, marks=[pytest.mark.slow] if slow else [])


def runnable(page: Path) -> bool:
    return any(s.kind in (*RUN_IN, "yaml") and s.mark != "not run" for s in snippets(page))


@pytest.mark.parametrize("page", [marked(p) for p in PAGES if runnable(p)])
def test_snippets_run(page: Path, phantom: Path, warm: Path) -> None:
    home = phantom.rename(phantom.with_name("exams")).parent
    for snippet in snippets(page):
        if snippet.mark == "not run" or snippet.kind == "text":
            continue
        if snippet.kind == "yaml":
            write_recipe(snippet.body, home)
        elif all(line.startswith("make ") for line in snippet.body.splitlines()):
            for line in snippet.body.splitlines():
                run(["make", "-n", shlex.split(line, comments=True)[1]], ROOT, 0, warm)
        else:
            expected = int(snippet.note) if snippet.mark == "fails" else 0
            run([*RUN_IN[snippet.kind], snippet.body], home, expected, warm)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_is_not_run_says_why_and_still_parses(page: Path) -> None:
    for snippet in snippets(page):
        assert snippet.kind in (*RUN_IN, "yaml", "text"), f"{page.name}: a fence is sh, python, yaml or text"
        if snippet.mark == "not run":
            assert len(snippet.note.split()) >= 3, f"{page.name}: give a reason, not '{snippet.note}'"
        for line in re.findall(r"^(?:srun )?(oligovox [a-z]+.*)$", snippet.body, re.MULTILINE):
            if snippet.mark == "not run" or snippet.kind == "text":
                parse(re.split(r"   +", line)[0])


def write_recipe(body: str, home: Path) -> None:
    """A recipe names its file in its first line."""
    name = re.match(r"# (\S+\.yaml)\n", body)
    assert name, f"the first line of a recipe names its file, found {body.splitlines()[0]!r}"
    (home / name[1]).write_text(body, encoding="utf-8")
    assert read_recipe(home / name[1]).name == yaml.safe_load(body)["name"]


def parse(line: str) -> None:
    """Raises where the command line would refuse a command, an option or a value; nothing is executed."""
    verb, *arguments = shlex.split(line.replace("[", "").replace("]", ""), comments=True)[1:]
    group: Any = typer.main.get_command(cli.app)
    group.commands[verb].make_context(verb, arguments)


def run(command: list[str], home: Path, expected: int, warm: Path) -> None:
    path = os.pathsep.join([str(warm), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == expected, f"{command[-1]}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
