import pytest
import torch
from torch.nn.functional import normalize

from oligovox.networks.compose import EncoderDecoder
from oligovox.networks.decoder import Decoder
from oligovox.networks.heads import ProjectionHead, ReconstructionHead, SegmentationHead, Standardised
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


def test_standardised_features_have_mean_0_and_spread_1_over_the_steps_before():
    standard, rng, found = Standardised(3), torch.Generator().manual_seed(0), []
    scale, middle = torch.tensor([0.1, 1.0, 5.0]), torch.tensor([0.3, 0.0, -20.0])
    for _ in range(1000):
        pooled = middle + scale * torch.randn(2, 3, generator=rng)
        kept = {name: value.clone() for name, value in standard.state_dict().items()}
        found.append(standard(pooled))
        assert all(torch.equal(value, kept[name]) for name, value in standard.state_dict().items())
        standard.follow(standard.seen(pooled))
    late = torch.cat(found)[400:]
    torch.testing.assert_close(late.mean(0), torch.zeros(3), atol=0.1, rtol=0)
    torch.testing.assert_close(late.std(0), torch.ones(3), atol=0.15, rtol=0)


def test_the_first_steps_are_a_plain_mean_and_nothing_is_known_before_them():
    standard, batches = Standardised(2), torch.randn(5, 4, 2)
    assert torch.equal(standard(batches[0]), batches[0])
    for batch in batches:
        standard.follow(standard.seen(batch))
    torch.testing.assert_close(standard.moments[0], batches.mean((0, 1)))
    torch.testing.assert_close(standard.moments[1], batches.square().mean((0, 1)))


def test_what_is_nearly_the_same_for_all_is_told_apart_once_it_is_standardised():
    """The mean over an instance-normed map hardly depends on what is shown."""
    torch.manual_seed(0)
    encoder, images = ResEnc(("T1w",), Settings(preset="nano")), torch.randn(16, 1, 16, 16, 16)
    images[:, :, :8] *= 4 * torch.rand(16, 1, 1, 1, 1)
    with torch.no_grad():
        pooled = encoder(images, torch.ones(16, 1, dtype=torch.bool))[-1].mean((2, 3, 4))
    standard, others = Standardised(pooled.shape[1]), ~torch.eye(16, dtype=torch.bool)
    standard.follow(standard.seen(pooled))
    before, after = (normalize(v) @ normalize(v).T for v in (pooled, standard(pooled)))
    assert before[others].min() > 0.9
    assert after[others].mean() < 0.1


def test_no_gradient_goes_through_mean_and_spread():
    standard, pooled = Standardised(2), torch.randn(4, 2, requires_grad=True)
    standard.follow(standard.seen(pooled))
    standard(pooled).sum().backward()
    mean, square = standard.moments
    torch.testing.assert_close(pooled.grad, (1 / (square - mean.square()).sqrt()).expand(4, 2))
