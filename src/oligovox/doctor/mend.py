"""A mended copy of a cohort: what a finding says can be repaired is repaired, all else is copied as it is, and every change is written down.

    OUT/                 the cohort in BIDS, by `cohort.bids_write`
    OUT/mended.json      each action: check, file, what was, what is, SHA-256 before and after, how to undo it; and what was left out

The cohort's own files are only read. Repaired files are first made in a folder `.OUT.mending` beside OUT; a run that was stopped finds them
there, and OUT appears when all of it is there.
"""

from __future__ import annotations

import gzip
import logging
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from oligovox.cohort import bids_write
from oligovox.cohort.bids import read_bids
from oligovox.cohort.manifest import Case, Cohort
from oligovox.doctor.finding import Finding, Repair
from oligovox.errors import CohortError, OutputError
from oligovox.files import atomic_file, check_writable, hash_file, hash_json, read_json, sweep, write_json
from oligovox.prepare.geometry import Volume, resample_to

TABLE = "mended.json"

_log = logging.getLogger(__name__)
_ORDER: Sequence[Repair] = ("values", "header", "labels", "grid")
_ONTO_ANOTHER = ("mask_grid", "near_equal_grid")  # come last: a repair of the file's own forms must not undo them
_LEVEL = 4
_UNUSABLE = (
    *("missing_file", "not_nifti", "truncated", "unreadable", "four_d", "single_slice", "voxel_type", "affine"),
    *("not_finite", "empty_image", "empty_brain", "label_values", "label_fractions"),
)
"""A file with one of these and no repair is left out."""

Action = dict[str, Any]


def mend(findings: Sequence[Finding], cohort: Cohort, out: Path) -> dict[str, Any]:
    """Write the mended copy.

    Args:
        findings: of this cohort; those without a repair change nothing.
        cohort: who there is.
        out: a new folder. The same call again returns at once what is in its mended.json.

    Returns:
        What mended.json holds.

    Raises:
        CohortError: nothing would be left of the cohort, or BIDS has no name for somebody.
        OutputError: `out` lies in the folder of the data or around it, holds something else, or cannot be written.
    """
    out = out.absolute()
    _check_apart(cohort, out)
    planned = _planned(findings)
    key = hash_json([_identity(cohort), [[str(p), [_said(f) for f in todo]] for p, todo in sorted(planned.items())]])
    if (out / TABLE).is_file() and read_json(out / TABLE).get("key") == key:
        return dict(read_json(out / TABLE))
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise OutputError(f"{out}: is there already; choose an empty or a new folder")
    check_writable(out)
    work = out.with_name(f".{out.name}.mending")
    work.mkdir(parents=True, exist_ok=True)
    sweep(work)

    usable, left_out = _usable(cohort, findings)
    actions: list[Action] = []
    made: dict[Path, Path] = {}
    there = {path for case in usable.cases for path in case.files.values()}
    for path in sorted(
        there & set(planned), key=lambda path: (_moves(planned[path]), path)
    ):  # images before masks that go onto them
        made[path], done = _repaired(path, planned[path], made, work / "files")
        actions += done
    folder = work / "bids"
    shutil.rmtree(folder, ignore_errors=True)
    mended = _with_files(usable, made, _renumbered(usable.labels, findings))
    bids_write.write(mended, folder)
    places = _places(mended, folder)
    for action in actions:
        action["mended"] = places.get(made[Path(action["file"])], "")
    content = {"key": key, "actions": actions, "left_out": left_out}
    write_json(folder / TABLE, content)
    _move(folder, out)
    shutil.rmtree(work, ignore_errors=True)
    return content


def _check_apart(cohort: Cohort, out: Path) -> None:
    """OUT must not lie beside a file of the data or below, nor around one."""
    wanted = out.resolve()
    for folder in {path.resolve().parent for case in cohort.cases for path in case.files.values()}:
        if wanted.is_relative_to(folder) or folder.is_relative_to(wanted):
            where = "lies in" if wanted.is_relative_to(folder) else "holds"
            raise OutputError(f"{out}: {where} a folder of the data ({folder}); choose a folder outside of it")


def _planned(findings: Sequence[Finding]) -> dict[Path, list[Finding]]:
    """File → the findings that repair it, in the order in which they are applied."""
    planned = defaultdict(list)
    for finding in findings:
        if finding.repair:
            for path in finding.files:
                planned[path].append(finding)

    def rank(finding: Finding) -> tuple[int, bool]:
        return _ORDER.index(finding.repair or "values"), finding.check in _ONTO_ANOTHER

    return {path: sorted(todo, key=rank) for path, todo in planned.items()}


def _said(finding: Finding) -> list[Any]:
    return [finding.check, finding.repair, finding.found, dict(finding.numbers)]


def _identity(cohort: Cohort) -> list[Any]:
    """What a cohort is made of, cheaply: paths, sizes and times."""
    rows: list[Any] = [dict(cohort.labels)]
    for case in cohort.cases:
        for key, path in case.files.items():
            state = path.stat() if path.is_file() else None
            rows.append([case.name, key, str(path.absolute()), state and [state.st_size, state.st_mtime_ns]])
    return rows


