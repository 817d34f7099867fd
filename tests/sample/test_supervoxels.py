"""Supervoxels: everything inside belongs to one, borders follow the image, sizes are as asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from oligovox.errors import SettingsError
from oligovox.sample.supervoxels import supervoxels


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _ball(side: int = 24) -> Tensor:
    axis = torch.linspace(-1, 1, side)
    return axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis**2 < 0.9


def test_every_voxel_inside_has_a_number_and_none_outside() -> None:
    inside = _ball()
    number = supervoxels(torch.randn(2, 24, 24, 24, generator=_rng()), inside, (8.0, 8.0, 8.0), 0.5, _rng())
    assert torch.equal(number >= 0, inside)
    assert (number[~inside] == -1).all()


def test_what_lies_outside_has_no_say() -> None:
    inside, image = _ball(), torch.randn(2, 24, 24, 24, generator=_rng())
    left, right = (supervoxels(i, inside, (8.0, 8.0, 8.0), 0.5, _rng()) for i in (image, image + 50.0 * ~inside))
    assert torch.equal(left, right)


def test_borders_follow_an_edge_of_the_image_unless_compactness_is_large() -> None:
    """An oblique plane parts dark from bright: which share of the voxels is in a supervoxel of the other kind?"""
    place = torch.stack(torch.meshgrid(*[torch.arange(24)] * 3, indexing="ij"))
    bright = 2 * place[0] + place[1] > 36

    def misplaced(compactness: float) -> float:
        number = supervoxels(4.0 * bright[None].float(), torch.ones_like(bright), (8.0, 8.0, 8.0), compactness, _rng())
        size, light = number.flatten().bincount(), number[bright].bincount(minlength=int(number.max()) + 1)
        return torch.minimum(light, size - light).sum().item() / bright.numel()

    assert misplaced(0.2) < 0.025  # what is left lies at the plane, where the 3³ mean blurs
    assert misplaced(100.0) > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_without_contrast_the_pieces_have_the_asked_size(seed: int) -> None:
    inside = torch.ones(24, 24, 24, dtype=torch.bool)
    number = supervoxels(torch.zeros(1, 24, 24, 24), inside, (6.0, 8.0, 12.0), 0.5, _rng(seed))
    voxels = [(number == n).nonzero() for n in number.unique()]
    assert sum(len(v) for v in voxels) / len(voxels) == pytest.approx(6 * 8 * 12, rel=0.3)
    extent = torch.stack([v.amax(0) - v.amin(0) + 1 for v in voxels]).float().mean(0)
    torch.testing.assert_close(extent, torch.tensor([6.0, 8.0, 12.0]), rtol=0.3, atol=0)


def test_the_grid_has_a_random_place() -> None:
    inside, image = _ball(), torch.randn(1, 24, 24, 24, generator=_rng())
    one, same, other = (supervoxels(image, inside, (8.0,) * 3, 1.0, _rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_channels_are_weighed_as_one_whatever_their_number() -> None:
    """Twice the same image says what the image says once."""
    inside, image = _ball(), torch.randn(1, 24, 24, 24, generator=_rng())
    once, twice = (supervoxels(i, inside, (8.0,) * 3, 0.5, _rng()) for i in (image, image.expand(2, -1, -1, -1)))
    assert (once == twice).float().mean() > 0.999  # but for rounding


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(SettingsError, match="at least 1 voxel"):
        supervoxels(torch.zeros(1, 4, 4, 4), torch.ones(4, 4, 4, dtype=torch.bool), (0.5, 2.0, 2.0), 0.5, _rng())
