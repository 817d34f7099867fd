"""The page of missing sequences shows every number once, escaped, whatever is undefined."""

from __future__ import annotations

import re
from pathlib import Path

from oligovox.report.subsets import subset_matrix, write_subsets

SEQUENCES = ("T1w", "FLAIR")


def row(subset: str, region: str, metric: str, mean: float | None, **more: object) -> dict[str, object]:
    shown = {name: int(name in subset.split("+")) for name in SEQUENCES}
    ends = {"mean": mean, "low": None if mean is None else mean - 0.011, "high": None if mean is None else mean + 0.013}
    return {"subset": subset, **shown, "region": region, "metric": metric, **ends, "n": 4, **more}


ROWS = [
    row("T1w+FLAIR", "<any>", "dice", 0.8123),
    row("T1w+FLAIR", "foreground", "ece", 0.0314),
    row("T1w", "<any>", "dice", None),
    row("T1w", "foreground", "ece", 0.0517),
]
PRICES = [row("T1w", "<any>", "dice", 0.1234, sequence="T1w", hidden_from="every subset")]


def test_every_number_is_on_the_page(tmp_path: Path) -> None:
    page = write_subsets(ROWS, PRICES, SEQUENCES, tmp_path, title="Missing <here>").read_text()
    assert page.count("<table>") == 3, "one table a region: prices of one, combinations of two"
    for value in ("0.812 ", "0.031 ", "0.052 ", "+0.123 ", "[0.801, 0.825]"):
        assert value in page
    assert "<any>" not in page
    assert "<here>" not in page
    assert "–" in page


def test_the_matrix_has_a_circle_for_each_sequence_and_words_for_those_who_do_not_see() -> None:
    drawn = str(subset_matrix(ROWS, SEQUENCES))
    assert "dice of each combination of sequences. T1w+FLAIR: 0.812 [0.801, 0.825]. T1w: –." in drawn
    assert {"Shown", "T1w", "FLAIR", "dice, &lt;any&gt;", "ece, foreground"} <= set(
        re.findall(r">([^<>]+)</text>", drawn)
    )
    assert drawn == str(subset_matrix(ROWS, SEQUENCES)), "the same bytes for the same numbers"
