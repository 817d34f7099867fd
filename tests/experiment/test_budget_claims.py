"""Claims: one at a time, given back, taken over from the dead and from nobody else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from oligovox.experiment import budget_claims
from oligovox.experiment.budget_claims import awaited, claimed


def test_a_claim_is_held_by_one_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "claims" / "job"
    with claimed(path) as first, claimed(path) as second:
        assert first
        assert not second
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()
    with claimed(path) as again:
        assert again


def test_a_claim_is_given_back_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "job"):
        raise ZeroDivisionError
    assert not (tmp_path / "job").exists()


def test_of_many_one_gets_it(tmp_path: Path) -> None:
    """Threads that start together; whoever has the claim keeps it until all others have tried."""
    path, won, together, tried = tmp_path / "job", [], threading.Barrier(8), threading.Barrier(8)

    def try_it() -> None:
        together.wait()
        with claimed(path) as ours:
            if ours:
                won.append(1)
            tried.wait(60)

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def killed_claim(path: Path) -> None:
    """A claim whose process was killed while it held it."""
    code = (
        "import sys, time; from pathlib import Path\n"
        "from oligovox.experiment.budget_claims import claimed\n"
        "with claimed(Path(sys.argv[1])) as ours:\n    print(ours, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert child.stdout.readline() == "True\n"
        with claimed(path) as ours:
            assert not ours, "its process lives"
        child.kill()


def test_a_claim_that_is_not_written_yet_is_left_alone_until_it_is_old(tmp_path: Path) -> None:
    path = tmp_path / "job"
    path.touch()
    with claimed(path) as ours:
        assert not ours
    old = time.time() - budget_claims.STALE_SECONDS - 1
    os.utime(path, (old, old))
    with claimed(path) as ours:
        assert ours


def test_a_claim_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    path = tmp_path / "job"
    killed_claim(path)
    assert path.exists()
    with claimed(path) as ours:
        assert ours
    assert not path.exists()


def rewritten(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_number_that_another_process_has_now_keeps_no_claim(tmp_path: Path) -> None:
    with claimed(tmp_path / "job"):
        mine = (tmp_path / "job").read_text()
    (tmp_path / "job").write_text(mine)
    rewritten(tmp_path / "job", begun="1")  # the same number, begun at another time
    with claimed(tmp_path / "job") as ours:
        assert ours


def test_a_claim_of_another_machine_stands_while_it_is_renewed(tmp_path: Path) -> None:
    path = tmp_path / "job"
    with claimed(path):
        text = path.read_text()
    path.write_text(text)
    rewritten(path, machine="elsewhere", pid=1)
    with claimed(path) as ours:
        assert not ours
    old = time.time() - budget_claims.STALE_SECONDS - 5
    os.utime(path, (old, old))
    with claimed(path) as ours:
        assert ours


def test_a_claim_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_claims, "BEAT_SECONDS", 0.05)
    path = tmp_path / "job"
    with claimed(path):
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 20
        while path.stat().st_mtime < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_claim_that_another_took_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "job"
    with claimed(path):
        rewritten(path, mark="another")
    assert path.exists()


def test_short_work_waits_for_its_turn(tmp_path: Path) -> None:
    order, inside = [], threading.Event()

    def second() -> None:
        inside.wait()
        with awaited(tmp_path / "job"):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with awaited(tmp_path / "job"):
        inside.set()
        time.sleep(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
