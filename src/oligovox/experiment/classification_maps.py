"""Maps of classified lesions: each lesion coloured by its probability of a rim, on the exam's own grid, 0 elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from oligovox.cohort.bids import PREDICTIONS as DATASET
from oligovox.files import atomic_file, read_json, write_json, write_tsv
from oligovox.prepare.lesion_store import LesionStore


def write_map(
    out: Path, store: LesionStore, exam: str, rows: Sequence[Mapping[str, Any]], told: Mapping[str, Any]
) -> Path:
    """The map, table and sidecar of one exam, complete or not at all, each.

    Args:
        out: BIDS derivative to write into; described where it is not yet.
        store: has the numbered lesions on the exam's own grid.
        exam: its name.
        rows: of predictions.tsv, also of other exams.
        told: for the sidecar: whose answers they are.

    Returns:
        The map.
    """
    folder = store.root / "cases" / exam
    numbers = nib.load(folder / "lesions.nii.gz")
    own = [row for row in rows if row["exam"] == exam]
    colours = np.zeros(int(np.asarray(numbers.dataobj).max()) + 1, np.float32)
    for row in own:
        colours[int(row["number"])] = row["probability"]
    below = [part for part in exam.split("_") if part.startswith(("sub-", "ses-"))]
    path = out.joinpath(*below, "anat", f"{exam}_desc-rim_probseg.nii.gz")
    with atomic_file(path) as temporary:
        nib.save(nib.Nifti1Image(colours[np.asarray(numbers.dataobj)], numbers.affine), temporary)
    stem = path.with_name(path.name.removesuffix(".nii.gz"))
    write_tsv(
        stem.with_name(f"{stem.name}.tsv"),
        own,
        ("number", "x", "y", "z", "volume_mm3", "probability", "threshold", "called"),
    )
    write_json(
        stem.with_name(f"{stem.name}.json"),
        {
            "Description": "probability of a paramagnetic rim, one value a lesion, by oligovox; not for clinical use",
            "Sources": read_json(folder / "case.json")["sources"],
            **told,
        },
    )
    if not (out / "dataset_description.json").exists():
        write_json(
            out / "dataset_description.json", {"Name": DATASET, "BIDSVersion": "1.10.0", "DatasetType": "derivative"}
        )
    return path
