"""Worker processes that do not outlive the process that started them."""

from __future__ import annotations

import os
import threading
from multiprocessing import parent_process


def end_with_parent() -> None:
    """Initializer of a worker: ends it when its parent is gone (kill -9, out of memory), where it would wait for work for ever."""

    def watch() -> None:
        parent = parent_process()
        assert parent is not None, "call this in a worker process"
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
