import math

import numpy as np
import pytest

from oligovox.simulate.scanner import bias_field, blur, rician, vary
from oligovox.simulate.sequences import FLAIR, SEQUENCES


def test_rician_worked_values():
    rng = np.random.default_rng(0)
    empty = rician(rng, np.zeros((60, 60, 60), np.float32), 2.0)
    assert empty.mean() == pytest.approx(2 * math.sqrt(math.pi / 2), rel=0.01)
    signal = rician(rng, np.full((60, 60, 60), 40.0, np.float32), 2.0)
    assert signal.std() == pytest.approx(2.0, rel=0.02)
    assert np.mean(signal**2) == pytest.approx(40**2 + 2 * 2**2, rel=0.002)


def test_the_bias_field_has_the_strength_asked_for():
    inside = np.ones((40, 50, 40), dtype=bool)
    field = bias_field(np.random.default_rng(3), inside.shape, 4.0, 0.15, inside)
    low, middle, high = np.percentile(field, (5, 50, 95))
    assert middle == pytest.approx(1, abs=0.01)
    assert math.log(high / low) == pytest.approx(0.30, rel=0.05)
    assert np.abs(np.diff(field, axis=0)).max() < 0.04


def test_blur_has_the_width_asked_for():
    point = np.zeros((41, 41, 41), dtype=np.float32)
    point[20, 20, 20] = 1
    spread = blur(point, (4.0, 2.0, 1.0), 0.5)
    assert spread.sum() == pytest.approx(1, rel=1e-4)
    assert spread[24, 20, 20] == pytest.approx(spread[20, 20, 20] / 2, rel=0.03)  # half of 4 mm to each side
    assert spread[20, 22, 20] == pytest.approx(spread[20, 20, 20] / 2, rel=0.03)


def test_timing_varies_a_little_and_csf_stays_dark():
    rng = np.random.default_rng(0)
    varied = [vary(rng, SEQUENCES["FLAIR"]) for _ in range(50)]
    assert len({s.tr for s in varied}) > 40
    typical = FLAIR()
    assert all(abs(s.tr / typical.tr - 1) <= 0.0601 and abs(s.ti / typical.ti - 1) <= 0.04 for s in varied)
