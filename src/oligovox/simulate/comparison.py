"""Simulated people beside real ones: for each number the two ranges, for each distribution a distance with its yardstick.

Nothing here reads images: `realism` measured them. The yardstick of a distance is how far two groups of real people of the same
size are apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.simulate.anatomy.template import Template
from oligovox.simulate.pathology.lesion_statistics import lesion_statistics
from oligovox.simulate.realism import Mask, Row, Spacing

Verdict: TypeAlias = Literal["inside", "overlap", "apart"]

Histograms: TypeAlias = Mapping[str, Mapping[str, NDArray[np.float64]]]
"""Sequence → tissue → share of its voxels in each bin, of one person."""

SMALLEST_MM3 = 3.0
"""A component smaller than this is not counted as a lesion."""
_DRAWS = 200  # random groups behind a distance
_QUANTILES = np.linspace(
    0.025, 0.975, 20
)  # how a subject's distribution over voxels is kept: each person has equal weight


@dataclass(frozen=True)
class Compared:
    """One quantity in both groups.

    Attributes:
        sequence: name of the sequence.
        quantity: what was measured.
        real: one value a real person.
        simulated: one value a simulated person.
    """

    sequence: str
    quantity: str
    real: tuple[float, ...]
    simulated: tuple[float, ...]

    @property
    def verdict(self) -> Verdict | None:
        """ "inside": the simulated median lies in the range of the real values; "overlap": it does not, but the two ranges meet;
        "apart": they do not meet; None where one side has no value.
        """
        if not (self.real and self.simulated):
            return None
        low, high = min(self.real), max(self.real)
        if low <= float(np.median(self.simulated)) <= high:
            return "inside"
        return "overlap" if min(self.simulated) <= high and max(self.simulated) >= low else "apart"


def compare(simulated: Sequence[Sequence[Row]], real: Sequence[Sequence[Row]]) -> list[Compared]:
    """Put the rows of `contrast` of every person side by side, sequence by sequence; sequences of one side only are left out
    where the other side has people.
    """
    keys = list(dict.fromkeys((r.sequence, r.quantity) for person in (*real, *simulated) for r in person))
    table = []
    for sequence in dict.fromkeys(s for s, _ in keys):
        for key in (k for k in keys if k[0] == sequence):
            ours, theirs = _values(simulated, key), _values(real, key)
            if ours and (theirs or not real):
                table.append(Compared(*key, real=theirs, simulated=ours))
    return table


def _values(people: Sequence[Sequence[Row]], key: tuple[str, str]) -> tuple[float, ...]:
    return tuple(row.value for person in people for row in person if (row.sequence, row.quantity) == key)


@dataclass(frozen=True)
class LesionFacts:
    """The lesions of one person.

    Attributes:
        volumes_mm3: of each 26-connected lesion of at least 3 mm³, largest first.
        to_ventricle_mm: quantiles of the distance of the lesion voxels to the lateral ventricles of the average brain, scaled to
            the size of this one; empty without a brain mask.
        nearest_mm: the least of them in each lesion; empty without a brain mask.
        infratentorial: share of the lesion voxels below the tentorium; None without a brain mask.
    """

    volumes_mm3: tuple[float, ...]
    to_ventricle_mm: tuple[float, ...] = ()
    nearest_mm: tuple[float, ...] = ()
    infratentorial: float | None = None

    @property
    def count(self) -> int:
        """How many lesions."""
        return len(self.volumes_mm3)

    @property
    def load_ml(self) -> float:
        """Their volume together, mL."""
        return sum(self.volumes_mm3) / 1000

    @property
    def largest_share(self) -> float:
        """The largest lesion's part of the load; NaN without lesions."""
        return self.volumes_mm3[0] / sum(self.volumes_mm3) if self.volumes_mm3 else float("nan")


def lesion_facts(lesion: Mask, brain: Mask | None, spacing: Spacing, average: Template) -> LesionFacts:
    """Count, size and place of the lesions in a mask (x, y, z) = RAS; `average` is the average brain (`template.template`)."""
    volume = float(np.prod(spacing))
    parts, _ = ndimage.label(lesion, np.ones((3, 3, 3)))
    if not (np.bincount(parts.ravel())[1:] * volume >= SMALLEST_MM3).any():
        return LesionFacts(())
    found = lesion_statistics(lesion, np.ones_like(lesion) if brain is None else brain, volume ** (1 / 3), average)
    volumes = tuple(sorted(found.volumes_mm3.tolist(), reverse=True))
    if brain is None:
        return LesionFacts(volumes)
    spread = np.quantile(found.voxel_distance_mm, _QUANTILES)
    return LesionFacts(volumes, tuple(spread.tolist()), tuple(found.nearest_mm.tolist()), found.infratentorial)


class Distance(NamedTuple):
    """How far two distributions are apart (Kolmogorov–Smirnov, 0 to 1).

    Attributes:
        quantity: what is distributed.
        people: size of each group that was drawn.
        simulated: median distance of simulated groups from real ones.
        real: median distance of real groups from other real people.
        real_high: 95 % of the distances between real groups are at most this.
    """

    quantity: str
    people: int
    simulated: float
    real: float
    real_high: float


def _lns(person: LesionFacts) -> Sequence[float]:
    return [float(np.log(v)) for v in person.volumes_mm3]


DISTRIBUTIONS: dict[str, Callable[[LesionFacts], Sequence[float]]] = {
    "lesions a person": lambda person: [float(person.count)],
    "lesion load, mL": lambda person: [person.load_ml],
    "largest lesion / load": lambda person: [person.largest_share] if person.count else [],
    "ln lesion volume, mm³": _lns,
    "voxels to ventricles, mm": lambda person: person.to_ventricle_mm,
    "lesions to ventricles, mm": lambda person: person.nearest_mm,
    "share below the tentorium": lambda person: [] if person.infratentorial is None else [person.infratentorial],
}
"""Name of a distribution → the values that one person adds to it."""


