"""The page of lesions, from numbers made up for it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.image import imread

from oligovox.report.lesion_figures import LesionView, lesions_png
from oligovox.report.lesions import _sentence, write_lesion_page

ROW = {"lesion": "sub-01_lesion-001", "person": "<b>01", "grade": 1, "probability": 0.125, "called": 0,
       "x": -8.2, "y": 4.0, "z": 12.0, "volume_mm3": None}  # fmt: skip


def view(saliency: bool = True) -> LesionView:
    seen = np.zeros((16, 16), np.uint8)
    seen[3:12, 4:14], seen[6:9, 7:10] = 1, 2
    rng = np.random.default_rng(0)
    qsm, flair, fall = (rng.random((16, 16)).astype(np.float32) for _ in range(3))
    return LesionView("sub-01_lesion-001", "0.12, Rim+ <", qsm, flair, seen, fall - 0.5 if saliency else None)


def test_a_page_without_grades_has_lesions_and_no_scores(tmp_path: Path) -> None:
    path = write_lesion_page(
        tmp_path / "classify.html",
        title="New <patient>",
        views=[view()],
        order="Sorted.",
        rows=[ROW, ROW | {"grade": -1}],
        simulated=True,
    )
    page = path.read_text(encoding="utf-8")
    assert "They say nothing about patients" in page
    assert "New &lt;patient&gt;" in page
    assert "&lt;b&gt;01" in page
    assert "<b>" not in page
    assert "<script" not in page
    assert "Scores" not in page
    assert page.count("0.125") == 2
    assert "−8, 4, 12" in page
    assert "hidden cube by cube" in page
    alone = write_lesion_page(tmp_path / "b.html", title="", views=[view(saliency=False)], order="", rows=[ROW])
    assert "hidden cube by cube" not in alone.read_text(encoding="utf-8")


def test_the_page_says_how_many_rims_are_in_no_score() -> None:
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6}
    scores = {"lesions": 3, "people": 2, "rim_plus": 1, "ungraded": 0, "missed_rims": 2,
              "scores": {"lesion": {"pr_auc": estimate, "roc_auc": estimate}}}  # fmt: skip
    assert "2 Rim+ lesions of the grades in no score" in _sentence(scores)
    assert "no score" not in _sentence(scores | {"missed_rims": None})


def test_the_picture_shows_right_on_the_left_and_is_the_same_each_time() -> None:
    seen = np.ones((8, 8), np.uint8)
    left = np.zeros((8, 8), np.float32)
    left[0] = 1  # the patient's left: it belongs on the right
    drawn = LesionView("a", "", left, np.zeros((8, 8), np.float32), seen)
    png = lesions_png([drawn])
    assert png == lesions_png([drawn])
    picture = imread(io.BytesIO(png))[..., :3].mean(2)
    top = picture[60:120]  # inside the panels, below the words
    bright = np.flatnonzero(top.mean(0)[15:145] > 0.9)
    assert bright.min() > 100
