import pytest
import torch

from oligovox.errors import GeometryError
from oligovox.networks.resenc import PRESETS, ResEnc, Settings

ALL = torch.ones(1, 2, dtype=torch.bool)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_consistent_tables(preset):
    sizes = PRESETS[preset]
    assert len(sizes.channels) == len(sizes.blocks)
    assert list(sizes.channels) == sorted(sizes.channels)
    assert min(sizes.blocks) >= 1


def test_parameters_of_the_smallest_preset_by_hand():
    stem = 27 * 2 * 2 * 8 + 8
    first = 2 * (27 * 8 * 8 + 2 * 8)
    later = sum(27 * (i * o + o * o) + i * o + 3 * 2 * o for i, o in [(8, 16), (16, 32)])
    encoder = ResEnc(("T1w", "FLAIR"), Settings(preset="nano"))
    assert sum(p.numel() for p in encoder.parameters()) == stem + first + later


def test_stem_stride_halves_every_grid():
    encoder = ResEnc(("T1w", "FLAIR"), Settings(preset="nano", stem_stride=2))
    assert encoder.strides == (2, 4, 8)
    assert [f.shape[2:] for f in encoder(torch.zeros(1, 2, 16, 16, 24), ALL)] == [(8, 8, 12), (4, 4, 6), (2, 2, 3)]


def test_availability_matters_far_from_every_border():
    """Behind an instance norm it would show only where the zero padding does: 0.06 here, and less in larger images."""
    torch.manual_seed(0)
    encoder = ResEnc(("T1w", "FLAIR"), Settings(preset="nano"))
    image = torch.randn(1, 2, 32, 32, 32)
    image[:, 1] = 0
    with torch.no_grad():
        both, one = (encoder(image, torch.tensor([[True, seen]]))[0] for seen in (True, False))
    assert (both - one)[..., 14:18, 14:18, 14:18].abs().mean() > 0.2 * one.std()


def test_a_single_deepest_voxel_is_refused():
    encoder = ResEnc(("T1w", "FLAIR"), Settings(preset="nano"))
    with pytest.raises(GeometryError, match="8 × 8 × 8"):
        encoder(torch.zeros(1, 2, 4, 4, 4), ALL)
    encoder(torch.zeros(1, 2, 8, 4, 4), ALL)
