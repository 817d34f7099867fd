import pytest
import torch

from oligovox.networks.compose import EncoderDecoder
from oligovox.networks.decoder import Decoder
from oligovox.networks.heads import ProjectionHead, ReconstructionHead, SegmentationHead
from oligovox.networks.resenc import ResEnc, Settings


def test_voxel_heads_look_at_one_voxel():
    feature = torch.randn(1, 4, 3, 3, 3)
    for head in (SegmentationHead(4, 2), ReconstructionHead(4, 2)):
        out = head(feature)
        expected = head.weight[:, :, 0, 0, 0] @ feature[0, :, 1, 2, 0] + head.bias
        torch.testing.assert_close(out[0, :, 1, 2, 0], expected)


@pytest.mark.parametrize(("prior", "share"), [(0.01, 0.01), (0.2, 0.2), (0.5, 0.25)])
def test_a_head_expects_its_foreground_as_often_as_it_is_told_before_it_has_learned(prior, share):
    nothing = torch.zeros(1, 4, 2, 2, 2)
    classes = SegmentationHead(4, 4).expect(prior, background=True)(nothing).softmax(1)
    torch.testing.assert_close(classes[0, :, 0, 0, 0], torch.tensor([1 - 3 * share, share, share, share]))
    regions = SegmentationHead(4, 3).expect(prior, background=False)(nothing).sigmoid()
    torch.testing.assert_close(regions, torch.full_like(regions, prior))


def test_projection_does_not_depend_on_where():
    head = ProjectionHead(4, 5, hidden=3)
    feature = torch.randn(2, 4, 3, 3, 3)
    assert head(feature).shape == (2, 5)
    torch.testing.assert_close(head(feature), head(feature.flip(2).roll(1, dims=3)))


def test_encoder_decoder_gives_the_full_resolution_feature_with_a_strided_stem_too():
    encoder = ResEnc(("T1w",), Settings(preset="nano", stem_stride=2))
    network = EncoderDecoder(encoder, Decoder(encoder.channels, encoder.strides))
    image, present = torch.randn(1, 1, 16, 16, 16), torch.ones(1, 1, dtype=torch.bool)
    out = network(image, present)
    assert out.shape == (1, network.decoder.channels[0], 16, 16, 16)
    assert torch.equal(out, network.decoder(encoder(image, present))[0])
    assert {key.split(".")[0] for key in network.state_dict()} == {"encoder", "decoder"}
