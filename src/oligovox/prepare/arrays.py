"""Opening the arrays of a store."""

from __future__ import annotations

from pathlib import Path
from threading import Lock

import numpy as np

_ONE_AT_A_TIME = Lock()


def mapped(path: Path) -> np.ndarray:
    """A .npy file, memory-mapped and read only; nothing in it is unpickled.

    One thread at a time: numpy compiles the header, and CPython 3.11 counts the depth of that for all threads together. Where several open files
    while garbage is collected, it can end in "SystemError: AST constructor recursion depth mismatch", once in hours of training.

    Raises:
        OSError: it cannot be opened.
        EOFError: it is empty.
        ValueError: it is no such file, or is cut.
    """
    with _ONE_AT_A_TIME:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
