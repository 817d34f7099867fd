"""Swin three-task: the label is how it was turned, what is cut does not leak, and each loss by a second implementation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from oligovox.errors import GeometryError, SettingsError
from oligovox.losses.outliers import contrast_slope
from oligovox.method import Clock, Needs
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.pretext.swin_three_task import BottleneckDecoder, Settings, SwinThreeTask, turned
from oligovox.sample.batch import Batch

CLOCK = Clock(0, 1)
SEQUENCES = ("T1w", "FLAIR")


def _method(**chosen: object) -> SwinThreeTask:
    torch.manual_seed(0)
    return SwinThreeTask(ResEnc(SEQUENCES, ResEncSettings(preset="nano")), Settings(**chosen))


def _batch(samples: int = 2, side: int = 16, absent: bool = True) -> Batch:
    rng = torch.Generator().manual_seed(0)
    foreground = torch.rand(samples, 1, side, side, side, generator=rng) < 0.8
    present = torch.ones(samples, 2, dtype=torch.bool)
    present[-1, 1] = not absent
    image = torch.randn(samples, 2, side, side, side, generator=rng)
    return Batch(
        image=image * foreground * present[:, :, None, None, None],
        present=present,
        foreground=foreground,
        spacing=torch.ones(samples, 3),
        modalities=SEQUENCES,
        cases=tuple(map(str, range(samples))),
    )


def _rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_ten_turns_are_ten_and_each_keeps_its_own_axis() -> None:
    values = torch.rand(1, 4, 4, 4, generator=_rng())
    turns = [turned(values, number) for number in range(10)]
    assert all(not torch.equal(turns[i], turns[j]) for i in range(10) for j in range(i))
    assert torch.equal(turns[0], values)
    for number in range(1, 10):
        axis, quarters = 1 + (number - 1) // 3, 1 + (number - 1) % 3
        others = [a for a in (1, 2, 3) if a != axis]
        assert torch.allclose(turns[number].sum(others), values.sum(others))  # slices across the axis stay in place
        back = turns[number]
        for _ in range(4 - quarters):
            back = turned(back, 3 * (axis - 1) + 1)
        assert torch.equal(back, values)


@pytest.mark.parametrize(("rotations", "classes"), [("one_axis", 4), ("three_axes", 10)])
def test_the_label_is_how_the_view_was_turned(rotations: str, classes: int) -> None:
    method, batch = _method(rotations=rotations, sides=(0.2, 0.5)), _batch(30, side=8)
    views = method.views(batch, _rng())
    assert set(views.turn.tolist()) == set(range(classes))
    for view, number in enumerate(views.turn.tolist()):
        assert torch.equal(views.target[view], turned(batch.image[view % 30], number))
        seen = turned(batch.foreground[view % 30], number) & batch.present[view % 30, :, None, None, None]
        assert torch.equal(views.counted[view], seen)
    assert _method(whole_volume=True).views(_batch(absent=False), _rng()).counted.all()


def test_what_is_asked_of_the_data_is_what_the_terms_that_count_need() -> None:
    assert _method().needs == Needs(together=2, apart=True, unflipped=True)
    assert _method(contrast_weight=0.0).needs == Needs(unflipped=True)
    assert _method(rotation_weight=0.0).needs == Needs(together=2, apart=True)


def test_cuboids_have_the_sides_and_the_share_that_were_asked_for() -> None:
    batch = replace(_batch(40, side=20, absent=False), foreground=torch.ones(40, 1, 20, 20, 20, dtype=torch.bool))
    views = _method(exchanged=0.0).views(batch, _rng())
    share = (views.shown != views.target).float().mean((1, 2, 3, 4))
    assert share.max() < 0.3 + 0.25**3 + 0.01  # the last cuboid may go beyond
    assert 0.1 < share.mean() < 0.16  # the mean of U(0, 0.3) is 0.15, less what overlaps
    one = _method(exchanged=0.0, cut=1e-9).views(batch, _rng())  # exactly one cuboid
    for changed in (one.shown != one.target)[:, 0]:
        place = changed.nonzero()
        sides = (place.amax(0) - place.amin(0) + 1).tolist()
        assert all(1 <= side <= 0.25 * 20 + 1 for side in sides)
        assert changed.sum() == torch.tensor(sides).prod()
    off = _method(exchanged=0.0, cut=0.0).views(batch, _rng())
    assert torch.equal(off.shown, off.target)


def test_what_is_cut_does_not_leak() -> None:
    method, batch = _method(exchanged=0.0), _batch()
    views = method.views(batch, _rng())
    hidden = views.shown != views.target
    other = torch.stack([turned(hidden[v], 4 - t if t else 0) for v, t in enumerate(views.turn.tolist())])
    both = other[:2] & other[2:]  # cut from either view of a sample
    assert both.any()
    changed = method.views(replace(batch, image=batch.image + 5.0 * both), _rng())
    assert torch.equal(changed.shown, views.shown)
    assert not torch.equal(changed.target, views.target)


def test_a_partner_gives_only_what_both_have_and_absent_stays_absent() -> None:
    method, batch = _method(cut=0.0, exchanged=0.9), _batch()
    views = method.views(batch, _rng(4))
    taken = views.shown != views.target
    assert taken[:, 0].any()
    assert not taken[:, 1].any()  # the second sample lacks this sequence
    partner = views.target[[1, 0, 3, 2]]
    assert torch.equal(views.shown[taken], partner[taken])
    noisy = _method(cut=0.9, exchanged=0.9).views(batch, _rng())
    assert not noisy.shown[[1, 3], 1].any()
    assert not noisy.counted[[1, 3], 1].any()


@pytest.mark.parametrize("pool", ["mean", "token"])
def test_the_three_losses_by_hand(pool: str) -> None:
    method, batch = _method(pool=pool, embedding=6, temperature=0.3), _batch(3)
    batch = replace(batch, foreground=batch.foreground & torch.tensor([True, True, False])[:, None, None, None, None])
    views, standard = method.views(batch, _rng()), method.standard
    standard.follow(torch.rand(2, standard.moments.shape[1]) + torch.tensor([[0.0], [2.0]]))
    terms = method.losses(views, CLOCK).terms
    deep = method.encoder(views.shown, views.present)[-1].flatten(2)
    mean = standard(deep.mean(2))
    one, two = (mean, mean) if pool == "mean" else (deep[..., 0], deep[..., 1])
    odds = method.rotation(one).log_softmax(1)
    seen = [0, 1, 3, 4]  # the third sample has no foreground to tell a rotation by
    assert terms["rotation"].item() == pytest.approx(-sum(odds[v, views.turn[v]].item() for v in seen) / 4, rel=1e-5)
    z = nn.functional.normalize(method.contrast(two))
    likeness = (z @ z.T / 0.3).exp()
    terms_by_view = [likeness[v, (v + 3) % 6] / (likeness[v].sum() - likeness[v, v]) for v in range(6)]
    by_hand = -torch.stack(terms_by_view).log().mean()
    assert terms["contrast"].item() == pytest.approx(by_hand.item(), rel=1e-4)
    restored = method.restore(method.decoder(method.encoder(views.shown, views.present))[0])
    by_hand = (restored - views.target)[views.counted].abs().mean()
    assert terms["restore"].item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_the_restoration_head_has_the_widths_of_the_release_and_no_skips() -> None:
    head = BottleneckDecoder((6, 6, 12, 24, 48, 96), (1, 2, 4, 8, 16, 32))  # an eighth of Swin UNETR's
    found = [(m.in_channels, m.out_channels) for m in head.modules() if isinstance(m, nn.Conv3d)]
    assert found == [(96, 48), (48, 24), (24, 12), (12, 6), (6, 6)]
    small = BottleneckDecoder((2, 4, 6), (2, 4, 16))
    deep = torch.randn(1, 6, 2, 2, 2)
    assert small((torch.full((1, 2, 16, 16, 16), torch.nan), deep))[0].shape == (1, 2, 32, 32, 32)


def test_what_leaves() -> None:
    assert {key.split(".")[0] for key in _method().export().state_dict()} == {"encoder"}
    method = _method(restore_from="skips")
    method.losses(method.views(_batch(), _rng()), CLOCK).total.backward()
    assert {key.split(".")[0] for key in method.export().state_dict()} == {"encoder", "decoder"}
    assert all(p.grad is not None and p.grad.any() for p in method.parameters())


def test_what_cannot_work_is_refused() -> None:
    flat = _batch()
    flat = replace(flat, image=flat.image[..., :8], foreground=flat.foreground[..., :8])
    with pytest.raises(GeometryError, match="16 × 16 × 8 voxels: expected equal sides"):
        _method().views(flat, _rng())
    with pytest.raises(GeometryError, match="leave more than one voxel at stride 4"):
        _method().views(_batch(side=4), _rng())
    single = _batch(1, absent=False)
    with pytest.raises(SettingsError, match="use batch 2 or more"):
        _method().losses(_method().views(single, _rng()), CLOCK)
    method = _method(contrast_weight=0.0)
    assert set(method.losses(method.views(single, _rng()), CLOCK).terms) == {"rotation", "restore"}


def test_the_slope_of_flair_that_was_cut_out_is_noted() -> None:
    method = _method()
    views = method.views(_batch(), _rng())
    restored = method.restore(method.decoder(method.encoder(views.shown, views.present))[0])
    cut = views.counted & (views.shown != views.target)
    slope = contrast_slope(restored[:, 1], views.target[:, 1], cut[:, 1])
    assert method.losses(views, CLOCK).notes == {"lesion_slope": pytest.approx(slope.item())}
