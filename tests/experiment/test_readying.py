"""`ready` and `ready_back` as verbs: a folder in, a folder that reads as a cohort out; stopped runs go on; wrong places are refused."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from oligovox import experiment
from oligovox.cohort import bids_write
from oligovox.cohort.bids import read_bids
from oligovox.cohort.manifest import Case, Cohort
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
    assert "Brain mask: its volume is" in page  # the phantom's brain is no adult's
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


def test_regions_stay(raw: Path, tmp_path: Path) -> None:
    """Two classes, and a region of both: what is made ready is trained and scored as the folder says."""
    cohort = read_bids(raw)
    parted = replace(cohort, labels={"edge": 1, "core": 2}, regions={"whole": ("edge", "core"), "core": ("core",)})
    bids_write.write(parted, tmp_path / "parted")
    done = experiment.ready(tmp_path / "parted", tmp_path / "out", **FAST)
    assert done["exams"] == 3
    made = read_bids(tmp_path / "out")
    assert (made.labels, made.regions) == (parted.labels, parted.regions)


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


KILLED = """
import os, sys
import oligovox.files as files
whole = files._flush
def flush(path):
    if path.name == "sub-02_desc-ready.json":
        os.kill(os.getpid(), 9)
    whole(path)
files._flush = flush
from oligovox.experiment.readying import ready
ready(sys.argv[1], sys.argv[2], changes=["align=never", "visits=false"], workers=1)
"""


def test_killed_while_a_folder_is_flushed(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, raw, out], capture_output=True, timeout=100)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [path for path in out.rglob("*_desc-ready.json") if ".tmp-" in str(path)]
    assert left, "the kill came too late for this test to say anything"
    kept = {path: path.stat().st_mtime_ns for path in (out / "sub-01").rglob("*.nii.gz")}
    assert experiment.ready(raw, out, **FAST)["exams"] == 3
    assert not list(out.rglob(".tmp-*"))
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def table(folder: Path, *cases: tuple[str, str]) -> Path:
    """A table of exams (subject, session) of one image each."""
    rng, made = np.random.default_rng(0), []
    for number, (subject, session) in enumerate(cases):
        path = folder / f"{number}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(rng.integers(1, 99, (12, 12, 12)).astype(np.int16), np.eye(4)), path)
        made.append(Case(subject=subject, session=session, images={"FLAIR": path}))
    Cohort(cases=tuple(made), labels={"lesion": 1}, name="x").save(folder / "cohort.tsv")
    return folder / "cohort.tsv"


def test_back_tells_exams_apart_and_passes_leftovers_over(tmp_path: Path) -> None:
    cohort, out = table(tmp_path / "in", ("p1", ""), ("p1", "2")), tmp_path / "out"
    experiment.ready(cohort, out, changes=["visits=false", "brain=none"], workers=1)
    for name in ("sub-p1", "sub-p1_ses-2"):
        target = tmp_path / "predictions" / f"{name}_dseg.nii.gz"
        target.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(np.ones((12, 12, 12), np.uint8), np.eye(4)), target)
    shutil.copytree(out / "sub-p1" / "ses-2", out / "sub-p1" / ".tmp-999999999-ses-2")
    done = experiment.ready_back(tmp_path / "predictions", out, tmp_path / "back")
    assert (done["exams"], done["files"]) == (2, 2)
    found = {path.relative_to(tmp_path / "back").as_posix() for path in (tmp_path / "back").rglob("*.nii.gz")}
    assert found == {"sub-p1/0_dseg.nii.gz", "sub-p1/ses-2/1_dseg.nii.gz"}
    one = experiment.ready_back(tmp_path / "predictions" / "sub-p1_ses-2_dseg.nii.gz", out, tmp_path / "one")
    assert one["exams"] == 1


def test_two_people_do_not_become_one(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="'P-1' and 'P1' would both be called sub-P1"):
        experiment.ready(table(tmp_path / "in", ("P-1", "1"), ("P1", "2")), tmp_path / "out", **FAST)


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
