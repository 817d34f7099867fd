"""Scores of predictions: rims that the masks miss, and tests of two classifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from oligovox import experiment
from oligovox.experiment.classification_scores import missed_of, score_headlines, score_run
from oligovox.files import read_json, read_tsv, write_json, write_tsv
from oligovox.metrics.delong import roc_area_test
from oligovox.prepare.lesion_store import FORMAT, LesionStore

SIDE = 4
Exams = Mapping[str, tuple[Sequence[int], int]]
"""Exam → grades of its lesions, Rim+ that its mask misses."""


def make_store(root: Path, exams: Exams) -> LesionStore:
    for exam, (grades, missed) in exams.items():
        folder = root / "cases" / exam
        rows = [
            {"exam": exam, "dataset": "", "subject": exam.split("_")[0].removeprefix("sub-"),
             "session": exam.partition("_ses-")[2], "number": number, "x": 0, "y": 0, "z": number, "volume_mm3": 200,
             "around_mm": 1, "grade": grade, "uncertain": 0}
            for number, grade in enumerate(grades, start=1)
        ]  # fmt: skip
        write_json(folder / "case.json", {"lesions": rows, "rims_without_lesion": missed})
        if rows:
            np.save(folder / "image.npy", np.full((len(rows), 2, SIDE, SIDE, SIDE), 0.5, np.float16))
            np.save(folder / "seen.npy", np.full((len(rows), SIDE, SIDE, SIDE), 2, np.uint8))
    write_json(root / "lesions.json", {"format": FORMAT, "finished": True, "plan": {}, "exams": list(exams),
                                       "content": "", "simulated": True})  # fmt: skip
    return LesionStore.open(root)


def predictions(
    folder: Path, store: LesionStore, chances: Sequence[float], *, fold: int | None = None, exams: Sequence[str] = ()
) -> Path:
    """What somebody says of the lesions of the store, or of some of its exams."""
    lesions = [lesion for lesion in store.lesions if not exams or lesion.exam in exams]
    rows = [
        {"lesion": lesion.name, "exam": lesion.exam, "person": lesion.person, "fold": fold, "grade": lesion.grade,
         "probability": chance, "threshold": 0.5, "x": 0, "y": 0, "z": lesion.number, "volume_mm3": 200}
        for lesion, chance in zip(lesions, chances, strict=True)
    ]  # fmt: skip
    folder.mkdir()
    write_tsv(folder / "predictions.tsv", rows, list(rows[0]))
    return folder


def test_two_people_with_a_rim_each_of_which_the_mask_misses_one(tmp_path: Path) -> None:
    """Once the other has another lesion, once none at all: a classifier that calls the one lesion is right for one of two people."""
    for name, grades, chances in (("another", [0], [0.9, 0.1]), ("none", [], [0.9])):
        store = make_store(tmp_path / name, {"sub-01": ([1], 0), "sub-02": (grades, 1)})
        table = predictions(tmp_path / f"said-{name}", store, chances)
        experiment.classify_evaluate(table, tmp_path / f"alone-{name}")
        alone = read_json(tmp_path / f"alone-{name}" / "scores.json")
        assert alone["scores"]["patient_1"]["accuracy"]["value"] == 1  # the table does not know better
        assert alone["missed_rims_scored"] is None
        experiment.classify_evaluate(table, tmp_path / f"scores-{name}", lesions=store.root)
        content = read_json(tmp_path / f"scores-{name}" / "scores.json")
        people = {metric: estimate["value"] for metric, estimate in content["scores"]["patient_1"].items()}
        assert (people["accuracy"], people["sensitivity"], people["prevalence"]) == (0.5, 0.5, 1)
        assert content["scores"]["count"]["bias"]["value"] == -0.5
        assert content["scores"]["lesion"]["sensitivity"]["value"] == 1
        assert (content["missed_rims"], content["missed_rims_scored"]) == (1, 1)
        page = (tmp_path / f"scores-{name}" / "classify.html").read_text(encoding="utf-8")
        assert "in no score" not in page


EXAMS: Exams = {
    "sub-01_ses-1": ([1, 0], 1),
    "sub-01_ses-2": ([], 2),  # of somebody who has lesions
    "sub-02_ses-1": ([0], 0),
    "sub-02_ses-2": ([0], 4),
    "sub-03": ([-1], 8),  # nobody graded what the mask has
    "sub-04": ([], 16),  # no lesion at all
    "sub-05": ([], 0),
}


@pytest.mark.parametrize(
    ("asked", "fold", "missed"),
    [
        (
            [],
            None,
            {"sub-01_ses-1": 1, "sub-01_ses-2": 2, "sub-02_ses-2": 4, "sub-03": 8, "sub-04": 16},
        ),  # new patients: everybody was asked
        (
            ["sub-01_ses-1", "sub-02_ses-1", "sub-02_ses-2"],
            1,
            {"sub-01_ses-1": 1, "sub-01_ses-2": 2, "sub-02_ses-2": 4},
        ),  # 03, 04: in no fold
        (
            ["sub-01_ses-1", "sub-02_ses-1"],
            None,
            {"sub-01_ses-1": 1, "sub-01_ses-2": 2},
        ),  # a part was asked: who else, nobody knows
    ],
)
def test_missed_rims_count_where_the_exam_was_tested(
    tmp_path: Path, asked: Sequence[str], fold: int | None, missed: dict[str, int]
) -> None:
    store = make_store(tmp_path / "store", EXAMS)
    rows = [
        {"lesion": lesion.name, "exam": lesion.exam, "person": lesion.person, "fold": str(fold or "")}
        for lesion in store.lesions
        if not asked or lesion.exam in asked
    ]
    assert missed_of(store, rows) == missed
    named = [{**row, "exam": "", "person": f"patient {row['person']}"} for row in rows]
    assert (missed_of(store, named) or {})["patient 01"] == 1
    write_json(store.root / "cases" / "sub-05" / "case.json", {"lesions": []})  # cut before this was counted
    assert missed_of(store, rows) is None


def test_a_run_counts_those_of_its_folds_and_its_page_names_the_others(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", EXAMS)
    exams = ["sub-01_ses-1", "sub-02_ses-1", "sub-02_ses-2"]
    run = predictions(tmp_path / "run", store, [0.9, 0.2, 0.3, 0.1], fold=1, exams=exams)
    score_run(run, store)
    content = read_json(run / "scores.json")
    assert (content["missed_rims"], content["missed_rims_scored"]) == (31, 7)
    assert content["scores"]["patient_1"]["sensitivity"]["value"] == pytest.approx(
        1 / 3
    )  # visits: one of three with a rim
    assert content["scores"]["count"]["bias"]["value"] == ((1 - 2) + (0 - 2) + 0 + (0 - 4)) / 4
    assert (content["people"], content["exams"]) == (2, 3)
    assert "24 Rim+ lesions of the grades in no score" in (run / "classify.html").read_text(encoding="utf-8")


def test_a_lesion_that_the_store_does_not_have_is_scored_all_the_same(tmp_path: Path) -> None:
    """And a person whom the table calls otherwise than the store is one person, with the visit that has no lesion."""
    store = make_store(tmp_path / "store", {"sub-01_ses-1": ([1, 0], 1), "sub-01_ses-2": ([], 2)})
    folder = predictions(tmp_path / "run", store, [0.9, 0.2])
    rows = [{**row, "person": "patient 1"} for row in read_tsv(folder / "predictions.tsv")]
    elsewhere = {**rows[0], "lesion": "sub-09_lesion-001", "exam": "sub-09", "person": "patient 9"}
    write_tsv(folder / "predictions.tsv", [*rows, elsewhere], list(rows[0]))
    experiment.classify_evaluate(folder, tmp_path / "scores", lesions=store.root)
    content = read_json(tmp_path / "scores" / "scores.json")
    assert (content["lesions"], content["people"], content["missed_rims_scored"]) == (3, 2, 3)
    assert content["scores"]["count"]["bias"]["value"] == pytest.approx(((1 - 2) + (0 - 2) + (1 - 1)) / 3)


def test_a_rim_that_is_seen_twice_is_one_rim_of_a_person_who_came_twice(tmp_path: Path) -> None:
    store = make_store(
        tmp_path / "store", {"sub-01_ses-1": ([1, 1], 0), "sub-01_ses-2": ([1, 1], 0), "sub-02": ([0], 0)}
    )
    run = predictions(tmp_path / "run", store, [0.9, 0.9, 0.9, 0.9, 0.1])
    experiment.classify_evaluate(run, tmp_path / "scores")
    scores = read_json(tmp_path / "scores" / "scores.json")["scores"]
    assert scores["patient_4"]["prevalence"]["value"] == 0
    assert scores["patient_1"]["prevalence"]["value"] == pytest.approx(2 / 3)


def test_what_predict_warned_of_stays_on_the_page_of_its_scores(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", {"sub-01": ([1], 0), "sub-02": ([0], 0)})
    out = predictions(tmp_path / "out", store, [0.9, 0.1])
    write_json(out / "predictions.json", {"Classifier": "a run", "Warnings": ["The classifiers have <seen> people."]})
    experiment.classify_evaluate(out, tmp_path / "scores")
    page = (tmp_path / "scores" / "classify.html").read_text(encoding="utf-8")
    assert "The classifiers have &lt;seen&gt; people." in page


def test_a_comparison_tests_both_areas(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grades = (rng.random((24, 4)) < 0.4).astype(int)
    exams = {f"sub-{n:02d}": (row.tolist(), int(n == 0)) for n, row in enumerate(grades)}
    store = make_store(tmp_path / "store", exams)
    truth = grades.ravel()
    good, bad = (np.round(1 / (1 + np.exp(-k * truth - rng.normal(size=96))), 4) for k in (2, 0.5))
    one, other = (predictions(tmp_path / name, store, said.tolist()) for name, said in (("a", good), ("b", bad)))
    found = experiment.classify_evaluate(one, tmp_path / "scores", against=other, lesions=store.root)
    difference = read_json(tmp_path / "scores" / "scores.json")["difference"]
    tests = difference["tests"]
    expected = roc_area_test(good, bad, truth, [lesion.person for lesion in store.lesions]).as_row()
    assert tests["roc_auc"] == pytest.approx(expected | {"test": "DeLong, clustered by people"})
    assert tests["roc_auc"]["difference"] == pytest.approx(difference["lesion"]["roc_auc"]["value"])
    assert tests["pr_auc"]["difference"] == difference["lesion"]["pr_auc"]["value"]
    assert 0 < tests["pr_auc"]["p"] < 0.05
    assert set(difference) == {"lesion", "patient_1", "patient_4", "count", "tests"}
    lines = score_headlines(found)
    assert lines["roc_auc (difference)"].endswith("], p < 0.001 (DeLong, clustered by people)")
    assert lines["pr_auc (difference)"].endswith("(bootstrap over people)")
    assert lines["f1 (difference)"].endswith("]")
    assert lines["roc_auc (lesion)"].endswith("]")
    row = found["difference"]["pr_auc"] | {"value": 0.1, "low": -0.02, "high": 0.2, "p": 0.0123}
    line = score_headlines({"difference": {"pr_auc": row}})["pr_auc (difference)"]
    assert line == "0.100 [-0.020, 0.200], p = 0.012 (bootstrap over people)"
    same = experiment.classify_evaluate(one, tmp_path / "same", against=one, lesions=store.root)
    assert same["difference"]["roc_auc"]["p"] == same["difference"]["pr_auc"]["p"] == 1
