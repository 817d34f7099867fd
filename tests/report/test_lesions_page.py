"""The page of lesions, from numbers made up for it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.image import imread

from oligovox.report.lesion_figures import LesionView, _rows, _strength, lesions_png
from oligovox.report.lesions import _sentence, write_lesion_page

ROW = {"lesion": "sub-01_lesion-001", "person": "<b>01", "grade": 1, "probability": 0.125, "called": 0,
       "x": -8.2, "y": 4.0, "z": 12.0, "volume_mm3": None}  # fmt: skip


def view(saliency: bool = True) -> LesionView:
    seen = np.zeros((16, 16), np.uint8)
    seen[3:12, 4:14], seen[6:9, 7:10] = 1, 2
    rng = np.random.default_rng(0)
    qsm, flair = (rng.random((16, 16)).astype(np.float32) for _ in range(2))
    falls = rng.random((2, 16, 16)).astype(np.float32) - 0.5
    return LesionView("sub-01_lesion-001", "0.12, Rim+ <", qsm, flair, seen, falls if saliency else None)


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
    counted = _sentence(scores | {"missed_rims_scored": 1})
    assert "1 Rim+ lesion of the grades counted in the scores of people as not called" in counted
    assert "1 Rim+ lesion of the grades in no score" in counted


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


def test_both_sequences_are_on_one_scale_and_one_without_influence_is_named() -> None:
    falls = np.zeros((2, 4, 4), np.float32)
    falls[0, 1, 1], falls[1, 2, 2] = -0.5, 2.0
    qsm, words = _strength(falls, 0)
    assert qsm[1, 1] == -0.25
    assert words == "QSM hidden\nup to 0.5"
    flair, words = _strength(falls, 1)
    assert flair.max() == 1
    assert words == "FLAIR hidden\nup to 2"
    for least in (9e-7, 1.9e-5):  # below 1e-6, and below a hundred-thousandth of the FLAIR's
        falls[0, 1, 1] = least
        qsm, words = _strength(falls, 0)
        assert not qsm.any()
        assert words == "QSM: no influence"
    falls[0, 1, 1] = 2.1e-5
    assert _strength(falls, 0)[1] == "QSM hidden\nup to 2.1e-05"
    assert not _strength(0 * falls, 1)[0].any()


def test_where_hiding_lets_the_answer_fall_is_red_and_where_it_rises_blue() -> None:
    falls = np.zeros((2, 16, 16), np.float32)
    falls[0, 3:12, 4:14], falls[1, 3:12, 4:14] = 1.0, -1.0
    drawn = imread(io.BytesIO(lesions_png([replace(view(), saliency=falls)])))[..., :3]
    red, blue = (drawn[..., 0] - drawn[..., 2] > 0.5, drawn[..., 2] - drawn[..., 0] > 0.5)
    columns = [np.flatnonzero(mask.sum(0) > 20) for mask in (red, blue)]
    assert 290 < columns[0].min() < columns[0].max() < 425 < columns[1].min() < columns[1].max() < 565


def test_lesions_keep_their_order_and_explained_ones_have_room() -> None:
    views = [replace(view(saliency=number < 3), name=str(number)) for number in range(8)]
    rows = [[drawn.name for drawn in row] for row in _rows(views)]
    assert rows == [["0", "1"], ["2"], ["3", "4", "5"], ["6", "7"]]
