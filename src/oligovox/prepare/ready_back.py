"""A label map that was predicted on the ready grid, on the grid of every original image."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from oligovox.errors import CohortError, GeometryError, LabelError
from oligovox.files import atomic_file, write_json
from oligovox.prepare import geometry
from oligovox.prepare.geometry import Volume, read_volume
from oligovox.prepare.ready_files import Record, plain, record_of, write_values

_MOST_VALUE = 65535


def back(prediction: Path, ready_folder: Path, out: Path) -> dict[str, Path]:
    """Bring one label map to the grids of the original images of its exam, through the inverse of each image's transform.

    Each class is interpolated linearly and the largest share wins, so that borders stay smooth. Files are named after the original image, as
    `sub-01_T1w_label-lesion_mask.nii.gz`, each with a sidecar that names what it was made of; where originals of an exam have the same name, the sequence follows it.

    Args:
        prediction: label map on the ready grid; whole numbers, 0 is background.
        ready_folder: folder of that exam, as `ready` wrote it (OUT/sub-01/ses-1).
        out: folder to write.

    Returns:
        Sequence → file.

    Raises:
        CohortError: no ready exam in that folder.
        GeometryError: the prediction lies on another grid.
        LabelError: it has values that are no classes.
        OutputError: a file cannot be written.
    """
    record = record_of(ready_folder)
    if record is None:
        raise CohortError(
            f"{ready_folder}: no ready exam in it; expected anat/sub-…_desc-ready.json, as `oligovox ready` writes"
        )
    label = read_volume(prediction, empty_ok=True)
    _check(prediction, label, record)
    values = [int(value) for value in np.unique(label.array) if value > 0]
    indices = np.searchsorted([0, *values], label.array).astype(np.int8)
    table = np.array([0, *values], dtype=np.min_scalar_type(max(values, default=1)))
    names, kind, written = _names(record), kind_of(prediction, record), {}
    for sequence, about in record["sequences"].items():
        affine = np.linalg.inv(np.array(about["matrix"])) @ label.affine
        x, y, z = about["native_shape"]
        native = np.array(about["native_affine"])
        found = geometry.resample_labels(Volume(indices, affine), native, (x, y, z), max(1, len(values)))
        target = out / f"{names[sequence]}_{kind}.nii.gz"
        with atomic_file(target) as temporary:
            write_values(temporary, table[found], native)
        content: dict[str, Any] = {"Sources": [str(prediction.absolute())], "SpatialReference": about["source"]}
        write_json(target.with_name(target.name.replace(".nii.gz", ".json")), content)
        written[sequence] = target
    return written


def _names(record: Record) -> dict[str, str]:
    """Sequence → how its file begins; no two begin alike."""
    stems = {sequence: _stem(Path(about["source"])) for sequence, about in record["sequences"].items()}
    often = Counter(stem.casefold() for stem in stems.values())
    names = {s: f"{stem}_{plain(s)}" if often[stem.casefold()] > 1 else stem for s, stem in stems.items()}
    if len({name.casefold() for name in names.values()}) < len(names):  # the new name was another's
        names = {sequence: f"{stem}_{number}" for number, (sequence, stem) in enumerate(names.items(), start=1)}
    return names


def kind_of(prediction: Path, record: Record) -> str:
    """How the file of a prediction ends: 'label-lesion_mask', 'dseg'; its own name where that begins otherwise."""
    stem, start = _stem(prediction), str(record["record"]).removesuffix("_desc-ready.json")
    rest = stem.removeprefix(start).strip("_") if stem.startswith(start) else stem
    return "_".join(part for part in rest.split("_") if not part.startswith("space-")) or "prediction"


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _check(path: Path, label: Volume, record: Record) -> None:
    affine, shape = np.array(record["affine"]), tuple(record["shape"])
    same = label.shape == shape and geometry.corner_distance(label.affine, affine, label.shape) <= geometry.TOLERANCE_MM
    if not same:
        raise GeometryError(
            f"{path}: shape {label.shape}; expected the ready grid of {record['name']}, {shape}: predict on the folder that `ready` wrote"
        )
    whole = np.rint(label.array)
    if np.abs(label.array - whole).max() > 1e-3 or whole.min() < 0 or whole.max() > _MOST_VALUE:
        raise LabelError(
            f"{path}: has values that are no whole numbers from 0 on; expected a label map, not probabilities"
        )
    label.array[...] = whole
    if len(np.unique(whole)) > 127:
        raise LabelError(f"{path}: has more than 126 classes; expected a label map")
