import numpy as np
import pytest

from oligovox.simulate.anatomy.brain import draw_anatomy, template
from oligovox.simulate.pathology.confounders import Confounders, grow_confounders

NONE = Confounders(caps=0, dirty=0, age_related=0, perivascular=0, arteries=0)


@pytest.fixture(scope="module")
def person():
    return draw_anatomy(np.random.default_rng(4), template(3.0))


def grow(person, seed=0, age=40.0, settings=None):
    return grow_confounders(np.random.default_rng(seed), person, settings or Confounders(), age)


def test_none_leaves_the_brain_as_it_was(person):
    before = person.parts()
    after = grow(person, settings=NONE, age=80.0).paint(before)
    assert len(after) == len(before)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.fraction, other.fraction)


def test_abnormal_white_matter_is_mild_takes_no_csf_and_no_grey_matter(person):
    other = grow(person, age=70.0)
    assert 0.05 < other.dirty.max() <= 1
    assert np.median(other.dirty[person.wm > 0.9]) < 0.2
    assert np.all(other.dirty <= person.wm + 1e-6)
    before = person.parts()
    after = {part.tissue: part.fraction for part in other.paint(before)}
    grey = next(part.fraction for part in before if part.tissue == "grey_matter")
    assert after["grey_matter"].sum() > 0.99 * grey.sum()  # perivascular spaces and arteries take a little
    total = np.sum(list(after.values()), axis=0)
    np.testing.assert_allclose(total, np.sum([part.fraction for part in before], axis=0), atol=1e-5)


def test_hyperintensities_grow_with_age_and_are_about_the_same_on_both_sides(person):
    only = Confounders(caps=0, dirty=0, perivascular=0, arteries=0)
    young, old = (
        np.array([grow(person, seed, age, only).dirty.sum() for seed in range(6)]) * 0.027 for age in (30.0, 80.0)
    )
    assert np.median(young) < 1.5  # mL
    assert np.all(old > young)
    assert np.median(old) > 2
    sides = [np.array_split(grow(person, seed, 80.0, only).dirty, 2) for seed in range(6)]
    shares = [left.sum() / (left.sum() + right.sum()) for left, right in sides]
    assert 0.4 < np.mean(shares) < 0.6


def test_amounts_differ_widely_between_people(person):
    amounts = np.array([grow(person, seed).dirty.sum() for seed in range(10)])
    assert amounts.max() > 3 * amounts.min()
    spaces = np.array([grow(person, seed).perivascular.sum() for seed in range(10)])
    assert spaces.max() > 3 * max(spaces.min(), 1e-6)


def test_one_kind_does_not_change_another(person):
    all_kinds, fewer = grow(person), grow(person, settings=Confounders(caps=0, dirty=0, age_related=0))
    np.testing.assert_array_equal(all_kinds.perivascular, fewer.perivascular)
    np.testing.assert_array_equal(all_kinds.arteries, fewer.arteries)
    assert not fewer.dirty.any()


def test_perivascular_spaces_lie_in_tissue(person):
    found = grow(person)
    assert 0 < found.perivascular.sum() * 27 < 3000  # mm³
    assert np.all(found.perivascular <= person.wm + person.gm + 1e-6)
    assert not found.arteries[~person.brain].any()
