"""Radiomics and a random forest: the classical answer to which lesions have a rim, without a network.

`oligovox classify train --method radiomics_forest` fits one in each fold; folds, thresholds and tables are those of the networks.

Source: APRL (Lou et al. 2021), a random forest on radiomic numbers of phase in the lesion, as the benchmark of PRL classifiers; forest: Breiman
    2001 (doi 10.1023/A:1010933404324), by scikit-learn.
Deviates: QSM in place of phase; the sixty numbers of `prepare/radiomics.py`; classes weighed inversely to their frequency in each tree's own draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from oligovox.errors import GeometryError, LabelError
from oligovox.prepare.lesion_store import LesionPlan, StoredLesion
from oligovox.prepare.radiomics import FEATURES, radiomics
from oligovox.settings import Settings

FOREST = "radiomics_forest"
"""Its name among the classifiers; no method of the catalogue, for it has no gradient."""


class ForestSettings(Settings):
    """Choices of the forest."""

    trees: PositiveInt = Field(500, description="in the forest")
    leaf: PositiveInt = Field(3, description="fewest lesions in a leaf")
    seed: int = Field(0, ge=0, description="of every draw")
    bin_ppb: float = Field(25.0, gt=0, description="width of grey levels of QSM, ppb")


def lesion_rows(lesions: Sequence[StoredLesion], plan: LesionPlan, bin_ppb: float = 25.0) -> NDArray[np.float64]:
    """The sixty numbers of QSM, in ppb, in each lesion: (n, 60) in the order given.

    Args:
        lesions: of one store.
        plan: of that store.
        bin_ppb: width of grey levels.

    Raises:
        LabelError: a lesion lies outside its patch.
    """
    rows = np.empty((len(lesions), len(FEATURES)))
    for row, lesion in zip(rows, lesions, strict=True):
        qsm = (2 * lesion.image()[0].astype(np.float64) - 1) * plan.qsm_ppb
        row[:] = radiomics(qsm, lesion.seen() == 2, (plan.spacing,) * 3, bin_ppb)
    return rows


class RadiomicsForest:
    """Fitted on rows of numbers, one a lesion, such as `lesion_rows` gives.

    Args:
        settings: of the forest.
    """

    def __init__(self, settings: ForestSettings | None = None) -> None:
        from sklearn.ensemble import RandomForestClassifier  # takes a second, and only this needs it

        chosen = settings or ForestSettings()
        self._forest: Any = RandomForestClassifier(
            n_estimators=chosen.trees,
            min_samples_leaf=chosen.leaf,
            class_weight="balanced_subsample",
            random_state=chosen.seed,
            n_jobs=1,
        )
        self._columns = 0

    def fit(self, rows: NDArray[np.float64], grades: Sequence[int]) -> RadiomicsForest:
        """Learn; lesions of unknown grade are left out.

        Args:
            rows: (n, f), finite.
            grades: n of 1 Rim+, 0 Rim−, -1 unknown.

        Raises:
            GeometryError: as many grades as rows were expected.
            LabelError: fewer than two classes among the known grades.
        """
        known = np.asarray(grades) >= 0
        if rows.ndim != 2 or len(known) != len(rows):
            raise GeometryError(f"forest: rows of shape {rows.shape} and {len(known)} grades; expected one grade a row")
        if len(classes := np.unique(np.asarray(grades)[known])) != 2:
            raise LabelError(
                f"forest: grades {classes.tolist()} among {int(known.sum())} graded lesions; it needs both classes, so grade more lesions"
            )
        self._columns = rows.shape[1]
        self._forest.fit(rows[known], np.asarray(grades)[known])
        return self

    def predict(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability of Rim+ of each row, (n,) in [0, 1]: mean over the trees of the weighed share in the leaf.

        Args:
            rows: (n, f), as in `fit`.

        Raises:
            GeometryError: other numbers a row than it learned from, or it has not learned.
        """
        if rows.ndim != 2 or rows.shape[1] != self._columns:
            raise GeometryError(
                f"forest: rows of shape {rows.shape}; expected {self._columns} numbers a lesion, as it was fitted on"
            )
        found: NDArray[np.float64] = self._forest.predict_proba(rows)[:, 1] if len(rows) else np.zeros(0)
        return found
