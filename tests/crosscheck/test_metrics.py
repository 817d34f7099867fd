"""Our numbers against packages that others wrote, as far as they are installed; the full comparison is benchmarks/metrics_agreement.py."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from oligovox.metrics import lesions, surface
from oligovox.metrics.protocols import brats2023, counts, prl

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec
    assert spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CASES = [case for case in load("agreement_cases").random_masks(each=3) if not case.name.endswith("-1")]
BOTH = [case for case in CASES if case.prediction.any() and case.truth.any()]
ids = [case.name for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_voxels_against_scikit_learn(case: Any) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    flat = (case.truth.ravel(), case.prediction.ravel())
    ours = counts.count_voxels(case.prediction, case.truth)
    assert ours.dice == pytest.approx(metrics.f1_score(*flat, zero_division=math.nan), nan_ok=True)
    assert ours.ppv == pytest.approx(metrics.precision_score(*flat, zero_division=math.nan), nan_ok=True)
    assert ours.tpr == pytest.approx(metrics.recall_score(*flat, zero_division=math.nan), nan_ok=True)


@pytest.mark.parametrize("case", BOTH, ids=[case.name for case in BOTH])
def test_surfaces_against_monai(case: Any) -> None:
    torch, monai = pytest.importorskip("torch"), pytest.importorskip("monai.metrics")
    pair = [torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (case.prediction, case.truth)]
    more = {"include_background": True, "spacing": list(case.spacing)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hd95 = monai.compute_hausdorff_distance(*pair, percentile=95, **more)
        mssd = monai.compute_hausdorff_distance(*pair, **more)
        assd = monai.compute_average_surface_distance(*pair, symmetric=True, **more)
        nsd = monai.compute_surface_dice(*pair, class_thresholds=[1.0], **more)
    ours = surface.surface_scores(case.prediction, case.truth, case.spacing, (1.0,))
    found = [ours.hd95_mm, ours.mssd_mm, ours.assd_mm, ours.nsd[1.0]]
    assert found == pytest.approx([float(value) for value in (hd95, mssd, assd, nsd)], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("case", BOTH, ids=[case.name for case in BOTH])
def test_hd95_of_brats_against_surface_distance(case: Any) -> None:
    package = pytest.importorskip("surface_distance")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distances = package.compute_surface_distances(case.truth, case.prediction, case.spacing)
    ours = brats2023.score(case.prediction.astype(np.int16), case.truth.astype(np.int16), case.spacing)
    assert ours.regions["WT"]["hd95_mm"] == pytest.approx(package.compute_robust_hausdorff(distances, 95))


@pytest.mark.parametrize("case", BOTH, ids=[case.name for case in BOTH])
def test_components_against_panoptica(case: Any) -> None:
    panoptica = pytest.importorskip("panoptica")
    approximator = panoptica.ConnectedComponentsInstanceApproximator()
    pair = panoptica.utils.processing_pair.SemanticPair(case.prediction.astype(np.uint8), case.truth.astype(np.uint8))
    found = approximator.approximate_instances(pair)
    assert found.reference_arr.max() == len(lesions.find_lesions(case.truth).voxels)
    assert found.prediction_arr.max() == len(lesions.find_lesions(case.prediction).voxels)


@pytest.mark.parametrize("seed", range(20))
def test_rims_against_scikit_learn(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    truth = np.r_[0, 1, rng.random(40) < 0.2].astype(int)
    chance = rng.random(42).round(1 + seed % 2)  # with ties
    called = (chance > 0.5).astype(int)
    ours = prl.score_lesions(chance, truth, [str(i % 5) for i in range(42)]).regions["lesion"]
    assert ours["roc_auc"] == pytest.approx(metrics.roc_auc_score(truth, chance))
    assert ours["partial_auc"] == pytest.approx(metrics.roc_auc_score(truth, chance, max_fpr=0.1))
    assert ours["pr_auc"] == pytest.approx(metrics.average_precision_score(truth, chance))
    assert ours["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(truth, called))
    assert ours["f1"] == pytest.approx(metrics.f1_score(truth, called))


def test_every_difference_on_the_page_has_a_reason() -> None:
    page = load("agreement_page")
    result = json.loads(page.RESULT.read_text(encoding="utf-8"))
    assert set(result["parts"]) == set(page.TITLES)
    assert page.unexplained(result) == []
    assert page.tables(result) in page.PAGE.read_text(encoding="utf-8"), "run python benchmarks/agreement_page.py"
