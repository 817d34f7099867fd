"""BraTS 2024: lesion-wise Dice, HD95 and NSD (0.5 and 1 mm); adult glioma after treatment (GLI) and four other tracks.

The rule and its edge cases: `regions`. Other than in 2023 the prediction is cut into lesions as the reference is, its small lesions
are deleted, and in some regions lesions that touch the same lesion of another tissue become one.

| track | region: labels | dilation | larger than | penalty | joined through |
| --- | --- | --- | --- | --- | --- |
| GLI | WT: NETC 1, SNFH 2, ET 3 | 3 | 20 mm³ | 337 mm | |
| | TC: 1, 3 | 3 | 20 mm³ | | |
| | NETC: 1 | 5 | 20 mm³ | | ET, RC |
| | SNFH: 2 | 5; 3 with `snfh_typo` | 20 mm³ | | ET, RC, NETC |
| | ET: 3 | 3 | 10 mm³ | | NETC, RC |
| | RC: 4 (resection cavity, in neither WT nor TC) | 5 | 20 mm³ | | ET, NETC |
| SSA | WT: 1, 2, 3; TC: 1, 3; ET: 3 | 3 | 50 mm³ | 374 mm | ET through NETC (1) |
| PED | WT: ET 1, NETC 2, CC 3, ED 4; TC: 1, 2, 3; ET; NETC; CC; ED | 5 | 10 mm³ | 374 mm | |
| MET | WT: 1, 2, 3; TC: 1, 3; ET: 3; RC: 4 | 1 | 2 mm³ | diagonal of the grid | ET through NETC (1) |
| MEN-RT | GTV: 1; false lesions lower no score | 1 | 50 mm³ | diagonal of the grid | |

Source: the organisers' evaluation code (rachitsaluja/BraTS-2024-Metrics, metrics_GLI.py and its four siblings).
Deviates:

* SNFH is dilated 5 times, as the code means; it compares with the misspelt "SFNH" and so uses 3. `snfh_typo` does as the code does.
* HD95, sensitivity and specificity of the whole region come from masks; the code takes lesion numbers for mask values there, which
  is wrong from the second lesion on.
* Small predicted lesions are deleted by mm³; the code counts voxels (except in MEN-RT), the same on the challenge's 1 mm grids.
* NSD is without the 1e-8 that the code adds to the divisor.
* Labels the track does not know are refused, not ignored.
* Whole-region scores of MET are those of the prediction after the deletion; the code has a second function without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from numpy.typing import NDArray
from pydantic import Field

from oligovox import settings as base
from oligovox.metrics.protocols import brats2023
from oligovox.metrics.protocols.regions import Region, Track, nsd_name, score_regions
from oligovox.metrics.protocols.result import CaseResult

TOLERANCES_MM = (0.5, 1.0)
MAIN = (
    "lesionwise_dice",
    "lesionwise_hd95_mm",
    *(f"lesionwise_{nsd_name(tolerance)}" for tolerance in TOLERANCES_MM),
    "dice",
    "hd95_mm",
)
BEST: Mapping[str, Literal["high", "low"]] = MappingProxyType(
    {**brats2023.BEST}
    | {f"{kind}{nsd_name(tolerance)}": "high" for kind in ("lesionwise_", "") for tolerance in TOLERANCES_MM}
)

PENALTY_GLI_MM, PENALTY_MM = 337.0, 374.0


class Settings(base.Settings):
    """Which task of the challenge."""

    track: Literal["GLI", "SSA", "PED", "MET", "MEN-RT"] = Field("GLI", description="task of the challenge")
    snfh_typo: bool = Field(False, description="GLI: dilate SNFH 3 times, as the published code does by a misspelling")


DEFAULT = Settings()


def score(
    prediction: NDArray[Any], truth: NDArray[Any], spacing_mm: Sequence[float], settings: Settings = DEFAULT
) -> CaseResult:
    """Score two label maps (x, y, z) on one grid; the regions of the track.

    Raises:
        GeometryError: the shapes differ, or the spacing is not three positive numbers.
        LabelError: values that are not labels of this track.
    """
    return score_regions(prediction, truth, spacing_mm, track(settings))


def known_labels(settings: Settings = DEFAULT) -> frozenset[int]:
    """Label values that may occur."""
    return track(settings).labels


def track(settings: Settings) -> Track:
    """The row of the table above, with its regions."""
    of_gli = _gli(snfh_dilation=3 if settings.snfh_typo else 5)
    regions, penalty_mm = {
        "GLI": (of_gli, PENALTY_GLI_MM),
        "SSA": (_through_netc(3, 50.0), PENALTY_MM),
        "PED": (_PED, PENALTY_MM),
        "MET": (_through_netc(1, 2.0) | {"RC": Region((4,), 1, 2.0)}, None),
        "MEN-RT": ({"GTV": Region((1,), 1, 50.0)}, None),
    }[settings.track]
    return Track(
        regions,
        penalty_mm,
        grow_prediction=True,
        count_false=settings.track != "MEN-RT",
        tolerances_mm=TOLERANCES_MM,
    )


def _gli(snfh_dilation: int) -> dict[str, Region]:
    return {
        "WT": Region((1, 2, 3), 3, 20.0),
        "TC": Region((1, 3), 3, 20.0),
        "NETC": Region((1,), 5, 20.0, through=("ET", "RC")),
        "SNFH": Region((2,), snfh_dilation, 20.0, through=("ET", "RC", "NETC")),
        "ET": Region((3,), 3, 10.0, through=("NETC", "RC")),
        "RC": Region((4,), 5, 20.0, through=("ET", "NETC")),
    }


def _through_netc(dilation: int, smallest: float) -> dict[str, Region]:
    return {
        "WT": Region((1, 2, 3), dilation, smallest),
        "TC": Region((1, 3), dilation, smallest),
        "ET": Region((3,), dilation, smallest, through=("NETC",)),
        "NETC": Region((1,), dilation, smallest, reported=False),
    }


_PED = {
    "WT": Region((1, 2, 3, 4), 5, 10.0),
    "TC": Region((1, 2, 3), 5, 10.0),
    "ET": Region((1,), 5, 10.0),
    "NETC": Region((2,), 5, 10.0),
    "CC": Region((3,), 5, 10.0),
    "ED": Region((4,), 5, 10.0),
}
