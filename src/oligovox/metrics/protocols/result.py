"""What a protocol says about one case: numbers for each region, and one row for each lesion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

Number: TypeAlias = float | int | None
"""A metric; None where it is undefined."""

Row: TypeAlias = Mapping[str, float | int | str | None]
"""One lesion: region, side, number, volume_mm3, x, y, z, outcome, and what the protocol measures of it."""


@dataclass(frozen=True)
class CaseResult:
    """Scores of one case.

    Attributes:
        regions: region → metric → value. The only region is "lesion" where there are no classes.
        lesions: one row a lesion. `side` is "reference" or "predicted"; `outcome` is "found" or "missed" for a lesion of the reference, "true"
            or "false" for a predicted one; x, y, z is a voxel inside it.
    """

    regions: Mapping[str, Mapping[str, Number]]
    lesions: tuple[Row, ...] = ()
