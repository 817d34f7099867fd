"""Hidden sequences: what the second pass is shown, whom the agreement teaches, and that the whole is trained as without it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.sample.batch import Batch
from oligovox.semi.hidden_sequences import HiddenSequences, Settings
from oligovox.tasks import segmentation

SEQUENCES = ("T1w", "T2w", "FLAIR")
BOTH = [{"mode": mode, "labels": ["rim", "core"]} for mode in ("classes", "regions")]


def method(**chosen: object) -> HiddenSequences:
    torch.manual_seed(0)
    return HiddenSequences(ResEnc(SEQUENCES, ResEncSettings(preset="nano")), Settings(**chosen))


def batch(samples: int = 2) -> Batch:
    """Labelled samples but for the last, which nobody looked at."""
    rng = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (samples, 16, 16, 16), generator=rng)
    label[-1] = -1
    return Batch(
        image=torch.randn(samples, 3, 16, 16, 16, generator=rng),
        present=torch.ones(samples, 3, dtype=torch.bool),
        foreground=torch.rand(samples, 1, 16, 16, 16, generator=rng) < 0.8,
        spacing=torch.ones(samples, 3),
        label=label,
        modalities=SEQUENCES,
        cases=("a",) * samples,
    )


def step(one: HiddenSequences, seen: Batch, clock: Clock = Clock(0, 1)) -> dict[str, Tensor]:  # noqa: B008  # frozen
    return dict(one.losses(one.views(seen, torch.Generator().manual_seed(1)), clock).terms)


def test_worked_value() -> None:
    """KL of (0.5, 0.5) from (0.9, 0.1) is ½ ln(0.5/0.9) + ½ ln(0.5/0.1); a region of 0.5 beside one of 0.9 is the same question."""
    whole, part = (torch.tensor(p).log().view(1, 2, 1, 1, 1) for p in ((0.5, 0.5), (0.9, 0.1)))
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(5.0)
    assert method()._divergence(whole, part).item() == pytest.approx(expected, rel=1e-5)
    regions = method(task={"mode": "regions"})
    found = regions._divergence(torch.zeros(1, 1, 1, 1, 1), torch.full((1, 1, 1, 1, 1), math.log(9.0)))
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("task", BOTH, ids=lambda task: task["mode"])
def test_the_agreement_is_the_divergence_over_the_foreground(task: dict[str, object]) -> None:
    one, seen = method(task=task), batch(1)
    views = one.views(seen, torch.Generator().manual_seed(1))
    hidden = seen.image * views.shown[:, :, None, None, None]
    inside = seen.foreground[0, 0]
    p, q = (one.task.network(*shown)[0, :, inside] for shown in ((seen.image, seen.present), (hidden, views.shown)))
    if task["mode"] == "classes":
        expected = kl_div(q.log_softmax(0), p.softmax(0), reduction="none").sum(0).mean()
    else:
        both = [torch.stack([each.sigmoid(), 1 - each.sigmoid()]) for each in (p, q)]
        expected = kl_div(both[1].log(), both[0], reduction="none").sum(0).mean()
    torch.testing.assert_close(step(one, seen)["agreement"], expected, rtol=1e-4, atol=1e-6)


def test_the_whole_is_trained_as_without_it() -> None:
    """Its terms are those of the task, and the agreement gives it no gradient."""
    one, seen = method(), batch()
    alone = segmentation.Segmentation(one.task.network.encoder, segmentation.Settings())
    alone.load_state_dict(one.task.state_dict())
    expected = alone.losses(alone.views(seen, torch.Generator()), Clock(0, 1)).terms
    assert {name: step(one, seen)[name] for name in expected} == expected
    answers = [torch.randn(2, 2, 16, 16, 16, requires_grad=wanted) for wanted in (True, False)]
    one.task.scales = lambda image, present: (answers.pop(0),)  # type: ignore[method-assign]
    one.task.supervised = lambda scales, label: {}  # type: ignore[method-assign]
    assert not step(one, seen)["agreement"].requires_grad


def test_what_is_hidden_changes_nothing_of_the_second_pass() -> None:
    one, seen = method(), batch(1)
    views = one.views(seen, torch.Generator().manual_seed(1))
    other = replace(views, image=views.image + 5.0 * ~views.shown[:, :, None, None, None])
    first, second = (one.losses(each, Clock(0, 1)).terms for each in (views, other))
    replaced = {name for name in first if torch.equal(first[name], second[name])}
    assert replaced >= {"hidden_dice", "hidden_cross_entropy"}
    assert not torch.equal(first["agreement"], second["agreement"]), "the whole says something else"


def test_every_part_comes_and_none_is_empty_or_whole() -> None:
    one, seen = method(), batch()
    rng = torch.Generator().manual_seed(0)
    shown = {tuple(row.tolist()) for _ in range(200) for row in one.views(seen, rng).shown}
    assert shown == {(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1) if 0 < a + b + c < 3}
    single = replace(seen, present=torch.tensor([[False, True, False], [True, False, True]]))
    views = one.views(single, rng)
    assert views.shown[0].tolist() == [False, True, False]
    assert views.shown[1].sum() == 1
    assert step(one, replace(single, image=single.image * single.present[:, :, None, None, None]))["agreement"] >= 0


def test_its_weight_rises() -> None:
    one = method(weight=2.0, hidden=0.5)
    views = one.views(batch(), torch.Generator().manual_seed(1))
    weights = [one.losses(views, Clock(at, 101)).weights for at in (0, 100)]
    assert [each["hidden_dice"] for each in weights] == [0.5, 0.5]
    assert weights[0]["agreement"] == pytest.approx(2.0 * math.exp(-5.0))
    assert weights[1]["agreement"] == pytest.approx(2.0, rel=1e-2)
