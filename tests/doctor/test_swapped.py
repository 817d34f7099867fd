"""T1w and FLAIR under each other's name, and a field across a whole head: told where they are planted, silent where they are not."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from oligovox.doctor.finding import Finding
from oligovox.doctor.images import look_at
from oligovox.doctor.seen import Seen
from oligovox.prepare.geometry import Volume
from oligovox.simulate.recipe import make_recipe
from oligovox.simulate.subject import SimulatedSubject, simulate_subject


@cache
def person(head: bool) -> SimulatedSubject:
    return simulate_subject(
        make_recipe("ms-3t", {"spacing": 3.0 if head else 2.0, **({"head": {}} if head else {})}), 952
    )


def said(names: dict[str, str], *, head: bool = False, change: float = 0.0, noise: float = 0.0) -> list[Finding]:
    """What is found in a case of these names → contents, under a field of exp(± change) from left to right."""
    seen = []
    for name, content in names.items():
        array = person(head).images[content]
        field = np.exp(np.linspace(-change, change, len(array)))[:, None, None]
        grain = noise * np.median(array[array > 0]) * np.random.default_rng(0).standard_normal(array.shape)
        volume = Volume((array * field + grain * (array > 0)).astype(np.float32), person(head).affine)
        seen.append(Seen.of(name, Path(f"{name}.nii.gz"), volume))
    return list(look_at("sub-1", seen).findings)


@pytest.mark.parametrize("head", [False, True])
def test_two_under_each_others_name_are_told_and_the_right_names_are_not(head: bool) -> None:
    assert "contrast" not in {one.check for one in said({"T1w": "T1w", "FLAIR": "FLAIR"}, head=head)}
    (found,) = (one for one in said({"T1w": "FLAIR", "FLAIR": "T1w"}, head=head) if one.check == "contrast")
    assert (found.severity, [path.name for path in found.files]) == ("warning", ["T1w.nii.gz", "FLAIR.nii.gz"])
    assert "swapped" in found.found
    assert found.numbers["even_over_uneven_flair"] > found.numbers["even_over_uneven_t1w"]


def test_nothing_is_said_of_one_alone_or_where_another_finding_makes_it_unsure() -> None:
    assert "contrast" not in {one.check for one in said({"T1w": "FLAIR"})}
    noisy = {one.check for one in said({"T1w": "FLAIR", "FLAIR": "T1w"}, noise=0.5)}
    assert "noisy" in noisy
    assert "contrast" not in noisy


def test_a_strong_field_is_told_inside_a_whole_head() -> None:
    assert "uneven" not in {one.check for one in said({"T1w": "T1w"}, head=True)}
    (found,) = (one for one in said({"T1w": "T1w"}, head=True, change=1.6) if one.check == "uneven")
    assert found.numbers["times"] > 3.5
