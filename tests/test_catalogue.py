"""Methods and networks are found by folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from oligovox import catalogue
from oligovox.errors import SettingsError

_METHOD = '''"""Learn by hiding.

Source: Somebody et al.,
    Some Journal 2020.
Deviates: smaller batches.

More.
"""

raise RuntimeError("listing must not import")
METHOD = object
'''


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for room, name, text in [
        ("pretext", "hiding", _METHOD),
        ("pretext", "_helper", _METHOD),
        ("tasks", "finding", '"""Find."""\nMETHOD = object\n'),
        ("networks", "net", "NETWORK = object\n"),
        ("networks", "blocks", '"""Not a network."""\n'),
    ]:
        (tmp_path / room).mkdir(exist_ok=True)
        (tmp_path / room / f"{name}.py").write_text(text)
    monkeypatch.setattr(catalogue, "_HOME", tmp_path)
    return tmp_path


def test_the_name_is_the_path_and_the_docstring_the_entry(home: Path) -> None:
    assert catalogue.entries("METHOD") == {
        "finding": catalogue.Entry("finding", "tasks", "Find.", "", ""),
        "hiding": catalogue.Entry(
            "hiding", "pretext", "Learn by hiding.", "Somebody et al., Some Journal 2020.", "smaller batches."
        ),
    }
    assert list(catalogue.entries("NETWORK")) == ["net"]


def test_an_unknown_name_says_the_nearest(home: Path) -> None:
    with pytest.raises(SettingsError, match="unknown method 'hidding'; did you mean 'hiding'"):
        catalogue.load("METHOD", "hidding")


def test_everything_listed_can_be_loaded() -> None:
    for marker in ("METHOD", "NETWORK"):
        for name, entry in catalogue.entries(marker).items():
            assert hasattr(catalogue.load(marker, name), marker)
            assert entry.summary
