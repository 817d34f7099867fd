"""Cross pseudo supervision: who teaches whom, where, and how the two networks begin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.sample.batch import Batch
from oligovox.semi.cross_pseudo import CrossPseudo, Settings, Views
from oligovox.tasks import segmentation

SEQUENCES = ("T1w", "FLAIR")
REGIONS = segmentation.Settings(mode="regions", labels={"whole": (1, 2), "core": (2,)})


def encoder(seed: int = 0) -> ResEnc:
    torch.manual_seed(seed)
    return ResEnc(SEQUENCES, ResEncSettings(preset="nano"))


def method(**chosen: object) -> CrossPseudo:
    return CrossPseudo(encoder(), Settings(**chosen))


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


def views(one: CrossPseudo) -> Views:
    return one.views(batch(), torch.Generator().manual_seed(1))


def pseudo(one: CrossPseudo) -> Tensor:
    return one.losses(views(one), Clock(0, 1)).terms["pseudo"]


def test_each_learns_the_others_class_where_nobody_looked() -> None:
    one, seen = method(), batch()
    with torch.no_grad():  # both call lesions
        for task in (one.task, one.other):
            task.network.head.bias -= task.network(seen.image, seen.present)[1, :, seen.foreground[1, 0]].mean(1)
    logits = [task.network(seen.image, seen.present)[1:, :, seen.foreground[1, 0]] for task in (one.task, one.other)]
    told = [each.argmax(1) for each in logits]
    expected = cross_entropy(logits[0], told[1]) + cross_entropy(logits[1], told[0])
    torch.testing.assert_close(pseudo(one), expected)
    assert not torch.equal(*told), "or nothing is told apart here"


def test_each_learns_the_others_regions() -> None:
    one, seen = method(task=REGIONS), batch()
    logits = [task.network(seen.image, seen.present)[1, :, seen.foreground[1, 0]] for task in (one.task, one.other)]
    told = [(each.sigmoid() > 0.5).float() for each in logits]
    expected = sum(binary_cross_entropy_with_logits(logits[i], told[1 - i]) for i in (0, 1))
    torch.testing.assert_close(pseudo(one), expected)


@pytest.mark.parametrize("task", [segmentation.Settings(), REGIONS])
def test_no_gradient_reaches_who_is_asked(task: segmentation.Settings) -> None:
    one = method(task=task)
    seen = views(one)
    a, b = (each.scales(seen.image, seen.present)[0].detach().requires_grad_() for each in (one.task, one.other))
    one._from_other(a, b, seen).backward()
    assert a.grad is not None
    assert a.grad[1].any()
    assert not a.grad[0].any(), "a labelled sample is not told again"
    assert b.grad is None


def test_the_two_may_change_places() -> None:
    one = method()
    before = pseudo(one)
    one.task, one.other = one.other, one.task
    torch.testing.assert_close(pseudo(one), before)


def test_over_all_counts_labelled_voxels_as_well() -> None:
    seen = batch()
    assert torch.equal(views(method()).told, seen.unlooked)
    assert views(method(over="all")).told.all()


def test_the_first_network_is_that_of_the_supervised_arm_and_the_other_a_draw_of_its_own() -> None:
    one, again = method(), method()
    alone = segmentation.Segmentation(encoder(), segmentation.Settings())
    assert all(torch.equal(a, b) for a, b in zip(one.task.parameters(), alone.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True)), "same seed"
    for (name, a), b in zip(one.task.named_parameters(), one.other.parameters(), strict=True):
        assert a.ndim == 1 or not torch.equal(a, b), name
    for a, b in zip(one.task.network.encoder.parameters(), one.other.network.encoder.parameters(), strict=True):
        torch.testing.assert_close(a.std(), b.std())
        torch.testing.assert_close(a.mean(), b.mean())


def test_a_start_is_shared_by_the_encoders_alone() -> None:
    one = method()

    def load(module: nn.Module) -> None:
        for p in module.parameters():
            p.data.fill_(0.25)

    one.begin(load)
    assert one.export() is one.task.network
    assert all((p == 0.25).all() for p in one.task.network.parameters())
    assert all((p == 0.25).all() for p in one.other.network.encoder.parameters())
    assert not any((p == 0.25).all() for p in one.other.network.decoder.parameters())
