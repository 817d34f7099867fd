import math

import pytest
import torch
from torch import nn

from oligovox.errors import SettingsError
from oligovox.networks.transfer import transfer
from oligovox.networks.vit import Settings, TokenBlock, ViT, from_cubes, positions, to_cubes
from oligovox.settings import parse

SMALL = Settings(token=4, width=24, depth=3, heads=2, feature_size=4)
SIDES = (8, 12, 16)


def build(modalities=("T1w", "FLAIR")):
    torch.manual_seed(0)
    return ViT(modalities, SMALL)


@pytest.mark.parametrize(("token", "channels"), [(4, (5, 10, 24)), (8, (5, 10, 20, 24)), (16, (5, 10, 20, 40, 24))])
def test_strides_double_down_to_the_token(token, channels):
    encoder = ViT(("T1w",), Settings(token=token, width=24, depth=1, heads=2, feature_size=5))
    assert encoder.channels == channels
    assert encoder.strides == tuple(2**level for level in range(len(channels)))


@pytest.mark.parametrize(("depth", "taps"), [(6, (1, 3)), (12, (3, 7)), (1, (0, 0))])
def test_coarser_features_come_from_later_blocks(depth, taps):
    encoder = ViT(("T1w",), Settings(token=8, width=24, depth=depth, heads=2))
    assert encoder.taps == taps  # the deepest feature is the output, after the last block


def test_cubes_are_the_image_cut_up_and_put_together_again():
    image = torch.arange(2.0 * 3 * math.prod(SIDES)).reshape(2, 3, *SIDES)
    cubes = to_cubes(image, 4)
    assert cubes.shape == (2, 3, 2 * 3 * 4, 64)
    assert torch.equal(cubes[1, 2, 1 * 12 + 2 * 4 + 3], image[1, 2, 4:8, 8:12, 12:16].flatten())
    assert torch.equal(from_cubes(cubes, SIDES), image)


def test_positions_tell_all_places_apart_by_the_values_of_the_formula():
    found = positions((2, 3, 4), 12)
    assert torch.cdist(found, found).add(torch.eye(24)).min() > 0.1
    x, y, z = 1.0, 2.0, 3.0
    slow = 1e-4
    by_hand = [[math.sin(p), math.sin(p * slow), math.cos(p), math.cos(p * slow)] for p in (x, y, z)]
    torch.testing.assert_close(found[-1], torch.tensor(by_hand).flatten())


def test_a_block_is_attention_and_a_perceptron_beside_skips():
    torch.manual_seed(0)
    block, tokens, seen = TokenBlock(8, 2, 16), torch.randn(1, 5, 8), torch.tensor([[True, True, False, True, True]])
    query, key, value = (
        part.reshape(5, 2, 4) for part in block.read(block.before_attention(tokens))[0].chunk(3, dim=1)
    )
    scores = torch.einsum("nhc,khc->hnk", query, key) / 2.0
    share = scores.masked_fill(~seen[0], -torch.inf).softmax(2)
    expected = tokens[0] + block.write(torch.einsum("hnk,khc->nhc", share, value).reshape(5, 8))
    expected = expected + block.perceptron(block.before_perceptron(expected))
    torch.testing.assert_close(block(tokens, seen)[0], expected)


def test_a_token_left_out_is_a_token_nobody_reads():
    encoder, seen = build(), torch.rand(1, 48, generator=torch.Generator().manual_seed(0)) < 0.3
    tokens = encoder.tokenise(torch.randn(1, 2, *SIDES)).flatten(1, 2)
    masked = encoder.transform(tokens, seen)[-1][seen]
    left_out = encoder.transform(tokens[seen][None], torch.ones(1, int(seen.sum()), dtype=torch.bool))[-1][0]
    torch.testing.assert_close(left_out, masked)


def test_a_network_of_the_sequences_that_are_there_makes_the_same_of_them():
    """Behind full resolution, where the convolution reads the availability channels as well."""
    both, one = build(), build(("T1w",))
    weights = {f"encoder.{name}": value for name, value in both.state_dict().items()}
    transfer(weights, both.modalities, nn.ModuleDict({"encoder": one}))
    image = torch.randn(1, 2, *SIDES)
    ours = both(image, torch.tensor([[True, False]]))[1:]
    theirs = one(image[:, :1], torch.ones(1, 1, dtype=torch.bool))[1:]
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_a_sample_without_any_sequence_is_finite_and_disturbs_no_other():
    encoder, image = build(), torch.randn(2, 2, *SIDES)
    image[1] = 0
    features = encoder(image, torch.tensor([[True, True], [False, False]]))
    alone = encoder(image[:1], torch.ones(1, 2, dtype=torch.bool))
    for found, expected in zip(features, alone, strict=True):
        assert found.isfinite().all()
        torch.testing.assert_close(found[:1], expected, rtol=1e-4, atol=1e-5)


def test_width_must_fit_heads_and_three_axes_of_sines_and_cosines():
    for width, heads in ((20, 2), (24, 5)):
        with pytest.raises(SettingsError, match=f"width {width} with {heads} heads; expected a multiple of 6 and of"):
            parse(Settings, {"width": width, "heads": heads}, "vit")
