"""Cross-consistency training: how features are disturbed, who learns from it, and what stays behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.sample.batch import Batch
from oligovox.semi.cross_consistency import CrossConsistency, Settings, _disturbed, _without_most_active

SEQUENCES = ("T1w", "FLAIR")


def method(**chosen: object) -> CrossConsistency:
    torch.manual_seed(0)
    return CrossConsistency(ResEnc(SEQUENCES, ResEncSettings(preset="nano")), Settings(**chosen))


def batch() -> Batch:
    """One labelled sample, one that nobody looked at."""
    rng = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (2, 16, 16, 16), generator=rng)
    label[1] = -1
    return Batch(
        image=torch.randn(2, 2, 16, 16, 16, generator=rng),
        present=torch.ones(2, 2, dtype=torch.bool),
        foreground=torch.rand(2, 1, 16, 16, 16, generator=rng) < 0.8,
        spacing=torch.ones(2, 3),
        label=label,
        modalities=SEQUENCES,
        cases=("a", "b"),
    )


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("mode", ["classes", "regions"])
def test_the_difference_is_counted_where_nobody_looked(mode: str) -> None:
    one, seen = method(task={"mode": mode, "labels": ["lesion", "hole"]}), batch()
    views = one.views(seen, rng())
    assert views.rows.tolist() == [1]
    features = one.task.network.encoder(views.image[1:], views.present[1:])
    activity = [f.mean(1, keepdim=True) for f in features]
    shown = [
        [f * n for f, n in zip(features, views.noise, strict=True)],
        [f * (scaled(a) <= views.drop_above) for f, a in zip(features, activity, strict=True)],
        [f * k for f, k in zip(features, views.kept, strict=True)],
    ]
    answers = [one.heads[k](one.decoders[k](shown[k])[0]) for k in range(3)]
    answers.append(one.task.network(views.image[1:], views.present[1:]))
    *others, p = (t.sigmoid() if mode == "regions" else t.softmax(1) for t in answers)
    expected = sum((q - p)[0][:, seen.foreground[1, 0]].square().mean() for q in others) / 3
    torch.testing.assert_close(one.losses(views, Clock(5, 10)).terms["consistency"], expected)


def scaled(activity: torch.Tensor) -> torch.Tensor:
    low, high = activity.amin((2, 3, 4), keepdim=True), activity.amax((2, 3, 4), keepdim=True)
    return (activity - low) / (high - low)


def test_the_main_decoder_teaches_and_does_not_learn() -> None:
    one = method()
    one.losses(one.views(batch(), rng()), Clock(9, 10)).terms["consistency"].backward()
    main = [*one.task.network.decoder.parameters(), *one.task.network.head.parameters(), *one.task.coarser.parameters()]
    assert all(p.grad is None for p in main)
    taught = [*one.task.network.encoder.parameters(), *one.decoders.parameters(), *one.heads.parameters()]
    assert all(p.grad is not None and p.grad.any() for p in taught)


def test_the_supervised_part_is_that_of_the_task() -> None:
    one = method()
    views = one.views(batch(), rng())
    terms = one.losses(views, Clock(0, 1)).terms
    alone = one.task.supervised(one.task.scales(views.image, views.present), views.label)
    assert torch.equal(terms["dice"], alone["dice"])
    assert torch.equal(terms["cross_entropy"], alone["cross_entropy"])


def test_draws_lie_in_their_ranges() -> None:
    seen = batch()
    seen = replace(seen, label=torch.full_like(seen.label, -1))
    views = method(noise=0.2, drop_above=(0.4, 0.5), dropout=0.75).views(seen, rng())
    assert [tuple(n.shape[1:]) for n in views.noise] == [(8, 16, 16, 16), (16, 8, 8, 8), (32, 4, 4, 4)]
    assert 0.8 <= views.noise[0].min() < 0.801
    assert 1.199 < views.noise[0].max() <= 1.2
    assert not torch.equal(*views.noise[0]), "each sample has its own"
    assert ((views.drop_above >= 0.4) & (views.drop_above <= 0.5)).all()
    assert set(torch.cat([k.flatten() for k in views.kept]).tolist()) == {0.0, 4.0}


def test_without_disturbances_all_decoders_see_the_same() -> None:
    views = method(noise=0, drop_above=(1, 1), dropout=0).views(batch(), rng())
    features = [torch.randn(n.shape, generator=rng()) for n in views.noise]
    for disturbed in _disturbed(features, views):
        assert all(torch.equal(a, b) for a, b in zip(disturbed, features, strict=True))


def test_what_is_most_active_is_hidden() -> None:
    feature = torch.tensor([[-3.0, -1.0, 0.0, 1.0], [-1.0, -1.0, 0.0, 1.0]]).view(1, 2, 4, 1, 1)  # mean −2, −1, 0, 1
    left = _without_most_active(feature, torch.full((1, 1, 1, 1, 1), 0.5))
    assert left.flatten().tolist() == [-3.0, -1.0, 0.0, 0.0, -1.0, -1.0, 0.0, 0.0]
    constant = torch.ones(1, 2, 4, 1, 1)
    assert torch.equal(_without_most_active(constant, torch.zeros(1, 1, 1, 1, 1)), constant)


def test_labelled_voxels_do_not_count() -> None:
    one = method()
    views = one.views(batch(), rng())
    other = replace(views, image=torch.cat([3 * views.image[:1], views.image[1:]]))
    assert torch.equal(*(one.losses(v, Clock(0, 1)).terms["consistency"] for v in (views, other)))


def test_the_weight_rises_with_the_share_of_the_training() -> None:
    one = method()
    views = one.views(batch(), rng())
    weights = [one.losses(views, Clock(step, 100)).weights["consistency"] for step in (0, 50, 100)]
    assert weights == pytest.approx([0.1 * 0.006738, 0.1 * 0.2865, 0.1], rel=1e-3)


def test_the_other_decoders_stay_behind() -> None:
    one = method()
    others = {id(p) for p in (*one.decoders.parameters(), *one.heads.parameters())}
    exported = {id(p) for p in one.export().parameters()}
    assert len(others) > 0
    assert not others & exported
    assert one.export() is one.task.network


def test_limits_stand_in_order() -> None:
    with pytest.raises(ValueError, match="drop_above"):
        Settings(drop_above=(0.9, 0.7))
