"""Every error oligovox raises on purpose, drawn as a tree.

    OligovoxError
    ├── InputError             what was given cannot be used; the command line exits with 2, nothing is written
    │   ├── CohortError        a folder, table or split does not describe a usable cohort
    │   ├── ImageError         one file is not a finite, non-empty 3-D volume
    │   ├── GeometryError      grids that must agree (shape, affine) do not
    │   ├── LabelError         label values outside the scheme, or labels missing where they are needed
    │   ├── SettingsError      unknown or impossible setting, method, network, modality name
    │   ├── CheckpointError    a run or model folder that cannot be read, or belongs to another architecture
    │   └── OutputError        the place to write to cannot be written
    └── RunError               the job started and failed; the command line exits with 1
        ├── WorkerError        a case failed in a worker process; carries the case name and the real cause
        └── NonFiniteLoss      a loss term became NaN or infinite; carries step, term and case names

Messages say what was found, what was expected, in which file, and what to do: one line each.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class OligovoxError(Exception):
    """Root of the tree; catch it to catch everything oligovox raises on purpose."""

    def __str__(self) -> str:
        """One line, whatever the name of a file holds."""
        return super().__str__().replace("\r", "\\r").replace("\n", "\\n")


class InputError(OligovoxError):
    """What was given cannot be used."""


class CohortError(InputError):
    """A folder, table or split does not describe a usable cohort."""


class ImageError(InputError):
    """One file is not a finite, non-empty 3-D volume.

    Attributes:
        path: the file.
        found: what was found in it.
    """

    def __init__(self, path: Path, found: str, todo: str) -> None:
        super().__init__(f"{path}: {found}; {todo}")
        self.path, self.found, self._todo = path, found, todo

    def __reduce__(self) -> tuple[type[ImageError], tuple[Path, str, str]]:
        return type(self), (self.path, self.found, self._todo)


class GeometryError(InputError):
    """Grids that must agree (shape, affine) do not."""


class LabelError(InputError):
    """Label values outside the scheme, or labels missing where they are needed."""


class SettingsError(InputError):
    """Unknown or impossible setting, method, network or modality name."""


class CheckpointError(InputError):
    """A run or model folder that cannot be read, or belongs to another architecture."""


class OutputError(InputError):
    """The place to write to cannot be written."""


class RunError(OligovoxError):
    """The job started and failed."""


class WorkerError(RunError):
    """A case failed in a worker; carries its name and the real cause.

    Attributes:
        case: name of the case.
        cause: type and message of the exception in the worker.
    """

    def __init__(self, case: str, cause: str) -> None:
        super().__init__(f"{case}: {cause}")
        self.case, self.cause = case, cause

    def __reduce__(self) -> tuple[type[WorkerError], tuple[str, str]]:
        return type(self), (self.case, self.cause)


class NonFiniteLoss(RunError):
    """A loss term became NaN or infinite.

    Attributes:
        step: optimiser step, from 0.
        term: name of the first non-finite term.
        value: what it was.
        cases: names of the cases in the batch.
    """

    def __init__(self, step: int, term: str, value: float, cases: Iterable[str]) -> None:
        self.step, self.term, self.value, self.cases = step, term, value, tuple(cases)
        super().__init__(
            f"step {step}: loss term '{term}' is {value} (cases {', '.join(self.cases)}); "
            "look at these cases, lower the learning rate, or train with precision 32-true"
        )

    def __reduce__(self) -> tuple[type[NonFiniteLoss], tuple[int, str, float, tuple[str, ...]]]:
        return type(self), (self.step, self.term, self.value, self.cases)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a mistyped word: ", did you mean 'x'?" or the list of what is known."""
    known = sorted(known)
    lower = {name.lower(): name for name in known}
    close = get_close_matches(word.lower(), list(lower), n=1, cutoff=0.6)
    return f"did you mean '{lower[close[0]]}'?" if close else f"known are: {', '.join(known)}"
