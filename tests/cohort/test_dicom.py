"""DICOM: CHAOS with its PNG masks, series through dcm2niix, and guessing what a series is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest

from oligovox.cohort import bids_write, dicom, series
from oligovox.cohort.chaos import LABELS
from oligovox.cohort.layouts import detect, read
from oligovox.cohort.reading import Asked
from oligovox.cohort.series import guess
from oligovox.errors import CohortError, ImageError, RunError, SettingsError
from oligovox.files import read_tsv, sweep, write_tsv

ROWS, COLUMNS, SLICES = 6, 8, 5
AXES = (0.5, 2.0, 3.0)  # mm between rows, columns and slices: PixelSpacing is (rows, columns)


def write_slice(path: Path, number: int, series_number: int = 1, patient: str = "Doe^Jane", **tags: Any) -> None:
    """One axial slice; its pixels say where they are: 100·slice + 10·row + column."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    path.parent.mkdir(parents=True, exist_ok=True)
    uid = f"1.2.3.{zlib.crc32(patient.encode())}.{series_number}"
    found = pydicom.Dataset()
    found.file_meta = pydicom.dataset.FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID = MRImageStorage
    found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID = f"{uid}.{number + 1}"
    found.Modality, found.Manufacturer = "MR", "SIEMENS"
    found.PatientName, found.PatientID, found.PatientBirthDate = patient, patient, "19800101"
    found.StudyDate = found.SeriesDate = found.AcquisitionDate = tags.pop("date", "20200203")
    found.StudyTime = found.AcquisitionTime = "101112"
    found.StudyInstanceUID, found.SeriesInstanceUID = f"1.2.3.{zlib.crc32(patient.encode())}.{found.StudyDate}", uid
    found.FrameOfReferenceUID = f"{uid}.9"
    found.SeriesNumber, found.InstanceNumber, found.AcquisitionNumber = series_number, number + 1, 1
    found.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    found.ImagePositionPatient = [-10.0, 20.0, AXES[2] * number]
    found.PixelSpacing, found.SliceThickness, found.SpacingBetweenSlices = [AXES[0], AXES[1]], AXES[2], AXES[2]
    found.Rows, found.Columns, found.SamplesPerPixel = ROWS, COLUMNS, 1
    found.PhotometricInterpretation = "MONOCHROME2"
    found.BitsAllocated, found.BitsStored, found.HighBit, found.PixelRepresentation = 16, 12, 11, 0
    found.ImageType, found.MagneticFieldStrength = ["ORIGINAL", "PRIMARY", "M", "ND"], 3
    for key, value in tags.items():
        setattr(found, key, value)
    row, column = np.mgrid[:ROWS, :COLUMNS]
    found.PixelData = (100 * number + 10 * row + column + 1).astype(np.uint16).tobytes()
    found.save_as(path, enforce_file_format=True)


@pytest.fixture
def chaos(tmp_path: Path) -> Path:
    """One person with organs drawn, and one of the test set; slices are named against their order in space."""
    root = tmp_path / "CHAOS"
    for person in (root / "Train_Sets" / "MR" / "1", root / "Test_Sets" / "MR" / "3"):
        for kind, parts in (("T1DUAL", ("InPhase", "OutPhase")), ("T2SPIR", ("",))):
            for n, part in enumerate(parts):
                for number in range(SLICES):
                    name = f"IMG-0004-{2 * (SLICES - number) + n:05d}"
                    write_slice(person / kind / "DICOM_anon" / part / f"{name}.dcm", number)
                    if n == 0 and "Train_Sets" in person.parts:
                        grey = np.zeros((ROWS, COLUMNS), np.uint8)
                        grey[number, 7] = 63 * min(number, 4)  # one voxel of another organ in each slice
                        (person / kind / "Ground").mkdir(exist_ok=True)
                        matplotlib.image.imsave(
                            person / kind / "Ground" / f"{name}.png", grey, cmap="gray", vmin=0, vmax=255
                        )
    return root


