from __future__ import annotations

import math

import pytest

from oligovox.report.text import Html, duration, escape, interval, number


@pytest.mark.parametrize(
    ("value", "digits", "sign", "expected"),
    [
        (0.6413, 3, False, "0.641"),
        (-0.0004, 3, True, "0.000"),
        (-0.0004, 3, False, "0.000"),
        (0.0132, 3, True, "+0.013"),
        (-1.25, 1, True, "−1.2"),
        (None, 3, False, "–"),
        (math.nan, 1, False, "–"),
        (math.inf, 1, False, "–"),
    ],
)
def test_numbers_have_one_spelling(value: float | None, digits: int, sign: bool, expected: str) -> None:
    assert number(value, digits, sign=sign) == expected


def test_an_interval_without_ends_is_only_its_mean() -> None:
    assert interval(0.013, -0.01, 0.036, 3, sign=True) == "+0.013 [−0.010, +0.036]"
    assert interval(0.5, None, 0.6, 3) == "0.500"
    assert interval(None, None, None, 3) == "–"


def test_durations() -> None:
    assert [duration(s) for s in (41.6, 185, 7620)] == ["42 s", "3 min 05 s", "2 h 07 min"]


def test_escape_neutralises_markup_quotes_and_invisible_characters() -> None:
    assert escape('<a href="x">\'&') == "&lt;a href=&quot;x&quot;&gt;&#x27;&amp;"
    assert escape("a\u202eb\x00\udcff") == "a�b��"
    assert escape(Html("<b>")) == "<b>"
