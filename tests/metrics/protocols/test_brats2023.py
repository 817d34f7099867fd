from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from oligovox.errors import GeometryError, LabelError
from oligovox.metrics.lesions import find_lesions
from oligovox.metrics.protocols.brats2023 import BEST, MAIN, PENALTY_MM, Settings, known_labels, score, track
from oligovox.metrics.protocols.elements import element_cloud, hd95_of_elements
from oligovox.metrics.protocols.pieces import pieces

MM = (1, 1, 1)
EDGES = ndimage.generate_binary_structure(3, 2)
MEN = Settings(track="MEN")


def label_map(seed, values=(1, 2, 3), shape=(26, 22, 18), most=9):
    """Ellipsoids of random labels; some reach over the border."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, dtype=np.uint8)
    for _ in range(rng.integers(0, most)):
        centre, radius = rng.integers(0, shape), rng.uniform(0.6, 4, 3)
        distance = sum(((grid - c) / r) ** 2 for grid, c, r in zip(np.indices(shape), centre, radius, strict=True))
        labels[distance <= 1] = rng.choice(values)
    return labels


def noisy(labels, seed):
    """Moved by a voxel, with holes and single false voxels."""
    rng = np.random.default_rng(seed)
    moved = np.roll(labels, rng.integers(-1, 2, 3), (0, 1, 2)) * (rng.random(labels.shape) > 0.1)
    return np.where((moved == 0) & (rng.random(labels.shape) > 0.999), 3, moved).astype(np.uint8)


pairs = st.one_of(
    st.builds(lambda seed, other: (label_map(seed), label_map(other)), st.integers(0, 9999), st.integers(0, 9999)),
    st.builds(lambda seed: (noisy(label_map(seed), seed), label_map(seed)), st.integers(0, 9999)),
)
tracks = st.sampled_from(["GLI", "SSA", "PED", "MEN", "MET"])


def surface_cloud(mask):
    where = np.flatnonzero(np.pad(mask, 1))
    return element_cloud(pieces(where, np.ones(len(where), np.int32), 1), tuple(s + 2 for s in mask.shape), MM)


def hd95(first, second, penalty=PENALTY_MM):
    if not first.any() or not second.any():
        return penalty if first.any() or second.any() else 0.0
    return hd95_of_elements(surface_cloud(first), surface_cloud(second))


def slow(prediction, truth, dilation, smallest):
    """The rule on whole volumes, lesion by lesion, at 1 mm: Dice, HD95, found, missed, false."""
    reference = find_lesions(ndimage.binary_dilation(truth, EDGES, dilation)).labels * truth
    predicted = find_lesions(prediction).labels
    dice, far, found, matched = [], [], 0, set()
    for number in range(1, reference.max() + 1):
        lesion = reference == number
        near = set(np.unique(predicted[ndimage.binary_dilation(lesion, EDGES, dilation)])) - {0}
        matched |= near
        if lesion.sum() > smallest:
            union = np.isin(predicted, list(near))
            dice.append(2 * (lesion & union).sum() / (lesion.sum() + union.sum()))
            far.append(hd95(lesion, union))
            found += bool(near)
    false = predicted.max() - len(matched)
    n = len(dice) + false
    scores = (sum(dice) / n, (sum(far) + PENALTY_MM * false) / n) if n else (1.0, 0.0)
    return *scores, found, len(dice) - found, false


@settings(max_examples=60, deadline=None)
@given(pairs, tracks)
def test_equals_the_rule_on_whole_volumes(pair, name):
    prediction, truth = pair
    regions = score(prediction, truth, MM, Settings(track=name)).regions
    names = ("lesionwise_dice", "lesionwise_hd95_mm", "lesions_found", "lesions_missed", "lesions_false")
    dilation, smallest = {"MEN": (1, 50), "MET": (1, 2)}.get(name, (3, 50))
    for region, values in (("WT", (1, 2, 3)), ("TC", (1, 3)), ("ET", (3,))):
        masks = np.isin(prediction, values), np.isin(truth, values)
        assert [regions[region][key] for key in names] == pytest.approx(slow(*masks, dilation, smallest))


@settings(max_examples=40, deadline=None)
@given(pairs)
def test_whole_regions_equal_counts_of_voxels(pair):
    prediction, truth = (labels == 3 for labels in pair)
    found = score(*pair, MM).regions["ET"]
    common, total = (prediction & truth).sum(), prediction.sum() + truth.sum()
    assert found["dice"] == pytest.approx(2 * common / total if total else 1)
    assert found["hd95_mm"] == pytest.approx(hd95(prediction, truth))
    assert found["sensitivity"] == pytest.approx(common / truth.sum() if truth.any() else float(not prediction.any()))
    assert found["specificity"] == pytest.approx((~prediction & ~truth).sum() / (~truth).sum())
    assert (found["volume_ml"], found["reference_ml"]) == pytest.approx((prediction.sum() / 1e3, truth.sum() / 1e3))


def cube(labels, corner, side, value=3):
    labels[tuple(slice(c, c + side) for c in corner)] = value


def test_worked_value_one_found_one_missed_one_false():
    truth, prediction = np.zeros((2, 60, 20, 20), dtype=np.uint8)
    cube(truth, (5, 5, 5), 6)
    cube(truth, (30, 5, 5), 6)
    cube(prediction, (6, 5, 5), 6)  # 5/6 in common, 1 mm off
    cube(prediction, (50, 5, 5), 3)
    found = score(prediction, truth, MM, MEN).regions["ET"]
    assert found["lesionwise_dice"] == pytest.approx(5 / 6 / 3)
    assert found["lesionwise_hd95_mm"] == pytest.approx((1 + 374 + 374) / 3)
    assert [found[f"lesions_{name}"] for name in ("found", "missed", "false")] == [1, 1, 1]


@pytest.mark.parametrize(("gap", "lesions"), [(7, 1), (8, 2)])
def test_lesions_join_where_three_dilations_touch(gap, lesions):
    truth = np.zeros((40, 12, 12), dtype=np.uint8)
    cube(truth, (3, 3, 3), 5)
    cube(truth, (3 + 5 + gap - 1, 3, 3), 5)
    rows = score(truth, truth, MM).lesions
    assert sum(row["region"] == "ET" and row["side"] == "reference" for row in rows) == lesions


def test_a_small_lesion_is_ignored_but_what_meets_it_is_not_false():
    truth = np.zeros((30, 12, 12), dtype=np.uint8)
    truth[3, 3, 3:8] = 3
    prediction = truth.copy()
    found = score(prediction, truth, MM).regions["ET"]
    assert (found["lesions_found"], found["lesions_false"], found["lesionwise_dice"]) == (0, 0, 1)
    prediction[25, 3, 3] = 3  # one voxel, alone
    found = score(prediction, truth, MM).regions["ET"]
    assert (found["lesions_false"], found["lesionwise_dice"], found["lesionwise_hd95_mm"]) == (1, 0, 374)


@pytest.mark.parametrize(("side_mm", "counts"), [(1, False), (1.0000001, False), (1.01, True)])
def test_fifty_cubic_millimetres_are_too_small(side_mm, counts):
    truth = np.zeros((12, 9, 9), dtype=np.uint8)
    truth[2:7, 2:7, 2:4] = 3
    assert score(truth, truth, (side_mm, 1, 1)).regions["ET"]["lesions_found"] == counts


def test_empty_cases():
    nothing, something = np.zeros((2, 12, 12, 12), dtype=np.uint8)
    cube(something, (3, 3, 3), 5)
    names = ("lesionwise_dice", "lesionwise_hd95_mm", "dice", "hd95_mm", "sensitivity", "specificity")
    both, missed, false = (
        [score(prediction, truth, MM).regions["WT"][name] for name in names]
        for prediction, truth in ((nothing, nothing), (nothing, something), (something, nothing))
    )
    assert both == [1, 0, 1, 0, 1, 1]
    assert missed == [0, 374, 0, 374, 0, 1]
    assert false == pytest.approx([0, 374, 0, 374, 0, 1 - 125 / 12**3])
    full = np.full((3, 3, 3), 3)
    assert score(full, full, MM).regions["ET"]["specificity"] == 0
    assert not score(nothing, nothing, MM).lesions


def test_rows_name_a_voxel_inside_each_lesion():
    truth = label_map(5, most=30)
    prediction = noisy(truth, 5)
    maps = {"reference": truth, "predicted": prediction}
    rows = score(prediction, truth, MM, Settings(track="MET")).lesions
    values = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
    assert len(rows) > 8
    for row in rows:
        assert maps[row["side"]][row["x"], row["y"], row["z"]] in values[row["region"]]
    regions = score(prediction, truth, MM, Settings(track="MET")).regions
    for name, region in regions.items():
        mine = [row for row in rows if row["region"] == name]
        lesions = [row for row in mine if row["side"] == "reference"]
        false = sum(row["outcome"] == "false" for row in mine)
        assert false == region["lesions_false"]
        assert sum(row["dice"] for row in lesions) / (len(lesions) + false) == pytest.approx(region["lesionwise_dice"])
        assert all((row["hd95_mm"] == 374) == (row["outcome"] == "missed") for row in lesions)


@settings(max_examples=25, deadline=None)
@given(pairs, st.lists(st.integers(0, 2), unique=True), st.permutations([0, 1, 2]))
def test_flips_turns_and_air_around_change_nothing(pair, axes, order):
    turned = [np.pad(np.transpose(np.flip(labels, axes), order), ((0, 0), (3, 1), (0, 2))) for labels in pair]
    before, after = score(*pair, MM).regions, score(*turned, MM).regions
    for region, row in before.items():
        assert {k: v for k, v in after[region].items() if k != "specificity"} == pytest.approx(
            {k: v for k, v in row.items() if k != "specificity"}
        )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9999), tracks)
def test_identical_maps_are_perfect_unless_components_are_cut_differently(seed, name):
    truth = label_map(seed)
    for row in score(truth, truth, MM, Settings(track=name)).regions.values():
        assert (row["dice"], row["hd95_mm"], row["sensitivity"], row["specificity"]) == (1, 0, 1, 1)
        assert (row["lesionwise_dice"], row["lesionwise_hd95_mm"]) == (pytest.approx(1), 0)
        assert (row["lesions_missed"], row["lesions_false"]) == (0, 0)


@settings(max_examples=25, deadline=None)
@given(pairs)
def test_one_more_false_lesion_lowers_every_score(pair):
    prediction, truth = (np.pad(labels, ((0, 9), (0, 0), (0, 0))) for labels in pair)
    more = prediction.copy()
    more[-2, 9, 9] = 3
    before, after = (score(labels, truth, MM).regions["ET"] for labels in (prediction, more))
    assume(before["lesions_found"] + before["lesions_missed"] > 0)
    assert after["lesions_false"] == before["lesions_false"] + 1
    assert after["lesionwise_dice"] <= before["lesionwise_dice"]
    assert after["lesionwise_hd95_mm"] >= before["lesionwise_hd95_mm"]
    assert after["specificity"] < before["specificity"]


def test_old_files_hold_enhancing_tumour_as_four():
    prediction, truth = noisy(label_map(3), 3), label_map(3)
    old = [np.where(labels == 3, 4, labels) for labels in (prediction, truth)]
    assert score(*old, MM, Settings(enhancing_label=4)) == score(prediction, truth, MM)
    assert known_labels(Settings(enhancing_label=4)) == {0, 1, 2, 4}


def test_unknown_labels_shapes_and_spacings_are_refused():
    truth = label_map(1)
    with pytest.raises(LabelError, match="prediction holds label 4; this track knows 0, 1, 2, 3"):
        score(np.where(truth == 0, 4, truth), truth, MM)
    with pytest.raises(GeometryError, match="one grid"):
        score(truth[1:], truth, MM)
    with pytest.raises(GeometryError, match="three positive"):
        score(truth, truth, (1, 1, 0))
    with pytest.raises(LabelError, match="whole numbers"):
        score(truth * 0.5, truth, MM)


def test_unknown_voxels_are_background():
    truth = label_map(7).astype(np.int16)
    assert score(np.where(truth == 0, -1, truth), truth, MM) == score(truth, truth, MM)


def test_names_and_table():
    row = score(label_map(1), label_map(2), MM).regions["WT"]
    assert set(MAIN) <= set(BEST) <= set(row)
    assert all(math.isfinite(value) for value in row.values())
    assert {name: track(Settings(track=name)).regions["WT"].dilation for name in ("GLI", "SSA", "PED", "MEN", "MET")} == {
        "GLI": 3, "SSA": 3, "PED": 3, "MEN": 1, "MET": 1,
    }  # fmt: skip
