"""Learn from every unlabelled multi-sequence MRI, label a handful: lesion models, predictions and an honest report.

The verbs are in `experiment` (`from oligovox import experiment`): `prepare`, `simulate` and `report` are also names of rooms, so they
cannot be names of functions here. Importing oligovox alone is instant.
"""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("oligovox")
__all__ = ["__version__"]
