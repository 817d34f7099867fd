"""The picture shows each field of a method's views, on the data of a store, and nothing that was not there."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest

from oligovox import experiment
from oligovox.catalogue import entries
from oligovox.cohort.bids import read_bids
from oligovox.errors import SettingsError
from oligovox.prepare.pipeline import prepare
from oligovox.prepare.store import Plan

TOKENS = {"bm_mae"}
"""Methods whose encoder must be a transformer over tokens."""
NAMED = {"frodo": ["primary=T1w"]}
"""Methods that read sequences by name, some of which the phantom lacks."""


@pytest.fixture
def store(phantom: Path, tmp_path: Path) -> Path:
    prepare(read_bids(phantom), Plan(modalities=("T1w", "T2w", "FLAIR")), tmp_path / "store")
    return tmp_path / "store"


def test_every_pretext_can_be_looked_at(store: Path, tmp_path: Path) -> None:
    for name in (name for name, entry in entries("METHOD").items() if entry.room == "pretext"):
        network = "vit" if name in TOKENS else "resenc"
        done = experiment.views(
            name, store, tmp_path / "views.png", changes=NAMED.get(name, ()), network=network, patch=32
        )
        assert done["rows"][0] == "exam"
        assert len(done["rows"]) > 1
        assert matplotlib.image.imread(done["picture"]).std() > 0.05


def test_the_same_seed_gives_the_same_picture(store: Path, tmp_path: Path) -> None:
    pictures = []
    for seed in (1, 1, 2):
        done = experiment.views("generative", store, tmp_path / "views.png", changes=["block=8"], patch=16, seed=seed)
        pictures.append(Path(done["picture"]).read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


@pytest.mark.parametrize(
    ("method", "more", "message"),
    [
        ("generativ", {}, "generative"),
        ("generative", {"patch": 18}, "18 is not a multiple of 4"),
        ("frodo", {"changes": ["primary=T1w"], "network": "swin"}, "48 is not a multiple of 32"),
        ("slem", {"patch": 8}, "does not suit method slem"),
        ("generative", {"changes": ["blok=8"]}, "block"),
    ],
)
def test_what_does_not_fit_is_said(method: str, more: dict, message: str, store: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        experiment.views(method, store, tmp_path / "views.png", **more)
    assert not (tmp_path / "views.png").exists()
