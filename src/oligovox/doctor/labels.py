"""Masks: whether they lie on their images, hold the values of the scheme, and belong to the person.

| check | severity | what was found |
| --- | --- | --- |
| mask_grid | error | a mask on the grid of no image; its header, or a resampling, mends that where it can be told which |
| label_values | error | values outside the scheme |
| label_fractions | error | values that are no whole numbers |
| label_gaps | note | a scheme whose values are not 1, 2, 3, …, such as 1, 2, 4 |
| empty_label, tiny_lesions | note | no lesion at all; lesions of one voxel or below 3 mm³ |
| empty_brain | error | a brain mask without a voxel |
| lesion_outside | warning | more than a tenth of the lesion lies outside the brain mask, or in the air |
| same_mask | error | the mask is another person's, voxel by voxel |
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from oligovox.cohort.manifest import Case, Cohort
from oligovox.doctor.finding import Finding, Repair
from oligovox.doctor.header import SAME_MM, as_mended, is_placed
from oligovox.doctor.scan import BRAIN, LABEL, Scan, about, readable
from oligovox.prepare.geometry import corner_distance, inside, orientation_of, resample_to, same_grid, spacing_of

TINY_MM3 = 3.0
"""Lesions below this volume are counted; most protocols of multiple sclerosis leave them out."""

OUTSIDE = 0.1
"""Share of the lesion that may lie outside the brain before it is said."""

_WHOLE = 1e-3
_AIR = 0.05  # share of the brightest, below which a voxel is air
_FITS = 0.9  # share of a mask that lies in the subject where its place is right
_ENOUGH = 20  # voxels two masks must have before their being equal says something
_CLOSE_MM = 2.0


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What is kept of a label to compare it with those of others.

    Attributes:
        case, person: whose it is.
        path: the file.
        digest: SHA-256 of shape and values.
        voxels: that are not 0.
    """

    case: str
    person: str
    path: Path
    digest: str
    voxels: int


def look_at_masks(case: Case, scans: Mapping[str, Scan], scheme: Mapping[str, int]) -> list[Finding]:
    """Everything about label and brain mask of one case.

    Args:
        case: who it is.
        scans: the files that can be read.
        scheme: class → value in the label files.
    """
    findings = []
    scans = as_mended(scans)
    images = readable(case, scans)
    for key in (BRAIN, LABEL):
        mask = scans.get(key)
        if mask is None or mask.voxels is None or not mask.has_place:
            continue
        displaced = _on_a_grid(case, mask, images)
        findings += displaced
        if key == BRAIN and not (mask.voxels >= 0.5).any():
            todo = "mend it, or leave it out"
            findings.append(about(case, mask, "empty_brain", "error", "no voxel of brain", "a brain mask", todo))
        if key == LABEL:
            findings += _values(case, mask, scheme)
            looked = mask.voxels != (case.unlooked if case.sparse else np.inf)
            lesion = np.isfinite(mask.voxels) & (mask.voxels >= 0.5) & looked
            findings += _lesions(case, mask, lesion)
            if not displaced:
                findings += _outside(case, mask, lesion, images, scans.get(BRAIN))
    return findings


def drawn(case: Case, scans: Mapping[str, Scan]) -> Drawn | None:
    """The label of a case, for `compare_masks`; None without one, or with hardly any lesion."""
    scan = scans.get(LABEL)
    if scan is None or scan.voxels is None or (count := int(np.count_nonzero(scan.voxels))) < _ENOUGH:
        return None
    digest = hashlib.sha256(repr(scan.shape).encode())
    digest.update(scan.voxels.tobytes())
    return Drawn(case=case.name, person=case.person, path=scan.path, digest=digest.hexdigest(), voxels=count)


def compare_masks(labels: Iterable[Drawn]) -> list[Finding]:
    """Masks of different people that are equal voxel by voxel."""
    same = defaultdict(list)
    for label in labels:
        same[label.digest].append(label)
    return [
        Finding(
            check="same_mask",
            severity="error",
            case=group[0].case,
            sequence=LABEL,
            files=tuple(label.path for label in group),
            found=f"the same mask of {group[0].voxels} voxels for {', '.join(label.case for label in group)}",
            expected="a mask of its own for every person",
            remedy="find out whose it is, and bring the others' own masks",
        )
        for group in same.values()
        if len({label.person for label in group}) > 1
    ]


