"""Contextual fusion: several receptive fields, a gate, and nothing at all when it is off."""

from __future__ import annotations

import pytest
import torch

from oligovox.errors import GeometryError
from oligovox.networks.compose import EncoderDecoder
from oligovox.networks.decoder import Decoder
from oligovox.networks.encoder import Encoder
from oligovox.networks.fusion import ContextualFusion
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.networks.swin import Settings as SwinSettings
from oligovox.networks.swin import Swin
from oligovox.networks.transfer import transfer

SEQUENCES = ("T1w", "FLAIR")


def _resenc(bottleneck: str = "contextual_fusion", seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return ResEnc(SEQUENCES, ResEncSettings(preset="nano", bottleneck=bottleneck))


def _swin(bottleneck: str = "contextual_fusion") -> Encoder:
    torch.manual_seed(0)
    return Swin(SEQUENCES, SwinSettings(feature_size=12, depths=(1, 1, 1, 1), window=4, bottleneck=bottleneck))


def _image(*sides: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 2, *sides, generator=torch.Generator().manual_seed(1)), torch.ones(2, 2, dtype=torch.bool)


def test_feature_plus_gate_times_joined_branches_by_hand() -> None:
    """C = 8: a gate of 1/2, branches switched off but the mean over the grid, which is then added at half its value."""
    block = ContextualFusion(8)
    for parameter in block.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        block.whole[0].weight[0, 3] = 1.0  # mean of channel 3 → first of the two features of the last branch
        block.join.weight[5, 8] = 4.0  # → channel 5
    feature = torch.rand(2, 8, 3, 4, 5)
    expected = feature.clone()
    expected[:, 5] += 0.5 * 4.0 * feature[:, 3].mean((1, 2, 3))[:, None, None, None]
    torch.testing.assert_close(block(feature), expected)


def test_branches_see_1_3_5_and_7_voxels() -> None:
    block = ContextualFusion(8)
    impulse = torch.zeros(1, 8, 9, 9, 9)
    impulse[:, :, 4, 4, 4] = 1.0
    for branch, (dilation, taps) in zip(block.near, [(0, 1), (1, 3), (2, 3), (3, 3)], strict=True):
        touched = (branch[0](impulse) != 0).any(1)[0].nonzero()
        assert len(touched) == taps**3
        assert touched.amin(0).tolist() == [4 - dilation] * 3
        assert touched.amax(0).tolist() == [4 + dilation] * 3


@pytest.mark.parametrize("build", [_resenc, _swin])
def test_an_encoder_changes_in_its_deepest_feature_alone(build) -> None:
    plain, fused = build("plain"), build()
    missing = fused.load_state_dict(plain.state_dict(), strict=False)
    assert missing.unexpected_keys == []
    assert {key.split(".")[0] for key in missing.missing_keys} == {"bottleneck"}
    image, present = _image(64, 32, 32)
    with torch.no_grad():
        before, after = plain(image, present), fused(image, present)
        torch.testing.assert_close(after[-1], fused.bottleneck(before[-1]))
    assert all(torch.equal(one, other) for one, other in zip(before[:-1], after[:-1], strict=True))
    assert not torch.equal(before[-1], after[-1])


@pytest.mark.parametrize("build", [_resenc, _swin])
def test_every_parameter_of_the_block_learns_in_a_segmentation_network(build) -> None:
    encoder = build()
    network = EncoderDecoder(encoder, Decoder(encoder.channels, encoder.strides))
    network(*_image(64, 32, 32)).square().mean().backward()
    assert [name for name, p in encoder.bottleneck.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_it_stays_in_fine_tuning() -> None:
    before, after = (torch.nn.ModuleDict({"encoder": _resenc(seed=seed)}) for seed in (0, 1))
    report = transfer(before.state_dict(), SEQUENCES, after, parts=("encoder",))
    assert report.count("fresh") == 0
    image, present = _image(16, 16, 16)
    assert torch.equal(before.encoder(image, present)[-1], after.encoder(image, present)[-1])


def test_swin_refuses_a_single_deepest_voxel_only_with_fusion() -> None:
    image, present = _image(32, 32, 32)
    assert _swin("plain")(image, present)[-1].shape[2:] == (1, 1, 1)
    with pytest.raises(GeometryError, match="64 × 64 × 64"):
        _swin()(image, present)
