from __future__ import annotations

import math
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oligovox.errors import InputError, LabelError, SettingsError
from oligovox.metrics.protocols.prl import (
    BEST,
    MAIN,
    Estimate,
    Settings,
    best_threshold,
    lesion_differences,
    lesion_intervals,
    score_lesions,
)
from oligovox.settings import parse

AREAS = ("roc_auc", "partial_auc", "partial_auc_raw", "pr_auc")


@st.composite
def cohorts(draw, both=False):
    """Lesions with ties, of up to five patients; `both`: at least one Rim+ and one Rim−."""
    lesion = st.tuples(st.integers(0, 20), st.booleans(), st.integers(0, 4))
    lesions = draw(st.lists(lesion, min_size=1, max_size=25))
    if both:
        lesions += [(draw(st.integers(0, 20)), True, 0), (draw(st.integers(0, 20)), False, 1)]
    return [p / 20 for p, _, _ in lesions], [int(rim) for _, rim, _ in lesions], [f"{who:02}" for _, _, who in lesions]


def points(probability, truth):
    """(FPR, TPR, precision) at each distinct probability from the highest, by counting."""
    found = []
    for limit in sorted(set(probability), reverse=True):
        called = [rim for p, rim in zip(probability, truth, strict=True) if p >= limit]
        alarms, hits = called.count(0), called.count(1)
        found.append((alarms / truth.count(0), hits / truth.count(1), hits / len(called)))
    return found


def area_by_strips(probability, truth, end):
    """Area under the ROC curve up to `end`, corner by corner, cut at `end`."""
    area, (x, y) = 0.0, (0.0, 0.0)
    for fpr, tpr, _ in points(probability, truth):
        right = min(fpr, end)
        if right > x:
            top = y + (tpr - y) * (right - x) / (fpr - x)
            area += (right - x) * (y + top) / 2
        if fpr >= end and right > x:
            return area
        x, y = fpr, tpr
    return area


def test_worked_by_hand():
    """Rim+ .9 .6 .4, Rim− .8 .4 .1 .1: 8 pairs in order and one tie of 12, precision 1 · 2/3 · 3/5 at the three rises."""
    found = score_lesions([0.9, 0.6, 0.4, 0.8, 0.4, 0.1, 0.1], [1, 1, 1, 0, 0, 0, 0], list("aabbbcc"))
    raw = 0.1 / 3  # TPR is 1/3 up to the first false alarm at FPR 0.25
    assert found.regions["lesion"] == pytest.approx(
        {
            "roc_auc": (4 + 3 + 2.5) / 12,
            "partial_auc": 0.5 * (1 + (raw - 0.005) / 0.095),
            "partial_auc_raw": raw,
            "pr_auc": (1 + 2 / 3 + 3 / 5) / 3,
            "balanced_accuracy": (2 / 3 + 3 / 4) / 2,
            "f1": 2 / 3,
            "sensitivity": 2 / 3,
            "specificity": 3 / 4,
            "ppv": 2 / 3,
            "accuracy": 5 / 7,
            "prevalence": 3 / 7,
        }
    )


@settings(deadline=None)
@given(cohorts(both=True), st.sampled_from([0.1, 0.37, 1.0]))
def test_areas_by_counting(cohort, end):
    probability, truth, patient = cohort
    found = score_lesions(probability, truth, patient, Settings(max_fpr=end)).regions["lesion"]
    positive = [p for p, rim in zip(probability, truth, strict=True) if rim]
    negative = [p for p, rim in zip(probability, truth, strict=True) if not rim]
    pairs = [(p > q) + (p == q) / 2 for p, q in product(positive, negative)]
    assert found["roc_auc"] == pytest.approx(np.mean(pairs))
    assert found["partial_auc_raw"] == pytest.approx(area_by_strips(probability, truth, end))
    steps = [(0.0, 0.0, 1.0), *points(probability, truth)]
    rises = [(now[1] - before[1]) * now[2] for before, now in pairwise(steps)]
    assert found["pr_auc"] == pytest.approx(sum(rises))