def _usable(cohort: Cohort, findings: Sequence[Finding]) -> tuple[Cohort, list[dict[str, str]]]:
    """The cohort without files that cannot be used and exams without an image that can, and what was left out."""
    broken = {path: f.found for f in findings if f.check in _UNUSABLE and not f.repair for path in f.files}
    left_out, cases = [], []
    for case in cohort.cases:
        kept = _without(case, broken)
        there = set(kept.files.values()) if kept else set()
        for path in case.files.values():
            if path not in there:
                rest = "no image of this exam can be used" if path.is_file() else "missing"
                left_out.append({"case": case.name, "file": str(path), "why": broken.get(path, rest)})
                _log.warning("%s: left out: %s", path, left_out[-1]["why"])
        cases += [kept] if kept else []
    if not cases:
        raise CohortError(f"{cohort.name}: no image can be used, so nothing can be mended; bring the files back")
    return replace(cohort, cases=tuple(cases)), left_out


def _without(case: Case, broken: Container[Path]) -> Case | None:
    """A case without its broken and missing files, a further run in place of an image among them; None where no image is left."""

    def usable(path: Path | None) -> bool:
        return path is not None and path.is_file() and path not in broken

    runs = {
        key: [path for path in (image, *case.repeats.get(key, ())) if usable(path)]
        for key, image in case.images.items()
    }
    if not any(runs.values()):
        return None
    return replace(
        case,
        images={key: paths[0] for key, paths in runs.items() if paths},
        repeats={key: tuple(paths[1:]) for key, paths in runs.items()},
        label=case.label if usable(case.label) else None,
        brain=case.brain if usable(case.brain) else None,
        sparse=case.sparse and usable(case.label),
    )


def _renumbered(labels: Mapping[str, int], findings: Sequence[Finding]) -> dict[str, int]:
    """The scheme after a 'label_gaps' was mended."""
    change = {old: new for f in findings if f.check == "label_gaps" and f.repair for old, new in f.numbers["map"]}
    return {name: change.get(value, value) for name, value in labels.items()}


def _with_files(cohort: Cohort, made: Mapping[Path, Path], labels: Mapping[str, int]) -> Cohort:
    cases = tuple(
        replace(
            case,
            images={key: made.get(path, path) for key, path in case.images.items()},
            repeats={key: tuple(made.get(path, path) for path in paths) for key, paths in case.repeats.items()},
            label=made.get(case.label, case.label) if case.label else None,
            brain=made.get(case.brain, case.brain) if case.brain else None,
        )
        for case in cohort.cases
    )
    return replace(cohort, cases=cases, labels=labels)


def _moves(todo: Sequence[Finding]) -> bool:
    return any(finding.repair == "grid" for finding in todo)


def _repaired(
    path: Path, todo: Sequence[Finding], made: Mapping[Path, Path], folder: Path
) -> tuple[Path, list[Action]]:
    """The mended file, made anew unless it is there from an earlier run, and what was done."""
    before = hash_file(path)
    onto = {
        Path(f.numbers["onto"]): made.get(Path(f.numbers["onto"]), Path(f.numbers["onto"]))
        for f in todo
        if "onto" in f.numbers
    }
    name = hash_json([before, [_said(finding) for finding in todo], [path.name for path in onto.values()]])[:32]
    target = folder / f"{name}{'.nii.gz' if path.name.endswith('.gz') else '.nii'}"
    note = folder / f"{name}.json"
    if not (target.is_file() and note.is_file()):
        data, actions = _bytes_of(path), []
        for finding in todo:
            data, was, now, undo = _apply(finding, path, data, onto)
            actions.append(
                {
                    "check": finding.check,
                    "repair": finding.repair,
                    "file": str(path),
                    "was": was,
                    "is": now,
                    "undo": undo,
                }
            )
        with atomic_file(target) as temporary:
            temporary.write_bytes(gzip.compress(data, _LEVEL, mtime=0) if target.name.endswith(".gz") else data)
        write_json(note, actions)
    return target, [a | {"sha256_before": before, "sha256_after": hash_file(target)} for a in read_json(note)]


def _bytes_of(path: Path) -> bytes:
    """The unpacked file."""
    if path.name.endswith(".gz"):
        with gzip.open(path) as file:
            return file.read()
    return path.read_bytes()


def _apply(finding: Finding, path: Path, data: bytes, onto: Mapping[Path, Path]) -> tuple[bytes, Any, Any, str]:
    """One repair of an unpacked NIfTI file: new bytes, what was, what is, how to undo it."""
    if finding.repair == "header":
        return _header(np.array(finding.numbers["affine"]), data)
    if finding.repair == "labels":
        return _labels(finding.numbers["map"], data)
    if finding.repair == "grid":
        return _grid(onto[Path(finding.numbers["onto"])], data, path)
    return _finite(data, path)


def _open(data: bytes) -> Any:
    kind = (
        nib.Nifti2Image
        if int.from_bytes(data[:4], "little") == 540 or int.from_bytes(data[:4], "big") == 540
        else nib.Nifti1Image
    )
    return kind.from_bytes(data)


