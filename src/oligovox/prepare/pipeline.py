"""From a cohort to a store: read, check, bring to one grid, crop, z-score, write; one case at a time in each worker.

Every sequence is interpolated at most once, straight from its own grid to the prepared one. Sequences whose grids differ are
brought together by their headers; nothing is registered here. A case whose files, plan and label scheme have not changed is
skipped, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from oligovox.cohort.annotate import DECLARED, NOBODY_LOOKED, NOT_LOOKED
from oligovox.cohort.manifest import Case, Cohort
from oligovox.errors import CohortError, GeometryError, ImageError, LabelError, OutputError
from oligovox.files import atomic_folder, check_writable, hash_file, hash_json, read_json, sweep, write_json
from oligovox.prepare import geometry
from oligovox.prepare.geometry import Order, Placement, Shape, Volume, resample_to
from oligovox.prepare.intensity import robust_scale, robust_zscore
from oligovox.prepare.store import FORMAT, Plan, Store, lesion_balanced_voxels, some_voxels, write_table
from oligovox.prepare.workers import run_cases

_log = logging.getLogger(__name__)

IMAGE_ORDER: Order = 3
"""Spline order for images; labels and masks are brought over linearly."""


def prepare(
    cohort: Cohort,
    plan: Plan,
    out: Path,
    *,
    workers: int = 2,
    progress: Callable[[int, int, str], None] | None = None,
    checked: bool = False,
) -> Store:
    """Prepare every case of a cohort.

    Args:
        cohort: who there is.
        plan: sequences, voxel size, margin, reference.
        out: an empty or new folder, or a store (finished or not) to bring up to date.
        workers: processes; each holds one case in memory. 1 works in this process.
        progress: called with (cases done, cases in all, name of the case) after each case.
        checked: `check` has passed for these cases already; a new store then begins at once.

    Returns:
        The finished store.

    Raises:
        InputError: a file is missing or unusable; the message starts with the case. A new store is not begun then: every voxel is
            checked first. Of a store brought up to date, nothing of that case is written.
        WorkerError: a case failed for another reason, or its process was killed.
        OutputError: `out` cannot be written, or holds something else.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / "store.json").is_file():
        raise OutputError(f"{out}: holds files that are not a store; choose an empty or a new folder")
    check_writable(out)
    if not checked and not (out / "store.json").is_file():
        check(cohort, plan, workers=workers)
    scheme = _checked_scheme(cohort.labels)
    for case in cohort.cases:
        _check_case(case, plan)
    sweep(out / "cases")
    names = [case.name for case in cohort.cases]
    write_table(out, plan, scheme, names, finished=False)

    count = 0

    def done(name: str) -> None:
        nonlocal count
        count += 1
        if progress:
            progress(count, len(names), name)

    job = partial(_prepare_case, plan=plan, scheme=scheme, cases=out / "cases")
    run_cases(job, {case.name: case for case in cohort.cases}, workers, done)
    write_table(out, plan, scheme, names, finished=True)
    return Store.open(out)


def check(cohort: Cohort, plan: Plan, *, workers: int = 2) -> None:
    """Read every file of a cohort and write nothing: what `prepare` would refuse is refused here.

    Raises:
        InputError: the first file that is missing or unusable.
    """
    scheme = _checked_scheme(cohort.labels)
    for case in cohort.cases:
        _check_case(case, plan)
    job = partial(_check_voxels, plan=plan, scheme=scheme)
    run_cases(job, {case.name: case for case in cohort.cases}, workers, lambda name: None)


def _check_voxels(case: Case, plan: Plan, scheme: Mapping[str, int]) -> None:
    _load(case, _sources(case, plan), plan, scheme)


def _checked_scheme(labels: Mapping[str, int]) -> dict[str, int]:
    values = list(labels.values())
    if len(set(values)) != len(values) or min(values, default=1) < 1 or len(values) > 126:
        raise LabelError(
            f"label scheme {dict(labels)}: values must be different whole numbers from 1, at most 126; 0 is background"
        )
    return dict(labels)


def _check_case(case: Case, plan: Plan) -> None:
    """What can be said before any file is read."""
    if not set(plan.modalities) & set(case.images):
        raise CohortError(
            f"{case.name}: has {', '.join(case.images)}, none of the plan's {', '.join(plan.modalities)}; "
            "leave the case out or add a sequence to the plan"
        )
    for key, path in _sources(case, plan).items():
        if not path.is_file():
            raise ImageError(
                path,
                f"the {key} file of {case.name} is missing (or is a link to nowhere)",
                "bring it back or mend the table",
            )


