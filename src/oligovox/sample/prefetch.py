"""Prefetch: the next batches are made in threads while the network works."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

from oligovox.errors import SettingsError

T = TypeVar("T")


class Prefetch(Iterator[T], Generic[T]):
    """`make(start), …, make(stop - 1)` in this order, made ahead in threads.

    An exception in `make(i)` is raised at item i, with its own traceback, and ends the iteration. The threads end when the
    iteration ends, at `close`, on leaving a `with` block, or when the iterator is dropped (a `break` in a loop over it).

    Attributes:
        waited: seconds the consumer has waited for items so far.
    """

    def __init__(self, make: Callable[[int], T], start: int, stop: int, depth: int, workers: int) -> None:
        if depth < 1 or workers < 1:
            raise SettingsError(f"prefetch: depth {depth}, workers {workers}; expected at least 1 of each")
        self.waited = 0.0
        self._make = make
        self._rest = iter(range(start, stop))
        self._depth = depth
        self._ahead: deque[Future[T]] = deque()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="oligovox-prefetch")
        self._dropped = weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        self._fill()

    def __next__(self) -> T:
        if not self._ahead:
            self.close()
            raise StopIteration
        begun = time.perf_counter()
        try:
            item = self._ahead.popleft().result()
        except BaseException:
            self.close()
            raise
        finally:
            self.waited += time.perf_counter() - begun
        self._fill()
        return item

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop what is ahead and wait for the threads to end; calling it again does nothing."""
        self._ahead.clear()
        self._rest = iter(range(0))
        self._dropped.detach()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self) -> None:
        while len(self._ahead) < self._depth and (index := next(self._rest, None)) is not None:
            self._ahead.append(self._pool.submit(self._make, index))


def prefetch(make: Callable[[int], T], start: int, stop: int, depth: int = 4, workers: int = 2) -> Prefetch[T]:
    """Iterate over `make(start), …, make(stop - 1)`, made ahead in threads; the order never depends on timing.

    Args:
        make: from an index to an item; called in several threads at once.
        start: first index.
        stop: one past the last index.
        depth: items made ahead at most (what bounds the memory).
        workers: threads.

    Raises:
        SettingsError: depth or workers below 1.
    """
    return Prefetch(make, start, stop, depth, workers)