def test_chaos_becomes_volumes_with_organs_where_they_were_drawn(chaos: Path, tmp_path: Path) -> None:
    assert detect(chaos).layout == "chaos"
    with pytest.raises(CohortError, match=r"oligovox cohort write .* OUT --to bids"):
        read(chaos)
    cohort = read(chaos, asked=Asked(work=tmp_path / "work"))
    assert [case.name for case in cohort.cases] == [
        "sub-1_ses-T1DUAL",
        "sub-1_ses-T2SPIR",
        "sub-3_ses-T1DUAL",
        "sub-3_ses-T2SPIR",
    ]
    assert [sorted(case.images) for case in cohort.cases[:2]] == [["T1in", "T1out"], ["T2spir"]]
    assert cohort.labels == LABELS
    assert [case.label is not None for case in cohort.cases] == [True, True, False, False]
    assert cohort.cases[2].info == {"part": "test"}
    case = cohort.cases[0]
    assert case.label
    image, mask = nib.load(case.images["T1out"]), nib.load(case.label)
    assert image.shape == mask.shape == (COLUMNS, ROWS, SLICES)
    assert np.allclose(image.affine, mask.affine)
    for number in range(SLICES):  # voxel (column, row, slice) lies where DICOM says, in RAS
        place = image.affine @ [7, number, number, 1]
        assert np.allclose(place[:3], [-(-10 + 7 * AXES[1]), -(20 + number * AXES[0]), AXES[2] * number])
        assert image.dataobj[7, number, number] == 100 * number + 10 * number + 7 + 1
        assert mask.dataobj[7, number, number] == min(number, 4)
    assert np.count_nonzero(np.asanyarray(mask.dataobj)) == SLICES - 1
    bids_write.write(cohort, tmp_path / "bids")
    assert read(tmp_path / "bids").labels == LABELS


def test_what_chaos_refuses(chaos: Path, tmp_path: Path) -> None:
    ground = chaos / "Train_Sets" / "MR" / "1" / "T1DUAL" / "Ground"
    masks = sorted(ground.iterdir())
    matplotlib.image.imsave(masks[0], np.full((ROWS, COLUMNS), 100, np.uint8), cmap="gray", vmin=0, vmax=255)
    with pytest.raises(CohortError, match="has the grey values 100; expected 0, 63, 126"):
        read(chaos, asked=Asked(work=tmp_path / "a"))
    masks[0].unlink()
    with pytest.raises(CohortError, match="4 masks in Ground for 5 slices"):
        read(chaos, asked=Asked(work=tmp_path / "b"))
    (ground.parent / "DICOM_anon" / "InPhase" / "IMG-0004-00006.dcm").unlink()
    with pytest.raises(ImageError, match="its slices are no volume"):
        read(chaos, asked=Asked(work=tmp_path / "c"))


