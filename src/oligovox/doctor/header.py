"""What headers say, and whether it can be true: forms, axes, voxel sizes, units, numbers; and whether the files of a case agree.

| check | severity | what was found |
| --- | --- | --- |
| sform_qform | warning | the two forms of a header put the corners more than 0.1 mm apart |
| unused_form | note | a form that is marked as not to be used says something else |
| no_form | warning | neither form is to be used: where the image lies, and which side is left, is not known |
| affine | error | no inverse |
| shear | warning | axes that are not at right angles |
| voxel_size | error | below 0.05 or above 20 mm |
| units | warning | sizes in metres or micrometres by the header, yet plausible as mm |
| four_d, single_slice, voxel_type | error | no single 3-D volume of plain numbers |
| not_finite, empty_image | error | NaN or infinite voxels; only zeros |
| scale_factor, overflow | warning | scale factors that cannot be meant; values that ran over the ends of their type |
| orientation, mixed_orientation, anisotropy | note | axes that are not RAS, or not the same; slices thicker than twice their pixels |
| near_equal_grid, grids | note | grids of a case that differ by less than 0.1 mm, or by more |
| no_overlap | error | images of a case that have no part in common |
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import nibabel as nib
import numpy as np

from oligovox.cohort.manifest import Case
from oligovox.doctor.finding import Finding, Repair
from oligovox.doctor.scan import Scan, about
from oligovox.prepare.geometry import (
    TOLERANCE_MM,
    corner_distance,
    orientation_of,
    spacing_of,
    usable_affine,
    whole_voxels_apart,
)

SAME_MM = 0.1
"""Corners that are further apart are in another place; nearer ones differ by the digits of a tool."""

_SHEAR = 1e-3  # cosine between two axes
_SMALLEST_MM, _LARGEST_MM = 0.05, 20.0
_ANISOTROPIC = 2.0
_MM_OF = {"meter": 1000.0, "micron": 0.001}


def look_at_headers(case: Case, scans: Mapping[str, Scan]) -> list[Finding]:
    """Everything that headers and plain numbers of a case say.

    Args:
        case: who it is.
        scans: the files that can be read, as `scan.read_scans` gives them.
    """
    findings = []
    for scan in scans.values():
        findings += [*_shape(case, scan), *_numbers(case, scan)]
        if scan.has_place:
            findings += [*_forms(case, scan), *_sizes(case, scan)]
        else:
            expected, todo = "an affine with an inverse", "mend sform or qform, or export the image again"
            findings.append(about(case, scan, "affine", "error", "its affine has no inverse", expected, todo))
    images = {key: scan for key, scan in scans.items() if not scan.is_mask and is_placed(scan)}
    return findings + _axes(case, images) + _grids(case, images, scans)


def is_placed(scan: Scan) -> bool:
    """Whether the header says where the file lies and which side is left, in believable mm; others are compared with no other."""
    return scan.has_place and any(scan.codes) and _plausible(np.array(spacing_of(scan.affine)))


def as_mended(scans: Mapping[str, Scan]) -> dict[str, Scan]:
    """The scans where they lie once `mend` has rewritten headers: in mm, and those a hair off on the grid of the first image."""
    mended = {
        key: scan if (affine := _in_mm(scan)) is None else replace(scan, affine=affine) for key, scan in scans.items()
    }
    for hair in _hairs(scans):
        mended |= {one.key: replace(one, affine=hair.onto.affine) for one in (hair.scan, *hair.masks)}
    return mended


def _shape(case: Case, scan: Scan) -> list[Finding]:
    size = " × ".join(map(str, scan.shape))
    if scan.stored.kind not in "iuf":
        found, todo = f"voxels of the type {scan.stored}", "export magnitude images with one number a voxel"
        return [about(case, scan, "voxel_type", "error", found, "one real number a voxel", todo)]
    if len(scan.shape) > 3:
        todo = "split the series and keep the volume that is meant"
        return [about(case, scan, "four_d", "error", f"{len(scan.shape)}-D, {size}", "one 3-D volume", todo)]
    if len(scan.shape) < 3 or min(scan.shape) < 2:
        todo = "leave it out: it is no volume"
        return [about(case, scan, "single_slice", "error", f"{size} voxels", "a volume of several slices", todo)]
    return []


def _numbers(case: Case, scan: Scan) -> list[Finding]:
    findings = []
    slope, inter = scan.slope
    never_set = slope == 0 and inter == 0
    if not never_set and (slope == 0 or np.isinf([slope, inter]).any() or np.isnan(slope) != np.isnan(inter)):
        found, expected = f"scl_slope {slope:g}, scl_inter {inter:g}", "a slope other than 0, or both 0"
        todo = "export it again: tools read such a file differently"
        findings.append(about(case, scan, "scale_factor", "warning", found, expected, todo))
    if scan.voxels is None or not scan.voxels.size:
        return findings
    if bad := scan.voxels.size - int(np.isfinite(scan.voxels).sum()):
        found, expected = f"{bad} of {scan.voxels.size} voxels are NaN or infinite", "finite values"
        some = bool(np.nan_to_num(scan.voxels, nan=0.0, posinf=0.0, neginf=0.0).any())
        todo = "let --fix write 0 there, or export it again"
        if not some:
            todo = "export it again, or leave it out: no finite voxel differs from 0"
        repair: Repair | None = "values" if some else None
        findings.append(about(case, scan, "not_finite", "error", found, expected, todo, repair, voxels=bad))
    elif not scan.is_mask and not scan.voxels.any():
        expected, todo = "an image", "leave it out, or bring the right file"
        findings.append(about(case, scan, "empty_image", "error", "every voxel is 0", expected, todo))
    elif scan.stored.kind == "i" and scan.stored.itemsize == 2 and _ran_over(scan):
        found = "voxels at both ends of int16 (-32768 and 32767)"
        todo = "export it again, as float or with a scale factor"
        findings.append(about(case, scan, "overflow", "warning", found, "values within their type", todo))
    return findings


def _ran_over(scan: Scan) -> bool:
    assert scan.voxels is not None
    slope, inter = scan.slope
    scale, start = (slope, inter) if slope and np.isfinite([slope, inter]).all() else (1.0, 0.0)
    ends = (np.array([-32768.0, 32767.0]) * scale + start).astype(np.float32)
    return bool(np.isclose([scan.voxels.min(), scan.voxels.max()], np.sort(ends)).all())


def _forms(case: Case, scan: Scan) -> list[Finding]:
    """sform against qform."""
    sform, qform = scan.codes
    if not sform and not qform:
        found, expected = "sform_code and qform_code are both 0", "one that says where the image lies"
        todo = "take the header from the scanner's export; left and right cannot be told from this file"
        return [about(case, scan, "no_form", "warning", found, expected, todo)]
    forms = (scan.sform, scan.qform)
    if not all(_says_something(form) for form in forms):
        return []
    apart = corner_distance(*forms, scan.box)
    if apart <= SAME_MM or (_sheared(scan.sform) > _SHEAR and _is_without_shear(scan)):
        return []
    numbers = {"apart_mm": apart, "affine": scan.affine.tolist()}
    if sform and qform:
        found = f"sform and qform put a corner {apart:.3g} mm apart"
        todo = "compare with the other sequences; --fix writes the sform, which is used here, into both"
        return [about(case, scan, "sform_qform", "warning", found, "the same place", todo, "header", **numbers)]
    which, used = ("sform", "qform") if qform else ("qform", "sform")
    if which == "qform" and _never_set(scan):
        return []
    found = f"{which} has the code 0 and lies {apart:.3g} mm from the {used}"
    todo = f"nothing where the {used} is right; --fix writes it into both"
    return [about(case, scan, "unused_form", "note", found, "the same place, or none", todo, "header", **numbers)]


def _says_something(form: np.ndarray) -> bool:
    return usable_affine(form)


def _is_without_shear(scan: Scan) -> bool:
    """Whether the qform is the sform but for the shear, which a qform cannot say."""
    nearest = nib.Nifti1Header()
    nearest.set_qform(scan.sform, 1, strip_shears=True)
    return corner_distance(nearest.get_qform(), scan.qform, scan.box) <= SAME_MM


def _never_set(scan: Scan) -> bool:
    """A qform of voxel sizes only, as it is where nobody wrote one."""
    return bool(np.allclose(scan.qform, np.diag(np.diag(scan.qform))))


def _sheared(affine: np.ndarray) -> float:
    """Largest cosine between two axes."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(axes.T @ axes - np.eye(3)).max())


