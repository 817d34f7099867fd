"""The toy method, as a module; it is also a script, for the tests that start other processes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

_PATH = Path(__file__).with_name("toy.py")


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("engine_toy", _PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["engine_toy"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    return _load()


@pytest.fixture(scope="session")
def toy_script() -> Path:
    return _PATH
