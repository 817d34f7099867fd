from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from oligovox.errors import GeometryError, LabelError, SettingsError
from oligovox.metrics.protocols import chaos
from oligovox.metrics.protocols.chaos import Settings, metric_scores, over_cohort, score
from oligovox.settings import parse

METRICS = ("dice", "ravd_percent", "assd_mm", "mssd_mm")
SCORES = ("dice_score", "ravd_score", "assd_score", "mssd_score")


def organs(seed, share):
    """A label map of lumps of 1 to 4 that reach the ends of the array."""
    rng = np.random.default_rng(seed)
    noise = ndimage.uniform_filter(rng.random((9, 8, 7)), 2)
    where = ndimage.uniform_filter(rng.random(noise.shape), 3)
    label = np.digitize(where, np.quantile(where, [0.25, 0.5, 0.75])) + 1
    return np.where(noise > np.quantile(noise, 1 - share), label, 0)


maps = st.builds(organs, st.integers(0, 999), st.floats(0, 0.9))
spacings = st.sampled_from([(1, 1, 1), (1.5, 1.25, 6)])


def slow(prediction, truth, spacing):
    """The four metrics of two masks by brute force, None where undefined."""

    def border(mask):
        found = []
        for voxel in np.argwhere(mask):
            neighbours = [voxel + step for step in [*np.eye(3, dtype=int), *-np.eye(3, dtype=int)]]
            within = [tuple(n) for n in neighbours if (n >= 0).all() and (n < mask.shape).all()]
            if not all(mask[n] for n in within):
                found.append(voxel * np.array(spacing))
        return np.array(found)

    p, t = prediction.sum(), truth.sum()
    dice = 2 * (prediction & truth).sum() / (p + t) if p + t else None
    ravd = 100 * abs(p - t) / t if t else None
    edges = border(prediction), border(truth)
    if not all(map(len, edges)):
        return dice, ravd, None, None
    apart = np.linalg.norm(edges[0][:, None] - edges[1][None], axis=-1)
    pooled = np.concatenate([apart.min(axis=0), apart.min(axis=1)])
    return dice, ravd, pooled.mean(), pooled.max()


def test_worked_values():
    assert metric_scores(0.95, 2, 1.5, 12) == pytest.approx(
        {"score": 81.25, "dice_score": 95, "ravd_score": 60, "assd_score": 90, "mssd_score": 80}
    )
    assert set(metric_scores(0.79, 6, 16, 61).values()) == {0}


def test_scores_at_the_thresholds():
    assert tuple(metric_scores(0.8, 5, 15, 60).values()) == pytest.approx((20, 80, 0, 0, 0))
    assert tuple(metric_scores(1, 0, 0, 0).values()) == (100,) * 5
    assert set(metric_scores(*[np.nan] * 4).values()) == {0}
    wide = Settings(min_dice=0.5, max_ravd_percent=10, max_assd_mm=30, max_mssd_mm=120)
    assert metric_scores(0.6, 5, 15, 60, wide)["score"] == pytest.approx((60 + 50 + 50 + 50) / 4)


@settings(max_examples=60, deadline=None)
@given(maps, maps, spacings)
def test_equals_brute_force(prediction, truth, spacing):
    regions = score(prediction, truth, spacing).regions
    for organ, value in chaos.DEFAULT.organs.items():
        expected = slow(prediction == value, truth == value, spacing)
        found = regions[organ]
        for name, number in zip(METRICS, expected, strict=True):
            assert found[name] == (None if number is None else pytest.approx(number, abs=1e-9)), (organ, name)
        if expected[0] is not None:
            assert found["score"] == pytest.approx(np.mean([found[name] for name in SCORES]))
            defined = [np.nan if number is None else number for number in expected]
            assert found["score"] == pytest.approx(metric_scores(*defined)["score"], abs=1e-6)


def test_where_the_field_of_view_ends_is_no_border():
    """Two bars through the whole array, one voxel apart: the cut faces would pull the mean distance down."""
    truth, prediction = np.zeros((2, 5, 9, 9), dtype=int)
    truth[:, 3:6, 3:6] = prediction[:, 4:7, 3:6] = 1
    found = score(prediction, truth, (1, 1, 1), Settings(organs={"liver": 1})).regions["liver"]
    assert found["assd_mm"] == pytest.approx(8 / 16)  # a ring of 8 voxels in each slice, 4 of them on the other ring
    inside = [np.pad(mask[1:4], ((3, 3), (0, 0), (0, 0))) for mask in (prediction, truth)]
    closed = score(*inside, (1, 1, 1), Settings(organs={"liver": 1})).regions["liver"]
    assert closed["assd_mm"] != pytest.approx(found["assd_mm"])