def look_at_scheme(cohort: Cohort) -> list[Finding]:
    """Whether the values of the classes are 1, 2, 3, …"""
    values = sorted(cohort.labels.values())
    files = tuple(case.label for case in cohort.labelled if case.label)
    if not files or values == list(range(1, len(values) + 1)):
        return []
    change = [[old, new] for new, old in enumerate(values, start=1)]
    return [
        Finding(
            check="label_gaps",
            severity="note",
            sequence=LABEL,
            files=files,
            found="classes " + ", ".join(f"{name} = {value}" for name, value in cohort.labels.items()),
            expected="values 1, 2, 3, … without a gap",
            remedy="nothing for oligovox, which goes by names; --fix renumbers them, as other tools want it",
            repair="labels",
            numbers={"map": change},
        )
    ]


def _on_a_grid(case: Case, mask: Scan, images: Mapping[str, Scan]) -> list[Finding]:
    """A mask must lie on the grid of one of its images."""
    if not images or any(same_grid(mask.volume, image.volume) for image in images.values()):
        return []
    usable = {key: image for key, image in images.items() if is_placed(image)}
    alike = [image for image in (usable or images).values() if image.box == mask.box]
    apart = {image.key: corner_distance(mask.affine, image.affine, mask.box) for image in alike}
    image = min(alike, key=lambda one: apart[one.key]) if alike else _most_alike(mask, usable or images)
    sizes = f"{' × '.join(map(str, mask.box))} voxels against {' × '.join(map(str, image.box))} of {image.key}"
    found = f"on the grid of no image: {sizes}" + (f", {apart[image.key]:.3g} mm apart" if alike else "")
    turned = _turned(mask, image)
    repair, todo, numbers = _back_onto(mask, image, apart.get(image.key), bool(turned))
    expected = "the grid of one of its images"
    return [about(case, mask, "mask_grid", "error", found + turned, expected, todo, repair, **numbers)]


def _turned(mask: Scan, image: Scan) -> str:
    """How the axes of the two run, where both headers say so and it is not the same; else ''."""
    ways = [orientation_of(scan.affine) for scan in (mask, image)]
    if ways[0] == ways[1] or not (any(mask.codes) and any(image.codes)):
        return ""
    return f"; its axes run {ways[0]}, those of {image.key} {ways[1]}"


def _back_onto(mask: Scan, image: Scan, apart: float | None, turned: bool) -> tuple[Repair | None, str, dict[str, Any]]:
    """How a mask comes onto an image: repair, what to do, numbers.

    The image's header goes only over a header that runs the same way, or says nothing: else left might become right.
    """
    if not is_placed(image):
        return None, f"mend the header of {image.key} first: it does not say where the image lies", {}
    by_place = _share_in_subject(mask, image) if is_placed(mask) else 0.0
    numbers: dict[str, Any] = {"in_subject_by_its_header": by_place}
    if apart is not None:
        by_voxel = _share_by_voxel(mask, image)
        numbers |= {"in_subject_by_voxel": by_voxel, "apart_mm": apart}
        if apart <= SAME_MM or (by_voxel >= _FITS and by_place < by_voxel - 0.1 and not turned):
            todo = f"--fix gives it the header of {image.key}: voxel by voxel it lies on the subject"
            return "header", todo, numbers | {"affine": image.affine.tolist()}
    if by_place >= _FITS:
        todo = f"--fix resamples it (nearest) onto {image.key}, where its own header puts it"
        return "grid", todo, numbers | {"onto": str(image.path)}
    if not is_placed(mask):
        why = "its own says nothing that can be used"
    else:
        why = "with that of the image it might be mirrored" if turned else "as it is, it misses the subject"
    return None, f"draw it on one of the images, or find the header it was drawn on: {why}", numbers


def _most_alike(mask: Scan, images: Mapping[str, Scan]) -> Scan:
    """The image whose voxels are most like the mask's in size; of equals the first."""
    sizes = np.array(spacing_of(mask.affine))
    return min(images.values(), key=lambda image: float(np.abs(np.array(spacing_of(image.affine)) - sizes).sum()))


def _share_in_subject(mask: Scan, image: Scan) -> float:
    """Share of the mask (all of it where it is empty) that lies on the subject when headers are believed."""
    subject = (resample_to(_as_volume(_subject(image), image), mask.affine, mask.box, 0)).array > 0
    return _share(mask, subject & inside(image.volume, mask.affine, mask.box))


def _share_by_voxel(mask: Scan, image: Scan) -> float:
    return _share(mask, _subject(image))


def _share(mask: Scan, subject: np.ndarray) -> float:
    assert mask.voxels is not None
    marked = mask.voxels > 0
    if not marked.any():
        return float(subject.any())
    return float(subject[marked].mean())


def _as_volume(array: np.ndarray, scan: Scan) -> Any:
    return type(scan.volume)(array.astype(np.uint8), scan.affine)


