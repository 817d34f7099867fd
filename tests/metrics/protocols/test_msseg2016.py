from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from oligovox.errors import GeometryError, LabelError, SettingsError
from oligovox.metrics.lesions import LesionRule, match_lesions
from oligovox.metrics.protocols import msseg2016
from oligovox.metrics.protocols.msseg2016 import Settings, score
from oligovox.settings import parse


def lumpy(seed, share):
    """Lesions of some voxels: smoothed noise above a quantile, some single voxels besides."""
    rng = np.random.default_rng(seed)
    noise = ndimage.uniform_filter(rng.random((12, 9, 8)), 2)
    return (noise > np.quantile(noise, 1 - share)) | (rng.random(noise.shape) < 0.01)


masks = st.builds(lumpy, st.integers(0, 999), st.floats(0, 0.4))
rules = st.builds(
    Settings,
    min_volume_mm3=st.sampled_from([0, 3, 7]),
    min_overlap=st.sampled_from([0.05, 0.1, 0.5]),
    max_outside=st.sampled_from([0.2, 0.5, 0.7, 1]),
    enough=st.sampled_from([0.1, 0.65, 1]),
    connectivity=st.sampled_from([6, 26]),
)


def components(mask, rule):
    structure = ndimage.generate_binary_structure(3, {6: 1, 26: 3}[rule.connectivity])
    labels, n = ndimage.label(mask, structure)
    found = [set() for _ in range(n)]
    for voxel in zip(*np.nonzero(labels), strict=True):
        found[labels[voxel] - 1].add(voxel)
    return [lesion for lesion in found if len(lesion) > rule.min_volume_mm3]


def slow(lesions, others, rule):
    """Number of lesions found by the others: the definition, on sets of voxels of 1 mm³."""
    inside = set().union(*lesions)
    found = 0
    for lesion in lesions:
        touching = [other for other in others if not lesion.isdisjoint(other)]
        covered = sum(len(lesion & other) for other in touching)
        if not covered / len(lesion) > rule.min_overlap:
            continue
        touching.sort(key=lambda o: (len(o & lesion), len(o), len(o - inside)), reverse=True)
        reached, fits = 0, True
        for other in touching:
            if reached / covered >= rule.enough:
                break
            fits &= not len(other - inside) / len(other) > rule.max_outside
            reached += len(other & lesion)
        found += fits
    return found


def metrics(prediction, truth, spacing=(1, 1, 1), rule=msseg2016.DEFAULT):
    return score(prediction, truth, spacing, rule).regions["lesion"]


@settings(max_examples=80, deadline=None)
@given(masks, masks, rules)
def test_equals_the_definition_on_sets(prediction, truth, rule):
    found = metrics(prediction, truth, rule=rule)
    reference, predicted = components(truth, rule), components(prediction, rule)
    assert (found["lesions_reference"], found["lesions_predicted"]) == (len(reference), len(predicted))
    assert found["lesions_found"] == slow(reference, predicted, rule)
    assert found["lesions_predicted"] - found["lesions_false"] == slow(predicted, reference, rule)
    if reference and predicted:
        sensitivity, precision = slow(reference, predicted, rule) / len(reference), found["lesion_precision"]
        assert found["lesion_sensitivity"] == pytest.approx(sensitivity)
        both = sensitivity + precision
        assert found["lesion_f1"] == pytest.approx(2 * sensitivity * precision / both if both else 0)


@pytest.mark.parametrize(("spacing", "voxels"), [((1, 1, 1), 4), ((1, 1, 3), 2), ((1, 1, np.float32(2.9999998)), 2)])
def test_the_smallest_lesion_is_strictly_larger_than_3_mm3(spacing, voxels):
    """The first two are worked values of the challenge's rule."""
    row = np.zeros((9, 3, 3), dtype=bool)
    for length, counted in [(voxels, 1), (voxels - 1, 0)]:
        row[:] = False
        row[:length, 1, 1] = True
        assert metrics(row, row, spacing)["lesions_reference"] == counted


def bar(*spans):
    """Bars along x, one a line of y."""
    mask = np.zeros((40, 2 * len(spans), 3), dtype=bool)
    for y, span in enumerate(spans):
        mask[span, 2 * y, 1] = True
    return mask


@pytest.mark.parametrize(("inside", "found"), [(1, False), (2, True)])
def test_more_than_a_tenth_must_be_covered(inside, found):
    truth, prediction = bar(slice(0, 10)), bar(slice(10 - inside, 14 - inside))
    rule = Settings(max_outside=1)
    assert metrics(prediction, truth, rule=rule)["lesions_found"] == found


