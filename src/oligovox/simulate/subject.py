"""One simulated person: anatomy, then pathology painted on it, then each sequence. A pure function of recipe, seed and visit.

Every room has a stream of chance of its own, known by name: another noise level keeps the brain and its lesions, and a second visit
leaves the first as it was.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oligovox.simulate.body import Body, Rng, Truth, draw_body
from oligovox.simulate.fields import Volume
from oligovox.simulate.physics.scene import Palette, mix
from oligovox.simulate.physics.sequences import GRE, protocol, signal
from oligovox.simulate.physics.tissues import TissueName, draw_palette
from oligovox.simulate.recipe import BrainRecipe, Recipe
from oligovox.simulate.scanner.coils import bias_field
from oligovox.simulate.scanner.qsm import acquire_gre
from oligovox.simulate.scanner.scan import Scan, acquire, draw_scan, draw_site

_SITES = 1000  # the most that a cohort can have
_FROM_GRE = ("T2starw", "QSM")  # both come from the same multi-echo scan
_REFERENCE: Mapping[str, TissueName] = {"brain": "white_matter", "abdomen": "muscle"}  # noise is given relative to it


@dataclass(frozen=True)
class SimulatedSubject:
    """One visit of one person.

    Attributes:
        images: modality → (x, y, z) float32; arbitrary units, QSM in ppb.
        phase: (x, y, z) of the last gradient echo, radians, or None.
        truth: labels.
        brain: (x, y, z) brain and the CSF around it; the body in an abdomen.
        affine: voxel → RAS mm.
        facts: what was drawn: site, age, timing, resolution and noise of each sequence …; plain JSON values, units in the keys.
    """

    images: Mapping[str, Volume]
    phase: Volume | None
    truth: Truth
    brain: NDArray[np.bool_]
    affine: NDArray[np.float64]
    facts: Mapping[str, Any]


def subject_seed(cohort_seed: int, number: int) -> int:
    """The seed of the person of this number (from 1) in a cohort; it depends on nothing else."""
    state = np.random.SeedSequence([cohort_seed, number]).generate_state(4, np.uint32)
    return int.from_bytes(state.tobytes(), "little")


def simulate_subject(recipe: Recipe, seed: int, *, visit: int = 1) -> SimulatedSubject:
    """Make one visit of one person; the same arguments give the same arrays, and no global state is read or changed."""
    rng = _streams(seed)
    body = draw_body(recipe, rng, visit)
    number = int(rng("site").integers(recipe.acquisition.sites))
    strength = recipe.fields[number % len(recipe.fields)]
    site = draw_site(_streams(number + _SITES * recipe.acquisition.scanners)("a site"), recipe.acquisition, strength)
    palette = draw_palette(rng("tissues"), strength, age=body.age)
    acquired = _acquired(rng(f"acquired, visit {visit}"), recipe)
    images: dict[str, Volume] = {}
    scans: dict[str, Any] = {}
    phase = None
    for modality in acquired:
        chance = rng(f"{modality}, visit {visit}")
        if modality in _FROM_GRE:
            continue
        scan = draw_scan(
            chance,
            site,
            recipe.acquisition,
            modality,
            protocol(modality, strength, recipe.protocols.get(modality)),
            strength,
        )
        images[modality] = _image(chance, scan, body, palette, strength, recipe.body)
        scans[modality] = scan.facts()
    if isinstance(recipe, BrainRecipe) and (wanted := [m for m in acquired if m in _FROM_GRE]):
        gre = protocol("QSM", strength, recipe.protocols.get("T2starw", {}) | recipe.protocols.get("QSM", {}))
        chance = rng(f"coils of the GRE, visit {visit}")
        scan = draw_scan(chance, site, recipe.acquisition, "QSM", gre, strength)
        assert isinstance(scan.sequence, GRE)
        found = acquire_gre(
            rng(f"GRE, visit {visit}"), body.parts, palette, scan.sequence, strength, body.inside, body.affine,
            body.spacing[0], recipe.qsm,
        )  # fmt: skip
        uneven = bias_field(chance, body.inside.shape, body.spacing, scan.bias, body.inside, scan.centre)
        phase = found.phase[..., -1] if "T2starw" in wanted else None
        seen = body.inside if body.stripped else True
        made = {"T2starw": np.where(seen, found.magnitude[..., -1] * uneven, np.float32(0)), "QSM": found.chi}
        images |= {m: made[m] for m in wanted}
        drawn = {key: scan.facts()[key] for key in ("kind", "sequence", "receive_half_range", "receive_centre")}
        scans |= dict.fromkeys(wanted, drawn)
    facts = {"field_T": strength, "site": f"site{number + 1:02d}", **body.facts, "scans": scans}
    return SimulatedSubject(images, phase, body.truth, body.inside, body.affine, facts)


def _image(rng: np.random.Generator, scan: Scan, body: Body, palette: Palette, strength: float, kind: str) -> Volume:
    """One magnitude image; at least 1 where something is seen and 0 elsewhere, as skull stripping leaves it."""

    def ideal(b1: float) -> Volume:
        image = mix(body.parts, palette, lambda tissue: signal(tissue, scan.sequence, strength, b1))
        return np.abs(image) if np.iscomplexobj(image) else image

    white = abs(complex(signal(palette[_REFERENCE[kind]], scan.sequence, strength)))
    image = acquire(rng, scan, ideal, body.inside, body.spacing, white, stripped=body.stripped)
    return np.where(body.inside, np.maximum(image, 1), 0).astype(np.float32) if body.stripped else image


def _acquired(rng: np.random.Generator, recipe: Recipe) -> tuple[str, ...]:
    """Which sequences there are: each is missing with the recipe's probability, but never all."""
    wanted: tuple[str, ...] = recipe.sequences
    kept = tuple(m for m, chance in zip(wanted, rng.random(len(wanted)), strict=True) if chance >= recipe.missing)
    return kept or (wanted[int(rng.integers(len(wanted)))],)


def _streams(seed: int) -> Rng:
    return lambda name: np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(name.encode())])))
