"""One threshold on one sequence: the best of the grid for the labelled people, and nothing outside the foreground."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from oligovox.cohort.bids import read_bids
from oligovox.errors import LabelError, SettingsError
from oligovox.experiment.threshold import _LIMITS, Threshold, ThresholdSettings, fit_threshold
from oligovox.metrics.overlap import dice
from oligovox.prepare.pipeline import prepare
from oligovox.prepare.store import Plan, Store
from oligovox.settings import parse


@pytest.fixture
def store(phantom: Path, tmp_path: Path) -> Store:
    return prepare(read_bids(phantom), Plan(modalities=("T1w", "FLAIR")), tmp_path / "store", workers=1)


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_the_fit_is_the_best_of_the_grid(store: Store, smoothing: float) -> None:
    cases = store.of(["01", "02", "03"])
    fitted = fit_threshold(cases, store.plan, ThresholdSettings(smoothing_mm=(smoothing,)))

    def mean(limit: float) -> float:  # one limit after the other, as slowly as it is defined
        masks = [Threshold(1, limit, smoothing).mask(case) for case in cases]
        return float(
            np.mean([dice(mask, np.asarray(case.label()) > 0) for mask, case in zip(masks, cases, strict=True)])
        )

    every = [mean(float(limit)) for limit in _LIMITS]
    assert mean(fitted.limit) == pytest.approx(max(every))
    assert fitted.limit == _LIMITS[int(np.argmax(every))]
    assert max(every) > 0.8, "bright balls: a threshold must find them"


def test_smoothing_is_chosen_with_the_limit(store: Store) -> None:
    cases, options = store.of(["01", "02"]), ThresholdSettings(smoothing_mm=(3.0, 0.0))
    assert fit_threshold(cases, store.plan, options).smoothing_mm == 0.0, "3 mm blur what is 3 voxels wide"


def test_a_mask_stays_in_the_foreground(store: Store) -> None:
    case = store.case("sub-01")
    assert not (Threshold(1, -9.0, 2.0).mask(case) & ~case.foreground()).any()
    assert Threshold(1, -9.0, 2.0).mask(case).sum() == case.foreground().sum()


def test_without_the_sequence_nothing_is_found_and_nothing_can_be_fitted(phantom: Path, tmp_path: Path) -> None:
    (phantom / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz").unlink()
    store = prepare(read_bids(phantom), Plan(modalities=("T1w", "FLAIR")), tmp_path / "store", workers=1)
    assert not Threshold(1, -9.0, 0.0).mask(store.case("sub-01")).any()
    with pytest.raises(LabelError, match="none of 1 cases has a label and FLAIR"):
        fit_threshold(store.of(["01"]), store.plan, ThresholdSettings())
    t1 = Threshold(0, 0.0, 0.0).mask(store.case("sub-02"))
    assert t1.any()
    assert not np.array_equal(t1, Threshold(1, 0.0, 0.0).mask(store.case("sub-02")))


def test_a_wrong_setting_is_one_line() -> None:
    with pytest.raises(SettingsError, match="did you mean 'smoothing_mm'"):
        parse(ThresholdSettings, {"smoothing": [1]}, "arms.threshold.settings")
