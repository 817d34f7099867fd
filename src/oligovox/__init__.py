"""Learn from every unlabelled multi-sequence MRI, label a handful: lesion models, predictions and an honest report.

The verbs are imported when they are first used, so that `import oligovox` is instant.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

__version__ = version("oligovox")
__all__ = [
    "demo",
    "evaluate",
    "finetune",
    "methods",
    "predict",
    "prepare",
    "pretrain",
    "report",
    "run",
    "simulate",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from oligovox import experiment

        return getattr(experiment, name)
    raise AttributeError(f"module 'oligovox' has no attribute '{name}'")
