import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from oligovox.simulate.anatomy.deformation import deformation, exponential, jacobian
from oligovox.simulate.anatomy.template import template

SPACING = 3.0


def draw(seed, widening):
    average = template(SPACING)
    return deformation(np.random.default_rng(seed), average.white.shape, SPACING, average.push, widening)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), widening=st.floats(-8, 18))
def test_the_deformation_folds_nowhere_and_can_be_undone(seed, widening):
    drawn = draw(seed, widening)
    assert jacobian(drawn.where).min() > 0
    voxels = np.random.default_rng(0).integers(8, np.array(drawn.where.shape[1:]) - 8, (200, 3))
    there = drawn.where[:, voxels[:, 0], voxels[:, 1], voxels[:, 2]].T
    distance = np.linalg.norm(drawn.carry(there) - voxels, axis=1) * SPACING
    assert np.percentile(distance, 95) < 2.0  # mm


def test_the_jacobian_of_an_affine_map_is_its_determinant():
    grid = np.stack(np.meshgrid(*(np.arange(5.0, dtype=np.float32),) * 3, indexing="ij"))
    matrix = np.array([[1.1, 0.2, 0], [0, 0.9, 0.1], [0, 0, 1.2]], dtype=np.float32)
    np.testing.assert_allclose(jacobian(np.tensordot(matrix, grid, 1)), 1.1 * 0.9 * 1.2, rtol=1e-5)


def test_the_flow_of_a_velocity_that_grows_linearly_is_the_exponential():
    x = (np.arange(41, dtype=np.float32) - 20) * 5
    velocity = np.zeros((3, 41, 9, 9), dtype=np.float32)
    velocity[0] = 0.2 * x[:, None, None]
    moved = exponential(velocity, 5.0)
    np.testing.assert_allclose(moved[0, 8:33, 4, 4], np.expm1(0.2) * x[8:33], rtol=0.005, atol=0.01)
    assert not moved[1:].any()


def test_widening_moves_what_is_beside_the_ventricles_away_from_them():
    average = template(SPACING)
    beside = np.abs(average.to_ventricle - 6) < 3
    near = {
        w: average.to_ventricle[tuple(np.round(draw(0, w).where[:, beside]).astype(int))].mean() for w in (0.0, 10.0)
    }
    assert near[10.0] < near[0.0] - 0.5  # mm
