"""Radiomics and a random forest: the classical answer to which lesions have a rim, without a network.

`oligovox classify train --method radiomics_forest` fits one in each fold; folds, thresholds and tables are those of the networks.

Source: APRL (Lou et al. 2021), a random forest on radiomic numbers of phase in the lesion, as the benchmark of PRL classifiers; forest: Breiman
    2001 (doi 10.1023/A:1010933404324), by scikit-learn.
Deviates: QSM in place of phase; the sixty numbers of `prepare/radiomics.py`; classes weighed inversely to their frequency in each tree's own draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from oligovox.engine.checkpoint import read_object, read_tensors, write_tensors
from oligovox.errors import CheckpointError, GeometryError, LabelError, SettingsError
from oligovox.files import atomic_folder, hash_file, write_json
from oligovox.prepare.lesion_store import LesionPlan, StoredLesion
from oligovox.prepare.radiomics import FEATURES, radiomics
from oligovox.settings import Settings, parse

FOREST = "radiomics_forest"
"""Its name among the classifiers; no method of the catalogue, for it has no gradient."""


_TODO = "expected a forest written by `oligovox classify train`; train again"
_WHOLE = ("root", "left", "right", "column")


class ForestSettings(Settings):
    """Choices of the forest."""

    trees: PositiveInt = Field(500, description="in the forest")
    leaf: PositiveInt = Field(3, description="fewest lesions in a leaf")
    seed: int = Field(0, ge=0, description="of every draw")
    bin_ppb: float = Field(25.0, gt=0, description="width of grey levels of QSM, ppb")


class _About(Settings):
    """forest.json."""

    format: Literal["oligovox-forest/1"] = "oligovox-forest/1"
    settings: ForestSettings
    columns: PositiveInt
    trained_on: tuple[str, ...]
    sha256: str = Field(description="of trees.safetensors")
    version: str = Field(description="of oligovox")


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

    What is fitted is kept as plain arrays over the nodes of all trees: `root` (t), and of each node (n) `left` and `right` child (-1 in a leaf), `column`
    and `threshold` of its question, `share` of Rim+ in it.

    Args:
        settings: of the forest.

    Attributes:
        trained_on: people whose lesions it has learned from, where a file says so.
    """

    def __init__(self, settings: ForestSettings | None = None) -> None:
        self.settings = settings or ForestSettings()
        self.trained_on: tuple[str, ...] = ()
        self._nodes: dict[str, NDArray[Any]] = {}
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
        from sklearn.ensemble import RandomForestClassifier  # takes a second, and only this needs it

        forest: Any = RandomForestClassifier(
            n_estimators=self.settings.trees,
            min_samples_leaf=self.settings.leaf,
            class_weight="balanced_subsample",
            random_state=self.settings.seed,
            n_jobs=1,
        )
        forest.fit(rows[known], np.asarray(grades)[known])
        self._columns, self._nodes = rows.shape[1], _nodes([tree.tree_ for tree in forest.estimators_])
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
        nodes, asked = self._nodes, rows.astype(np.float32)  # thresholds were chosen between numbers of this precision
        at = np.repeat(nodes["root"][None], len(rows), axis=0)
        while (inner := nodes["left"][at] >= 0).any():
            below = np.take_along_axis(asked, nodes["column"][at], axis=1) <= nodes["threshold"][at]
            at = np.where(inner, np.where(below, nodes["left"][at], nodes["right"][at]), at)
        found: NDArray[np.float64] = nodes["share"][at].mean(axis=1)
        return found

    def save(self, folder: Path, trained_on: Sequence[str]) -> None:
        """Write `forest.json` and `trees.safetensors`; the folder lands whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        with atomic_folder(folder) as temporary:
            path = temporary / "trees.safetensors"
            write_tensors(path, {name: torch.from_numpy(array) for name, array in self._nodes.items()})
            about = _About(
                settings=self.settings,
                columns=self._columns,
                trained_on=tuple(trained_on),
                sha256=hash_file(path),
                version=version("oligovox"),
            )
            write_json(temporary / "forest.json", about.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path) -> RadiomicsForest:
        """Read what `save` wrote. Runs nothing that the folder holds.

        Raises:
            CheckpointError: a file is missing, changed or not a forest.
        """
        table, path = folder / "forest.json", folder / "trees.safetensors"
        try:
            about = parse(_About, read_object(table, _TODO), str(table))
        except SettingsError as error:
            raise CheckpointError(f"{error}; {_TODO}") from None
        nodes = {name: tensor.numpy() for name, tensor in read_tensors(path).items()}
        if about.sha256 != hash_file(path):
            raise CheckpointError(f"{folder}: forest.json and trees.safetensors are not of one forest; {_TODO}")
        if not _is_forest(nodes, about.columns):
            raise CheckpointError(f"{path}: its arrays are no trees over {about.columns} columns; {_TODO}")
        forest = cls(about.settings)
        forest._nodes, forest._columns, forest.trained_on = nodes, about.columns, about.trained_on
        return forest


def _nodes(trees: Sequence[Any]) -> dict[str, NDArray[Any]]:
    """scikit-learn's trees, one after the other."""
    root = np.cumsum([0, *(tree.node_count for tree in trees)])[:-1]
    child = {
        key: [np.where(found < 0, -1, found + start) for found, start in zip(children, root, strict=True)]
        for key, children in (("left", [t.children_left for t in trees]), ("right", [t.children_right for t in trees]))
    }
    return {
        "root": root,
        **{key: np.concatenate(parts) for key, parts in child.items()},
        "column": np.concatenate([np.maximum(tree.feature, 0) for tree in trees]),
        "threshold": np.concatenate([tree.threshold for tree in trees]),
        "share": np.concatenate([tree.value[:, 0, 1] / tree.value[:, 0].sum(axis=1) for tree in trees]),
    }


def _is_forest(nodes: dict[str, NDArray[Any]], columns: int) -> bool:
    """Children come after their parent, so that every way ends, and all is where it should be."""
    if set(nodes) != {*_WHOLE, "threshold", "share"} or any(array.ndim != 1 for array in nodes.values()):
        return False
    count = len(nodes["left"])
    if any(len(nodes[key]) != count for key in set(nodes) - {"root"}) or not len(nodes["root"]):
        return False
    if any(nodes[key].dtype != np.int64 for key in _WHOLE):
        return False
    left, right, own = nodes["left"], nodes["right"], np.arange(count)
    inner = (left > own) & (left < count) & (right > own) & (right < count)
    leaf = (left == -1) & (right == -1)
    inside = all(
        ((nodes[key] >= 0) & (nodes[key] < most)).all() for key, most in (("root", count), ("column", columns))
    )
    return bool((inner | leaf).all() and inside)
