import itertools

import numpy as np
import pytest
from scipy import ndimage

from oligovox.errors import LabelError, SettingsError
from oligovox.settings import parse
from oligovox.simulate.raters import Raters, consensus, draw_rater_labels, draw_raters

SHAPE = (60, 60, 60)
SURE = {"half_seen_mm3": (0.001, 0.001), "false_lesions": 0.0}


def balls(centres, radii, shape=SHAPE):
    """Soft balls and their numbers."""
    where = np.indices(shape)
    depth = [
        r - np.linalg.norm(where - np.reshape(c, (3, 1, 1, 1)), axis=0) for c, r in zip(centres, radii, strict=True)
    ]
    fraction = np.clip(np.max(depth, axis=0) + 0.5, 0, 1).astype(np.float32)
    return fraction, ndimage.label(fraction > 0.5, np.ones((3, 3, 3)))[0].astype(np.int32)


def test_a_rater_without_faults_draws_the_truth():
    fraction, instances = balls([(20, 20, 20), (40, 40, 41)], [6, 3])
    for mask in draw_raters(
        np.random.default_rng(0), fraction, instances, 1.0, Raters(bias_mm=(0, 0), wobble_mm=0, **SURE)
    ):
        assert np.array_equal(mask, instances > 0)


@pytest.mark.parametrize("bias", [-1.0, -0.4, 0.3, 1.0, 1.5])
def test_bias_moves_the_border_by_so_many_mm(bias):
    fraction, instances = balls([(30, 30, 30)], [10])
    (mask,) = draw_raters(
        np.random.default_rng(0), fraction, instances, 1.0, Raters(raters=1, bias_mm=(bias, bias), wobble_mm=0, **SURE)
    )
    assert np.cbrt(mask.sum() * 0.75 / np.pi) - 10 == pytest.approx(bias, abs=0.25)


def test_small_lesions_are_missed_more_often_and_doubtful_ones_too():
    centres = list(itertools.product((10, 25, 40), repeat=3))
    chance = Raters(raters=9, bias_mm=(0, 0), wobble_mm=0, half_seen_mm3=(30, 30), false_lesions=0)

    def found(radius, doubt):
        fraction, instances = balls(centres, [radius] * len(centres))
        masks = draw_raters(
            np.random.default_rng(0), fraction, instances, 1.0, chance, doubt=np.full(SHAPE, doubt, np.float32)
        )
        return np.mean([len(np.unique(instances[m])) - (not m.all()) * (0 in instances[m]) for m in masks]) / len(
            centres
        )

    chances = [found(r, 0.0) for r in (1.2, 1.93, 3.5)]
    assert chances[0] < 0.3
    assert chances[1] == pytest.approx(0.5, abs=0.15)  # 30 mm³
    assert chances[2] > 0.75
    assert found(1.93, 1.0) < 0.25


def test_false_lesions_are_small_and_only_where_something_looks_like_one():
    fraction, instances = balls([(15, 15, 15)], [4])
    doubt = np.zeros(SHAPE, np.float32)
    doubt[35:50, 35:50, 35:50] = 0.5
    masks = draw_raters(
        np.random.default_rng(0), fraction, instances, 1.0,
        Raters(raters=9, bias_mm=(0, 0), wobble_mm=0, half_seen_mm3=(0.001, 0.001), false_lesions=4), doubt=doubt,
    )  # fmt: skip
    false = [m & (instances == 0) for m in masks]
    assert all(not (f & (doubt == 0)).any() for f in false)
    counts = [ndimage.label(f, np.ones((3, 3, 3)))[1] for f in false]
    assert max(counts) > min(counts)
    assert 0 < np.mean([f.sum() for f in false]) < 300


def test_raters_agree_as_people_do_and_the_consensus_lies_between():
    rng = np.random.default_rng(5)
    shape = (80, 80, 80)
    fraction, instances = balls(rng.uniform(8, 72, (30, 3)), rng.lognormal(0.75, 0.4, 30), shape)
    agreement = []
    for seed in range(4):
        masks = draw_raters(np.random.default_rng(seed), fraction, instances, 1.0, Raters())
        agreement += [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in itertools.combinations(masks, 2)]
        volumes = [m.sum() for m in masks]
        assert min(volumes) <= consensus(masks).sum() <= max(volumes)
    assert 0.5 < np.mean(agreement) < 0.85
    again = draw_raters(np.random.default_rng(3), fraction, instances, 1.0, Raters())
    assert all(np.array_equal(a, b) for a, b in zip(again, masks, strict=True))


def test_consensus_is_a_vote_and_ties_are_present():
    a, b, c = (np.array(v, bool) for v in ([1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]))
    assert consensus((a, b, c)).tolist() == [True, False, False, False]
    assert consensus((a, b)).tolist() == [True, True, True, False]
    classes = [np.array(labels, np.uint8) for labels in ([1, 2, 0, 4, 0], [2, 2, 0, 0, 0], [2, 1, 3, 0, 4])]
    assert consensus(classes).tolist() == [2, 2, 0, 0, 0]
    assert consensus(classes[:2]).tolist() == [1, 2, 0, 4, 0]
    with pytest.raises(LabelError, match="shapes"):
        consensus(())
    with pytest.raises(LabelError, match="all of one shape"):
        consensus((a, a[:2]))


def test_class_borders_wander_and_classes_stay():
    where = np.linalg.norm(np.indices(SHAPE) - 29.5, axis=0)
    labels = np.select([where < 8, where < 13, where < 20], [1, 3, 2], 0).astype(np.uint8)
    exact = draw_rater_labels(np.random.default_rng(0), labels, 1.0, Raters(raters=2, bias_mm=(0, 0), wobble_mm=0))
    assert all(np.array_equal(labels, drawn) for drawn in exact)
    drawn = draw_rater_labels(np.random.default_rng(0), labels, (1.0, 1.0, 1.0), Raters(raters=3, bias_mm=(1.2, 1.2)))
    for each in drawn:
        assert set(np.unique(each)) == {0, 1, 2, 3}
        assert (each > 0).sum() > 1.05 * (labels > 0).sum()
        changed = each != labels
        assert 0.005 < changed.mean() < 0.2
        assert np.abs(where[changed][:, None] - [8, 13, 20]).min(1).max() < 5
    empty = np.zeros((5, 5, 5), np.uint8)
    assert not draw_rater_labels(np.random.default_rng(0), empty, 1.0, Raters(raters=1))[0].any()


def test_wrong_settings_are_refused():
    with pytest.raises(SettingsError, match=r"bias_mm = \(1.0, -1.0\); expected -5.0 <= lowest"):
        parse(Raters, {"bias_mm": (1.0, -1.0)}, "recipe")
