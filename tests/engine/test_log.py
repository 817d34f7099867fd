from __future__ import annotations

import json
import re

import pytest

from oligovox.engine import log
from oligovox.engine.log import ProgressLine, RunLog, counting_bar, read_log, say


def row(step: int, **more: object) -> dict[str, object]:
    return {"step": step, "total": 0.5, "terms": {"dice": 0.5}, "seconds": 1.0, "waited": 0.0, **more}


def test_rows_past_the_resumed_step_and_a_torn_line_are_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    with RunLog(path, 0, 9, progress=False, tensorboard=False) as first:
        for step in range(5):
            first.write(row(step))
    path.write_text(path.read_text() + '{"step": 5, "tot')
    assert [r["step"] for r in read_log(path)] == [0, 1, 2, 3, 4]
    with RunLog(path, 3, 9, progress=False, tensorboard=False) as second:
        second.write(row(3))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]


def test_what_is_not_finite_is_null_so_that_every_line_is_json(tmp_path):
    with RunLog(tmp_path / "log.jsonl", 0, 9, progress=False, tensorboard=False) as run:
        run.write(row(0, notes={"temperature": float("nan")}))
    assert read_log(tmp_path / "log.jsonl")[0]["notes"] == {"temperature": None}


def test_only_the_main_process_writes(tmp_path, monkeypatch, capsys):
    with RunLog(tmp_path / "log.jsonl", 0, 9, active=False) as run:
        run.write(row(0))
    monkeypatch.setenv("RANK", "1")
    say("hello")
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == ""


def test_tensorboard_gets_every_number_where_it_is_installed(tmp_path, monkeypatch):
    written = []

    class Writer:
        def add_scalar(self, *scalar: object) -> None:
            written.append(scalar)

        def close(self) -> None:
            written.append("closed")

    monkeypatch.setattr(log, "_tensorboard", lambda folder, start: Writer())
    with RunLog(tmp_path / "log.jsonl", 0, 9, progress=False) as run:
        run.write(row(2, validation={"dice": 0.7}))
    assert {("terms/dice", 0.5, 2), ("validation/dice", 0.7, 2), ("total", 0.5, 2)} < set(written)
    assert written[-1] == "closed"


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    line = ProgressLine("training", start=100)
    for done in range(101, 201):
        now[0] += 1.0
        line.update(done, 200, "loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training 130/200, loss 0.5, 1:10 left"
    assert len(lines) == 4
    assert lines[-1] == "training 200/200, loss 0.5, 0:00 left"


def test_progress_is_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(log, "_console", log.Console(stderr=True, force_terminal=True, width=100))
    count = counting_bar("prepare")
    for done in range(3):
        count(done + 1, 3, f"sub-{done} [x]")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert "prepare" in shown
    assert "3/3" in shown
    assert "sub-2 [x]" in shown


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3725, "1:02:05")])
def test_time_left(seconds, text):
    assert log._clock(seconds) == text
