"""Fixtures every room may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real MRI sets (see CONTRIBUTING); the test is skipped where it is absent."""
    folder = Path(os.environ.get("OLIGOVOX_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "openms").is_dir():
        pytest.skip(f"no real MRI at {folder}; set OLIGOVOX_DATA to the folder that holds openms/")
    return folder
