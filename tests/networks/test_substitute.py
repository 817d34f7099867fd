"""The learnable image that stands where nothing is shown."""

import pytest
import torch

from oligovox.networks.substitute import Substitute


def test_starts_at_zero_and_is_stretched_over_any_patch():
    substitute = Substitute(2, 2)
    assert not substitute((5, 3, 4)).any()
    substitute.stored.data[0, 1] = 4.0  # rises along x from 0 to 4
    image = substitute((5, 3, 4))
    assert image.shape == (2, 5, 3, 4)
    torch.testing.assert_close(image[0, :, 1, 2], torch.arange(5.0))
    assert not image[1].any()


def test_one_point_is_one_value():
    substitute = Substitute(1, 1)
    substitute.stored.data.fill_(0.5)
    assert torch.equal(substitute((3, 4, 5)), torch.full((1, 3, 4, 5), 0.5))


def test_spread_is_the_norm_of_what_differs_from_each_sequence_s_mean():
    substitute = Substitute(2, 2)
    substitute.stored.data[0] = 3.0  # flat: nothing
    substitute.stored.data[1, 0], substitute.stored.data[1, 1] = 1.0, 2.0  # eight times ½ from the mean
    assert substitute.spread().item() == pytest.approx((8 * 0.25) ** 0.5)


def test_spread_of_a_flat_image_has_a_gradient_of_zero():
    substitute = Substitute(2, 2)
    substitute.spread().backward()
    assert not substitute.stored.grad.any()


def test_rate_is_how_much_faster_adam_moves_the_image():
    slow, fast = Substitute(1, 1), Substitute(1, 1, rate=5.0)
    for substitute in (slow, fast):
        optimiser = torch.optim.Adam(substitute.parameters(), lr=0.01)
        (substitute((2, 2, 2)) - 1).square().mean().backward()
        optimiser.step()
    torch.testing.assert_close(fast.lattice, 5.0 * slow.lattice)
