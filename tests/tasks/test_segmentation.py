"""Segmentation: what the labels mean, what is ignored, and the weights of the resolutions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oligovox.errors import LabelError, SettingsError
from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.sample.batch import Batch
from oligovox.settings import parse
from oligovox.tasks.segmentation import Segmentation, Settings, _every

CLOCK = Clock(0, 1)
SEQUENCES = ("T1w", "FLAIR")
REGIONS = {"mode": "regions", "labels": {"whole": [1, 2, 3], "core": [1, 3], "enhancing": 3}}


def _method(**chosen: object) -> Segmentation:
    torch.manual_seed(0)
    return Segmentation(ResEnc(SEQUENCES, ResEncSettings(preset="tiny")), parse(Settings, chosen, "test"))


def _batch(samples: int = 2, values: int = 4) -> Batch:
    rng = torch.Generator().manual_seed(0)
    return Batch(
        image=torch.randn(samples, 2, 16, 16, 16, generator=rng),
        present=torch.ones(samples, 2, dtype=torch.bool),
        foreground=torch.ones(samples, 1, 16, 16, 16, dtype=torch.bool),
        spacing=torch.ones(samples, 3),
        label=torch.randint(-1, values, (samples, 16, 16, 16), generator=rng),
        modalities=SEQUENCES,
        cases=tuple(map(str, range(samples))),
    )


def _losses(method: Segmentation, batch: Batch) -> Tensor:
    return torch.stack(list(method.losses(method.views(batch, torch.Generator()), CLOCK).terms.values()))


def test_classes_by_the_definition() -> None:
    method, batch = _method(labels=["edema", "core", "enhancing"], deep_supervision=1), _batch()
    logits = method.export()(batch.image, batch.present)
    assert logits.shape == (2, 4, 16, 16, 16)
    dice, entropy = [], []
    for x, y in zip(logits, batch.label, strict=True):
        x, y = x[:, y >= 0], y[y >= 0]
        p, t = x.softmax(0)[1:], F.one_hot(y, 4).T[1:]
        dice.append(((1 - 2 * (p * t).sum(1) / (p.sum(1) + t.sum(1))) * t.amax(1)).mean())
        entropy.append(F.cross_entropy(x.T, y))
    expected = torch.stack([torch.stack(dice).mean(), torch.stack(entropy).mean()])
    torch.testing.assert_close(_losses(method, batch), expected)


def test_regions_by_the_definition() -> None:
    method, batch = _method(**REGIONS, deep_supervision=1), _batch(samples=1)
    x = method.export()(batch.image, batch.present)[0]
    y = batch.label[0]
    known = y >= 0
    t = torch.stack([y > 0, (y == 1) | (y == 3), y == 3])[:, known].float()
    p = x.sigmoid()[:, known]
    dice = ((1 - 2 * (p * t).sum(1) / (p.sum(1) + t.sum(1))) * t.amax(1)).mean()
    entropy = F.binary_cross_entropy_with_logits(x[:, known], t)
    torch.testing.assert_close(_losses(method, batch), torch.stack([dice, entropy]))


@pytest.mark.parametrize("chosen", [{}, REGIONS])
def test_ignored_voxels_change_nothing(chosen: dict[str, object]) -> None:
    """Whatever the networks say there: the head's own output is changed at every ignored voxel."""
    method, batch = _method(**chosen, deep_supervision=1), _batch()
    before = _losses(method, batch)
    ignored = (batch.label < 0)[:, None]
    method.network.head.register_forward_hook(lambda _module, _given, logits: logits.where(~ignored, 77.0))
    assert torch.equal(_losses(method, batch), before)


def test_a_batch_is_the_mean_of_its_halves_and_unlabelled_samples_do_not_dilute() -> None:
    method, batch = _method(), _batch(samples=4, values=2)
    halves = torch.stack([_losses(method, batch.samples(rows)) for rows in ([0, 1], [2, 3])])
    torch.testing.assert_close(_losses(method, batch), halves.mean(0))
    label = batch.label.clone()
    label[2:] = -1
    torch.testing.assert_close(_losses(method, replace(batch, label=label)), halves[0])


