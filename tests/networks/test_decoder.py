import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oligovox.errors import SettingsError
from oligovox.networks.decoder import Decoder


@settings(deadline=None, max_examples=15)
@given(st.sampled_from([(1, 2, 4), (2, 4, 8), (1, 4, 8), (4, 8), (1, 2, 2)]), st.integers(1, 2))
def test_features_full_resolution_first_for_any_strides(strides, convolutions):
    channels = (4, 6, 8)[: len(strides)]
    decoder = Decoder(channels, strides, convolutions=convolutions)
    features = [torch.randn(1, c, 16 // s, 8 // s + 8 // s, 16 // s) for c, s in zip(channels, strides, strict=True)]
    decoded = decoder(features)
    assert decoder.strides[0] == 1
    for out, width, stride in zip(decoded, decoder.channels, decoder.strides, strict=True):
        assert out.shape == (1, width, 16 // stride, 16 // stride, 16 // stride)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_encoder_feature_matters(level):
    torch.manual_seed(0)
    decoder = Decoder((4, 6, 8), (1, 2, 4))
    features = [torch.randn(1, c, 8 // s, 8 // s, 8 // s) for c, s in [(4, 1), (6, 2), (8, 4)]]
    before = decoder(features)[0]
    features[level] = torch.randn_like(features[level])
    assert (decoder(features)[0] - before).abs().mean() > 1e-2


def test_a_voxel_moved_in_every_feature_moves_in_the_output():
    """Skip and upsampled feature are aligned: shifting all inputs by one deepest voxel shifts the output by its stride."""
    torch.manual_seed(0)
    decoder = Decoder((4, 6), (1, 2))
    features = [torch.zeros(1, 4, 16, 16, 16), torch.zeros(1, 6, 8, 8, 8)]
    features[0][..., 6:8, 6:8, 6:8] = torch.randn(1, 4, 2, 2, 2)
    features[1][..., 3, 3, 3] = torch.randn(1, 6)
    shifted = [f.roll(s, dims=2) for f, s in zip(features, (2, 1), strict=True)]
    torch.testing.assert_close(decoder(shifted)[0], decoder(features)[0].roll(2, dims=2))


@pytest.mark.parametrize(("channels", "strides"), [((4,), (1,)), ((4, 8), (2, 3)), ((4, 8, 8), (1, 2))])
def test_impossible_strides_are_refused(channels, strides):
    with pytest.raises(SettingsError, match="at least two, each dividing the next"):
        Decoder(channels, strides)