@pytest.mark.parametrize("steps", [4, 20, 10**6])
def test_agrees_with_scikit_learn(steps):
    reference, rng = pytest.importorskip("sklearn.metrics"), np.random.default_rng(steps)
    for lesions in rng.integers(2, 60, 20):
        truth = np.concatenate([[0, 1], rng.integers(0, 2, lesions) * rng.integers(0, 2, lesions)])
        probability = rng.integers(0, steps + 1, len(truth)) / steps
        called = probability > 0.5
        found = score_lesions(probability, truth, ["a"] * len(truth)).regions["lesion"]
        expected = {
            "roc_auc": reference.roc_auc_score(truth, probability),
            "partial_auc": reference.roc_auc_score(truth, probability, max_fpr=0.1),
            "pr_auc": reference.average_precision_score(truth, probability),
            "balanced_accuracy": reference.balanced_accuracy_score(truth, called),
            "f1": reference.f1_score(truth, called),
            "sensitivity": reference.recall_score(truth, called),
            "accuracy": reference.accuracy_score(truth, called),
        }
        assert {metric: found[metric] for metric in expected} == pytest.approx(expected)


def test_perfect_and_constant_probabilities():
    truth, patient = [1, 0, 0, 1, 0], list("aabbc")
    perfect = score_lesions([0.7, 0.2, 0.1, 0.9, 0.3], truth, patient).regions
    assert all(perfect["lesion"][metric] == 1 for metric in {*BEST} & {*perfect["lesion"]} - {"partial_auc_raw"})
    assert perfect["lesion"]["partial_auc_raw"] == pytest.approx(0.1)
    assert (perfect["count"]["pearson_r"], perfect["count"]["mse"]) == (1, 0)
    constant = score_lesions([0.4] * 5, truth, patient).regions["lesion"]
    assert [constant[metric] for metric in AREAS] == pytest.approx([0.5, 0.5, 0.005, 0.4])


@settings(deadline=None)
@given(cohorts(both=True))
def test_areas_know_only_the_order_of_probabilities(cohort):
    probability, truth, patient = cohort
    bent = [p**3 / 2 for p in probability]
    found, other = (score_lesions(p, truth, patient).regions["lesion"] for p in (probability, bent))
    assert [other[metric] for metric in AREAS] == pytest.approx([found[metric] for metric in AREAS])


@settings(deadline=None)
@given(cohorts(both=True))
def test_turning_the_question_turns_the_answers(cohort):
    """Asking for Rim− with 1 − p: the ROC curve is mirrored, and sensitivity and specificity change places."""
    probability, truth, patient = cohort
    limit = Settings(threshold=0.475)  # between the probabilities drawn, so that no lesion is on it
    turned_limit = Settings(threshold=0.525)
    found = score_lesions(probability, truth, patient, limit).regions["lesion"]
    turned = score_lesions([1 - p for p in probability], [1 - t for t in truth], patient, turned_limit)
    lesion = turned.regions["lesion"]
    assert lesion["roc_auc"] == pytest.approx(found["roc_auc"])
    assert (lesion["sensitivity"], lesion["specificity"]) == (found["specificity"], found["sensitivity"])
    assert lesion["balanced_accuracy"] == pytest.approx(found["balanced_accuracy"])


@settings(deadline=None)
@given(cohorts(both=True), st.integers(0, 30))
def test_a_worse_false_alarm_betters_nothing(cohort, which):
    probability, truth, patient = cohort
    negative = [i for i, rim in enumerate(truth) if not rim]
    chosen = negative[which % len(negative)]
    raised = [1.0 if i == chosen else p for i, p in enumerate(probability)]
    before, after = (score_lesions(p, truth, patient).regions["lesion"] for p in (probability, raised))
    for metric in (*AREAS, "specificity", "f1", "accuracy", "balanced_accuracy"):
        assert after[metric] <= before[metric] + 1e-12
    assert after["sensitivity"] == before["sensitivity"]


