"""A sequence that was acquired several times becomes one image with less noise; what is no run of it stays out and is named."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from oligovox.cohort.bids import read_bids
from oligovox.cohort.manifest import Case
from oligovox.files import read_json
from oligovox.prepare.geometry import Volume, read_volume, resample_to
from oligovox.prepare.ready import Ready, ready_person
from oligovox.prepare.ready_back import back
from oligovox.prepare.ready_files import folder_of
from oligovox.prepare.registration import shift_and_turn
from oligovox.report.ready import warnings_of

LABELS = {"lesion": 1}
SIDE, STEP, NOISE = 44, 4.0, 8.0
AFFINE = np.diag([STEP, STEP, STEP, 1.0])
AFFINE[:3, 3] = -SIDE / 2 * STEP
MOVE = np.eye(4)
MOVE[:3, :3] = Rotation.from_euler("xyz", (3, -2, 4), degrees=True).as_matrix()
MOVE[:3, 3] = 4.0, -3.0, 2.0
SETTINGS = Ready(brain="none")


def head(seed: int) -> np.ndarray:
    """A lump with an anatomy of its own, without noise."""
    axes = np.stack(np.meshgrid(*[(np.arange(SIDE) - SIDE / 2) * STEP] * 3, indexing="ij"))
    lump = ((axes / np.reshape((66, 78, 60), (3, 1, 1, 1))) ** 2).sum(0) < 1
    folds = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=lump.shape), 2.0)
    return ndimage.gaussian_filter(np.where(lump, 300 + 60 * folds / folds.std(), 0), 0.7)


INSIDE = ndimage.binary_erosion(head(0) > 150, iterations=4)


def save(path: Path, array: np.ndarray, seed: int, scale: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noisy = scale * (array + np.random.default_rng(seed).normal(0, NOISE, array.shape))
    nib.save(nib.Nifti1Image(noisy.astype(np.float32), AFFINE), path)
    return path


@pytest.fixture
def exam(tmp_path: Path) -> Case:
    """Three files called runs of FLAIR: one, the same of a head that moved and in other units, and another image."""
    anat = tmp_path / "raw" / "sub-01" / "anat"
    elsewhere = resample_to(Volume(head(0), MOVE @ AFFINE), AFFINE, (SIDE,) * 3, 3).array
    for run, array, scale in ((1, head(0), 1.0), (2, elsewhere, 1.7), (3, head(9), 1.0)):
        save(anat / f"sub-01_run-{run}_FLAIR.nii.gz", array, run, scale)
    (case,) = read_bids(tmp_path / "raw").cases
    return case


def test_runs_are_averaged_and_another_image_among_them_is_left_out(
    exam: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "oligovox.prepare"):
        (record,) = ready_person([exam], SETTINGS, LABELS, tmp_path / "out")
    anat = folder_of(exam, tmp_path / "out") / "anat"
    made = read_volume(anat / "sub-01_space-FLAIR_desc-ready_FLAIR.nii.gz")
    np.testing.assert_allclose(made.affine, AFFINE, atol=1e-4)
    left = float(np.std((made.array - head(0))[INSIDE]))
    assert left < 0.75 * NOISE, "one run has the noise itself"

    said = "sub-01_run-3_FLAIR.nii.gz is left out of the average of FLAIR"
    assert [said in line for line in warnings_of(record)] == [True, False]  # and there is no brain mask
    assert [said in line.getMessage() for line in caplog.records] == [True]
    (third,) = (step for step in record["steps"] if step.get("sequence") == "FLAIR_run-3")
    assert third["correlation"] < 0.5
    assert {"step": "average", "sequence": "FLAIR", "runs": ["FLAIR", "FLAIR_run-2"]} in record["steps"]

    assert [Path(record["sources"][key]).name[7:12] for key in ("FLAIR", "FLAIR_run-2", "FLAIR_run-3")] == [
        "run-1", "run-2", "run-3",
    ]  # fmt: skip
    sources = read_json(anat / "sub-01_space-FLAIR_desc-ready_FLAIR.json")["Sources"]
    assert [Path(source).name[7:12] for source in sources] == ["run-1", "run-2"]
    runs = record["sequences"]["FLAIR"]["runs"]
    assert [found["used"] for found in runs.values()] == [True, False]
    shift, turn = shift_and_turn(np.array(runs["FLAIR_run-2"]["matrix"]) @ MOVE, AFFINE, (SIDE,) * 3)
    assert (shift < 1, turn < 1) == (True, True)
    assert (anat / "sub-01_from-FLAIRrun2_to-FLAIR_mode-image_xfm.txt").is_file()
    assert ready_person([exam], SETTINGS, LABELS, tmp_path / "out") == [record]


def test_a_prediction_goes_back_to_the_first_run(exam: Case, tmp_path: Path) -> None:
    ready_person([exam], Ready(brain="none", align="never"), LABELS, tmp_path / "out")
    lesion = np.zeros((SIDE,) * 3, np.uint8)
    lesion[20:24, 18:22, 20:23] = 1
    nib.save(nib.Nifti1Image(lesion, AFFINE), tmp_path / "sub-01_label-lesion_mask.nii.gz")
    files = back(tmp_path / "sub-01_label-lesion_mask.nii.gz", folder_of(exam, tmp_path / "out"), tmp_path / "back")
    assert {key: path.name for key, path in files.items()} == {"FLAIR": "sub-01_run-1_FLAIR_label-lesion_mask.nii.gz"}
    np.testing.assert_array_equal(read_volume(files["FLAIR"]).array, lesion)


def test_a_run_that_changes_makes_the_exam_anew_and_without_average_the_first_is_taken(
    exam: Case, tmp_path: Path
) -> None:
    settings = Ready(brain="none", align="never")
    (one,) = ready_person([exam], settings, LABELS, tmp_path / "out")
    save(exam.repeats["FLAIR"][0], head(0), 5)
    (other,) = ready_person([exam], settings, LABELS, tmp_path / "out")
    assert [found["used"] for found in one["sequences"]["FLAIR"]["runs"].values()] == [False, False], "it had moved"
    assert [found["used"] for found in other["sequences"]["FLAIR"]["runs"].values()] == [True, False]
    alone = settings.model_copy(update={"average": False})
    (first,) = ready_person([exam], alone, LABELS, tmp_path / "out")
    assert set(first["sources"]) == {"FLAIR"}
    made = read_volume(tmp_path / "out/sub-01/anat/sub-01_space-FLAIR_desc-ready_FLAIR.nii.gz")
    step = np.abs(made.array).max() / 32767
    np.testing.assert_allclose(made.array, read_volume(exam.images["FLAIR"]).array, atol=step)
