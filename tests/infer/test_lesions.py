"""Probabilities of lesions by networks whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from oligovox.errors import RunError
from oligovox.infer.lesions import Mirrored, occlusion, predict_lesions
from oligovox.prepare.lesion_store import LesionPlan, StoredLesion
from oligovox.sample.lesions import lesion_batch

PLAN = LesionPlan()
SAID = np.arange(5) * 15 / 16  # exact in float16 as they are stored


@pytest.fixture
def lesions(tmp_path: Path) -> list[StoredLesion]:
    """Five lesions; in the QSM of the k-th one voxel of the lesion is the k-th of SAID for the network."""
    image, seen = np.full((5, 2, 8, 8, 8), 0.5, np.float16), np.zeros((5, 8, 8, 8), np.uint8)
    image[:, 0, 3, 4, 5] += np.arange(5) / 32
    seen[:, 1:7, 1:7, 1:7] = 1
    seen[:, 3, 4, 5] = 2
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "seen.npy", seen)
    return [StoredLesion("sub-01", "", "01", "", n, (0, 0, 0), 1, 1, 0, False, tmp_path) for n in range(1, 6)]


def total(image: Tensor, present: Tensor) -> Tensor:
    assert present.all()
    return image[:, 0].sum((1, 2, 3))[:, None] - 2


def test_probabilities_are_in_order_whatever_the_batch(lesions: list[StoredLesion]) -> None:
    expected = 1 / (1 + np.exp(2.0 - SAID))
    for batch in (1, 2, 16):
        found = predict_lesions(total, lesions, patch=8, plan=PLAN, batch=batch)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert predict_lesions(total, [], patch=8, plan=PLAN).shape == (0,)


def test_a_network_that_reads_the_lesion_is_told_where_it_is(lesions: list[StoredLesion]) -> None:
    class Reads:
        reads_lesion = True

        def __call__(self, image: Tensor, present: Tensor, lesion: Tensor) -> Tensor:
            return image[:, 0][lesion]

    found = predict_lesions(Reads(), lesions, patch=8, plan=PLAN, batch=3)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-SAID)), rtol=1e-6)
    fall = occlusion(Reads(), lesion_batch(lesions, 8, PLAN), 4, side=2, neutral=(0.5,))
    assert fall[0, 3, 4, 5] == pytest.approx(SAID[4] - 0.5)


def test_mirrored_answers_do_not_know_left_from_right(lesions: list[StoredLesion]) -> None:
    class Corner:
        """Says what is in one corner, of image and of lesion; so the mean over the mirror images is the mean of the eight corners."""

        reads_lesion = True

        def __call__(self, image: Tensor, present: Tensor, lesion: Tensor) -> Tensor:
            return image[:, 1, 0, 0, 0] + lesion[:, 0, 0, 0]

    image, seen = np.load(lesions[0].folder / "image.npy"), np.load(lesions[0].folder / "seen.npy")
    image[:, 1] = np.random.default_rng(0).random((5, 8, 8, 8))
    seen[:, 0, 0, 0] = 2
    np.save(lesions[0].folder / "image.npy", image)
    np.save(lesions[0].folder / "seen.npy", seen)
    corners = 2 * (2 * image[:, 1, ::7, ::7, ::7].astype(float) - 1)
    found = predict_lesions(Mirrored(Corner()), lesions, patch=8, plan=PLAN, batch=2)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-corners.mean((1, 2, 3)) - 1 / 8)), rtol=1e-6)
    np.save(lesions[0].folder / "image.npy", image[:, :, ::-1, :, ::-1])
    np.save(lesions[0].folder / "seen.npy", seen[:, ::-1, :, ::-1])
    np.testing.assert_allclose(predict_lesions(Mirrored(Corner()), lesions, patch=8, plan=PLAN), found, rtol=1e-6)
    plain = predict_lesions(Corner(), lesions, patch=8, plan=PLAN)
    np.testing.assert_allclose(plain, 1 / (1 + np.exp(-corners[:, 1, 0, 1])), rtol=1e-6)


def test_a_lesion_without_an_answer_is_named(lesions: list[StoredLesion]) -> None:
    with pytest.raises(RunError, match="sub-01_lesion-001"):
        predict_lesions(
            lambda image, present: torch.log(image[:, 0].sum((1, 2, 3)) * 0 - 1), lesions, patch=8, plan=PLAN
        )


def test_hiding_what_the_answer_rests_on_lets_it_fall(lesions: list[StoredLesion]) -> None:
    batch = lesion_batch(lesions, 8, PLAN)
    fall = occlusion(lambda image, present: image[:, 0, 3, 4, 5] * 2, batch, 4, side=2, neutral=(0.5, 0.0))
    assert fall.shape == (2, 8, 8, 8)
    assert fall[0, 3, 4, 5] == pytest.approx(2 * (SAID[4] - 0.5))
    assert not fall[0, ~batch.foreground[4, 0].numpy()].any()
    assert not fall[0, 6:].any()
    assert not fall[1].any()
    assert batch.image[4, 0, 3, 4, 5] == SAID[4]


def test_one_slice_needs_the_cubes_through_it_only(lesions: list[StoredLesion]) -> None:
    batch, asked = lesion_batch(lesions, 8, PLAN), []

    def uneven(image: Tensor, present: Tensor) -> Tensor:
        asked.append(len(image) - 1)  # the first is the patch as it is
        return (image * torch.arange(8.0)).sum((1, 2, 3, 4))

    whole = occlusion(uneven, batch, 4, side=4, neutral=(0.25, 0.5))
    every, _ = sum(asked), asked.clear()
    part = occlusion(uneven, batch, 4, side=4, neutral=(0.25, 0.5), through=4)
    np.testing.assert_array_equal(part[..., 4], whole[..., 4])
    assert np.abs(whole[..., 4]).max(axis=(1, 2)).min() > 0
    assert (every, sum(asked)) == (2 * 3**3, 2 * 3**2 * 2)


def test_a_sequence_that_is_not_read_has_no_influence(lesions: list[StoredLesion]) -> None:
    """Rounding is another one in a batch of another size: 4e-6 of a sure answer was left where the whole patch was asked by itself."""

    def rounding(image: Tensor, present: Tensor) -> Tensor:
        return image[:, 0, 3, 4, 5] + 1e-3 * len(image)

    falls = occlusion(rounding, lesion_batch(lesions, 8, PLAN), 4, side=2, neutral=(0.0, 0.25))
    assert falls[0].max() == SAID[4]
    assert not falls[1].any()
