"""The longitudinal MS lesion challenge of ISBI 2015.

A lesion is an 18-connected component of any size. LTPR is the share of reference lesions with at least one predicted voxel; LFPR is
the share of predicted lesions without any reference voxel (a false discovery rate, whatever its name). One image scores

    partial = 100 · (Dice/8 + PPV/8 + (1 − LFPR)/4 + LTPR/4) · 4/3

and a set of images, with Corr the Pearson correlation of predicted and reference lesion volumes over the set,

    score = 100 · (mean of Dice/8 + PPV/8 + (1 − LFPR)/4 + LTPR/4  +  Corr/4).

| prediction | reference | Dice | PPV | TPR | LTPR | LFPR | partial |
| --- | --- | --- | --- | --- | --- | --- | --- |
| some | some | as usual | as usual | as usual | as usual | as usual | as above |
| empty | some | 0 | 0 | 0 | 0 | 0, `empty_prediction` = 1 | 33.3 |
| some | empty | 0 | 0 | undefined | undefined | 1 | undefined |
| empty | empty | undefined | undefined | undefined | undefined | undefined | undefined |

Corr, and so the score of a set, is undefined below `min_images` images or where one of the two volumes never changes. The score is not
the challenge's leaderboard: its server rescales so that the agreement of its two raters is 90, on masks that are not public. With two
raters, score the set against each and take the mean.

Source: Carass et al. 2017, NeuroImage 148:77–102; list of metrics: the evaluation page of the challenge; weights of the first four
terms and 4/3: the public implementation lesion-metrics. From memory: 18-connectivity, Corr/4, the rescaling.

Deviates: the ASSD takes the face of a mask at the end of the array as surface (not documented for the challenge). Left out, because
they need the visits of one person together: volume-change correlation, TPR and FPR of new lesions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from oligovox import settings as base
from oligovox.metrics.bootstrap import defined
from oligovox.metrics.lesions import LesionMatch, LesionRule, match_lesions
from oligovox.metrics.overlap import same_grid, voxel_mm3
from oligovox.metrics.protocols.counts import LESION, Voxels, count_voxels, lesion_rows
from oligovox.metrics.protocols.result import CaseResult
from oligovox.metrics.surface import assd_mm

MAIN: tuple[str, ...] = ("score_partial", "dice", "ppv", "ltpr", "lfpr", "assd_mm")

BEST: Mapping[str, Literal["high", "low"]] = {
    "score_partial": "high",
    "dice": "high",
    "jaccard": "high",
    "ppv": "high",
    "tpr": "high",
    "ltpr": "high",
    "lfpr": "low",
    "volume_error": "low",
    "assd_mm": "low",
    "empty_prediction": "low",
}


class Settings(base.Settings):
    """The rule's parameters; the defaults are the challenge's."""

    connectivity: Literal[6, 18, 26] = Field(18, description="neighbours that join voxels into one lesion")
    min_images: int = Field(3, ge=2, description="images below which the volume correlation is undefined")


DEFAULT = Settings()


def score(
    prediction: NDArray[Any], truth: NDArray[Any], spacing_mm: Sequence[float], settings: Settings = DEFAULT
) -> CaseResult:
    """Score one image; any value above 0 is lesion.

    Args:
        prediction: (x, y, z).
        truth: (x, y, z), on the same grid.
        spacing_mm: voxel sides.
        settings: the rule.

    Raises:
        GeometryError: the shapes differ, or the spacing is not three positive numbers.
        LabelError: values that are not labels.
    """
    prediction, truth = same_grid(prediction, truth)
    any_voxel = LesionRule(connectivity=settings.connectivity, min_volume_mm3=0, min_overlap=0)
    match = match_lesions(prediction, truth, spacing_mm, any_voxel)
    voxels = count_voxels(prediction, truth)
    unit_ml = voxel_mm3(spacing_mm) / 1000
    metrics = {
        **_four_terms(voxels, match),
        "jaccard": voxels.jaccard,
        "tpr": voxels.tpr,
        "volume_error": abs(voxels.volume_error),
        "assd_mm": assd_mm(prediction, truth, spacing_mm),
    }
    counts = {
        "volume_ml": voxels.predicted * unit_ml,
        "reference_ml": voxels.reference * unit_ml,
        "lesions_reference": len(match.reference),
        "lesions_predicted": len(match.predicted),
        "lesions_found": match.found,
        "lesions_false": match.false_positives,
        "empty_prediction": int(voxels.predicted == 0 < voxels.reference),
    }
    region = {name: defined(value) for name, value in metrics.items()} | counts
    return CaseResult({LESION: region}, lesion_rows(match))


def over_cohort(results: Mapping[str, CaseResult], settings: Settings = DEFAULT) -> dict[str, float | None]:
    """Score of a set of images against one rater: `score`, `score_partial`, `volume_correlation`, `empty_predictions`.

    Images without a partial score are left out of its mean, and counted in the correlation.
    """
    rows = [result.regions[LESION] for result in results.values()]
    partial = [float(row["score_partial"]) for row in rows if row["score_partial"] is not None]
    mean = float(np.mean(partial)) if partial else math.nan
    volumes = np.array([[row["volume_ml"], row["reference_ml"]] for row in rows], dtype=float).reshape(-1, 2)
    corr = volume_correlation(volumes[:, 0], volumes[:, 1]) if len(rows) >= settings.min_images else math.nan
    return {
        "score": defined(0.75 * mean + 25 * corr),
        "score_partial": defined(mean),
        "volume_correlation": defined(corr),
        "empty_predictions": float(sum(row["empty_prediction"] or 0 for row in rows)),
    }


def known_labels(settings: Settings = DEFAULT) -> frozenset[int] | None:
    """None: any value above 0 is lesion."""
    return None


def challenge_score(dice: float, ppv: float, lfpr: float, ltpr: float, corr: float | None = None) -> float:
    """The score of the module's docstring, at most 100: partial where no correlation is given.

    Args:
        dice: in [0, 1].
        ppv: in [0, 1].
        lfpr: in [0, 1].
        ltpr: in [0, 1].
        corr: correlation of the volumes over the set, in [−1, 1].
    """
    four = dice / 8 + ppv / 8 + (1 - lfpr) / 4 + ltpr / 4
    return 100 * (four * 4 / 3 if corr is None else four + corr / 4)


def volume_correlation(predicted: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """Pearson correlation of the volumes of a set of images, in [−1, 1]; NaN where one of the two never changes.

    Args:
        predicted: (images,), in any unit.
        reference: (images,), in any unit.
    """
    if len(predicted) < 2 or not np.ptp(predicted) or not np.ptp(reference):
        return math.nan
    return float(np.corrcoef(predicted, reference)[0, 1])


def _four_terms(voxels: Voxels, match: LesionMatch) -> dict[str, float]:
    silent = voxels.predicted == 0 < voxels.reference
    terms = {
        "dice": voxels.dice,
        "ppv": 0.0 if silent else voxels.ppv,
        "lfpr": 0.0 if silent else 1 - match.precision,
        "ltpr": match.sensitivity,
    }
    return {"score_partial": challenge_score(**terms)} | terms
