"""Vox-MMSD: what is hidden stays hidden, pairs are the same tissue, and each loss is what the page says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from oligovox.errors import SettingsError
from oligovox.losses.dino import dino_loss
from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.pretext.vox_mmsd import Settings, Views, VoxMMSD
from oligovox.sample.batch import Batch
from oligovox.sample.crops import cut
from oligovox.sample.masks import thrown_blocks

CLOCK = Clock(0, 10)
SEQUENCES = ("T1w", "T2w", "FLAIR")


def _method(**chosen: object) -> VoxMMSD:
    torch.manual_seed(0)
    small = {"pairs": 64, "fewest_pairs": 8, "blocks": 4, "ratio": 0.5} | chosen
    return VoxMMSD(ResEnc(SEQUENCES, ResEncSettings(preset="nano")), Settings(**small))


def _batch() -> Batch:
    rng = _rng(5)
    foreground = torch.rand(2, 1, 16, 16, 16, generator=rng) < 0.8
    present = torch.tensor([[True, True, True], [True, False, True]])
    image = torch.randn(2, 3, 16, 16, 16, generator=rng) * foreground * present[:, :, None, None, None]
    return Batch(
        image=image,
        present=present,
        foreground=foreground,
        spacing=torch.ones(2, 3),
        modalities=SEQUENCES,
        cases=("a", "b"),
    )


def _rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _crops(values: Tensor, views: Views) -> Tensor:
    """The crops of the views, cut from what has the patch's grid."""
    return cut(values.repeat(2, 1, 1, 1, 1), views.starts, views.visible.shape[2:])


def _at(values: Tensor, voxels: Tensor) -> Tensor:
    """(v, c, x, y, z) at (v, n, 3) → (v, n, c)."""
    return torch.stack([v[:, p[:, 0], p[:, 1], p[:, 2]].T for v, p in zip(values, voxels, strict=True)])


def test_blocks_are_hidden_by_throws_of_their_own() -> None:
    apart = thrown_blocks((40, 2, 12, 12, 12), 6, 0.875, _rng())
    assert abs((~apart).float().mean() - 0.125) < 0.01
    assert abs(torch.corrcoef(apart.float().transpose(0, 1).flatten(1))[0, 1]) < 0.05
    together = thrown_blocks((4, 2, 12, 12, 12), 6, 0.875, _rng(), shared=True)
    assert torch.equal(together[:, 0], together[:, 1])
    for even, lengths in ((True, [16] * 6), (False, [10, 19, 19, 19, 19, 10])):
        line = torch.stack(
            [thrown_blocks((1, 1, 96, 1, 1), 6, 0.5, _rng(seed), even=even).flatten() for seed in range(40)]
        )
        borders = [i for i in range(1, 96) if not torch.equal(line[:, i], line[:, i - 1])]
        assert [b - a for a, b in zip([0, *borders], [*borders, 96], strict=True)] == lengths


@pytest.mark.parametrize("masking", ["independent", "shared", "modality"])
def test_what_is_hidden_does_not_leak(masking: str) -> None:
    method, batch = _method(masking=masking, augmented=False), _batch()
    views = method.views(batch, _rng())
    seen = torch.zeros_like(batch.image, dtype=torch.bool)
    for row, (x, y, z) in enumerate(views.starts.tolist()):
        seen[row % 2, :, x : x + 12, y : y + 12, z : z + 12] |= views.visible[row] != 0
    other = replace(batch, image=batch.image.where(seen | (batch.image == 0), 7.0))
    assert not torch.equal(other.image, batch.image)
    changed = method.views(other, _rng())
    torch.testing.assert_close(changed.visible, views.visible)
    assert not torch.allclose(changed.target, views.target)
    torch.testing.assert_close(views.visible, _crops(batch.image, views).where(views.visible != 0, 0.0))
    if masking == "shared":
        assert torch.equal(*((views.visible[:2, [i]] != 0) for i in (0, 2)))
    if masking == "modality":
        assert (views.shown == views.visible.flatten(2).any(2)).all()
        assert views.shown.any(1).all()


