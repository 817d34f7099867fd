"""BraTS 2023: lesion-wise Dice and HD95 of whole tumour, tumour core and enhancing tumour.

Labels NCR 1 (necrotic core), ED 2 (oedema), ET 3 (enhancing tumour); files of 2018 to 2021 hold ET as 4 (`enhancing_label`).
Regions WT = {1, 2, 3}, TC = {1, 3}, ET = {3}. The rule and its edge cases: `regions`. The prediction is not grown: its lesions are
its components (26 neighbours), and small ones count as false.

| track | dilation | smallest lesion, strictly larger than | HD95 of a missed or false lesion |
| --- | --- | --- | --- |
| GLI, SSA, PED | 3 | 50 mm³ | 374 mm |
| MEN | 1 | 50 mm³ | 374 mm |
| MET | 1 | 2 mm³ | 374 mm |

Source: the organisers' evaluation code (rachitsaluja/BraTS-2023-Metrics, metrics.py) and the readme beside it.
Deviates: labels the challenge does not know are refused, not ignored; rounding of spacings stored as float32 does not make a lesion
larger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from numpy.typing import NDArray
from pydantic import Field

from oligovox import settings as base
from oligovox.metrics.protocols.regions import Region, Track, score_regions
from oligovox.metrics.protocols.result import CaseResult

MAIN = ("lesionwise_dice", "lesionwise_hd95_mm", "dice", "hd95_mm")
BEST: Mapping[str, Literal["high", "low"]] = MappingProxyType(
    {
        "lesionwise_dice": "high",
        "lesionwise_hd95_mm": "low",
        "lesions_found": "high",
        "lesions_missed": "low",
        "lesions_false": "low",
        "dice": "high",
        "hd95_mm": "low",
        "sensitivity": "high",
        "specificity": "high",
    }
)

PENALTY_MM = 374.0
"""About the diagonal of the challenge's grid, 240 x 240 x 155 mm."""

_DILATION = {"GLI": 3, "SSA": 3, "PED": 3, "MEN": 1, "MET": 1}
_MIN_VOLUME_MM3 = {"GLI": 50.0, "SSA": 50.0, "PED": 50.0, "MEN": 50.0, "MET": 2.0}


class Settings(base.Settings):
    """Which task of the challenge, and which label is enhancing tumour."""

    track: Literal["GLI", "SSA", "PED", "MEN", "MET"] = Field("GLI", description="task of the challenge")
    enhancing_label: Literal[3, 4] = Field(3, description="label of enhancing tumour; 4 in files of 2018 to 2021")


DEFAULT = Settings()


def score(
    prediction: NDArray[Any], truth: NDArray[Any], spacing_mm: Sequence[float], settings: Settings = DEFAULT
) -> CaseResult:
    """Score two label maps (x, y, z) on one grid; regions WT, TC, ET.

    Raises:
        GeometryError: the shapes differ, or the spacing is not three positive numbers.
        LabelError: values that are not labels of this challenge.
    """
    return score_regions(prediction, truth, spacing_mm, track(settings))


def known_labels(settings: Settings = DEFAULT) -> frozenset[int]:
    """Label values that may occur."""
    return track(settings).labels


def track(settings: Settings) -> Track:
    """The row of the table above, with its regions."""
    enhancing = settings.enhancing_label
    labels = {"WT": (1, 2, enhancing), "TC": (1, enhancing), "ET": (enhancing,)}
    dilation, smallest = _DILATION[settings.track], _MIN_VOLUME_MM3[settings.track]
    return Track(
        {name: Region(values, dilation, smallest) for name, values in labels.items()},
        penalty_mm=PENALTY_MM,
        grow_prediction=False,
    )
