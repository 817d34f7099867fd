"""Shuffled weights: the same numbers, another network, and the same one again from the same generator."""

from __future__ import annotations

import torch

from oligovox.networks.redraw import in_random_order, redraw
from oligovox.networks.resenc import ResEnc, Settings


def test_the_values_stay_and_their_places_do_not() -> None:
    value = torch.arange(60.0).view(3, 4, 5)
    one, again = (in_random_order(value, torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, value)
    assert torch.equal(one.flatten().sort().values, value.flatten())


def test_every_weight_of_a_network_is_drawn_again() -> None:
    torch.manual_seed(0)
    network = ResEnc(("T1w", "FLAIR"), Settings(preset="nano"))
    before = {name: weight.clone() for name, weight in network.named_parameters()}
    redraw(network)
    for name, weight in network.named_parameters():
        assert weight.requires_grad
        assert torch.equal(weight.flatten().sort().values, before[name].flatten().sort().values)
        assert weight.ndim == 1 or not torch.equal(weight, before[name])
