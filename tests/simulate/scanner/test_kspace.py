import math

import numpy as np
import pytest
from scipy import ndimage

from oligovox.simulate.scanner.kspace import (
    Placement,
    averaged,
    ghost_lines,
    read_out,
    rician,
    rotation,
    slice_profile,
    window,
)

NONE = np.ones(48, np.complex64)


def no_noise(image, resolution=1.0, ringing=1.0, lines=None, spacing=1.0):
    windows = tuple(window(image.shape[a], spacing, resolution, ringing) for a in (1, 0))
    lines = np.ones(image.shape[1], np.complex64) if lines is None else lines
    return read_out(np.random.default_rng(0), image, windows, lines, (1, 0), 0.0)


def test_noise_is_rician():
    rng = np.random.default_rng(0)
    for full in (True, False):  # white, and through a window: the same distribution in one voxel
        kept = (window(60, 1.0, 1.0 if full else 1.7, 0.4 if not full else 1.0),) * 2
        lines = np.ones(60, np.complex64)
        air = read_out(rng, np.zeros((60, 60, 60), np.float32), kept, lines, (0, 1), 2.0)
        assert air.mean() == pytest.approx(2 * math.sqrt(math.pi / 2), rel=0.01)
        assert air.std() == pytest.approx(2 * math.sqrt(2 - math.pi / 2), rel=0.02)
        flat = read_out(rng, np.full((60, 60, 60), 40, np.float32), kept, lines, (0, 1), 2.0)
        gain = float(kept[0][0] * kept[1][0])
        assert np.mean(flat**2) == pytest.approx((40 * gain) ** 2 + 2 * 2**2, rel=0.003)
        assert flat.std() == pytest.approx(2, rel=0.03)
    assert rician(rng, np.full((40, 40, 40), 3, np.float32), 1.0).var() < 1  # less than the Gaussian's at low signal


def test_noise_through_a_narrow_window_is_smooth():
    kept = (window(64, 1.0, 2.0, 1.0), window(64, 1.0, 1.0, 1.0))
    lines = np.ones(64, np.complex64)
    noise = read_out(np.random.default_rng(1), np.full((64, 64, 64), 50, np.float32), kept, lines, (0, 1), 1.0) - 50
    beside = [np.mean(noise * np.roll(noise, 1, axis)) / noise.var() for axis in range(3)]
    assert beside[0] == pytest.approx(2 / math.pi, abs=0.02)  # sinc(1 / 2)
    assert np.abs(beside[1:]).max() < 0.02


def test_gibbs_overshoot_of_a_box_is_nine_per_cent_and_a_filter_removes_it():
    box = np.zeros((512, 4, 2), np.float32)
    box[128:384] = 1
    assert no_noise(box, resolution=8.0).max() == pytest.approx(1.0895, abs=0.01)
    assert no_noise(box, resolution=8.0, ringing=0.0).max() < 1.01
    assert np.array_equal(no_noise(box, resolution=0.5), box)  # finer than a voxel: untouched


def test_ghosts_lie_where_they_should_with_opposite_signs():
    image = np.full((8, 48, 3), 10, np.float32)
    image[:, 20] = 110
    ghosted = no_noise(image, lines=ghost_lines(48, 12.0, 0.03))
    assert ghosted[:, 32].mean() - 10 == pytest.approx(3.0, rel=0.02)
    assert ghosted[:, 8].mean() - 10 == pytest.approx(-3.0, rel=0.02)
    assert np.abs(ghosted[:, [2, 14, 26, 40]] - 10).max() < 0.05


def test_slices_average_and_keep_the_mean():
    ball = np.linalg.norm(np.indices((40, 40, 40)) - 19.3, axis=0) < 12
    profile = slice_profile(40, 1.0, 4.0, 0.0)
    assert profile.shape == (10, 40)
    np.testing.assert_allclose(profile.sum(1), 1, rtol=1e-6)
    assert (ball @ profile.T).mean() == pytest.approx(ball.mean(), rel=1e-5)
    np.testing.assert_allclose(profile[3], [0.25 if 12 <= k < 16 else 0 for k in range(40)], atol=1e-6)
    gapped = slice_profile(40, 1.0, 4.0, 1.0)
    assert gapped.shape[0] == 8
    assert (ball @ gapped.T).mean() == pytest.approx(ball.mean(), rel=0.03)
    assert np.array_equal(slice_profile(9, 2.0, 1.5, 0.0), np.eye(9, dtype=np.float32))


def test_a_known_displacement_is_found_by_cross_correlation():
    rng = np.random.default_rng(2)
    image = ndimage.gaussian_filter(rng.standard_normal((40, 40, 40)), 2).astype(np.float32)
    place = Placement((40, 40, 40), (2.0, 2.0, 2.0), 2, 40, 2.0, (4.0, 0.0, -6.0), (0.0, 0.0, 0.0))
    moved = place.deliver(image)
    peak = np.fft.ifftn(np.fft.fftn(image) * np.conj(np.fft.fftn(moved))).real
    found = np.array(np.unravel_index(peak.argmax(), peak.shape))
    assert ((found + 20) % 40 - 20).tolist() == [2, 0, -3]


def test_rotation_turns_about_the_middle():
    np.testing.assert_allclose(rotation((0, 0, 90)) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(rotation((3, 5, 7)) @ rotation((3, 5, 7)).T, np.eye(3), atol=1e-12)
    dot = np.zeros((21, 21, 21), np.float32)
    dot[10, 14, 10] = 1
    place = Placement(dot.shape, (1.0, 1.0, 1.0), 2, 21, 1.0, (0.0, 0.0, 0.0), (0.0, 0.0, 90.0))
    assert np.argwhere(place.deliver(dot) > 0.5).tolist() == [[14, 10, 10]]


def test_thick_slices_are_interpolated_onto_the_grid():
    ramp = np.broadcast_to(np.arange(40, dtype=np.float32), (4, 4, 40))
    place = Placement((4, 4, 40), (1.0, 1.0, 1.0), 2, 10, 4.0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    back = place.deliver(np.asarray(ramp @ slice_profile(40, 1.0, 4.0, 0.0).T, np.float32))
    np.testing.assert_allclose(back[..., 2:38], ramp[..., 2:38], atol=1e-4)


def test_smoothing_is_what_interpolation_leaves_of_white_noise():
    white = np.random.default_rng(3).standard_normal((60, 60, 20)).astype(np.float32)
    place = Placement((60, 60, 60), (1.0, 1.0, 1.0), 2, 20, 3.0, (0.4, -0.3, 0.2), (1.0, 0.5, -0.7))
    left = np.sqrt(np.mean(place.deliver(white)[4:-4, 4:-4, 4:-4] ** 2))
    assert place.smoothing() == pytest.approx(left, rel=0.05)


def test_noise_of_an_averaged_scan():
    one = (1.0, 1.0, 1.0)
    assert averaged(one, 2, 1.0, 0.5, 3.0) == pytest.approx(1)
    coarse = averaged((2.0, 2.0, 2.0), 2, 0.25, 1.0, 1.0)
    # by hand: linearly interpolated white noise has the variance 2/3 and, one voxel on, the covariance 1/6 on every axis
    assert coarse == pytest.approx(math.sqrt((1 + 1 / 4) / 2) ** 3, rel=0.08)
    assert 0.36 < coarse < averaged((2.0, 2.0, 2.0), 2, 1.2, 0.0, 4.0) < 1
    assert averaged((0.8, 0.8, 0.8), 2, 1.0, 0.5, 1.0) > 1
