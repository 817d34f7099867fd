"""`oligovox run FOLDER OUT --task lesion`: from every entry folder to predictions and a page; what it refuses; killed and started again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from oligovox.cohort.manifest import Case, Cohort
from oligovox.engine.model import read_description
from oligovox.errors import RunError, SettingsError
from oligovox.experiment import front_door
from oligovox.experiment.checking import check_data
from oligovox.experiment.cohorts import read_cohort
from oligovox.experiment.final import CAUTION
from oligovox.experiment.front_door import Asked, is_raw, run_folder
from oligovox.experiment.verbs import predict
from oligovox.files import read_tsv, write_tsv

Call = Callable[..., subprocess.CompletedProcess[str]]
SHORT = [
    *("--task", "lesion", "--minutes", "0.01", "--workers", "1"),
    *(
        "--set",
        "network.settings.preset=nano",
        "--set",
        "pretrain.patch=[16,16,16]",
        "--set",
        "finetune.patch=[16,16,16]",
    ),
    *(arg for stage in ("pretrain", "finetune") for arg in ("--set", f"{stage}.training.steps=4")),
    *("--set", "finetune.training.validate_every=2"),
]
SIDE = 24


def head(number: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A lump with an anatomy of its own in four sequences, and a lesion in it."""
    rng = np.random.default_rng(number)
    axes = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij")) - SIDE / 2
    brain = ((axes / rng.uniform(0.75, 1.0, (3, 1, 1, 1))) ** 2).sum(0) < (SIDE / 2 - 2) ** 2
    folds = 60 * ndimage.gaussian_filter(rng.normal(size=brain.shape), 2.0) / 0.1
    lesion = np.zeros(brain.shape, bool)
    x, y, z = rng.integers(8, 14, 3)
    lesion[x : x + 4, y : y + 3, z : z + 3] = True
    contrast = {"T1w": -60, "T1wGd": 40, "T2w": 80, "FLAIR": 90}
    images = {
        name: np.where(brain, 300 + folds + sign * lesion + rng.normal(0, 5, brain.shape), 0)
        .clip(0)
        .round()
        .astype(np.int16)
        for name, sign in contrast.items()
    }
    return images, (lesion & brain).astype(np.uint8)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0])), path)


def nnunet(root: Path) -> Path:
    """Four labelled exams in imagesTr, one in imagesTs."""
    for number in range(5):
        images, lesion = head(number)
        part = "Tr" if number < 4 else "Ts"
        for channel, name in enumerate(("FLAIR", "T1w")):
            save(root / f"images{part}" / f"MS_{number:03d}_{channel:04d}.nii.gz", images[name])
        if part == "Tr":
            save(root / "labelsTr" / f"MS_{number:03d}.nii.gz", lesion)
    about = {
        "channel_names": {"0": "FLAIR", "1": "T1"}, "labels": {"background": 0, "lesion": 1}, "numTraining": 4, "file_ending": ".nii.gz",
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(about))
    return root


def brats(root: Path) -> Path:
    """Four tumours in the names of 2023, one exam without a label."""
    for number in range(5):
        case, (images, lesion) = f"BraTS-GLI-{number:05d}-000", head(number)
        for name, word in {"T1w": "t1n", "T1wGd": "t1c", "T2w": "t2w", "FLAIR": "t2f"}.items():
            save(root / case / f"{case}-{word}.nii.gz", images[name])
        if number < 4:
            label = lesion * 2
            label[np.nonzero(lesion)[0].min() + 1] //= 2
            save(root / case / f"{case}-seg.nii.gz", label)
    return root


