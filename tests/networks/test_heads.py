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
