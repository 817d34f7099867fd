"""Numbers and untrusted text on their way into a page: one way to write each, everything escaped."""

from __future__ import annotations

import html
import math
import unicodedata

UNDEFINED = "–"
"""What stands for a number that does not exist, e.g. the surface distance to an empty mask."""


class Html(str):
    """Text that is markup already. Everything else is escaped by `escape` before it reaches a page."""

    __slots__ = ()


def escape(value: object) -> Html:
    """Markup that shows `value` as it is: quotes and angle brackets escaped, invisible and control characters made visible."""
    return value if isinstance(value, Html) else Html(html.escape(visible(str(value)), quote=True))


def visible(text: str) -> str:
    """`text` with control, formatting (such as right-to-left override) and unassigned characters replaced by '�'."""
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else "�" for c in text)


def number(value: float | None, digits: int, *, sign: bool = False) -> str:
    """`value` with `digits` decimals, a true minus and no negative zero; `UNDEFINED` for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return UNDEFINED
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return (text if float(text) else text.lstrip("+-")).replace("-", "−")


def interval(mean: float | None, low: float | None, high: float | None, digits: int, *, sign: bool = False) -> str:
    """'0.641 [0.560, 0.712]'; only the mean where there is no interval."""
    middle, below, above = (number(value, digits, sign=sign) for value in (mean, low, high))
    return middle if UNDEFINED in (below, above) else f"{middle} [{below}, {above}]"


def duration(seconds: float) -> str:
    """'42 s', '3 min 05 s' or '2 h 07 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(n: int, noun: str) -> str:
    """'1 case', '2 cases'."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
