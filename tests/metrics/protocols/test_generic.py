from __future__ import annotations

import json
import math
import time

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oligovox.errors import GeometryError, LabelError, SettingsError
from oligovox.metrics.lesions import LesionRule, match_lesions
from oligovox.metrics.overlap import dice
from oligovox.metrics.protocols import generic
from oligovox.metrics.surface import surface_scores
from oligovox.settings import parse

SPACING = (1.0, 1.0, 2.0)
BINS = ("below_10mm3", "10_to_100mm3", "100_to_1000mm3", "from_1000mm3")
maps = st.tuples(st.integers(0, 999), st.floats(0, 0.6)).map(
    lambda drawn: (
        np.random.default_rng(drawn[0]).integers(1, 4, (9, 8, 7))
        * (np.random.default_rng(drawn[0] + 1).random((9, 8, 7)) < drawn[1])
    )
)
tumour = generic.Settings(classes={"whole": (1, 2, 3), "core": (1, 3), "edema": (2,)})


def some_lesions():
    """mm³ at 1 x 1 x 2 mm: truth 54 (found), 16 (found), 8 (missed); prediction 48 (true), 128 (true), 12 and 8 (false)."""
    truth, prediction = np.zeros((2, 40, 40, 40), dtype=np.uint8)
    truth[2:5, 2:5, 2:5] = 1
    prediction[2:5, 2:6, 2:4] = 1
    truth[12:14, 12:14, 12:14] = 1
    prediction[11:15, 11:15, 11:15] = 1
    truth[30:32, 30:32, 30] = 1
    prediction[5:8, 30:32, 5] = 1
    prediction[25:27, 5:7, 25] = 1
    return prediction, truth


@settings(max_examples=25, deadline=None)
@given(maps, maps)
def test_each_region_is_what_its_parts_say(prediction, truth):
    result = generic.score(prediction, truth, SPACING, tumour)
    assert list(result.regions) == ["whole", "core", "edema"]
    for region, labels in tumour.classes.items():
        p, t = (sum((array == label for label in labels), np.zeros(array.shape, bool)) for array in (prediction, truth))
        metrics, match, surfaces = result.regions[region], match_lesions(p, t, SPACING), surface_scores(p, t, SPACING)
        parts = {
            "dice": dice(p, t),
            "nsd": surfaces.nsd[1.0],
            "assd_mm": surfaces.assd_mm,
            "hd95_mm": surfaces.hd95_mm,
            "volume_ml": p.sum() * 2 / 1000,
            "volume_error_ml": abs(int(p.sum()) - int(t.sum())) * 2 / 1000,
            "lesion_f1": match.f1,
            "lesions_false": match.false_positives,
            "lesion_count_difference": len(match.predicted) - len(match.reference),
        }
        for name, value in parts.items():
            assert metrics[name] == (None if math.isnan(value) else pytest.approx(value)), name
        sides = [row["side"] for row in result.lesions if row["region"] == region]
        assert sides == ["reference"] * len(match.reference) + ["predicted"] * len(match.predicted)


@settings(max_examples=25, deadline=None)
@given(maps, maps, st.permutations([1, 2, 3]), st.integers(0, 2))
def test_label_numbers_and_flips_do_not_matter(prediction, truth, order, axis):
    """Relabelled maps under relabelled settings; a flip keeps every number but where lesions lie."""
    expected = generic.score(prediction, truth, SPACING, tumour)
    number = np.array([0, *order])
    classes = {region: tuple(number[list(labels)].tolist()) for region, labels in tumour.classes.items()}
    assert generic.score(number[prediction], number[truth], SPACING, generic.Settings(classes=classes)) == expected
    flipped = generic.score(np.flip(prediction, axis), np.flip(truth, axis), SPACING, tumour)
    for region, metrics in expected.regions.items():
        assert flipped.regions[region] == pytest.approx(metrics)


@settings(max_examples=25, deadline=None)
@given(maps)
def test_a_map_against_itself_is_perfect(truth):
    (metrics,) = generic.score(truth, truth, SPACING).regions.values()
    if truth.any():
        assert [metrics[name] for name in ("dice", "nsd", "hd95_mm", "assd_mm")] == [1, 1, 0, 0]
    shares = [value for name, value in metrics.items() if name.startswith(("lesion_s", "lesion_p", "lesion_f"))]
    assert {value for value in shares if value is not None} <= {1}
    assert all(value == 0 for name, value in metrics.items() if "difference" in name or "error" in name)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.integers(1, 4))
