"""ResNet-18: sizes of the paper, in both strides of its last stage."""

from __future__ import annotations

import pytest
import torch

from oligovox.networks.resnet18 import Basic, ResNet18, Settings


@pytest.mark.parametrize(("last", "side"), [(1, 4), (2, 2)])
def test_sizes_of_the_paper(last: int, side: int) -> None:
    with torch.device("meta"):
        network = ResNet18(("QSM", "FLAIR"), Settings(last_stride=last))
        features = network(torch.rand(1, 2, 64, 64, 64), torch.ones(1, 2, dtype=torch.bool))
    assert [tuple(f.shape[1:3]) for f in features] == [(64, 16), (128, 8), (256, 4), (512, side)]
    assert (
        sum(isinstance(m, Basic) for m in network.modules()) == 8
    )  # of two convolutions; with stem and classifier 18 layers
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 33.2
