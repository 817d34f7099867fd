"""Models Genesis: what each distortion does, that it can be switched off, and what is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oligovox.errors import SettingsError
from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.pretext.models_genesis import ModelsGenesis, Settings, _bezier
from oligovox.sample.batch import Batch
from oligovox.settings import parse

CLOCK = Clock(0, 1)
SEQUENCES = ("T1w", "FLAIR")
NOTHING = {"shuffle": 0.0, "curve": 0.0, "paint": 0.0}


def _method(**chosen: object) -> ModelsGenesis:
    torch.manual_seed(0)
    encoder = ResEnc(SEQUENCES, ResEncSettings(preset="nano"))
    return ModelsGenesis(encoder, parse(Settings, {"windows": 200, **chosen}, "test"))


def _batch(side: int = 16, samples: int = 2) -> Batch:
    rng = torch.Generator().manual_seed(0)
    foreground = torch.rand(samples, 1, side, side, side, generator=rng) < 0.8
    present = torch.tensor([[True, True], [True, False]]).repeat(samples // 2, 1)
    noise = torch.randn(samples, 2, side, side, side, generator=rng)
    return Batch(
        image=noise * foreground * present[:, :, None, None, None],
        present=present,
        foreground=foreground,
        spacing=torch.ones(samples, 3),
        modalities=SEQUENCES,
        cases=tuple(map(str, range(samples))),
    )


def _rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_without_distortions_the_image_is_shown_as_it_is() -> None:
    batch = _batch()
    views = _method(**NOTHING).views(batch, _rng())
    torch.testing.assert_close(views.spoilt, batch.image, atol=1e-5, rtol=0)
    assert not views.painted.any()


def test_one_window_is_shuffled_within_itself_and_alike_in_all_sequences() -> None:
    method = _method(**NOTHING | {"windows": 1, "window": 0.5})
    image = torch.arange(2 * 16**3, dtype=torch.float32).view(2, 16, 16, 16)
    changes = 0
    for seed in range(8):
        out = method._shuffle(image, _rng(seed))
        assert torch.equal(out.flatten(1).sort(1).values, image.flatten(1))  # nothing lost, nothing doubled
        assert torch.equal(out[1] - out[0], torch.full_like(out[0], 16.0**3))  # both sequences alike
        moved = (out[0] != image[0]).nonzero()
        if len(moved):
            changes += 1
            assert ((moved.amax(0) - moved.amin(0)) < 8).all()  # no further than the window
    assert changes >= 5


def test_overlapping_windows_read_the_image_as_it_was_and_the_last_one_wins() -> None:
    method = _method(**NOTHING | {"windows": 3000, "window": 0.2})
    image = torch.arange(16.0**3).view(1, 16, 16, 16)
    out = method._shuffle(image, _rng())
    assert (out != image).float().mean() > 0.8  # nearly everything is covered
    came_from = torch.stack(torch.unravel_index(out[0].flatten().long(), (16, 16, 16)))
    here = torch.stack(torch.unravel_index(torch.arange(16**3), (16, 16, 16)))
    assert (came_from - here).abs().max() <= 2  # a window of 3 voxels moves a value by at most 2, however many windows


def test_curves_are_the_bezier_curves_of_their_points() -> None:
    u = torch.linspace(0, 1, 50).repeat(3, 1)
    points = torch.tensor(
        [[[1 / 3, 2 / 3], [1 / 3, 2 / 3]], [[1 / 3, 2 / 3], [1 / 3, 2 / 3]], [[0.9, 0.1], [0.2, 0.7]]]
    )
    found = _bezier(u, points, torch.tensor([False, True, False]))
    torch.testing.assert_close(found[0], u[0], atol=1e-4, rtol=0)  # points on the diagonal: the identity
    torch.testing.assert_close(found[1], 1 - u[0], atol=1e-4, rtol=0)
    assert (found[2].diff() >= -1e-6).all()
    assert found[2][[0, -1]].tolist() == pytest.approx([0.0, 1.0], abs=1e-6)


@pytest.mark.parametrize(("falling", "sign"), [(0.0, 1), (1.0, -1)])
def test_a_curve_keeps_air_limits_and_the_order_or_turns_it(falling: float, sign: int) -> None:
    batch = _batch()
    method = _method(**NOTHING | {"curve": 1.0, "decreasing": falling})
    spoilt = method.views(batch, _rng()).spoilt
    air = ~batch.foreground.expand_as(spoilt)
    assert torch.equal(spoilt[air], batch.image[air])
    factors = []
    for sample, sequence in ((0, 0), (0, 1), (1, 0)):
        inside = batch.foreground[sample, 0]
        before, after = batch.image[sample, sequence][inside], spoilt[sample, sequence][inside]
        torch.testing.assert_close(torch.stack(after.aminmax()), torch.stack(before.aminmax()), atol=1e-4, rtol=0)
        assert (sign * after[before.argsort()].diff() >= -1e-5).all()
        factors.append((after - before).std().item())
    assert len({round(f, 3) for f in factors}) == 3  # each has its own curve


@pytest.mark.parametrize(("inpaint", "low", "high"), [(1.0, 0.004, 5 * 0.34**3), (0.0, 1 - 5 * 0.6**3, 1 - 0.4**3)])
def test_painting_covers_boxes_or_all_but_boxes_with_noise_in_the_range_of_the_sequence(
    inpaint: float, low: float, high: float
) -> None:
    batch = _batch(32, 4)
    views = _method(**NOTHING | {"paint": 1.0, "inpaint": inpaint}).views(batch, _rng())
    share = views.painted.float().mean((1, 2, 3, 4))
    assert ((share >= low) & (share <= high)).all()
    known = batch.present[:, :, None, None, None]
    fresh = views.painted & known
    assert (views.spoilt != batch.image)[fresh].float().mean() > 0.99
    torch.testing.assert_close(views.spoilt[~fresh], batch.image[~fresh], atol=1e-5, rtol=0)
    for sample in range(4):
        noise = views.spoilt[sample, 0][views.painted[sample, 0]]
        bottom, top = batch.image[sample, 0].aminmax()
        assert noise.min() >= bottom
        assert noise.max() <= top
        assert abs(noise.mean() - (top + bottom) / 2) < 0.2 * (top - bottom)  # uniform, not the image


def test_what_is_painted_over_does_not_leak() -> None:
    method, batch = _method(shuffle=0.0, curve=1.0, paint=1.0), _batch()
    views = method.views(batch, _rng())
    secret = views.painted & views.counted
    other = replace(batch, image=torch.where(secret, 12.0 - batch.image, batch.image))
    assert secret.any()
    again = method.views(other, _rng())
    assert torch.equal(again.spoilt, views.spoilt)
    assert not torch.equal(method.losses(again, CLOCK).total, method.losses(views, CLOCK).total)


def test_one_painted_voxel_of_an_extreme_value_changes_nothing_that_is_shown() -> None:
    """With shuffling and curves as well: it lies further inside what is painted than a window reaches."""
    method, batch = _method(shuffle=1.0, curve=1.0, paint=1.0), _batch(32)
    views = method.views(batch, _rng())
    deep = torch.nn.functional.avg_pool3d(views.painted.float(), 9, 1, 4, count_include_pad=False) == 1
    sample, _, x, y, z = (deep & batch.foreground).nonzero()[0]
    extreme = batch.image.clone()
    extreme[sample, 0, x, y, z] = 12.0
    again = method.views(replace(batch, image=extreme), _rng())
    assert torch.equal(again.spoilt, views.spoilt)
    assert not torch.equal(again.target, views.target)


def test_the_loss_is_the_mean_square_over_the_foreground_of_acquired_sequences() -> None:
    method, batch = _method(), _batch()
    views = method.views(batch, _rng())
    assert not views.spoilt[1, 1].any()  # an absent sequence stays 0, painted or not
    restored = method.restore(method.network(views.spoilt, views.present))
    known = (batch.foreground & batch.present[:, :, None, None, None]).expand_as(restored)
    losses = method.losses(views, CLOCK)
    torch.testing.assert_close(losses.terms["restore"], (restored - batch.image)[known].square().mean())
    assert set(losses.notes) <= {"lesion_slope"}


def test_limits_out_of_order_are_refused() -> None:
    with pytest.raises(SettingsError, match="inpaint_side"):
        parse(Settings, {"inpaint_side": [0.5, 0.2]}, "test")
