from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest

from oligovox.report.content import Arm, CaseRow, Report, SizeBin, Stage
from oligovox.report.figures import bin_title, learning_curves, lesions_found, scores_by_case


def _stage(losses: tuple[tuple[int, float | None], ...], name: str = "a") -> Stage:
    return Stage(name=name, phase="p", method="m", network="n", steps=9, seconds=1, losses=losses)


def test_plots_are_bare_svg_in_the_colours_of_the_page(report: Report) -> None:
    plots = [
        scores_by_case(report),
        learning_curves(report.stages, ["pre-trained", "scratch"]),
        lesions_found(report.bins, report.ordered),
    ]
    for plot in plots:
        root = ET.fromstring(plot.replace("xlink:href", "href"))
        assert (root.tag, root.get("role"), bool(root.get("aria-label"))) == ("svg", "img", True)
        assert "http" not in plot
        assert "<metadata" not in plot
        colours = set(re.findall(r"#[0-9a-f]{6}", plot))
        assert not colours, colours
        assert "var(--ink)" in plot
        targets = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', plot))
        assert {a or b for a, b in targets} <= set(re.findall(r' id="([^"]+)"', plot))


def test_same_numbers_same_bytes_and_no_global_style(report: Report) -> None:
    before = dict(matplotlib.rcParams)
    assert scores_by_case(report) == scores_by_case(report)
    assert dict(matplotlib.rcParams) == before


def test_case_names_are_written_as_they_are(report: Report) -> None:
    arm = Arm(name="$\\frac{", start="x", labels=1, cases=(CaseRow(case="<b>$x_1$ 漢字", dice=0.5),))
    plot = scores_by_case(
        report.model_copy(update={"arms": (arm,), "main": arm.name, "comparisons": (), "baseline": ""})
    )
    assert "&lt;b&gt;$x_1$ 漢字" in plot
    assert "<b>" not in plot


def test_a_curve_with_gaps_keeps_the_finite_points() -> None:
    plot = learning_curves([_stage(((0, 2.0), (1, float("nan")), (2, 1.0)))])
    assert 'aria-label="Learning curve of a: loss from 2.000 to 1.000."' in plot
    assert "no loss was logged" in learning_curves([_stage(())])


def test_a_loss_that_falls_far_is_drawn_on_a_logarithmic_axis() -> None:
    def ticks(last: float) -> str:
        values = np.geomspace(1, last, 200)
        return learning_curves([_stage(tuple(enumerate(values.tolist())))])

    assert {"0.0001", "0.01", "1"} <= set(re.findall(r">([^<]*)</t", ticks(1e-4)))
    assert "0.01" not in re.findall(r">([^<]*)</t", ticks(0.5))


def test_long_curves_stay_small() -> None:
    curve = tuple((i, 1.0 + float(np.sin(i))) for i in range(50_000))
    assert len(learning_curves([_stage(curve)])) < 60_000


@pytest.mark.parametrize(
    ("low", "high", "title"), [(0, 10, "< 10 mm³"), (10, 100, "10 – 100 mm³"), (1000, None, "≥ 1000 mm³")]
)
def test_bin_titles(low: float, high: float | None, title: str) -> None:
    assert bin_title(SizeBin(low_mm3=low, high_mm3=high, count=0)) == title
