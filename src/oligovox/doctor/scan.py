"""One file of a case as the checks see it: header, both forms, voxels; or the finding that it cannot be read."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener

from oligovox.cohort.manifest import Case
from oligovox.doctor.finding import Finding, Repair, Severity
from oligovox.prepare.geometry import Shape, Volume, usable_affine

LABEL, BRAIN = "label", "brain"
"""Keys of the two masks beside those of the sequences."""

_DEFLATE_AT_MOST = 1032  # no gzip packs tighter, so a header that promises more is wrong
_COPY_AGAIN = "copy it again from its source, and compare the sizes"


@dataclass(frozen=True, eq=False)
class Scan:
    """A file that can be read.

    Attributes:
        key: canonical sequence name, a further run of it as FLAIR_run-2, 'label' or 'brain'.
        path: the file.
        shape: as the header says, 4-D files included; trailing axes of length 1 are dropped.
        affine: 4×4, voxel → mm, as nibabel chooses it (sform, else qform, else voxel sizes only).
        sform, qform: both 4×4, whatever their codes.
        codes: NIfTI codes of sform and qform; 0 says that a form is not meant to be used.
        unit: of space: 'mm', 'meter', 'micron' or 'unknown'.
        slope: scl_slope and scl_inter of the file.
        stored: type of the numbers in the file.
        voxels: (x, y, z) float32, scaled, NaN included; None for files that are no single 3-D volume.
    """

    key: str
    path: Path
    shape: tuple[int, ...]
    affine: np.ndarray
    sform: np.ndarray
    qform: np.ndarray
    codes: tuple[int, int]
    unit: str
    slope: tuple[float, float]
    stored: np.dtype
    voxels: np.ndarray | None

    @property
    def is_mask(self) -> bool:
        """Label or brain mask."""
        return self.key in (LABEL, BRAIN)

    @property
    def box(self) -> Shape:
        """The first three axes; those that are lacking have length 1."""
        x, y, z = (*self.shape, 1, 1, 1)[:3]
        return x, y, z

    @property
    def has_place(self) -> bool:
        """Whether the affine can be inverted."""
        return usable_affine(self.affine)

    @property
    def volume(self) -> Volume:
        """Voxels and affine; only where there are voxels."""
        assert self.voxels is not None
        return Volume(self.voxels, self.affine)


def read_scans(case: Case) -> tuple[dict[str, Scan], list[Finding]]:
    """Every file of a case that can be read, and a finding for each that cannot."""
    scans, findings = {}, []
    for key, path in case.files.items():
        found = read_scan(case, key, path)
        if isinstance(found, Scan):
            scans[key] = found
        else:
            findings.append(found)
    return scans, findings


def read_scan(case: Case, key: str, path: Path) -> Scan | Finding:
    """One file, read once from end to end."""
    if not path.is_file():
        found = "the file is missing, or is a link to nowhere"
        return _unreadable(case, key, path, "missing_file", found, "bring it back, or mend the table")
    try:
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Image):
            return _not_nifti(case, key, path, f"a file of the type {type(image).__name__}")
        header = _raw_header(path, type(image.header))
        if (size := _promised(header)) > path.stat().st_size * (_DEFLATE_AT_MOST if _packed(path) else 1):
            found = f"holds {path.stat().st_size} bytes, its header promises {size}"
            return _unreadable(case, key, path, "truncated", found, _COPY_AGAIN)
        return _scan(key, path, image, header)
    except nib.filebasedimages.ImageFileError as error:
        return _damaged(case, key, path) or _not_nifti(case, key, path, str(error))
    except Exception as error:  # whatever a damaged file does to nibabel
        found = f"cannot be read ({type(error).__name__}: {error})".replace("\n", " ")
        return _damaged(case, key, path) or _unreadable(case, key, path, "unreadable", found, _COPY_AGAIN)


def about(
    case: Case,
    scan: Scan,
    check: str,
    severity: Severity,
    found: str,
    expected: str,
    remedy: str,
    repair: Repair | None = None,
    **numbers: Any,
) -> Finding:
    """A finding about one file of a case; `numbers` are what was measured."""
    return Finding(
        check=check,
        severity=severity,
        case=case.name,
        sequence=scan.key,
        files=(scan.path,),
        found=found,
        expected=expected,
        remedy=remedy,
        repair=repair,
        numbers=numbers,
    )


def _scan(key: str, path: Path, image: nib.Nifti1Image, header: nib.Nifti1Header) -> Scan:
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    stored = np.dtype(image.get_data_dtype())
    voxels = None
    if stored.kind in "iuf":
        voxels = np.asarray(
            image.get_fdata(caching="unchanged", dtype=np.float32)
        )  # series too: to the end of the file
        voxels = voxels.reshape(shape) if len(shape) == 3 else None
    return Scan(
        key=key,
        path=path,
        shape=shape,
        affine=np.array(image.affine, dtype=np.float64),
        sform=np.array(header.get_sform(), dtype=np.float64),
        qform=_qform(header),
        codes=(int(header["sform_code"]), int(header["qform_code"])),
        unit=header.get_xyzt_units()[0],
        slope=(float(header["scl_slope"]), float(header["scl_inter"])),
        stored=stored,
        voxels=voxels,
    )


def _qform(header: nib.Nifti1Header) -> np.ndarray:
    try:
        return np.array(header.get_qform(), dtype=np.float64)
    except Exception:  # a quaternion longer than 1, or a voxel size below 0
        return np.full((4, 4), np.nan)


def _raw_header(path: Path, kind: type[nib.Nifti1Header]) -> nib.Nifti1Header:
    """The header as it stands in the file: nibabel's image forgets the scale factors."""
    with ImageOpener(path, "rb") as file:
        return kind.from_fileobj(file, check=False)


