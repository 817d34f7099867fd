"""Who is in the cohort twice: the same voxels under two names, the same head under two names, and either across training and test.

| check | severity | what was found |
| --- | --- | --- |
| duplicate_image | error | the same voxels for two people or two sequences; a warning for two visits of one person |
| same_person | warning | two names, one head: the images are too alike for two people; a likeness is no proof, across training and test neither |
| train_test | error | the same voxels, or one person's visits, with one in training and one in test |
| missing_sequence | note | sequences that others have |

Four marks are kept of an image. `digest` is of its voxels in the order of the file. `profile` hardly changes with axis order, flips, type or
scale: quantiles of what is not air, scaled to their spread. `whole` is the volume as 24³ means, without its smooth part; with `profile` it tells
copies. `small` is the same of the box around what is not air; its correlation between images of the same kind tells people apart.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from scipy import ndimage

from oligovox.cohort.manifest import Case, Cohort
from oligovox.cohort.splits import Split
from oligovox.doctor.finding import Finding, Severity
from oligovox.doctor.scan import Scan, readable

ALIKE = 0.92
"""Correlation of two `small` from which on they are said to show one head."""

_SIDE = 24
_SMOOTH = _SIDE / 8  # sd in voxels of the part that all heads share
_AIR = 0.1  # share of the brightest, below which a voxel is air
_QUANTILES = np.linspace(0.01, 0.99, 50)
_SAME_PROFILE = 0.08  # of the spread: what rounding to 255 steps may change
_SAME_WHOLE = 0.9995
_BLOCK = 512

Likeness = Literal["copy", "head"]
Part = Literal["train", "test", ""]


@dataclass(frozen=True, eq=False, kw_only=True)
class Trait:
    """What is kept of one image.

    Attributes:
        case, person, sequence, path: whose it is, and which.
        size: voxels along the axes, sorted.
        digest: SHA-256 of shape and voxels, in the order of the file.
        profile: (50,) quantiles of what is not air, less the median, over the spread between quartiles.
        whole, small: (24, 24, 24) in RAS, mean 0, norm 1; float32.
    """

    case: str
    person: str
    sequence: str
    path: Path
    size: tuple[int, ...]
    digest: str
    profile: np.ndarray
    whole: np.ndarray
    small: np.ndarray


def traits_of(case: Case, scans: Mapping[str, Scan]) -> list[Trait]:
    """Of every image of a case that can be read and is not of one value."""
    return [trait for scan in readable(case, scans).values() if (trait := _trait(case, scan)) is not None]


def _trait(case: Case, scan: Scan) -> Trait | None:
    assert scan.voxels is not None
    digest = hashlib.sha256(repr(scan.shape).encode())
    digest.update(scan.voxels.tobytes())
    values = np.nan_to_num(scan.voxels, nan=0.0, posinf=0.0, neginf=0.0)
    values = nib.apply_orientation(values, nib.io_orientation(scan.affine))
    values = values - values.min()
    mask = values > _AIR * np.percentile(values, 99)
    if not mask.any():
        return None
    found = np.quantile(values[mask], _QUANTILES)
    spread = float(np.interp(0.75, _QUANTILES, found) - np.interp(0.25, _QUANTILES, found))
    whole, small = _small(values), _small(values[_box(mask)])
    if spread <= 0 or whole is None or small is None:
        return None
    return Trait(
        case=case.name,
        person=case.person,
        sequence=scan.key,
        path=scan.path,
        size=tuple(sorted(scan.box)),
        digest=digest.hexdigest(),
        profile=((found - np.interp(0.5, _QUANTILES, found)) / spread).astype(np.float32),
        whole=whole,
        small=small,
    )


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """Around the mask, without layers that hold hardly anything of it (specks of noise in the air)."""
    box = []
    for axis in range(3):
        counts = mask.sum(axis=tuple(other for other in range(3) if other != axis))
        held = np.flatnonzero(counts > 0.01 * counts.max())
        box.append(slice(int(held[0]), int(held[-1]) + 1))
    return tuple(box)


def _small(array: np.ndarray) -> np.ndarray | None:
    """Means over 24³ equal boxes, less their blur; None where nothing is left."""
    for _ in range(3):  # each turn works on the first axis and puts it last
        array = np.moveaxis(np.tensordot(_averaging(array.shape[0]), array, axes=(1, 0)), 0, -1)
    array = array - ndimage.gaussian_filter(array, _SMOOTH)
    array = array - array.mean()
    norm = float(np.linalg.norm(array))
    return (array / norm).astype(np.float32) if norm > 0 else None


def _averaging(size: int) -> np.ndarray:
    """(24, size): the share of each voxel in each of 24 equal parts of an axis; rows sum to 1."""
    edges = np.linspace(0, size, _SIDE + 1)
    low, high = edges[:-1, None], edges[1:, None]
    voxels = np.arange(size)[None]
    shared = np.clip(np.minimum(high, voxels + 1) - np.maximum(low, voxels), 0, None)
    return np.asarray(shared / (high - low), dtype=np.float32)


def look_at_people(traits: Sequence[Trait], cohort: Cohort, split: Split | None = None) -> list[Finding]:
    """Who is there twice, and who lacks what.

    Args:
        traits: of all images of the cohort.
        cohort: who there is.
        split: who trains and who is tested; None: as the folder says (imagesTr and imagesTs, the part of a datalist), if it does.
    """
    parts = {case.name: part_of(case, split) for case in cohort.cases}
    return [*_twice(traits, parts), *_visits_apart(cohort, parts), *_missing(cohort)]


def part_of(case: Case, split: Split | None) -> Part:
    """'train' or 'test' by the split, else by what the folder says; '' where nobody says. Validation counts as test."""
    if split:
        return (
            "train" if case.person in split.train else "test" if case.person in (*split.test, *split.validation) else ""
        )
    if case.info.get("part") in ("test", "validation"):
        return "test"
    folders = {path.parent.name for path in case.images.values()}
    return "test" if "imagesTs" in folders else "train" if "imagesTr" in folders else ""


def _twice(traits: Sequence[Trait], parts: Mapping[str, Part]) -> list[Finding]:
    """One finding for each pair of cases, with all the images that they share."""
    pairs: dict[tuple[str, str], list[tuple[Likeness, float, Trait, Trait]]] = defaultdict(list)
    for kind, value, one, other in [*_copies(traits), *_heads(traits)]:
        first, second = sorted((one, other), key=lambda trait: trait.case)
        pairs[first.case, second.case].append((kind, value, first, second))
    findings = []
    for (case, other_case), shared in sorted(pairs.items()):
        copies = [pair for pair in shared if pair[0] == "copy"]
        _, _, first, second = (copies or shared)[0]
        if not copies and first.person == second.person:
            continue  # two visits are meant to be alike
        findings.append(_pair(copies or shared, bool(copies), {parts[case], parts[other_case]} == {"train", "test"}))
    return findings


def _pair(shared: Sequence[tuple[Likeness, float, Trait, Trait]], copies: bool, apart: bool) -> Finding:
    _, _, first, second = shared[0]
    names = sorted(
        {
            one.sequence if one.sequence == other.sequence else f"{one.sequence} and {other.sequence}"
            for _, _, one, other in shared
        }
    )
    value = max(value for _, value, _, _ in shared)
    who = first.case if first.case == second.case else f"{first.case} and {second.case}"
    what = "the same voxels" if copies else f"one head by its anatomy (correlation {value:.3f})"
    found = f"{who}: {what} ({', '.join(names)})" + (", one in training and one in test" if apart else "")
    check = "same_person" if not copies else "train_test" if apart else "duplicate_image"
    severity: Severity = "error" if copies else "warning"
    if first.case == second.case:
        expected, todo = "an image of its own for every sequence", "bring the right file for one of the two"
    elif first.person == second.person:
        expected, todo = "an image of its own for every visit", "bring the right file for one of the two"
        severity = "error" if apart else "warning"
    else:
        expected = "every person under one name" + (", in one part" if apart else "")
        todo = "leave one of the two out, or give both the same subject name, so that a split keeps them together"
        todo = todo if copies else f"look at both; if it is one person, {todo}"
    files = [path for _, _, one, other in shared for path in (one.path, other.path)]
    return Finding(
        check=check,
        severity=severity,
        case=first.case,
        sequence=names[0] if len(names) == 1 else "",
        files=tuple(dict.fromkeys(files)),
        found=found,
        expected=expected,
        remedy=todo,
        numbers={"correlation": value, "cases": [first.case, second.case]},
    )


def _copies(traits: Sequence[Trait]) -> list[tuple[Likeness, float, Trait, Trait]]:
    """Pairs with the same voxels, in whatever order, type and scale."""
    found: list[tuple[Likeness, float, Trait, Trait]] = []
    by_size = defaultdict(list)
    for trait in traits:
        by_size[trait.size].append(trait)
    for group in by_size.values():
        profiles = np.stack([trait.profile for trait in group])
        for index, one in enumerate(group):
            near = np.abs(profiles[index + 1 :] - profiles[index]).max(axis=1) <= _SAME_PROFILE
            for offset in np.flatnonzero(near):
                other = group[index + 1 + int(offset)]
                value = 1.0 if one.digest == other.digest else _best_turn(one.whole, other.whole)
                if value >= _SAME_WHOLE:
                    found.append(("copy", value, one, other))
    return found


def _best_turn(one: np.ndarray, other: np.ndarray) -> float:
    """Highest correlation over the 48 ways to turn and flip a cube."""
    best = -1.0
    for axes in permutations(range(3)):
        turned = other.transpose(axes)
        for flips in product((slice(None), slice(None, None, -1)), repeat=3):
            best = max(best, float(np.vdot(one, turned[flips])))
    return best


def _heads(traits: Sequence[Trait]) -> list[tuple[Likeness, float, Trait, Trait]]:
    """Pairs of different people whose images of one kind are as alike as two of one person."""
    found: list[tuple[Likeness, float, Trait, Trait]] = []
    for sequence in sorted({trait.sequence for trait in traits}):
        group = [trait for trait in traits if trait.sequence == sequence]
        vectors = np.stack([trait.small.ravel() for trait in group])
        for start in range(0, len(group), _BLOCK):
            alike = vectors[start : start + _BLOCK] @ vectors.T
            for row, column in np.argwhere(alike >= ALIKE):
                one, other = group[start + int(row)], group[int(column)]
                if start + row < column and one.person != other.person:
                    found.append(("head", float(alike[row, column]), one, other))
    return found


def _visits_apart(cohort: Cohort, parts: Mapping[str, Part]) -> list[Finding]:
    """People whose own visits are in training and in test."""
    visits = defaultdict(list)
    for case in cohort.cases:
        visits[case.person].append(case)
    return [
        Finding(
            check="train_test",
            severity="error",
            case=cases[0].name,
            files=tuple(next(iter(case.images.values())) for case in cases),
            found=f"visits of {person} are in training and in test: "
            + ", ".join(f"{case.name} ({parts[case.name]})" for case in cases if parts[case.name]),
            expected="all visits of a person in one part",
            remedy="move them together; a split by oligovox is drawn on people",
        )
        for person, cases in visits.items()
        if {"train", "test"} <= {parts[case.name] for case in cases}
    ]


def _missing(cohort: Cohort) -> list[Finding]:
    """Cases that lack a sequence which another has."""
    return [
        Finding(
            check="missing_sequence",
            severity="note",
            case=case.name,
            files=tuple(case.images.values()),
            found=(f"only {next(iter(case.images))}; " if len(case.images) == 1 else "")
            + f"without {', '.join(lacking)}",
            expected=f"{', '.join(cohort.modalities)}, as others have",
            remedy="nothing: it is trained on with what it has; bring the files where they exist",
        )
        for case in cohort.cases
        if (lacking := [name for name in cohort.modalities if name not in case.images])
    ]
