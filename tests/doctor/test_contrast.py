"""Sequences under their own and under each other's names: a name is doubted where fluid is on the other side, and else never."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oligovox.doctor.contrast import Middle, brain_region, check_contrast, fluid, middle
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


def named(name: str, content: str, change: float = 0.0) -> list[Finding]:
    """`content` under another name, under a field of exp(± change) from left to right."""
    array = person().images[content]
    field = np.exp(np.linspace(-change, change, len(array)))[:, None, None]
    one = Seen.of(name, Path(f"{name}.nii.gz"), Volume((array * field).astype(np.float32), person().affine))
    return check_contrast("sub-1", one, outline(one).covering)


@pytest.mark.parametrize("name", NAMES)
def test_the_right_name_is_silent(name: str) -> None:
    assert named(name, name) == []


@pytest.mark.parametrize(
    ("name", "content", "like"),
    [("T1w", "T2w", "T2w"), ("FLAIR", "T2w", "T2w"), ("T2w", "T1w", "T1w or FLAIR"), ("T2w", "FLAIR", "T1w or FLAIR")],
)
def test_fluid_on_the_other_side_is_told(name: str, content: str, like: str) -> None:
    (found,) = named(name, content)
    assert (found.severity, found.sequence, found.numbers["looks_like"]) == ("warning", name, like)


def test_where_fluid_is_dark_in_both_nothing_is_claimed() -> None:
    assert named("T1w", "FLAIR") == named("FLAIR", "T1w") == named("T1wGd", "T1w") == []


def test_a_head_without_its_top_is_not_judged() -> None:
    """Where the middle of the brain lies is counted from there."""
    x, y, z = np.ogrid[-50:50, -50:50, -50:50]
    ball = np.where(x**2 + y**2 + z**2 < 45**2, 100.0, 1.0).astype(np.float32)
    assert brain_region(Seen.of("T1w", Path("x.nii"), Volume(ball, np.diag([2.0, 2, 2, 1]))), "head").sum() > 2000
    assert not brain_region(
        Seen.of("T1w", Path("x.nii"), Volume(ball[..., :65], np.diag([2.0, 2, 2, 1]))), "head"
    ).any()


def test_names_without_a_rule_are_not_judged() -> None:
    assert named("PDw", "T1w") == named("QSM", "T2w") == []


def test_under_a_strong_field_nothing_is_claimed() -> None:
    assert named("T2w", "T1w", 1.5) == []


pieces = st.floats(0, 80)


@given(st.floats(-1, 1), pieces, pieces, pieces, pieces)
def test_both_rules_and_both_sides_must_agree(skew: float, a: float, b: float, c: float, d: float) -> None:
    """Turned upside down, bright is dark; one side alone (oedema), or skew against the pieces, is nothing."""
    found = fluid(Middle(skew, (a, b), (c, d)))
    if min(c, d) < 1 or skew <= 0.15:
        assert found != "bright"
    if min(a, b) < 1 or skew >= -0.1:
        assert found != "dark"
    assert fluid(Middle(0.5, (0.2, 0.1), (9, 12))) == "bright"
    assert fluid(Middle(-0.5, (9, 12), (0.2, 0.1))) == "dark"
    assert fluid(Middle(0.5, (9, 12), (0.2, 0.1))) is None


def test_too_little_brain_is_not_judged() -> None:
    ball = np.zeros((20, 20, 20), np.float32)
    ball[6:14, 6:14, 6:14] = np.random.default_rng(0).normal(100, 5, (8, 8, 8))
    assert middle(Seen.of("T1w", Path("x.nii"), Volume(ball, np.eye(4))), "stripped") is None


@pytest.mark.real
@pytest.mark.parametrize("name", NAMES)
def test_a_real_head(real_data: Path, name: str) -> None:
    path = real_data / "openms/sub-lo03/ses-2/anat" / f"sub-lo03_ses-2_{name}.nii.gz"
    for said in NAMES:
        one = Seen.of(said, path, read_volume(path))
        found = check_contrast("sub-lo03", one, outline(one).covering)
        assert bool(found) == ((said == "T2w") != (name == "T2w"))