def _promised(header: nib.Nifti1Header) -> int:
    """Bytes of a file that a header speaks of: voxels, and what stands before them."""
    voxels = math.prod(int(n) for n in header.get_data_shape()) * int(header.get_data_dtype().itemsize)
    return voxels + int(header["vox_offset"])


def _packed(path: Path) -> bool:
    return path.name.endswith(".gz")


def _damaged(case: Case, key: str, path: Path) -> Finding | None:
    """What is wrong with the bytes of a file; None where they are whole and it is something else."""
    if path.stat().st_size == 0:
        return _unreadable(case, key, path, "truncated", "the file is empty (0 bytes)", _COPY_AGAIN)
    if _packed(path):
        read = 0
        try:
            with gzip.open(path) as file:
                while block := file.read1(1 << 16):  # `read` loses what it has when the file ends early
                    read += len(block)
        except EOFError:
            found = f"the gzip file ends early, after {read} unpacked bytes"
            return _unreadable(case, key, path, "truncated", found, _COPY_AGAIN)
        except (zlib.error, gzip.BadGzipFile) as error:
            if read == 0 and "Not a gzipped file" in str(error):
                return _not_nifti(case, key, path, "a file called .gz that is no gzip file")
            found = f"the gzip file is damaged after {read} unpacked bytes"
            return _unreadable(case, key, path, "unreadable", found, _COPY_AGAIN)
    try:
        header = _raw_header(path, nib.Nifti1Header)
        short = header["sizeof_hdr"] == 348 and _held(path) < _promised(header)
    except Exception:  # no header at all
        return None
    if not short:
        return None
    found = f"holds {_held(path)} bytes, its header promises {_promised(header)}"
    return _unreadable(case, key, path, "truncated", found, _COPY_AGAIN)


def _held(path: Path) -> int:
    """Unpacked size in bytes."""
    if not _packed(path):
        return path.stat().st_size
    with gzip.open(path) as file:
        return sum(len(block) for block in iter(lambda: file.read(1 << 20), b""))


def _not_nifti(case: Case, key: str, path: Path, found: str) -> Finding:
    return _unreadable(
        case, key, path, "not_nifti", found.replace("\n", " "), "convert it to NIfTI, or bring the right file"
    )


def _unreadable(case: Case, key: str, path: Path, check: str, found: str, remedy: str) -> Finding:
    return Finding(
        check=check,
        severity="error",
        case=case.name,
        sequence=key,
        files=(path,),
        found=found,
        expected="a whole NIfTI file (.nii, .nii.gz)",
        remedy=remedy,
    )


def readable(case: Case, scans: Mapping[str, Scan]) -> dict[str, Scan]:
    """The images of a case that have voxels and a place, in the case's order."""
    found = {key: scans[key] for key in case.images if key in scans}
    return {key: scan for key, scan in found.items() if scan.voxels is not None and scan.has_place}