def test_nothing_labelled_is_a_loss_of_zero() -> None:
    method, batch = _method(), _batch()
    losses = _losses(method, replace(batch, label=torch.full_like(batch.label, -1)))
    losses.sum().backward()
    assert losses.tolist() == [0.0, 0.0]
    assert not any(p.grad.any() for p in method.parameters())


def test_weights_of_the_resolutions() -> None:
    """A label that is constant over cubes of 4 voxels is the same at every resolution."""
    method, batch = _method(), _batch(values=2)
    coarse = batch.label[:, ::4, ::4, ::4]
    label = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)
    heads = [method.network.head, *method.coarser]
    assert len(heads) == 3
    seen: list[Tensor] = []
    for head in heads:
        head.register_forward_hook(lambda _module, _given, logits: seen.append(logits.detach()))
    found = _losses(method, replace(batch, label=label))[1]
    parts = []
    for level, logits in enumerate(seen):
        y = label[:, :: 2**level, :: 2**level, :: 2**level]
        assert logits.shape[2:] == y.shape[1:]
        parts.append(
            torch.stack([F.cross_entropy(x[:, k >= 0].T, k[k >= 0]) for x, k in zip(logits, y, strict=True)]).mean()
        )
    torch.testing.assert_close(found, (4 * parts[0] + 2 * parts[1] + parts[2]) / 7)


@pytest.mark.parametrize(("stride", "taken"), [(1, list(range(8))), (2, [1, 3, 5, 7]), (4, [2, 6])])
def test_coarser_labels_are_taken_beside_the_centre_of_each_cube(stride: int, taken: list[int]) -> None:
    place = torch.arange(8).expand(1, 8, 8, 8)
    coarse = _every(place, stride)
    assert coarse[0, 0, 0].tolist() == taken
    assert torch.equal(_every(place.transpose(1, 3), stride), coarse.transpose(1, 3))


def test_a_thin_label_reaches_every_resolution() -> None:
    """One slice of eight was looked at: each cube that it cuts has its label, by the voxel of it nearest to the centre."""
    label = torch.full((1, 8, 8, 8), -1)
    label[:, :, :, 4] = 0
    label[:, 2, 3, 4] = 1
    for stride in (1, 2, 4):
        coarse = _every(label, stride)
        assert (coarse >= 0).sum((1, 2)).tolist()[0] == [
            (8 // stride) ** 2 * (plane == 4 // stride) for plane in range(8 // stride)
        ]
    assert _every(label, 4)[0, 0, 0, 1] == 0  # (2, 2, 4) is nearer
    assert _every(label, 2)[0, 1, 1, 2] == 0  # (3, 3, 4) is nearer
    label[:, 3, 3, 4] = -1
    assert _every(label, 2)[0, 1, 1, 2] == 1  # (2, 3, 4): it comes before (3, 2, 4), which is as near


def test_merged_classes_and_values_that_no_output_names() -> None:
    one = _method(labels={"lesion": [1, 2]})
    batch = _batch()
    merged = replace(batch, label=torch.where(batch.label == 2, 1, batch.label))
    merged = replace(merged, label=torch.where(merged.label == 3, 0, merged.label))  # 3 is named by nobody: background
    assert torch.equal(_losses(one, batch), _losses(one, merged))


def test_labels_may_be_spelled_shortly() -> None:
    assert parse(Settings, {"labels": ["lesion", "hole"]}, "t").labels == {"lesion": (1,), "hole": (2,)}
    assert parse(Settings, {"labels": {"lesion": 1, "hole": 2}}, "t").labels == {"lesion": (1,), "hole": (2,)}


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"labels": {"lesion": [0]}}, "values start at 1"),
        ({"labels": {"lesion": []}}, "needs a label value"),
        ({"labels": {"whole": [1, 2], "core": [1]}}, "two classes"),
        ({"labels": []}, "at least 1"),
    ],
)
def test_impossible_labels(chosen: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse(Settings, chosen, "recipe.yaml: finetune")


def test_a_batch_without_a_label_is_refused() -> None:
    method = _method()
    with pytest.raises(LabelError, match="mark unlabelled voxels with -1"):
        method.views(replace(_batch(), label=None), torch.Generator())
