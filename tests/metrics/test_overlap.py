from __future__ import annotations

import math

import numpy as np
import pytest

from oligovox.errors import GeometryError, LabelError
from oligovox.metrics.overlap import as_mask, bounding_box, dice, volume_difference, volume_ml

EMPTY = np.zeros((4, 4, 4), dtype=bool)
FULL = ~EMPTY


def test_dice_worked_value():
    prediction, truth = np.zeros((2, 6, 6, 6), dtype=np.uint8)
    prediction[0:2, 0:2, 0:2] = 1  # 8 voxels
    truth[1:3, 0:2, 0:3] = 1  # 12 voxels, 4 in common
    assert dice(prediction, truth) == pytest.approx(2 * 4 / 20)
    assert dice(truth, prediction) == dice(prediction, truth)


@pytest.mark.parametrize(
    ("prediction", "truth", "overlap", "difference"),
    [(FULL, FULL, 1, 0), (EMPTY, FULL, 0, -0.128), (FULL, EMPTY, 0, 0.128), (EMPTY, EMPTY, math.nan, 0)],
)
def test_the_table_of_empty_masks(prediction, truth, overlap, difference):
    assert dice(prediction, truth) == pytest.approx(overlap, nan_ok=True)
    assert volume_difference(prediction, truth, (1, 1, 2)) == pytest.approx(difference)


def test_volume_is_in_ml_and_scales_with_the_spacing():
    mask = np.zeros((10, 10, 10), dtype=np.int8)
    mask[:5] = 1
    assert volume_ml(mask, (1, 1, 1)) == pytest.approx(0.5)
    assert volume_ml(mask, (2, 2, 3)) == pytest.approx(6.0)


def test_unknown_voxels_are_not_lesion():
    assert not as_mask(np.full((2, 2, 2), -1, dtype=np.int8)).any()


def test_float_label_maps_pass_and_probabilities_do_not():
    assert as_mask(np.full((2, 2, 2), 3.0)).all()
    with pytest.raises(LabelError, match="threshold"):
        as_mask(np.full((2, 2, 2), 0.3))
    with pytest.raises(LabelError):
        as_mask(np.full((2, 2, 2), np.nan))


def test_different_grids_are_refused():
    with pytest.raises(GeometryError, match=r"\(4, 4, 4\).*\(4, 4, 5\)"):
        dice(EMPTY, np.zeros((4, 4, 5), dtype=bool))
    with pytest.raises(GeometryError, match="three positive"):
        volume_ml(FULL, (1, 0, 1))


def test_bounding_box_holds_every_voxel_and_nothing_more():
    first, second = np.zeros((2, 9, 9, 9), dtype=bool)
    first[2, 3, 4] = second[5, 3, 8] = True
    assert bounding_box(first | second) == (slice(2, 6), slice(3, 4), slice(4, 9))
    assert bounding_box(EMPTY) == (slice(0, 0),) * 3
