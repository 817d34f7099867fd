"""Lesion classification: the loss and its learned weight, what the options for rare grades do, and the way from a start to a model folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oligovox.engine.fit import Training, build_optimizer
from oligovox.engine.model import ModelDescription, save_model
from oligovox.errors import LabelError, SettingsError
from oligovox.experiment.recipe import NetworkChoice
from oligovox.experiment.training import build_encoder, build_method, load_network
from oligovox.method import Clock
from oligovox.networks.frodo import Frodo
from oligovox.networks.frodo import Settings as FrodoSettings
from oligovox.networks.transfer import transfer
from oligovox.sample.batch import Batch
from oligovox.settings import parse
from oligovox.tasks.lesion_classification import LesionClassification, Settings, supervised_contrast

CLOCK = Clock(0, 1)
PAIR = ("QSM", "FLAIR")


def _method(seed: int = 0, **chosen: object) -> LesionClassification:
    torch.manual_seed(seed)
    return LesionClassification(Frodo(PAIR, FrodoSettings(preset="nano")), parse(Settings, chosen, "test"))


def _batch(*grades: int, side: int = 16) -> Batch:
    rng = torch.Generator().manual_seed(0)
    b = len(grades)
    return Batch(
        image=torch.rand(b, 2, side, side, side, generator=rng),
        present=torch.ones(b, 2, dtype=torch.bool),
        foreground=torch.ones(b, 1, side, side, side, dtype=torch.bool),
        spacing=torch.ones(b, 3),
        label=torch.ones(b, side, side, side, dtype=torch.int64),
        grade=torch.tensor(grades),
        modalities=PAIR,
        cases=tuple(map(str, range(b))),
    )


def _rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _terms(method: LesionClassification, batch: Batch, seed: int = 1) -> dict[str, Tensor]:
    return dict(method.losses(method.views(batch, _rng(seed)), CLOCK).terms)


def test_what_a_residual_encoder_hands_on_is_standardised_by_the_steps_before() -> None:
    """The mean over its instance-normed map is nearly the same for all lesions, and a head on it hardly learns."""
    torch.manual_seed(0)
    network = build_encoder(NetworkChoice.named("resenc", "nano"), PAIR)
    method, batch = LesionClassification(network, parse(Settings, {"dropout": 0.0}, "test")), _batch(1, 0, 0, 1, 1, 0)
    losses = method.losses(method.views(batch, _rng()), CLOCK)
    method.after_step(losses, CLOCK)
    head = method.network.head
    pooled = head.standard(head.pooled(network(batch.image, batch.present)[-1]))
    torch.testing.assert_close(pooled.mean(0), torch.zeros(pooled.shape[1]), atol=1e-4, rtol=0)
    assert "head.standard.moments" in method.export().state_dict()
    assert isinstance(_method().network.head.standard, nn.Identity)  # FRODO's own network is as in the paper


def test_the_loss_is_cross_entropy_and_the_weighted_contrast() -> None:
    method, batch = _method(dropout=0.0), _batch(1, 0, 0, 1, -1)
    logit = method.export()(batch.image, batch.present)
    assert logit.shape == (5,)
    y = torch.tensor([1.0, 0.0, 0.0, 1.0])
    p = logit[:4].sigmoid()
    entropy = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    head = method.network.head
    embedding = head.embedding(head.pooled(method.network.encoder(batch.image, batch.present)[-1]))
    terms = _terms(method, batch)
    torch.testing.assert_close(terms["cross_entropy"], entropy)
    weight = 0.07889  # log(1 + exp(-2.5))
    expected = weight * supervised_contrast(embedding, batch.grade, 0.1)
    torch.testing.assert_close(terms["contrast"], expected, rtol=1e-4, atol=1e-6)
    assert list(_terms(_method(contrast=False), batch)) == ["cross_entropy"]


def test_contrast_against_its_definition_anchor_by_anchor() -> None:
    z = torch.randn(7, 5, generator=_rng(), dtype=torch.float64).float()
    y = [0, 1, 1, 0, 1, -1, 2]
    unit = F.normalize(z, dim=1)
    anchors = []
    for i in range(7):
        partners = [p for p in range(7) if p != i and y[p] == y[i] >= 0]
        others = [a for a in range(7) if a != i and y[a] >= 0]
        total = sum(torch.exp(unit[i] @ unit[a] / 0.1) for a in others)
        if partners:
            anchors.append(
                -sum(torch.log(torch.exp(unit[i] @ unit[p] / 0.1) / total) for p in partners) / len(partners)
            )
    expected = torch.stack(anchors).mean()
    torch.testing.assert_close(supervised_contrast(z, torch.tensor(y), 0.1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grades", [[1, 0], [1], [-1, -1, -1], [1, 0, -1]])
def test_without_partners_the_contrast_is_zero_with_a_zero_gradient(grades: list[int]) -> None:
    z = torch.randn(len(grades), 4, generator=_rng(), requires_grad=True)
    loss = supervised_contrast(z, torch.tensor(grades), 0.1)
    loss.backward()
    assert loss.item() == 0.0
    assert not z.grad.any()


@pytest.mark.parametrize("grades", [(1, 1, 1), (0, 0, 0)])
def test_a_batch_of_one_grade_is_finite(grades: tuple[int, ...]) -> None:
    method = _method()
    losses = method.losses(method.views(_batch(*grades), _rng()), CLOCK)
    losses.total.backward()
    assert losses.total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize("start", [-40.0, -2.5, 3.0])
def test_the_learned_weight_is_positive_learns_and_is_not_decayed(start: float) -> None:
    method = _method(contrast_start=start)
    losses = method.losses(method.views(_batch(1, 1, 0, 0), _rng()), CLOCK)
    assert losses.notes["contrast_weight"] > 0
    losses.total.backward()
    assert method.contrast.grad is not None
    assert method.contrast.grad > 0 or start == -40.0  # it can only shrink: the contrast is never negative
    decayed = [
        p
        for group in build_optimizer(method, Training()).param_groups
        if group["weight_decay"]
        for p in group["params"]
    ]
    assert all(p is not method.contrast for p in decayed)


def test_lesions_of_unknown_grade_change_nothing() -> None:
    method, batch = _method(dropout=0.0), _batch(1, 0, 1, -1)
    before = _terms(method, batch)
    image = batch.image.clone()
    image[3] = 1.0 - image[3]
    after = _terms(method, replace(batch, image=image))
    assert all(torch.equal(before[name], after[name]) for name in before)
    alone = _terms(method, batch.samples([0, 1, 2]))
    assert all(torch.allclose(before[name], alone[name], atol=1e-6) for name in before)


def _entropy(seed: int = 1, **chosen: object) -> tuple[Tensor, Tensor]:
    """Cross-entropy of a batch under an option, and the plain error of each of its lesions."""
    method, batch = _method(contrast=False, dropout=0.0, **chosen), _batch(1, 0, 0)
    logit = method.export()(batch.image, batch.present)
    plain = F.binary_cross_entropy_with_logits(logit, batch.grade.float(), reduction="none")
    return _terms(method, batch, seed)["cross_entropy"], torch.stack([logit, plain])


def test_focal_fades_what_is_easy() -> None:
    found, (logit, plain) = _entropy(imbalance="focal")
    p = logit.sigmoid()
    expected = torch.stack([0.8 * (1 - p[0]) ** 2 * plain[0], *(0.2 * p[1:] ** 2 * plain[1:])]).mean()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("balance", "ratio"), [(0.999, 8.65), (0.9999999, 9.0), (0.5, 1.0)])
def test_class_balanced_weighs_by_effective_numbers(balance: float, ratio: float) -> None:
    found, (_, plain) = _entropy(imbalance="class_balanced", counts=(90, 10), balance=balance)
    negative, positive = 2 / (1 + ratio), 2 * ratio / (1 + ratio)
    expected = (positive * plain[0] + negative * plain[1] + negative * plain[2]) / 3
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=0.0)


def test_logit_adjustment_shifts_the_logit_in_training_only() -> None:
    found, (logit, _) = _entropy(imbalance="logit_adjustment", counts=(90, 10), adjustment=2.0)
    shifted = logit - 2 * 2.1972246  # log 9
    torch.testing.assert_close(found, F.binary_cross_entropy_with_logits(shifted, torch.tensor([1.0, 0.0, 0.0])))


def test_mixup_mixes_images_and_grades_by_the_same_share() -> None:
    batch = _batch(1, 0, 1, 0, -1, 0)
    batch = replace(batch, present=torch.tensor([[True, True]] * 5 + [[True, False]]))
    views = _method(imbalance="mixup", mixing=1.0).views(batch, _rng(3))
    moved = []
    for sample in range(6):
        difference = views.image[sample] - batch.image[sample]
        shares = []
        for other in set(range(6)) - {sample}:
            across = batch.image[other] - batch.image[sample]
            share = (difference * across).sum() / across.square().sum()
            if torch.allclose(batch.image[sample] + share * across, views.image[sample], atol=1e-6) and share > 1e-6:
                shares.append((other, share))
                grades = batch.grade[[sample, other]].float()
                torch.testing.assert_close(views.target[sample], torch.lerp(*grades, share), rtol=1e-4, atol=1e-5)
                assert 0 < share <= 0.5
        moved += shares
    assert len(moved) >= 2
    assert torch.equal(views.image[4:], batch.image[4:]), "not with an unknown grade, not with another set of sequences"
    assert set(views.target.tolist()) > {0.0}


@pytest.mark.parametrize("imbalance", ["class_balanced", "logit_adjustment"])
def test_counts_are_asked_for(imbalance: str) -> None:
    with pytest.raises(SettingsError, match="needs counts: how many lesions of grade 0 and of grade 1"):
        parse(Settings, {"imbalance": imbalance}, "test")


def test_a_batch_without_grades_is_refused() -> None:
    with pytest.raises(LabelError, match="mark unknown grades with -1"):
        _method().views(replace(_batch(1, 0), grade=None), _rng())


def test_dropout_is_drawn_in_the_views_and_keeps_the_mean() -> None:
    method, batch = _method(dropout=0.25), _batch(*[0] * 200, side=2)
    kept = method.views(batch, _rng()).kept
    assert kept.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert kept.mean().item() == pytest.approx(1.0, abs=0.02)


def test_a_grid_and_more_layers_are_the_flattened_head_of_rimnet() -> None:
    method = _method(hidden=[256, 128, 64], grid=8)
    sizes = [(m.in_features, m.out_features) for m in method.network.head.modules() if isinstance(m, nn.Linear)]
    assert sizes == [(32 * 512, 256), (256, 128), (128, 64), (64, 1)]


@pytest.mark.parametrize(
    ("pretext", "network"),
    [
        ("frodo", NetworkChoice(name="frodo", settings={"preset": "nano"})),
        ("simclr", NetworkChoice(name="resenc", settings={"preset": "nano"})),
        ("masked_reconstruction", NetworkChoice(name="frodo", settings={"preset": "nano"})),
    ],
)
def test_a_pretrained_encoder_is_taken_over(pretext: str, network: NetworkChoice) -> None:
    torch.manual_seed(0)
    start = build_method(pretext, {}, build_encoder(network, PAIR)).export()
    method = build_method("lesion_classification", {}, build_encoder(network, PAIR[::-1]))
    method.begin(lambda module: transfer(start.state_dict(), PAIR, module))
    image, present = _batch(1, 0).image, torch.ones(2, 2, dtype=torch.bool)
    expected = start["encoder"] if isinstance(start, nn.ModuleDict) else start.encoder
    taken = method.export().encoder(image.flip(1), present)
    for one, other in zip(taken, expected(image, present), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_model_folder_loads_again(tmp_path: Path) -> None:
    method = _method()
    description = ModelDescription(
        method="lesion_classification",
        network="frodo",
        network_settings={"preset": "nano"},
        modalities=PAIR,
        patch=(16, 16, 16),
    )
    save_model(tmp_path / "model", method.export(), description)
    network, read = load_network(tmp_path / "model")
    assert (read.kind, read.labels) == ("classification", {})
    batch = _batch(1, 0)
    assert torch.equal(network(batch.image, batch.present), method.export()(batch.image, batch.present))
