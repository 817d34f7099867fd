from __future__ import annotations

import json
import logging
from functools import cache

import nibabel as nib
import numpy as np
import pytest

import oligovox.infer.brain as brain
from oligovox.errors import CheckpointError, GeometryError, ImageError
from oligovox.infer.brain import brain_mask, doubts, finished, scaled
from oligovox.prepare.geometry import Volume, read_volume, resample_to
from oligovox.simulate.anatomy.head import Head
from oligovox.simulate.recipe import BrainRecipe
from oligovox.simulate.subject import simulate_subject


def dice(one, other):
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


@cache
def person(seed=901, spacing=2.5):
    """A whole head by MR physics, which is not what the network learned from; no training head has this seed."""
    recipe = BrainRecipe(spacing=spacing, head=Head(), sequences=("T1w", "T2w", "FLAIR", "T2starw"))
    return simulate_subject(recipe, seed)


def volume(name, seed=901):
    return Volume(person(seed).images[name], person(seed).affine)


@pytest.mark.parametrize(("name", "least"), [("T1w", 0.91), ("T2w", 0.94), ("FLAIR", 0.94), ("T2starw", 0.95)])
def test_a_held_out_head_is_found_in_every_contrast(name, least):
    """Measured: 0.926, 0.959, 0.961, 0.970."""
    assert dice(brain_mask({name: volume(name)}), person().brain) > least


def test_sequences_together_on_grids_of_their_own():
    first = volume("FLAIR")
    affine = first.affine @ np.diag([1.3, 1.3, 2.0, 1])
    moved = resample_to(volume("T1w"), affine, (70, 90, 60), 1)
    mask = brain_mask({"FLAIR": first, "T1w": moved})
    assert mask.shape == first.shape
    assert dice(mask, person().brain) > 0.93


def test_a_stripped_image_comes_out_whole():
    image = np.where(person().brain, np.maximum(volume("T2w").array, 1), 0)
    assert dice(brain_mask({"T2w": Volume(image, person().affine)}), person().brain) > 0.95


@pytest.mark.parametrize("code", ["LPS", "SRA", "PIR"])
def test_orientation_of_the_file_changes_nothing(code):
    first = volume("T1w")
    image = nib.Nifti1Image(first.array, first.affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(code))
    turned = image.as_reoriented(turn)
    mask = brain_mask({"T1w": Volume(np.asarray(turned.dataobj), turned.affine)})
    back = nib.apply_orientation(
        mask, nib.orientations.ornt_transform(nib.orientations.axcodes2ornt(code), nib.io_orientation(image.affine))
    )
    assert dice(back.astype(bool), brain_mask({"T1w": first})) > 0.999


def test_units_do_not_matter():
    first = volume("FLAIR")
    assert (
        dice(brain_mask({"FLAIR": Volume(first.array * 1e-3 + 5, first.affine)}), brain_mask({"FLAIR": first})) > 0.999
    )


def test_noise_is_answered_with_doubts(caplog):
    noise = np.random.default_rng(0).normal(100, 10, (40, 50, 30)).astype(np.float32)
    with caplog.at_level(logging.WARNING):
        mask = brain_mask({"FLAIR": Volume(noise, np.diag([3.0, 3.0, 4.0, 1.0]))})
    assert mask.shape == noise.shape
    assert "look at it before you use it" in caplog.text


def test_a_flat_image_or_none_is_refused():
    with pytest.raises(ImageError, match="T1w"):
        brain_mask({"T1w": Volume(np.full((9, 9, 9), 3, np.float32), np.eye(4))})
    with pytest.raises(GeometryError, match="no volume"):
        brain_mask({})


def test_doubts_name_the_side_of_the_person():
    cube = np.zeros((70, 70, 70), bool)
    cube[10:60, 10:60, 10:60] = True  # 50³ voxels of 8 mm³: 1 L
    ras, lps = np.diag([2.0, 2, 2, 1]), np.diag([-2.0, -2, 2, 1])
    assert doubts(cube, ras) == ()
    assert doubts(cube[:, :, :55], ras) == ("the field of view cuts it off at the top, over 100 cm²",)
    assert doubts(cube[12:], lps) == ("the field of view cuts it off at the right, over 100 cm²",)
    assert "0.12 L" in doubts(cube, np.eye(4))[0]


def test_one_piece_without_holes():
    mask = np.zeros((20, 20, 20), bool)
    mask[2:10, 2:10, 2:10] = True
    whole = mask.copy()
    mask[5, 5, 5] = False
    mask[15:18, 15:18, 15:18] = True
    assert np.array_equal(finished(mask), whole)
    assert not finished(np.zeros((4, 4, 4), bool)).any()


def test_scaled_by_what_was_seen():
    image = np.linspace(-50, 50, 1000, dtype=np.float32).reshape(10, 10, 10)
    seen = np.zeros(image.shape, bool)
    seen[5:] = True
    result = scaled(image, seen)
    assert (result[:5] == 0).all()
    assert result.max() == 1
    assert np.isclose(np.median(result[5:]), 0.5, atol=0.01)


def test_the_weights_are_small_and_say_where_they_are_from():
    said = json.loads(brain.DESCRIPTION.read_text())
    assert brain.WEIGHTS.stat().st_size < 10e6
    assert said["command"].startswith("OMP_NUM_THREADS=1 python benchmarks/train_brain_mask.py")
    assert {"seed", "versions", "held_out", "sha256"} <= said.keys()


def test_damaged_weights_are_refused(tmp_path, monkeypatch):
    damaged = tmp_path / "brain_mask.safetensors"
    damaged.write_bytes(brain.WEIGHTS.read_bytes()[:-8])
    monkeypatch.setattr(brain, "WEIGHTS", damaged)
    brain.brain_network.cache_clear()
    try:
        with pytest.raises(CheckpointError, match="install oligovox again"):
            brain_mask({"T1w": volume("T1w")})
    finally:
        brain.brain_network.cache_clear()


@pytest.mark.real
def test_a_real_head(real_data):
    folder = real_data / "openms"
    raw = folder / "sourcedata" / "sub-lo12" / "ses-1"
    given = read_volume(
        folder / "derivatives" / "sub-lo12" / "ses-1" / "anat" / "sub-lo12_ses-1_desc-brain_mask.nii.gz"
    )
    image = read_volume(raw / "sub-lo12_ses-1_raw_FLAIR.nii.gz")
    truth = resample_to(given, image.affine, image.shape, 0).array > 0
    assert dice(brain_mask({"FLAIR": image}), truth) > 0.9