def test_one_hidden_voxel_of_an_extreme_value_changes_nothing_that_is_shown() -> None:
    """With the disturbances as well, which are drawn between limits."""
    batch, plain = _batch(), _method(augmented=False)
    views = plain.views(batch, _rng())
    seen = torch.zeros_like(batch.image, dtype=torch.bool)
    for row, (x, y, z) in enumerate(views.starts.tolist()):
        seen[row % 2, :, x : x + 12, y : y + 12, z : z + 12] |= views.visible[row] != 0
    inner = torch.zeros_like(seen)
    inner[..., 4:12, 4:12, 4:12] = True  # in both crops, wherever they lie
    sample, sequence, x, y, z = (inner & ~seen & (batch.image != 0)).nonzero()[0]
    extreme = batch.image.clone()
    extreme[sample, sequence, x, y, z] = 12.0
    before, after = (_method().views(replace(batch, image=image), _rng()) for image in (batch.image, extreme))
    assert torch.equal(after.visible, before.visible)
    assert not torch.equal(after.target, before.target)


@pytest.mark.parametrize("pairing", ["across", "same"])
def test_a_pair_is_the_same_tissue_and_visible_in_both_crops(pairing: str) -> None:
    method, batch = _method(pairing=pairing, augmented=False), _batch()
    views = method.views(batch, _rng())
    places = views.voxels + views.starts[:, None]
    assert views.paired.all()
    assert torch.equal(places[:2], places[2:])
    assert all(len(p.unique(dim=0)) == 64 for p in places[:2])
    assert (views.voxels >= 0).all()
    assert (views.voxels < 12).all()
    assert (views.starts[:2] != views.starts[2:]).any()
    first, second = (_at(views.visible, views.voxels) != 0).chunk(2)
    assert first.any(2).all()
    assert second.any(2).all()
    assert (first & second).any(2).all() == (pairing == "same")


def test_pairs_are_drawn_by_the_odds_that_a_drawn_sequence_is_visible() -> None:
    seen = torch.zeros(2, 2, 16, 16, 16, dtype=torch.bool)  # one sample of two sequences
    seen[:, :, :8] = True  # both visible twice: 4 of 4 drawings
    seen[0, 0, 8:] = seen[1, 1, 8:] = True  # one visible once: 1 of 4, and never the same one
    for pairing, share in (("across", 0.8), ("same", 1.0)):
        method = _method(pairing=pairing, pairs=300)
        voxels, paired = method._pair(seen, torch.zeros(1, 3, dtype=torch.int64), _rng())
        assert paired.all()
        assert (voxels[0, :, 0] < 8).float().mean().item() == pytest.approx(share, abs=0.06)


def test_absent_sequences_and_air_are_no_target() -> None:
    batch = _batch()
    everything = _method(restore_over="all").views(batch, _rng())
    views = _method().views(batch, _rng())
    inside = _crops((batch.foreground & batch.present[:, :, None, None, None]).float(), views) > 0
    assert torch.equal(views.counted, inside)
    assert torch.equal(everything.counted.flatten(2).all(2), batch.present.repeat(2, 1))
    assert not everything.counted[1::2, 1].any()
    assert not views.shown[1::2, 1].any()
    for scale in ("z_score", "min_max"):
        assert not _method(input_scale=scale).views(batch, _rng()).visible[1::2, 1].any()
    assert not views.target[~inside].any()
    for crop, where in zip(views.target.flatten(0, 1), inside.flatten(0, 1), strict=True):
        assert not where.any() or (crop[where].min(), crop[where].max()) == (0, 1)


def test_augmentation_changes_only_what_is_shown() -> None:
    batch = _batch()
    plain, disturbed, release = (
        _method(augmented=a, input_scale=s).views(batch, _rng())
        for a, s in ((False, "z_score"), (True, "z_score"), (True, "min_max"))
    )
    assert torch.equal(plain.target, disturbed.target)
    assert torch.equal(plain.voxels, disturbed.voxels)
    hidden = plain.visible == 0
    assert not disturbed.visible[hidden].any()
    assert (disturbed.visible[~hidden] != plain.visible[~hidden]).float().mean() > 0.99
    assert release.visible[hidden & plain.shown[:, :, None, None, None]].all()  # noise lands on hidden blocks, too


