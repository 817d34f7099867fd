import numpy as np
import pytest
from scipy import fft, integrate, ndimage

from oligovox.simulate.physics.dipole import dipole_kernel, divide, division_factor, field_shift, solve

CHI = 1000.0  # ppb


def cube(side):
    return np.stack(np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 3, indexing="ij"))


def supersampled(inside, side, times=3):
    """Fraction of each voxel that is `inside(points)`."""
    offsets = (np.arange(times) - (times - 1) / 2) / times
    shifts = np.array(np.meshgrid(*[offsets] * 3)).reshape(3, -1).T
    return np.mean([inside(cube(side) + shift[:, None, None, None]) for shift in shifts], axis=0, dtype=np.float32)


@pytest.fixture(scope="module")
def sphere():
    side, radius = 64, 9.0
    chi = CHI * supersampled(lambda p: (p**2).sum(0) <= radius**2, side)
    return chi.astype(np.float32), np.linalg.norm(cube(side), axis=0), radius


def test_the_kernel_is_minus_two_thirds_along_b0_and_a_third_across():
    straight = dipole_kernel((8, 10, 12), (1, 1, 1))
    assert straight.shape == (8, 10, 7)
    assert straight[0, 0, 0] == 0
    np.testing.assert_allclose(straight[0, 0, 1:], -2 / 3, atol=1e-6)
    np.testing.assert_allclose(straight[1:, 1:, 0], 1 / 3, atol=1e-6)
    across = dipole_kernel((12, 10, 8), (1, 1, 1), (5, 0, 0))  # the same with two axes exchanged, any length of b0
    np.testing.assert_allclose(across[0:7, :, 0:5], straight.transpose(2, 1, 0)[:, :, 0:5], atol=1e-6)


def test_a_sphere_has_the_field_of_a_dipole_outside_and_none_inside(sphere):
    chi, r, radius = sphere
    field = field_shift(chi, (1, 1, 1))
    cosine = cube(64)[2] / r
    analytic = CHI / 3 * (radius / r) ** 3 * (3 * cosine**2 - 1)
    outside = (r > radius + 2) & (r < 30)
    assert np.sqrt(np.mean((field - analytic)[outside] ** 2)) < 0.001 * CHI / 3
    assert np.abs(field - analytic)[outside].max() < 0.015 * CHI / 3
    assert abs(field[r < radius - 2].mean()) < 1e-4 * CHI
    assert np.abs(field[r < radius - 2]).max() < 0.015 * CHI / 3


def test_a_long_cylinder_across_b0():
    side, radius = 96, 6.0
    chi = CHI * supersampled(lambda p: p[1] ** 2 + p[2] ** 2 <= radius**2, side)[:8].astype(np.float32)
    field = field_shift(chi, (1, 1, 1), pad=0.0)[4]  # without padding the cylinder meets itself: it has no ends
    _, y, z = cube(side)[:, 0]
    r = np.hypot(y, z)
    analytic = np.where(r > radius, CHI / 2 * (radius / np.maximum(r, 1)) ** 2 * (z**2 - y**2) / r**2, -CHI / 6)
    for where in ((r > radius + 2) & (r < 24), r < radius - 2):
        assert np.abs(field - analytic)[where].max() < 0.012 * CHI


def test_the_forward_model_agrees_with_another_library():
    other = pytest.importorskip("qsm_forward", reason="pip install qsm-forward")
    rng = np.random.default_rng(0)
    chi = np.zeros((16, 20, 24), np.float32)  # smooth: at the highest frequency a tilted dipole has no unique sign
    chi[3:-3, 3:-3, 3:-3] = ndimage.gaussian_filter(rng.normal(0, 1000, (10, 14, 18)), 1.2)
    chi = ndimage.gaussian_filter(chi, 0.8)
    chi[-1, -1, -1] = 0  # that library pads with the last voxel
    spacing, b0 = (1.0, 1.0, 2.0), np.array([0.2, -0.3, 1.0]) / np.linalg.norm([0.2, -0.3, 1.0])
    theirs = other.generate_field(chi.astype(np.float64), voxel_size=list(spacing), B0_dir=list(b0))
    theirs -= chi.mean() / 8 / 3  # it has D(0) = 1/3, which adds a third of the mean over the padded grid
    np.testing.assert_allclose(field_shift(chi, spacing, b0, pad=1.0), theirs, atol=3e-3 * np.abs(theirs).max())