def _sources(case: Case, plan: Plan) -> dict[str, Path]:
    """The files that are used: sequences and their further acquisitions in the plan's order, then 'label' and 'brain' where there are any."""
    images = case.acquisitions
    files = {name: images[name] for name in plan.modalities if name in images}
    return files | {key: path for key, path in (("label", case.label), ("brain", case.brain)) if path}


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """A case in memory, on its native grids."""

    images: dict[str, Volume]
    reference: str
    label: Volume | None  # class indices
    brain: Volume | None  # 0 or 1


@dataclass
class _Prepared:
    """A case on the prepared grid; `steps` grows as the work is done."""

    affine: np.ndarray
    foreground: np.ndarray
    label: np.ndarray | None = None
    image: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float16))
    steps: list[dict[str, Any]] = field(default_factory=list)

    @property
    def shape(self) -> Shape:
        x, y, z = self.foreground.shape
        return x, y, z


def _prepare_case(case: Case, plan: Plan, scheme: Mapping[str, int], cases: Path) -> None:
    """Prepare one case and write its folder; returns at once where it is already there."""
    sources = _sources(case, plan)
    hashes = {key: hash_file(path) for key, path in sources.items()}
    identity = [
        FORMAT,
        case.name,
        case.person,
        case.dataset,
        hashes,
        plan.model_dump(mode="json"),
        list(scheme.items()),
        *(["sparse"] if case.sparse else []),
        *(["voxels class by class"] if case.label and len(scheme) > 1 else []),
        *([case.unlooked] if case.sparse and case.unlooked != NOBODY_LOOKED else []),
    ]
    content = hash_json(identity)
    folder = cases / case.name
    if _is_there(folder, content, sources):
        return
    loaded = _load(case, sources, plan, scheme)
    prepared = _to_one_grid(case, loaded, plan, len(scheme))
    reference = loaded.images[loaded.reference]
    placement = Placement(reference.shape, reference.affine, prepared.shape, prepared.affine)
    lesion_voxels, unlooked = _counted(prepared.label)
    about = {
        "name": case.name,
        "person": case.person,
        "dataset": case.dataset,
        "present": [name in loaded.images for name in plan.modalities],
        "shape": prepared.shape,
        "spacing": geometry.spacing_of(prepared.affine),
        "labelled": prepared.label is not None,
        "lesion_voxels": lesion_voxels,
        "unlooked_voxels": unlooked,
        "reference": loaded.reference,
        "placement": placement.as_json(),
        "sources": {key: str(path.absolute()) for key, path in sources.items()},
        "content": content,
        "provenance": {"inputs_sha256": hashes, "steps": prepared.steps, "versions": _versions()},
    }
    _write(folder, prepared, about, np.random.default_rng(int(content[:16], 16)))


def _is_there(folder: Path, content: str, sources: Mapping[str, Path]) -> bool:
    """Whether this very case is in the store; where only its files moved, their new paths are written down."""
    table = folder / "case.json"
    if not table.is_file():
        return False
    about = read_json(table)
    if about.get("content") != content:
        return False
    paths = {key: str(path.absolute()) for key, path in sources.items()}
    if about["sources"] != paths:
        write_json(table, about | {"sources": paths})
    return True


def _load(case: Case, sources: Mapping[str, Path], plan: Plan, scheme: Mapping[str, int]) -> _Loaded:
    """Read and check every file of a case."""
    images = {key: geometry.read_volume(path) for key, path in sources.items() if key not in ("label", "brain")}
    reference = next((name for name in plan.reference if name in images), next(iter(images)))
    label = brain = None
    if case.label:
        label = geometry.read_volume(case.label, empty_ok=True)
        _check_on_a_grid(case.label, label, images)
        unlooked = case.unlooked if case.sparse else None
        label = Volume(class_indices(case.label, label.array, scheme, unlooked), label.affine)
    if case.brain:
        brain = geometry.read_volume(case.brain, empty_ok=True)
        _check_on_a_grid(case.brain, brain, images)
        brain = Volume((brain.array >= 0.5).astype(np.float32), brain.affine)
        if not brain.array.any():
            raise ImageError(
                case.brain, "the brain mask is empty", "mend it, or leave it out to use the non-zero voxels"
            )
    return _Loaded(images=images, reference=reference, label=label, brain=brain)


