"""Pairs that lie on each other and pairs that were moved by a known amount."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from oligovox.doctor.alignment import _normalised, check_alignment, shift_between
from oligovox.doctor.seen import Seen
from oligovox.prepare.geometry import Volume, read_volume
from oligovox.simulate.recipe import make_recipe
from oligovox.simulate.scanner.kspace import rotation
from oligovox.simulate.subject import SimulatedSubject, simulate_subject


@cache
def person() -> SimulatedSubject:
    return simulate_subject(make_recipe("ms-3t", {"spacing": 2.0, "sequences": ["T1w", "T2w", "FLAIR"]}), 962)


def seen(
    name: str, mm: tuple[float, float, float] = (0, 0, 0), degrees: tuple[float, float, float] = (0, 0, 0)
) -> Seen:
    """One sequence, moved in its own voxels: the affine does not tell."""
    array, affine = person().images[name], person().affine
    if any(mm) or any(degrees):
        turn, middle = rotation(degrees), (np.array(array.shape) - 1) / 2
        array = ndimage.affine_transform(array, turn, middle - turn @ middle - turn @ np.array(mm) / 2.0, order=1)
    return Seen.of(name, Path(f"{name}.nii.gz"), Volume(array, affine))


def test_what_lies_together_is_left_alone() -> None:
    assert check_alignment("sub-1", [seen("T1w"), seen("T2w"), seen("FLAIR")]) == []


@pytest.mark.parametrize("mm", [(4.0, 0.0, 0.0), (0.0, 2.5, -2.5)])
def test_a_shift_is_found_with_its_size(mm: tuple[float, float, float]) -> None:
    shift = shift_between(seen("T1w"), seen("FLAIR", mm))
    assert shift is not None
    assert shift.off
    np.testing.assert_allclose(shift.along, mm, atol=1.2)
    assert shift.mm == pytest.approx(np.linalg.norm(mm), abs=1.2)


def test_a_turn_is_found() -> None:
    shift = shift_between(seen("T1w"), seen("T2w", degrees=(0.0, 0.0, 5.0)))
    assert shift is not None
    assert shift.off
    assert abs(shift.turn[2]) == pytest.approx(5, abs=1.5)


def test_the_stranger_is_named_not_the_others() -> None:
    found = check_alignment("sub-1", [seen("T1w"), seen("T2w"), seen("FLAIR", (0.0, 0.0, 5.0))])
    assert [one.sequence for one in found] == ["FLAIR"]
    found = check_alignment("sub-1", [seen("T1w", (0.0, 5.0, 0.0)), seen("T2w"), seen("FLAIR")])
    assert [one.sequence for one in found] == ["T1w"]
    assert "2 other sequences" in found[0].found


def test_the_measure_is_two_for_one_image_and_one_for_strangers() -> None:
    assert _normalised(np.eye(8)) == pytest.approx(2.0)
    assert _normalised(np.ones((8, 8))) == pytest.approx(1.0)


@pytest.mark.real
def test_a_registered_exam_is_left_alone(real_data: Path) -> None:
    home = real_data / "openms" / "sub-cs07" / "anat"
    images = [
        Seen.of(name, home / f"sub-cs07_{name}.nii.gz", read_volume(home / f"sub-cs07_{name}.nii.gz"))
        for name in ("T1w", "T2w")
    ]
    assert check_alignment("sub-cs07", images) == []


@pytest.mark.real
def test_where_one_way_is_lost_in_oedema_the_other_way_is_asked(real_data: Path) -> None:
    home = real_data / "brats" / "BraTS-GLI-00001-000"
    if not home.is_dir():
        pytest.skip(f"no {home}")
    files = {"T1w": home / f"{home.name}-t1n.nii.gz", "FLAIR": home / f"{home.name}-t2f.nii.gz"}
    one, other = (Seen.of(name, path, read_volume(path)) for name, path in files.items())
    shift = shift_between(one, other)
    assert shift is not None
    assert shift.off
    assert check_alignment("sub-1", [one, other]) == []
