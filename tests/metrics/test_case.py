from __future__ import annotations

import json
import time

import nibabel as nib
import numpy as np
import pytest

from oligovox.errors import GeometryError, LabelError
from oligovox.metrics.case import score_case, score_classes


def balls(shape, number, seed):
    """Spheres of radius 1.5 to 7, and the same moved by up to 2 voxels with 15 % of them missed."""
    rng, grid = np.random.default_rng(seed), np.indices((15, 15, 15)) - 7
    truth, prediction = np.zeros((2, *shape), dtype=np.uint8)
    for _ in range(number):
        ball = np.square(grid).sum(axis=0) <= rng.uniform(1.5, 7) ** 2
        corner = rng.integers([2, 2, 2], np.array(shape) - 18)
        moved, missed = corner + rng.integers(-2, 3, 3), rng.random() < 0.15
        truth[tuple(slice(c, c + 15) for c in corner)] |= ball
        if not missed:
            prediction[tuple(slice(c, c + 15) for c in moved)] |= ball
    return prediction, truth


def test_a_row_is_plain_json_and_says_what_the_parts_say():
    prediction, truth = balls((60, 60, 60), 8, seed=0)
    score = score_case(prediction, truth, (1, 1, 2))
    row = score.as_row()
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert row["volume_difference_ml"] == pytest.approx((prediction.sum() - truth.sum(dtype=float)) * 2 / 1000)
    assert row["lesions_reference"] == len(score.lesions.reference)
    assert row["lesions_found"] + score.lesions.missed == row["lesions_reference"]


def test_undefined_is_none_in_a_row():
    empty = np.zeros((5, 5, 5), dtype=np.uint8)
    row = score_case(empty, empty, (1, 1, 1)).as_row()
    undefined = {name for name, value in row.items() if value is None}
    assert undefined == {"dice", "hd95_mm", "lesion_sensitivity", "lesion_precision", "lesion_f1"}


def test_wrong_inputs_are_refused():
    mask = np.zeros((5, 5, 5), dtype=np.uint8)
    with pytest.raises(GeometryError, match="one grid"):
        score_case(mask, mask[:4], (1, 1, 1))
    with pytest.raises(GeometryError, match="three positive"):
        score_case(mask, mask, (1, 1))
    with pytest.raises(LabelError, match="threshold"):
        score_case(np.full((5, 5, 5), 0.4), mask, (1, 1, 1))


def test_classes_and_regions_are_scored_apart():
    truth = np.zeros((12, 12, 12), dtype=np.uint8)
    truth[2:6, 2:6, 2:6], truth[8:10, 8:10, 8:10] = 2, 3
    prediction = np.where(truth == 3, 2, truth)
    scores = score_classes(prediction, truth, (1, 1, 1), {"edema": 2, "core": 3, "whole": (2, 3)})
    assert scores["edema"].dice == pytest.approx(2 * 64 / (72 + 64))
    assert scores["core"].dice == 0
    assert scores["core"].lesions.missed == 1
    assert scores["whole"].dice == 1


def test_a_whole_head_takes_a_fraction_of_a_second():
    """About 70 ms on one core; the bound is loose because test machines are shared."""
    prediction, truth = balls((182, 218, 182), 50, seed=1)
    start = time.perf_counter()
    score_case(prediction, truth, (1, 1, 1))
    assert time.perf_counter() - start < 2


@pytest.mark.real
def test_real_masks_against_themselves_and_shifted(real_data):
    files = sorted((real_data / "openms" / "lesion_masks_mni").glob("*_desc-lesion_mask.nii.gz"))[:3]
    assert files
    for file in files:
        truth = np.asarray(nib.load(file).dataobj)
        same = score_case(truth, truth, (1, 1, 1))
        assert (same.dice, same.hd95_mm, same.lesions.f1) == (1, 0, 1)
        assert 0.2 < same.volume_ml < 60
        assert 10 < len(same.lesions.reference) < 400
        shifted = score_case(np.roll(truth, 1, axis=0), truth, (1, 1, 1))
        assert 0.3 < shifted.dice < 1
        assert shifted.hd95_mm == 1
        assert shifted.lesions.sensitivity > 0.5
        assert shifted.volume_difference_ml == 0
