"""RimNet: two full branches, of which one hears the other after the first block."""

from __future__ import annotations

import pytest
import torch

from oligovox.errors import SettingsError
from oligovox.networks.rimnet import RimNet, Settings
from oligovox.settings import parse

PRESENT = torch.ones(1, 2, dtype=torch.bool)


def test_sizes_of_the_paper() -> None:
    with torch.device("meta"):
        network = RimNet(("QSM", "FLAIR"), Settings())
        deep = network(torch.rand(1, 2, 64, 64, 64), PRESENT.to("meta"))[-1]
    assert deep.shape == (1, 2, 8, 8, 8)
    assert network.channels == (64, 128, 256, 2)
    entering = {name: [block[0].in_channels for block in blocks] for name, blocks in network.blocks.items()}
    assert entering == {"QSM": [2, 32, 64], "FLAIR": [2, 64, 64]}


@pytest.mark.parametrize(("changed", "alike"), [("FLAIR", True), ("QSM", False)])
def test_the_first_branch_is_lent_to_the_second_and_not_back(changed: str, alike: bool) -> None:
    torch.manual_seed(0)
    network = RimNet(("QSM", "FLAIR"), Settings(preset="nano"))
    image = torch.rand(1, 2, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    other = image.clone()
    channel = network.modalities.index(changed)
    other[:, channel] += 1.0
    unchanged = 1 - channel  # the branch of the sequence that stayed the same
    before, after = (network(x, PRESENT)[-1][:, unchanged] for x in (image, other))
    assert torch.equal(before, after) == alike


def test_a_missing_sequence_is_named() -> None:
    with pytest.raises(SettingsError, match="FLAIR is missing"):
        RimNet(("QSM", "T1w"), Settings())
    with pytest.raises(SettingsError, match="both FLAIR; name two"):
        parse(Settings, {"first": "t2f"}, "test")