def test_series_are_converted_guessed_and_read(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    try:
        dicom.find_tool()
    except SettingsError as error:
        pytest.skip(str(error))
    raw = tmp_path / "dicom export"
    kinds: list[dict[str, Any]] = [
        {"SeriesDescription": "t1_mprage_sag", "EchoTime": 2.3, "RepetitionTime": 1900, "InversionTime": 900},
        {"SeriesDescription": "t1_mprage_sag_GD", "EchoTime": 2.3, "RepetitionTime": 1900, "InversionTime": 900},
        {"SeriesDescription": "FLAIR tra", "EchoTime": 120, "RepetitionTime": 9000, "InversionTime": 2500},
        {"SeriesDescription": "localizer", "EchoTime": 4, "RepetitionTime": 9},
    ]
    for patient, date in (("Doe^Jane", "20200203"), ("Doe^Jane", "20210203"), ("Äöü^Max", "20200203")):
        for number, kind in enumerate(kinds, start=1 if date == "20200203" else 11):
            for z in range(SLICES):
                write_slice(raw / patient / date / f"{number}_{z}", z, number, patient, date=date, **kind)
    with pytest.raises(CohortError, match=r"nearly dicom \(DICOM files such as .*oligovox cohort series"):
        read(raw)
    out = tmp_path / "out"
    rows = dicom.convert(raw, out)
    assert len(rows) == 12
    assert detect(out).layout == "series"
    cohort = read(out)
    assert [case.name for case in cohort.cases] == ["sub-001_ses-1", "sub-001_ses-2", "sub-002_ses-1"]
    assert all(set(case.images) == {"T1w", "T1wGd", "FLAIR"} for case in cohort.cases)
    written = [path for path in out.rglob("*") if path.is_file() and path.name != "patients.tsv"]
    assert not [path for path in written if b"Jane" in path.read_bytes() or b"1980" in path.read_bytes()]
    assert read_tsv(out / "patients.tsv")[0]["patient"] == "Doe^Jane"
    table = read_tsv(out / "series.tsv")
    table[0]["sequence"] = "T2w"  # somebody knows better
    write_tsv(out / "series.tsv", table, list(table[0]))
    assert "T2w" in read(out).modalities
    table[0]["sequence"] = table[1]["sequence"] = "FLAIR"
    write_tsv(out / "series.tsv", table, list(table[0]))
    with pytest.raises(CohortError, match=r"series.tsv: line \d: sub-001 1 has FLAIR twice"):
        read(out)


def test_of_files_from_scanners_every_series_has_a_reason_and_nobody_is_named(tmp_path: Path) -> None:
    """Files of six makers that pydicom brings for its own tests: single slices, CT, PET, angiograms, damaged and compressed ones."""
    pydicom = pytest.importorskip("pydicom")
    try:
        dicom.find_tool()
    except SettingsError as error:
        pytest.skip(str(error))
    raw, out = Path(pydicom.__file__).parent / "data" / "test_files", tmp_path / "out"
    if not (raw / "dicomdirtests").is_dir():
        pytest.skip("this pydicom comes without its test files")
    rows = dicom.convert(raw, out)
    assert len(rows) > 30
    assert all(row["why"] and not row["sequence"] for row in rows), "none is a volume of a sequence that is used"
    assert {why for row in rows if (why := row["why"]).startswith("modality")} >= {"modality CT, not MR"}
    assert sum("is no 3-D volume" in row["why"] for row in rows) > 20
    with pytest.raises(CohortError, match="no series has a sequence; fill in the column"):
        read(out)
    with warnings.catch_warnings(action="ignore"):  # pydicom about its own files
        read_in = [pydicom.dcmread(path, force=True) for path in raw.glob("*.dcm")]
        names = {str(one.PatientName) for one in read_in if "PatientName" in one}
    told = "".join(path.read_text() for path in out.rglob("*.[jt]s*") if path.name != "patients.tsv")
    assert not [name for name in names if len(name) > 3 and name in told]


def test_without_dcm2niix_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(SettingsError, match=r"dcm2niix is not installed; install it \(pip install"):
        dicom.convert(tmp_path, tmp_path.with_name("out"))
    assert not tmp_path.with_name("out").exists()


@pytest.mark.parametrize(
    ("tags", "sequence"),
    [
        ({"SeriesDescription": "AX T2 FLAIR FS"}, "FLAIR"),
        (
            {"SeriesDescription": "t2_spc_da-fl_sag", "EchoTime": 0.388, "RepetitionTime": 5, "InversionTime": 1.8},
            "T2w",
        ),
        ({"SeriesDescription": "Head", "EchoTime": 0.388, "RepetitionTime": 5, "InversionTime": 1.8}, "FLAIR"),
        ({"SeriesDescription": "MPRAGE", "ContrastBolusIngredient": "GADOLINIUM"}, "T1wGd"),
        ({"ProtocolName": "T1_SE_post"}, "T1wGd"),
        ({"SeriesDescription": "3D", "EchoTime": 0.003, "RepetitionTime": 2.3, "InversionTime": 0.9}, "T1w"),
        ({"SeriesDescription": "tse tra", "EchoTime": 0.1, "RepetitionTime": 4}, "T2w"),
        ({"SeriesDescription": "tse tra", "EchoTime": 0.012, "RepetitionTime": 3}, "PDw"),
        ({"SeriesDescription": "SWI_Images"}, "T2starw"),
        ({"SeriesDescription": "t2_tse_tra_restore"}, "T2w"),
        ({"SeriesDescription": "Ax T2 FLAIR ASSET"}, "FLAIR"),
        ({"SeriesDescription": "t1_mpr_sag_p2_iso"}, "T1w"),
        ({"SeriesDescription": "t1_mpr_sag_KM"}, "T1wGd"),
        ({"SeriesDescription": "T2 tra different angle"}, "T2w"),
        ({"SeriesDescription": "ASSET cal"}, ""),
        ({"SeriesDescription": "bold_rest_T2"}, ""),
        ({"SeriesDescription": "REST T2star"}, ""),
        ({"SeriesDescription": "T2 FLAIR MPR cor"}, ""),
        ({"SeriesDescription": "QSM_map"}, "QSM"),
        ({"SeriesDescription": "ep2d_diff_ADC"}, ""),
        ({"SeriesDescription": "T1 MPR cor", "ImageType": ["DERIVED", "SECONDARY", "MPR"]}, ""),
        ({"SeriesDescription": "Survey"}, ""),
        ({"SeriesDescription": "ax_asc_35sl", "ScanningSequence": "EP", "EchoTime": 0.03, "RepetitionTime": 3}, ""),
        ({"SeriesDescription": "3D-EPI T2star", "ScanningSequence": "GR_EP", "EchoTime": 0.03}, "T2starw"),
        ({"SeriesDescription": "FLAIR fusion", "Modality": "PT"}, ""),
        ({"SeriesDescription": "FLAIR", "Modality": "MR"}, "FLAIR"),
        ({}, ""),
        ({"EchoTime": "x", "ImageType": 3, "SeriesDescription": None}, ""),
    ],
)
def test_guesses(tags: dict[str, Any], sequence: str) -> None:
    assert guess(tags).sequence == sequence
    assert guess(tags).why


def test_a_guess_says_when_the_times_speak_against_the_name() -> None:
    found = guess(
        {"SeriesDescription": "t2_spc_da-fl_sag", "EchoTime": 0.388, "RepetitionTime": 5, "InversionTime": 1.8}
    )
    assert found.why == "'t2' in its description, but TE 388 ms, TR 5000 ms, TI 1800 ms looks like FLAIR: check"


def test_of_two_series_of_one_sequence_the_larger_is_taken() -> None:
    rows = [
        {"file": name, "subject": "1", "session": "1", "sequence": "FLAIR", "why": "x", "voxels": voxels}
        for name, voxels in (("a", 10), ("b", 20))
    ]
    series.choose(rows)
    assert [row["sequence"] for row in rows] == ["", "FLAIR"]
    assert rows[0]["why"] == "x; FLAIR is taken from b, which has more voxels"


def test_series_that_were_acquired_twice_alike_are_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not the two images of one acquisition, and never T1w: the second may be the one with contrast agent."""
    kinds = {
        "a": ("FLAIR", "10:00"),
        "b": ("FLAIR", "10:07"),
        "c": ("FLAIR", "10:07"),
        "d": ("T1w", "10:15"),
        "e": ("T1w", "10:30"),
    }
    rows = [
        {"file": name, "subject": "1", "session": "1", "sequence": sequence, "why": "x", "voxels": 9}
        for name, (sequence, _) in kinds.items()
    ]
    tags = {name: {"EchoTime": 0.1, "AcquisitionTime": time} for name, (_, time) in kinds.items()}
    series.choose(rows, tags)
    assert [(row["sequence"], row.get("run")) for row in rows] == [
        ("FLAIR", 1), ("FLAIR", 2), ("", None), ("T1w", None), ("", None),
    ]  # fmt: skip
    assert rows[2]["why"] == "x; FLAIR is taken from a, which comes before it"
    for row in rows:
        (tmp_path / row["file"]).touch()
    write_tsv(tmp_path / "series.tsv", rows, series.COLUMNS)
    (case,) = read(tmp_path).cases
    assert (case.images["FLAIR"], case.repeats) == (tmp_path / "a", {"FLAIR": (tmp_path / "b",)})
    assert "averaged by `oligovox ready`, else used by plans that name them (as FLAIR_run-2): b" in caplog.text


def test_four_dimensional_images_of_the_decathlon_are_split(tmp_path: Path, make_volume: Callable[..., Path]) -> None:
    (tmp_path / "data" / "imagesTr").mkdir(parents=True)
    array = np.arange(4**3 * 2, dtype=np.int16).reshape(4, 4, 4, 2)
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "data" / "imagesTr" / "BRATS_001.nii.gz")
    text = '{"modality": {"0": "FLAIR", "1": "T1w"}, "training": [{"image": "./imagesTr/BRATS_001.nii.gz"}]}'
    (tmp_path / "data" / "dataset.json").write_text(text)
    with pytest.raises(CohortError, match=r"2 images in one 4-D file; .*oligovox cohort write"):
        read(tmp_path / "data")
    (case,) = read(tmp_path / "data", asked=Asked(work=tmp_path / "work")).cases
    assert (np.asanyarray(nib.load(case.images["T1w"]).dataobj) == array[..., 1]).all()


def test_visits_and_cohorts_of_one_person_are_split_into_files_of_their_own(tmp_path: Path) -> None:
    items = []
    for number, (session, dataset) in enumerate((("1", ""), ("2", ""), ("1", "ward"))):
        array = np.full((3, 3, 3, 2), 10 * number, np.int16) + np.arange(2, dtype=np.int16)
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"{number}.nii.gz")
        items.append({"image": f"{number}.nii.gz", "subject": "p", "session": session, "dataset": dataset})
    about = {"modality": {"0": "FLAIR", "1": "T1w"}, "training": items}
    (tmp_path / "list.json").write_text(json.dumps(about))
    cohort = read(tmp_path / "list.json", asked=Asked(work=tmp_path / "work"))
    voxels = {case.name: [int(nib.load(p).dataobj[0, 0, 0]) for p in case.images.values()] for case in cohort.cases}
    assert voxels == {"sub-p_ses-1": [0, 1], "sub-p_ses-2": [10, 11], "ward_sub-p_ses-1": [20, 21]}
    about["training"] = [items[0] | {"session": "../../away"}]
    (tmp_path / "list.json").write_text(json.dumps(about))
    with pytest.raises(CohortError, match="cannot be a subject, session or dataset name"):
        read(tmp_path / "list.json", asked=Asked(work=tmp_path / "work"))
    assert not list(tmp_path.parent.rglob("away*"))


STANDS_IN = """#!/bin/sh
# dcm2niix as far as we see it: -o is the argument before the last; what it leaves there, says, and ends with
while [ $# -gt 2 ]; do shift; done
[ -z "$LEAVES" ] || { cp "$LEAVES" "$1/a.nii.gz"; echo '{"SeriesDescription": "FLAIR"}' > "$1/a.json"; }
echo "Chris Rorden's dcm2niiX"; echo "Warning: Missing images? Expected 30 images"
[ -z "$KILLS" ] || kill -9 $PPID
exit $EXIT
"""


@pytest.fixture
def stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of DICOM beside a tool that ends as $EXIT says."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "raw").mkdir()
    (tmp_path / "bin" / "dcm2niix").write_text(STANDS_IN)
    (tmp_path / "bin" / "dcm2niix").chmod(0o755)
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.int16), np.eye(4)), tmp_path / "made.nii.gz")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("LEAVES", str(tmp_path / "made.nii.gz"))
    return tmp_path


def test_a_conversion_of_a_part_is_said_and_a_failed_one_refused(
    stands_in: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for code in ("0", "8"):
        monkeypatch.setenv("EXIT", code)
        assert [row["sequence"] for row in dicom.convert(stands_in / "raw", stands_in / f"out{code}")] == ["FLAIR"]
        assert ("exit 8): Warning: Missing images? Expected 30 images" in caplog.text) == (code == "8")
    monkeypatch.setenv("EXIT", "9")
    with pytest.raises(RunError, match=r"dcm2niix failed on .*raw \(exit 9\)"):
        dicom.convert(stands_in / "raw", stands_in / "out9")
    monkeypatch.setenv("LEAVES", "")
    monkeypatch.setenv("EXIT", "2")
    with pytest.raises(CohortError, match="found no series in it"):
        dicom.convert(stands_in / "raw", stands_in / "out2")
    assert {path.name for path in stands_in.iterdir()} == {"bin", "raw", "made.nii.gz", "out0", "out8"}


def test_what_a_killed_conversion_leaves_is_swept(stands_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of dcm2niix name the patient."""
    monkeypatch.setenv("KILLS", "1")
    code = "from pathlib import Path; from oligovox.cohort import dicom; dicom.convert(Path('raw'), Path('out'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=stands_in, capture_output=True, check=False)
    assert done.returncode == -9
    assert list(stands_in.rglob(".tmp-*")), "killed too late to show anything"
    sweep(stands_in)
    assert {path.name for path in stands_in.iterdir()} == {"bin", "raw", "made.nii.gz"}
