"""`ready` and `ready_back` as verbs: a folder in, a folder that reads as a cohort out; stopped runs go on; wrong places are refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from oligovox import experiment
from oligovox.cohort.bids import read_bids
from oligovox.errors import CohortError, ImageError, OutputError, SettingsError

FAST = {"changes": ["align=never", "visits=false"], "workers": 1}
"""The phantom's sequences lie on one grid."""


@pytest.fixture
def raw(make_phantom: Callable[..., Path], tmp_path: Path) -> Path:
    return make_phantom(tmp_path / "raw", subjects=3, labelled=2)


def test_folder_in_cohort_out_and_back(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = experiment.ready(raw, out, **FAST)
    assert done["exams"] == 3
    cohort, before = read_bids(out), read_bids(raw)
    assert cohort.modalities == before.modalities
    assert [bool(case.label) for case in cohort.cases] == [True, True, False]
    for case, original in zip(cohort.cases, before.cases, strict=True):
        for name, path in case.images.items():
            image, source = nib.load(path), nib.load(original.images[name])
            low = np.rint(np.linalg.inv(source.affine) @ image.affine)[:3, 3].astype(int)
            cut = source.get_fdata()[tuple(slice(a, a + n) for a, n in zip(low, image.shape, strict=True))]
            brain = nib.load(case.brain).get_fdata() > 0
            np.testing.assert_array_equal(image.get_fdata()[brain], np.maximum(cut, 1)[brain])
    page = (out / "ready.html").read_text()
    assert page.count("<img") == 3
    assert "sub-03" in page
    assert "<script" not in page

    predictions = tmp_path / "predictions"
    for case in cohort.labelled:
        target = predictions / f"sub-{case.subject}" / "anat" / f"sub-{case.subject}_label-lesion_mask.nii.gz"
        target.parent.mkdir(parents=True)
        target.write_bytes(case.label.read_bytes())
    returned = experiment.ready_back(predictions, out, tmp_path / "back")
    assert (returned["exams"], returned["files"]) == (2, 6)
    for case in before.labelled:
        here = tmp_path / "back" / f"sub-{case.subject}" / f"sub-{case.subject}_T2w_label-lesion_mask.nii.gz"
        np.testing.assert_array_equal(nib.load(here).get_fdata(), nib.load(case.label).get_fdata())
    (predictions / "sub-01_dseg.nii.gz").write_bytes(b"")
    with pytest.raises(CohortError, match="two predictions"):
        experiment.ready_back(predictions, out, tmp_path / "back")
    with pytest.raises(CohortError, match="no prediction"):
        experiment.ready_back(raw / "sub-01", out, tmp_path / "back")


def test_a_stopped_run_goes_on(raw: Path, tmp_path: Path) -> None:
    out, third = tmp_path / "out", raw / "sub-03" / "anat" / "sub-03_FLAIR.nii.gz"
    whole = third.read_bytes()
    third.write_bytes(whole[:200])
    with pytest.raises(ImageError, match="sub-03_FLAIR"):
        experiment.ready(raw, out, **FAST)
    records = {path: path.stat().st_mtime_ns for path in out.rglob("*_desc-ready.json")}
    assert len(records) == 2
    leftover = out / ".tmp-999999999-sub-03"  # as a killed process leaves it
    leftover.mkdir()
    third.write_bytes(whole)
    assert experiment.ready(raw, out, **FAST)["exams"] == 3
    assert {path: path.stat().st_mtime_ns for path in records} == records
    assert not leftover.exists()
    experiment.ready(raw, out, **FAST | {"changes": [*FAST["changes"], "margin=1"]})
    assert all(path.stat().st_mtime_ns > then for path, then in records.items())


def test_wrong_places_and_missing_parts(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="lies in"):
        experiment.ready(raw, raw / "derivatives" / "ready", **FAST)
    with pytest.raises(OutputError, match="did not write"):
        experiment.ready(raw / "sub-01" / "..", tmp_path, changes=["align=never", "visits=false"])
    with pytest.raises(SettingsError, match="did you mean 'align'"):
        experiment.ready(raw, tmp_path / "out", changes=["aling=never"])
    with pytest.raises(CohortError, match="no ready exams"):
        experiment.ready_back(raw, raw, tmp_path / "back")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(SettingsError, match=r"pip install 'oligovox\[raw\]'"):
        experiment.ready(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()
