"""Units of susceptibility maps: what is guessed from the values, what is refused, and what is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from oligovox.errors import ImageError
from oligovox.prepare.geometry import Volume
from oligovox.prepare.susceptibility import Units, in_ppb


def reaching(value: float) -> Volume:
    """Half of the voxels are air (0); of the others the magnitudes' 99.5th percentile is the value."""
    array = np.zeros((20, 20, 20), np.float32)
    array[:10] = np.random.default_rng(0).normal(0, 1, (10, 20, 20))
    return Volume(array * np.float32(value / np.percentile(np.abs(array[:10]), 99.5)), np.eye(4))


@pytest.mark.parametrize(
    ("value", "units", "factor"),
    [
        (0.05, "ppm", 1000),
        (0.1, "ppm", 1000),
        (0.45, "ppm", 1000),
        (50.0, "ppb", 1),
        (110.0, "ppb", 1),
        (900.0, "ppb", 1),
    ],
)
def test_units_are_guessed_where_tissue_would_be_and_the_guess_is_told(value: float, units: str, factor: float) -> None:
    volume = reaching(value)
    scaled = in_ppb(volume, Path("a_Chimap.nii.gz"))
    assert scaled.units == units
    assert scaled.guessed_from == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(scaled.volume.array, volume.array * factor, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.01, 0.6, 2.0, 3.1, 10.0, 2000.0, 4095.0])
def test_phase_and_what_may_be_phase_is_refused_until_somebody_says_its_units(value: float) -> None:
    """0.6 and 2 rad, a local field, had been taken as ppm; 4095, a scanner's phase, as ppb."""
    with pytest.raises(ImageError, match=r"nothing says its units.*set qsm_units; a phase or field map"):
        in_ppb(reaching(value), Path("a_Chimap.nii.gz"))


@pytest.mark.parametrize(("value", "units"), [(0.6, "ppm"), (2.0, "ppm"), (3.1, "ppm"), (3.1, "ppb"), (4095.0, "ppb")])
def test_units_that_are_told_are_believed_and_no_guess(tmp_path: Path, value: float, units: Units) -> None:
    path = tmp_path / "a_Chimap.nii.gz"
    set_ = in_ppb(reaching(value), path, units)
    path.with_name("a_Chimap.json").write_text(json.dumps({"Units": units}))
    written = in_ppb(reaching(value), path)
    assert (set_.units, set_.guessed_from) == (written.units, written.guessed_from) == (units, None)
    np.testing.assert_array_equal(set_.volume.array, written.volume.array)


@pytest.mark.parametrize(("value", "units", "like"), [(0.6, "ppb", "ppm"), (2000.0, "ppm", "ppb")])
def test_units_against_the_values_are_refused(value: float, units: Units, like: str) -> None:
    with pytest.raises(ImageError, match=f"said to be in {units}, but its values reach .* as those in {like} do"):
        in_ppb(reaching(value), Path("a_Chimap.nii.gz"), units)
