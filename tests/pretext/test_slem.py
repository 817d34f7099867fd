"""SLeM: a composition can be told by what blocks show, and by nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from oligovox.errors import GeometryError, SettingsError
from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.pretext.slem import Settings, SLeM, class_set, compose
from oligovox.sample.batch import Batch
from oligovox.sample.pieces import cut, join, layout
from oligovox.settings import parse

CLOCK = Clock(0, 1)
SEQUENCES = ("T1w", "T2w", "FLAIR", "T1wGd", "PDw")
RAW = {"intensity": "none", "gap": 0, "jitter": 0}


def _method(sequences: int = 3, **chosen: object) -> SLeM:
    torch.manual_seed(0)
    encoder = ResEnc(SEQUENCES[:sequences], ResEncSettings(preset="nano"))
    return SLeM(encoder, parse(Settings, chosen, "slem"))


def _batch(samples: int = 4, sequences: int = 3, side: int = 16) -> Batch:
    """Noise whose mean and spread give the sequence away."""
    rng = torch.Generator().manual_seed(0)
    number = torch.arange(sequences).view(-1, 1, 1, 1)
    noise = torch.randn(samples, sequences, side, side, side, generator=rng)
    foreground = torch.rand(samples, 1, side, side, side, generator=rng) < 0.8
    return Batch(
        image=(0.5 * number - 0.5 + (0.3 + 0.5 * number) * noise) * foreground,
        present=torch.ones(samples, sequences, dtype=torch.bool),
        foreground=foreground,
        spacing=torch.ones(samples, 3),
        modalities=SEQUENCES[:sequences],
        cases=tuple("abcdefgh"[i % 8] for i in range(samples)),
    )


def _rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_class_sets_are_those_of_the_paper_and_its_kin() -> None:
    expected = {(4, "every_sequence"): 24, (3, "every_sequence"): 36, (2, "every_sequence"): 14}
    expected |= {(5, "every_sequence"): 120, (4, "all"): 256, (4, "hamming"): 12}
    for (sequences, classes), count in expected.items():
        maps = class_set(sequences, 4, Settings(classes=classes))
        assert maps.shape == (count, 4)
        assert len(maps.unique(dim=0)) == count  # label ↔ map is one to one
        if classes != "all":
            assert {len(row.unique()) for row in maps} == {min(sequences, 4)}
    distance = (maps[:, None] != maps).sum(2) + 9 * torch.eye(len(maps), dtype=torch.long)
    assert distance.min() == 3  # hamming; two of all 24 may differ in 2 blocks only


def test_a_block_shows_its_sequence_in_its_place() -> None:
    batch = _batch()
    where = layout((16, 16, 16), (2, 2, 1), 0.0)
    starts = torch.zeros(len(batch), 4, 3, dtype=torch.long)
    for m in range(3):
        whole = compose(cut(batch.image, where, starts), torch.full((len(batch), 4), m))
        assert torch.equal(join(whole[:, :, None], where), batch.image[:, m : m + 1])
    views = _method(**RAW).views(batch, _rng())
    for i, block in enumerate(views.composition.tolist()):
        for g, m in enumerate(block):
            part = slice(8 * (g // 2), 8 * (g // 2) + 8), slice(8 * (g % 2), 8 * (g % 2) + 8)
            assert torch.equal(views.composite[i, 0][part], batch.image[i, m][part])


@pytest.mark.parametrize("intensity", ["histogram", "moments"])
def test_only_what_is_shown_matters(intensity: str) -> None:
    method, batch = _method(intensity=intensity), _batch()
    views = method.views(batch, _rng())
    source = views.composition.view(-1, 2, 2, 1).repeat_interleave(8, 1).repeat_interleave(8, 2).expand(-1, -1, -1, 16)
    taken = functional.one_hot(source, 3).movedim(-1, 1).bool() & (views.composite != 0)
    assert torch.equal(
        method.views(replace(batch, image=batch.image.where(taken, 7.0)), _rng()).composite, views.composite
    )
    assert not torch.equal(method.views(replace(batch, image=batch.image.where(~taken, 7.0)), _rng()).composite, views.composite)  # fmt: skip
    assert not views.composite[~batch.foreground].any()


def _bent(batch: Batch) -> Batch:
    """Noise of three shapes: normal, skewed, with long tails."""
    image = (batch.image - batch.image.mean((0, 2, 3, 4), keepdim=True)) / batch.image.std((0, 2, 3, 4), keepdim=True)
    powers = torch.arange(1, image.shape[1] + 1).view(-1, 1, 1, 1)
    return replace(batch, image=image.pow(powers) * batch.foreground)


def _mean_and_spread(part: Tensor) -> Tensor:
    return torch.stack([part.sum(1) / (part != 0).sum(1), part.std(1)], 1)


def _skewness_and_tails(part: Tensor) -> Tensor:
    shown = part != 0
    mean = (part.sum(1) / shown.sum(1))[:, None]
    apart = (part - mean) * shown
    spread = (apart.square().sum(1) / shown.sum(1)).sqrt()
    return torch.stack([apart.pow(power).sum(1) / shown.sum(1) / spread**power for power in (3, 4)], 1)


def _accuracy_of_a_glance(intensity: str, glance: Callable[[Tensor], Tensor], bend: Callable[[Batch], Batch]) -> float:
    """Sequence of a block from two numbers of what it shows: the commonest among blocks alike, on unseen blocks."""
    method, features, sources = _method(intensity=intensity, blocks=(2, 2, 2), gap=2, jitter=1), [], []
    for seed in range(8):
        views = method.views(bend(_batch(samples=32, side=12)), _rng(seed))
        for g in range(8):
            x, y, z = (slice(6 * i, 6 * i + 6) for i in (g // 4, g // 2 % 2, g % 2))
            part = views.composite[:, 0, x, y, z].flatten(1)
            features.append(glance(part))
            sources.append(views.composition[:, g])
    feature, source = torch.cat(features), torch.cat(sources)
    shares = torch.linspace(0, 1, 9)[1:-1]
    bins = torch.stack([torch.bucketize(f, f.quantile(shares)) for f in feature.T.contiguous()])
    cell, seen = 8 * bins[0] + bins[1], torch.arange(len(source)) % 2 == 0
    votes = torch.zeros(64, 3).index_put((cell[seen], source[seen]), torch.ones(()), accumulate=True)
    return (votes.argmax(1)[cell[~seen]] == source[~seen]).float().mean().item()


@pytest.mark.parametrize(
    ("intensity", "least", "most"), [("none", 0.8, 1.0), ("moments", 0, 0.42), ("histogram", 0, 0.42)]
)
def test_means_and_spreads_do_not_give_the_sequence_away(intensity: str, least: float, most: float) -> None:
    assert least <= _accuracy_of_a_glance(intensity, _mean_and_spread, lambda batch: batch) <= most  # chance is 1/3


@pytest.mark.parametrize(("intensity", "least", "most"), [("moments", 0.6, 1.0), ("histogram", 0, 0.42)])
def test_only_equal_histograms_take_away_skewness_and_tails(intensity: str, least: float, most: float) -> None:
    assert least <= _accuracy_of_a_glance(intensity, _skewness_and_tails, _bent) <= most


def test_a_strip_as_wide_as_the_gap_lies_over_every_border() -> None:
    batch = replace(_batch(samples=64), foreground=torch.ones(64, 1, 16, 16, 16, dtype=torch.bool))
    shown = _method().views(batch, _rng()).composite[:, 0] != 0
    lines = shown.any(3).any(2)  # along x
    first = (~lines).long().argmax(1)
    assert torch.equal((~lines).sum(1), torch.full((64,), 4))
    assert set(first.tolist()) == {4, 5, 6, 7, 8}  # 8 - 2 ± 2
    assert all(not lines[i, at : at + 4].any() for i, at in enumerate(first.tolist()))
    assert shown.all(3).sum((1, 2)).eq(12 * 12).all()


def test_absent_sequences_are_never_a_source() -> None:
    batch = _batch(samples=64)
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [False, False, False]])
    batch = replace(batch, present=present.repeat(16, 1))
    usual, by_block, any_map = (
        _method(**c).views(batch, _rng()) for c in ({}, {"per_block": True}, {"classes": "all"})
    )
    some = torch.tensor([True, False, False, False]).repeat(16)
    assert torch.equal(usual.asked, some[:, None].expand(-1, 4))
    assert not usual.composite[~some].any()
    for views in (by_block, any_map):
        known = batch.present.any(1)
        assert torch.equal(views.asked.all(1), known)
        assert batch.present.gather(1, views.composition)[known].all()
    for row, there in zip(by_block.composition[batch.present.any(1)], batch.present[batch.present.any(1)], strict=True):
        assert len(row.unique()) == there.sum()


@pytest.mark.parametrize("per_block", [False, True])
def test_the_loss_is_the_smoothed_cross_entropy_of_what_is_asked(per_block: bool) -> None:
    method, batch = _method(per_block=per_block, label_smoothing=0.1, pool="global"), _batch()
    batch.foreground[0, :, :8, :8] = False  # the first block of the first sample
    views = method.views(batch, _rng())
    assert views.asked.logical_not().nonzero().tolist() == [[0, 0]]
    standard = method.standard
    standard.follow(torch.rand(2, standard.moments.shape[1]) + torch.tensor([[0.0], [2.0]]))
    found = method.losses(views, CLOCK)
    pooled = method.encoder(views.composite.expand(-1, 3, -1, -1, -1), batch.present)[-1].mean((2, 3, 4))
    logits = method.compositions.layers(standard(pooled))
    if per_block:
        each = logits.view(4, 3, 4).log_softmax(1)
        picked = each.gather(1, views.composition[:, None])[:, 0]
        expected = -(0.9 * picked + 0.1 * each.mean(1))[views.asked].mean()
    else:
        each = logits.log_softmax(1)
        expected = -(0.9 * each[range(4), views.number] + 0.1 * each.mean(1))[1:].mean()
        assert torch.equal(method.maps[views.number], views.composition)
    torch.testing.assert_close(found.terms["composition"], expected)
    assert found.notes["asked"] == 0.75


def test_shuffled_blocks_come_from_the_place_their_order_names() -> None:
    method, batch = _method(shuffle_positions=6, **RAW), _batch(samples=16)
    views = method.views(batch, _rng())
    assert len(set(views.order.tolist())) > 2
    for i in range(16):
        for g, (m, place) in enumerate(zip(views.composition[i], method.orders[views.order[i]].tolist(), strict=True)):
            shown, asked = (
                image[8 * (at // 2) :, 8 * (at % 2) :][:8, :8]
                for image, at in ((views.composite[i, 0], g), (batch.image[i, m], place))
            )
            assert torch.equal(shown, asked)
    terms = method.losses(views, CLOCK).terms
    assert set(terms) == {"composition", "position"}
    terms["position"].backward()
    assert all(p.grad.any() for p in method.positions.parameters())


def test_what_cannot_work_is_refused() -> None:
    assert _method(1).needs.modalities == 2
    for chosen, message in [
        ({"blocks": (1, 1, 1)}, "at least two in all"),
        ({"jitter": 3}, "half of gap 4"),
        ({"shuffle_positions": 1}, "nothing to tell apart"),
        ({"gamma": (1.5, 0.7)}, "smallest, largest"),
        ({"blocks": (4, 4, 1)}, "fewer blocks"),
    ]:
        with pytest.raises(SettingsError, match=message):
            _method(**chosen)
    with pytest.raises(GeometryError, match="a block has a side of 4 voxels, and strips take up to 4 of it"):
        _method().views(_batch(side=8), _rng())


def test_it_leaves_with_the_encoder_and_its_fusion_block() -> None:
    torch.manual_seed(0)
    encoder = ResEnc(SEQUENCES[:2], ResEncSettings(preset="nano", bottleneck="contextual_fusion"))
    method = SLeM(encoder, Settings())
    method.losses(method.views(_batch(sequences=2), _rng()), CLOCK).total.backward()
    weights = dict(method.export().named_parameters())
    assert any(name.startswith("encoder.bottleneck.gate") for name in weights)
    assert all(p.grad is not None and p.grad.any() for p in weights.values())
