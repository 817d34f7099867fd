"""QSMRim-Net: new samples between rims as worked by hand, running means, and that the lesion's mask is what is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from oligovox.engine.model import ModelDescription, save_model
from oligovox.errors import LabelError, SettingsError
from oligovox.experiment.training import load_network
from oligovox.method import Clock, Losses
from oligovox.networks.resnet18 import ResNet18
from oligovox.networks.resnet18 import Settings as ResNetSettings
from oligovox.prepare.radiomics import radiomics
from oligovox.sample.batch import Batch
from oligovox.tasks.qsmrim_net import QSMRimNet, Settings, between, compressed

CLOCK = Clock(0, 1)


def _method(**chosen: object) -> QSMRimNet:
    torch.manual_seed(0)
    return QSMRimNet(ResNet18(("FLAIR", "QSM"), ResNetSettings(preset="nano")), Settings(**chosen))


def _batch(*grades: int) -> Batch:
    rng = torch.Generator().manual_seed(0)
    b = len(grades)
    label = torch.zeros(b, 32, 32, 32, dtype=torch.int64)
    for sample in range(b):
        label[sample, 10 : 14 + sample, 12:18, 9:15] = 1
    return Batch(
        image=torch.rand(b, 2, 32, 32, 32, generator=rng),
        present=torch.ones(b, 2, dtype=torch.bool),
        foreground=torch.ones(b, 1, 32, 32, 32, dtype=torch.bool),
        spacing=torch.ones(b, 3),
        label=label,
        grade=torch.tensor(grades),
        modalities=("FLAIR", "QSM"),
        cases=tuple(map(str, range(b))),
    )


def _rng() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_new_rims_lie_between_neighbours() -> None:
    rims = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 6.0], [40.0, 0.0]])
    new = between(rims, torch.tensor(0.25), 3)
    expected = [
        *([0.0, 0.0], [1.0, 0.0], [0.0, 1.5]),  # itself, then (4, 0), then (0, 6)
        *([4.0, 0.0], [3.0, 0.0], [3.0, 1.5]),
        *([0.0, 6.0], [0.0, 4.5], [1.0, 4.5]),
        *([40.0, 0.0], [31.0, 0.0], [30.0, 0.0]),
    ]
    torch.testing.assert_close(new, torch.tensor(expected))
    assert len(between(rims[:2], torch.tensor(0.25), 3)) == 0, "only of more than two"
    assert len(between(rims[:3], torch.tensor(0.25), 5)) == 9, "as many neighbours as there are"


def test_the_loss_is_the_mean_over_lesions_and_new_rims() -> None:
    method, batch = _method(dropout=0.0, radiomic_dropout=0.0), _batch(1, 0, 1, -1, 1)
    views = method.views(batch, _rng())
    found = method.losses(views, CLOCK).terms["cross_entropy"]
    head = method.network.head
    latent = head.latent(method.network.encoder(batch.image, batch.present)[-1], views.radiomic)
    new = between(latent[[0, 2, 4]], views.along, 3)
    logit = head.logit(torch.cat([latent[[0, 1, 2, 4]], new]))
    target = torch.tensor([1.0, 0.0, 1.0, 1.0] + [1.0] * 9)
    torch.testing.assert_close(found, F.binary_cross_entropy_with_logits(logit, target))
    plain = _method(dropout=0.0, radiomic_dropout=0.0, oversample=False)
    logit = plain.export()(batch.image, batch.present, batch.label == 1)[[0, 1, 2, 4]]
    expected = F.binary_cross_entropy_with_logits(logit, target[:4])
    torch.testing.assert_close(plain.losses(plain.views(batch, _rng()), CLOCK).total, expected)


def test_the_numbers_are_those_of_qsm_in_the_lesion() -> None:
    method, batch = _method(), _batch(1, 0)
    rows = method.views(batch, _rng()).radiomic
    expected = radiomics(batch.image[1, 1].double().numpy(), batch.label[1].numpy() == 1, (1, 1, 1), 25 / 20)
    np.testing.assert_allclose(rows[1], expected, rtol=1e-5)
    image = batch.image.clone()
    image[:, 1] = image[:, 1].where(batch.label == 1, 0.5)  # QSM outside the lesion
    image[:, 0] = 0.0  # FLAIR
    assert torch.equal(method.views(replace(batch, image=image), _rng()).radiomic, rows)
    none = method.views(replace(batch, label=torch.full_like(batch.label, -1)), _rng())
    assert not none.radiomic.any()


def test_running_means_follow_the_logarithms() -> None:
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.normal(50, 20, (101, 8, 60))).float()
    method = _method()
    head = method.network.head
    for batch in rows[:100]:
        method.after_step(Losses({}, carry={"radiomic": batch}), CLOCK)
    seen = compressed(rows[:100].flatten(0, 1))
    torch.testing.assert_close(head.mean, seen.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head.deviation, seen.std(0), rtol=1e-2, atol=1e-4)
    before = head.mean.clone()
    method.after_step(Losses({}, carry={"radiomic": rows[100]}), CLOCK)
    torch.testing.assert_close(head.mean, torch.lerp(before, compressed(rows[100]).mean(0), 0.01))


def test_numbers_that_differ_little_weigh_as_much_as_others() -> None:
    """QSM runs from 0 to 1: its variance in a lesion is a hundredth, give or take a thousandth."""
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.normal(0.01, 0.001, (20, 16, 60))).float()
    method = _method()
    head = method.network.head
    for batch in rows:
        method.after_step(Losses({}, carry={"radiomic": batch}), CLOCK)
    known = (compressed(rows.flatten(0, 1)) - head.mean) / head.deviation
    torch.testing.assert_close(known.std(0), torch.ones(60), rtol=0.02, atol=0)


def test_widths_of_the_paper_and_fusion_as_a_setting() -> None:
    with torch.device("meta"):
        method = QSMRimNet(ResNet18(("QSM", "FLAIR"), ResNetSettings()), Settings())
        joined = QSMRimNet(ResNet18(("QSM", "FLAIR"), ResNetSettings()), Settings(fusion="concat"))
    head = method.network.head
    assert (head.first[0].out_features, head.second[0].out_features) == (1024, 512)
    assert (head.mix[0][0].in_features, joined.network.head.mix[0][0].in_features) == (512, 1024)


def test_a_model_folder_loads_again_and_has_to_be_told_the_lesion(tmp_path: Path) -> None:
    method, batch = _method(), _batch(1, 0, 1)
    losses = method.losses(method.views(batch, _rng()), CLOCK)
    method.after_step(losses, CLOCK)
    description = ModelDescription(
        method="qsmrim_net",
        network="resnet18",
        network_settings={"preset": "nano"},
        modalities=("FLAIR", "QSM"),
        patch=(32, 32, 32),
    )
    save_model(tmp_path / "model", method.export(), description)
    network, read = load_network(tmp_path / "model")
    assert read.kind == "classification"
    assert network.reads_lesion
    given = batch.image, batch.present, batch.label == 1
    assert torch.equal(network(*given), method.export()(*given))


def test_what_is_missing_is_said() -> None:
    with pytest.raises(SettingsError, match="measures QSM, the plan has FLAIR"):
        QSMRimNet(ResNet18(("FLAIR",), ResNetSettings(preset="nano")), Settings())
    for field, missing in (("grade", "no grade"), ("label", "no lesion mask")):
        with pytest.raises(LabelError, match=missing):
            _method().views(replace(_batch(1, 0), **{field: None}), _rng())
