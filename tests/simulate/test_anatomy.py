import numpy as np
import pytest

from oligovox.simulate.anatomy import deformation, draw_anatomy, jacobian, template

SPACING = 3.0


@pytest.mark.parametrize("seed", range(6))
def test_the_deformation_folds_nowhere(seed):
    assert jacobian(deformation(np.random.default_rng(seed), template(SPACING))).min() >= 0.25


def test_the_jacobian_of_an_affine_map_is_its_determinant():
    grid = np.stack(np.meshgrid(*(np.arange(5.0, dtype=np.float32),) * 3, indexing="ij"))
    matrix = np.array([[1.1, 0.2, 0], [0, 0.9, 0.1], [0, 0, 1.2]], dtype=np.float32)
    np.testing.assert_allclose(jacobian(np.tensordot(matrix, grid, 1)), 1.1 * 0.9 * 1.2, rtol=1e-5)


def test_fractions_fill_the_brain_and_nothing_else():
    person = draw_anatomy(np.random.default_rng(1), template(SPACING))
    total = person.gm + person.wm + person.csf
    np.testing.assert_allclose(total[person.brain], 1, atol=1e-4)
    assert not total[~person.brain].any()
    assert min(m.min() for m in (person.gm, person.wm, person.csf)) >= 0
    litres = np.array([m.sum() for m in (person.gm, person.wm, person.csf)]) * SPACING**3 / 1e6
    assert 0.5 < litres[0] < 0.95  # what adults have
    assert 0.35 < litres[1] < 0.65
    assert not person.brain[[0, -1]].any()


def test_maps_lie_at_the_same_mm_at_every_spacing():
    centres = []
    for spacing in (2.0, 3.0):
        average = template(spacing)
        voxel = np.average(np.indices(average.wm.shape).reshape(3, -1), axis=1, weights=average.wm.ravel())
        centres.append((average.affine @ [*voxel, 1])[:3])
    np.testing.assert_allclose(centres[0], centres[1], atol=0.15)
    assert abs(centres[0][0]) < 0.1  # the average is symmetric
    ventricles = average.affine @ [*np.argwhere(average.to_ventricle == 0).mean(axis=0), 1]
    np.testing.assert_allclose(ventricles[:3], [0, -17, 10], atol=6)
