"""Units of susceptibility maps: what a file says of itself, what its values look like, and ppb in the end.

| 99.5th percentile of the magnitudes (voxels that are not 0) | taken as |
| --- | --- |
| 0.02 to 2 | ppm |
| 20 to 5000 | ppb |
| anything else | refused: a phase in radians lies between, a field in Hz or rad/s anywhere |

The limits are chosen: tissue at 3 T has some ten to some hundred ppb. What the BIDS sidecar says ("Units") counts more than the values, but not
against them. A field map in Hz without a sidecar can pass for ppb: values alone cannot tell, so write the units down.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from oligovox.errors import ImageError
from oligovox.files import read_json
from oligovox.prepare.geometry import Volume

Units: TypeAlias = Literal["auto", "ppb", "ppm"]

_FACTOR = {"ppb": 1.0, "ppm": 1000.0}
_SPELLED = {"ppb": "ppb", "partsperbillion": "ppb", "ppm": "ppm", "partspermillion": "ppm"}
_RANGES = {"ppm": (0.02, 2.0), "ppb": (20.0, 5000.0)}
_FIELDS = ("rad", "hz", "tesla", "µt", "ut")
_SAY_IT = 'write "Units": "ppb" or "ppm" into the .json beside the file, or set qsm_units'


def in_ppb(volume: Volume, path: Path, units: Units = "auto") -> tuple[Volume, str]:
    """A susceptibility map in parts per billion, and the units its file has.

    Args:
        volume: values of the file.
        path: the file, for its sidecar and for messages.
        units: of the file; auto: by the sidecar, else by the values.

    Raises:
        ImageError: units of something else than susceptibility, units that cannot be told, or values that are not in the units named.
    """
    told = _of_sidecar(path) if units == "auto" else units
    shown = np.abs(volume.array[volume.array != 0])
    reach = float(np.percentile(shown, 99.5)) if shown.size else 0.0
    seen = next((name for name, (low, high) in _RANGES.items() if low <= reach <= high), None)
    if told and seen and told != seen:
        raise ImageError(
            path, f"is said to be in {told}, but its values reach {reach:.3g}, as those in {seen} do", "mend the units"
        )
    found = told or seen
    if found is None:
        raise ImageError(
            path,
            f"values reach {reach:.3g} (99.5th percentile of the magnitudes), which is neither ppb (20 to 5000) nor ppm (0.02 to 2)",
            f"if it is a susceptibility map, {_SAY_IT}; a phase or field map has to be turned into one first (dipole inversion)",
        )
    return Volume(volume.array * np.float32(_FACTOR[found]), volume.affine), found


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
