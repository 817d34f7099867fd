"""One thing that is wrong, or worth knowing, about a file, a case or a cohort."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
"""error: oligovox refuses it, or a result would be wrong; warning: a person should look; note: good to know."""

Repair = Literal["header", "labels", "grid", "values"]
"""What `mend` can do by itself: rewrite a header, renumber labels, bring a mask to its image's grid, replace voxel values."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found.

    Attributes:
        check: name of the check, the same word in table, JSON and page: 'sform_qform', 'duplicate_image', …
        severity: see `Severity`.
        case: name of the case; '' where it concerns the cohort.
        sequence: canonical name of the sequence, 'label' or 'brain'; '' where it concerns the case.
        files: the files it was found in; several where they disagree with each other.
        found: what was found, with numbers and units.
        expected: what was expected instead.
        remedy: what a person can do.
        repair: what `mend` would do by itself; None where only a person can.
        numbers: what was measured, for the JSON.
    """

    check: str
    severity: Severity
    case: str = ""
    sequence: str = ""
    files: tuple[Path, ...] = ()
    found: str
    expected: str
    remedy: str
    repair: Repair | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)