def _sizes(case: Case, scan: Scan) -> list[Finding]:
    findings = []
    if (cosine := _sheared(scan.affine)) > _SHEAR:
        degrees = float(np.degrees(np.arcsin(min(1.0, cosine))))
        found, expected = f"two axes are {degrees:.2g}° off a right angle", "axes at right angles"
        todo = "resample it onto straight axes: many tools ignore the shear"
        findings.append(about(case, scan, "shear", "warning", found, expected, todo, degrees=degrees))
    sizes = np.array(spacing_of(scan.affine))
    shown = " × ".join(f"{size:.3g}" for size in sizes)
    if not _plausible(sizes):
        found, expected = f"voxels of {shown} mm", f"{_SMALLEST_MM:g} to {_LARGEST_MM:g} mm"
        if (affine := _in_mm(scan)) is not None:
            todo = f"--fix writes them in mm: the header says {scan.unit}"
            more: dict[str, Any] = {"repair": "header", "affine": affine.tolist()}
        else:
            todo, more = "mend pixdim, sform and qform, or export the image again", {}
        findings.append(about(case, scan, "voxel_size", "error", found, expected, todo, **more))
    elif scan.unit in _MM_OF:
        found, todo = f"the header says {scan.unit}, voxels are {shown}", "--fix writes 'mm' into the header"
        numbers = {"affine": scan.affine.tolist()}
        findings.append(about(case, scan, "units", "warning", found, "mm", todo, "header", **numbers))
    return findings


