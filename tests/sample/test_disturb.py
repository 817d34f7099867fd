"""Disturb: what is changed, how often, and that nothing else is."""

from __future__ import annotations

import torch

from oligovox.sample.disturb import _blur, disturb


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_same_seed_disturbs_a_copy_in_the_same_way() -> None:
    image = torch.rand(2, 3, 6, 6, 6, generator=seeded())
    before = image.clone()
    first, again, other = disturb(image, seeded(1)), disturb(image, seeded(1)), disturb(image, seeded(2))
    assert torch.equal(image, before)
    assert torch.equal(first, again)
    assert first.isfinite().all()
    assert (first != image).all()  # noise everywhere, also on zeros
    assert not torch.equal(first, other)


def test_rates_and_ranges_are_those_the_release_has_in_effect() -> None:
    v, m = 400, 3
    empty = disturb(torch.zeros(v, m, 6, 6, 6), seeded())
    raised = empty.mean((2, 3, 4)) > 0.06  # by more than noise and gamma can: 0.5 · 0.8 of U(0, 0.4)
    assert abs(raised.float().mean() - 0.4 * (1 - 0.06 / 0.4)) < 0.05
    together = raised.any(1).float().mean()  # samples are drawn first: half of them stay as they are
    assert 0.4 < together < 0.55
    assert empty.mean((2, 3, 4)).max() < 0.5
    quiet = empty.std((2, 3, 4))
    assert abs(quiet.median() - 0.05) < 0.01
    smoothed = (quiet < 0.03).float().mean()  # 0.2 · 0.5, for all but the smallest widths
    assert 0.06 < smoothed < 0.12


def test_blur_keeps_a_constant_and_spreads_a_point_like_a_gaussian() -> None:
    constant = torch.full((1, 5, 6, 7), 0.3)
    torch.testing.assert_close(_blur(constant, torch.tensor([1.5])), constant)
    point = torch.zeros(2, 21, 21, 21)
    point[:, 10, 10, 10] = 1
    ticks = torch.arange(21) - 10.0
    for spread, sd in zip(_blur(point, torch.tensor([1.0, 1.5])), (1.0, 1.5), strict=True):
        torch.testing.assert_close(spread.sum(), torch.tensor(1.0))
        for axes in ((1, 2), (0, 2), (0, 1)):
            variance = (spread.sum(axes) * ticks**2).sum()
            torch.testing.assert_close(variance, torch.tensor(sd**2), rtol=1e-3, atol=0)
