"""Damaged DICOM of any kind: series that can be read, or one line that says why not; never a file outside of the output folder."""

from __future__ import annotations

import io
import warnings
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from oligovox.cohort import dicom
from oligovox.cohort.layouts import read
from oligovox.errors import OligovoxError, SettingsError

SIDE, SLICES = 8, 3
TAGS = {
    "SeriesDescription": 0x0008103E, "ProtocolName": 0x00181030, "PatientID": 0x00100020, "PatientName": 0x00100010,
    "ImageOrientationPatient": 0x00200037, "ImagePositionPatient": 0x00200032, "PixelSpacing": 0x00280030,
    "SeriesInstanceUID": 0x0020000E, "StudyInstanceUID": 0x0020000D, "SeriesNumber": 0x00200011, "EchoTime": 0x00180081,
    "AcquisitionTime": 0x00080032, "ImageType": 0x00080008,
}  # fmt: skip
TEXTS = (
    "",
    "../../evil",
    "HOME/evil",
    "..",
    "a\\b\\c",
    "Jörg^Ö",
    "名前",
    "n/a",
    "nan",
    '"',
    "\x00\x01\x1b",
    "x" * 300,
    "1e999",
    "#\t,;%s%j",
)

change = st.one_of(
    st.tuples(st.sampled_from(sorted(TAGS)), st.sampled_from((None, *TEXTS)), st.booleans()),
    st.tuples(st.just("PixelData"), st.sampled_from((None, "")), st.booleans()),
    st.tuples(st.just("cut"), st.floats(0, 1), st.booleans()),
)
"""(tag, what it becomes, None for gone; or how much of the file stays), of one slice only or of the whole series."""


def series(number: int) -> list[Any]:
    """The slices of one FLAIR, as a scanner exports it."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    found = pydicom.Dataset()
    found.file_meta = pydicom.dataset.FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID = MRImageStorage
    found.Modality, found.Manufacturer, found.SeriesDescription, found.ProtocolName = (
        "MR",
        "SIEMENS",
        "FLAIR tra",
        "flair",
    )
    found.PatientName = found.PatientID = f"P{number}"
    found.StudyDate, found.AcquisitionTime = "20200203", f"1011{number:02d}"
    found.StudyInstanceUID, found.SeriesInstanceUID = "1.2.3.7", f"1.2.3.{number}"
    found.SeriesNumber, found.AcquisitionNumber = number, 1
    found.ImageOrientationPatient, found.PixelSpacing, found.SliceThickness = [1, 0, 0, 0, 1, 0], [1, 1], 2
    found.EchoTime, found.RepetitionTime, found.InversionTime = 120, 9000, 2500
    found.Rows = found.Columns = SIDE
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
    found.BitsAllocated, found.BitsStored, found.HighBit, found.PixelRepresentation = 16, 12, 11, 0
    found.ImageType, found.MagneticFieldStrength = ["ORIGINAL", "PRIMARY", "M", "ND"], 3
    slices = []
    for z in range(SLICES):
        one = deepcopy(found)
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID = f"1.2.3.{number}.{z + 1}"
        one.InstanceNumber, one.ImagePositionPatient = z + 1, [0, 0, 2 * z]
        one.PixelData = np.arange(z, z + SIDE * SIDE, dtype=np.uint16).tobytes()
        slices.append(one)
    return slices


def damaged(one: Any, changes: list[tuple[str, Any, bool]], home: str) -> bytes:
    """The bytes of a slice after this; as a scanner that cares for no rule would write them."""
    from pydicom import DataElement, config

    share = 1.0
    with config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for tag, value, _ in changes:
            if tag == "cut":
                share = value
            elif value is None:
                one.pop(TAGS.get(tag, 0x7FE00010), None)
            elif tag == "PixelData":
                one.PixelData = b""
            else:
                one[TAGS[tag]] = DataElement(TAGS[tag], "UT", value.replace("HOME", home))
        file = io.BytesIO()
        one.save_as(file, enforce_file_format=True)
    return file.getvalue()[: int(share * len(file.getvalue()))]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=st.lists(change, min_size=1, max_size=4))
@example(changes=[("SeriesInstanceUID", "../../evil", False)])
@example(changes=[("SeriesInstanceUID", "HOME/evil", False)])
@example(changes=[("PatientID", "Jörg^Ö", False), ("PatientName", "名前", False)])
@example(changes=[("SeriesDescription", "\x00\x01\x1b", False)])
@example(changes=[("EchoTime", "nan", False)])
def test_tags_are_changed(changes: list[tuple[str, Any, bool]]) -> None:
    try:
        dicom.find_tool()
    except SettingsError as error:
        pytest.skip(str(error))
    with TemporaryDirectory() as folder:
        home = Path(folder)
        root, out = home / "export", home / "study" / "deep" / "out"
        out.parent.mkdir(parents=True)
        root.mkdir()
        for number in (1, 2):
            for z, one in enumerate(series(number)):
                some = [step for step in changes if number == 1 and (z == 0 or not step[2])]
                (root / f"{number}_{z}.dcm").write_bytes(damaged(one, some, folder))
        before = {path: path.read_bytes() for path in root.iterdir()}
        refused = ""
        try:
            dicom.convert(root, out)
            cohort = read(out)
            assert {path.parent for case in cohort.cases for path in case.files.values()} == {out / "nifti"}
        except OligovoxError as error:
            refused = str(error)
        assert "\n" not in refused
        assert ".tmp-" not in refused, "names a file that is gone"
        written = {path for path in home.rglob("*") if path.is_file() and not path.is_relative_to(out)}
        assert written == set(before), "outside of the output folder"
        assert all(path.read_bytes() == data for path, data in before.items())
