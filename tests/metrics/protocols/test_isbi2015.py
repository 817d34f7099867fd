from __future__ import annotations

import math

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from oligovox.errors import GeometryError, LabelError, SettingsError
from oligovox.metrics.protocols import isbi2015
from oligovox.metrics.protocols.isbi2015 import Settings, challenge_score, over_cohort, score
from oligovox.settings import parse

REACH = {6: 1, 18: 2, 26: 3}
masks = st.tuples(st.integers(0, 999), st.floats(0, 0.4)).map(
    lambda drawn: np.random.default_rng(drawn[0]).random((7, 6, 5)) < drawn[1]
)


def slow(prediction, truth, connectivity=18):
    """Dice, PPV, LFPR, LTPR and the partial score, lesion by lesion; None where a denominator is 0."""
    structure = ndimage.generate_binary_structure(3, REACH[connectivity])
    (seen, n), (lesions, m) = ndimage.label(prediction, structure), ndimage.label(truth, structure)
    if not m:
        silent = {"dice": None, "ppv": None, "lfpr": None} if not n else {"dice": 0, "ppv": 0, "lfpr": 1}
        return {**silent, "ltpr": None, "score_partial": None}
    dice = 2 * (prediction & truth).sum() / (prediction.sum() + truth.sum())
    ppv = (prediction & truth).sum() / prediction.sum() if n else 0
    lfpr = np.mean([not truth[seen == i].any() for i in range(1, n + 1)]) if n else 0
    ltpr = np.mean([prediction[lesions == i].any() for i in range(1, m + 1)])
    partial = 100 * (dice / 8 + ppv / 8 + (1 - lfpr) / 4 + ltpr / 4) * 4 / 3
    return {"dice": dice, "ppv": ppv, "lfpr": lfpr, "ltpr": ltpr, "score_partial": partial}


def metrics(prediction, truth, spacing=(1, 1, 1), rule=isbi2015.DEFAULT):
    return score(prediction, truth, spacing, rule).regions["lesion"]


def test_worked_values():
    assert challenge_score(0.6, 0.8, 0.3, 0.5, 0.9) == pytest.approx(70.0)
    assert challenge_score(0.6, 0.8, 0.3, 0.5) == pytest.approx(63.333333333)


@settings(max_examples=60, deadline=None)
@given(masks, masks, st.sampled_from([6, 18, 26]))
def test_equals_a_loop_over_lesions(prediction, truth, connectivity):
    found = metrics(prediction, truth, rule=Settings(connectivity=connectivity))
    for name, value in slow(prediction, truth, connectivity).items():
        assert found[name] == (None if value is None else pytest.approx(value, abs=1e-12)), name


@settings(max_examples=25, deadline=None)
@given(masks, masks, st.sampled_from([0, 1, 2]))
def test_flips_and_label_values_do_not_matter(prediction, truth, axis):
    there = metrics(prediction, truth, (1, 2, 3))
    assert metrics(np.flip(prediction, axis), np.flip(truth, axis), (1, 2, 3)) == pytest.approx(there)
    assert metrics(prediction * 7, truth * np.uint8(3) - (~truth).astype(int), (1, 2, 3)) == there


@settings(max_examples=25, deadline=None)
@given(masks)
def test_a_copy_is_perfect(truth):
    found = metrics(truth, truth)
    expected = {"score_partial": 100, "dice": 1, "jaccard": 1, "tpr": 1, "lfpr": 0, "volume_error": 0, "assd_mm": 0}
    assert {name: found[name] for name in expected} == (expected if truth.any() else dict.fromkeys(expected))


@settings(max_examples=25, deadline=None)
@given(masks, masks, st.integers(1, 3))
def test_every_false_lesion_costs(prediction, truth, added):
    truth[0, 0, 0] = True
    prediction, truth = (np.pad(mask, (0, 9)) for mask in (prediction, truth))
    worse = prediction.copy()
    for i in range(added):
        worse[-1, 2 * i, -1] = True
    before, after = metrics(prediction, truth), metrics(worse, truth)
    assert after["lesions_false"] == before["lesions_false"] + added
    assert after["score_partial"] <= before["score_partial"]
    assert after["ltpr"] == before["ltpr"]


SOME, NONE = np.pad(np.ones((2, 1, 1), dtype=bool), 1), np.zeros((4, 3, 3), dtype=bool)
NAMES = ("dice", "jaccard", "ppv", "tpr", "ltpr", "lfpr", "volume_error", "assd_mm", "empty_prediction")


@pytest.mark.parametrize(
    ("prediction", "truth", "partial", "expected"),
    [
        (NONE, SOME, pytest.approx(100 / 3), (0, 0, 0, 0, 0, 0, 1, None, 1)),
        (SOME, NONE, None, (0, 0, 0, None, None, 1, None, None, 0)),
        (NONE, NONE, None, (None,) * 8 + (0,)),
    ],
)
def test_the_table_of_empty_masks(prediction, truth, partial, expected):
    found = metrics(prediction, truth)
    assert tuple(found[name] for name in NAMES) == expected
    assert found["score_partial"] == partial