@settings(max_examples=25, deadline=None)
@given(maps, maps, spacings, st.sampled_from([0, 1, 2]))
def test_flips_order_of_organs_and_label_values_do_not_matter(prediction, truth, spacing, axis):
    there = score(prediction, truth, spacing).regions
    back = score(np.flip(prediction, axis), np.flip(truth, axis), spacing).regions
    grey = np.array([0, 63, 126, 189, 252])
    same = Settings(organs=dict(reversed([*zip(chaos.DEFAULT.organs, map(int, grey[1:]), strict=True)])))
    other = score(grey[prediction], grey[truth], spacing, same).regions
    assert list(other) == list(reversed(there))
    for organ, numbers in there.items():
        assert back[organ] == pytest.approx(numbers)
        assert other[organ] == numbers


@settings(max_examples=25, deadline=None)
@given(maps, maps)
def test_symmetry_and_a_copy(prediction, truth):
    there, back = (score(*pair, (1, 2, 3)).regions for pair in [(prediction, truth), (truth, prediction)])
    for organ, numbers in there.items():
        for name in ("dice", "assd_mm", "mssd_mm"):
            assert numbers[name] == pytest.approx(back[organ][name])
    for organ, numbers in score(truth, truth, (1, 2, 3)).regions.items():
        if (truth == chaos.DEFAULT.organs[organ]).any():
            assert tuple(numbers[name] for name in METRICS) == (1, 0, 0, 0)
            assert numbers["score"] == 100


def ball(radius, side=24):
    axes = np.stack(np.meshgrid(*[np.arange(side) - side / 2] * 3, indexing="ij"))
    return ((axes**2).sum(axis=0) <= radius**2).astype(int)


def test_added_false_voxels_never_help():
    truth, liver = ball(8), Settings(organs={"liver": 1})
    prediction, last = truth.copy(), 100.0
    for x in range(0, 6, 2):
        prediction[x, :4, :4] = 1
        now = score(prediction, truth, (1, 1, 1), liver).regions["liver"]["score"]
        assert now < last
        last = now


FULL, SOME, NONE = (
    np.ones((4, 4, 4), dtype=int),
    np.pad(np.ones((2, 2, 2), dtype=int), 1),
    np.zeros((4, 4, 4), dtype=int),
)


@pytest.mark.parametrize(
    ("prediction", "truth", "metrics", "scores"),
    [
        (NONE, SOME, (0, 100, None, None), (0, 0, 0, 0)),
        (SOME, NONE, (0, None, None, None), (0, 0, 0, 0)),
        (NONE, NONE, (None,) * 4, (None,) * 4),
        (FULL, SOME, (2 * 8 / 72, 700, None, None), (0, 0, 0, 0)),
        (FULL, FULL, (1, 0, None, None), (100, 100, 0, 0)),
    ],
)
def test_the_table_of_empty_masks(prediction, truth, metrics, scores):
    found = score(prediction, truth, (1, 1, 1), Settings(organs={"liver": 1})).regions["liver"]
    assert tuple(found[name] for name in METRICS) == metrics
    assert tuple(found[name] for name in SCORES) == scores
    assert found["score"] == (None if None in scores else np.mean(scores))


def test_the_final_score_is_the_mean_over_organs_and_cases():
    """The second case lacks a spleen in both maps: it does not count."""
    first, second = organs(1, 0.5), organs(2, 0.5)
    second[second == 4] = 0
    guess = organs(3, 0.5)
    guess[guess == 4] = 0
    results = {"one": score(organs(1, 0.52), first, (1, 1, 1)), "two": score(second, second, (1, 1, 1))}
    results["three"] = score(guess, second, (1, 1, 1))
    rows = [row["score"] for result in results.values() for row in result.regions.values()]
    kept = [row for row in rows if row is not None]
    assert (len(rows), len(kept)) == (12, 10)
    assert over_cohort(results) == {"score": pytest.approx(sum(kept) / 10)}
    assert over_cohort({}) == {"score": None}


def test_names_and_labels():
    result = score(organs(1, 0.5), organs(2, 0.5), (1, 1, 1))
    assert list(result.regions) == ["liver", "right_kidney", "left_kidney", "spleen"]
    assert result.lesions == ()
    assert set(chaos.MAIN) <= set(chaos.BEST) == set(result.regions["liver"])
    assert chaos.known_labels() == {1, 2, 3, 4}
    assert chaos.known_labels(Settings(organs={"liver": 63})) == {63}


def test_wrong_input_is_refused():
    with pytest.raises(GeometryError, match="one grid"):
        score(SOME, SOME[1:], (1, 1, 1))
    with pytest.raises(GeometryError, match="spacing"):
        score(NONE, NONE, (1, 1, -1))
    with pytest.raises(LabelError, match="threshold"):
        score(SOME * 0.5, SOME, (1, 1, 1))
    for wrong in ({}, {"liver": 0}, {"liver": 1, "spleen": 1}):
        with pytest.raises(SettingsError, match="own label value"):
            parse(Settings, {"organs": wrong}, "--set")
