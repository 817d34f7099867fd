"""Means and intervals are over people: several sessions of one person are one vote."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from oligovox.cohort.manifest import Case
from oligovox.errors import GeometryError
from oligovox.experiment import verbs
from oligovox.experiment.pairs import Pair
from oligovox.experiment.recipe import Stage
from oligovox.experiment.scoring import check_grids, compare, score_pairs
from oligovox.files import read_json
from oligovox.prepare.store import Plan


def mask(path: Path, voxels: int, shift: float = 0.0) -> Path:
    """A bar of so many voxels in a box of 12 x 4 x 4."""
    array, affine = np.zeros((12, 4, 4), np.uint8), np.eye(4)
    array[:voxels, 1, 1], affine[0, 3] = 1, shift
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def test_sessions_of_one_person_are_one_vote(tmp_path: Path) -> None:
    truth = mask(tmp_path / "truth.nii.gz", 10)
    people = {"sub-01_ses-1": "01", "sub-01_ses-2": "01", "sub-01_ses-3": "01", "sub-02": "02"}

    def scored(arm: str, sizes: tuple[int, ...]) -> dict:
        files = {case: mask(tmp_path / f"{case}.nii.gz", size) for case, size in zip(people, sizes, strict=True)}
        return score_pairs([Pair(case, people[case], file, truth) for case, file in files.items()], tmp_path / arm)

    scored("good", (10, 10, 10, 10))
    found = scored("poor", (0, 0, 0, 10))["mean"]["lesion"]["dice"]
    assert (found["n"], found["mean"]) == (2, 0.5)  # over cases it would be 4 and 0.25
    good, poor = (read_json(tmp_path / arm / "scores.json")["cases"] for arm in ("good", "poor"))
    difference = compare(good, poor, "dice")
    assert (difference["n"], difference["mean"]) == (2, 0.5)
    assert compare(good, poor, "hd95_mm")["n"] == 1, "nobody compares what one of them has not"
    assert [row["person"] for row in good] == ["01", "01", "01", "02"]


def test_a_validation_case_without_lesion_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    empty, lesion = np.zeros((4, 4, 4), np.int8), np.zeros((4, 4, 4), np.int8)
    lesion[1:3] = 1
    monkeypatch.setattr(verbs, "predict_case", lambda network, case, plan, **more: case.answer)
    right, wrong = (SimpleNamespace(answer=np.stack([1 - label, label])) for label in (empty, lesion))
    job = SimpleNamespace(settings={}, stage=Stage())

    def dice(*pairs: tuple[object, np.ndarray]) -> float:
        return verbs._validator(pairs, Plan(modalities=("FLAIR",)), job)(None)["dice"]

    assert dice((wrong, lesion), (right, empty)) == 1.0
    assert dice((wrong, lesion), (wrong, empty)) == 0.5
    assert math.isnan(dice((right, empty)))


def test_the_grid_that_counts_is_that_of_a_sequence_of_the_plan(tmp_path: Path) -> None:
    label, t1w = mask(tmp_path / "label.nii.gz", 3), mask(tmp_path / "t1w.nii.gz", 5)
    case = Case(subject="01", images={"T1w": t1w, "FLAIR": mask(tmp_path / "flair.nii.gz", 5, shift=2.0)}, label=label)
    check_grids([case], Plan(modalities=("T1w",)))
    with pytest.raises(GeometryError, match="grid of FLAIR"):
        check_grids([case], Plan(modalities=("T1w", "FLAIR")))
