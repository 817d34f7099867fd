"""The forest: learns what the numbers say, is the same for a seed, and says what it cannot do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

from oligovox.errors import CheckpointError, GeometryError, LabelError
from oligovox.experiment.radiomics_forest import ForestSettings, RadiomicsForest, lesion_rows
from oligovox.files import read_json, write_json
from oligovox.prepare.lesion_store import LesionPlan, StoredLesion
from oligovox.prepare.radiomics import FEATURES, radiomics

SMALL = ForestSettings(trees=40)


def _lesions(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Balls of noise; every fourth has a bright shell of the same mean as the others."""
    rng = np.random.default_rng(seed)
    grid = np.indices((14,) * 3) - 6.5
    radius = np.sqrt((grid**2).sum(0))
    rows, grades = [], []
    for number in range(count):
        size, rim = rng.uniform(3.5, 6), number % 4 == 0
        shell = ((radius > size - 1.5) & (radius <= size)) * 60.0 * rim
        image = rng.normal(0, 10, radius.shape) + shell
        rows.append(radiomics(image - shell[radius <= size].mean(), radius <= size, (1, 1, 1), 25.0))
        grades.append(int(rim))
    return np.array(rows), np.array(grades)


def test_it_learns_and_is_the_same_for_a_seed() -> None:
    rows, grades = _lesions(80, 0)
    unseen, truth = _lesions(40, 1)
    first, second = (RadiomicsForest(SMALL).fit(rows, grades).predict(unseen) for _ in range(2))
    assert np.array_equal(first, second)
    assert first.shape == (40,)
    assert (first >= 0).all()
    assert (first <= 1).all()
    assert first[truth == 1].min() > first[truth == 0].max()
    assert len(RadiomicsForest(SMALL).fit(rows, grades).predict(unseen[:0])) == 0


def test_saved_trees_answer_as_scikit_learns_own(tmp_path: Path) -> None:
    rows, grades = _lesions(60, 0)
    unseen, _ = _lesions(20, 1)
    RadiomicsForest(SMALL).fit(rows, grades).save(tmp_path / "forest", ["sub-1"])
    loaded = RadiomicsForest.load(tmp_path / "forest")
    theirs = RandomForestClassifier(40, min_samples_leaf=3, class_weight="balanced_subsample", random_state=0)
    expected = theirs.fit(rows, grades).predict_proba(unseen)[:, 1]
    np.testing.assert_allclose(loaded.predict(unseen), expected, rtol=0, atol=1e-12)
    assert loaded.trained_on == ("sub-1",)


@pytest.mark.parametrize("damage", [{"left": 0}, {"right": 10**6}, {"column": 60}, {"root": -1}])
def test_a_forest_that_would_not_end_is_refused(damage: dict[str, int], tmp_path: Path) -> None:
    forest = RadiomicsForest(SMALL).fit(*_lesions(20, 0))
    for name, value in damage.items():
        forest._nodes[name][0] = value
    forest.save(tmp_path / "forest", [])
    with pytest.raises(CheckpointError, match="no trees over 60 columns"):
        RadiomicsForest.load(tmp_path / "forest")


@pytest.mark.parametrize(
    "damage", [{"columns": "many"}, {"settings": []}, {"format": "oligovox-forest/9"}, {"sha256": ""}]
)
def test_a_changed_description_is_one_line(damage: dict[str, object], tmp_path: Path) -> None:
    RadiomicsForest(SMALL).fit(*_lesions(20, 0)).save(tmp_path / "forest", [])
    file = tmp_path / "forest" / "forest.json"
    write_json(file, read_json(file) | damage)
    with pytest.raises(CheckpointError, match=r"forest\.json.*train again"):
        RadiomicsForest.load(tmp_path / "forest")


def test_unknown_grades_are_left_out() -> None:
    rows, grades = _lesions(40, 0)
    unseen, _ = _lesions(8, 1)
    more = np.concatenate([rows, rows * 100]), np.concatenate([grades, np.full(40, -1)])
    expected = RadiomicsForest(SMALL).fit(rows, grades).predict(unseen)
    assert np.array_equal(RadiomicsForest(SMALL).fit(*more).predict(unseen), expected)


def test_what_does_not_fit_is_said() -> None:
    rows, grades = _lesions(8, 0)
    with pytest.raises(LabelError, match="needs both classes"):
        RadiomicsForest(SMALL).fit(rows, np.zeros(8, int))
    with pytest.raises(GeometryError, match="one grade a row"):
        RadiomicsForest(SMALL).fit(rows, grades[:4])
    with pytest.raises(GeometryError, match="expected 60 numbers a lesion"):
        RadiomicsForest(SMALL).fit(rows, grades).predict(rows[:, :5])


def test_rows_are_those_of_qsm_in_ppb_in_the_lesion_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.random((2, 2, 8, 8, 8)).astype(np.float16)
    seen = rng.integers(0, 3, (2, 8, 8, 8)).astype(np.uint8)
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "seen.npy", seen)
    place = {"dataset": "", "subject": "01", "session": "", "position_mm": (0.0, 0.0, 0.0), "volume_mm3": 1.0}
    rest = {"around_mm": 5.0, "grade": 1, "uncertain": False, "folder": tmp_path}
    lesions = [StoredLesion(exam="sub-01", number=n, **place, **rest) for n in (2, 1)]
    rows = lesion_rows(lesions, LesionPlan(spacing=2.0, qsm_ppb=200.0))
    assert rows.shape == (2, 60)
    values = image[1, 0].astype(float)[seen[1] == 2] * 400 - 200
    first = dict(zip(FEATURES, rows[0], strict=True))
    assert first["mean"] == pytest.approx(values.mean())
    assert first["volume_mm3"] == 8 * (seen[1] == 2).sum()
    assert not np.array_equal(rows[0], rows[1])