def dicom(root: Path, people: int = 1) -> Path:
    """One FLAIR series a person, as a scanner exports it."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    for number in range(people):
        volume = head(number)[0]["FLAIR"]
        patient = f"P{number}"
        uid = f"1.2.3.{zlib.crc32(patient.encode())}.1"
        for z in range(SIDE):
            found = pydicom.Dataset()
            found.file_meta = pydicom.dataset.FileMetaDataset()
            found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID = MRImageStorage
            found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID = f"{uid}.{z + 1}"
            found.Modality, found.Manufacturer, found.SeriesDescription = "MR", "SIEMENS", "FLAIR tra"
            found.PatientName = found.PatientID = patient
            found.StudyDate = found.SeriesDate = found.AcquisitionDate = "20200203"
            found.StudyTime = found.AcquisitionTime = "101112"
            found.StudyInstanceUID, found.SeriesInstanceUID, found.FrameOfReferenceUID = f"{uid}.7", uid, f"{uid}.9"
            found.SeriesNumber, found.InstanceNumber, found.AcquisitionNumber = 1, z + 1, 1
            found.ImageOrientationPatient, found.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0.0, 0.0, 2.0 * z]
            found.PixelSpacing, found.SliceThickness, found.SpacingBetweenSlices = [2.0, 2.0], 2.0, 2.0
            found.EchoTime, found.RepetitionTime, found.InversionTime = 120, 9000, 2500
            found.Rows = found.Columns = SIDE
            found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
            found.BitsAllocated, found.BitsStored, found.HighBit, found.PixelRepresentation = 16, 12, 11, 0
            found.ImageType, found.MagneticFieldStrength = ["ORIGINAL", "PRIMARY", "M", "ND"], 3
            found.PixelData = volume[:, :, z].T.astype(np.uint16).tobytes()
            path = root / patient / "FLAIR" / f"{z:03d}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            found.save_as(path, enforce_file_format=True)
    return root


def bids(root: Path, make_phantom: Callable[..., Path]) -> Path:
    return make_phantom(root, subjects=5, labelled=4, side=SIDE)


def predictions(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "predictions").rglob("*.nii.gz") if "store" not in path.parts)


@pytest.mark.parametrize("entry", ["bids", "nnunet", "brats"])
def test_from_the_folder_to_predictions_and_the_page(
    entry: str, make_phantom: Callable[..., Path], oligovox: Call, tmp_path: Path
) -> None:
    data = tmp_path / "my exams"
    {"bids": lambda: bids(data, make_phantom), "nnunet": lambda: nnunet(data), "brats": lambda: brats(data)}[entry]()
    before = {path: path.read_bytes() for path in sorted(data.rglob("*")) if path.is_file()}
    out = tmp_path / "out"
    said = json.loads(oligovox("run", data, out, *SHORT, "--json").stdout)
    assert Path(said["page"]) == out / "index.html"
    page = (out / "index.html").read_text()
    for link in ("check/check.html", "plan/plan.yaml", "run/report.html", "predictions"):
        assert f'href="{link}"' in page
        assert (out / link).exists()
    assert len(predictions(out)) == 1, "one exam has no label"
    mask = nib.load(next(path for path in (out / "predictions").rglob("*.nii.gz") if "store" not in path.parts))
    assert mask.shape == (SIDE, SIDE, SIDE)
    assert {path: path.read_bytes() for path in sorted(data.rglob("*")) if path.is_file()} == before, (
        "data are only read"
    )
    if entry == "bids":
        again = json.loads(oligovox("run", data, out, *SHORT, "--json").stdout)
        assert again == said
        refused = oligovox("run", data, out, "--task", "lesion", "--hours", "1", check=2)
        assert "was begun with" in refused.stderr


def test_dicom_is_looked_at_and_labelled_by_a_person_in_between(oligovox: Call, tmp_path: Path) -> None:
    from oligovox.cohort import dicom as reader

    try:
        reader.find_tool()
    except SettingsError as error:
        pytest.skip(str(error))
    data, out = dicom(tmp_path / "export", people=4), tmp_path / "out"
    table = out / "converted" / "series.tsv"
    first = oligovox("run", data, out, *SHORT, check=2)
    assert "4 of them taken for a sequence; look at" in first.stderr
    second = oligovox("run", data, out, *SHORT, check=2)
    assert "none with a label; draw lesion masks for two people or more" in second.stderr
    rows = read_tsv(table)
    for number, row in enumerate(rows[:3]):
        image = nib.load(out / "converted" / row["file"])
        lesion = head(number)[1][:, ::-1].copy()  # DICOM's rows run to the back, NIfTI's to the front
        assert np.corrcoef(image.get_fdata().ravel(), head(number)[0]["FLAIR"][:, ::-1].ravel())[0, 1] > 0.99
        row["label"] = f"{number}_mask.nii.gz"
        nib.save(nib.Nifti1Image(lesion, image.affine), out / "converted" / row["label"])
    write_tsv(table, rows, list(rows[0]))
    oligovox("run", data, out, *SHORT)
    assert len(predictions(out)) == 1


def test_a_defect_stops_the_run_and_fix_goes_on(
    make_phantom: Callable[..., Path], oligovox: Call, tmp_path: Path
) -> None:
    data, out = bids(tmp_path / "data", make_phantom), tmp_path / "out"
    broken = data / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz"
    image = nib.load(broken)
    array = image.get_fdata().astype(np.float32)
    array[12, 12, 12] = np.nan
    nib.save(nib.Nifti1Image(array, image.affine), broken)
    refused = oligovox("run", data, out, *SHORT, check=2)
    assert "sub-01_FLAIR.nii.gz" in refused.stderr
    assert "say --fix" in refused.stderr
    assert (out / "check" / "check.html").is_file()
    assert not (out / "run").exists()
    oligovox("run", data, tmp_path / "fixed", *SHORT, "--fix")
    assert "mended/mended.json" in (tmp_path / "fixed" / "index.html").read_text()
    assert np.isnan(nib.load(broken).get_fdata()).any(), "the data stay as they are"


def test_where_it_may_not_write(make_phantom: Callable[..., Path], oligovox: Call, tmp_path: Path) -> None:
    data = bids(tmp_path / "data", make_phantom)
    assert "choose another folder" in oligovox("run", data, data / "out", *SHORT, check=2).stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "not empty" in oligovox("run", data, tmp_path / "full", *SHORT, check=2).stderr
    assert "--task lesion" in oligovox("run", data, tmp_path / "out", check=2).stderr
    assert "no such folder" in oligovox("run", tmp_path / "gone", tmp_path / "out", *SHORT, check=2).stderr
    assert not (tmp_path / "out").exists()


def test_killed_in_training_and_started_again(
    make_phantom: Callable[..., Path], oligovox: Call, tmp_path: Path
) -> None:
    data, out = bids(tmp_path / "data", make_phantom), tmp_path / "out"
    log = out / "run" / "arms" / "scratch" / "log.jsonl"
    with subprocess.Popen(
        [sys.executable, "-m", "oligovox", "run", data, out, *SHORT], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as running:  # fmt: skip
        end = time.monotonic() + 200
        while not log.is_file() and running.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        os.killpg(running.pid, signal.SIGKILL)
    assert not (out / "index.html").exists()
    plan = (out / "plan" / "plan.yaml").stat().st_mtime_ns
    oligovox("run", data, out, *SHORT)
    assert (out / "index.html").is_file()
    assert (out / "plan" / "plan.yaml").stat().st_mtime_ns == plan, "what was planned stays"


def test_in_python_from_a_table_and_what_changes_later_is_noticed(
    make_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    changes = tuple(SHORT[i + 1] for i, word in enumerate(SHORT) if word == "--set")
    asked = Asked(minutes=0.01, changes=changes, raw="never")
    data = make_phantom(tmp_path / "data", subjects=5, labelled=4, side=SIDE)
    cohort = read_cohort(data)
    four = replace(cohort, cases=cohort.cases[:4])
    four.save(tmp_path / "exams.tsv")
    out = tmp_path / "out"
    found = run_folder(tmp_path / "exams.tsv", out, asked, workers=1)
    assert found["predictions"] is None, "everybody has a label"
    assert Path(found["page"]).is_file()

    cohort.save(tmp_path / "exams.tsv")
    with pytest.raises(SettingsError, match="sub-05 came after this run was planned; predict it with"):
        run_folder(tmp_path / "exams.tsv", out, asked, workers=1)
    four.save(tmp_path / "exams.tsv")
    label = four.cases[0].label
    assert label
    mask = nib.load(label)
    nib.save(nib.Nifti1Image(np.roll(np.asanyarray(mask.dataobj), 1, 0), mask.affine), label)
    with pytest.raises(SettingsError, match="sub-01: label changed after this run was planned"):
        run_folder(tmp_path / "exams.tsv", out, asked, workers=1)


def test_the_final_model_is_asked_for_later_and_predicts(tmp_path: Path) -> None:
    changes = tuple(SHORT[i + 1] for i, word in enumerate(SHORT) if word == "--set")
    asked = Asked(minutes=0.01, changes=changes, raw="never")
    data, out = nnunet(tmp_path / "data"), tmp_path / "out"

    def model_of(predicted: Path) -> str:
        (sidecar,) = (path for path in predicted.rglob("*_mask.json") if "store" not in path.parts)
        return str(json.loads(sidecar.read_text())["ModelHash"])

    run_folder(data, out, asked, workers=1)
    assert not (out / "run" / "final").exists()
    assert CAUTION not in (out / "index.html").read_text()
    reported = model_of(out / "predictions")
    with pytest.raises(SettingsError, match="was begun with changes"):
        run_folder(data, out, replace(asked, changes=(*changes, "final=all", "seed=3")), workers=1)
    run_folder(data, out, replace(asked, changes=(*changes, "final=all")), workers=1)
    assert {f"MS_{number:03d}" for number in range(4)} <= {
        *read_description(out / "run" / "final" / "model").trained_on
    }
    predict(out / "run" / "final", out / "tables" / "unlabelled" / "data.tsv", tmp_path / "again", workers=1)
    assert model_of(tmp_path / "again") == model_of(out / "predictions") != reported
    assert CAUTION in (out / "index.html").read_text()
    assert CAUTION in (out / "run" / "report.html").read_text()


def test_the_doctor_is_asked_again_only_where_files_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out, asked = nnunet(tmp_path / "data"), tmp_path / "out", Asked(raw="never", fix=True)
    image = data / "imagesTr" / "MS_000_0000.nii.gz"
    array = nib.load(image).get_fdata().astype(np.float32)
    array[12, 12, 12] = np.nan
    save(image, array)  # an error, so a mended copy
    told: list[str] = []

    def check(given: Path, *args: object, **more: object) -> dict[str, object]:
        told.append(Path(given).name)
        return check_data(given, *args, **more)  # type: ignore[arg-type]

    def stop(used: Path, *_: object) -> None:
        raise RunError(used.parent.name)

    monkeypatch.setattr(front_door, "check_data", check)
    monkeypatch.setattr(front_door, "_planned", stop)

    def start() -> list[str]:
        told.clear()
        with pytest.raises(RunError, match="mended"):
            run_folder(data, out, asked, workers=1)
        return list(told)

    asked_both = ["data.tsv", "mended"]
    assert start() == asked_both
    assert start() == []
    (out / "check" / "check.json").unlink()
    assert start() == asked_both
    shutil.rmtree(out / "mended")
    assert start() == asked_both
    array[11, 12, 12] += 1
    save(image, array)
    assert start() == asked_both
    assert start() == []


def test_abdomens_are_not_looked_at_for_a_brain(tmp_path: Path) -> None:
    body = np.random.default_rng(0).normal(100, 10, (SIDE, SIDE, SIDE)).astype(np.float32)  # to the edge of the picture
    for name, brain in (("FLAIR", True), ("T2spir", False)):
        save(tmp_path / f"{name}.nii.gz", body)
        table = tmp_path / name / "exams.tsv"
        table.parent.mkdir()
        Cohort(cases=(Case(subject="1", images={name: tmp_path / f"{name}.nii.gz"}),)).save(table)
        assert is_raw(table, tmp_path / "out", "auto") is brain


@pytest.mark.parametrize("given", [{"hours": -1.0}, {"hours": float("nan")}, {"minutes": 0.0}])
def test_times_that_are_none_bind_nothing(given: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match="expected a number above 0"):
        Asked(**given)
