"""The files of an analysis-ready exam: BIDS names, the record of what was done, and images that keep their numbers.

OUT/dataset_description.json
OUT/sub-01/ses-1/anat/sub-01_ses-1_space-FLAIR_desc-ready_T1w.nii.gz       all sequences on one grid
OUT/sub-01/ses-1/anat/sub-01_ses-1_space-FLAIR_desc-brain_mask.nii.gz
OUT/sub-01/ses-1/anat/sub-01_ses-1_space-FLAIR_label-lesion_mask.nii.gz    or …_desc-lesion_dseg.nii.gz with OUT/desc-lesion_dseg.tsv
OUT/sub-01/ses-1/anat/sub-01_ses-1_from-T1w_to-FLAIR_mode-image_xfm.txt    for other tools: ITK
OUT/sub-01/ses-1/anat/sub-01_ses-1_desc-ready.json                         every step; the way back
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from oligovox.cohort.bids import SUFFIXES
from oligovox.cohort.manifest import Case
from oligovox.errors import CohortError, OutputError
from oligovox.files import read_json, write_json, write_tsv
from oligovox.prepare.geometry import Volume

NAME = "oligovox ready"
"""In the dataset_description.json of a folder of analysis-ready exams."""

_ABOUT = "dataset_description.json"
_LEVELS = 500  # grey levels that most of an image keeps at least; with fewer it is written as float32
_INT16 = np.iinfo(np.int16).max
Record = dict[str, Any]
"""What …_desc-ready.json holds."""


def plain(name: str) -> str:
    """A name in letters and digits, as BIDS allows."""
    return re.sub(r"[^A-Za-z0-9]", "", name)


def stem_of(case: Case) -> str:
    """'sub-01_ses-1'."""
    session = f"_ses-{plain(case.session)}" if case.session else ""
    return f"sub-{plain(case.dataset)}{plain(case.subject)}{session}"


def folder_of(case: Case, out: Path) -> Path:
    """OUT/sub-01/ses-1, or OUT/sub-01 where there is one session without a name."""
    return out.joinpath(*stem_of(case).split("_"))


def record_of(folder: Path) -> Record | None:
    """The record in the folder of an exam; None where there is none that can be read."""
    for path in sorted((folder / "anat").glob("sub-*_desc-ready.json")):
        try:
            content = read_json(path)
        except CohortError:
            return None
        return content if isinstance(content, dict) and "sequences" in content else None
    return None


def image_name(stem: str, space: str, sequence: str) -> str:
    """'sub-01_ce-gadolinium_space-FLAIR_desc-ready_T1w.nii.gz'."""
    entities, _, suffix = SUFFIXES.get(sequence, sequence).rpartition("_")
    return "_".join(part for part in (stem, entities, f"space-{space}", "desc-ready", suffix) if part) + ".nii.gz"


def label_kind(labels: Mapping[str, int]) -> str:
    """How the file of a label ends: as the reader of BIDS looks for it."""
    return "label-lesion_mask" if dict(labels) == {"lesion": 1} else "desc-lesion_dseg"


def write_values(path: Path, values: NDArray[Any], affine: NDArray[np.float64], *, scale: float = 1.0) -> None:
    """A NIfTI file of these very numbers, which stand for `values · scale`, in mm."""
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(scale, 0)
    nib.save(image, path)


def write_image(path: Path, volume: Volume, seen: NDArray[np.bool_] | None) -> None:
    """An image as int16: as it is where all values are whole, else in steps of 1/32767 of its largest value.

    Where a few voxels are so bright that this would leave fewer than 500 steps between the 5th and the 95th percentile of what is not 0, it
    is written as float32, its numbers unchanged. 0 stays exactly 0. Where something is `seen` and the image has no negative values, the least
    is one step, so that 0 means outside.
    """
    array = volume.array
    shown = array[array != 0]
    most = float(np.abs(shown).max()) if shown.size else 0.0
    low, high = np.percentile(shown, (5, 95)) if shown.size else (0.0, 0.0)
    whole = most <= _INT16 and bool((shown == np.rint(shown)).all())
    scale = 1.0 if whole or not most else most / _INT16
    least = 1.0
    if not whole and scale > float(high - low) / _LEVELS:
        values, least, scale = array.astype(np.float32), float(np.abs(shown).min()), 1.0
    else:
        values = np.rint(array / scale).astype(np.int16)
    if seen is not None and values.min() >= 0:
        values[seen & (values == 0)] = least
    write_values(path, values, volume.affine, scale=scale)


def begin(out: Path, settings: Mapping[str, Any], labels: Mapping[str, int]) -> None:
    """Describe the dataset; the table of classes goes beside it where there is more than one lesion mask's worth.

    Raises:
        OutputError: `out` holds something else.
    """
    path = out / _ABOUT
    if out.is_dir() and any(out.iterdir()):
        try:
            ours = read_json(path).get("Name") == NAME
        except (CohortError, AttributeError):
            ours = False
        if not ours:
            raise OutputError(f"{out}: holds files that `ready` did not write; choose an empty or a new folder")
    made = {"Name": "oligovox", "Version": version("oligovox")}
    content = {"Name": NAME, "BIDSVersion": "1.10.0", "DatasetType": "derivative", "GeneratedBy": [made]}
    write_json(path, content | {"Settings": dict(settings), "Labels": dict(labels)})
    if label_kind(labels) != "label-lesion_mask":
        rows = [{"index": value, "name": name} for name, value in labels.items()]
        write_tsv(out / "desc-lesion_dseg.tsv", rows, ("index", "name"))