@settings(deadline=None)
@given(cohorts(), st.randoms(use_true_random=False))
def test_the_order_of_lesions_and_the_names_of_patients_do_not_matter(cohort, random):
    lesions = list(zip(*cohort, strict=True))
    random.shuffle(lesions)
    probability, truth, patient = zip(*lesions, strict=True)
    for region, metrics in score_lesions(*cohort).regions.items():
        other = score_lesions(probability, truth, [f"sub-{name}" for name in patient]).regions[region]
        assert other == pytest.approx(metrics, nan_ok=True)


PATIENTS = {  # called Rim+, truly Rim+
    "a": (5, 4),
    "b": (3, 4),
    "c": (0, 0),
    "d": (2, 0),
    "e": (1, 2),
}


def lesions_of(patients):
    """Lesions with these counts: called ones have probability 0.9, others 0.1; eight a patient."""
    rows = [
        (0.9 if i < called else 0.1, int(i < rim), name) for name, (called, rim) in patients.items() for i in range(8)
    ]
    probability, truth, patient = zip(*rows, strict=True)
    return probability, truth, patient


def test_patients_by_category_worked_by_hand():
    found = score_lesions(*lesions_of(PATIENTS)).regions
    # from 1 lesion: a, b, e are Rim+ and called, c is neither, d is called; from 4: a and b are, only a is called
    assert found["patient_1"] == pytest.approx(
        {
            "balanced_accuracy": 0.75,
            "f1": 6 / 7,
            "sensitivity": 1.0,
            "specificity": 0.5,
            "ppv": 0.75,
            "accuracy": 0.8,
            "prevalence": 0.6,
        }
    )
    four = found["patient_4"]
    assert (four["sensitivity"], four["specificity"], four["ppv"], four["accuracy"]) == (0.5, 1.0, 1.0, 0.8)
    called, truth = np.array(list(PATIENTS.values())).T
    assert found["count"] == pytest.approx({"pearson_r": np.corrcoef(called, truth)[0, 1], "mse": 7 / 5, "bias": 1 / 5})


def test_visits_are_counted_and_people_are_drawn():
    """Whoever came twice is drawn with both visits: as if two copies of a person were drawn together."""
    rng = np.random.default_rng(3)
    visits = [f"{person}{visit}" for person in "abcdef" for visit in "12" for _ in range(4)]
    chance, truth = rng.random(len(visits)), (rng.random(len(visits)) < 0.4).astype(int)
    people = {name: name[0] for name in visits}
    plain, grouped = (
        score_lesions(chance, truth, visits),
        lesion_intervals(chance, truth, visits, seed=2, resamples=300, people=people),
    )
    assert {m: e.value for m, e in grouped["patient_1"].items()} == pytest.approx(
        plain.regions["patient_1"], nan_ok=True
    )
    drawn = []
    for times in np.random.default_rng(2).multinomial(6, np.full(6, 1 / 6), 300):
        rows = [i for i, name in enumerate(visits) for _ in range(times["abcdef".index(name[0])])]
        again = [
            f"{visits[i]} {copy}" for i, name in enumerate(visits) for copy in range(times["abcdef".index(name[0])])
        ]
        drawn.append(score_lesions(chance[rows], truth[rows], again).regions["patient_1"]["prevalence"])
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (grouped["patient_1"]["prevalence"].low, grouped["patient_1"]["prevalence"].high) == pytest.approx(
        (low, high)
    )
    assert len(set(drawn)) < len(set(range(13)))  # of 12 visits only even numbers are drawn


