"""Strong and weak: what is changed and what stays in place, who is sure, and what is learned from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.sample.batch import Batch
from oligovox.semi.strong_weak import Settings, StrongWeak

SEQUENCES = ("T1w", "FLAIR")
CLOCK = Clock(5, 10)


def method(**chosen: object) -> StrongWeak:
    """A student that has left its teacher behind."""
    torch.manual_seed(0)
    one = StrongWeak(ResEnc(SEQUENCES, ResEncSettings(preset="nano")), Settings(**chosen))
    moved(one.task.network)
    return one


def moved(network: nn.Module) -> None:
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(1.3)


def batch() -> Batch:
    """One labelled sample, two that nobody looked at; 0 outside the foreground."""
    rng = torch.Generator().manual_seed(0)
    label = torch.randint(0, 2, (3, 16, 16, 16), generator=rng)
    label[1:] = -1
    foreground = torch.rand(3, 1, 16, 16, 16, generator=rng) < 0.8
    return Batch(
        image=torch.randn(3, 2, 16, 16, 16, generator=rng) * foreground,
        present=torch.ones(3, 2, dtype=torch.bool),
        foreground=foreground,
        spacing=torch.ones(3, 3),
        label=label,
        modalities=SEQUENCES,
        cases=("a", "b", "c"),
    )


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("mode", ["classes", "regions"])
def test_what_the_teacher_is_sure_of_is_learned(mode: str) -> None:
    threshold = {"classes": 0.5, "regions": 0.6}[mode]
    task, seen = {"mode": mode, "labels": ["lesion", "hole"], "prior": 0.5}, batch()
    one = method(task=task, threshold=threshold, boxes=1.0)
    views = one.views(seen, rng())
    said = one.task.probability(one.teacher.module(seen.image[1:], seen.present[1:]))

    def cost(logits: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        costs, p = [], one.task.probability(logits)
        for i, box in enumerate(boxes):
            q, inside = said[i].clone(), seen.foreground[i + 1, 0].clone()
            q[:, box], inside[box] = said[1 - i][:, box], seen.foreground[2 - i, 0][box]
            entropy, dice, part = 0.0, [], []
            for k in range(len(q)):
                if mode == "classes":
                    sure, true = q.amax(0) >= threshold, q.argmax(0) == k
                    entropy -= p[i, k][inside & sure & true].log().sum()
                else:
                    sure, true = (q[k] >= threshold) | (q[k] <= 1 - threshold), q[k] > 0.5
                    entropy -= (
                        p[i, k][inside & sure & true].log().sum() + (1 - p[i, k])[inside & sure & ~true].log().sum()
                    ) / 2
                assert 0.1 < sure.float().mean() < 0.9, "this test needs some of both"
                part.append(sure[inside].float().mean())
                t, found = true[inside & sure], p[i, k][inside & sure]
                dice.append((1 - 2 * found[t].sum() / (found.sum() + t.sum())) * t.any())
            dice = dice[1:] if mode == "classes" else dice
            costs.append(entropy / inside.sum() + torch.stack(part).mean() * torch.stack(dice).mean())
        return torch.stack(costs).mean()

    present, network = seen.present[1:], one.task.network
    strong = [cost(network(image, present), boxes) for image, boxes in zip(views.strong, views.boxes, strict=True)]
    features = [f * k for f, k in zip(network.encoder(seen.image[1:], present), views.kept, strict=True)]
    hidden = cost(network.head(network.decoder(features)[0]), torch.zeros_like(views.boxes[0]))
    losses = one.losses(views, CLOCK)
    torch.testing.assert_close(losses.terms["strong"], (strong[0] + strong[1]) / 2)
    torch.testing.assert_close(losses.terms["dropout"], hidden)


def test_nothing_is_learned_where_nothing_is_sure() -> None:
    one = method(threshold=1.0)
    losses = one.losses(one.views(batch(), rng()), CLOCK)
    assert losses.notes == {"sure": 0.0, "sure_lesion": 0.0}
    (losses.terms["strong"] + losses.terms["dropout"]).backward()
    assert losses.terms["strong"] == losses.terms["dropout"] == 0
    assert not any(p.grad.any() for p in one.task.network.parameters())


def test_an_untrained_teacher_is_sure_of_background_and_has_no_say() -> None:
    """Heads expect a lesion in one voxel of a hundred: no threshold holds that back, so the weight does."""
    one = StrongWeak(ResEnc(SEQUENCES, ResEncSettings(preset="nano")), Settings())
    first = one.losses(one.views(batch(), rng()), Clock(0, 1000))
    assert first.notes["sure"] > 0.99
    assert first.notes["sure_lesion"] == 0
    assert all(0 < weight < 0.01 for weight in first.weights.values())
    last = one.losses(one.views(batch(), rng()), Clock(1000, 1000))
    assert sum(last.weights.values()) == 1


def test_strong_views_keep_their_place_and_differ() -> None:
    seen = batch()
    present = torch.tensor([[True, True], [True, False], [True, False]])
    seen = replace(seen, present=present, image=seen.image * present[:, :, None, None, None])
    views = method(strong_views=3, boxes=0.0).views(seen, rng())
    assert views.strong.shape == (3, 2, 2, 16, 16, 16)
    for view in views.strong:
        assert not torch.equal(view[:, 0], seen.image[1:, 0])
        assert torch.equal(view[:, 0] != 0, seen.foreground[1:, 0]), "intensities change, nothing moves"
        assert not view[:, 1].any(), "an absent sequence stays absent"
    assert not torch.equal(views.strong[0], views.strong[1])
    assert torch.equal(views.image, seen.image)
    plain = method(strength=0.0, boxes=0.0).views(seen, rng())
    assert all(torch.equal(view, seen.image[1:]) for view in plain.strong)


def test_boxes_show_the_other_sample_of_the_same_sequences() -> None:
    seen = batch()
    views = method(strength=0.0, boxes=1.0, strong_views=4).views(seen, rng())
    for view, box in zip(views.strong, views.boxes, strict=True):
        for i in range(2):
            assert torch.equal(view[i], seen.image[2 - i].where(box[i], seen.image[1 + i]))
            assert 0.01 < box[i].float().mean() < 0.4
    other = replace(seen, present=torch.tensor([[True, True], [True, True], [False, True]]))
    assert not method(boxes=1.0).views(other, rng()).boxes.any()
    alone = method(strength=0.0, boxes=1.0).views(seen.samples([0, 1]), rng())
    assert all(torch.equal(view, seen.image[1:2]) for view in alone.strong)


def test_channels_are_hidden_in_the_dropout_view() -> None:
    one, seen = method(), batch()
    views = one.views(seen, rng())
    assert [k.shape[:2] for k in views.kept] == [(2, c) for c in one.task.network.encoder.channels]
    assert {k for level in views.kept for k in level.flatten().tolist()} == {0.0, 2.0}
    one = method(strength=0.0, boxes=0.0, dropout=0.0, threshold=0.5)
    terms = one.losses(one.views(seen, rng()), CLOCK).terms
    torch.testing.assert_close(
        terms["dropout"], terms["strong"]
    )  # nothing hidden, nothing changed: both are the weak view


def test_weights() -> None:
    views = method().views(batch(), rng())
    assert method(ramp=0.0).losses(views, Clock(0, 1)).weights == {"strong": 0.5, "dropout": 0.5}
    rising = method(weight=2.0, dropout_share=0.25, ramp=1.0).losses(views, Clock(0, 1)).weights
    assert rising == pytest.approx({"strong": 1.5 * 0.006738, "dropout": 0.5 * 0.006738}, rel=1e-3)


def test_the_teacher_learns_by_following_only() -> None:
    one = method(momentum=0.0, threshold=0.5)
    losses = one.losses(one.views(batch(), rng()), Clock(8, 10))
    losses.total.backward()
    assert all(p.grad is None for p in one.teacher.parameters())

    def same() -> bool:
        pairs = zip(one.teacher.module.parameters(), one.task.network.parameters(), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    assert not same()
    one.after_step(losses, Clock(8, 10))
    assert same(), "without momentum it is the network itself"
    one.begin(moved)
    assert same(), "a start is the teacher's start as well"
    assert one.export() is one.task.network
    assert method(predict_with="teacher").export().head is not None
