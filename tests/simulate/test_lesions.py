import numpy as np
import pytest

from oligovox.simulate.anatomy import draw_anatomy, template
from oligovox.simulate.lesions import draw_load, grow_confounders, grow_lesions


@pytest.fixture(scope="module")
def person():
    return draw_anatomy(np.random.default_rng(4), template(2.0))


def test_loads_follow_the_patients_and_stay_in_range():
    rng = np.random.default_rng(0)
    loads = np.array([draw_load(rng, 0.3, 52.0) for _ in range(4000)])
    assert loads.min() >= 0.3
    assert loads.max() <= 52.0
    low, median, high = np.percentile(loads, (25, 50, 75))  # patients: 1.8, 13.9, 28.2
    assert 1.2 < low < 5
    assert 10 < median < 18
    assert 20 < high < 32
    narrow = [draw_load(rng, 90.0, 95.0) for _ in range(20)]
    assert 90 <= min(narrow) <= max(narrow) <= 95


@pytest.mark.parametrize("load", [0.5, 3.0, 12.0, 45.0])
def test_the_mask_has_the_load_asked_for(person, load):
    lesions = grow_lesions(np.random.default_rng(2), person, load)
    assert np.count_nonzero(lesions.mask) * 8 / 1000 == pytest.approx(load, abs=0.02)


def test_lesions_lie_in_white_matter_near_the_ventricles_and_are_soft_at_the_border(person):
    lesions = grow_lesions(np.random.default_rng(3), person, 20.0)
    assert lesions.fraction.min() >= 0
    assert np.all(lesions.fraction <= person.wm + person.gm + 1e-5)
    assert lesions.fraction[person.wm < 1e-3].max() < 0.01
    assert (person.wm[lesions.mask] > 0.5).mean() > 0.8
    white = person.wm > 0.5
    assert np.median(person.to_ventricle[lesions.mask]) < 0.6 * np.median(person.to_ventricle[white])
    assert ((lesions.fraction > 0.05) & (lesions.fraction < 0.95)).sum() > 0.3 * lesions.mask.sum()
    severity = lesions.severity[lesions.mask]
    assert 0 <= severity.min() < severity.max() <= 1
    assert severity.std() > 0.1  # not one brightness for a confluent mass


def test_confounders_are_mild_and_take_no_csf(person):
    other = grow_confounders(np.random.default_rng(0), person)
    assert 0.05 < other.dirty.max() <= 0.8
    assert np.median(other.dirty[person.wm > 0.9]) < 0.2
    assert 0 < other.perivascular.sum() * 8 < 3000  # mm³
    assert np.all(other.perivascular <= person.wm + person.gm + 1e-6)
