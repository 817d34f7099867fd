import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oligovox.errors import GeometryError
from oligovox.networks.blocks import ResidualBlock, check_sides, initialise


@pytest.mark.parametrize(("channels", "stride"), [((4, 4), 1), ((4, 8), 1), ((4, 4), 2), ((4, 8), 2)])
def test_the_skip_carries_what_the_body_leaves_out(channels, stride):
    block = ResidualBlock(*channels, stride)
    torch.nn.init.zeros_(block.body[-1].weight)
    x = torch.rand(1, channels[0], 4, 4, 4)
    expected = torch.nn.functional.avg_pool3d(x, stride) if stride > 1 else x
    if channels[0] != channels[1]:
        expected = torch.nn.functional.instance_norm(torch.nn.functional.conv3d(expected, block.skip[-2].weight))
    torch.testing.assert_close(block(x), torch.nn.functional.leaky_relu(expected, 0.01), rtol=1e-4, atol=1e-5)


def test_initialise_keeps_the_size_of_activations():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(*(torch.nn.Conv3d(32, 32, 3, padding=1, padding_mode="circular") for _ in range(6)))
    layers.apply(initialise)
    x = torch.randn(1, 32, 8, 8, 8)
    for layer in layers:
        x = torch.nn.functional.leaky_relu(layer(x), 0.01)
    assert 0.1 < x.square().mean() < 10  # torch's own initialisation leaves 1e-5


@given(st.tuples(*[st.integers(1, 40)] * 3), st.sampled_from([1, 2, 4, 8]), st.booleans())
def test_the_size_it_proposes_is_accepted_and_not_smaller(sides, multiple, normalised):
    try:
        check_sides(sides, multiple, normalised=normalised)
    except GeometryError as error:
        proposed = [int(n) for n in str(error).split("fits is ")[1].split(" × ")]
        assert all(p >= s for p, s in zip(proposed, sides, strict=True))
        check_sides(proposed, multiple, normalised=normalised)
    else:
        assert all(side % multiple == 0 for side in sides)


def test_a_single_voxel_is_refused_only_before_a_norm():
    check_sides((4, 4, 4), 4, normalised=False)
    check_sides((8, 4, 4), 4, normalised=True)
    with pytest.raises(GeometryError) as caught:
        check_sides((4, 4, 4), 4, normalised=True)
    assert str(caught.value) == (
        "image of 4 × 4 × 4 voxels: every side must be a multiple of 4 and leave more than one voxel at stride 4; "
        "the next size that fits is 8 × 8 × 8"
    )
