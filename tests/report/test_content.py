from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError

from oligovox.report.content import CaseRow, Lesion, Report, size_bins, telling_cases


def _lesion(volume: float, **found: bool) -> Lesion:
    return Lesion(number=1, volume_mm3=volume, centre=(0, 0, 0), found=found)


def test_size_bins_include_their_lower_end() -> None:
    lesions = [_lesion(v, a=True, b=v > 50) for v in (9.99, 10.0, 99.9, 100.0, 1000.0, 1e6)]
    bins = size_bins(lesions, ["a", "b", "c"])
    assert [(b.low_mm3, b.high_mm3) for b in bins] == [(0, 10), (10, 100), (100, 1000), (1000, None)]
    assert [b.count for b in bins] == [1, 2, 1, 2]
    assert [b.found for b in bins] == [{"a": x, "b": y, "c": 0} for x, y in ((1, 0), (2, 1), (1, 1), (2, 2))]


@pytest.mark.parametrize(
    ("dice", "expected"),
    [
        ((), {}),
        ((None, None), {}),
        ((0.5,), {"best": "0"}),
        ((0.5, 0.7), {"best": "1", "worst": "0"}),
        ((0.5, None, 0.7, 0.1), {"best": "2", "median": "0", "worst": "3"}),
    ],
)
def test_telling_cases(dice: tuple[float | None, ...], expected: dict[str, str]) -> None:
    assert dict(telling_cases([CaseRow(case=str(i), dice=d) for i, d in enumerate(dice)])) == expected


def test_undefined_numbers_become_none() -> None:
    row = CaseRow(case="a", dice=np.float32("nan"), hd95_mm=math.inf, lesion_f1=np.float64(0.25))
    assert (row.dice, row.hd95_mm, row.lesion_f1) == (None, None, 0.25)


def test_a_report_refers_only_to_its_own_arms(report: Report) -> None:
    with pytest.raises(ValidationError, match="arm 'x' is referred to but is not in the report"):
        Report.model_validate({**report.model_dump(), "main": "x"})
    with pytest.raises(ValidationError, match="two arms have the same name"):
        Report.model_validate({**report.model_dump(), "arms": report.arms * 2})


def test_the_main_arm_comes_first_everywhere(report: Report) -> None:
    assert [arm.name for arm in report.ordered] == ["pre-trained", "scratch"]
