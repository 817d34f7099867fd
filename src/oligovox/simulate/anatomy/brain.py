"""A person's brain: fractions of grey matter, white matter and CSF in each voxel, its nuclei and its veins.

The average brain is deformed, then each person draws anew where grey matter ends and white matter and CSF begin, and gets sulci of its own.
The cortex is a ribbon as thick as the person's is, so that a thinner cortex makes wider sulci and more white matter.

There is a brain in a thin envelope of CSF and nothing else: no skull, no scalp, no eyes, as after perfect skull stripping.

With age and with `atrophy` ventricles and sulci widen and the cortex thins. Chosen by what healthy adults have: ventricles of 16 mL in the
twenties and 25 mL in the forties (Neurosci Lett 2006, 395:155); lateral ventricles 23 ± 12 mL, brain 1100 ± 113 mL in a skull of 1443 mL,
at 48 ± 17 years (PMC10511609, Table 1). The numbers were read in abstract and table, not in the whole papers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.simulate.anatomy.cortex import draw_folds
from oligovox.simulate.anatomy.deformation import deformation
from oligovox.simulate.anatomy.template import Template, template
from oligovox.simulate.anatomy.tubes import THICK
from oligovox.simulate.anatomy.veins import Vein, draw_veins, rasterise
from oligovox.simulate.fields import Volume, smooth_field, smoothstep
from oligovox.simulate.physics.scene import Part, Parts, paint
from oligovox.simulate.physics.tissues import TissueName

__all__ = ["Anatomy", "Template", "Vein", "draw_anatomy", "template"]

_OUTSIDE = 60.0  # a distance where there is no brain, mm
_SHARP = 4.0  # log odds per half contrast at 1 mm; a border is then about a voxel wide
_UNEVEN = (
    0.45,
    5.0,
)  # how much and over how many mm the borders of white matter differ from the average, in half contrasts
_THICKNESS = (2.7, 0.15)  # of the cortex at 40 years: mean and standard deviation, mm
_THINNING = (0.006, 0.4)  # mm per year, mm at atrophy 1
_DEEPER = 0.4  # how much more likely CSF is per mm deeper than the cortex is thick, in half contrasts
_SULCUS = (0.25, 0.3, 0.3)  # half the width of a new sulcus: at 20 years, more of it at 80 years, at atrophy 1; mm
_NARROW = 0.3  # half contrasts per mm of voxel size beyond 1 mm
_RIBBON = 0.5  # part of a voxel of cortex that is grey matter, at least
_PER_MM = 0.8  # half contrasts per mm at the borders of new folds
_LIMBIC = (0.2, 1.0)  # how bright the limbic lobe of a person is, of the most it can be
_PLEXUS = (-1.2, 0.0)  # of a unit field: where the choroid plexus begins, where it is dense
_WIDENING = (-3.8, 2.5)  # push on the ventricles at 20 years: mean and standard deviation, mm
_WIDER = (14.0, 5.5)  # more of it at 80 years; at atrophy 1, mm
_SULCI = (0.10, 0.12)  # how much more fluid there is at 80 years; at atrophy 1, in half contrasts


@dataclass(frozen=True)
class Anatomy:
    """One person's brain; all maps (x, y, z), float32.

    Attributes:
        gm, wm, csf: fractions, 0 to 1; their sum is 1 in the brain and 0 outside.
        brain: what skull stripping left: brain and an uneven layer of CSF.
        to_ventricle: distance to the lateral ventricles, mm.
        to_cortex: distance to cortical grey matter, not to the nuclei, mm.
        deep: the region of the basal ganglia and the thalamus, 0 or 1 (soft at its border).
        below: 1 below the tentorium (brain stem and cerebellum), 0 above.
        limbic: part of the grey matter that is as bright on FLAIR as limbic cortex can be.
        plexus: part of the fluid that is choroid plexus.
        nuclei: deep nucleus → fraction of each voxel; they are part of `gm`.
        vessels: fraction of each voxel that is venous blood.
        veins: the same veins as lines.
        affine: voxel → RAS mm.
        spacing: voxel size, mm.
    """

    gm: Volume
    wm: Volume
    csf: Volume
    brain: NDArray[np.bool_]
    to_ventricle: Volume
    to_cortex: Volume
    deep: Volume
    below: Volume
    limbic: Volume
    plexus: Volume
    nuclei: Mapping[TissueName, Volume]
    vessels: Volume
    veins: tuple[Vein, ...]
    affine: NDArray[np.float64]
    spacing: float

    def parts(self) -> Parts:
        """The brain as parts to paint on: white matter, grey matter without its nuclei (limbic and other), CSF and choroid plexus, nuclei, venous blood."""
        cortex = self.gm - np.sum(list(self.nuclei.values()), axis=0, dtype=np.float32) if self.nuclei else self.gm
        cortex = np.maximum(cortex, 0)
        plain = (
            Part("white_matter", self.wm),
            Part("grey_matter", cortex * (1 - self.limbic)),
            Part("limbic_grey_matter", cortex * self.limbic),
            Part("csf", self.csf * (1 - self.plexus)),
            Part("choroid_plexus", self.csf * self.plexus),
        )
        nuclei = tuple(Part(name, fraction) for name, fraction in self.nuclei.items())
        return paint((*plain, *nuclei), Part("venous_blood", self.vessels))

    def displaced(self, where: Volume) -> Anatomy:
        """The brain moved: each voxel takes what was at `where` (3, x, y, z), in voxels; vessels move with it, `veins` are dropped."""
        maps = ("gm", "wm", "csf", "deep", "below", "limbic", "plexus", "vessels", "to_ventricle", "to_cortex")
        moved: dict[str, Any] = {f: _pull(getattr(self, f), where) for f in maps}
        nuclei = {name: _pull(fraction, where) for name, fraction in self.nuclei.items()}
        brain = _pull(self.brain.astype(np.float32), where) > 0.5
        return replace(self, **moved, nuclei=nuclei, brain=brain, veins=())


def draw_anatomy(rng: np.random.Generator, average: Template, *, age: float = 40.0, atrophy: float = 0.0) -> Anatomy:
    """A new person: the average deformed, its borders drawn anew, its nuclei and veins.

    Args:
        rng: the only source of chance.
        average: the average brain, with the margin the maps are to have.
        age: years; 20 to 85.
        atrophy: loss of tissue beyond that of age, 0 (none) to 1 (severe).
    """
    shape, spacing = average.white.shape, average.spacing
    elder = (np.clip(age, 20, 85) - 20) / 60
    widening = rng.normal(*_WIDENING) + _WIDER[0] * elder + _WIDER[1] * atrophy
    shaped = deformation(rng, shape, spacing, average.push, widening)
    cover = _pull(average.cover, shaped.where)
    uneven = 0.9 + 0.25 * smooth_field(rng, shape, spacing, 7.0)  # how much CSF skull stripping left
    brain = cover > uneven.clip(0.3, 0.99)
    inside = np.nonzero(brain)
    at = np.stack([component[inside] for component in shaped.where])
    here = {name: _read(getattr(average, name), at) for name in ("below", "deep", "limbic", "to_ventricle")}
    gm, wm, csf = _tissues(rng, average, at, here, inside, shaped.scale, age=age, atrophy=atrophy)
    nuclei = _nuclei(average, at)
    room = np.clip(1 - np.sum(list(nuclei.values()), axis=0, dtype=np.float32), 0, 1)

    def fill(values: Volume, outside: float = 0.0) -> Volume:
        volume = np.full(shape, outside, dtype=np.float32)
        volume[inside] = values
        return volume

    white, fluid = fill(wm * room), fill(csf * room)
    to_ventricle = fill(shaped.scale * here["to_ventricle"], _OUTSIDE)
    deep = fill(here["deep"])
    cortex = (fill(gm * room) > _RIBBON) & (deep < 0.5)
    veins = draw_veins(rng, white, fluid, to_ventricle, cover, spacing, lambda mm: shaped.carry(average.voxel(mm)))
    person = Anatomy(
        gm=fill(gm * room + (1 - room)),
        wm=white,
        csf=fluid,
        brain=brain,
        to_ventricle=to_ventricle,
        to_cortex=np.asarray(spacing * ndimage.distance_transform_edt(~cortex), dtype=np.float32),
        deep=deep,
        below=fill(here["below"]),
        limbic=fill(np.float32(rng.uniform(*_LIMBIC)) * here["limbic"]),
        nuclei={name: fill(values) for name, values in nuclei.items()},
        plexus=fill(_read(average.plexus, at)) * smoothstep(smooth_field(rng, shape, spacing, 3.0), *_PLEXUS),
        vessels=rasterise(veins, shape, spacing) * brain,
        veins=veins,
        affine=average.affine,
        spacing=spacing,
    )
    return _padded(person, average.pad) if any(map(any, average.pad)) else person


def _tissues(
    rng: np.random.Generator,
    average: Template,
    at: Volume,
    here: Mapping[str, Volume],
    inside: tuple[NDArray[np.intp], ...],
    scale: float,
    *,
    age: float,
    atrophy: float,
) -> tuple[Volume, Volume, Volume]:
    """Fractions of cortex, white matter and CSF at template coordinates `at` (3, n), where `here` has other maps; each (n,)."""
    shape, spacing = average.white.shape, average.spacing
    elder = (np.clip(age, 20, 85) - 20) / 60
    thickness = rng.normal(*_THICKNESS) - _THINNING[0] * (age - 40) - _THINNING[1] * atrophy
    amount, size = _UNEVEN
    uneven = [smooth_field(rng, shape, spacing, size)[inside] for _ in range(2)]
    below = here["below"]
    cerebrum = 1 - below
    white, fluid = _read(average.white, at), _read(average.fluid, at)
    for level, field, share in ((white, uneven[0], 1.0), (fluid, uneven[1], 0.6)):  # no islands far from the borders
        level += np.float32(share * amount) * field * (1 - 0.5 * below) * (1 - smoothstep(np.abs(level), 0.5, 1.0))
    deeper = np.clip(scale * _read(average.beneath, at) - thickness, -1.5, 1.5)
    away = smoothstep(here["to_ventricle"], 2.0, 6.0)
    fluid += (_DEEPER * deeper * cerebrum + _SULCI[0] * elder + _SULCI[1] * atrophy) * away
    outside = np.ones(shape, dtype=np.bool_)
    outside[inside] = fluid > _NARROW * (1 - spacing)  # a voxel that holds a narrow sulcus is not fluid by half
    sulcus, surface = (distance[inside] for distance in draw_folds(rng, outside, spacing))
    free = cerebrum * away * (1 - here["deep"]) * (here["limbic"] < THICK)
    width = _SULCUS[0] + _SULCUS[1] * elder + _SULCUS[2] * atrophy
    fluid += free * np.maximum(_PER_MM * (width - sulcus) - fluid, 0)
    ribbon = _PER_MM * (np.minimum(surface, 6) - thickness)
    white += free * (ribbon - white)
    sharp = np.float32(_SHARP / np.sqrt(spacing))
    odds = [np.exp(_read(average.grey, at)), np.exp(sharp * white), np.exp(sharp * fluid)]
    total = odds[0] + odds[1] + odds[2]
    gm, wm, csf = (np.asarray(o / total, dtype=np.float32) for o in odds)
    return gm, wm, csf


def _nuclei(average: Template, at: Volume) -> dict[TissueName, Volume]:
    """Fractions of the deep nuclei at template coordinates `at` (3, n); each (n,)."""
    low = np.array([s.start for s in average.nuclei_box], dtype=np.float32)[:, None]
    count = np.array([s.stop - s.start for s in average.nuclei_box], dtype=np.float32)[:, None]
    local = at - low
    hit = np.flatnonzero(((local >= 0) & (local < count - 1)).all(axis=0))
    values = {}
    for name, volume in average.nuclei.items():
        values[name] = np.zeros(at.shape[1], dtype=np.float32)
        values[name][hit] = ndimage.map_coordinates(volume, local[:, hit], order=1, output=np.float32)
    return values


def _padded(person: Anatomy, pad: tuple[tuple[int, int], ...]) -> Anatomy:
    """The same person with empty space around."""
    shape = tuple(n + before + after for n, (before, after) in zip(person.brain.shape, pad, strict=True))
    first = np.array([before for before, _ in pad])
    box = tuple(slice(f, f + n) for f, n in zip(first, person.brain.shape, strict=True))

    def wide(volume: NDArray[Any], outside: float = 0.0) -> NDArray[Any]:
        result = np.full(shape, outside, volume.dtype) if outside else np.zeros(shape, volume.dtype)
        result[box] = volume
        return result

    plain = ("gm", "wm", "csf", "brain", "deep", "below", "limbic", "plexus", "vessels")
    maps: dict[str, Any] = {f: wide(getattr(person, f)) for f in plain}
    maps |= {f: wide(getattr(person, f), _OUTSIDE) for f in ("to_ventricle", "to_cortex")}
    affine = person.affine.copy()
    affine[:3, 3] -= first * person.spacing
    return replace(
        person,
        **maps,
        nuclei={name: wide(fraction) for name, fraction in person.nuclei.items()},
        veins=tuple(replace(vein, points=vein.points + first.astype(np.float32)) for vein in person.veins),
        affine=affine,
    )


def _pull(volume: Volume, where: Volume) -> Volume:
    return np.asarray(ndimage.map_coordinates(volume, where, order=1, output=np.float32))


def _read(volume: Volume, at: Volume) -> Volume:
    """A template map at the coordinates `at` (3, n)."""
    return np.asarray(ndimage.map_coordinates(volume, at, order=1, output=np.float32, mode="nearest"))