def test_rims_that_the_mask_misses_count_for_people_and_not_for_lesions():
    """Two people with one rim each, of which the mask misses that of b: b has another lesion, or none at all."""
    one = ([0.9], [1], ["a"])
    assert score_lesions(*one).regions["patient_1"]["accuracy"] == 1
    for lesions in (one, ([0.9, 0.2], [1, 0], ["a", "b"])):
        found = score_lesions(*lesions, missed={"b": 1}).regions
        assert found["lesion"] == score_lesions(*lesions).regions["lesion"]
        people, counts = found["patient_1"], found["count"]
        assert (people["sensitivity"], people["accuracy"], people["prevalence"]) == (0.5, 0.5, 1)
        assert people["specificity"] is None
        assert counts == {"pearson_r": None, "mse": 0.5, "bias": -0.5}


def test_missed_rims_add_to_those_of_the_list():
    """As one more Rim+ lesion each that nobody calls, and nothing for those with none."""
    probability, truth, patient = lesions_of(PATIENTS)
    missed = {"a": 1, "c": 4, "x": 2, "e": 0, "nobody": 0}
    lost = [name for name, count in missed.items() for _ in range(count)]
    longer = ([*probability, *(0.0 for _ in lost)], [*truth, *(1 for _ in lost)], [*patient, *lost])
    found, expected = score_lesions(*lesions_of(PATIENTS), missed=missed).regions, score_lesions(*longer).regions
    for region in ("patient_1", "patient_4", "count"):
        assert found[region] == pytest.approx(expected[region])
    ours, theirs = (lesion_intervals(*part, seed=1, resamples=50, missed=more) for part, more in (
        (lesions_of(PATIENTS), missed), (longer, None)
    ))  # fmt: skip
    assert str(ours["count"]) == str(theirs["count"])
    with pytest.raises(InputError, match="patient 'a' has -1 missed"):
        score_lesions(probability, truth, patient, missed={"a": -1})


def test_missed_rims_are_the_same_for_both_of_two_classifiers():
    """b's rim is missed; one calls that of a, the other calls none."""
    one, other, truth, patient = [0.9, 0.1], [0.1, 0.1], [1, 0], ["a", "b"]
    found = lesion_differences(one, other, truth, patient, seed=0, resamples=50, missed={"b": 1})
    assert found["patient_1"]["sensitivity"].value == 0.5
    assert found["count"]["bias"].value == 0.5


def test_the_p_of_a_difference_counts_resamples_and_is_never_0():
    found = Estimate(0.2, 0.1, 0.3, 999, rarer=4)
    assert found.p == 2 * 5 / 1000
    assert Estimate(0.2, 0.1, 0.3, 999, rarer=0).p == 2 / 1000
    assert Estimate(0.0, 0.0, 0.0, 999, rarer=999).p == 1
    assert math.isnan(Estimate(math.nan, math.nan, math.nan, 0).p)
    rng = np.random.default_rng(0)
    truth, patient = rng.integers(0, 2, 60), np.repeat([f"{i}" for i in range(12)], 5)
    good, bad = 0.5 + 0.4 * (truth - 0.5), rng.random(60)
    better = lesion_differences(good, bad, truth, patient, seed=0, resamples=200)["lesion"]["pr_auc"]
    worse = lesion_differences(bad, good, truth, patient, seed=0, resamples=200)["lesion"]["pr_auc"]
    assert better.p == worse.p == 2 / 201
    same = lesion_differences(bad, bad, truth, patient, seed=0, resamples=200)["lesion"]["pr_auc"]
    assert (same.rarer, same.p) == (200, 1)
    narrow = lesion_differences(bad, rng.random(60), truth, patient, seed=0, resamples=200, level=0.5)
    for estimate in narrow["lesion"].values():  # an interval of level 1 − p ends at 0
        assert (estimate.p < 0.5) <= (not estimate.low <= 0 <= estimate.high)


def test_categories_and_threshold_are_settings():
    rule = Settings(categories=(2,), threshold=0.05)
    found = score_lesions(*lesions_of(PATIENTS), rule).regions
    assert list(found) == ["lesion", "patient_2", "count"]
    assert (found["patient_2"]["sensitivity"], found["patient_2"]["specificity"]) == (1.0, 0.0)


