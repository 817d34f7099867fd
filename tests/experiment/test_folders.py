"""`cohort look`, `write` and `series`, and folders of other layouts through `prepare` and `evaluate`."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from oligovox import experiment
from oligovox.errors import CohortError, OutputError, SettingsError
from oligovox.experiment.matching import match
from oligovox.prepare.store import Store

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_from_bids_to_nnunet_to_a_store(phantom: Path, tmp_path: Path, oligovox: Command) -> None:
    raw = tmp_path / "Dataset001_Phantom"
    written = json.loads(oligovox("cohort", "write", phantom, raw, "--to", "nnunet", "--json").stdout)
    assert written == {
        "cohort": str(raw), "layout": "nnunet", "cases": 6, "people": 6, "labelled": 6, "modalities": ["FLAIR", "T1w", "T2w"],
    }  # fmt: skip
    seen = json.loads(oligovox("cohort", "look", raw, "--json").stdout)
    assert (seen["layout"], seen["sequences"]) == ("nnunet", {"FLAIR": 6, "T1w": 6, "T2w": 6})
    assert seen["because"][0] == "18 images with a channel number, such as 01_0000.nii.gz"
    experiment.prepare(raw, tmp_path / "a", workers=1)
    experiment.prepare(phantom, tmp_path / "b", workers=1)
    ours, theirs = (Store.open(tmp_path / name) for name in "ba")
    assert [case.name for case in ours.cases] == [case.name for case in theirs.cases]
    one, two = ours.cases[0], theirs.cases[0]
    assert one.lesion_voxels == two.lesion_voxels > 0
    lines = oligovox("cohort", "look", tmp_path, check=2).stderr.splitlines()
    assert len(lines) == 1
    assert "no layout that is known" in lines[0]
    assert f"did you mean {raw}?" in lines[0]


def test_what_nnunet_predicted_is_matched_with_any_reference(phantom: Path, tmp_path: Path) -> None:
    raw = tmp_path / "Dataset001_Phantom"
    experiment.write_cohort(phantom, raw, to="nnunet")
    predictions = tmp_path / "predicted"
    shutil.copytree(raw / "labelsTr", predictions)
    (predictions / "dataset.json").write_text("{}")
    for truth in (raw, phantom, raw / "labelsTr"):
        found = match(predictions, truth)
        assert len(found.pairs) == 6
        assert all(pair.prediction.name == f"{pair.case.removeprefix('sub-')}.nii.gz" for pair in found.pairs)
    (predictions / "01.nii.gz").unlink()
    with pytest.raises(CohortError, match="1 of 6 predictions are missing, first sub-01"):
        match(predictions, raw)


def test_sequences_are_named_and_chosen(phantom: Path, tmp_path: Path) -> None:
    table = tmp_path / "exams.csv"
    image = phantom / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz"
    table.write_text(f"id,MRI,T1w\np01,{image},\np02,,{image}\n")
    with pytest.raises(SettingsError, match="expected the name in the folder and what it is, as MRI=FLAIR"):
        experiment.look_at(table, sequences=["MRI"])
    assert experiment.look_at(table, sequences=["MRI=flair"])["sequences"] == {"FLAIR": 1, "T1w": 1}
    out = tmp_path / "flair.json"
    made = experiment.write_cohort(table, out, to="datalist", sequences=["MRI=FLAIR"], modalities=["FLAIR"])
    assert (made["cases"], made["modalities"]) == (1, ["FLAIR"])
    with pytest.raises(OutputError, match=r"flair\.json: is there already, and a table is two files"):
        experiment.write_cohort(out, tmp_path / "flair.tsv", to="table")
    experiment.write_cohort(out, tmp_path / "table.tsv", to="table")
    assert experiment.look_at(tmp_path / "table.tsv")["people"] == 1


@pytest.mark.parametrize(
    ("out", "to", "complaint"),
    [
        ("phantom/new", "bids", "lies in .*phantom, which is only read"),
        ("x", "datalist", r"a datalist is one file; give it a name that ends in \.json"),
        ("x", "nifti", "cannot be written as 'nifti'; known are"),
    ],
)
def test_where_and_what_cannot_be_written(phantom: Path, tmp_path: Path, out: str, to: str, complaint: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((OutputError, SettingsError), match=complaint):
        experiment.write_cohort(phantom, tmp_path / out, to=to)
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_is_left_where_writing_fails(phantom: Path, tmp_path: Path) -> None:
    (phantom / "sub-02" / "anat" / "sub-02_T1w.nii.gz").unlink()
    with pytest.raises(CohortError, match="1 of 6 cases lack a sequence, first sub-02 without T1w"):
        experiment.write_cohort(phantom, tmp_path / "out", to="nnunet")
    assert [path.name for path in tmp_path.iterdir()] == ["phantom"]
    assert experiment.write_cohort(phantom, tmp_path / "out", to="nnunet", incomplete="leave out")["cases"] == 5
