"""Sequence names: one canonical, BIDS-like name for each kind of image, and the spellings the field uses for it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
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


def sequence_of(channel: str) -> str:
    """The sequence that a channel of a plan is an acquisition of: `sequence_of("FLAIR_run-2") == "FLAIR"`."""
    return channel.partition("_run-")[0]


def sequences_of(channels: Iterable[str]) -> tuple[str, ...]:
    """Each once, in the order of the channels."""
    return tuple(dict.fromkeys(map(sequence_of, channels)))


def places_of(channels: Sequence[str]) -> list[int]:
    """Of each channel the place of its sequence in `sequences_of(channels)`."""
    sequences = sequences_of(channels)
    return [sequences.index(sequence_of(name)) for name in channels]


def channel(name: str) -> str:
    """The canonical name of a channel: a sequence, or a further acquisition of it in the same session (`channel("t2f_run-2") == "FLAIR_run-2"`).

    Raises:
        SettingsError: as `canonical`, or runs are counted otherwise than from 2 (the first is the sequence itself).
    """
    sequence, run, number = name.strip().partition("_run-")
    if run and not (number.isascii() and number.isdigit() and number == str(int(number)) and int(number) > 1):
        raise SettingsError(
            f"'{name}' is no acquisition: the first is '{sequence}', the second '{sequence}_run-2', and so on"
        )
    return canonical(sequence) + run + number


def _known(name: str) -> str:
    try:
        return canonical(name)
    except SettingsError as error:
        raise ValueError(str(error)) from None


SequenceName = Annotated[str, AfterValidator(_known)]
"""A setting that names a sequence: any spelling is taken, the canonical name is kept."""
