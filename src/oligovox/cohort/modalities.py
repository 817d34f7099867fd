"""Sequence names: one canonical, BIDS-like name for each kind of image, and the spellings the field uses for it."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from oligovox.errors import SettingsError, nearest

ALIASES: dict[str, tuple[str, ...]] = {
    "T1w": ("t1", "t1n", "t1w", "mprage", "3dt1", "t1_weighted"),
    "T1wGd": ("t1c", "t1ce", "t1gd", "t1wgd", "t1w_gd", "t1post", "t1_post", "t1wks", "t1ks", "gado", "3dt1gado"),
    "T2w": ("t2", "t2w", "t2_weighted"),
    "FLAIR": ("flair", "t2f", "t2flair", "t2_flair", "3dflair"),
    "PDw": ("pd", "pdw", "dp"),
    "T2starw": ("t2star", "t2starw", "t2s", "swi"),
    "QSM": ("qsm", "chimap"),
    "T1in": ("t1in", "inphase"),
    "T1out": ("t1out", "outphase", "opposedphase"),
    "T2spir": ("t2spir", "spir"),
}
"""Canonical name → other spellings, lower case; blanks and '-' are taken for '_'."""

_LOOKUP = {alias: name for name, aliases in ALIASES.items() for alias in (name.lower(), *aliases)}


def canonical(name: str) -> str:
    """The canonical name of a sequence: `canonical("t2f") == "FLAIR"`.

    Raises:
        SettingsError: the name is not known; says the nearest one.
    """
    try:
        return _LOOKUP[re.sub(r"[ -]+", "_", name.strip().lower())]
    except KeyError:
        raise SettingsError(f"unknown modality '{name}'; {nearest(name, ALIASES)}") from None


def _known(name: str) -> str:
    try:
        return canonical(name)
    except SettingsError as error:
        raise ValueError(str(error)) from None


SequenceName = Annotated[str, AfterValidator(_known)]
"""A setting that names a sequence: any spelling is taken, the canonical name is kept."""
