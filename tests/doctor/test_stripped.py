"""Skull on or off: on simulated heads, on brains cut out of them, and on real exams of both kinds."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from oligovox.doctor.images import look_at
from oligovox.doctor.seen import Seen
from oligovox.doctor.stripped import check_cohort, check_stripped, outline
from oligovox.prepare.geometry import Volume, read_volume
from oligovox.simulate.recipe import make_recipe
from oligovox.simulate.subject import SimulatedSubject, simulate_subject


@cache
def person() -> SimulatedSubject:
    return simulate_subject(make_recipe("ms-3t", {"spacing": 3.0, "head": {}, "sequences": ["T1w"]}), 961)


def seen(array: np.ndarray, name: str = "T1w") -> Seen:
    return Seen.of(name, Path(f"{name}.nii.gz"), Volume(array.astype(np.float32), person().affine))


def test_a_head_and_its_brain_are_told_apart() -> None:
    head = person().images["T1w"]
    assert outline(seen(head)).covering == "head"
    assert outline(seen(head * person().brain)).covering == "stripped"


def test_another_value_around_the_brain_is_background_too() -> None:
    """As a z-score leaves it: air at some negative number."""
    head = (person().images["T1w"] - 300) / 100
    assert outline(seen(np.where(person().brain, head, -3.0))).covering == "stripped"


def test_a_head_with_its_air_removed_is_still_too_large_for_a_brain() -> None:
    head = person().images["T1w"]
    assert outline(seen(np.where(head > 0.3 * np.median(head[person().brain]), head, 0))).covering == "head"


def test_a_short_piece_of_a_head_without_air_is_no_brain() -> None:
    """Half of a head is as small as a brain, but it goes on beyond the field of view."""
    head = person().images["T1w"].astype(np.float32)
    air = head < 0.1 * np.percentile(head, 99)
    cut = np.where(air, 0, head)[:, :, head.shape[2] // 2 :]
    found = outline(seen(cut))
    assert found.volume_ml < 2200
    assert found.covering == "head"


def test_a_brain_under_a_strong_field_is_no_head() -> None:
    """Its dark half lies below any threshold."""
    field = np.exp(np.linspace(-1.8, 1.8, person().brain.shape[1]))[:, None]
    assert outline(seen(person().images["T1w"] * person().brain * field)).covering == "stripped"
    assert outline(seen(person().images["T1w"] * field)).covering == "head"


def test_sequences_that_disagree_are_said() -> None:
    head = person().images["T1w"]
    images = [seen(head), seen(head * person().brain, "FLAIR")]
    (found,) = check_stripped("sub-1", images, [outline(one) for one in images])
    assert found.check == "stripped_differs"
    assert found.found == "the brain alone in FLAIR, the whole head in T1w"
    assert check_stripped("sub-1", images[:1], [outline(images[0])]) == []


def test_a_brain_torn_in_two_by_lost_slices_is_no_head() -> None:
    brain = person().images["T1w"] * person().brain
    torn = brain.copy()
    torn[:, :, torn.shape[2] // 2] = 0
    found = look_at("sub-1", [seen(torn), seen(brain, "PDw")]).findings
    assert [one.check for one in found] == ["empty_slices"]


def test_a_cohort_needs_a_rule_before_one_differs() -> None:
    mostly = check_cohort({"sub-1": "stripped", "sub-2": "stripped", "sub-3": "head", "sub-4": "stripped"}, {})
    assert [found.case for found in mostly] == ["sub-3"]
    assert check_cohort({"sub-1": "stripped", "sub-2": "head"}, {}) == []


@pytest.mark.real
@pytest.mark.parametrize(
    ("file", "covering"),
    [
        ("openms/sub-cs19/anat/sub-cs19_T1w.nii.gz", "stripped"),
        ("openms/sub-lo20/ses-2/anat/sub-lo20_ses-2_FLAIR.nii.gz", "stripped"),
        ("openms/sub-lo03/ses-2/anat/sub-lo03_ses-2_FLAIR.nii.gz", "head"),
        ("openms/sub-lo19/ses-2/anat/sub-lo19_ses-2_T1w.nii.gz", "head"),
        ("openms/sourcedata/sub-lo12/ses-1/sub-lo12_ses-1_raw_T1W.nii.gz", "head"),
    ],
)
def test_real_exams(real_data: Path, file: str, covering: str) -> None:
    assert nib.load(real_data / file).ndim == 3
    assert outline(Seen.of("T1w", real_data / file, read_volume(real_data / file))).covering == covering
