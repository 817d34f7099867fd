"""Errors travel between processes, and hints name the nearest word."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from oligovox.errors import ImageError, NonFiniteLoss, OligovoxError, WorkerError, nearest


@pytest.mark.parametrize(
    "error",
    [
        ImageError(Path("a.nii.gz"), "4 dimensions", "give one volume a file"),
        WorkerError("sub-01", "MemoryError: "),
        NonFiniteLoss(3, "dice", float("inf"), ["sub-01", "sub-02"]),
    ],
)
def test_errors_survive_the_way_back_from_a_worker(error: OligovoxError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_nearest_knows_typing_errors_and_gives_up_honestly() -> None:
    assert nearest("stepz", ["steps", "lr"]) == "did you mean 'steps'?"
    assert nearest("FLAIRE", ["FLAIR", "T1w"]) == "did you mean 'FLAIR'?"
    assert nearest("xyz", ["steps", "lr"]) == "known are: lr, steps"