def _check_on_a_grid(path: Path, mask: Volume, images: Mapping[str, Volume]) -> None:
    if any(geometry.same_grid(mask, image) for image in images.values()):
        return
    grids = []
    for name, image in images.items():
        apart = geometry.corner_distance(mask.affine, image.affine, image.shape)
        grids.append(f"{name} {image.shape}" + (f", {apart:.3g} mm apart" if image.shape == mask.shape else ""))
    raise GeometryError(
        f"{path}: mask of shape {mask.shape} lies on the grid of no image of the case ({'; '.join(grids)}); "
        "draw or resample it on one of them"
    )


def class_indices(path: Path, values: np.ndarray, scheme: Mapping[str, int], unlooked: int | None) -> np.ndarray:
    """Values of the file → 0, 1, 2 … in the order of the scheme, -1 where a sparse label says that nobody looked (int8)."""
    result = np.zeros(values.shape, dtype=np.int8)
    if unlooked is not None:
        _check_sparse(path, values, scheme, unlooked)
        result[values == unlooked] = NOT_LOOKED
    for index, value in enumerate(scheme.values(), start=1):
        result[np.abs(values - value) < 1e-3] = index
    unknown = np.unique(values[(result == 0) & (np.abs(values) >= 1e-3)])
    if unknown.size:
        known = ", ".join(f"{value} = {name}" for name, value in scheme.items())
        shown = ", ".join(f"{value:g}" for value in unknown[:5]) + (" …" if unknown.size > 5 else "")
        hint = f', or say beside it that {NOBODY_LOOKED} is where nobody looked ("{DECLARED}": {NOBODY_LOOKED} in its .json)'
        raise LabelError(
            f"{path}: has the values {shown}; expected 0 = background, {known}; name them in the label scheme"
            + (hint if NOBODY_LOOKED in unknown else "")
        )
    return result


def _check_sparse(path: Path, values: np.ndarray, scheme: Mapping[str, int], unlooked: int) -> None:
    if unlooked in scheme.values():
        named = next(name for name, value in scheme.items() if value == unlooked)
        raise LabelError(
            f"{path}: says that {unlooked} is where nobody looked, but the label scheme calls it {named}; give the class another value"
        )
    if (values == unlooked).all():
        raise LabelError(f"{path}: every voxel is {unlooked}, so nobody looked at all; leave the mask out")


def _counted(label: np.ndarray | None) -> tuple[int, int]:
    """Voxels of lesion, and voxels that nobody looked at; both 0 without a label."""
    return (0, 0) if label is None else (int(np.count_nonzero(label > 0)), int(np.count_nonzero(label < 0)))


def _to_one_grid(case: Case, loaded: _Loaded, plan: Plan, classes: int) -> _Prepared:
    """Everything on the cropped RAS grid of the reference."""
    reference = loaded.images[loaded.reference]
    affine, shape = geometry.ras_grid(reference.affine, reference.shape, plan.spacing)
    foreground = _foreground(loaded, affine, shape)
    label = None if loaded.label is None else geometry.resample_labels(loaded.label, affine, shape, classes)
    if not foreground.any():
        raise ImageError(
            case.acquisitions[loaded.reference], "no foreground on its grid", "check brain mask and orientation"
        )
    low, high = _box(foreground if label is None else foreground | (label > 0), plan.margin)
    crop = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    prepared = _Prepared(
        affine=geometry.shifted(affine, low),
        foreground=np.ascontiguousarray(foreground[crop]),
        label=None if label is None else np.ascontiguousarray(label[crop]),
    )
    prepared.steps += [
        {"step": "reference", "sequence": loaded.reference, "orientation": geometry.orientation_of(reference.affine)},
        {"step": "grid", "orientation": "RAS", "spacing_mm": geometry.spacing_of(affine), "shape": shape},
        {
            "step": "foreground",
            "from": "brain mask" if loaded.brain else "voxels that are not 0 in any sequence, filled",
        },
        {"step": "crop", "low": low, "high": high, "margin_voxels": plan.margin},
    ]
    if loaded.label and prepared.label is not None:
        if (prepared.label < 0).all():
            raise LabelError(
                f"{case.label}: nobody looked at any voxel of the prepared grid; leave the mask out, or prepare finer voxels"
            )
        prepared.steps.append(_label_step(case, loaded.label, prepared))
    prepared.image = np.zeros((len(loaded.images), *prepared.shape), dtype=np.float16)
    for channel, (name, volume) in enumerate(loaded.images.items()):
        prepared.image[channel] = _sequence(case, name, volume, reference, prepared)
    return prepared


