from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oligovox.errors import GeometryError
from oligovox.metrics.lesions import LesionRule, find_lesions, match_lesions, overlap_table, smallest_lesion

ANY = LesionRule(min_volume_mm3=0, min_overlap=0)
masks = st.tuples(st.integers(0, 999), st.floats(0, 0.5)).map(
    lambda drawn: np.random.default_rng(drawn[0]).random((6, 5, 4)) < drawn[1]
)


def slow_components(mask, reach):
    """Flood fill; neighbours differ by at most one on each axis and by at most `reach` axes."""
    left, components = {tuple(v) for v in np.argwhere(mask)}, []
    while left:
        edge = [left.pop()]
        grown = set(edge)
        while edge:
            here = np.array(edge.pop())
            near = {v for v in left if max(abs(here - v)) <= 1 and sum(abs(here - v)) <= reach}
            left -= near
            grown |= near
            edge += near
        components.append(grown)
    return components


@settings(max_examples=40, deadline=None)
@given(masks, masks, st.sampled_from([(6, 1), (18, 2), (26, 3)]), st.integers(0, 4), st.sampled_from([0, 0.1, 0.5]))
def test_equals_a_flood_fill_and_set_arithmetic(prediction, truth, connectivity, volume, overlap):
    name, reach = connectivity
    rule = LesionRule(connectivity=name, min_volume_mm3=volume, min_overlap=overlap)
    match = match_lesions(prediction, truth, (1, 1, 1), rule)
    for mask, other, rows, shares in [
        (truth, prediction, match.reference, [row.covered for row in match.reference]),
        (prediction, truth, match.predicted, [row.inside for row in match.predicted]),
    ]:
        expected = [c for c in slow_components(mask, reach) if len(c) > volume]
        parts = sorted((len(c), sum(bool(other[v]) for v in c) / len(c)) for c in expected)
        found = sorted(zip([row.volume_mm3 for row in rows], shares, strict=True))
        assert np.allclose(np.reshape(found, (-1, 2)), np.reshape(parts, (-1, 2)))
        assert all(any(row.centre in c for c in expected) for row in rows)
    assert match.found == sum(row.covered > overlap for row in match.reference)


@settings(max_examples=25, deadline=None)
@given(masks, masks)
def test_roles_exchange_and_bounds(prediction, truth):
    there, back = match_lesions(prediction, truth, (1, 1, 1)), match_lesions(truth, prediction, (1, 1, 1))
    assert there.sensitivity == pytest.approx(back.precision, nan_ok=True)
    assert there.f1 == pytest.approx(back.f1, nan_ok=True)
    assert math.isnan(there.f1) or 0 <= there.f1 <= 1


def two_found_one_missed_one_false():
    truth, prediction = np.zeros((2, 30, 30, 30), dtype=np.uint8)
    truth[2:6, 2:6, 2:6] = 1  # 64 voxels, all but a slice predicted
    prediction[2:5, 2:6, 2:6] = 1
    truth[10:12, 10:12, 10:12] = 1  # 8 voxels, predicted with a rim
    prediction[9:13, 9:13, 9:13] = 1
    truth[20:22, 20:22, 20:22] = 1  # 8 voxels, missed
    prediction[25:28, 5:7, 5:6] = 1  # 6 voxels, false
    return prediction, truth


def test_worked_case():
    match = match_lesions(*two_found_one_missed_one_false(), (1, 1, 2))
    assert [(r.volume_mm3, r.covered, r.found) for r in match.reference] == [
        (128, 0.75, True),
        (16, 1.0, True),
        (16, 0.0, False),
    ]
    assert [(p.volume_mm3, p.inside, p.true) for p in match.predicted] == [
        (96, 1.0, True),
        (128, 0.125, True),
        (12, 0.0, False),
    ]
    assert (match.found, match.missed, match.true_positives, match.false_positives) == (2, 1, 2, 1)
    assert match.sensitivity == match.precision == match.f1 == pytest.approx(2 / 3)
    assert [r.number for r in match.reference] == [1, 2, 3]


def test_centres_are_in_the_lesion_and_in_the_given_array():
    """The centre of mass of a U lies outside it; a lesion far from the corner keeps its own coordinates."""
    truth = np.zeros((20, 20, 20), dtype=bool)
    truth[10, 10:15, 10] = truth[10:14, 10, 10] = truth[10:14, 14, 10] = True
    (lesion,) = match_lesions(truth, truth, (1, 1, 1)).reference
    assert truth[lesion.centre]
    assert lesion.centre == (10, 12, 10)


@pytest.mark.parametrize(("spacing", "voxels"), [((1, 1, 1), 4), ((1, 1, 3), 2), ((0.1, 1, 3), 11), ((2, 2, 2), 1)])
def test_smallest_lesion_is_strictly_larger_than_3_mm3(spacing, voxels):
    """The first two are the worked values of the MSSEG 2016 rule."""
    assert smallest_lesion(spacing, 3.0) == voxels


def test_small_components_do_not_count_but_cover():
    truth, prediction = np.zeros((2, 9, 9, 9), dtype=bool)
    truth[1:7, 1, 1] = True
    prediction[1:3, 1, 1] = True  # 2 mm³: no lesion of its own, yet it covers a third
    prediction[1, 5:8, 5] = True  # 3 mm³: not a false positive
    match = match_lesions(prediction, truth, (1, 1, 1))
    assert match.reference[0].covered == pytest.approx(1 / 3)
    assert match.found == 1
    assert match.predicted == ()


def test_connectivity_joins_corners():
    mask = np.eye(4, dtype=bool)[:, :, None] & np.ones(2, dtype=bool)
    assert [len(find_lesions(mask, connectivity=c).voxels) for c in (6, 18, 26)] == [4, 1, 1]
    diagonal = np.eye(3, dtype=bool)[:, :, None] & np.eye(3, dtype=bool)[None]
    assert [len(find_lesions(diagonal, connectivity=c).voxels) for c in (6, 18, 26)] == [3, 3, 1]


def test_overlap_table_counts_every_voxel_of_both():
    prediction, truth = (mask > 0 for mask in two_found_one_missed_one_false())
    table = overlap_table(find_lesions(truth), find_lesions(prediction)).toarray()
    assert table.tolist() == [[0, 0, 56, 6], [16, 48, 0, 0], [0, 0, 8, 0], [8, 0, 0, 0]]


SOME, NONE = np.ones((3, 3, 3), dtype=bool), np.zeros((3, 3, 3), dtype=bool)


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        (SOME, SOME, (1, 1, 1)),
        (NONE, SOME, (0, math.nan, 0)),
        (SOME, NONE, (math.nan, 0, 0)),
        (NONE, NONE, (math.nan, math.nan, math.nan)),
    ],
)
def test_the_table_of_empty_masks(prediction, truth, expected):
    match = match_lesions(prediction, truth, (1, 1, 1))
    assert (match.sensitivity, match.precision, match.f1) == pytest.approx(expected, nan_ok=True)


def test_different_grids_are_refused():
    with pytest.raises(GeometryError, match="one grid"):
        match_lesions(SOME, np.ones((3, 3, 4), dtype=bool), (1, 1, 1))
