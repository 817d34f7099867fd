"""SparK: hidden blocks do not exist for the encoder: not in convolutions, not in norms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oligovox.errors import SettingsError
from oligovox.losses.outliers import contrast_slope
from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.networks.vit import Settings as ViTSettings
from oligovox.networks.vit import ViT
from oligovox.pretext.spark import Settings, SparK, masked_norm, sparse
from oligovox.sample.batch import Batch

CLOCK = Clock(0, 1)
SEQUENCES = ("T1w", "FLAIR")


def _method(**chosen: object) -> SparK:
    torch.manual_seed(0)
    method = SparK(ResEnc(SEQUENCES, ResEncSettings(preset="nano")), Settings(**{"block": 4, **chosen}))
    for name, parameter in method.network.encoder.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)  # zeros would hide a place that a bias wakes
    return method


def _batch(side: int = 16) -> Batch:
    rng = torch.Generator().manual_seed(0)
    foreground = torch.rand(2, 1, side, side, side, generator=rng) < 0.8
    present = torch.tensor([[True, True], [True, False]])
    image = torch.randn(2, 2, side, side, side, generator=rng)
    return Batch(
        image=image * foreground * present[:, :, None, None, None],
        present=present,
        foreground=foreground,
        spacing=torch.ones(2, 3),
        modalities=SEQUENCES,
        cases=("a", "b"),
    )


def _rng() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_a_visible_cube_has_the_features_of_an_image_that_is_no_larger() -> None:
    """Zero padding is what a network knows of a place that does not exist."""
    encoder, batch = _method().network.encoder, _batch()
    place = (slice(4, 12), slice(0, 8), slice(8, 16))
    visible = torch.zeros(2, 1, 16, 16, 16, dtype=torch.bool)
    visible[:, :, *place] = True
    with sparse(encoder, visible):
        found = encoder(batch.image * visible, batch.present)
    expected = encoder(batch.image[:, :, *place], batch.present)
    for feature, alone, stride in zip(found, expected, encoder.strides, strict=True):
        inside = tuple(slice(part.start // stride, part.stop // stride) for part in place)
        torch.testing.assert_close(feature[:, :, *inside], alone, rtol=1e-4, atol=1e-4)


def test_with_everything_visible_it_is_the_plain_encoder_and_afterwards_too() -> None:
    encoder, batch = _method().network.encoder, _batch()
    plain = encoder(batch.image, batch.present)
    with sparse(encoder, torch.ones_like(batch.foreground)):
        everything = encoder(batch.image, batch.present)
    for one, other, again in zip(plain, everything, encoder(batch.image, batch.present), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)
        assert torch.equal(again, one)


def test_masked_norm_by_hand() -> None:
    norm = torch.nn.InstanceNorm3d(1, affine=True, eps=0)
    norm.weight.data.fill_(2.0)
    norm.bias.data.fill_(1.0)
    x = torch.tensor([1.0, 3.0, 100.0]).reshape(1, 1, 3, 1, 1)
    visible = torch.tensor([True, True, False]).reshape(1, 1, 3, 1, 1)
    assert masked_norm(x, visible, norm).flatten().tolist() == [-1.0, 3.0, 0.0]


@pytest.mark.parametrize(("block", "edge"), [(3, 4), (4, 4), (6, 8), (16, 16)])
def test_an_exact_share_of_blocks_that_every_feature_s_grid_divides(block: int, edge: int) -> None:
    views = _method(block=block).views(_batch(32), _rng())
    blocks = torch.nn.functional.avg_pool3d(views.visible.float(), edge)
    assert set(blocks.unique().tolist()) == {0.0, 1.0}
    number = (32 // edge) ** 3
    assert blocks.sum((1, 2, 3, 4)).tolist() == [number - round(0.75 * number)] * 2
    assert not torch.equal(*views.visible)


def test_one_block_always_stays() -> None:
    views = _method(block=16, ratio=0.99).views(_batch(32), _rng())
    assert views.visible.sum((1, 2, 3, 4)).tolist() == [16**3] * 2


def test_what_is_hidden_does_not_leak_but_is_asked_for() -> None:
    method, batch = _method(), _batch()
    views = method.views(batch, _rng())
    other = method.views(replace(batch, image=batch.image + 5.0 * views.counted), _rng())
    assert views.counted.any()
    assert torch.equal(other.image, views.image)
    assert method.losses(other, CLOCK).total > method.losses(views, CLOCK).total


def test_the_loss_by_hand_with_a_vector_at_every_hidden_place() -> None:
    method, batch = _method(), _batch()
    views = method.views(batch, _rng())
    with torch.no_grad(), sparse(method.network.encoder, views.visible):
        features = method.network.encoder(views.image, views.present)
    for feature, token, stride in zip(features, method.tokens, (1, 2, 4), strict=True):
        hidden = torch.nn.functional.max_pool3d(views.visible.float(), stride) == 0
        feature.copy_(feature * ~hidden + token * hidden)
    error = (method.restore(method.network.decoder(features)[0]) - batch.image).square()
    asked = ~views.visible & batch.foreground & batch.present[:, :, None, None, None]
    torch.testing.assert_close(method.losses(views, CLOCK).total, error[asked].mean())


def test_encoders_that_mix_places_otherwise_are_refused() -> None:
    vit = ViT(SEQUENCES, ViTSettings(token=4, width=24, depth=1, heads=2))
    fusing = ResEnc(SEQUENCES, ResEncSettings(preset="nano", bottleneck="contextual_fusion"))
    for encoder, layer in ((vit, "LayerNorm"), (fusing, "Sigmoid")):
        with pytest.raises(SettingsError, match=f"the encoder has .*{layer}.*; expected convolutions"):
            SparK(encoder, Settings())


def test_the_slope_of_hidden_flair_is_noted() -> None:
    method, restored = _method(), []
    method.restore.register_forward_hook(lambda _module, _given, made: restored.append(made))
    views = method.views(_batch(), _rng())
    found = method.losses(views, CLOCK).notes
    slope = contrast_slope(restored[0][:, 1], views.target[:, 1], views.counted[:, 1])
    assert found == {"lesion_slope": pytest.approx(slope.item())}