# Made with qsm-forward 0.32 and the `chi` of the test:
#     field = qsm_forward.generate_field(chi, voxel_size=[1, 1, 2], B0_dir=list(b0))
#     [round(float(field[at]), 3) for at in PLACES]
PLACES = ((6, 11, 9), (10, 8, 14), (6, 11, 13), (11, 11, 9), (6, 5, 9), (9, 14, 6), (2, 3, 20))
STORED = {
    (0.0, 0.0, 1.0): (152.118, -63.035, 120.053, -56.509, -45.327, 11.119, 1.892),
    (0.36, -0.48, 0.8): (61.467, -0.09, 29.702, -41.984, -11.006, -5.449, 2.363),
}


@pytest.mark.parametrize("b0", STORED)
def test_the_forward_model_gives_the_stored_numbers_of_another_library(b0):
    x, y, z = np.ogrid[:16, :20, :24]
    chi = 1000 * np.exp(-((x - 6) ** 2 + (y - 11) ** 2 + (z - 9) ** 2) / 8)
    chi -= 500 * np.exp(-((x - 10) ** 2 + (y - 8) ** 2 + (z - 14) ** 2) / 6)
    theirs = np.array(STORED[b0]) - chi.mean() / 8 / 3  # it has D(0) = 1/3, as below
    ours = field_shift(chi.astype(np.float32), (1.0, 1.0, 2.0), b0, pad=1.0)
    np.testing.assert_allclose([ours[at] for at in PLACES], theirs, atol=0.01)


@pytest.mark.parametrize("threshold", [0.05, 0.1, 0.19, 0.3])
def test_what_the_division_loses_on_average(threshold, sphere):
    kept, _ = integrate.quad(lambda u: min(1, abs(1 / 3 - u * u) / threshold), 0, 1, points=[3**-0.5], limit=200)
    assert division_factor(threshold) == pytest.approx(kept, abs=1e-6)
    chi, r, radius = sphere
    field = field_shift(chi, (1, 1, 1))
    inside = r < radius - 2
    plain = divide(field, (1, 1, 1), threshold=threshold, corrected=False, pad=0.5)
    assert plain[inside].mean() / CHI == pytest.approx(division_factor(threshold), abs=0.03)
    assert divide(field, (1, 1, 1), threshold=threshold, pad=0.5)[inside].mean() / CHI == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("shape", [(5, 6, 6), (6, 5, 5)])
def test_the_iterative_inversion_minimises_what_it_says(shape):
    rng = np.random.default_rng(1)
    field, weight = rng.normal(size=(2, *shape)).astype(np.float32)
    weight = np.abs(weight) + 0.1
    unit = np.eye(field.size).reshape(-1, *shape)
    kernel = dipole_kernel(shape, (1, 1, 1))
    dipole = fft.irfftn(fft.rfftn(unit, axes=(1, 2, 3)) * kernel, shape, axes=(1, 2, 3)).reshape(field.size, -1).T
    steps = [(np.roll(unit, -1, axis) - unit).reshape(field.size, -1).T for axis in (1, 2, 3)]
    rows = [weight.ravel()[:, None] * dipole, *(np.sqrt(0.02) * step for step in steps)]
    right = np.concatenate([(weight * field).ravel(), np.zeros(3 * field.size)])
    expected = np.linalg.lstsq(np.concatenate(rows), right, rcond=None)[0]
    found = solve(field, weight, (1, 1, 1), regularisation=0.02, iterations=100, pad=0.0).ravel()
    np.testing.assert_allclose(found - found.mean(), expected - expected.mean(), atol=0.01)
