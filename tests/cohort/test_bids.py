"""Reading BIDS folders: only names matter, so empty files will do."""

from __future__ import annotations

from pathlib import Path

import pytest

from oligovox.cohort.bids import PREDICTIONS, read_bids
from oligovox.cohort.layouts import read
from oligovox.cohort.manifest import Cohort
from oligovox.cohort.reading import Asked
from oligovox.errors import CohortError


def _tree(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def _files(cohort: Cohort, name: str) -> dict[str, str | None]:
    case = next(case for case in cohort.cases if case.name == name)
    masks = {"label": case.label, "brain": case.brain}
    return {k: path.name for k, path in case.images.items()} | {k: path.name for k, path in masks.items() if path}


def test_predictions_are_no_labels(tmp_path: Path) -> None:
    mask = "sub-01/anat/sub-01_label-lesion_mask.nii.gz"
    root = _tree(tmp_path / "ms", "sub-01/anat/sub-01_FLAIR.nii.gz", f"derivatives/model/{mask}")
    assert read_bids(root).cases[0].label
    (root / "derivatives" / "model" / "dataset_description.json").write_text(f'{{"Name": "{PREDICTIONS}"}}')
    assert read_bids(root).cases[0].label is None
    _tree(root, f"derivatives/manual/{mask}")
    assert read_bids(root).cases[0].label == root / "derivatives" / "manual" / mask


def test_sequences_sessions_and_masks(tmp_path: Path) -> None:
    root = _tree(
        tmp_path / "ms",
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_ce-gadolinium_T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii",
        "sub-01/ses-1/anat/sub-01_ses-1_FLAIR.json",
        "sub-01/ses-1/anat/._sub-01_ses-1_T2w.nii.gz",
        "sub-01/ses-1/func/sub-01_ses-1_task-rest_bold.nii.gz",
        "sub-01/ses-2/anat/sub-01_ses-2_T2w.nii.gz",
        "sub-02/anat/sub-02_T2w.nii.gz",
        "sub-03/func/sub-03_task-rest_bold.nii.gz",
        "sourcedata/sub-04/anat/sub-04_T1w.nii.gz",
        "derivatives/manual/sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz",
        "derivatives/sub-01/ses-1/anat/sub-01_ses-1_desc-brain_mask.nii.gz",
        "derivatives/sub-01/ses-2/anat/sub-01_ses-2_desc-lesionchange_mask.nii.gz",
        "derivatives/other/sub-02/anat/sub-02_dseg.nii.gz",
        "derivatives/qsm/sub-02/anat/sub-02_Chimap.nii.gz",
    )
    (root / "participants.tsv").write_text("participant_id\tage\tsite\nsub-01\t40\tn/a\nsub-09\t1\tX\n")
    cohort = read_bids(root)
    assert [case.name for case in cohort.cases] == ["sub-01_ses-1", "sub-01_ses-2", "sub-02"]
    assert _files(cohort, "sub-01_ses-1") == {
        "T1w": "sub-01_ses-1_T1w.nii.gz",
        "T1wGd": "sub-01_ses-1_ce-gadolinium_T1w.nii.gz",
        "FLAIR": "sub-01_ses-1_FLAIR.nii",
        "label": "sub-01_ses-1_label-lesion_mask.nii.gz",
        "brain": "sub-01_ses-1_desc-brain_mask.nii.gz",
    }
    assert _files(cohort, "sub-01_ses-2") == {"T2w": "sub-01_ses-2_T2w.nii.gz"}
    assert _files(cohort, "sub-02") == {
        "T2w": "sub-02_T2w.nii.gz",
        "QSM": "sub-02_Chimap.nii.gz",
        "label": "sub-02_dseg.nii.gz",
    }
    assert cohort.cases[0].info == {"age": "40"}
    assert (cohort.name, cohort.labels, cohort.people) == ("ms", {"lesion": 1}, ("01", "02"))


def test_of_several_runs_the_first_plain_one_is_taken_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = _tree(
        tmp_path,
        *(f"sub-01/anat/sub-01_run-{run}_T1w.nii.gz" for run in (10, 2)),
        "sub-01/anat/sub-01_acq-sag_run-1_T1w.nii.gz",
        "sub-01/anat/sub-01_part-phase_T2starw.nii.gz",
    )
    assert _files(read_bids(root), "sub-01") == {"T1w": "sub-01_run-2_T1w.nii.gz"}
    (case,) = read_bids(root).cases
    assert [path.name for path in case.repeats["T1w"]] == ["sub-01_run-10_T1w.nii.gz"]
    assert (
        "averaged with it by `oligovox ready`, else used by plans that name them: sub-01_run-10_T1w.nii.gz\n"
        in caplog.text
    )
    assert "not used: sub-01_acq-sag_run-1_T1w.nii.gz\n" in caplog.text


def test_a_mask_of_another_name_and_scheme(tmp_path: Path) -> None:
    root = _tree(
        tmp_path,
        "sub-01/anat/sub-01_FLAIR.nii.gz",
        "derivatives/a/sub-01/anat/sub-01_desc-tumor_dseg.nii.gz",
        "derivatives/a/sub-01/anat/sub-01_desc-lesion_mask.nii.gz",
        "derivatives/a/sub-01/anat/sub-01_dseg.nii.gz",
        "derivatives/a/sub-01/anat/sub-01_space-MNI152NLin2009cAsym_desc-tumor_dseg.nii.gz",
        "derivatives/a/sub-01/anat/sub-01_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz",
        "derivatives/a/sub-01/anat/sub-01_space-FLAIR_desc-brain_mask.nii.gz",
    )
    cohort = read_bids(root, mask="tumor", labels={"edema": 2, "core": 1})
    assert _files(cohort, "sub-01") == {
        "FLAIR": "sub-01_FLAIR.nii.gz",
        "label": "sub-01_desc-tumor_dseg.nii.gz",
        "brain": "sub-01_space-FLAIR_desc-brain_mask.nii.gz",
    }
    assert list(cohort.labels) == ["edema", "core"]


def test_classes_come_from_the_datasets_own_table(tmp_path: Path) -> None:
    root = _tree(
        tmp_path / "ct",
        "sub-01/anat/sub-01_acq-inphase_T1w.nii.gz",
        "sub-01/anat/sub-01_acq-outphase_T1w.nii.gz",
        "sub-01/anat/sub-01_acq-spir_T2w.nii.gz",
        "derivatives/manual/sub-01/anat/sub-01_desc-organs_dseg.nii.gz",
    )
    table = root / "derivatives" / "manual" / "desc-organs_dseg.tsv"
    table.write_text("index\tname\n0\tbackground\n1\tliver\n4\tspleen\n")
    cohort = read_bids(root, mask="organs")
    assert set(_files(cohort, "sub-01")) == {"T1in", "T1out", "T2spir", "label"}
    assert cohort.labels == {"liver": 1, "spleen": 4}
    assert read_bids(root, mask="organs", labels={"liver": 1}).labels == {"liver": 1}
    table.write_text("index\tname\none\tliver\n")
    with pytest.raises(CohortError, match=r"desc-organs_dseg\.tsv: expected the columns index"):
        read_bids(root, mask="organs")


def test_a_sequence_that_is_called_otherwise_can_be_named(tmp_path: Path) -> None:
    names = ("sub-01/anat/sub-01_MRI.nii.gz", "sub-01/anat/sub-01_ce-gd_head.nii.gz")
    root = _tree(tmp_path, *names, "derivatives/a/sub-01/anat/sub-01_map.nii.gz")
    with pytest.raises(CohortError, match=r"found: MRI, head\).*--sequence 'MRI=FLAIR'"):
        read(root)
    cohort = read(root, asked=Asked(sequences={"mri": "FLAIR", "head": "T1w", "map": "QSM"}))
    assert cohort.modalities == ("FLAIR", "QSM", "T1wGd")


def test_two_raters_are_ambiguous(tmp_path: Path) -> None:
    masks = [f"derivatives/{rater}/sub-01/anat/sub-01_desc-lesion_mask.nii.gz" for rater in "AB"]
    root = _tree(tmp_path, "sub-01/anat/sub-01_FLAIR.nii.gz", *masks)
    with pytest.raises(CohortError, match=r"2 'lesion' masks for one session: .*A/sub-01.* and .*B/sub-01.*; keep one"):
        read_bids(root)
    assert read_bids(root, mask=None).cases[0].label is None  # who predicts asks for no label


def test_masks_of_other_names_only_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    masks = [
        f"derivatives/x/sub-01/anat/sub-01_{name}_mask.nii.gz" for name in ("desc-rater1", "label-core", "desc-brain")
    ]
    root = _tree(tmp_path, "sub-01/anat/sub-01_FLAIR.nii.gz", *masks)
    line = "no mask is called '{}', but masks are there called core, rater1; choose one, as --mask core"
    with pytest.raises(CohortError, match=line.format("rater2")):
        read_bids(root, mask="rater2")
    assert read_bids(root).cases[0].label is None
    assert line.format("lesion") in caplog.text, "what nobody asked for is said, and images may be learned from"
    caplog.clear()
    assert read_bids(root, mask="rater1").labelled
    assert not read_bids(root, mask=None).labelled
    assert not caplog.text


def test_a_mask_without_image_is_refused(tmp_path: Path) -> None:
    root = _tree(
        tmp_path,
        "sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz",
        "derivatives/sub-01/anat/sub-01_desc-lesion_mask.nii.gz",
    )
    with pytest.raises(CohortError, match="'lesion' mask of sub-01 has no image beside it; bring the image back"):
        read_bids(root)


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ((), "no folder sub-"),
        (("inner/sub-01/anat/sub-01_T1w.nii.gz",), "did you mean .*inner"),
        (("sub-01/func/sub-01_task-x_bold.nii.gz",), r"no known sequence .*\(found: bold\)"),
        (("sub-01/readme.txt",), "no NIfTI file"),
        (("sub-01/anat/sub-02_T1w.nii.gz",), "folder sub-01 but is named sub-02"),
        (("sub-01/ses-1/anat/sub-01_ses-2_T1w.nii.gz",), "folder ses-1 but is named ses-2"),
    ],
)
def test_folders_that_are_no_bids(tmp_path: Path, names: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(CohortError, match=complaint):
        read_bids(_tree(tmp_path, *names))


def test_no_folder_and_no_participant_column(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="no such folder"):
        read_bids(tmp_path / "nowhere")
    root = _tree(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz")
    (root / "participants.tsv").write_text("subject\tage\n01\t4\n")
    with pytest.raises(CohortError, match="no column participant_id"):
        read_bids(root)


@pytest.mark.real
def test_openms_as_it_is(real_data: Path) -> None:
    cohort = read_bids(real_data / "openms")
    assert cohort.people == ("cs07", "cs19", "lo01", "lo03", "lo09", "lo12", "lo19", "lo20")
    assert len(cohort) == 12
    assert [case.name for case in cohort.labelled] == ["sub-cs07", "sub-cs19"]  # lesionchange is not a lesion mask
    assert [case.name for case in cohort.cases if not case.brain] == [
        "sub-lo03_ses-1",
        "sub-lo03_ses-2",
        "sub-lo19_ses-1",
        "sub-lo19_ses-2",
    ]
    assert cohort.modalities == ("FLAIR", "T1w", "T1wGd", "T2w")
    assert cohort.cases[0].info["ms_type"] == "RR"
    assert not any("sourcedata" in str(path) for case in cohort.cases for path in case.images.values())
