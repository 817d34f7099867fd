"""A prediction back on the grid of the image it was made from, as BIDS derivatives.

    OUT/dataset_description.json
    OUT/sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz       one class; several: …_dseg.nii.gz with …_dseg.tsv
    OUT/sub-01/ses-1/anat/sub-01_ses-1_label-lesion_probseg.nii.gz    on request, one a class or region
    OUT/sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.json         written last: where it stands, the case is finished

Cases of a named dataset go to OUT/<dataset>/, so that two datasets may both have a sub-01. Each file appears whole or not at all.
Memory: the given probabilities, and one channel and the label map on the native grid at a time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from oligovox.cohort.bids import PREDICTIONS, holds_predictions
from oligovox.errors import CohortError, GeometryError, OutputError, SettingsError
from oligovox.files import atomic_file, read_json, sweep, write_json, write_tsv
from oligovox.prepare.geometry import TOLERANCE_MM, corner_distance, to_native
from oligovox.prepare.store import Plan, StoredCase

_GRID_FIELDS = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


def write_prediction(
    probabilities: NDArray[np.float32],
    case: StoredCase,
    labels: Mapping[str, int],
    out: Path,
    *,
    plan: Plan,
    model_hash: str,
    regions: Mapping[str, Sequence[int]] | None = None,
    save_probabilities: bool = False,
    details: Mapping[str, Any] | None = None,
) -> dict[str, Path]:
    """Write the label map of one case, its sidecar and, on request, the probabilities.

    Probabilities are brought to the native grid (linear, exact where no resampling is needed) before a class is chosen: the one with
    the largest probability, or, with regions, the last region above 0.5.

    Args:
        probabilities: (C, x, y, z) on the prepared grid, as `predict_case` gives them.
        case: the stored case.
        labels: class name → value in the label map, in channel order; the background is channel 0 and not listed.
        out: folder of the derivatives.
        plan: of the store.
        model_hash: of everything that decides the result (model, window settings); see `already_written`.
        regions: region name → class numbers it holds (1 is the first of `labels`), in channel order; no background channel. Each region
            paints the first of its classes that no later region holds: whole tumour (1, 2, 3), core (1, 3), enhancing (3) paint 2, 1, 3.
        save_probabilities: also write one probability map a class or region.
        details: further entries of the sidecar (model, settings), as JSON.

    Returns:
        "label", "sidecar", "table" (several classes), "probability_<name>" → path.

    Raises:
        GeometryError: the shape is not that of case and labels.
        SettingsError: a region holds no class of its own.
        OutputError: a file cannot be written, or a mask that no prediction made stands in its place.
    """
    painted = _painted(labels, regions)
    names = list(regions if regions is not None else labels)
    expected = (len(names) + (regions is None), *case.placement.prepared_shape)
    if probabilities.shape != expected:
        raise GeometryError(f"{case.name}: probabilities have shape {probabilities.shape}, expected {expected}")
    paths = prediction_paths(case, out, labels, probabilities=names if save_probabilities else ())
    sweep(paths["label"].parent)
    if paths["label"].exists() and not holds_predictions(_root(case, out)):
        raise OutputError(
            f"{paths['label']}: is not a prediction of oligovox; choose another folder, so that no mask is lost"
        )
    paths["sidecar"].unlink(missing_ok=True)  # an older one must not vouch for the files of this run
    _describe_dataset(_root(case, out))
    header = _grid_header(case)
    value = np.zeros(case.placement.native_shape, dtype=np.min_scalar_type(max(labels.values())))
    best = 0.5 if regions is not None else to_native(probabilities[0], case.placement, 1)
    for channel, name in enumerate(names, start=int(regions is None)):
        probability = to_native(probabilities[channel], case.placement, 1)
        wins = probability > best
        value[wins] = painted[name]
        if regions is None:
            best = np.maximum(best, probability)
        if save_probabilities:
            _write_image(paths[f"probability_{name}"], probability.astype(np.float32, copy=False), header)
    _write_image(paths["label"], value, header)
    if "table" in paths:
        write_tsv(paths["table"], [{"index": v, "name": n} for n, v in labels.items()], ["index", "name"])
    files = [path.name for key, path in paths.items() if key != "sidecar"]
    finished = {"Files": files, "ModelHash": model_hash, "CaseHash": _case_hash(case)}
    write_json(paths["sidecar"], _provenance(case, plan) | {"Labels": dict(labels), **(details or {})} | finished)
    return paths


def prediction_paths(
    case: StoredCase, out: Path, labels: Mapping[str, int], *, probabilities: Sequence[str] = ()
) -> dict[str, Path]:
    """Where `write_prediction` puts the files of a case; `probabilities` names the maps that are written."""
    stem = _stem(case, out)
    kind = f"label-{_plain(next(iter(labels)))}_mask" if len(labels) == 1 else "dseg"
    paths = {"label": stem.with_name(f"{stem.name}_{kind}.nii.gz")}
    if len(labels) > 1:
        paths["table"] = stem.with_name(f"{stem.name}_{kind}.tsv")
    for name in probabilities:
        paths[f"probability_{name}"] = stem.with_name(f"{stem.name}_label-{_plain(name)}_probseg.nii.gz")
    return paths | {"sidecar": stem.with_name(f"{stem.name}_{kind}.json")}


def already_written(case: StoredCase, out: Path, model_hash: str) -> bool:
    """Whether `out` holds a finished prediction of this case, as prepared now, by the model and settings with this hash."""
    stem = _stem(case, out)
    for sidecar in stem.parent.glob(f"{stem.name}_*.json"):
        try:
            content = read_json(sidecar)
        except CohortError:
            continue
        if (content.get("ModelHash"), content.get("CaseHash")) == (model_hash, _case_hash(case)):
            return all((stem.parent / name).is_file() for name in content["Files"])
    return False


def _painted(labels: Mapping[str, int], regions: Mapping[str, Sequence[int]] | None) -> dict[str, int]:
    """Output name → value it paints."""
    if regions is None:
        return dict(labels)
    values, painted = list(labels.values()), {}
    for position, (name, classes) in enumerate(regions.items()):
        later = {number for others in list(regions.values())[position + 1 :] for number in others}
        own = [number for number in classes if number not in later]
        if not own or not 1 <= own[0] <= len(values):
            raise SettingsError(
                f"region '{name}' {tuple(classes)} has no class of its own to paint among 1 … {len(values)}; "
                "list larger regions before the smaller ones inside them"
            )
        painted[name] = values[own[0] - 1]
    return painted


def _provenance(case: StoredCase, plan: Plan) -> dict[str, Any]:
    got = plan.held(case.present)
    return {
        "Description": "lesion prediction by oligovox; not for clinical use",
        "Sources": [case.sources[name] for name in plan.modalities if name in case.sources],
        "SpatialReference": case.sources[case.reference],
        "SequencesKnown": list(plan.sequences),
        "SequencesPresent": list(got),
        "SequencesMissing": [name for name in plan.sequences if name not in got],
    }


def _root(case: StoredCase, out: Path) -> Path:
    return out / case.dataset if case.dataset else out


def _stem(case: StoredCase, out: Path) -> Path:
    """OUT/sub-01/ses-1/anat/sub-01_ses-1."""
    name = case.name.removeprefix(f"{case.dataset}_") if case.dataset else case.name
    subject = case.person.removeprefix(f"{case.dataset}_") if case.dataset else case.person
    session = name.removeprefix(f"sub-{subject}").removeprefix("_")
    return _root(case, out) / f"sub-{subject}" / session / "anat" / name


def _plain(name: str) -> str:
    """A class name as a BIDS label: letters and digits only."""
    return re.sub(r"[^A-Za-z0-9]", "", name)


def _case_hash(case: StoredCase) -> str:
    """Changes when the case is prepared again from other files or by another plan."""
    return str(read_json(case.folder / "case.json")["content"])


def _grid_header(case: StoredCase) -> nib.Nifti1Header:
    """A bare header with exactly the grid fields of the reference image; from the affine where that file is gone or changed."""
    grid = case.placement
    header = nib.Nifti1Image(np.zeros((1, 1, 1), dtype=np.uint8), grid.native_affine).header
    path = Path(case.sources[case.reference])
    if path.is_file():
        image = nib.load(path)
        same = image.shape[:3] == grid.native_shape
        same = same and corner_distance(image.affine, grid.native_affine, grid.native_shape) <= TOLERANCE_MM
        if same and isinstance(image.header, nib.Nifti1Header):
            for field in _GRID_FIELDS:
                header[field] = image.header[field]
            header["pixdim"][4:] = 0
    return header


def _write_image(path: Path, array: NDArray[Any], header: nib.Nifti1Header) -> None:
    header = header.copy()
    header.set_data_dtype(array.dtype)
    with atomic_file(path) as temporary:
        nib.save(nib.Nifti1Image(array, header.get_best_affine(), header), temporary)


def _describe_dataset(root: Path) -> None:
    path = root / "dataset_description.json"
    if not path.exists():
        generator = {"Name": "oligovox", "Version": version("oligovox")}
        content = {"Name": PREDICTIONS, "BIDSVersion": "1.10.0", "DatasetType": "derivative"}
        write_json(path, content | {"GeneratedBy": [generator]})