def _header(affine: np.ndarray, data: bytes) -> tuple[bytes, Any, Any, str]:
    """One affine for sform and qform, in mm; every byte after the header stays."""
    kind = type(_open(data).header)
    size = 540 if kind is nib.Nifti2Header else 348
    order = "<" if int.from_bytes(data[:4], "little") == size else ">"
    header = kind(data[:size], endianness=order, check=False)
    was = _forms(header)
    header.set_sform(affine, was["sform_code"] or 1)
    header.set_qform(affine, was["qform_code"] or was["sform_code"] or 1, strip_shears=True)
    header.set_xyzt_units("mm", header.get_xyzt_units()[1])
    undo = "write sform, qform, codes and unit of 'was' into the header; the voxels are untouched"
    return header.binaryblock + data[size:], was, _forms(header), undo


def _forms(header: Any) -> dict[str, Any]:
    return {
        "sform": np.array(header.get_sform()).tolist(),
        "sform_code": int(header["sform_code"]),
        "qform": [float(header[k]) for k in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")],
        "qform_code": int(header["qform_code"]),
        "pixdim": [float(size) for size in header["pixdim"][:4]],
        "unit": header.get_xyzt_units()[0],
    }  # fmt: skip


def _labels(change: Sequence[Sequence[int]], data: bytes) -> tuple[bytes, Any, Any, str]:
    """Whole numbers, renumbered; values that the map does not name stay."""
    image = _open(data)
    values = np.asarray(image.get_fdata(caching="unchanged", dtype=np.float32))
    whole = np.floor(values + 0.5).astype(np.int64)
    new = whole.copy()
    for old, value in change:
        new[whole == old] = value
    rounded = int((np.abs(values - whole) > 1e-3).sum())
    was = {"values": _counts(whole), "rounded_voxels": rounded}
    inverse = ", ".join(f"{value} → {old}" for old, value in change if old != value)
    undo = "take the original file: rounding cannot be undone" if rounded else f"renumber {inverse or 'nothing'}"
    kind = np.uint8 if new.min() >= 0 and new.max() <= 255 else np.int16
    return _as_bytes(image, new.astype(kind), image.affine), was, {"values": _counts(new), "map": change}, undo


def _counts(values: np.ndarray) -> dict[str, int]:
    found, counts = np.unique(values, return_counts=True)
    return {str(value): int(count) for value, count in zip(found[:50].tolist(), counts[:50].tolist(), strict=True)}


def _grid(onto: Path, data: bytes, path: Path) -> tuple[bytes, Any, Any, str]:
    """Nearest neighbour onto the grid of an image."""
    image, reference = _open(data), nib.load(onto)
    affine, shape = np.array(reference.affine, dtype=np.float64), reference.shape[:3]
    mask = Volume(np.asanyarray(image.dataobj).reshape(image.shape[:3]), np.array(image.affine, dtype=np.float64))
    new = resample_to(mask, affine, shape, 0).array
    was = {"shape": mask.shape, "affine": mask.affine.tolist(), "marked_voxels": int(np.count_nonzero(mask.array))}
    now = {
        "shape": shape,
        "affine": affine.tolist(),
        "marked_voxels": int(np.count_nonzero(new)),
        "onto": str(onto),
    }
    return _as_bytes(image, new, affine), was, now, f"take the original file {path}"


def _finite(data: bytes, path: Path) -> tuple[bytes, Any, Any, str]:
    """0 for NaN and infinite voxels."""
    image = _open(data)
    values = np.asarray(image.get_fdata(caching="unchanged", dtype=np.float32))
    bad = ~np.isfinite(values)
    was = {"nan": int(np.isnan(values).sum()), "infinite": int(np.isinf(values).sum())}
    now = {"zero": int(bad.sum())}
    return (
        _as_bytes(image, np.where(bad, np.float32(0), values), image.affine),
        was,
        now,
        f"take the original file {path}",
    )


def _as_bytes(image: Any, array: np.ndarray, affine: np.ndarray) -> bytes:
    """A NIfTI file with these voxels; header text and codes as they were, no scale factors."""
    header = image.header.copy()
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(1, 0)
    made = type(image)(array, affine, header)
    return bytes(made.to_bytes())


def _places(mended: Cohort, folder: Path) -> dict[Path, str]:
    """File of the cohort that was written → where it lies in OUT."""
    level = logging.getLogger("oligovox.cohort").level
    logging.getLogger("oligovox.cohort").setLevel(logging.ERROR)
    try:
        written = {(case.subject, case.session): case for case in read_bids(folder).cases}
    finally:
        logging.getLogger("oligovox.cohort").setLevel(level)
    found: dict[Path, str] = {}
    for case in mended.cases:
        other = written.get((_plain(f"{case.dataset}{case.subject}"), _plain(case.session)))
        below = other.files if other else {}
        found |= {path: below[key].relative_to(folder).as_posix() for key, path in case.files.items() if key in below}
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", name)


def _move(folder: Path, out: Path) -> None:
    try:
        if out.is_dir():
            out.rmdir()
        os.replace(folder, out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror}); choose another output folder") from error