def test_each_false_lesion_costs(seed, number):
    """Plates of 4 mm³ and more, away from everything else: overlap and precision fall, what is found stays found."""
    prediction, truth = some_lesions()
    before = generic.score(prediction, truth, SPACING).regions["lesion"]
    rng = np.random.default_rng(seed)
    for step in range(number):
        prediction[17:22, 2 + 6 * step : 2 + 6 * step + rng.integers(1, 4), 33:35] = 1
        after = generic.score(prediction, truth, SPACING).regions["lesion"]
        assert after["lesions_false"] == before["lesions_false"] + 1
        assert after["lesion_sensitivity"] == before["lesion_sensitivity"]
        for name in ("dice", "nsd", "lesion_precision", "lesion_f1"):
            assert after[name] < before[name], name
        before = after


def test_lesions_by_size_worked_out():
    metrics = generic.score(*some_lesions(), SPACING).regions["lesion"]
    sizes = {
        name: [metrics[f"{name}_{size}"] for size in BINS]
        for name in ("lesions_reference", "lesions_predicted", "lesion_sensitivity", "lesion_precision", "lesion_f1")
    }
    assert sizes == {
        "lesions_reference": [1, 2, 0, 0],
        "lesions_predicted": [1, 2, 1, 0],
        "lesion_sensitivity": [0, 1, None, None],
        "lesion_precision": [0, 0.5, 1, None],
        "lesion_f1": [0, pytest.approx(4 / 5), None, None],
    }
    assert metrics["lesion_f1"] == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
    assert metrics["lesion_count_difference"] == 1


def test_a_bin_holds_its_lower_edge():
    edge = generic.score(*some_lesions(), SPACING, generic.Settings(size_edges_mm3=(16, 128))).regions["lesion"]
    assert [edge[f"lesions_reference_{size}"] for size in generic.size_bins((16, 128))] == [1, 2, 0]
    assert [edge[f"lesions_predicted_{size}"] for size in generic.size_bins((16, 128))] == [2, 1, 1]


@settings(max_examples=25, deadline=None)
@given(maps, maps, st.lists(st.integers(1, 60), unique=True, max_size=4).map(sorted))
def test_size_bins_hold_every_lesion_once(prediction, truth, edges):
    chosen = generic.Settings(size_edges_mm3=tuple(edges))
    metrics = generic.score(prediction, truth, SPACING, chosen).regions["lesion"]
    bins = generic.size_bins(chosen.size_edges_mm3)
    assert len(bins) == (len(edges) + 1 if edges else 0)
    for side in ("lesions_reference", "lesions_predicted"):
        assert not edges or sum(metrics[f"{side}_{size}"] for size in bins) == metrics[side]


def test_names_of_size_bins():
    assert tuple(generic.size_bins(generic.DEFAULT.size_edges_mm3)) == BINS
    assert generic.size_bins((2.5,)) == {"below_2.5mm3": (0, 2.5), "from_2.5mm3": (2.5, math.inf)}


def test_lesion_rows_and_plain_json():
    prediction, truth = some_lesions()
    result = generic.score(prediction, truth, SPACING)
    assert json.loads(json.dumps([dict(row) for row in result.lesions], allow_nan=False))
    assert [row["outcome"] for row in result.lesions] == ["found", "found", "missed", "true", "false", "true", "false"]
    for row in result.lesions:
        mask = truth if row["side"] == "reference" else prediction
        assert mask[row["x"], row["y"], row["z"]] == 1
    assert result.lesions[0]["overlap"] == pytest.approx(18 / 27)
    assert set(generic.MAIN) | set(generic.BEST) <= set(result.regions["lesion"])


@pytest.mark.parametrize(
    ("predicted", "referenced", "undefined"),
    [
        (0, 0, {"dice", "nsd", "hd95_mm", "assd_mm", "lesion_sensitivity", "lesion_precision", "lesion_f1"}),
        (0, 1, {"hd95_mm", "assd_mm", "lesion_precision"}),
        (1, 0, {"hd95_mm", "assd_mm", "lesion_sensitivity"}),
        (1, 1, set()),
    ],
)
def test_the_table_of_empty_masks(predicted, referenced, undefined):
    result = generic.score(np.full((3, 3, 3), predicted), np.full((3, 3, 3), referenced), SPACING)
    metrics = {name: value for name, value in result.regions["lesion"].items() if "mm3" not in name}
    assert {name for name, value in metrics.items() if value is None} == undefined
    assert metrics["volume_difference_ml"] == pytest.approx((predicted - referenced) * 27 * 2 / 1000)