def _in_mm(scan: Scan) -> np.ndarray | None:
    """The affine in mm, where sizes cannot be mm but can be the unit that the header names; else None."""
    factor = _MM_OF.get(scan.unit)
    if not factor or not scan.has_place or _plausible(sizes := np.array(spacing_of(scan.affine))):
        return None
    return np.diag([factor] * 3 + [1.0]) @ scan.affine if _plausible(sizes * factor) else None


def _plausible(sizes: np.ndarray) -> bool:
    return bool((sizes >= _SMALLEST_MM).all() and (sizes <= _LARGEST_MM).all())


def _axes(case: Case, images: Mapping[str, Scan]) -> list[Finding]:
    """Orientation and slice thickness, once a case."""
    findings, turned, thick = [], defaultdict(list), defaultdict(list)
    for key, scan in images.items():
        turned[orientation_of(scan.affine)].append(key)
        sizes = sorted(spacing_of(scan.affine))
        if sizes[2] / sizes[1] >= _ANISOTROPIC and _plausible(np.array(sizes)):
            thick[f"{sizes[2]:.3g} mm slices, {sizes[0]:.3g} mm pixels"].append(key)
    if len(turned) > 1 or (turned and next(iter(turned)) != "RAS"):
        check = "mixed_orientation" if len(turned) > 1 else "orientation"
        found = "axes point to " + "; ".join(f"{code} ({', '.join(keys)})" for code, keys in turned.items())
        findings.append(_of_case(case, images, check, found, "RAS", "nothing: axes are turned by the header"))
    for found, keys in thick.items():
        some = {key: images[key] for key in keys}
        todo = "nothing, or choose a voxel size for `prepare` that keeps thin lesions"
        findings.append(_of_case(case, some, "anisotropy", f"{found} ({', '.join(keys)})", "near-cubic voxels", todo))
    return findings


