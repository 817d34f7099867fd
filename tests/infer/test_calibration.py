"""Slope and offset of the logit: what was sure too soon is made less sure, and no order changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from oligovox.infer.calibration import Calibration, calibration_of


def drawn(people=4000, seed=0):
    """True probabilities, and lesions drawn by them."""
    rng = np.random.default_rng(seed)
    true = expit(rng.normal(-2.0, 1.5, people))
    return true, (rng.random(people) < true).astype(int)


def test_a_classifier_that_is_too_sure_and_speaks_of_halves_is_set_right():
    true, truth = drawn()
    said = expit(3 * (logit(true) + 2.0))  # three times as sure, and as if rims were 7 times as frequent
    found = calibration_of(said, truth)
    assert (found.slope, found.offset) == pytest.approx((1 / 3, -2.0), abs=0.15)
    assert found(said).mean() == pytest.approx(truth.mean(), abs=2e-3)


def test_it_is_the_best_line_of_all_beside_it():
    _, truth = drawn(60, seed=1)
    said = expit(np.random.default_rng(2).normal(truth * 2.0, 1.5))
    target = np.where(truth > 0, (truth.sum() + 1) / (truth.sum() + 2), 1 / ((1 - truth).sum() + 2))

    def error(slope, offset):
        p = Calibration(slope, offset)(said)
        return -(target * np.log(p) + (1 - target) * np.log1p(-p)).mean()

    best = calibration_of(said, truth)
    for slope, offset in ((0.05, 0), (-0.05, 0), (0, 0.05), (0, -0.05)):
        assert error(best.slope, best.offset) < error(best.slope + slope, best.offset + offset)


def test_lesions_told_apart_without_an_error_do_not_end_at_0_and_1():
    found = calibration_of([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1])
    assert found(np.array([0.1, 0.9])) == pytest.approx([0.25, 0.75], abs=0.06)
    assert found.slope < 1


def test_an_order_that_is_wrong_on_a_few_lesions_is_not_turned_round():
    found = calibration_of([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0])
    assert (np.diff(found(np.array([0.1, 0.5, 0.9]))) > 0).all()


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.data())
def test_every_list_of_probabilities_gives_probabilities_in_the_same_order(values, data):
    truth = [0, 1, *data.draw(st.lists(st.integers(0, 1), min_size=len(values) - 2, max_size=len(values) - 2))]
    said = np.sort(np.array(values))
    after = calibration_of(said, truth)(said)
    assert np.isfinite(after).all()
    assert (np.diff(after) >= -1e-12).all()
    assert ((after >= 0) & (after <= 1)).all()


def test_of_few_rims_only_the_slope_is_fitted():
    """Three rims that a network misses by far, and 40 others: a free offset follows the three, the usual one does not."""
    said = np.concatenate([expit(np.linspace(-9, -3, 40)), expit(np.array([-6.0, 2.0, 8.0]))])
    truth = np.repeat([0, 1], [40, 3])
    free, held = calibration_of(said, truth), calibration_of(said, truth, usual=-2.0)
    assert held.offset == -2.0 != pytest.approx(free.offset, abs=0.3)
    target = np.where(truth > 0, 4 / 5, 1 / 42)
    slopes = np.linspace(0.05, 2, 400)
    errors = [np.logaddexp(0, x := a * logit(said) - 2.0).sum() - target @ x for a in slopes]
    assert held.slope == pytest.approx(slopes[np.argmin(errors)], abs=0.01)
    enough = np.tile(truth, 4)
    assert calibration_of(np.tile(said, 4), enough, usual=-2.0) == calibration_of(np.tile(said, 4), enough)


def test_without_a_fit_nothing_changes():
    said = np.array([0.0, 1e-9, 0.3, 1.0])
    assert (Calibration()(said) == said).all()