def test_the_threshold_itself_is_not_called():
    found = score_lesions([0.5, 0.5, 0.6], [1, 0, 1], ["a", "a", "b"]).regions["lesion"]
    assert (found["sensitivity"], found["specificity"]) == (0.5, 1.0)


def test_each_fold_may_have_its_own_threshold():
    probability, truth, patient = [0.5, 0.3, 0.5, 0.3], [1, 0, 0, 0], list("aabb")
    found = score_lesions(probability, truth, patient, thresholds=[0.4, 0.4, 0.6, 0.6]).regions["lesion"]
    assert (found["sensitivity"], found["specificity"], found["f1"]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("probability", "truth", "none"),
    [
        ([0.2, 0.1], [0, 0], {*AREAS, "sensitivity", "balanced_accuracy", "ppv", "f1"}),
        ([0.2, 0.9], [0, 0], {*AREAS, "sensitivity", "balanced_accuracy"}),
        ([0.2, 0.9], [1, 1], {"roc_auc", "partial_auc", "partial_auc_raw", "specificity", "balanced_accuracy"}),
        ([0.2, 0.1], [1, 0], {"ppv"}),
    ],
)
def test_undefined_metrics_are_none_as_tabled(probability, truth, none):
    found = score_lesions(probability, truth, ["a", "b"]).regions["lesion"]
    assert {metric for metric, value in found.items() if value is None} == none


def test_a_constant_count_has_no_correlation():
    assert score_lesions([0.9, 0.9], [1, 0], ["a", "b"]).regions["count"]["pearson_r"] is None


def drawn_cohorts(cohort):
    """Every equally likely choice of patients, with all their lesions, each time under a new name."""
    names = sorted(set(cohort[2]))
    lesions = list(zip(*cohort, strict=True))
    for chosen in product(names, repeat=len(names)):
        rows = [(p, rim, f"{i}") for i, name in enumerate(chosen) for p, rim, who in lesions if who == name]
        yield tuple(zip(*rows, strict=True))


def test_intervals_are_those_of_all_choices_of_patients():
    rng = np.random.default_rng(2)
    cohort = (rng.integers(0, 9, 24) / 8, rng.integers(0, 2, 24), np.repeat(list("abcd"), [3, 9, 5, 7]))
    rule = Settings(max_fpr=0.4, categories=(3,))
    scores = [score_lesions(*drawn, rule).regions for drawn in drawn_cohorts(cohort)]
    found = lesion_intervals(*cohort, rule, seed=0, resamples=20_000, level=0.7)
    whole = score_lesions(*cohort, rule).regions
    for region, metrics in found.items():
        for metric, estimate in metrics.items():
            values = np.array([score[region][metric] for score in scores], dtype=float)
            kept = values[np.isfinite(values)]
            assert estimate.as_row()["value"] == whole[region][metric]
            assert estimate.resamples == pytest.approx(20_000 * len(kept) / len(values), rel=0.02)
            for end, share in ((estimate.low, 0.15), (estimate.high, 0.85)):
                lowest, highest = np.quantile(kept, [share - 0.02, share + 0.02])
                assert lowest - 1e-12 <= end <= highest + 1e-12


def test_lesions_repeated_within_patients_tell_nothing_new():
    """Drawing lesions instead of patients would shrink these intervals by half."""
    rng = np.random.default_rng(0)
    probability, truth, patient = rng.random(40), rng.integers(0, 2, 40), np.repeat([f"{i}" for i in range(8)], 5)
    once = lesion_intervals(probability, truth, patient, seed=0, resamples=300)["lesion"]
    four = lesion_intervals(*(np.tile(part, 4) for part in (probability, truth, patient)), seed=0, resamples=300)
    for metric, estimate in once.items():
        other = four["lesion"][metric]
        assert (other.value, other.low, other.high) == pytest.approx((estimate.value, estimate.low, estimate.high))


