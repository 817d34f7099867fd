"""Units of susceptibility maps: what a file says of itself, what its values look like, and ppb in the end.

What is set (qsm_units) counts first, then the BIDS sidecar ("Units"). Where both are silent, units are guessed from the values:

| 99.5th percentile of the magnitudes (voxels that are not 0) | guessed to be |
| --- | --- |
| 0.02 to 0.5 | ppm |
| 20 to 1000 | ppb |
| anything else | refused |

The limits are chosen. Tissue at 3 T reaches 0.05 to 0.3 ppm; a large bleed can reach 1 ppm, and such a map has to say its units. A guess is no proof:
values alone cannot tell a local field in radians (16 rad a ppm at 3 T and an echo time of 20 ms) from ppm where it stays below 0.5, nor a field in Hz or rad/s
from ppb. Phase over its whole range is refused, in radians (3.1) and as a scanner counts it (4095). Who guesses has to say so (`Scaled.guessed_from`).

Units that are told are refused only where the values contradict them: told to be ppm where they reach 20 to 5000, or ppb where they reach 0.02 to 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from oligovox.errors import ImageError
from oligovox.files import read_json
from oligovox.prepare.geometry import Volume

Units: TypeAlias = Literal["auto", "ppb", "ppm"]

_FACTOR = {"ppb": 1.0, "ppm": 1000.0}
_SPELLED = {"ppb": "ppb", "partsperbillion": "ppb", "ppm": "ppm", "partspermillion": "ppm"}
_POSSIBLE = {"ppm": (0.02, 2.0), "ppb": (20.0, 5000.0)}
_GUESSED = {"ppm": (0.02, 0.5), "ppb": (20.0, 1000.0)}
_FIELDS = ("rad", "hz", "tesla", "µt", "ut")
_SAY_IT = 'write "Units": "ppb" or "ppm" into the .json beside the file, or set qsm_units'


@dataclass(frozen=True)
class Scaled:
    """A susceptibility map in parts per billion.

    Attributes:
        volume: its values, ppb.
        units: of the file, ppb or ppm.
        guessed_from: 99.5th percentile of the file's magnitudes, where the units were guessed from it; None: they were told.
    """

    volume: Volume
    units: str
    guessed_from: float | None


def in_ppb(volume: Volume, path: Path, units: Units = "auto") -> Scaled:
    """A susceptibility map in parts per billion, whatever its file has.

    Args:
        volume: values of the file.
        path: the file, for its sidecar and for messages.
        units: of the file; auto: by the sidecar, else guessed from the values.

    Raises:
        ImageError: units of something else than susceptibility, units that cannot be guessed, or values that contradict the units told.
    """
    told = _of_sidecar(path) if units == "auto" else units
    shown = np.abs(volume.array[volume.array != 0])
    reach = float(np.percentile(shown, 99.5)) if shown.size else 0.0
    like = _within(_POSSIBLE, reach)
    if told and like and told != like:
        raise ImageError(
            path, f"is said to be in {told}, but its values reach {reach:.3g}, as those in {like} do", "mend the units"
        )
    found = told or _within(_GUESSED, reach)
    if found is None:
        raise ImageError(
            path,
            f"nothing says its units, and values that reach {reach:.3g} (99.5th percentile of the magnitudes) look neither like ppb "
            "(20 to 1000) nor like ppm (0.02 to 0.5)",
            f"if it is a susceptibility map, {_SAY_IT}; a phase or field map has to be turned into one first (dipole inversion)",
        )
    scaled = Volume(volume.array * np.float32(_FACTOR[found]), volume.affine)
    return Scaled(scaled, found, None if told else reach)


def _within(ranges: Mapping[str, tuple[float, float]], reach: float) -> str | None:
    return next((name for name, (low, high) in ranges.items() if low <= reach <= high), None)


def sidecar_of(path: Path) -> Path:
    """The JSON beside a NIfTI file, there or not."""
    return path.with_name(f"{path.name.removesuffix('.gz').removesuffix('.nii')}.json")


def _of_sidecar(path: Path) -> str | None:
    """ppb or ppm as the JSON beside the file says; None where it says nothing."""
    sidecar = sidecar_of(path)
    content = read_json(sidecar) if sidecar.is_file() else {}
    given = content.get("Units") if isinstance(content, dict) else None
    if given is None:
        return None
    plain = "".join(str(given).lower().split())
    if plain in _SPELLED:
        return _SPELLED[plain]
    if any(word in plain for word in _FIELDS):
        raise ImageError(
            path,
            f"{sidecar.name} says that it is in {given}: a phase or field map, not susceptibility",
            "give the susceptibility map made of it (dipole inversion), in ppb or ppm",
        )
    raise ImageError(path, f"{sidecar.name} says that it is in '{given}'", f"expected ppb or ppm; {_SAY_IT}")