@pytest.mark.parametrize(("length", "found"), [(20, True), (21, False)])
def test_what_covers_may_not_lie_mostly_outside(length, found):
    """6 of 20 voxels inside: 70 % outside is allowed, more is not; a plain overlap rule would not see it."""
    truth, prediction = bar(slice(0, 6)), bar(slice(0, length))
    assert metrics(prediction, truth)["lesions_found"] == found
    assert (
        metrics(prediction, truth)["lesion_precision"] == 1
    )  # its share of reference is 6/20 > 10 %, and that lesion fits
    assert match_lesions(prediction, truth, (1, 1, 1), LesionRule(connectivity=6)).found == 1


@pytest.mark.parametrize(("good", "found"), [(13, True), (12, False)])
def test_the_outside_of_small_contributions_is_forgiven(good, found):
    """Of 20 covered voxels `good` come from a fitting lesion and the rest from one far outside: looked at below 65 %."""
    truth, prediction = np.zeros((2, 60, 5, 5), dtype=bool)
    truth[:21, 2, 2] = True
    prediction[:good, 2, 2] = True
    prediction[good + 1 : 58, 2, 2] = True  # the one voxel left out keeps them apart; 37 or 38 of it lie outside
    assert truth[good + 1 : 21, 2, 2].sum() == 20 - good
    assert metrics(prediction, truth)["lesions_found"] == found


def test_only_faces_join_voxels():
    mask = np.zeros((9, 9, 3), dtype=bool)
    mask[:4, 1, 1] = mask[4:8, 2, 1] = True
    assert metrics(mask, mask)["lesions_reference"] == 2
    assert metrics(mask, mask, rule=Settings(connectivity=18))["lesions_reference"] == 1


def test_small_components_neither_cover_nor_count():
    truth, prediction = bar(slice(0, 6)), np.zeros((40, 2, 3), dtype=bool)
    prediction[[0, 2, 4], 0, 1] = True  # half of the lesion, in components of 1 mm³
    found = metrics(prediction, truth)
    assert (found["lesions_found"], found["lesions_predicted"], found["lesion_f1"]) == (0, 0, 0)
    assert found["sensitivity"] == 0.5
    assert match_lesions(prediction, truth, (1, 1, 1), LesionRule(connectivity=6)).found == 1


def test_small_reference_lesions_are_outside():
    """Three voxels of reference are background for the lesion rule, as in Anima, and reference for Dice."""
    truth, prediction = bar(slice(0, 3)), bar(slice(0, 8))
    found = metrics(prediction, truth)
    assert (found["lesion_sensitivity"], found["lesion_precision"], found["lesion_f1"]) == (None, 0, 0)
    assert found["dice"] == pytest.approx(6 / 11)


@settings(max_examples=40, deadline=None)
@given(masks, masks, st.sampled_from([0, 1, 2]), rules)
def test_flips_axes_and_label_values_do_not_matter(prediction, truth, axis, rule):
    there = metrics(prediction, truth, rule=rule)
    assert metrics(np.flip(prediction, axis), np.flip(truth, axis), rule=rule) == pytest.approx(there)
    assert metrics(prediction.T, truth.T, rule=rule) == pytest.approx(there)
    assert metrics(prediction * 5, truth * 2 - 1, rule=rule) == there


def test_ties_do_not_depend_on_the_order_in_the_array():
    """Two predicted lesions share the lesion equally, one of them far outside: the larger one is looked at first."""
    rule = Settings(enough=0.5, connectivity=6)
    truth, prediction = np.zeros((2, 40, 3, 3), dtype=bool)
    truth[15:24, 1, 1] = True
    prediction[0:19, 1, 1] = True  # 4 inside, 15 outside
    prediction[20:24, 1, 1] = True
    for flip in (slice(None), slice(None, None, -1)):
        assert metrics(prediction[flip], truth[flip], rule=rule)["lesions_found"] == 0


@settings(max_examples=40, deadline=None)
@given(masks, masks, rules)
def test_roles_exchange(prediction, truth, rule):
    there, back = metrics(prediction, truth, rule=rule), metrics(truth, prediction, rule=rule)
    assume(there["lesions_reference"] and there["lesions_predicted"])
    assert there["lesion_sensitivity"] == back["lesion_precision"]
    assert there["lesion_f1"] == pytest.approx(back["lesion_f1"])
    assert there["assd_mm"] == pytest.approx(back["assd_mm"])


@settings(max_examples=25, deadline=None)
@given(masks)
def test_a_copy_is_perfect(truth):
    found = metrics(truth, truth)
    assume(found["lesions_reference"])
    perfect = dict.fromkeys(("lesion_f1", "lesion_sensitivity", "lesion_precision", "dice", "jaccard", "ppv"), 1)
    perfect |= {"assd_mm": 0, "volume_error_percent": 0, "lesions_false": 0}
    assert {name: found[name] for name in perfect} == perfect


