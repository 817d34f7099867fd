"""Volume fusion: the mixture is what it says, with what both have, and the loss is the two terms of the page."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oligovox.errors import SettingsError
from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.pretext.volume_fusion import Settings, VolumeFusion
from oligovox.sample.batch import Batch
from oligovox.settings import parse

CLOCK = Clock(0, 1)
SEQUENCES = ("T1w", "FLAIR")


def _method(**chosen: object) -> VolumeFusion:
    torch.manual_seed(0)
    encoder = ResEnc(SEQUENCES, ResEncSettings(preset="nano"))
    return VolumeFusion(encoder, parse(Settings, {"smallest": 3, **chosen}, "test"))


def _batch(present: list[list[bool]]) -> Batch:
    rng, acquired = torch.Generator().manual_seed(0), torch.tensor(present)
    samples = len(acquired)
    foreground = torch.rand(samples, 1, 16, 16, 16, generator=rng) < 0.5
    noise = torch.randn(samples, 2, 16, 16, 16, generator=rng)
    return Batch(
        image=noise * foreground * acquired[:, :, None, None, None],
        present=acquired,
        foreground=foreground,
        spacing=torch.ones(samples, 3),
        modalities=SEQUENCES,
        cases=tuple(map(str, range(samples))),
    )


def _rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


BOTH = [[True, True], [True, True], [True, True]]
MIXED = [[True, True], [True, False], [False, True]]


def test_each_voxel_is_the_mixture_that_its_class_names() -> None:
    batch = _batch(BOTH)
    views = _method(steps=3).views(batch, _rng())
    assert set(views.step.unique().tolist()) == {0, 1, 2, 3}
    for s in range(3):
        own, partner = batch.image[s], batch.image[(s + 1) % 3]
        for k in range(4):
            here = (views.step[s] == k).expand_as(own)
            torch.testing.assert_close(views.fused[s][here], (k / 3 * own + (1 - k / 3) * partner)[here])
    assert torch.equal(views.counted, (batch.foreground | batch.foreground.roll(-1, 0))[:, 0])


def test_only_sequences_that_both_have_are_shown_and_nothing_is_asked_without_one() -> None:
    batch = _batch(MIXED)
    views = _method().views(batch, _rng())
    assert views.present.tolist() == [[True, False], [False, False], [False, True]]
    assert not views.fused[~views.present].any()
    assert views.fused[views.present].flatten(1).any(1).all()
    assert views.counted.flatten(1).any(1).tolist() == [True, False, True]


def test_a_batch_of_one_is_fused_with_its_mirror_image() -> None:
    batch = _batch([[True, True]])
    views = _method().views(batch, _rng())
    outside = (views.step == 0)[:, None].expand_as(batch.image)
    assert torch.equal(views.fused[outside], batch.image.flip(2, 3, 4)[outside])
    assert views.counted.any()


@pytest.mark.parametrize(("boxes", "most"), [([1, 1], 1), ([2, 2], 2)])
def test_number_and_sides_of_the_boxes(boxes: list[int], most: int) -> None:
    method = _method(boxes=boxes, largest=0.5, smallest=5)
    volumes = {side * other * third for side in range(5, 9) for other in range(5, 9) for third in range(5, 9)}
    found = [method._boxes(torch.Size((1, 16, 16, 16)), _rng(seed)) for seed in range(40)]
    filled = [int((step > 0).sum()) for step in found]
    assert max(filled) > (most - 1) * 8**3 * 0.8
    for step, voxels in zip(found, filled, strict=True):
        assert voxels <= most * 8**3
        if most == 1 and voxels:
            assert voxels in volumes
            place = step[0].nonzero()
            assert (place.amax(0) - place.amin(0) + 1).prod() == voxels  # one box without holes


def test_a_later_box_overwrites_and_every_class_is_drawn_equally_often() -> None:
    method = _method(boxes=[1, 1], largest=1.0, smallest=16)  # one box over all
    levels = method._boxes(torch.Size((3000, 16, 1, 1)), _rng())[:, 0, 0, 0]
    assert (levels.bincount(minlength=5) / 3000).tolist() == pytest.approx([0.2] * 5, abs=0.03)
    several = _method(boxes=[7, 7], largest=1.0, smallest=16)
    last = several._boxes(torch.Size((50, 16, 16, 16)), _rng())
    assert all(len(sample.unique()) == 1 for sample in last)  # each covers all: the last one is all that is left


def test_the_two_terms() -> None:
    method, batch = _method(dice_weight=0.5), _batch(BOTH)
    views = method.views(batch, _rng())
    logits = method.classify(method.network(views.fused, views.present))
    entropy, dice = [], []
    for s in range(3):
        p, t = logits[s].softmax(0)[:, views.counted[s]], views.step[s][views.counted[s]]
        entropy.append(-p.gather(0, t[None]).log().mean())
        truth = torch.stack([t == k for k in range(5)]).float()
        dice.append(((1 - 2 * (p * truth).sum(1) / (p.sum(1) + truth.sum(1))) * truth.amax(1)).mean())
    losses = method.losses(views, CLOCK)
    expected = torch.stack(entropy).mean(), torch.stack(dice).mean()
    torch.testing.assert_close((losses.terms["cross_entropy"], losses.terms["dice"]), expected)
    torch.testing.assert_close(losses.total, expected[0] + 0.5 * expected[1])


def test_air_of_both_has_no_say() -> None:
    method = _method()
    views = method.views(_batch(BOTH), _rng())
    elsewhere = replace(views, step=views.step.where(views.counted, 4 - views.step))
    assert not torch.equal(elsewhere.step, views.step)
    assert torch.equal(method.losses(elsewhere, CLOCK).total, method.losses(views, CLOCK).total)


def test_boxes_out_of_order_are_refused() -> None:
    with pytest.raises(SettingsError, match="boxes"):
        parse(Settings, {"boxes": [40, 10]}, "test")
