"""Arrays of a store are opened by one thread at a time."""

from __future__ import annotations

import ast
import gc
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from oligovox.prepare.arrays import mapped


def test_threads_do_not_compile_headers_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", np.arange(24).reshape(2, 3, 4))
    inside, most, parse = [], [], ast.literal_eval

    def slow(header: str) -> object:
        inside.append(None)
        most.append(len(inside))
        time.sleep(0.001)
        found = parse(header)
        inside.pop()
        return found

    monkeypatch.setattr(ast, "literal_eval", slow)
    with ThreadPoolExecutor(8) as pool:
        arrays = list(pool.map(lambda _: mapped(tmp_path / "a.npy"), range(64)))
    assert len(most) == 64, "numpy reads headers another way now; is the lock still needed?"
    assert max(most) == 1
    assert all(np.array_equal(array, np.arange(24).reshape(2, 3, 4)) for array in arrays)
    assert not arrays[0].flags.writeable


def test_headers_that_are_read_while_garbage_is_collected(tmp_path: Path) -> None:
    """What ended a training after an hour: a finaliser hands over to another thread in the midst of a header."""

    class Cycle:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            time.sleep(0)

    def read(_: int) -> int:
        for _ in range(20):
            Cycle()
            mapped(tmp_path / "a.npy")
        return 1

    np.save(tmp_path / "a.npy", np.zeros((3, 4)))
    threshold = gc.get_threshold()
    gc.set_threshold(5)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(read, range(40))) == 40
    finally:
        gc.set_threshold(*threshold)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "plain.npy").write_bytes(pickle.dumps([1, 2]))
    for name in ("objects.npy", "plain.npy"):
        with pytest.raises(
            ValueError, match=r"Array can't be memory-mapped|pickled \(object\) data|pickled data|magic string"
        ):
            mapped(tmp_path / name)