@settings(max_examples=25, deadline=None)
@given(masks, masks, st.integers(1, 3))
def test_every_false_lesion_costs(prediction, truth, added):
    truth[:4, 0, 0] = True
    prediction, truth = (np.pad(mask, (0, 9)) for mask in (prediction, truth))
    worse = prediction.copy()
    for i in range(added):
        worse[-4:, -1, 2 * i] = True
    before, after = metrics(prediction, truth), metrics(worse, truth)
    assert after["lesions_false"] == before["lesions_false"] + added
    assert after["lesion_sensitivity"] == before["lesion_sensitivity"]
    assert after["lesion_f1"] <= before["lesion_f1"]
    assert after["lesion_f1"] < before["lesion_f1"] or not before["lesion_f1"]


BLOCK = np.pad(np.ones((2, 2, 2), dtype=bool), 2)
DOT = np.zeros_like(BLOCK)
DOT[0, 0, 0] = True
NONE = np.zeros_like(BLOCK)
NAMES = ("lesion_sensitivity", "lesion_precision", "lesion_f1", "dice", "ppv", "volume_error_percent")


@pytest.mark.parametrize(
    ("prediction", "truth", "expected", "counts"),
    [
        (NONE, BLOCK, (0, 0, 0, 0, None, -100), (1, 0, 0)),
        (DOT, BLOCK, (0, 0, 0, 0, 0, -87.5), (1, 0, 0)),
        (BLOCK, DOT, (None, 0, 0, 0, 0, 700), (0, 1, 0.008)),
        (DOT, DOT, (None, 0, None, 1, 1, 0), (0, 0, 0)),
        (BLOCK, NONE, (None,) * 6, (0, 1, 0.008)),
        (NONE, NONE, (None,) * 6, (0, 0, 0)),
    ],
)
def test_the_table_of_empty_masks(prediction, truth, expected, counts):
    found = metrics(prediction, truth)
    assert tuple(found[name] for name in NAMES) == expected
    assert (found["lesions_reference"], found["lesions_predicted"], found["lesions_predicted_ml"]) == counts
    assert (found["assd_mm"] is None) == (not prediction.any() or not truth.any())


def test_rows_say_what_the_numbers_say():
    prediction, truth = lumpy(1, 0.2), lumpy(2, 0.2)
    result = score(prediction, truth, (1, 1, 1.5))
    found = result.regions["lesion"]
    outcomes = [row["outcome"] for row in result.lesions]
    assert outcomes.count("found") == found["lesions_found"] > 0
    assert outcomes.count("missed") == found["lesions_reference"] - found["lesions_found"] > 0
    assert outcomes.count("false") == found["lesions_false"] > 0
    for row in result.lesions:
        assert (truth if row["side"] == "reference" else prediction)[row["x"], row["y"], row["z"]]
    predicted = [row["volume_mm3"] for row in result.lesions if row["side"] == "predicted"]
    assert sum(predicted) / 1000 == pytest.approx(found["lesions_predicted_ml"])
    assert set(msseg2016.MAIN) <= set(found)
    assert set(msseg2016.BEST) <= set(found)
    assert msseg2016.known_labels() is None


def test_the_surface_distance_is_the_mean_of_both_directions():
    prediction, truth = lumpy(3, 0.1), lumpy(4, 0.15)
    spacing = np.array((1, 2, 3))

    def edge(mask):
        return np.argwhere(mask & ~ndimage.binary_erosion(mask)) * spacing

    apart = np.linalg.norm(edge(prediction)[:, None] - edge(truth)[None], axis=-1)
    pooled = [*apart.min(axis=0), *apart.min(axis=1)]
    assert metrics(prediction, truth, spacing)["assd_mm"] == pytest.approx(np.mean(pooled))


def test_wrong_input_is_refused():
    with pytest.raises(GeometryError, match="one grid"):
        score(BLOCK, BLOCK[1:], (1, 1, 1))
    with pytest.raises(GeometryError, match="spacing"):
        score(BLOCK, BLOCK, (1, 1))
    with pytest.raises(LabelError, match="threshold"):
        score(BLOCK * 0.5, BLOCK, (1, 1, 1))
    with pytest.raises(SettingsError, match="min_overlap"):
        parse(Settings, {"min_overlap": 1.5}, "--set")


@pytest.mark.real
def test_real_masks_of_two_people(real_data):
    files = sorted((real_data / "openms" / "lesion_masks_mni").glob("*_desc-lesion_mask.nii.gz"))[:2]
    images = [np.asarray(nib.load(file).dataobj) > 0 for file in files]
    for prediction, truth in [images, (np.roll(images[0], 1, axis=2), images[0])]:
        found = metrics(prediction, truth)
        reference, predicted = (components(mask, msseg2016.DEFAULT) for mask in (truth, prediction))
        assert found["lesions_reference"] == len(reference)
        assert found["lesions_found"] == slow(reference, predicted, msseg2016.DEFAULT)
        assert found["lesions_predicted"] - found["lesions_false"] == slow(predicted, reference, msseg2016.DEFAULT)
