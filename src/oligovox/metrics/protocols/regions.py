"""Lesion-wise scores of tumour regions: the rule that the BraTS challenges of 2023 and 2024 share, with their choices as parameters.

1. A region is a set of labels. The region of the reference is dilated `dilation` times with the 18 neighbours; what one dilated
   component (26 neighbours) holds is one lesion. The prediction is cut the same way where `grow_prediction`, and its lesions of
   volume ≤ `min_volume_mm3` are deleted; else its lesions are its own components, and all of them stay.
2. Regions with `through` are joined once more, reference and prediction each for itself: lesions whose first neighbour (18) in
   another region is the same lesion become one; one region after the other, each time with the lesions as cut in step 1.
3. A predicted lesion that meets the dilated reference lesion is matched to it. Dice, HD95 and NSD compare the reference lesion
   with all that is matched to it. A predicted lesion may be matched to several; one matched to none is false.
4. Reference lesions of volume ≤ `min_volume_mm3` get no score, but what they match is not false.
5. A lesion-wise score is the sum over scored lesions / (scored lesions + false ones); a missed or false lesion adds Dice 0, NSD 0
   and the penalty as HD95.

| scored lesions, false ones | lesion-wise Dice, NSD | lesion-wise HD95 |
| --- | --- | --- |
| none | 1 | 0 |
| only false | 0 | penalty |
| only missed | 0 | penalty |

| whole region: prediction | reference | Dice, NSD | HD95 | sensitivity | specificity |
| --- | --- | --- | --- | --- | --- |
| empty | empty | 1 | 0 | 1 | 1 |
| empty | some | 0 | penalty | 0 | 1 |
| some | empty | 0 | penalty | 0 | correct share of the background, 0 without background |

HD95 weighs surface elements by area (`elements`); NSD counts surface voxels, and is the mean of the two directed shares. Volumes of
the prediction are those after the deletion of step 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from oligovox.errors import LabelError
from oligovox.metrics.lesions import centre_voxels, smallest_lesion
from oligovox.metrics.overlap import Box, Mask, bounding_box, same_grid, voxel_mm3
from oligovox.metrics.protocols.elements import Cloud, element_cloud, hd95_of_elements, nsd_of_voxels, voxel_cloud
from oligovox.metrics.protocols.pieces import Pieces, Shape, components, dilated, pieces, spread, touching
from oligovox.metrics.protocols.result import CaseResult, Row


@dataclass(frozen=True)
class Region:
    """One region of a track.

    Attributes:
        labels: values that make it up.
        dilation: how many times it is dilated.
        min_volume_mm3: a lesion counts where it is strictly larger.
        through: regions whose lesions join the lesions of this one, in this order.
        reported: False for a region that only joins others.
    """

    labels: tuple[int, ...]
    dilation: int
    min_volume_mm3: float
    through: tuple[str, ...] = ()
    reported: bool = True


@dataclass(frozen=True)
class Track:
    """One task of a challenge.

    Attributes:
        regions: name → region.
        penalty_mm: HD95 of a missed or false lesion; None: the diagonal of the grid in voxels.
        grow_prediction: the prediction is cut into lesions as the reference is, and small ones are deleted.
        count_false: false lesions lower the lesion-wise scores.
        tolerances_mm: of the NSD; without any it is not computed.
    """

    regions: Mapping[str, Region]
    penalty_mm: float | None
    grow_prediction: bool
    count_false: bool = True
    tolerances_mm: tuple[float, ...] = ()

    @property
    def labels(self) -> frozenset[int]:
        """Every value the track knows, background included."""
        return frozenset({0, *(label for region in self.regions.values() for label in region.labels)})


def nsd_name(tolerance_mm: float) -> str:
    """Name of the NSD at a tolerance: nsd_0.5mm."""
    return f"nsd_{tolerance_mm:g}mm"


def score_regions(
    prediction: NDArray[Any], truth: NDArray[Any], spacing_mm: Sequence[float], track: Track
) -> CaseResult:
    """Score two label maps (x, y, z) on one grid.

    Raises:
        GeometryError: the shapes differ, or the spacing is not three positive numbers.
        LabelError: a value above 0 that the track does not know.
    """
    predicted, true = same_grid(prediction, truth)
    box, grid = _grid(predicted | true, spacing_mm, track)
    sides = (
        _listed(truth, true, box, grid, "reference", track),
        _listed(prediction, predicted, box, grid, "prediction", track),
    )
    references = _cut_all(sides[0], track, grid, grow=True, delete=False)
    predictions = _cut_all(sides[1], track, grid, grow=track.grow_prediction, delete=track.grow_prediction)
    pairs = {
        name: _Pair(references[name], predictions[name], track, grid)
        for name, region in track.regions.items()
        if region.reported
    }
    return CaseResult(
        {name: pair.scores() for name, pair in pairs.items()},
        tuple(row for name, pair in pairs.items() for row in pair.rows(name)),
    )


@dataclass(frozen=True)
class _Grid:
    """The volume around what is not background, padded; its first voxel is `corner` of the case.

    Attributes:
        shape: of the padded volume.
        corner: (3,) voxel.
        spacing_mm: voxel sides.
        voxels: of the whole case.
        penalty_mm: HD95 of a missed or false lesion.
    """

    shape: Shape
    corner: NDArray[np.int64]
    spacing_mm: tuple[float, ...]
    voxels: int
    penalty_mm: float


@dataclass(frozen=True)
class _Labels:
    """What is not background in a label map: flat voxels of the grid, ascending, and their labels."""

    where: NDArray[np.int64]
    label: NDArray[Any]


@dataclass(frozen=True)
class _Cut:
    """One region of one label map.

    Attributes:
        lesions: after step 1, and after step 2 where they are joined.
        reach: the same numbers on the dilated lesions.
        smallest: voxels of the smallest lesion that counts.
    """

    lesions: Pieces
    reach: Pieces
    smallest: int

    @property
    def counted(self) -> Mask:
        """(n,) lesions large enough."""
        return self.lesions.voxels >= self.smallest

    def renumbered(self, numbers: NDArray[np.int64]) -> _Cut:
        """The same voxels with lesion i called numbers[i - 1]; 0 deletes it, equal numbers join."""
        return replace(self, lesions=self.lesions.renumbered(numbers), reach=self.reach.renumbered(numbers))


def _grid(mask: Mask, spacing_mm: Sequence[float], track: Track) -> tuple[Box, _Grid]:
    """Where the mask is, and the padded volume around it."""
    voxel_mm3(spacing_mm)
    box = bounding_box(mask)
    margin = 1 + max(region.dilation for region in track.regions.values())
    diagonal = math.sqrt(sum(side**2 for side in mask.shape))
    return box, _Grid(
        shape=tuple(side.stop - side.start + 2 * margin for side in box),
        corner=np.array([side.start for side in box]) - margin,
        spacing_mm=tuple(float(side) for side in spacing_mm),
        voxels=mask.size,
        penalty_mm=diagonal if track.penalty_mm is None else track.penalty_mm,
    )


def _listed(labels: NDArray[Any], mask: Mask, box: Box, grid: _Grid, side: str, track: Track) -> _Labels:
    """The labels of one map as a list, all of them known."""
    label = np.asarray(labels)[box][mask[box]]
    unknown = label[~np.isin(label, list(track.labels))]
    if unknown.size:
        raise LabelError(
            f"the {side} holds label {int(unknown.min())}; this track knows {', '.join(map(str, sorted(track.labels)))}: "
            "convert the labels, or choose another track"
        )
    inner = tuple(slice(s.start - corner, s.stop - corner) for s, corner in zip(box, grid.corner, strict=True))
    padded = np.zeros(grid.shape, dtype=np.bool_)
    padded[inner] = mask[box]
    return _Labels(np.flatnonzero(padded), label)


def _cut_all(labels: _Labels, track: Track, grid: _Grid, *, grow: bool, delete: bool) -> dict[str, _Cut]:
    """Every region of a label map: cut into lesions, small ones deleted if so, and joined."""
    cuts = {}
    for name, region in track.regions.items():
        where = labels.where[np.isin(labels.label, region.labels)]
        smallest = smallest_lesion(grid.spacing_mm, region.min_volume_mm3)
        cut = _cut(where, region.dilation, smallest, grid) if grow else _cut(where, dilation=0, smallest=1, grid=grid)
        cuts[name] = cut.renumbered(np.where(cut.counted, np.cumsum(cut.counted), 0)) if delete else cut
    return {name: _joined(cuts[name], [cuts[other] for other in track.regions[name].through], grid) for name in cuts}


def _cut(where: NDArray[np.int64], dilation: int, smallest: int, grid: _Grid) -> _Cut:
    """Lesions of a mask: what one component of the dilated mask holds."""
    around = dilated(where, grid.shape, dilation)
    number = components(around, grid.shape)
    n = int(number.max(initial=0))
    reach = pieces(around, number, n)
    return _Cut(pieces(where, spread(reach, grid.shape)[where], n) if dilation else reach, reach, smallest)


def _joined(cut: _Cut, others: Iterable[_Cut], grid: _Grid) -> _Cut:
    """Lesions whose first neighbour in another region is the same become one, one region after the other."""
    n = len(cut.lesions.voxels)
    group = np.arange(1, n + 1)
    for other in others:
        own, neighbour = touching(cut.lesions, other.lesions, grid.shape)
        first = len(other.lesions.voxels) + 1 + np.arange(n + 1)  # larger than any neighbour: alone
        np.minimum.at(first, group[own - 1], neighbour)
        group = np.unique(first[group], return_inverse=True)[1] + 1
    return cut if group.max(initial=0) == n else cut.renumbered(group)


@dataclass(frozen=True)
class _Pair:
    """One region of reference and prediction."""

    reference: _Cut
    predicted: _Cut
    track: Track
    grid: _Grid

    @cached_property
    def meeting(self) -> sparse.csr_array:
        """(n + 1, m + 1), an entry where predicted lesion j meets the dilated reference lesion i: their common voxels, undilated."""
        predicted, shape = self.predicted.lesions, self.grid.shape
        common = np.zeros(shape, dtype=np.bool_).ravel()
        common[self.reference.lesions.where] = True
        table = (
            common[predicted.where].astype(np.int64),
            (spread(self.reference.reach, shape)[predicted.where], predicted.number),
        )
        return sparse.csr_array(table, shape=(len(self.reference.lesions.voxels) + 1, len(predicted.voxels) + 1))

    @cached_property
    def matched(self) -> Mask:
        """(m,) predicted lesions that meet a reference lesion."""
        return np.bincount(self.meeting[1:].indices, minlength=self.meeting.shape[1])[1:] > 0

    @cached_property
    def elements(self) -> tuple[Cloud, Cloud]:
        """Surface elements of reference and prediction."""
        return self._clouds(element_cloud)

    @cached_property
    def shells(self) -> tuple[Cloud, Cloud]:
        """Surface voxels of reference and prediction."""
        return self._clouds(voxel_cloud)

    def _clouds(self, cloud: Callable[[Pieces, Shape, Sequence[float]], Cloud]) -> tuple[Cloud, Cloud]:
        shape, spacing_mm = self.grid.shape, self.grid.spacing_mm
        return cloud(self.reference.lesions, shape, spacing_mm), cloud(self.predicted.lesions, shape, spacing_mm)

    @cached_property
    def lesions(self) -> list[dict[str, float]]:
        """Dice, HD95 and NSD of each scored reference lesion; `matched` is 1 or 0."""
        return [self._lesion(int(i) + 1) for i in np.flatnonzero(self.reference.counted)]

    def _lesion(self, number: int) -> dict[str, float]:
        row = slice(self.meeting.indptr[number], self.meeting.indptr[number + 1])
        matched = self.meeting.indices[row]
        size = self.reference.lesions.voxels[number - 1] + self.predicted.lesions.voxels[matched - 1].sum()
        near = {"matched": float(len(matched) > 0), "dice": float(2 * self.meeting.data[row].sum() / size)}
        return near | self._surfaces([number], matched.tolist())

    def _surfaces(self, reference: Sequence[int], predicted: Sequence[int]) -> dict[str, float]:
        """HD95 and NSD between some lesions of the reference and some of the prediction."""
        tolerances = self.track.tolerances_mm
        if not reference or not predicted:
            same = not reference and not predicted
            return {"hd95_mm": 0.0 if same else self.grid.penalty_mm} | {nsd_name(t): float(same) for t in tolerances}
        near = {"hd95_mm": hd95_of_elements(self.elements[0].of(reference), self.elements[1].of(predicted))}
        if tolerances:
            nsd = nsd_of_voxels(self.shells[0].of(reference), self.shells[1].of(predicted), tolerances)
            near |= dict(zip(map(nsd_name, tolerances), nsd, strict=True))
        return near

    def scores(self) -> dict[str, float]:
        """The region's numbers."""
        false = int(np.count_nonzero(~self.matched))
        found = int(sum(lesion["matched"] for lesion in self.lesions))
        return {
            **{f"lesionwise_{name}": self._lesionwise(name, false) for name in self._names},
            "lesions_found": found,
            "lesions_missed": len(self.lesions) - found,
            "lesions_false": false,
            **self._whole(),
        }

    @property
    def _names(self) -> tuple[str, ...]:
        return "dice", "hd95_mm", *map(nsd_name, self.track.tolerances_mm)

    def _lesionwise(self, name: str, false: int) -> float:
        """Step 5 of the rule."""
        false = false if self.track.count_false else 0
        of_false, of_nothing = (self.grid.penalty_mm, 0.0) if name == "hd95_mm" else (0.0, 1.0)
        counted = len(self.lesions) + false
        return (sum(lesion[name] for lesion in self.lesions) + false * of_false) / counted if counted else of_nothing

    def _whole(self) -> dict[str, float]:
        """The region as one mask."""
        reference, predicted = (int(cut.lesions.voxels.sum()) for cut in (self.reference, self.predicted))
        common = int(self.meeting.data.sum())
        background = self.grid.voxels - reference
        unit_ml = voxel_mm3(self.grid.spacing_mm) / 1000
        everything = [list(range(1, len(cut.lesions.voxels) + 1)) for cut in (self.reference, self.predicted)]
        return {
            "dice": 2 * common / (reference + predicted) if reference + predicted else 1.0,
            **self._surfaces(*everything),
            "sensitivity": common / reference if reference else float(not predicted),
            "specificity": 1 - (predicted - common) / background if background else 0.0,
            "volume_ml": predicted * unit_ml,
            "reference_ml": reference * unit_ml,
        }

    def rows(self, region: str) -> list[Row]:
        """One row a lesion: scored ones of the reference, then all of the prediction."""
        counted = np.flatnonzero(self.reference.counted)
        found: list[Row] = []
        for number, (place, lesion) in enumerate(
            zip(self._places(self.reference, counted), self.lesions, strict=True), start=1
        ):
            outcome = "found" if lesion["matched"] else "missed"
            values = {name: lesion[name] for name in self._names}
            found.append(
                {"region": region, "side": "reference", "number": number, **place, "outcome": outcome, **values}
            )
        for number, place in enumerate(self._places(self.predicted, np.arange(len(self.matched))), start=1):
            outcome = "true" if self.matched[number - 1] else "false"
            found.append({"region": region, "side": "predicted", "number": number, **place, "outcome": outcome})
        return found

    def _places(self, cut: _Cut, which: NDArray[np.int64]) -> list[dict[str, float | int]]:
        """Volume and a voxel of each of these lesions (from 0)."""
        where = np.stack(np.unravel_index(cut.lesions.where, self.grid.shape), axis=1)
        centres = (
            centre_voxels(where, cut.lesions.number - 1, cut.lesions.voxels, self.grid.spacing_mm) + self.grid.corner
        )
        volumes = cut.lesions.voxels * voxel_mm3(self.grid.spacing_mm)
        return [{"volume_mm3": float(volumes[i])} | dict(zip("xyz", map(int, centres[i]), strict=True)) for i in which]