def two_lesions():
    truth, prediction = np.zeros((2, 9, 9, 9), dtype=bool)
    truth[1, 1, 1] = truth[2, 2, 1] = True  # one lesion of two voxels that share an edge
    truth[6, 6, 6] = truth[7, 7, 7] = True  # two lesions: only a corner is shared
    prediction[2, 2, 1] = prediction[4, 1, 7] = True
    return prediction, truth


def test_eighteen_neighbours_units_and_rows():
    result = score(*two_lesions(), (1, 2, 0.5))
    found = result.regions["lesion"]
    assert (found["lesions_reference"], found["lesions_found"], found["ltpr"]) == (3, 1, pytest.approx(1 / 3))
    assert (found["lesions_predicted"], found["lesions_false"], found["lfpr"]) == (2, 1, 0.5)
    assert (found["volume_ml"], found["reference_ml"], found["volume_error"]) == (0.002, 0.004, 0.5)
    assert [row["outcome"] for row in result.lesions] == ["found", "missed", "missed", "true", "false"]
    assert dict(result.lesions[-1]) == {
        "region": "lesion",
        "side": "predicted",
        "number": 2,
        "volume_mm3": 1.0,
        "x": 4,
        "y": 1,
        "z": 7,
        "outcome": "false",
        "overlap": 0.0,
    }


def cohort(seed=0, images=5):
    rng = np.random.default_rng(seed)
    return [(rng.random((8, 8, 8)) < rng.uniform(0, 0.2), rng.random((8, 8, 8)) < 0.1) for _ in range(images)]


def test_the_set_adds_the_correlation_of_volumes():
    pairs = cohort()
    results = {f"case-{i}": score(*pair, (1, 1, 1)) for i, pair in enumerate(pairs)}
    found = over_cohort(results)
    partial = [slow(*pair)["score_partial"] for pair in pairs]
    corr = stats.pearsonr([p.sum() for p, _ in pairs], [t.sum() for _, t in pairs])[0]
    assert found["volume_correlation"] == pytest.approx(corr)
    assert found["score_partial"] == pytest.approx(np.mean(partial))
    assert found["score"] == pytest.approx(np.mean([0.75 * p for p in partial]) + 25 * corr)


def test_a_perfect_set_scores_100_and_the_score_needs_three_images_that_differ():
    same = {str(i): score(truth, truth, (1, 1, 1)) for i, (_, truth) in enumerate(cohort())}
    assert over_cohort(same)["score"] == pytest.approx(100)
    two = dict(list(same.items())[:2])
    assert over_cohort(two) == {
        "score": None,
        "score_partial": 100,
        "volume_correlation": None,
        "empty_predictions": 0,
    }
    assert over_cohort(two, Settings(min_images=2))["score"] == pytest.approx(100)
    still = dict.fromkeys("abcd", same["0"])
    assert over_cohort(still)["volume_correlation"] is None
    steady = {str(i): score(prediction, cohort()[0][1], (1, 1, 1)) for i, (prediction, _) in enumerate(cohort())}
    assert over_cohort(steady)["volume_correlation"] is None
    nothing = dict.fromkeys(("score", "score_partial", "volume_correlation"))
    assert over_cohort({}) == {**nothing, "empty_predictions": 0}


def test_a_set_counts_empty_predictions_and_skips_empty_references():
    results = {"silent": score(NONE, SOME, (1, 1, 1)), "healthy": score(SOME, NONE, (1, 1, 1))}
    found = over_cohort(results)
    assert found["empty_predictions"] == 1
    assert found["score_partial"] == pytest.approx(100 / 3)


def test_every_metric_named_is_there():
    found = metrics(*two_lesions())
    assert set(isbi2015.MAIN) <= set(isbi2015.BEST) <= set(found)
    assert isbi2015.known_labels() is None
    assert not any(isinstance(value, float) and math.isnan(value) for value in found.values())


def test_wrong_input_is_refused():
    with pytest.raises(GeometryError, match="one grid"):
        score(SOME, np.ones((3, 3, 3)), (1, 1, 1))
    with pytest.raises(GeometryError, match="spacing"):
        score(SOME, SOME, (1, 1, 0))
    with pytest.raises(LabelError, match="threshold"):
        score(SOME * 0.5, SOME, (1, 1, 1))
    with pytest.raises(SettingsError, match="did you mean 'connectivity'"):
        parse(Settings, {"conectivity": 6}, "--set")


@pytest.mark.real
def test_real_masks_shifted(real_data):
    for file in sorted((real_data / "openms" / "lesion_masks_mni").glob("*_desc-lesion_mask.nii.gz"))[:1]:
        truth = np.asarray(nib.load(file).dataobj) > 0
        box = ndimage.find_objects(truth.astype(int))[0]
        truth = np.pad(truth[box], 2)
        prediction = np.roll(truth, 1, axis=1)
        found = metrics(prediction, truth)
        assert {name: found[name] for name in slow(prediction, truth)} == pytest.approx(slow(prediction, truth))
