"""Sequence names."""

from __future__ import annotations

import pytest

from oligovox.cohort.modalities import ALIASES, canonical
from oligovox.errors import SettingsError


def test_no_spelling_means_two_sequences() -> None:
    spellings = [s for name, aliases in ALIASES.items() for s in {name.lower(), *aliases}]
    assert len(spellings) == len(set(spellings))


@pytest.mark.parametrize(("given", "name"), [("t2f", "FLAIR"), (" T1CE", "T1wGd"), ("Chimap", "QSM"), ("t1n", "T1w")])
def test_canonical(given: str, name: str) -> None:
    assert canonical(given) == canonical(name) == name


def test_an_unknown_name_says_the_nearest() -> None:
    with pytest.raises(SettingsError, match="unknown modality 'flare'; did you mean 'FLAIR'"):
        canonical("flare")