def _subject(image: Scan) -> np.ndarray:
    """Voxels that are not air, filled; of images of the brain alone, the brain."""
    assert image.voxels is not None
    values = np.nan_to_num(image.voxels, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(np.percentile(values, 99))
    return np.asarray(ndimage.binary_fill_holes(values > low + _AIR * (high - low)), dtype=bool)


def _values(case: Case, mask: Scan, scheme: Mapping[str, int]) -> list[Finding]:
    assert mask.voxels is not None
    found = np.unique(mask.voxels[np.isfinite(mask.voxels)])
    fractions = found[np.abs(found - np.rint(found)) > _WHOLE]
    expected = "0 = background, " + ", ".join(f"{value} = {name}" for name, value in scheme.items())
    if fractions.size:
        shown = ", ".join(f"{value:.3g}" for value in fractions[:5]) + (" …" if fractions.size > 5 else "")
        one = len(scheme) == 1 and found.min() >= -_WHOLE and found.max() <= 1 + _WHOLE and 1 in scheme.values()
        todo = "--fix takes 0.5 and more as lesion" if one else "resample the label again with nearest neighbour"
        more: dict[str, Any] = {"repair": "labels", "map": [[1, 1]]} if one else {}
        return [about(case, mask, "label_fractions", "error", f"values such as {shown}", expected, todo, **more)]
    known = {0, *scheme.values(), *([case.unlooked] if case.sparse else [])}
    values = {int(value) for value in np.rint(found)}
    if not (unknown := sorted(values - known)):
        return []
    change = _meant(values, scheme)
    numbers: dict[str, Any] = {"voxels": {str(v): int((np.abs(mask.voxels - v) < 0.5).sum()) for v in unknown[:20]}}
    if change:
        numbers["map"] = change
        todo = "--fix writes " + ", ".join(f"{new} for {old}" for old, new in change if old != new)
    else:
        todo = f"name every class (--labels NAME={unknown[0]}), or mend the label"
    shown = ", ".join(map(str, unknown[:8])) + (" …" if len(unknown) > 8 else "")
    repair: Repair | None = "labels" if change else None
    return [about(case, mask, "label_values", "error", f"has the values {shown}", expected, todo, repair, **numbers)]


def _meant(values: set[int], scheme: Mapping[str, int]) -> list[list[int]]:
    """Value → value of the scheme, where there is no doubt: one class under another number, and the 4 of BraTS to 2020 for its 3."""
    marked = sorted(values - {0})
    if len(scheme) == 1 and len(marked) == 1 and marked[0] > 0:
        return [[marked[0], next(iter(scheme.values()))]]
    if set(scheme.values()) == {1, 2, 3} and set(marked) <= {1, 2, 4} and "enhancing tumour" in scheme:
        return [[1, 1], [2, 2], [4, scheme["enhancing tumour"]]]
    return []


def _lesions(case: Case, mask: Scan, lesion: np.ndarray) -> list[Finding]:
    if not lesion.any():
        todo = "nothing where this person has no lesion; else bring the right mask"
        return [about(case, mask, "empty_label", "note", "no lesion in the mask", "a lesion, or a sure none", todo)]
    pieces, count = ndimage.label(lesion, np.ones((3, 3, 3), bool))
    sizes = np.bincount(pieces.ravel())[1:]
    voxel = float(np.prod(spacing_of(mask.affine)))
    tiny = int(((sizes == 1) | (sizes * voxel < TINY_MM3)).sum())
    if not tiny:
        return []
    found = f"{tiny} of {count} lesions have one voxel or less than {TINY_MM3:g} mm³"
    todo = "look whether they are meant: specks of a brush count as lesions in lesion-wise scores"
    return [about(case, mask, "tiny_lesions", "note", found, "lesions one can see", todo, tiny=tiny, lesions=count)]


def _outside(
    case: Case, mask: Scan, lesion: np.ndarray, images: Mapping[str, Scan], brain: Scan | None
) -> list[Finding]:
    """Lesion outside the brain mask, or outside the subject where there is no usable brain mask."""
    if not lesion.any():
        return []
    if brain is not None and brain.voxels is not None and brain.has_place and (brain.voxels >= 0.5).any():
        where, within = "the brain mask", resample_to(brain.volume, mask.affine, mask.box, 0).array >= 0.5
        within = ndimage.binary_dilation(within, iterations=max(1, round(_CLOSE_MM / min(spacing_of(mask.affine)))))
    else:
        on = [image for image in images.values() if same_grid(image.volume, mask.volume)]
        if not on:
            return []
        where, within = "the subject", np.logical_or.reduce([_subject(image) for image in on])
    share = float(1 - within[lesion].mean())
    if share <= OUTSIDE:
        return []
    found, expected = f"{share:.0%} of the lesion lies outside {where}", f"at most {OUTSIDE:.0%}"
    todo = "overlay it on the image: it may be shifted, mirrored or another person's"
    return [about(case, mask, "lesion_outside", "warning", found, expected, todo, share=share)]
