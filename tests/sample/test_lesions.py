"""Which lesion a step sees, and what is done to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from oligovox.errors import CohortError, LabelError, SettingsError
from oligovox.prepare.lesion_store import LesionPlan, StoredLesion
from oligovox.sample.batch import Batch
from oligovox.sample.lesions import LesionSource, lesion_batch
from oligovox.sample.turns import Turns, turned


@pytest.fixture
def lesions(tmp_path: Path) -> tuple[StoredLesion, ...]:
    """20 lesions of one exam; 3 of them Rim+. QSM is constant, and says which lesion it is."""
    image = np.zeros((20, 2, 8, 8, 8), np.float16)
    image[:, 0] = (np.arange(20) / 20)[:, None, None, None]
    image[:, 1] = np.random.default_rng(0).random((8, 8, 8))
    seen = np.zeros((20, 8, 8, 8), np.uint8)
    seen[:, 2:6, 2:6, 2:6] = 1
    seen[:, 3:5, 3:5, 3] = 2
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "seen.npy", seen)
    return tuple(
        StoredLesion("sub-01", "", "01", "", n + 1, (0, 0, 0), 8, 5, int(n < 3), False, tmp_path) for n in range(20)
    )


def source(lesions: Sequence[StoredLesion], **changes: object) -> LesionSource:
    return LesionSource(lesions, **{"count": 4, "patch": 8, "plan": LesionPlan(), "seed": 5, **changes})


def test_the_draw_is_a_pure_function(lesions: tuple[StoredLesion, ...]) -> None:
    one, other = source(lesions), source(lesions[::-1])
    names = [one.draw(step, micro, 0).name for step in range(20) for micro in range(2)]
    assert names == [other.draw(step, micro, 0).name for step in range(20) for micro in range(2)]
    assert names != [source(lesions, seed=6).draw(step, micro, 0).name for step in range(20) for micro in range(2)]
    assert torch.equal(one.batch(7, 1).image, source(lesions).batch(7, 1).image)


@pytest.mark.parametrize(("balanced", "share"), [(True, 0.5), (False, 3 / 20)])
def test_shares_of_the_classes(lesions: tuple[StoredLesion, ...], balanced: bool, share: float) -> None:
    chosen = source(lesions, balanced=balanced)
    drawn = [chosen.draw(step, 0, slot) for step in range(500) for slot in range(4)]
    assert np.mean([lesion.grade for lesion in drawn]) == pytest.approx(share, abs=4 * np.sqrt(0.25 / 2000))
    assert {lesion.number for lesion in drawn} == set(range(1, 21))


def test_the_batch_is_what_is_stored(lesions: tuple[StoredLesion, ...]) -> None:
    batch = lesion_batch(lesions[:5], 4, LesionPlan())
    assert batch.modalities == ("QSM", "FLAIR")
    assert batch.image.shape == (5, 2, 4, 4, 4)
    stored = lesions[3].image()[:, 2:6, 2:6, 2:6].astype(np.float32)
    units = np.array([300 / 20, 2])[:, None, None, None]  # 20 ppb are 1, and a quarter of FLAIR's range
    np.testing.assert_array_equal(batch.image[3].numpy(), (2 * stored - 1) * units)
    narrow = lesion_batch(lesions[:5], 4, LesionPlan(qsm_ppb=100)).image[3].numpy()
    np.testing.assert_allclose(narrow, (2 * stored - 1) * units / [[[[3]]], [[[1]]]], rtol=1e-6)  # ppb stay ppb
    assert batch.foreground.all()
    assert batch.label is not None
    assert batch.label.sum() == 5 * 4
    assert batch.grade is not None
    assert batch.grade.tolist() == [1, 1, 1, 0, 0]
    hidden = lesion_batch(lesions[:5], 4, LesionPlan(), use_grades=False).grade
    assert hidden is not None
    assert hidden.tolist() == [-1] * 5


def test_what_is_shown_is_foreground(lesions: tuple[StoredLesion, ...]) -> None:
    masked, whole = (lesion_batch(lesions[:2], 8, LesionPlan(masked=masked)).foreground for masked in (True, False))
    assert masked.sum() == 2 * 4**3
    assert whole.all()
    with pytest.raises(SettingsError, match="at most the stored 8"):
        lesion_batch(lesions[:2], 10, LesionPlan())


def test_what_cannot_be_drawn_from(lesions: tuple[StoredLesion, ...]) -> None:
    with pytest.raises(CohortError, match="no lesions"):
        source(())
    with pytest.raises(LabelError, match=r"17 lesions, 0 of them Rim\+"):
        source(lesions[3:])
    with pytest.raises(LabelError, match="no unknown grade"):
        source((*lesions, replace(lesions[0], grade=-1)))
    with pytest.raises(SettingsError, match="at most the stored 8"):
        source(lesions, patch=10)
    with pytest.raises(SettingsError, match="even"):
        source(lesions, patch=5)


def cubes(samples: int = 64) -> Batch:
    """Every voxel of a sample has a value of its own; QSM and FLAIR hold the same ones."""
    values = torch.arange(samples * 27.0).view(samples, 1, 3, 3, 3)
    return Batch(
        image=torch.cat([values, values + 0.5], 1),
        present=torch.ones(samples, 2, dtype=torch.bool),
        foreground=values % 3 == 0,
        spacing=torch.ones(samples, 3),
        label=values[:, 0].long(),
        grade=torch.zeros(samples, dtype=torch.long),
        modalities=("QSM", "FLAIR"),
        cases=("",) * samples,
    )


def test_turning_moves_all_maps_alike_and_changes_no_value() -> None:
    batch = cubes()
    done = turned(batch, Turns(), torch.Generator().manual_seed(1))
    assert torch.equal(done.image[:, 0] + 0.5, done.image[:, 1])
    assert done.label is not None
    assert torch.equal(done.image[:, 0].long(), done.label)
    assert torch.equal(done.foreground[:, 0], done.image[:, 0] % 3 == 0)
    assert torch.equal(done.image.flatten(1).sort().values, batch.image.flatten(1).sort().values)
    middle = (slice(None), 0, 1, 1, 1)
    assert torch.equal(done.image[middle], batch.image[middle])


def test_turning_is_drawn_from_the_generator_alone() -> None:
    batch = cubes()
    one, same, other = (turned(batch, Turns(), torch.Generator().manual_seed(s)).image for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(turned(batch, Turns(flip=0, turn=0), torch.Generator()).image, batch.image)


def test_all_places_of_a_corner_are_reached() -> None:
    """Flips and turns of a cube bring a corner to each of its eight corners."""
    done = turned(cubes(400), Turns(), torch.Generator().manual_seed(0))
    first = done.image[:, 0] == 27.0 * torch.arange(400).view(-1, 1, 1, 1)
    assert first.any(0)[::2, ::2, ::2].all()
    assert not first.any(0)[1].any()