def test_blocks_do_not_change_the_draws(monkeypatch):
    cohort = lesions_of(PATIENTS)
    whole = lesion_intervals(*cohort, seed=3, resamples=50)
    monkeypatch.setattr("oligovox.metrics.protocols.prl._BLOCK", 300)
    assert str(lesion_intervals(*cohort, seed=3, resamples=50)) == str(whole)


def test_one_patient_has_no_interval():
    found = lesion_intervals([0.9, 0.2], [1, 0], ["a", "a"], seed=0)["lesion"]["roc_auc"]
    assert found.as_row() == {"value": 1.0, "low": None, "high": None, "resamples": 0}


def test_choices_without_rim_lesions_are_left_out():
    """One of two patients has the Rim+ lesion: a quarter of the choices has none."""
    found = lesion_intervals([0.9, 0.2, 0.3], [1, 0, 0], ["a", "a", "b"], seed=0, resamples=4000)["lesion"]
    assert found["roc_auc"].resamples == pytest.approx(3000, rel=0.05)
    assert found["accuracy"].resamples == 4000


@settings(deadline=None)
@given(cohorts(both=True))
def test_best_threshold_by_a_loop(cohort):
    probability, truth, _ = cohort
    best, highest = math.nan, -1.0
    for step in range(101):
        called = [p > step / 100 for p in probability]
        common = sum(rim for call, rim in zip(called, truth, strict=True) if call)
        f1 = 2 * common / (sum(called) + sum(truth))
        if f1 > highest:
            best, highest = step / 100, f1
    assert best_threshold(probability, truth) == best


def test_a_threshold_needs_a_rim_lesion():
    with pytest.raises(
        LabelError, match=r"no Rim\+ lesion among those given; choose the threshold on validation patients"
    ):
        best_threshold([0.1, 0.2], [0, 0])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            ([0.1, 0.2], [0], ["a", "a"]),
            InputError,
            r"probabilities of shape \(2,\), labels \(1,\); expected one of each",
        ),
        (([], [], []), InputError, r"probabilities of shape \(0,\).*at least one lesion"),
        (([0.1, 0.2], [0, 1], ["a"]), InputError, "2 lesions, 1 patients"),
        (([0.1, 1.5], [0, 1], ["a", "b"]), InputError, r"a lesion has probability 1\.5; expected numbers in \[0, 1\]"),
        (([0.1, math.nan], [0, 1], ["a", "b"]), InputError, "a lesion has probability nan"),
        (([0.1, 0.2], [0, 2], ["a", "b"]), LabelError, r"a lesion has label 2; expected 1 \(Rim\+\) or 0"),
        (([0.1, 0.2], ["0", "?"], ["a", "b"]), LabelError, "decide uncertain lesions first"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(given, error, message):
    with pytest.raises(error, match=message) as caught:
        score_lesions(*given)
    assert "\n" not in str(caught.value)


def test_thresholds_of_another_length_are_refused():
    with pytest.raises(InputError, match=r"thresholds of shape \(1,\); expected one of each"):
        score_lesions([0.1, 0.2], [0, 1], ["a", "b"], thresholds=[0.5])


def test_settings_are_checked():
    with pytest.raises(SettingsError, match="max_fpr = 0"):
        parse(Settings, {"max_fpr": 0}, "prl")
    with pytest.raises(SettingsError, match="unknown key 'treshold'; did you mean 'threshold'"):
        parse(Settings, {"treshold": 0.5}, "prl")


def test_main_and_best_name_metrics_that_exist():
    found = score_lesions(*lesions_of(PATIENTS)).regions
    metrics = {metric for region in found.values() for metric in region}
    assert set(MAIN) <= set(found["lesion"])
    assert metrics - set(BEST) == {"prevalence", "bias"}
    assert set(BEST) <= metrics