def _foreground(loaded: _Loaded, affine: np.ndarray, shape: Shape) -> np.ndarray:
    if loaded.brain:
        return resample_to(loaded.brain, affine, shape, 1).array >= 0.5
    found = np.zeros(shape, dtype=bool)
    for volume in loaded.images.values():
        signal = Volume((volume.array != 0).astype(np.float32), volume.affine)
        found |= resample_to(signal, affine, shape, 1).array >= 0.5
    return np.asarray(ndimage.binary_fill_holes(found), dtype=bool)


def _box(mask: np.ndarray, margin: int) -> tuple[Shape, Shape]:
    """First voxel and last voxel + 1 of the mask along each axis, widened by the margin within the volume."""
    low, high = [], []
    for part, size in zip(ndimage.find_objects(mask.astype(np.int8))[0], mask.shape, strict=True):
        low.append(max(0, part.start - margin))
        high.append(min(size, part.stop + margin))
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def _label_step(case: Case, native: Volume, prepared: _Prepared) -> dict[str, Any]:
    """How much lesion there was and is; says so where resampling lost all of it."""
    assert prepared.label is not None
    before = float(np.count_nonzero(native.array > 0) * np.prod(geometry.spacing_of(native.affine)))
    after = float(np.count_nonzero(prepared.label > 0) * np.prod(geometry.spacing_of(prepared.affine)))
    if before and not after:
        _log.warning("%s: its %.1f mm³ of lesion are lost at this spacing; choose a finer one", case.name, before)
    step = {"step": "label", "lesion_mm3_native": before, "lesion_mm3_prepared": after}
    if (prepared.label < 0).any():
        step["foreground_looked_at"] = float((prepared.label[prepared.foreground] >= 0).mean())
    return step


def _sequence(case: Case, name: str, volume: Volume, reference: Volume, prepared: _Prepared) -> np.ndarray:
    """One sequence on the prepared grid, z-scored in the part of the foreground it covers; notes what was done."""
    seen = prepared.foreground & geometry.inside(volume, prepared.affine, prepared.shape)
    if not seen.any():
        raise GeometryError(
            f"{case.acquisitions[name]}: {name} does not overlap with the foreground of the reference image; "
            "check its header, register it to the others, or leave it out"
        )
    array = resample_to(volume, prepared.affine, prepared.shape, IMAGE_ORDER, smooth=True).array
    scale = robust_scale(array[seen])
    if scale.sd == 0:
        raise ImageError(
            case.acquisitions[name], f"{name} is constant in the foreground", "check the file and the brain mask"
        )
    native = geometry.spacing_of(volume.affine)
    whole = geometry.whole_voxels_apart(volume.affine, prepared.affine, prepared.shape)
    prepared.steps.append(
        {
            "step": "sequence",
            "sequence": name,
            "spacing_mm": native,
            "aligned": "same grid" if geometry.same_grid(volume, reference) else "by header only, not registered",
            "spline_order": None if whole else IMAGE_ORDER,
            "blur_sigma_voxels": None if whole else geometry.blur_of(volume.affine, prepared.affine),
            "foreground_covered": float(seen.sum() / prepared.foreground.sum()),
            "zscore": {"low": scale.low, "high": scale.high, "mean": scale.mean, "sd": scale.sd},
        }
    )
    return robust_zscore(array, seen, scale)


def _write(folder: Path, prepared: _Prepared, about: Mapping[str, Any], rng: np.random.Generator) -> None:
    arrays = {
        "image": prepared.image,
        "foreground": prepared.foreground,
        "foreground_voxels": some_voxels(prepared.foreground, rng),
    }
    if prepared.label is not None:
        arrays |= {"label": prepared.label, "lesion_voxels": lesion_balanced_voxels(prepared.label, rng)}
        if about["unlooked_voxels"]:
            looked = prepared.label >= 0
            seen = looked & prepared.foreground
            arrays["looked_voxels"] = some_voxels(seen if seen.any() else looked, rng)
    with atomic_folder(folder) as temporary:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        write_json(temporary / "case.json", about)


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in ("numpy", "scipy", "nibabel")}
