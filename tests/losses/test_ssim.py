"""Structural similarity: the index by its definition, voxel by voxel, and what it must not see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from oligovox.losses.ssim import ssim


def _volumes(side: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    target = torch.rand(2, 1, side, side, side, generator=rng)
    prediction = target + 0.2 * torch.randn(target.shape, generator=rng)
    return prediction, target, torch.rand(target.shape, generator=rng) < 0.8


def _reference(p: np.ndarray, t: np.ndarray, counted: np.ndarray, window: int, sigma: float) -> float:
    """Wang et al. 2004, equation 13, with the Gaussian weights of one window after the other, over its counted voxels."""
    where = np.indices(p.shape)
    found = []
    for centre in np.argwhere(counted):
        offset = where - centre[:, None, None, None]
        w = np.exp(-(offset**2).sum(0) / (2 * sigma**2)) * (abs(offset).max(0) <= window // 2) * counted
        w /= w.sum()
        mp, mt = (w * p).sum(), (w * t).sum()
        vp, vt, c = (w * (p - mp) ** 2).sum(), (w * (t - mt) ** 2).sum(), (w * (p - mp) * (t - mt)).sum()
        found.append((2 * mp * mt + 0.01**2) * (2 * c + 0.03**2) / ((mp**2 + mt**2 + 0.01**2) * (vp + vt + 0.03**2)))
    return float(np.mean(found))


@pytest.mark.parametrize(("window", "sigma"), [(11, 1.5), (3, 0.8)])
def test_the_definition(window: int, sigma: float) -> None:
    prediction, target, counted = _volumes()
    found = ssim(prediction, target, counted, window=window, sigma=sigma)
    expected = [
        _reference(p.double().numpy(), t.double().numpy(), k.numpy(), window, sigma)
        for p, t, k in zip(prediction[:, 0], target[:, 0], counted[:, 0], strict=True)
    ]
    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-4)


def test_one_where_equal_and_less_with_noise() -> None:
    prediction, target, _ = _volumes()
    everywhere = torch.ones_like(target, dtype=torch.bool)
    torch.testing.assert_close(ssim(target, target, everywhere), torch.ones(2, 1))
    half = ssim((prediction + target) / 2, target, everywhere)
    assert (half < 1).all()
    assert (ssim(prediction, target, everywhere) < half).all()


def test_uncounted_voxels_change_nothing() -> None:
    prediction, target, counted = _volumes()
    before = ssim(prediction, target, counted)
    assert torch.equal(ssim(prediction.where(counted, torch.nan), target.where(counted, 1e9), counted), before)


def test_empty_masks_and_empty_batches() -> None:
    prediction, target, counted = _volumes()
    prediction.requires_grad_()
    nothing = ssim(prediction, target, torch.zeros_like(counted))
    nothing.sum().backward()
    assert nothing.tolist() == [[0.0], [0.0]]
    assert prediction.grad is not None
    assert not prediction.grad.any()
    assert ssim(prediction[:0], target[:0], counted[:0]).shape == (0, 1)


def test_half_precision_around_it_does_not_matter() -> None:
    volumes = _volumes()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ssim(*volumes)
    assert torch.equal(inside, ssim(*volumes))
