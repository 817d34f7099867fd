"""R-Drop: the divergence of the two networks, where it counts, and how they begin."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.sample.batch import Batch
from oligovox.semi.r_drop import RDrop, Settings
from oligovox.tasks import segmentation

SEQUENCES = ("T1w", "FLAIR")
REGIONS = segmentation.Settings(mode="regions", labels={"whole": (1, 2), "core": (2,)})


def method(**chosen: object) -> RDrop:
    torch.manual_seed(0)
    return RDrop(ResEnc(SEQUENCES, ResEncSettings(preset="nano")), Settings(**chosen))


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


def divergence(one: RDrop) -> Tensor:
    return one.losses(one.views(batch(), torch.Generator().manual_seed(1)), Clock(0, 1)).terms["divergence"]


def both_ways(p: Tensor, q: Tensor) -> Tensor:
    """½ (KL(p ‖ q) + KL(q ‖ p)) from its definition, summed over axis 1."""
    return 0.5 * (kl_div(q.log(), p, reduction="none") + kl_div(p.log(), q, reduction="none")).sum(1)


def test_worked_value() -> None:
    """½ (KL + KL) of (0.5, 0.5) and (0.9, 0.1) is 0.2 (ln 0.9/0.5 + ln 0.5/0.1)."""
    first, second = (torch.tensor(p).log().view(1, 2, 1, 1, 1) for p in ((0.5, 0.5), (0.9, 0.1)))
    found = method()._divergence(first, second)
    assert found.item() == pytest.approx(0.2 * (math.log(1.8) + math.log(5.0)), rel=1e-5)


def test_it_is_the_divergence_over_classes_where_nobody_looked() -> None:
    one, seen = method(task={"labels": ["rim", "core"]}), batch()
    logits = [task.network(seen.image, seen.present)[1:, :, seen.foreground[1, 0]] for task in (one.task, one.other)]
    torch.testing.assert_close(divergence(one), both_ways(*(each.softmax(1) for each in logits)).mean())


def test_every_region_is_a_question_of_its_own() -> None:
    one, seen = method(task=REGIONS), batch()
    present = [task.network(seen.image, seen.present)[1, :, seen.foreground[1, 0]] for task in (one.task, one.other)]
    answers = [torch.stack([p.sigmoid(), 1 - p.sigmoid()], dim=1) for p in present]
    torch.testing.assert_close(divergence(one), both_ways(*answers).mean(), rtol=1e-4, atol=1e-6)


def test_it_is_symmetric_and_teaches_both() -> None:
    one = method()
    before = divergence(one)
    before.backward()
    assert all(p.grad is not None and p.grad.any() for p in one.task.network.head.parameters())
    assert all(p.grad is not None and p.grad.any() for p in one.other.network.head.parameters())
    one.task, one.other = one.other, one.task
    torch.testing.assert_close(divergence(one), before)
    one.other.load_state_dict(one.task.state_dict())
    assert divergence(one).item() == 0.0, "two networks that agree"


def test_what_both_add_to_all_classes_of_a_voxel_changes_nothing() -> None:
    """So the classes are compared, not the places."""
    one = method()
    rng = torch.Generator().manual_seed(0)
    first, second, shift = (torch.randn(1, k, 4, 4, 4, generator=rng) for k in (2, 2, 1))
    torch.testing.assert_close(one._divergence(first + shift, second), one._divergence(first, second))


def test_the_two_begin_apart_and_share_a_starts_encoder() -> None:
    one = method()
    for (name, a), b in zip(one.task.named_parameters(), one.other.parameters(), strict=True):
        assert a.ndim == 1 or not torch.equal(a, b), name

    def load(module: nn.Module) -> None:
        for p in module.parameters():
            p.data.fill_(0.25)

    one.begin(load)
    assert one.export() is one.task.network
    assert all((p == 0.25).all() for p in one.task.network.parameters())
    assert all((p == 0.25).all() for p in one.other.network.encoder.parameters())
    assert not any((p == 0.25).all() for p in one.other.network.decoder.parameters())
