"""Tissues at 1.5, 3 and 7 T: the table with the source of every value, and one person's own values drawn around it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal, NamedTuple, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import NDArray

from oligovox.errors import SettingsError
from oligovox.simulate.physics.tissue_sources import SOURCES as SOURCES
from oligovox.simulate.physics.tissue_table import LINES

Value: TypeAlias = float | NDArray[np.float64]

TissueName: TypeAlias = Literal[
    "grey_matter", "limbic_grey_matter", "white_matter", "csf", "choroid_plexus",
    "caudate", "putamen", "pallidum", "thalamus", "red_nucleus", "substantia_nigra", "dentate",
    "venous_blood", "arterial_blood",
    "dirty_white_matter", "perivascular_space",
    "lesion_mild", "lesion_severe", "lesion_enhancing", "rim_weak", "rim_strong",
    "oedema", "enhancing_tumour", "solid_tumour", "necrosis", "resection_cavity", "blood_products",
    "bone", "marrow", "fat", "muscle", "skin", "mucosa", "vitreous", "lens", "air",
    "liver", "spleen", "kidney_cortex", "kidney_medulla", "bowel", "bile", "spinal_disc",
]  # fmt: skip

FIELDS = (1.5, 3.0, 7.0)
"""Field strengths of the table, T."""


@dataclass(frozen=True)
class Tissue:
    """What the signal equations need to know; values may be arrays of one shape.

    Attributes:
        pd: proton density relative to water, 0 to 1.
        t1: ms.
        t2: ms.
        t2s: ms; T2* within a voxel apart from what the field map itself does.
        chi: volume susceptibility, ppb, relative to CSF.
        uptake: gadolinium after a standard dose, mmol/L.
        fat: share of its protons that are fat, 0 to 1: these precess 3.4 ppm slower than water.
    """

    pd: Value
    t1: Value
    t2: Value
    t2s: Value
    chi: Value = 0.0
    uptake: Value = 0.0
    fat: Value = 0.0


QUANTITIES = tuple(f.name for f in fields(Tissue))
"""Names of the values of a tissue, in the order of its attributes."""


class Row(NamedTuple):
    """One value of the table: units as in `Tissue`, field in T, source a key of `SOURCES`."""

    tissue: TissueName
    quantity: str
    field: float
    value: float
    source: str


def _rows() -> tuple[Row, ...]:
    rows = []
    for tissue, quantity, values, keys in LINES:
        sources = keys.split()
        for at, strength in enumerate(FIELDS):
            value, source = values[at % len(values)], sources[at % len(sources)]
            rows.append(Row(cast(TissueName, tissue), quantity, strength, float(value), source))
    return tuple(rows)


TABLE = _rows()
"""Every value of every tissue; a quantity that a tissue has no row of (uptake, fat) is 0."""


def typical(name: TissueName, field: float) -> Tissue:
    """The tissue of a typical person of 40 years.

    Raises:
        SettingsError: the table does not have this field strength.
    """
    return _TYPICAL[known_field(field)][name]


def between(first: Tissue, second: Tissue, position: NDArray[np.float64]) -> Tissue:
    """The tissues at each position (0 = first, 1 = second; any shape) on the line between two."""
    return Tissue(
        **{f.name: getattr(first, f.name) * (1 - position) + getattr(second, f.name) * position for f in fields(Tissue)}
    )


def _typical() -> Mapping[float, Mapping[TissueName, Tissue]]:
    found: dict[float, dict[TissueName, dict[str, float]]] = {s: {} for s in FIELDS}
    for row in TABLE:
        found[row.field].setdefault(row.tissue, {})[row.quantity] = row.value
    return {s: {name: Tissue(**values) for name, values in tissues.items()} for s, tissues in found.items()}


_TYPICAL = _typical()


def known_field(field: float) -> float:
    """The field strength, if the table has it.

    Raises:
        SettingsError: it has not.
    """
    if field not in FIELDS:
        raise SettingsError(f"field strength {field} T is not in the tissue table; choose 1.5, 3 or 7 T")
    return float(field)


# Between people

_SPREAD = np.array([0.015, 0.04, 0.03, 0.05, 0.15, 0.25, 0.1])
"""Relative standard deviation of pd, t1, t2, t2s, chi, uptake, fat between people (chosen)."""

_RELATED: tuple[tuple[TissueName, ...], ...] = (
    ("white_matter", "dirty_white_matter", "lesion_mild", "lesion_severe", "lesion_enhancing", "rim_weak", "rim_strong"),
    ("grey_matter", "limbic_grey_matter", "caudate", "putamen", "pallidum", "thalamus", "red_nucleus", "substantia_nigra", "dentate"),
    ("csf", "perivascular_space", "vitreous"),
    ("venous_blood", "arterial_blood"),
    ("oedema", "enhancing_tumour", "solid_tumour"),
    ("necrosis", "resection_cavity"),
    ("marrow", "fat"),
    ("kidney_cortex", "kidney_medulla"),
)  # fmt: skip
"""Tissues that share their factors; every other tissue has its own."""

_IRON: Mapping[TissueName, tuple[float, float, float]] = {
    "pallidum": (21.41, 0.09, 0.37),
    "putamen": (14.62, 0.04, 0.46),
    "caudate": (9.66, 0.05, 0.33),
    "red_nucleus": (21.41, 0.09, 0.37),
    "substantia_nigra": (21.41, 0.09, 0.37),
    "dentate": (14.62, 0.04, 0.46),
}
"""a, b, c of the iron at an age in years, a (1 - exp(-b age)) + c in mg per 100 g: Hallgren and Sourander 1958 for the first three (from
memory); the others are given the shape of one of these (chosen), since only the shape is used."""

_R2S_PER_CHI = 1e-4
"""Iron that adds 1 ppb adds this to 1/T2* for each T, 1/ms: 0.27/s per mg/kg at 3 T (Langkammer et al. 2010, Radiology 257:455) over 0.9 ppb
per mg/kg (Langkammer et al. 2012, NeuroImage 62:1593), both slopes from memory."""


def draw_palette(rng: np.random.Generator, field: float, *, age: float = 40.0) -> dict[TissueName, Tissue]:
    """One person's tissues: each typical value times a factor that related tissues share; iron of deep nuclei grows with age.

    Args:
        rng: two people who differ in field strength or age only get the same factors from the same stream.
        field: 1.5, 3 or 7.
        age: years.

    Raises:
        SettingsError: the table does not have this field strength.

    Source: iron against age, Hallgren and Sourander 1958 (J Neurochem 3:41).
    """
    typicals = _TYPICAL[known_field(field)]
    alone = tuple((name,) for name in get_args(TissueName) if not any(name in group for group in _RELATED))
    palette = dict(typicals)
    for group in (*_RELATED, *alone):
        factors = 1 + _SPREAD * rng.standard_normal(len(_SPREAD)).clip(-2, 2)
        for name in group:
            palette[name] = _varied(name, typicals[name], factors, field, age)
    palette["air"] = typicals["air"]
    return palette


def _varied(name: TissueName, usual: Tissue, factors: NDArray[np.float64], field: float, age: float) -> Tissue:
    values = {q: float(getattr(usual, q) * f) for q, f in zip(QUANTITIES, factors, strict=True)}
    if name in _IRON:
        values["chi"] *= _iron(name, age) / _iron(name, 40.0)
        more = values["chi"] - float(usual.chi)
        values["t2s"] = 1 / (1 / values["t2s"] + _R2S_PER_CHI * field * more)
    values["t2s"] = min(values["t2s"], values["t2"])
    return Tissue(**values | {q: min(values[q], 1.0) for q in ("pd", "fat")})


def _iron(name: TissueName, age: float) -> float:
    a, b, c = _IRON[name]
    return a * (1 - math.exp(-b * age)) + c


# Contrast agent

_RELAXIVITY = {1.5: (4.78, 6.1), 3.0: (4.97, 7.1), 7.0: (3.83, 8.5)}
"""r1, r2 of gadobutrol in blood plasma at 37 °C, L/mmol/s."""


def with_gadolinium(tissue: Tissue, dose: float, field: float) -> Tissue:
    """The tissue some minutes after `dose` standard doses (0.1 mmol/kg): rates grow by relaxivity times concentration.

    Source: gadobutrol in human plasma at 37 °C: r1, Szomolanyi et al. 2019 (Invest Radiol 54:559; abstract); r2 at 1.5 and 3 T, Rohrer
    et al. 2005 (Invest Radiol 40:715; from memory). r2 at 7 T is chosen, on the trend.

    Raises:
        SettingsError: there is no relaxivity for this field strength.
    """
    if dose == 0:
        return tissue
    r1, r2 = _RELAXIVITY[known_field(field)]
    more = tissue.uptake * (dose / 1000)
    return replace(
        tissue,
        t1=1 / (1 / tissue.t1 + r1 * more),
        t2=1 / (1 / tissue.t2 + r2 * more),
        t2s=1 / (1 / tissue.t2s + r2 * more),
    )
