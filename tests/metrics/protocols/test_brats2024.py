from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from oligovox.errors import LabelError
from oligovox.metrics.lesions import find_lesions
from oligovox.metrics.protocols import brats2023
from oligovox.metrics.protocols.brats2024 import BEST, MAIN, Settings, known_labels, score, track
from oligovox.metrics.protocols.elements import element_cloud, hd95_of_elements
from oligovox.metrics.protocols.pieces import pieces

MM = (1, 1, 1)
EDGES = ndimage.generate_binary_structure(3, 2)
FACES = ndimage.generate_binary_structure(3, 1)
NAMES = ("lesionwise_dice", "lesionwise_hd95_mm", "lesionwise_nsd_0.5mm", "lesionwise_nsd_1mm", "lesions_found", "lesions_missed", "lesions_false")  # fmt: skip
LABELS = {"WT": (1, 2, 3), "TC": (1, 3), "NETC": (1,), "SNFH": (2,), "ET": (3,), "RC": (4,)}
DILATION = {"NETC": 5, "SNFH": 5, "RC": 5}
THROUGH = {"NETC": ("ET", "RC"), "SNFH": ("ET", "RC", "NETC"), "ET": ("NETC", "RC"), "RC": ("ET", "NETC")}


def label_map(seed, shape=(36, 30, 26), most=14):
    """Ellipsoids of random labels; some reach over the border, many touch."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, dtype=np.uint8)
    for _ in range(rng.integers(0, most)):
        centre, radius = rng.integers(0, shape), rng.uniform(0.6, 4, 3)
        distance = sum(((grid - c) / r) ** 2 for grid, c, r in zip(np.indices(shape), centre, radius, strict=True))
        labels[distance <= 1] = rng.integers(1, 5)
    return labels


def noisy(labels, seed):
    rng = np.random.default_rng(seed)
    return np.roll(labels, rng.integers(-1, 2, 3), (0, 1, 2)) * (rng.random(labels.shape) > 0.05)


pairs = st.one_of(
    st.builds(lambda seed, other: (label_map(seed), label_map(other)), st.integers(0, 9999), st.integers(0, 9999)),
    st.builds(lambda seed: (noisy(label_map(seed), seed), label_map(seed)), st.integers(0, 9999)),
)


def surface_cloud(mask):
    where = np.flatnonzero(np.pad(mask, 1))
    return element_cloud(pieces(where, np.ones(len(where), np.int32), 1), tuple(s + 2 for s in mask.shape), MM)


def nsd(first, second, tolerance):
    edges = [mask & ~ndimage.binary_erosion(mask, FACES) for mask in (first, second)]
    far = [ndimage.distance_transform_edt(~edge) for edge in edges]
    return ((far[1][edges[0]] <= tolerance).mean() + (far[0][edges[1]] <= tolerance).mean()) / 2


def slow_cut(labels, delete):
    """Lesions of each region of GLI on whole volumes: grown together, small ones deleted, joined by tissue."""
    cuts = {}
    for name, values in LABELS.items():
        mask = np.isin(labels, values)
        cut = find_lesions(ndimage.binary_dilation(mask, EDGES, DILATION.get(name, 3))).labels * mask
        small = [n for n in range(1, cut.max() + 1) if (cut == n).sum() <= (10 if name == "ET" else 20)]
        cuts[name] = np.where(np.isin(cut, small), 0, cut) if delete else cut
    return {name: slow_join(cut, [cuts[other] for other in THROUGH.get(name, ())]) for name, cut in cuts.items()}


def slow_join(cut, others):
    for other in others:
        names = {}
        for number in set(np.unique(cut)) - {0}:
            near = set(np.unique(other[ndimage.binary_dilation(cut == number, EDGES)])) - {0}
            names[number] = 1000 + min(near) if near else number
        cut = np.vectorize(lambda number, names=names: names.get(number, 0))(cut)
        cut = np.searchsorted(np.unique(np.append(cut, 0)), cut)
    return cut


def slow(reference, predicted, dilation, smallest):
    rows, found, matched = [], 0, set()
    for number in set(np.unique(reference)) - {0}:
        lesion = reference == number
        near = set(np.unique(predicted[ndimage.binary_dilation(lesion, EDGES, dilation)])) - {0}
        matched |= near
        if lesion.sum() <= smallest:
            continue
        union = np.isin(predicted, list(near))
        dice = 2 * (lesion & union).sum() / (lesion.sum() + union.sum())
        far = hd95_of_elements(surface_cloud(lesion), surface_cloud(union)) if near else 337
        rows.append((dice, far, *(nsd(lesion, union, t) if near else 0.0 for t in (0.5, 1))))
        found += bool(near)
    false = len(set(np.unique(predicted)) - {0} - matched)
    n = len(rows) + false
    scores = (
        (np.sum(rows, axis=0) + np.array([0, 337 * false, 0, 0])) / n if rows else (0, 337, 0, 0) if n else (1, 0, 1, 1)
    )
    return *scores, found, len(rows) - found, false


@settings(max_examples=15, deadline=None)
@given(pairs)
def test_gli_equals_the_rule_on_whole_volumes(pair):
    regions = score(*pair, MM).regions
    predictions, references = slow_cut(pair[0], delete=True), slow_cut(pair[1], delete=False)
    assert list(regions) == list(LABELS)
    for name in LABELS:
        expected = slow(references[name], predictions[name], DILATION.get(name, 3), 10 if name == "ET" else 20)
        assert [regions[name][key] for key in NAMES] == pytest.approx(expected), name


def cube(labels, corner, side, value):
    labels[tuple(slice(c, c + s) for c, s in zip(corner, np.broadcast_to(side, 3), strict=True))] = value


def test_worked_value_one_found_one_missed_one_false():
    truth, prediction = np.zeros((2, 80, 20, 20), dtype=np.uint8)
    cube(truth, (5, 5, 5), 6, 3)
    cube(truth, (30, 5, 5), 6, 3)
    cube(prediction, (6, 5, 5), 6, 3)
    cube(prediction, (60, 5, 5), 6, 3)
    found = score(prediction, truth, MM).regions["ET"]
    assert found["lesionwise_hd95_mm"] == pytest.approx((1 + 337 + 337) / 3)
    assert found["lesionwise_dice"] == pytest.approx(5 / 6 / 3)
    assert found["lesionwise_nsd_1mm"] == pytest.approx(1 / 3)


def et_lesions(truth, **kw):
    rows = score(truth, truth, MM, Settings(**kw)).lesions
    return sum(row["region"] == "ET" and row["side"] == "reference" for row in rows)


def test_enhancing_lesions_around_one_core_are_one_lesion():
    truth = np.zeros((50, 14, 14), dtype=np.uint8)
    cube(truth, (4, 4, 4), 4, 3)
    cube(truth, (28, 4, 4), 4, 3)
    assert et_lesions(truth) == 2
    cube(truth, (8, 4, 4), (20, 4, 4), 1)  # from one to the other
    assert et_lesions(truth) == 1
    assert et_lesions(truth, track="SSA") == 1
    truth[8, 4:9, 4:9] = truth[27, 4:9, 4:9] = 0  # a gap of one voxel on both sides
    assert et_lesions(truth) == 2


def test_tissue_joins_by_the_first_neighbour_only():
    """Two lesions of ET touch cavity 1; the second and a third touch cavity 2: the third stays alone."""
    truth = np.zeros((100, 14, 14), dtype=np.uint8)
    cube(truth, (4, 4, 4), (4, 4, 4), 3)
    cube(truth, (28, 4, 4), (20, 4, 4), 3)
    cube(truth, (68, 4, 4), (4, 4, 4), 3)
    assert et_lesions(truth) == 3
    cube(truth, (8, 4, 4), (20, 4, 4), 4)
    assert et_lesions(truth) == 2
    cube(truth, (48, 4, 4), (20, 4, 4), 4)
    assert et_lesions(truth) == 2


def test_small_predicted_lesions_are_deleted():
    truth = np.zeros((40, 12, 12), dtype=np.uint8)
    cube(truth, (3, 3, 3), 5, 3)
    prediction = truth.copy()
    cube(prediction, (30, 3, 3), (5, 2, 1), 3)  # 10 voxels
    found = score(prediction, truth, MM).regions["ET"]
    assert (found["lesions_false"], found["dice"], found["volume_ml"]) == (0, 1, 0.125)
    prediction[29, 3, 3] = 3
    found = score(prediction, truth, MM).regions["ET"]
    assert (found["lesions_false"], found["lesionwise_dice"]) == (1, 0.5)
    assert score(prediction, truth, MM).regions["WT"]["lesions_false"] == 0  # 20 mm³ there


def test_the_misspelling_dilates_oedema_three_times_instead_of_five():
    truth = np.zeros((40, 14, 14), dtype=np.uint8)
    cube(truth, (4, 4, 4), 4, 2)
    cube(truth, (8 + 8, 4, 4), 4, 2)  # eight voxels between them
    rows = {typo: score(truth, truth, MM, Settings(snfh_typo=typo)).lesions for typo in (False, True)}
    count = {typo: sum(r["region"] == "SNFH" and r["side"] == "reference" for r in row) for typo, row in rows.items()}
    assert count == {False: 1, True: 2}


@pytest.mark.parametrize(
    ("name", "penalty"), [("GLI", 337), ("SSA", 374), ("PED", 374), ("MET", math.sqrt(1400)), ("MEN-RT", math.sqrt(1400))]
)  # fmt: skip
def test_penalty_of_each_track(name, penalty):
    truth = np.zeros((30, 20, 10), dtype=np.uint8)
    cube(truth, (3, 3, 3), 5, 1)
    region = "GTV" if name == "MEN-RT" else "TC"
    found = score(np.zeros_like(truth), truth, (2, 1, 1), Settings(track=name)).regions[region]
    assert found["lesionwise_hd95_mm"] == found["hd95_mm"] == pytest.approx(penalty)
    assert [found[f"{kind}nsd_1mm"] for kind in ("", "lesionwise_")] == [0, 0]


def test_false_lesions_cost_nothing_in_radiotherapy_planning():
    truth = np.zeros((40, 12, 12), dtype=np.uint8)
    cube(truth, (3, 3, 3), 5, 1)
    prediction = truth.copy()
    cube(prediction, (25, 3, 3), 5, 1)
    found = score(prediction, truth, MM, Settings(track="MEN-RT")).regions["GTV"]
    assert (found["lesions_false"], found["lesionwise_dice"], found["lesionwise_hd95_mm"]) == (1, 1, 0)
    alone = score(prediction, np.zeros_like(truth), MM, Settings(track="MEN-RT")).regions["GTV"]
    assert (alone["lesions_false"], alone["lesionwise_dice"], alone["lesionwise_hd95_mm"]) == (2, 1, 0)


def test_tracks_without_growth_differ_from_2023():
    """Two parts of one lesion, predicted as two parts: one lesion each here, two predicted ones in 2023."""
    truth = np.zeros((30, 12, 12), dtype=np.uint8)
    cube(truth, (3, 3, 3), 5, 3)
    cube(truth, (11, 3, 3), 5, 3)
    ours, old = score(truth, truth, MM, Settings(track="SSA")), brats2023.score(truth, truth, MM)
    counts = [sum(r["region"] == "ET" and r["side"] == "predicted" for r in result.lesions) for result in (ours, old)]
    assert counts == [1, 2]
    assert ours.regions["ET"]["lesionwise_dice"] == old.regions["ET"]["lesionwise_dice"] == 1


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 9999), st.sampled_from(["GLI", "PED", "MET"]))
def test_identical_maps_never_miss_and_whole_regions_differ_by_what_was_deleted(seed, name):
    truth = label_map(seed)
    for row in score(truth, truth, MM, Settings(track=name)).regions.values():
        assert (row["lesions_missed"], row["specificity"]) == (0, 1)
        assert row["dice"] == pytest.approx(2 * row["volume_ml"] / (row["volume_ml"] + row["reference_ml"]) if row["reference_ml"] else 1)  # fmt: skip
        assert row["volume_ml"] <= row["reference_ml"]


def test_labels_of_each_track():
    expected = {"GLI": 4, "SSA": 3, "PED": 4, "MET": 4, "MEN-RT": 1}
    assert {name: known_labels(Settings(track=name)) for name in expected} == {
        name: frozenset(range(most + 1)) for name, most in expected.items()
    }
    reported = {name: [r for r, region in track(Settings(track=name)).regions.items() if region.reported] for name in expected}  # fmt: skip
    assert reported == {
        "GLI": ["WT", "TC", "NETC", "SNFH", "ET", "RC"], "SSA": ["WT", "TC", "ET"], "MEN-RT": ["GTV"],
        "PED": ["WT", "TC", "ET", "NETC", "CC", "ED"], "MET": ["WT", "TC", "ET", "RC"],
    }  # fmt: skip
    with pytest.raises(LabelError, match="reference holds label 4; this track knows 0, 1, 2, 3"):
        score(np.zeros((3, 3, 3)), np.full((3, 3, 3), 4), MM, Settings(track="SSA"))


def test_names():
    row = score(label_map(1), label_map(2), MM).regions["WT"]
    assert set(MAIN) <= set(BEST) <= set(row)
