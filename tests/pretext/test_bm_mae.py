"""BM-MAE: the exact share of tokens is seen, shared out at random, and nothing hidden leaks, with a ViT and without."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oligovox.errors import SettingsError
from oligovox.losses.outliers import contrast_slope
from oligovox.method import Clock
from oligovox.networks.compose import EncoderDecoder
from oligovox.networks.decoder import Decoder
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.networks.transfer import transfer
from oligovox.networks.vit import Settings as ViTSettings
from oligovox.networks.vit import ViT
from oligovox.pretext.bm_mae import BMMAE, Settings
from oligovox.sample.batch import Batch

CLOCK = Clock(0, 1)
SEQUENCES = ("T1w", "T2w", "FLAIR")
SIDE, TOKEN = 16, 4
TOKENS = (SIDE // TOKEN) ** 3
BOTH = pytest.mark.parametrize("network", ["vit", "resenc"])


def _vit() -> ViT:
    return ViT(SEQUENCES, ViTSettings(token=TOKEN, width=24, depth=2, heads=2, feature_size=4))


def _method(network: str = "resenc", **chosen: object) -> BMMAE:
    torch.manual_seed(0)
    encoder = _vit() if network == "vit" else ResEnc(SEQUENCES, ResEncSettings(preset="nano"))
    return BMMAE(encoder, Settings(token=TOKEN, width=24, heads=2, **chosen))


def _batch() -> Batch:
    """The second sample has one sequence of three."""
    rng = torch.Generator().manual_seed(0)
    foreground = torch.rand(2, 1, SIDE, SIDE, SIDE, generator=rng) < 0.8
    present = torch.tensor([[True, True, True], [False, True, False]])
    image = torch.randn(2, 3, SIDE, SIDE, SIDE, generator=rng)
    return Batch(
        image=image * foreground * present[:, :, None, None, None],
        present=present,
        foreground=foreground,
        spacing=torch.ones(2, 3),
        modalities=SEQUENCES,
        cases=("a", "b"),
    )


def _rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shares", ["dirichlet", "even"])
@pytest.mark.parametrize("ratio", [0.75, 0.3])
def test_the_exact_share_of_acquired_tokens_is_seen(shares: str, ratio: float) -> None:
    method, batch = _method(shares=shares, ratio=ratio), _batch()
    for seed in range(5):
        visible = method.views(batch, _rng(seed)).visible
        assert visible.sum((1, 2)).tolist() == [round((1 - ratio) * TOKENS * acquired) for acquired in (3, 1)]
        assert not (visible.any(2) & ~batch.present).any()


def test_shares_of_two_sequences_are_uniform_or_even() -> None:
    """Dirichlet(1) of two is uniform: mean 1/2, variance 1/12."""
    two = torch.ones(3000, 2, dtype=torch.bool)
    drawn, even = (_method(shares=shares)._choose(two, TOKENS, _rng()).sum(2) for shares in ("dirichlet", "even"))
    share = drawn[:, 0] / drawn.sum(1)
    assert abs(share.mean() - 1 / 2) < 0.02
    assert abs(share.var() - 1 / 12) < 0.005
    assert (even[:, 0] - even[:, 1]).abs().max() <= 1
    places = _method()._choose(two, TOKENS, _rng())[:, 0].float().mean(0)
    assert (places - places.mean()).abs().max() < 0.05  # anywhere in the patch


@BOTH
def test_what_is_hidden_does_not_leak_but_is_asked_for(network: str) -> None:
    method, batch = _method(network), _batch()
    views = method.views(batch, _rng())
    other = method.views(replace(batch, image=batch.image + 5.0 * views.counted), _rng())
    assert views.counted.any()
    assert torch.equal(other.image, views.image)
    assert method.losses(other, CLOCK).total > method.losses(views, CLOCK).total


def test_a_vit_leaves_hidden_tokens_out_instead_of_reading_zeros() -> None:
    method, views = _method("vit"), _method("vit").views(_batch(), _rng())
    noise = torch.randn(views.image.shape, generator=_rng())
    shown = views.image == views.target
    anything = torch.where(shown, views.image, noise)
    expected = method.restore(views.image, views.present, views.visible)
    torch.testing.assert_close(method.restore(anything, views.present, views.visible), expected)
    fewer = views.visible & (torch.rand(views.visible.shape, generator=_rng()) < 0.5)
    assert not torch.allclose(method.restore(views.image, views.present, fewer), expected)


def test_samples_that_see_fewer_tokens_are_restored_as_if_alone() -> None:
    method, views = _method("vit"), _method("vit").views(_batch(), _rng())
    together = method.restore(views.image, views.present, views.visible)
    for sample in range(2):
        one = slice(sample, sample + 1)
        alone = method.restore(views.image[one], views.present[one], views.visible[one])
        torch.testing.assert_close(together[one], alone, rtol=1e-4, atol=1e-5)


@BOTH
def test_the_loss_is_the_sum_over_sequences_of_the_mean_error_of_hidden_foreground(network: str) -> None:
    method, batch = _method(network), _batch()
    views = method.views(batch, _rng())
    tokens = views.visible.reshape(2, 3, *[SIDE // TOKEN] * 3)
    shown = torch.nn.functional.interpolate(tokens.float(), scale_factor=TOKEN) > 0
    asked = ~shown & batch.foreground & batch.present[:, :, None, None, None]
    error = (method.restore(views.image, views.present, views.visible) - batch.image).square()
    expected = sum(error[:, m][asked[:, m]].mean() for m in range(3))
    torch.testing.assert_close(method.losses(views, CLOCK).total, expected)


def test_with_a_vit_all_but_its_convolutions_learns_and_all_of_it_transfers() -> None:
    method = _method("vit")
    method.losses(method.views(_batch(), _rng()), CLOCK).total.backward()
    silent = {name for name, p in method.named_parameters() if p.grad is None or not p.grad.any()}
    beside = {f"restore.encoder.{part}.{name}" for part in ("full", "pyramid") for name, _ in method.restore.encoder.get_submodule(part).named_parameters()}  # fmt: skip
    assert silent == beside
    target = EncoderDecoder(_vit(), Decoder(_vit().channels, _vit().strides))
    report = transfer(method.export().state_dict(), SEQUENCES, target, parts=("encoder",))
    assert report.count("loaded") == len(report.rows)
    assert report.unused == ()
    assert all(p.requires_grad for p in target.parameters())


def test_sizes_that_do_not_fit_the_vit_are_refused() -> None:
    for wrong in ({"token": 8}, {"width": 20}, {"width": 24, "heads": 5}):
        with pytest.raises(SettingsError, match="expected the encoder's token 4 and a width that is a multiple of 6"):
            BMMAE(_vit(), Settings(**{"token": TOKEN, "width": 24, "heads": 2, **wrong}))


def test_the_slope_of_hidden_flair_is_noted() -> None:
    method = _method()
    views = method.views(_batch(), _rng())
    restored = method.restore(views.image, views.present, views.visible)
    slope = contrast_slope(restored[:, 2], views.target[:, 2], views.counted[:, 2])
    assert method.losses(views, CLOCK).notes == {"lesion_slope": pytest.approx(slope.item())}
