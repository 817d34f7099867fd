import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from oligovox.simulate import subject
from oligovox.simulate.recipe import make_recipe, merged, presets
from oligovox.simulate.subject import simulate_subject, subject_seed

FAST = make_recipe("ms-3t", {"spacing": 3.0})
COARSE = {"chaos": {"anatomy": {"spacing": [4.0, 4.0, 8.0]}}}


def fast(name):
    return make_recipe(name, COARSE.get(name, {"spacing": 3.0}))


def same(a, b):
    return np.array_equal(a.truth.labels, b.truth.labels) and all(
        np.array_equal(a.images[m], b.images[m]) for m in a.images | b.images
    )


@pytest.mark.parametrize("name", presets())
def test_every_preset_gives_a_whole_subject(name):
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    recipe = fast(name)
    person = simulate_subject(recipe, 5)
    assert set(person.images) <= set(recipe.sequences)
    assert recipe.missing or len(person.images) == len(recipe.sequences)
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    for image in person.images.values():
        assert image.dtype == np.float32
        assert image.shape == person.brain.shape
        assert np.isfinite(image).all()
        assert 0 < np.abs(image).max() < 32767
    assert set(np.unique(person.truth.labels)) <= {0, *person.truth.classes.values()}
    assert person.truth.labels.any()
    assert np.array_equal(np.sign(np.diag(person.affine)), [1, 1, 1, 1])  # RAS
    assert same(person, simulate_subject(recipe, 5))


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    name=st.sampled_from([n for n in presets() if n != "chaos"]),
    spacing=st.sampled_from([3.0, 3.7]),
    age=st.floats(20, 90),
)
def test_truth_holds_together_for_any_recipe(seed, name, spacing, age):
    recipe = make_recipe(name, {"spacing": spacing, "age": [age, age], "sequences": ["FLAIR"]})
    person = simulate_subject(recipe, seed)
    truth = person.truth
    assert truth.lesions.any()
    assert np.all(person.brain[truth.labels > 0])
    volumes = np.bincount(truth.instances.ravel())[1:] * spacing**3
    assert len(truth.rows) == len(volumes) > 0
    assert [row["id"] for row in truth.rows] == list(range(1, len(volumes) + 1))
    if truth.name == "lesion":
        np.testing.assert_array_equal(truth.instances > 0, truth.lesions)
        np.testing.assert_allclose([row["volume_mm3"] for row in truth.rows], volumes, rtol=1e-3)


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    name=st.sampled_from(["ms-3t", "rim", "glioma-2024", "chaos"]),
    raters=st.integers(1, 3),
    every=st.integers(2, 6),
    whole=st.booleans(),
    missing=st.floats(0, 0.9),
)
def test_labels_of_people_hold_together_for_any_recipe(seed, name, raters, every, whole, missing):
    chosen = {"raters": {"raters": raters}, "sparse": {"every": every}, "missing": missing}
    head = {} if name == "chaos" else {"sequences": ["T1w", "FLAIR"], "head": {} if whole else None}
    person = simulate_subject(make_recipe(name, merged(COARSE.get(name, {"spacing": 4.0}), chosen | head)), seed)
    truth, classes = person.truth, {0, *person.truth.classes.values()}
    assert person.images
    drawn = [truth.others[f"rater{n}"] for n in range(1, raters + 1)]
    agreed = np.all([labels == drawn[0] for labels in drawn], axis=0)
    for labels in (*drawn, truth.others["consensus"]):
        assert set(np.unique(labels)) <= classes
    assert np.array_equal(truth.others["consensus"][agreed], drawn[0][agreed])
    sparse = truth.others["sparse"]
    known = sparse != 255
    assert known.any()
    assert not known.all()
    assert np.array_equal(sparse[known], truth.labels[known])
    if name != "chaos" and whole:
        outside = ~person.brain
        assert all(image[outside].max() > 0 for image in person.images.values())  # there is a head around it


def test_another_noise_keeps_brain_and_lesions_and_the_other_sequences():
    quiet, loud = (make_recipe("ms-3t", {"spacing": 3.0, "acquisition": {"noise_t2w": [n, n]}}) for n in (0.0, 0.3))
    first, second = simulate_subject(quiet, 5), simulate_subject(loud, 5)
    assert np.array_equal(first.truth.labels, second.truth.labels)
    assert np.array_equal(first.images["T1w"], second.images["T1w"])
    assert not np.array_equal(first.images["FLAIR"], second.images["FLAIR"])


def test_sequences_do_not_depend_on_which_others_are_made():
    alone = simulate_subject(FAST.model_copy(update={"sequences": ("FLAIR",)}), 5)
    assert np.array_equal(alone.images["FLAIR"], simulate_subject(FAST, 5).images["FLAIR"])


def test_a_second_visit_is_the_same_brain_with_other_lesions():
    recipe = FAST.model_copy(update={"visits": 2})
    first, second = (simulate_subject(recipe, 5, visit=v) for v in (1, 2))
    assert same(first, simulate_subject(FAST, 5))
    assert np.array_equal(first.brain, second.brain)
    change = second.truth.others["change"]
    before, after = first.truth.lesions, second.truth.lesions
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(np.isin(change, (1, 2)), after & ~before)
    np.testing.assert_array_equal(change == 3, before & ~after)


def test_missing_sequences_are_missing_at_their_rate_but_never_all():
    recipe = FAST.model_copy(update={"missing": 0.6})
    drawn = [subject._acquired(np.random.default_rng(seed), recipe) for seed in range(2000)]
    assert all(drawn)
    assert np.mean(["FLAIR" in kept for kept in drawn]) == pytest.approx(0.4 + 0.6**3 / 3, abs=0.04)


def test_sites_have_their_field_strengths_and_share_their_protocol():
    recipe = make_recipe("ms-multisite", {"spacing": 4.0, "sequences": ["FLAIR"], "missing": 0})
    people = [simulate_subject(recipe, subject_seed(0, n)).facts for n in range(1, 13)]
    protocols = {}
    for facts in people:
        assert facts["field_T"] == recipe.fields[(int(facts["site"][4:]) - 1) % 2]
        protocols.setdefault(facts["site"], []).append(facts["scans"]["FLAIR"]["sequence"]["ti"])
    assert len(protocols) > 3
    for times in protocols.values():
        assert max(times) == min(times)
    assert len({times[0] for times in protocols.values()}) > 3


def test_a_stripped_image_is_zero_outside_the_brain_and_a_whole_head_is_not():
    stripped = simulate_subject(FAST, 5)
    for image in stripped.images.values():
        assert image[stripped.brain].min() >= 1
        assert not image[~stripped.brain].any()
    head = simulate_subject(make_recipe("ms-3t", {"spacing": 4.0, "head": {}, "sequences": ["T1w"]}), 5)
    image, shell = head.images["T1w"], ndimage.binary_dilation(head.brain, iterations=5) & ~head.brain
    assert image[shell].max() > np.median(image[head.brain])  # scalp fat


def test_seeds_of_subjects_are_apart():
    seeds = {subject_seed(cohort, number) for cohort in range(20) for number in range(1, 50)}
    assert len(seeds) == 20 * 49
