"""Generative pretext: which sequences are kept back, that nothing of them leaks, and what is counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from oligovox.errors import SettingsError
from oligovox.losses.outliers import contrast_slope
from oligovox.losses.ssim import ssim
from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.pretext.generative import Generative, Settings, Views
from oligovox.sample.batch import Batch
from oligovox.settings import parse

CLOCK = Clock(0, 1)
SEQUENCES = ("T1w", "T2w", "FLAIR", "T1wGd")


def _method(sequences: tuple[str, ...] = SEQUENCES, **chosen: object) -> Generative:
    torch.manual_seed(0)
    return Generative(ResEnc(sequences, ResEncSettings(preset="nano")), parse(Settings, {"block": 4, **chosen}, "test"))


def _batch(present: list[list[bool]], side: int = 16) -> Batch:
    rng = torch.Generator().manual_seed(0)
    acquired = torch.tensor(present)
    foreground = torch.rand(len(present), 1, side, side, side, generator=rng) < 0.8
    image = (
        torch.randn(len(present), 4, side, side, side, generator=rng) * foreground * acquired[:, :, None, None, None]
    )
    return Batch(
        image=image,
        present=acquired,
        foreground=foreground,
        spacing=torch.ones(len(present), 3),
        modalities=SEQUENCES,
        cases=tuple(map(str, range(len(present)))),
    )


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ALL, MIXED = [[True] * 4], [[True] * 4, [True, False, True, False], [False, True, False, False]]


@pytest.mark.parametrize("policy", ["cross_modal", "target_sequences"])
def test_the_output_does_not_depend_on_what_it_is_compared_with(policy: str) -> None:
    method, batch = _method(policy=policy), _batch(MIXED)
    views = method.views(batch, _rng())
    secret = views.targets[:, :, None, None, None] | views.hidden
    other = method.views(replace(batch, image=batch.image + 0.1 * secret), _rng())
    assert views.targets.any()
    assert not torch.equal(other.image, views.image)
    made, again = (method.generate(method.network(v.visible, v.shown)) for v in (views, other))
    assert torch.equal(made, again)


def test_kept_back_sequences_are_acquired_never_all_and_marked_as_not_available() -> None:
    method, batch = _method(), _batch(MIXED)
    for seed in range(20):
        views = method.views(batch, _rng(seed))
        assert not (views.targets & ~batch.present).any()
        assert torch.equal(views.shown, batch.present & ~views.targets)  # one flag a sequence: constant over space
        assert views.shown.any(1).all()
        assert views.targets.any(1).tolist() == [True, True, False]
        assert not views.visible[~views.shown].any()


def test_law_of_the_number_of_kept_back_sequences() -> None:
    method, batch = _method(), _batch(ALL * 3000, side=1)
    batch = replace(batch, foreground=torch.ones_like(batch.foreground))
    counts = Counter(method.views(batch, _rng()).targets.sum(1).tolist())
    share = {size: number / 3000 for size, number in counts.items()}
    assert share == pytest.approx({1: 0.7 + 0.1, 2: 0.1, 3: 0.1}, abs=0.03)


def test_target_sequences_fall_back_to_blocks_where_they_cannot_be_spared() -> None:
    method, batch = _method(policy="target_sequences", targets=["flair"]), _batch(MIXED)
    batch = replace(batch, present=torch.tensor([[True] * 4, [True, True, False, False], [False, False, True, False]]))
    views = method.views(batch, _rng())
    assert views.targets.tolist() == [[False, False, True, False], [False] * 4, [False] * 4]
    assert views.hidden.flatten(1).any(1).all()


@pytest.mark.parametrize(("policy", "ratio"), [("cross_modal", 0.3), ("masked", 0.75)])
def test_share_of_hidden_blocks(policy: str, ratio: float) -> None:
    method, batch = _method(policy=policy), _batch(ALL, side=32)
    batch = replace(batch, foreground=torch.ones_like(batch.foreground))
    views = method.views(batch, _rng())
    hidden = views.hidden[views.shown].float().mean((1, 2, 3))
    assert hidden.tolist() == pytest.approx([ratio] * len(hidden), abs=0.05)
    assert len(hidden) < 2 or not torch.equal(*views.hidden[views.shown][:2])  # each sequence has its own blocks


def _plain_terms(views: Views, made: Tensor) -> dict[str, float]:
    """The equations of the page, sample by sample."""
    generate, restore, similar = [], [], []
    for s in range(len(views.image)):
        brain, error = views.weight[s, 0] > 0, (made[s] - views.image[s]).abs()
        targets = [m for m in range(4) if views.targets[s, m]]
        if targets:
            generate.append(sum(error[m][brain].mean().item() for m in targets) / len(targets))
        if views.hidden[s].any():
            shown = [m for m in range(4) if views.hidden[s, m].any()]
            restore.append(sum(error[m][views.hidden[s, m]].mean().item() for m in shown))
        indices = []
        for m in targets:
            low, high = torch.quantile(views.image[s, m][brain], torch.tensor([0.005, 0.995]))
            pair = [((v - low) / (high - low))[None, None] for v in (made[s, m], views.image[s, m])]
            indices.append(ssim(*pair, brain[None, None]).item())
        if targets:
            similar.append(1 - sum(indices) / len(indices))
    return {k: sum(v) / len(v) for k, v in (("generate", generate), ("restore", restore), ("ssim", similar)) if v}


def test_the_equations() -> None:
    method = _method()
    views = method.views(_batch(MIXED), _rng(3))
    losses = method.losses(views, CLOCK)
    made = method.generate(method.network(views.visible, views.shown))
    expected = _plain_terms(views, made)
    assert {k: v.item() for k, v in losses.terms.items()} == pytest.approx(expected, rel=1e-4)
    assert losses.total.item() == pytest.approx(
        expected["generate"] + 0.5 * expected["restore"] + 0.2 * expected["ssim"], rel=1e-4
    )


def test_voxels_outside_the_foreground_do_not_count() -> None:
    method = _method()
    views = method.views(_batch(MIXED), _rng())
    elsewhere = replace(views, image=views.image.where(views.weight > 0, 1e6))
    assert torch.equal(method.losses(elsewhere, CLOCK).total, method.losses(views, CLOCK).total)


def test_nothing_kept_back_and_nothing_hidden_is_a_loss_of_zero() -> None:
    method = _method()
    views = method.views(_batch(ALL), _rng())
    views = replace(views, targets=views.targets & False, hidden=views.hidden & False)
    total = method.losses(views, CLOCK).total
    total.backward()
    assert total.item() == 0.0
    assert not any(p.grad.any() for p in method.parameters() if p.grad is not None)


def test_lesion_like_voxels_weigh_more() -> None:
    batch = _batch(MIXED)
    plain, aware = (_method(lesion_weight=w).views(batch, _rng()).weight for w in (1.0, 3.0))
    t1w, flair = batch.image[:, :1], batch.image[:, 2:3]
    lesion = (flair > 2.0) & (((t1w > -0.5) & (t1w < 2.0)) | ~batch.present[:, 0, None, None, None, None])
    assert torch.equal(plain, batch.foreground.float())
    assert torch.equal(aware, torch.where(lesion, 3.0, plain))
    assert aware.max() == 3.0


@pytest.mark.parametrize(
    ("loss", "outlier_weight", "lesion_weight"), [("l2", 1.0, 1.0), ("l1", 4.0, 1.0), ("l2", 4.0, 3.0)]
)
def test_squared_and_outlier_weighted_errors(loss: str, outlier_weight: float, lesion_weight: float) -> None:
    method = _method(loss=loss, outlier_weight=outlier_weight, outlier_beyond=1.5, lesion_weight=lesion_weight)
    views = method.views(_batch(MIXED), _rng(3))
    made = method.generate(method.network(views.visible, views.shown))
    error = (made - views.image).abs() ** (2 if loss == "l2" else 1)
    weight = views.weight * torch.where(views.image.abs() > 1.5, outlier_weight, 1.0)
    generate, restore = [], []
    for s in range(len(views.image)):
        means = [(weight[s, m] * error[s, m]).sum() / weight[s, m].sum() for m in range(4) if views.targets[s, m]]
        hidden = [(weight[s, m] * views.hidden[s, m], error[s, m]) for m in range(4) if views.hidden[s, m].any()]
        generate += [sum(means) / len(means)] if means else []
        restore += [sum((w * e).sum() / w.sum() for w, e in hidden)] if hidden else []
    terms = method.losses(views, CLOCK).terms
    torch.testing.assert_close(terms["generate"], sum(generate) / len(generate))
    torch.testing.assert_close(terms["restore"], sum(restore) / len(restore))


def test_the_slope_of_flair_that_was_not_shown_is_noted() -> None:
    method = _method(policy="target_sequences", lesion_flair=1.0)
    views = method.views(_batch(MIXED), _rng())
    made = method.generate(method.network(views.visible, views.shown))
    unseen = views.hidden[:, 2].clone()
    unseen[:2] = views.weight[:2, 0] > 0  # kept back in these two
    assert views.targets[:, 2].tolist() == [True, True, False]
    slope = contrast_slope(made[:, 2], views.image[:, 2], unseen, above=1.0)
    assert method.losses(views, CLOCK).notes == {"lesion_slope": pytest.approx(slope.item())}


def test_said_before_the_first_step() -> None:
    assert _method().needs.modalities == 2
    assert _method(policy="masked").needs.modalities == 1
    with pytest.raises(SettingsError, match="targets are FLAIR, the plan has T1w, T2w"):
        _method(("T1w", "T2w"), policy="target_sequences")
    with pytest.raises(SettingsError, match="did you mean 'FLAIR'"):
        parse(Settings, {"targets": ["flayr"]}, "test")
