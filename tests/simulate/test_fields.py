import numpy as np

from oligovox.simulate.fields import smooth_field, smoothstep


def test_a_field_has_mean_0_and_variance_1_at_every_voxel():
    fields = np.stack([smooth_field(np.random.default_rng(seed), (9, 7, 5), 1.0, 2.0) for seed in range(3000)])
    assert np.abs(fields.mean(axis=0)).max() < 0.1
    assert np.abs(fields.var(axis=0) - 0.96).max() < 0.12  # 0.96: clipping at 2.5 standard deviations


def test_a_field_is_smooth_over_its_scale_and_forgets_beyond_four():
    field = smooth_field(np.random.default_rng(0), (400, 30, 30), 1.0, 8.0)
    along = [np.corrcoef(field[:-lag].ravel(), field[lag:].ravel())[0, 1] for lag in (1, 8, 40)]
    assert along[0] > 0.98
    assert 0.3 < along[1] < 0.7
    assert abs(along[2]) < 0.2


def test_smoothstep_is_level_outside_and_half_way_in_the_middle():
    value = np.array([-5, 1, 2, 3, 9], dtype=np.float32)
    np.testing.assert_allclose(smoothstep(value, 1, 3), [0, 0, 0.5, 1, 1])