def test_tolerance_and_lesion_rule_are_used():
    prediction, truth = some_lesions()
    shifted = np.roll(truth, 2, axis=0)
    assert generic.score(shifted, truth, SPACING, generic.Settings(tolerance_mm=2)).regions["lesion"]["nsd"] == 1
    assert generic.score(shifted, truth, SPACING).regions["lesion"]["nsd"] < 1
    strict = generic.Settings(rule=LesionRule(min_volume_mm3=20))
    assert generic.score(prediction, truth, SPACING, strict).regions["lesion"]["lesions_reference"] == 1


def test_a_cohort_agrees_as_far_as_its_volumes_do():
    prediction, truth = some_lesions()
    results = {f"sub-{i}": generic.score(np.roll(prediction, i), truth, SPACING) for i in range(2)}
    results["sub-2"] = generic.score(truth, truth, SPACING)
    cohort = generic.over_cohort(results)
    differences = [r.regions["lesion"]["volume_difference_ml"] for r in results.values()]
    assert cohort["lesion.volume_bias_ml"] == pytest.approx(np.mean(differences))
    width = cohort["lesion.volume_high_ml"] - cohort["lesion.volume_low_ml"]
    assert width == pytest.approx(2 * 1.96 * np.std(differences, ddof=1))
    assert cohort["lesion.count_bias"] == pytest.approx((1 + 1 + 0) / 3)
    assert cohort["lesion.volume_concordance"] == pytest.approx(0)  # the reference is the same in all
    alone = generic.over_cohort({"sub-2": results["sub-2"]})
    assert alone["lesion.count_bias"] == 0
    assert alone["lesion.count_low"] is None
    assert {name.split(".")[0] for name in generic.over_cohort({}, tumour)} == {"whole", "core", "edema"}


def test_known_labels():
    assert generic.known_labels() is None
    assert generic.known_labels(tumour) == {1, 2, 3}


def test_wrong_inputs_are_refused():
    mask = np.zeros((5, 5, 5), dtype=np.uint8)
    with pytest.raises(GeometryError, match="one grid"):
        generic.score(mask, mask[1:], SPACING)
    with pytest.raises(GeometryError, match="three positive"):
        generic.score(mask, mask, (1, 1))
    with pytest.raises(LabelError, match="threshold"):
        generic.score(mask + 0.5, mask, SPACING, tumour)


@pytest.mark.parametrize(
    "given", [{"size_edges_mm3": [10, 10]}, {"size_edges_mm3": [0, 3]}, {"classes": {"a": [0]}}, {"classes": {"a": []}}]
)
def test_impossible_settings_are_refused(given):
    with pytest.raises(SettingsError, match=next(iter(given))):
        parse(generic.Settings, given, "generic")


def test_a_whole_head_takes_a_fraction_of_a_second():
    """About 0.2 s on one core; the bound is loose because test machines are shared."""
    prediction, truth = (np.zeros((182, 218, 182), dtype=np.uint8) for _ in range(2))
    for x, y, z in np.random.default_rng(0).integers(5, 170, (50, 3)):
        truth[x : x + 7, y : y + 7, z : z + 7] = prediction[x + 1 : x + 7, y + 2 : y + 8, z : z + 6] = 1
    start = time.perf_counter()
    generic.score(prediction, truth, (1, 1, 1))
    assert time.perf_counter() - start < 2


@pytest.mark.real
def test_real_masks_against_themselves_and_shifted(real_data):
    files = sorted((real_data / "openms" / "lesion_masks_mni").glob("*_desc-lesion_mask.nii.gz"))[:2]
    assert files
    for file in files:
        truth = np.asarray(nib.load(file).dataobj)
        same = generic.score(truth, truth, (1, 1, 1)).regions["lesion"]
        assert [same[name] for name in ("dice", "nsd", "hd95_mm", "lesion_f1")] == [1, 1, 0, 1]
        moved = generic.score(np.roll(truth, 1, axis=0), truth, (1, 1, 1)).regions["lesion"]
        assert 0.3 < moved["dice"] < 1
        assert moved["nsd"] == 1  # one voxel is within 1 mm
        assert 0 < moved["assd_mm"] < 1