def test_a_descriptor_has_every_scale_at_its_voxel() -> None:
    method = _method()
    views = method.views(_batch(), _rng())
    branch, used = method.student, torch.ones(4, dtype=torch.bool)
    maps = branch.network.decoder(branch.network.encoder(views.visible, views.shown))
    scales = [_at(m, views.voxels // s) for m, s in zip(maps, (1, 2), strict=True)]
    descriptors = torch.cat(scales, dim=2)
    assert descriptors.shape == (4, 64, 8 + 16)
    expected = torch.nn.functional.normalize(branch.projector(descriptors.flatten(0, 1)), dim=1)
    torch.testing.assert_close(branch(views.visible, views.shown, views.voxels, used)[1], expected)
    assert _method(strides=(2,), projection=5).student.projector[-1].weight.shape == (5, 16)
    with pytest.raises(SettingsError, match="strides are 4, the decoder has maps of strides 1, 2; choose"):
        _method(strides=(4,))


def test_each_loss_is_what_the_page_says() -> None:
    method = _method()
    views = method.views(_batch(), _rng())
    method.centre.copy_(torch.randn(24, generator=_rng()) / 5)
    method.centred.fill_(1.0)
    with torch.no_grad():
        for p in method.teacher.parameters():
            p.mul_(1.1)
    used = torch.ones(4, dtype=torch.bool)
    features, s = method.student(views.visible, views.shown, views.voxels, used)
    _, t = method.teacher(views.visible, views.shown, views.voxels, used)
    (p1, p2), (q1, q2) = s.chunk(2), t.chunk(2)
    for progress, heat in ((0.0, 0.04), (0.5 * 0.067, 0.055), (0.5, 0.07)):
        found = method.losses(views, Clock(round(1e6 * progress), 10**6)).terms
        distil = 0.5 * (dino_loss(p2, q1, method.centre, 0.1, heat) + dino_loss(p1, q2, method.centre, 0.1, heat))
        torch.testing.assert_close(found["distil"], distil, rtol=1e-4, atol=0)
        restored = torch.tanh(method.restore(features))
        torch.testing.assert_close(found["restore"], (restored - views.target)[views.counted].abs().mean())


def test_a_sample_with_too_few_pairs_is_left_out() -> None:
    method, batch = _method(), _batch()
    thin = replace(batch, foreground=batch.foreground.clone(), image=batch.image.clone())
    thin.foreground[1], thin.image[1] = False, 0.0
    views = method.views(thin, _rng())
    assert views.paired.tolist() == [True, False]
    alone = {f: getattr(views, f)[::2] for f in ("visible", "shown", "target", "counted", "starts", "voxels")}
    first = Views(**alone, paired=views.paired[:1])
    both, one = (method.losses(v, CLOCK) for v in (views, first))
    torch.testing.assert_close(both.terms["distil"], one.terms["distil"])
    repeated = _method(pairs=4096).views(batch, _rng())  # more than there are: all of them, over and over
    assert repeated.paired.all()
    assert len(repeated.voxels[0].unique(dim=0)) < 12**3
    nothing = method.losses(replace(views, paired=torch.zeros(2, dtype=torch.bool)), CLOCK)
    method.after_step(nothing, CLOCK)
    assert nothing.terms["distil"] == 0
    assert not method.centre.any()
    assert not method.centred


def test_teacher_and_centre_follow_after_the_step() -> None:
    method = _method(momentum=0.75)
    views = method.views(_batch(), _rng())
    losses = method.losses(views, CLOCK)
    losses.total.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    with torch.no_grad():
        for p in method.student.parameters():
            p.add_(1.0)
    before = [p.clone() for p in method.teacher.parameters()]
    method.after_step(losses, Clock(100, 100))  # momentum 1: fixed
    assert all(torch.equal(p, old) for p, old in zip(method.teacher.parameters(), before, strict=True))
    method.after_step(losses, Clock(0, 100))
    for mine, old in zip(method.teacher.parameters(), before, strict=True):
        torch.testing.assert_close(mine, old + 0.25)
    mean = losses.carry["mean"]
    torch.testing.assert_close(method.centre, mean)  # the first mean, not a tenth of it
    method.after_step(replace(losses, carry={"mean": mean + 1, "any_pair": torch.ones(())}), CLOCK)
    torch.testing.assert_close(method.centre, mean + 0.1)
    frozen = _method(freeze_heads=True)
    frozen.losses(views, CLOCK).total.backward()
    heads = [*frozen.student.projector.parameters(), *frozen.restore.parameters()]
    assert all(p.grad is None for p in heads)
    assert all(p.grad is not None for p in frozen.export().parameters())
