"""Sequences under their own and under each other's names."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from oligovox.doctor.contrast import Tissue, check_contrast, looks_like, tissue
from oligovox.doctor.finding import Finding
from oligovox.doctor.seen import Seen
from oligovox.doctor.stripped import outline
from oligovox.prepare.geometry import Volume, read_volume
from oligovox.simulate.recipe import make_recipe
from oligovox.simulate.subject import SimulatedSubject, simulate_subject

NAMES = ("T1w", "T2w", "FLAIR")


@cache
def person() -> SimulatedSubject:
    return simulate_subject(make_recipe("ms-3t", {"spacing": 2.0}), 963)


def named(name: str, content: str) -> list[Finding]:
    one = Seen.of(name, Path(f"{name}.nii.gz"), Volume(person().images[content], person().affine))
    return check_contrast("sub-1", one, outline(one).covering)


@pytest.mark.parametrize("name", NAMES)
def test_the_right_name_is_silent(name: str) -> None:
    assert named(name, name) == []


@pytest.mark.parametrize(("name", "content"), list(permutations(NAMES, 2)))
def test_a_wrong_name_is_told_with_the_right_one(name: str, content: str) -> None:
    (found,) = named(name, content)
    assert found.sequence == name
    assert found.numbers["looks_like"] == content


def test_names_without_a_rule_are_not_judged() -> None:
    assert named("PDw", "T1w") == named("QSM", "T2w") == []


def test_with_gadolinium_or_without_is_not_told_apart() -> None:
    assert named("T1wGd", "T1w") == []


def test_between_two_kinds_nothing_is_claimed() -> None:
    assert looks_like(Tissue(white=100, dark=0.0, bright=0.0, above=0.3, below=0.3, voxels=9000), "stripped") is None


def test_in_a_head_grey_matter_decides_nothing() -> None:
    dark = Tissue(white=100, dark=0.1, bright=0.0, above=0.05, below=0.6, voxels=9000)
    assert looks_like(dark, "stripped") == "T1w"
    assert looks_like(dark, "head") == "T1w or FLAIR"
    assert looks_like(replace(dark, above=0.6, below=0.1), "stripped") == "FLAIR"


def test_too_little_brain_is_not_judged() -> None:
    ball = np.zeros((20, 20, 20), np.float32)
    ball[6:14, 6:14, 6:14] = np.random.default_rng(0).normal(100, 5, (8, 8, 8))
    assert tissue(Seen.of("T1w", Path("x.nii"), Volume(ball, np.eye(4))), "stripped") is None


@pytest.mark.real
@pytest.mark.parametrize("name", NAMES)
def test_a_real_head(real_data: Path, name: str) -> None:
    path = real_data / "openms/sub-lo03/ses-2/anat" / f"sub-lo03_ses-2_{name}.nii.gz"
    one = Seen.of(name, path, read_volume(path))
    assert check_contrast("sub-lo03", one, outline(one).covering) == []
