"""Learn from every unlabelled multi-sequence MRI, label a handful: lesion models, predictions and an honest report.

The verbs are in `experiment` (`from oligovox import experiment`): `prepare`, `simulate` and `report` are also names of rooms, so they
cannot be names of functions here. Importing oligovox alone is instant.
"""

from __future__ import annotations

__version__: str
__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    """The version, when it is asked for: looking it up takes longer than the rest of the import."""
    if name != "__version__":
        raise AttributeError(f"module 'oligovox' has no attribute '{name}'")
    from importlib.metadata import version

    return version("oligovox")
