"""Files land whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oligovox.errors import CohortError, OutputError
from oligovox.files import (
    atomic_file,
    atomic_folder,
    check_writable,
    hash_file,
    hash_json,
    inside,
    read_json,
    read_tsv,
    sweep,
    write_json,
    write_tsv,
)


class _Killed(BaseException):
    """Stands for Ctrl-C."""


def test_a_file_appears_at_the_end_only(tmp_path: Path) -> None:
    target = tmp_path / "new" / "scan.nii.gz"
    with atomic_file(target) as temporary:
        temporary.write_text("one")
        assert not target.exists()
        assert temporary.name.endswith(".nii.gz")
    assert target.read_text() == "one"


@pytest.mark.parametrize("error", [RuntimeError, _Killed])
def test_what_fails_leaves_the_older_one(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "file").write_text("older")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_text("older")

    def write() -> None:
        with atomic_folder(tmp_path / "folder") as folder, atomic_file(tmp_path / "file") as file:
            file.write_text("half")
            (folder / "x").write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "x").read_text() == "older"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_folder_replaces_the_older_one_whole(tmp_path: Path) -> None:
    for content in ("a", "b"):
        with atomic_folder(tmp_path / "case") as temporary:
            (temporary / content).write_text(content)
    assert os.listdir(tmp_path) == ["case"]
    assert os.listdir(tmp_path / "case") == ["b"]


def test_sweep_removes_what_dead_processes_left(tmp_path: Path) -> None:
    dead = 2**22 + 1  # above the largest process number of Linux
    for pid in (dead, os.getpid()):
        (tmp_path / f".tmp-{pid}-case").mkdir()
        (tmp_path / f".tmp-{pid}-table.tsv").touch()
    (tmp_path / "case").mkdir()
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [f".tmp-{os.getpid()}-case", f".tmp-{os.getpid()}-table.tsv", "case"]


def test_a_place_that_cannot_be_written_is_said_before_work_starts(tmp_path: Path) -> None:
    check_writable(tmp_path / "not" / "yet" / "there")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file, expected a folder"):
        check_writable(tmp_path / "file" / "run")
    with pytest.raises(OutputError, match=r"scores\.json: cannot be written"):
        write_json(tmp_path / "file" / "scores.json", {})


def test_json_takes_numpy_and_paths_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": np.float32(0.5), "b": np.arange(2), "c": Path("d")})
    assert read_json(tmp_path / "x.json") == {"a": 0.5, "b": [0, 1], "c": "d"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "y.json", {"dice": float("nan")})
    assert os.listdir(tmp_path) == ["x.json"]
    (tmp_path / "x.json").write_bytes(b"\xff{")
    with pytest.raises(CohortError, match="cannot be read as JSON"):
        read_json(tmp_path / "x.json")


@given(st.lists(st.fixed_dictionaries({"a": st.text(), "b b": st.text()}), min_size=1))
def test_tables_bring_every_text_back(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> None:
    rows = [{k: v.replace("\r", "").replace("\0", "") for k, v in row.items()} for row in rows]
    path = tmp_path_factory.mktemp("tsv") / "t.tsv"
    write_tsv(path, rows, ["a", "b b"])
    assert read_tsv(path) == [{k: "" if v == "n/a" else v for k, v in row.items()} for row in rows]


def test_tables_of_others(tmp_path: Path) -> None:
    table = tmp_path / "participants.tsv"
    table.write_bytes("\ufeffparticipant_id\tage\r\nsub-01\tn/a\r\n\r\n".encode())
    assert read_tsv(table) == [{"participant_id": "sub-01", "age": ""}]
    table.write_text("a\tb\n\n1\n")
    with pytest.raises(CohortError, match="line 3 has 1 columns, expected 2"):
        read_tsv(table)
    table.write_text("")
    with pytest.raises(CohortError, match="empty"):
        read_tsv(table)
    table.write_bytes(b"a\xff\n")
    with pytest.raises(CohortError, match="cannot be read as a tab-separated table"):
        read_tsv(table)


def test_hashes() -> None:
    assert hash_json({"a": 1, "b": [2.5]}) == hash_json({"b": (2.5,), "a": 1}) != hash_json({"a": 1, "b": [2.25]})


def test_hash_of_a_file_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")  # the worked value of FIPS 180-2
    assert hash_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x"])
def test_a_table_cannot_reach_outside(tmp_path: Path, path: str) -> None:
    with pytest.raises(CohortError, match="leaves the folder"):
        inside(tmp_path, path)
    assert inside(tmp_path, "a/../b") == tmp_path / "a/../b"


def test_a_folder_that_may_not_even_be_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refused)
    with pytest.raises(OutputError, match=r"Permission denied.*another output folder"):
        check_writable(tmp_path / "locked" / "out")


def test_folder_moved_aside_by_a_killed_process_comes_back(tmp_path: Path) -> None:
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    aside = tmp_path / f".tmp-{gone.stdout.strip()}-old-model"
    aside.mkdir()
    (aside / "weights").write_text("mine")
    sweep(tmp_path)
    assert (tmp_path / "model" / "weights").read_text() == "mine"
    aside.mkdir()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
