"""Jobs in other processes: failures keep their class and carry the case."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from oligovox.errors import ImageError, WorkerError
from oligovox.files import read_json
from oligovox.prepare.geometry import read_volume
from oligovox.prepare.workers import run_cases


def test_everything_is_done_once(tmp_path: Path) -> None:
    done: list[str] = []
    run_cases(os.mkdir, {name: tmp_path / name for name in "abcde"}, 2, done.append)
    assert sorted(done) == sorted(os.listdir(tmp_path)) == list("abcde")


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_job_returns_comes_back_in_the_order_of_the_cases(workers: int) -> None:
    found = run_cases(abs, {"c": -3, "a": -1, "b": 2}, workers, lambda name: None)
    assert list(found.items()) == [("c", 3), ("a", 1), ("b", 2)]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_input_error_keeps_its_class(tmp_path: Path, workers: int) -> None:
    with pytest.raises(ImageError, match=r"^sub-([ab]): .*\1\.nii: the file is missing") as caught:
        run_cases(read_volume, {f"sub-{name}": tmp_path / f"{name}.nii" for name in "ab"}, workers, print)
    assert caught.value.path in (tmp_path / "a.nii", tmp_path / "b.nii")


@pytest.mark.parametrize("workers", [1, 2])
def test_any_other_error_names_case_and_cause(workers: int) -> None:
    with pytest.raises(
        WorkerError, match=r"^sub-[xy]: AttributeError: 'int' object has no attribute 'read_text'"
    ) as caught:
        run_cases(read_json, {"sub-x": 3, "sub-y": 4}, workers, print)
    assert caught.value.case in ("sub-x", "sub-y")
    assert "Traceback" in caught.value.__notes__[0]


def test_a_killed_worker_names_the_cases_in_flight() -> None:
    with pytest.raises(WorkerError, match=r"sub-[abc].*probably out of memory; use fewer workers") as caught:
        run_cases(os._exit, {"sub-a": 9, "sub-b": 9, "sub-c": 9, "sub-d": 9}, 2, print)
    assert len(caught.value.case.split(", ")) <= 2
