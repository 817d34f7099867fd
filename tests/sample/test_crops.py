"""Overlapping crops: how much they share, where they may lie, and what a view holds."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
import torch

from oligovox.errors import SettingsError
from oligovox.sample.batch import Batch
from oligovox.sample.crops import crop_sides, cut, overlapping_starts, view_pair


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def overlap(first: torch.Tensor, second: torch.Tensor, crop: tuple[int, ...]) -> torch.Tensor:
    return (torch.tensor(crop) - (first - second).abs()).clamp_min(0).prod(1)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_crops_lie_in_the_patch_and_share_what_they_must(share: float) -> None:
    sides, crop = (20, 16, 33), (12, 16, 20)
    first, second = overlapping_starts(500, sides, crop, share, seeded())
    for starts in (first, second):
        assert starts.shape == (500, 3)
        assert (starts >= 0).all()
        assert (starts + torch.tensor(crop) <= torch.tensor(sides)).all()
    assert (overlap(first, second, crop) >= share * 12 * 16 * 20).all()
    assert torch.equal(first, second) == (share == 1.0)


def test_every_allowed_pair_is_equally_likely() -> None:
    sides, crop, share, draws = (4, 3, 3), (2, 2, 3), 0.5, 40_000
    first, second = overlapping_starts(draws, sides, crop, share, seeded())
    places = list(product(range(3), range(2), range(1)))
    allowed = {
        (a, b) for a in places for b in places if overlap(torch.tensor([a]), torch.tensor([b]), crop) >= share * 12
    }
    found = Counter((tuple(a), tuple(b)) for a, b in zip(first.tolist(), second.tolist(), strict=True))
    assert set(found) == allowed
    expected = draws / len(allowed)
    assert max(abs(count - expected) for count in found.values()) < 5 * expected**0.5


def test_cut_takes_each_samples_own_window() -> None:
    values = torch.arange(2 * 2 * 5 * 6 * 7).reshape(2, 2, 5, 6, 7)
    window = cut(values, torch.tensor([[0, 1, 2], [3, 0, 4]]), (2, 3, 3))
    assert torch.equal(window, torch.stack([values[0, :, 0:2, 1:4, 2:5], values[1, :, 3:5, 0:3, 4:7]]))
    window.zero_()
    assert values.sum() > 0  # a copy


def test_crop_sides() -> None:
    assert crop_sides((96, 96, 96), 2 / 3, 32) == (64, 64, 64)
    assert crop_sides((32, 32, 32), 2 / 3, 8) == (24, 24, 24)
    assert crop_sides((32, 64, 8), 0.5, 8) == (16, 32, 8)
    assert crop_sides((32, 32, 32), 0.1, 16) == (32, 32, 32)  # two of the multiple at least, the patch at most


@pytest.mark.parametrize(("crop", "share"), [((8, 8, 9), 0.5), ((8, 8, 8), 1.5), ((0, 8, 8), 0.5)])
def test_impossible_crops_are_refused(crop: tuple[int, ...], share: float) -> None:
    with pytest.raises(SettingsError, match="expected sides from 1"):
        overlapping_starts(1, (8, 8, 8), crop, share, seeded())


def test_views_are_crops_with_their_own_sequences_hidden() -> None:
    rng = seeded(3)
    present = torch.tensor([[True, True, True], [True, False, False]])
    image = torch.randn(2, 3, 8, 8, 8, generator=rng) * present[:, :, None, None, None]
    batch = Batch(
        image=image,
        present=present,
        foreground=torch.ones(2, 1, 8, 8, 8, dtype=torch.bool),
        spacing=torch.ones(2, 3),
        label=torch.zeros(2, 8, 8, 8, dtype=torch.int64),
        modalities=("T1w", "T2w", "FLAIR"),
        cases=("a", "b"),
    )
    for view in view_pair(batch, (8, 8, 8), 0.5, 0.0, 0.7, seeded()):
        assert view.label is None
        assert not (view.present & ~present).any()
        assert view.present.any(1).all()
        assert torch.equal(view.image, image * view.present[:, :, None, None, None])
    first, second = view_pair(batch, (4, 4, 4), 0.5, 1.0, 0.0, seeded())
    assert first.image.shape == second.image.shape == (2, 3, 4, 4, 4)
    assert torch.equal(first.present, present)
    assert not torch.equal(first.image, second.image)
