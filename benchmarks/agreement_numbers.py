"""Parts of metrics_agreement.py that need no masks: rim lesions, calibration, FROC and tests against scikit-learn, MONAI and statsmodels."""

import argparse
import math
from collections.abc import Iterable
from itertools import product

import numpy as np

from agreement_page import Table
from oligovox.metrics import calibration, froc, lesions, paired
from oligovox.metrics.protocols import prl


def rims(table: Table, cases: Iterable[int], options: argparse.Namespace) -> None:
    """Lesion-level numbers of PRL; half of the sets have many ties, some only one class."""
    from sklearn import metrics as sklearn

    for seed in cases:
        rng = np.random.default_rng([8, seed])
        n = int(rng.integers(3, 90))
        truth = (rng.random(n) < rng.choice([0.0, 0.1, 0.3, 0.6, 1.0], p=[0.05, 0.3, 0.3, 0.3, 0.05])).astype(int)
        chance = np.clip(rng.normal(0.35 + 0.2 * truth, 0.25), 0, 1)
        chance = chance.round(1) if seed % 2 else chance
        called, both = (chance > 0.5).astype(int), 0 < truth.sum() < n
        ours = prl.score_lesions(chance, truth, [f"p{i % 7}" for i in range(n)]).regions["lesion"]
        fpr, tpr, _ = sklearn.roc_curve(truth, chance, drop_intermediate=False) if both else (math.nan,) * 3
        theirs = {
            "roc_auc": sklearn.roc_auc_score(truth, chance) if both else math.nan,
            "partial_auc": sklearn.roc_auc_score(truth, chance, max_fpr=0.1) if both else math.nan,
            "partial_auc_raw": cut_area(fpr, tpr, 0.1) if both else math.nan,
            "pr_auc": sklearn.average_precision_score(truth, chance) if truth.any() else math.nan,
            "balanced_accuracy": sklearn.balanced_accuracy_score(truth, called),
            "f1": sklearn.f1_score(truth, called, zero_division=np.nan),
            "sensitivity": sklearn.recall_score(truth, called, zero_division=np.nan),
            "specificity": sklearn.recall_score(truth, called, pos_label=0, zero_division=np.nan),
            "ppv": sklearn.precision_score(truth, called, zero_division=np.nan),
            "accuracy": sklearn.accuracy_score(truth, called),
        }
        table.compare("prl", "scikit-learn", ours, theirs, f"set {seed}")


def cut_area(fpr: np.ndarray, tpr: np.ndarray, end: float) -> float:
    from sklearn.metrics import auc

    inside = fpr <= end
    return float(auc([*fpr[inside], end], [*tpr[inside], np.interp(end, fpr, tpr)]))


def statistics(table: Table, cases: Iterable[int], options: argparse.Namespace) -> None:
    """Calibration, FROC, Holm, Wilcoxon."""
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import brier_score_loss
    from statsmodels.stats.multitest import multipletests

    for seed in cases:
        rng = np.random.default_rng([9, seed])
        truth, chance = rng.random((12, 12, 10)) < 0.2, rng.random((12, 12, 10))
        chance = np.where(rng.random(chance.shape) < 0.3, chance**4, chance)
        inside = rng.random(chance.shape) < rng.choice([0.02, 0.6])
        found, lesion, given = calibration.calibration(chance, truth, inside), truth[inside], chance[inside]
        share, mean = calibration_curve(lesion, given, n_bins=calibration.DEFAULT_BINS)
        weight = np.histogram(given, calibration.DEFAULT_BINS, (0, 1))[0]
        ece = float(np.abs(share - mean) @ weight[weight > 0] / weight.sum())
        table.add("calibration brier", "scikit-learn", found.brier, brier_score_loss(lesion, given), f"map {seed}")
        table.add("calibration ece", "scikit-learn", found.ece, ece, f"map {seed}")
        p = rng.random(int(rng.integers(1, 9))).round(2) * rng.choice([1, 0.1])
        ours = paired.holm(named(p))
        for i, theirs in enumerate(multipletests(p, method="holm")[1]):
            table.add("paired holm", "statsmodels", ours[str(i)], theirs, f"family {seed}")
        a, b = rng.random((2, int(rng.integers(3, 11)))).round(1 + seed % 2 * 5)
        ours = paired.wilcoxon(named(a), named(b))
        table.add("paired wilcoxon", "all signs enumerated", ours, all_signs(a - b), f"set {seed}")
        froc_of_points(table, rng, seed)


def named(values: np.ndarray) -> dict[str, float]:
    return {str(number): float(value) for number, value in enumerate(values)}


def all_signs(difference: np.ndarray) -> float:
    """Two-sided p of the signed-rank sum: share of all sign patterns at least as far from its mean."""
    from scipy.stats import rankdata

    difference = difference.round(12)
    difference = difference[difference != 0]
    if not difference.size:
        return 1.0
    rank = rankdata(np.abs(difference))
    centre = rank.sum() / 2
    sums = np.array([rank @ signs for signs in product((0, 1), repeat=len(rank))])
    return float(np.mean(np.abs(sums - centre) >= abs(rank @ (difference > 0) - centre) - 1e-9))


def froc_of_points(table: Table, rng: np.random.Generator, seed: int) -> None:
    """Lesions and candidates of one voxel, far from one another: then components are candidates, as elsewhere."""
    import monai.metrics as m

    counted, true, false, lesion_count = [], [np.empty(0)], [np.empty(0)], 0
    thresholds = tuple((np.arange(1, 20) / 20).tolist())
    rule = froc.FrocRule(thresholds=thresholds, rule=lesions.LesionRule(min_volume_mm3=0))
    for _ in range(5):
        chance, truth = np.zeros((18, 18, 18)), np.zeros((18, 18, 18), bool)
        chance[::3, ::3, ::3] = rng.choice(np.arange(20) / 20, (6, 6, 6), p=[0.81] + [0.01] * 19)
        truth[::3, ::3, ::3] = rng.random((6, 6, 6)) < 0.08
        counted.append(froc.count_case(chance, truth, (1, 1, 1), rule))
        true.append(chance[truth & (chance > 0)])
        false.append(chance[~truth & (chance > 0)])
        lesion_count += int(truth.sum())
    ours = froc.froc(counted, rule)
    true, false = np.concatenate(true), np.concatenate(false)
    rate, sensitivity = m.compute_froc_curve_data(false, true, lesion_count, 5)
    levels = sorted({*true, *false})[1:]
    for level, their_rate, found in zip(levels, rate, sensitivity, strict=False):
        place = thresholds.index(min(thresholds, key=lambda t: abs(t - level)))
        table.add("froc sensitivity", "MONAI", ours.sensitivity[place], found, f"cohort {seed}")
        table.add("froc false_per_case", "MONAI", ours.false_per_case[place], their_rate, f"cohort {seed}")
