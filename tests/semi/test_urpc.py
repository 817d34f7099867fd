"""URPC: what the resolutions are asked to agree on, and how a difference is rectified."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from oligovox.errors import SettingsError
from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.sample.batch import Batch
from oligovox.semi.urpc import URPC, Settings, rectified_difference

SEQUENCES = ("T1w", "FLAIR")


def method(**chosen: object) -> URPC:
    torch.manual_seed(0)
    return URPC(ResEnc(SEQUENCES, ResEncSettings(preset="nano")), Settings(**chosen))


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


def distributions(*foreground: float) -> torch.Tensor:
    """A single voxel with one question of two answers, as each resolution has it."""
    return torch.tensor([[1 - p, p] for p in foreground]).log().view(len(foreground), 1, 1, 2, 1, 1, 1)


@pytest.mark.parametrize("mode", ["classes", "regions"])
def test_the_term_is_the_formula_where_nobody_looked(mode: str) -> None:
    one, seen = method(task={"mode": mode, "labels": ["lesion", "hole"]}), batch()
    views = one.views(seen, torch.Generator())
    scales = one.task.scales(views.image, views.present)
    assert len(scales) == 2
    where = seen.foreground[1, 0]
    found = []
    full = [nn.functional.interpolate(s, (16, 16, 16), mode="trilinear")[1][:, where] for s in scales]
    probability = [s.sigmoid() if mode == "regions" else s.softmax(0) for s in full]  # (k, voxels)
    questions = [[torch.stack([1 - p[k], p[k]]) for p in probability] for k in range(2)]
    for pyramid in questions if mode == "regions" else [probability]:
        mean = torch.stack(pyramid).mean(0)
        for p in pyramid:
            d = (mean * (mean / p).log()).sum(0)
            found.append((((mean - p) ** 2) * (-d).exp()).mean() / (-d).exp().mean() + d.mean())
    torch.testing.assert_close(one.losses(views, Clock(5, 10)).terms["consistency"], torch.stack(found).mean())


def test_a_worked_value() -> None:
    """One voxel: its weight cancels, what is left is (p̄ − p)² + KL(p̄ ‖ p)."""
    value = rectified_difference(distributions(0.9, 0.5), torch.ones(1, 1, 1, 1, dtype=torch.bool))
    first = 0.04 + 0.7 * math.log(0.7 / 0.9) + 0.3 * math.log(0.3 / 0.1)
    second = 0.04 + 0.7 * math.log(0.7 / 0.5) + 0.3 * math.log(0.3 / 0.5)
    assert value.item() == pytest.approx((first + second) / 2, rel=1e-5)


def test_a_voxel_far_off_counts_less() -> None:
    pair = torch.cat([distributions(0.5, 0.5), distributions(0.999, 0.001)], dim=4)
    value = rectified_difference(pair, torch.ones(1, 2, 1, 1, dtype=torch.bool)).item()
    divergence = 0.5 * math.log(0.5 / 0.999) + 0.5 * math.log(0.5 / 0.001)
    trust = math.exp(-divergence)
    assert value == pytest.approx(trust * 0.499**2 / (1 + trust) + divergence / 2, rel=1e-4)
    assert trust < 0.1


def test_nothing_is_asked_of_resolutions_that_agree() -> None:
    same = torch.randn(1, 2, 1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0)).log_softmax(3)
    same = same.expand(3, -1, -1, -1, -1, -1, -1).clone().requires_grad_()
    value = rectified_difference(same, torch.ones(2, 4, 4, 4, dtype=torch.bool))
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    assert same.grad is not None
    assert same.grad.abs().max() < 1e-6


def test_a_sure_answer_has_a_finite_gradient() -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]]).view(2, 1, 1, 2, 1, 1, 1).requires_grad_()
    value = rectified_difference(logits.log_softmax(3), torch.ones(1, 1, 1, 1, dtype=torch.bool))
    value.backward()
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_labelled_voxels_and_the_background_do_not_count() -> None:
    one, seen = method(), batch()
    views = one.views(seen, torch.Generator())
    assert torch.equal(views.unlooked, seen.foreground[:, 0] & (seen.label < 0))
    other = replace(views, image=torch.cat([3 * views.image[:1], views.image[1:]]))
    terms = [one.losses(v, Clock(0, 1)).terms["consistency"] for v in (views, other)]
    assert torch.equal(*terms)


def test_the_weight_rises_with_the_share_of_the_training() -> None:
    one = method(ramp=0.5)
    views = one.views(batch(), torch.Generator())
    weights = [one.losses(views, Clock(step, 100)).weights["consistency"] for step in (0, 50, 100)]
    assert weights == pytest.approx([0.1 * 0.006738, 0.1, 0.1], rel=1e-3)


def test_a_single_resolution_is_refused() -> None:
    with pytest.raises(SettingsError, match="deep_supervision = 1"):
        method(task={"deep_supervision": 1})