def _of_case(case: Case, scans: Mapping[str, Scan], check: str, found: str, expected: str, remedy: str) -> Finding:
    return Finding(
        check=check,
        severity="note",
        case=case.name,
        files=tuple(scan.path for scan in scans.values()),
        found=found,
        expected=expected,
        remedy=remedy,
    )


@dataclass(frozen=True)
class _Hair:
    """An image a hair off the first, which is `onto`; `masks` lie on its grid and go with it."""

    scan: Scan
    onto: Scan
    masks: tuple[Scan, ...]
    apart: float


def _hairs(scans: Mapping[str, Scan]) -> list[_Hair]:
    images = [scan for scan in scans.values() if not scan.is_mask and is_placed(scan)]
    found = []
    for scan in images[1:]:
        apart = _apart(images[0], scan)
        if TOLERANCE_MM < apart <= SAME_MM and _boxes_meet(images[0], scan):
            masks = tuple(one for one in scans.values() if one.is_mask and _apart(scan, one) <= TOLERANCE_MM)
            found.append(_Hair(scan, images[0], masks, apart))
    return found


def _apart(one: Scan, other: Scan) -> float:
    """Distance of the corners in mm; infinite where the sizes in voxels differ."""
    same = one.box == other.box and one.has_place and other.has_place
    return corner_distance(one.affine, other.affine, one.box) if same else np.inf


def _grids(case: Case, images: Mapping[str, Scan], scans: Mapping[str, Scan]) -> list[Finding]:
    """The grids of the other images against the first."""
    if len(images) < 2:
        return []
    first, *others = images.values()
    findings, differ = [], []
    hairs = {hair.scan.key: hair for hair in _hairs(scans)}
    for scan in others:
        if not _boxes_meet(first, scan):
            found = f"{scan.key} and {first.key} have no part of space in common"
            todo = f"compare both headers; one of them is not this exam's ({first.path.name})"
            findings.append(about(case, scan, "no_overlap", "error", found, "overlapping images", todo))
            continue
        if hair := hairs.get(scan.key):
            findings.append(_hair(case, hair))
        elif _apart(first, scan) > SAME_MM and not _only_turned(first, scan):
            differ.append(scan)
    if differ:
        shapes = "; ".join(f"{scan.key} {' × '.join(map(str, scan.box))}" for scan in (first, *differ))
        scans = {scan.key: scan for scan in (first, *differ)}
        todo = "nothing if nobody moved in between: they are brought together by their headers, not registered"
        findings.append(_of_case(case, scans, "grids", f"different grids: {shapes}", "one grid", todo))
    return findings


def _hair(case: Case, hair: _Hair) -> Finding:
    found, expected = f"{hair.apart:.2g} mm from the grid of {hair.onto.key}", "the same grid, digit by digit"
    todo = "nothing, or let --fix give both the same header" + (", and the masks drawn on it" if hair.masks else "")
    numbers = {"apart_mm": hair.apart, "affine": hair.onto.affine.tolist()}
    finding = about(case, hair.scan, "near_equal_grid", "note", found, expected, todo, "header", **numbers)
    return replace(finding, files=(hair.scan.path, *(mask.path for mask in hair.masks)))


def _only_turned(one: Scan, other: Scan) -> bool:
    """Whether two grids have the same voxels in another order."""
    ends = np.abs(np.array(_ends(one)) - np.array(_ends(other))).max()
    return bool(ends <= TOLERANCE_MM) and whole_voxels_apart(one.affine, other.affine, other.box)


def _boxes_meet(one: Scan, other: Scan) -> bool:
    """Whether the boxes around both, along the scanner's axes, overlap."""
    (low, high), (other_low, other_high) = _ends(one), _ends(other)
    return bool((low <= other_high).all() and (other_low <= high).all())


def _ends(scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in scan.box], [1])).reshape(4, -1)
    places = (scan.affine @ corners)[:3]
    return places.min(1), places.max(1)