def distances(
    rng: np.random.Generator, simulated: Sequence[LesionFacts], real: Sequence[LesionFacts]
) -> list[Distance]:
    """Simulated against real, and real against real, for each of `DISTRIBUTIONS`.

    Groups of equal size on both sides, drawn 200 times without replacement: a small group is far from any other by chance alone,
    and this is the same for both distances. Fewer than four real or two simulated people say nothing: no rows.
    """
    size = min(len(simulated), len(real) // 2)
    if size < 2:
        return []
    table = []
    for name, values in DISTRIBUTIONS.items():
        ours, theirs = [values(p) for p in simulated], [values(p) for p in real]
        between, within = [], []
        for _ in range(_DRAWS):
            chosen, order = rng.permutation(len(ours))[:size], rng.permutation(len(theirs))
            one, other = (
                np.concatenate([theirs[i] for i in order[part]]) for part in (slice(size), slice(size, 2 * size))
            )
            between.append(ks_distance(np.concatenate([ours[i] for i in chosen]), one))
            within.append(ks_distance(other, one))
        if np.isfinite([*between, *within]).all():
            table.append(
                Distance(
                    name, size, float(np.median(between)), float(np.median(within)), float(np.quantile(within, 0.95))
                )
            )
    return table


def ks_distance(one: Sequence[float] | NDArray[np.float64], other: Sequence[float] | NDArray[np.float64]) -> float:
    """The two-sample Kolmogorov–Smirnov distance: the largest difference of the two cumulative distributions, 0 to 1.

    NaN where a sample is empty.
    """
    a, b = np.sort(np.asarray(one, float)), np.sort(np.asarray(other, float))
    if not (a.size and b.size):
        return float("nan")
    at = np.concatenate([a, b])
    return float(np.abs(np.searchsorted(a, at, "right") / a.size - np.searchsorted(b, at, "right") / b.size).max())


class HistogramDistance(NamedTuple):
    """How far the histograms of one tissue are apart (`ks_distance`, up to the width of a bin), mean over pairs of people.

    Attributes:
        sequence: name of the sequence.
        tissue: name of the tissue or label.
        simulated: a simulated and a real person.
        real: two real people; None where there is one only.
    """

    sequence: str
    tissue: str
    simulated: float
    real: float | None


def histogram_distances(simulated: Sequence[Histograms], real: Sequence[Histograms]) -> list[HistogramDistance]:
    """Of every tissue in every sequence that both sides have."""
    table = []
    for sequence, tissue in dict.fromkeys((s, t) for person in real for s, by in person.items() for t in by):
        ours, theirs = (
            [np.cumsum(p[sequence][tissue]) for p in group if tissue in p.get(sequence, {})]
            for group in (simulated, real)
        )
        if ours:
            across = [float(np.abs(a - b).max()) for a in ours for b in theirs]
            among = [float(np.abs(a - b).max()) for a, b in combinations(theirs, 2)]
            table.append(
                HistogramDistance(sequence, tissue, float(np.mean(across)), float(np.mean(among)) if among else None)
            )
    return table


class Meaning(NamedTuple):
    """What a quantity is, and what else moves it than the scene that was simulated."""

    what: str
    beware: str


_MEANINGS: tuple[tuple[str, Meaning], ...] = (
    ("ring contrast", Meaning(
        "mean of the lesions minus mean of the brain 1 to 3 mm around them, in standard deviations of the brain",
        "the standard deviation of a brain depends on how much CSF its mask holds; the ring on how generously raters drew",
    )),
    ("noise", Meaning(
        "fine variation in eroded white matter, % of its median; an upper bound, texture counts",
        "resampling and denoising before release lower it",
    )),
    ("grain", Meaning(
        "correlation of neighbouring voxels in that fine variation; 0 for white noise",
        "every interpolation raises it, as do zero-filling and smoothing in the reconstruction",
    )),
    ("field", Meaning(
        "5 and 95 % of a quadratic field fitted to white matter",
        "released images are often bias-corrected, simulated ones are not",
    )),
    ("edge width", Meaning(
        "width of the blur half-way up the walls of the ventricles",
        "registration and interpolation widen edges; partial volume along slanted walls counts on both sides",
    )),
    ("core", Meaning(
        "voxels that are surely of this tissue, of all of the brain mask",
        "masks that hold more CSF make all shares smaller; blur and noise make cores smaller, thin cortex first",
    )),
    (", 10 %", Meaning("darkest tenth of the voxels", "raters who draw wide take normal tissue along")),
    (", 90 %", Meaning("brightest tenth of the voxels", "raters who draw wide take normal tissue along")),
    ("ring /", Meaning("median of the brain 1 to 3 mm around the lesions", "holds grey matter and CSF next to the ventricles")),
    ("sd", Meaning(
        "difference of the medians in standard deviations of white matter",
        "a bias field or texture widens white matter and lowers it",
    )),
    ("CSF /", Meaning("ratio of the medians", "CSF cores are few in young brains; partial volume brightens them on T1w")),
    ("GM /", Meaning("ratio of the medians", "cortex is as thin as the voxels are wide: partial volume with CSF moves it")),
    ("/", Meaning("ratio of the medians", "severity of the disease differs between the few real people")),
)  # fmt: skip
"""Part of a quantity's name → what it means; the first that fits."""


def meaning(quantity: str) -> Meaning:
    """What a quantity of `contrast` means."""
    return next((text for part, text in _MEANINGS if part in quantity), Meaning(quantity, ""))
