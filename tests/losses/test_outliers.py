"""Contrast slope of hidden outliers: what it says of a restoration that keeps lesions, halves them, or paints them over."""

from __future__ import annotations

import pytest
import torch

from oligovox.losses.outliers import contrast_slope, slope_note


def _scene(side: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tissue, the same with one bright lesion in a corner, and everything hidden."""
    tissue = 0.5 * torch.randn(1, side, side, side, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    lesion = torch.zeros(1, side, side, side)
    lesion[:, 1:4, 2:4, 1:3] = 4.0
    return tissue, tissue + lesion, torch.ones(1, side, side, side, dtype=torch.bool)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0, -0.5])
def test_the_slope_is_the_share_of_the_contrast_that_is_kept(share: float) -> None:
    _, true, hidden = _scene()
    flat = torch.zeros_like(true)
    torch.testing.assert_close(contrast_slope(flat.lerp(true, share), true, hidden), torch.tensor(share))


def test_painting_over_is_near_zero_and_brightness_has_no_say() -> None:
    tissue, true, hidden = _scene()
    assert contrast_slope(tissue, true, hidden).abs() < 0.1
    torch.testing.assert_close(contrast_slope(true + 7.0, true, hidden), torch.tensor(1.0))


def test_the_equation_cell_by_cell() -> None:
    rng = torch.Generator().manual_seed(1)
    true, made = (torch.randn(2, 12, 8, 20, generator=rng) for _ in range(2))
    hidden = torch.rand(true.shape, generator=rng) < 0.5
    above, below = 0.0, 0.0
    for s in range(2):
        for x, y, z in torch.cartesian_prod(torch.tensor([0, 8]), torch.tensor([0]), torch.tensor([0, 8, 16])).tolist():
            cell = (s, slice(x, x + 8), slice(y, y + 8), slice(z, z + 8))
            t, r, h = true[cell], made[cell], hidden[cell]
            out, rest = h & (t > 1.5), h & (t <= 1.5)
            if out.any() and rest.any():
                contrast, found = (v[out].mean() - v[rest].mean() for v in (t, r))
                above, below = above + out.sum() * found * contrast, below + out.sum() * contrast**2
    torch.testing.assert_close(contrast_slope(made, true, hidden, above=1.5), above / below)


def test_what_is_visible_has_no_say_and_a_small_patch_works() -> None:
    _, true, hidden = _scene(4)
    hidden[:, 2:] = False
    elsewhere = true.where(hidden, 1e6)
    assert contrast_slope(elsewhere, elsewhere, hidden) == contrast_slope(true, true, hidden)


def test_the_note_is_of_flair_and_empty_where_there_is_nothing_to_say() -> None:
    tissue, true, hidden = _scene()
    images, all_hidden = torch.stack([tissue, true], 1), torch.stack([hidden, hidden], 1)
    assert slope_note(images, images, all_hidden, ("T1w", "FLAIR")) == pytest.approx({"lesion_slope": 1.0})
    assert slope_note(images, images, all_hidden, ("FLAIR", "T1w")) == {}  # no voxel of that one stands out
    assert slope_note(images, images, all_hidden, ("T1w", "T2w")) == {}
    assert slope_note(images, images, all_hidden & False, ("T1w", "FLAIR")) == {}
