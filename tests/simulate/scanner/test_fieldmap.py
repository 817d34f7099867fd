import numpy as np
import pytest
from scipy import ndimage

from oligovox.errors import SettingsError
from oligovox.simulate.physics.dipole import field_shift
from oligovox.simulate.scanner.fieldmap import _sphere, fit_error, fit_phase, remove_background, traceable, unwrap

TE = (5.0, 11.0, 17.0, 23.0)


def ball(side, radius, at=None):
    middle = np.full(3, (side - 1) / 2) if at is None else np.asarray(at)
    axes = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"))
    return ((axes - middle[:, None, None, None]) ** 2).sum(0) <= radius**2


def echoes(gain, offset, te=TE, t2s=20.0):
    turn = offset[:, None] + gain[:, None] * np.arange(len(te))
    return (np.exp(1j * turn) * np.exp(-np.array(te) / t2s)).astype(np.complex64)


def test_the_line_through_the_phases_is_found_whatever_the_offset():
    rng = np.random.default_rng(0)
    gain, offset = rng.uniform(-3, 3, 200), rng.uniform(-20, 20, 200)
    np.testing.assert_allclose(fit_phase(echoes(gain, offset), TE), gain, atol=1e-4)
    np.testing.assert_allclose(fit_phase(echoes(gain + 2 * np.pi, offset), TE), gain, atol=1e-4)  # a wrap in space


@pytest.mark.parametrize("te", [TE, (20.0,)])
def test_noise_in_the_phase_is_what_the_signal_to_noise_ratio_says(te):
    rng = np.random.default_rng(1)
    clean, sigma = echoes(np.full(20000, 0.5), np.full(20000, 0.5), te), 0.005
    noisy = clean + sigma * (rng.standard_normal(clean.shape) + 1j * rng.standard_normal(clean.shape))
    expected = float(sigma * fit_error(np.abs(clean))[0])
    if len(te) == 1:
        assert expected == pytest.approx(sigma / np.exp(-1.0), rel=1e-5)  # one over the ratio
    assert np.std(fit_phase(noisy.astype(np.complex64), te)) == pytest.approx(expected, rel=0.02)


def test_many_wraps_in_space_are_undone():
    mask = ball(48, 20)
    r2 = ((np.stack(np.meshgrid(*[np.arange(48)] * 3, indexing="ij")) - 23.5) ** 2).sum(0)
    true = (25 * np.exp(-r2 / 60)).astype(np.float32)  # up to four turns, none at the border of the mask
    wrapped = np.angle(np.exp(1j * true)).astype(np.float32)
    found = unwrap(wrapped, mask, (1.0, 1.0, 1.0))
    error = (found - true)[mask]
    assert np.std(error) < 0.02
    assert np.ptp(true) > 3 * 2 * np.pi


def test_steps_too_steep_to_unwrap_leave_the_mask():
    phase = np.zeros((6, 6, 6), np.float32)
    phase[3:] = 2.5
    kept = traceable(phase, np.ones(phase.shape, bool))
    assert not kept[2:4].any()
    assert kept[:2].all()
    assert kept[4:].all()


def test_the_background_goes_and_the_local_field_stays():
    side, spacing = 64, (1.0, 1.0, 1.0)
    brain = ball(side, 24)
    outside = 9000.0 * ball(side, 4, (31.5, 4, 31.5))
    inside = 100.0 * ball(side, 4, (31.5, 33, 30))
    background, local = (field_shift(chi.astype(np.float32), spacing) for chi in (outside, inside))
    left, kept = remove_background(background, brain, spacing, (3, 5, 7, 9), 0.05)
    assert np.array_equal(kept, ndimage.distance_transform_edt(brain) > 3)
    assert not left[~kept].any()
    assert np.std(left[kept]) < 0.1 * np.std(background[kept])
    found, _ = remove_background(background + local, brain, spacing, (3, 5, 7, 9), 0.05)
    slope, _ = np.polyfit(local[kept], found[kept], 1)
    assert 0.85 < slope < 1.1
    assert np.corrcoef(local[kept], found[kept])[0, 1] > 0.9


@pytest.mark.parametrize("voxel", [3.5, 4.0])
def test_spheres_of_one_voxel_are_left_out(voxel):
    brain, spacing = ball(32, 13), (voxel,) * 3
    outside = 9000.0 * ball(32, 2, (15.5, 0, 15.5))
    background = field_shift(outside.astype(np.float32), spacing)
    radii = (3.0, 6.0, 9.0, 12.0, 15.0)
    left, kept = remove_background(background, brain, spacing, radii)
    expected, same = remove_background(background, brain, spacing, radii[1:])
    assert np.array_equal(kept, ndimage.distance_transform_edt(brain, sampling=spacing) > 6)
    assert np.array_equal(kept, same)
    assert np.array_equal(left, expected)
    with pytest.raises(SettingsError, match=rf"radii \(3.0,\) mm are all below the voxel size of {voxel:g} mm"):
        remove_background(background, brain, spacing, (3.0,))


@pytest.mark.parametrize(("side", "voxel"), [(243, 3.0), (75, 3.5), (48, 4.0)])  # 1/243 and 1/75 are rounded
def test_a_sphere_as_large_as_the_voxel_reaches_its_six_neighbours(side, voxel):
    found = _sphere((side, 8, 9), (voxel,) * 3, voxel)
    assert np.argwhere(found).tolist() == sorted(
        [[0, 0, 0], [1, 0, 0], [side - 1, 0, 0], [0, 1, 0], [0, 7, 0], [0, 0, 1], [0, 0, 8]]
    )
    assert found[0, 0, 0] == pytest.approx(1 / 7)
