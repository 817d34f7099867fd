from __future__ import annotations

import gc
import threading
import time
import traceback

import pytest

from oligovox.errors import SettingsError
from oligovox.sample.prefetch import prefetch


def alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("oligovox-prefetch")]


def wait_until_gone() -> list[str]:
    gc.collect()
    limit = time.monotonic() + 5
    while alive() and time.monotonic() < limit:
        time.sleep(0.005)
    return alive()


def test_items_come_in_order_even_when_later_ones_are_ready_first():
    def slow_when_even(index: int) -> int:
        time.sleep(0.01 if index % 2 == 0 else 0)
        return index

    assert list(prefetch(slow_when_even, 3, 15, depth=4, workers=3)) == list(range(3, 15))
    assert not alive()


def test_an_empty_range_yields_nothing():
    assert list(prefetch(str, 5, 5)) == []


def test_never_more_than_depth_items_are_made_ahead():
    made: list[int] = []
    items = prefetch(made.append, 0, 50, depth=3, workers=2)
    for taken in range(1, 11):
        next(items)
        time.sleep(0.005)
        assert taken <= len(made) <= taken + 3
    items.close()


def test_an_error_is_raised_at_its_own_item_with_its_own_traceback():
    def breaks_at_four(index: int) -> int:
        if index == 4:
            raise ValueError("case four")
        return index

    items = prefetch(breaks_at_four, 0, 10, depth=8, workers=3)
    assert [next(items) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="case four") as caught:
        next(items)
    assert "breaks_at_four" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert not alive()
    with pytest.raises(StopIteration):
        next(items)


def test_a_break_ends_the_threads():
    for index in prefetch(lambda index: index, 0, 10**9, depth=2, workers=2):
        if index == 3:
            break
    assert not wait_until_gone()


def test_leaving_the_with_block_ends_the_threads_at_once():
    with prefetch(lambda index: time.sleep(0.01), 0, 10**9) as items:
        next(items)
        assert alive()
    assert not alive()


def test_waited_counts_the_waiting_and_not_the_consumers_own_work():
    with prefetch(lambda index: time.sleep(0.05), 0, 2, depth=2, workers=2) as items:
        next(items)
        waited = items.waited
        assert 0.02 < waited < 2
        time.sleep(0.5)
        next(items)
        assert items.waited - waited < 0.25


@pytest.mark.parametrize(("depth", "workers"), [(0, 1), (1, 0)])
def test_impossible_settings_are_refused(depth, workers):
    with pytest.raises(SettingsError, match=f"depth {depth}, workers {workers}"):
        prefetch(str, 0, 1, depth, workers)
