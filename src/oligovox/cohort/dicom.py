"""DICOM files → NIfTI series and a table of what each is, by dcm2niix, which is not ours and is only run.

A folder of DICOM is never read directly: `convert` makes a folder of the layout 'series' of it, people look at its table, and that is read.
Names, dates of birth and identifiers of people stay out of everything but patients.tsv.

Source: Li et al., Journal of Neuroscience Methods 2016, 264:47-56 (dcm2niix).
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib

from oligovox.cohort.manifest import Cohort
from oligovox.cohort.reading import AS_IT_IS, Asked, Look, entries, table_or_none
from oligovox.cohort.series import COLUMNS, TABLE, choose, guess
from oligovox.cohort.writing import new_folder
from oligovox.errors import CohortError, RunError, SettingsError
from oligovox.files import write_json, write_tsv

_log = logging.getLogger(__name__)

LAYOUT = "dicom"
TOOL = "dcm2niix"
PATIENTS = "patients.tsv"

_KEPT = (
    *(
        "Modality",
        "MagneticFieldStrength",
        "Manufacturer",
        "ManufacturersModelName",
        "BodyPartExamined",
        "SeriesDescription",
        "ProtocolName",
    ),
    *(
        "ScanningSequence",
        "SequenceVariant",
        "SequenceName",
        "ImageType",
        "MRAcquisitionType",
        "SeriesNumber",
        "SliceThickness",
    ),
    *(
        "EchoTime",
        "RepetitionTime",
        "InversionTime",
        "FlipAngle",
        "ContrastBolusIngredient",
        "ContrastBolusAgent",
        "ConversionSoftwareVersion",
    ),
)
"""Tags that the JSON beside a series keeps: none of them names anybody."""

_SHOWN = 3  # of the warnings of dcm2niix
_NOTHING = (1, 2)  # exit codes without any file
_PARTLY = {
    1: "something failed",
    4: "a file is damaged",
    8: "some files were converted, some not",
    10: "a volume lacks slices",
}
"""Exit code of dcm2niix that comes with series that are good → what was wrong with others."""

_TRIED = 200  # files that are opened to see whether they are DICOM


def look(root: Path) -> Look:
    """Files that say DICM where a DICOM file does."""
    example = next((path for path in _some_files(root) if _is_dicom(path)), None)
    if example is None:
        return Look(LAYOUT)
    advice = f"NIfTI files made of them: oligovox cohort series {root} OUT"
    return Look(LAYOUT, (f"DICOM files such as {example.relative_to(root)}",), (advice,))


def read(root: Path, asked: Asked = AS_IT_IS) -> Cohort:
    """Refuses, with what to do.

    Raises:
        CohortError: always.
    """
    raise CohortError(
        f"{root}: DICOM is not read directly; make NIfTI files and a table of series of it, look at the table, and give that folder: "
        f"oligovox cohort series {root} OUT"
    )


def convert(root: Path, out: Path) -> list[dict[str, Any]]:
    """Run dcm2niix on a folder and write a folder of series with its table.

    Args:
        root: a folder of DICOM files, at any depth.
        out: a new folder: series.tsv, patients.tsv, nifti/.

    Returns:
        The rows of series.tsv.

    Raises:
        SettingsError: dcm2niix is not installed.
        CohortError: there is no folder, or no series in it.
        RunError: dcm2niix failed. Where it only says that it left something out, this is logged.
        OutputError: `out` is there already, or cannot be written.
    """
    if not root.is_dir():
        raise CohortError(f"{root}: no such folder; expected one with DICOM files")
    tool = find_tool()
    with new_folder(out) as folder, tempfile.TemporaryDirectory(dir=folder) as scratch:
        _run(tool, root, Path(scratch))
        told = [path for path in entries(Path(scratch)) if path.suffix == ".json"]
        made = [(path.with_suffix(".nii.gz"), path) for path in told if path.with_suffix(".nii.gz").is_file()]
        rows = _rows([(image, _tags(path, root)) for image, path in made], folder)
        if not rows:
            raise CohortError(f"{root}: {TOOL} found no series in it; expected DICOM files of MR")
        write_tsv(folder / TABLE, rows, COLUMNS)
    return rows


def find_tool() -> str:
    """Where dcm2niix is: on the path, or beside this Python.

    Raises:
        SettingsError: it is nowhere; says how to get it.
    """
    found = shutil.which(TOOL) or shutil.which(TOOL, path=str(Path(sys.executable).parent))
    if not found:
        raise SettingsError(
            f"{TOOL} is not installed; install it (pip install 'oligovox[dicom]', or your system's package {TOOL}), or convert the DICOM files with "
            "another tool and list the NIfTI files in a table"
        )
    return found


def _run(tool: str, root: Path, scratch: Path) -> None:
    """One call; a code of 1 or 2 without any file is no DICOM at all, which is said elsewhere."""
    command = [
        tool,
        "-g",
        "i",
        "-b",
        "y",
        "-ba",
        "n",
        "-z",
        "i",
        "-d",
        "9",
        "-w",
        "2",
        "-f",
        "%j_%s",
        "-o",
        str(scratch),
        str(root.resolve()),
    ]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    some = any(scratch.iterdir())
    if done.returncode == 0 or (done.returncode in _NOTHING and not some):
        return
    lines = (done.stdout + done.stderr).splitlines()
    if not some or done.returncode not in _PARTLY:
        last = (lines[-1:] or ["no message"])[0]
        raise RunError(
            f"{TOOL} failed on {root} (exit {done.returncode}): {last}; convert its folders one by one to find the series it cannot read, "
            "and leave that out"
        )
    said = [_words(line) for line in lines if line.lower().startswith(("warning", "error"))]
    _log.warning(
        "%s: %s, so some of it may be missing (%s, exit %d): %s",
        root, _PARTLY[done.returncode], TOOL, done.returncode, "; ".join(said[:_SHOWN]) or "it does not say what",
    )  # fmt: skip


def _tags(path: Path, root: Path) -> dict[str, Any]:
    """What dcm2niix wrote of a series, which is only as well-formed as the tags are.

    Raises:
        CohortError: it cannot be understood, so nobody knows whose images these are.
    """
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
        return table_or_none(json.loads(text, strict=False, parse_constant=lambda _: None))
    except (OSError, ValueError, RecursionError) as error:
        raise CohortError(
            f"{root}: the tags of series {path.stem} make no JSON ({error}); mend them (a quotation mark?), or leave the series out"
        ) from error


def _rows(series: list[tuple[Path, dict[str, Any]]], folder: Path) -> list[dict[str, Any]]:
    """Move the series to their new names, beside the tags that name nobody; returns the table."""
    keys = {path: (_patient(tags), _study(tags)) for path, tags in series}
    people = {name: f"{number:03d}" for number, name in enumerate(sorted({who for who, _ in keys.values()}), start=1)}
    visits = {who: sorted({study for person, study in keys.values() if person == who}) for who in people}
    rows: list[dict[str, Any]] = []
    ordered = sorted(series, key=lambda one: (*keys[one[0]], _number(one[1]), one[0].name))
    for path, tags in ordered:
        who, study = keys[path]
        subject, session = people[who], str(visits[who].index(study) + 1)
        count = sum(row["subject"] == subject and row["session"] == session for row in rows) + 1
        target = folder / "nifti" / f"{subject}_{session}_{count:02d}.nii.gz"
        target.parent.mkdir(exist_ok=True)
        shape = nib.load(path).shape
        shutil.move(path, target)
        write_json(
            target.parent / f"{subject}_{session}_{count:02d}.json", {key: tags[key] for key in _KEPT if key in tags}
        )
        found = guess(tags) if len(shape) == 3 and min(shape) > 1 else None
        rows.append(
            {
                "file": target.relative_to(folder).as_posix(),
                "subject": subject,
                "session": session,
                "sequence": found.sequence if found else "",
                "why": found.why if found else f"shape {'×'.join(map(str, shape))} is no 3-D volume",
                "description": _words(tags.get("SeriesDescription") or tags.get("ProtocolName")),
                **{short: tags.get(key) for short, key in _TIMES.items()},
                "voxels": math.prod(shape),
            }
        )
    choose(rows, {row["file"]: tags for row, (_, tags) in zip(rows, ordered, strict=True)})
    names = [{"subject": number, "patient": _words(who)} for who, number in people.items()]
    write_tsv(folder / PATIENTS, names, ("subject", "patient"))
    return rows


_TIMES = {"TE": "EchoTime", "TR": "RepetitionTime", "TI": "InversionTime", "flip": "FlipAngle"}


def _patient(tags: Mapping[str, Any]) -> str:
    return str(tags.get("PatientID") or tags.get("PatientName") or "nobody named")


def _study(tags: Mapping[str, Any]) -> str:
    """Sorts by date where there is one; the same for all series of one visit."""
    date = str(tags.get("AcquisitionDateTime") or "")[:10]
    return f"{date} {tags.get('StudyInstanceUID', '')}"


def _number(tags: Mapping[str, Any]) -> int:
    number = tags.get("SeriesNumber", 0)
    return number if isinstance(number, int) else 0


def _words(text: Any) -> str:
    return " ".join(str(text or "").split())


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _some_files(root: Path, depth: int = 6) -> Iterator[Path]:
    """The first files of the first folders."""
    for count, path in enumerate(_files(root, depth)):
        if count >= _TRIED:
            return
        yield path


def _files(folder: Path, depth: int) -> Iterator[Path]:
    below = entries(folder)
    yield from (path for path in below[:20] if path.is_file())
    for path in below if depth else ():
        if path.is_dir():
            yield from _files(path, depth - 1)
