"""SimCLR: views of one patch belong together, air has no say, absent sequences stay absent."""

from __future__ import annotations

from dataclasses import replace
from math import e, log

import pytest
import torch
from torch import Tensor, nn

from oligovox.errors import SettingsError
from oligovox.method import Clock
from oligovox.networks.encoder import Encoder
from oligovox.pretext.simclr import Settings, SimCLR, Views
from oligovox.sample.batch import Batch

CLOCK = Clock(0, 1)
SEQUENCES = ("T1w", "FLAIR")


class Plain(Encoder):
    """Its features are the image itself, times one weight, and the mean of each 2³ voxels."""

    def __init__(self) -> None:
        super().__init__()
        self.modalities, self.channels, self.strides, self.modality_weights = SEQUENCES, (2, 2), (1, 2), {}
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        image = self.weight * image
        return image, nn.functional.avg_pool3d(image, 2)


def _method(**chosen: object) -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(Plain(), Settings(hidden=16, embedding=8, **chosen))


def _batch(samples: int = 3, side: int = 12) -> Batch:
    """Voxel values say where the voxel is: x + 100 y in the first sequence, z in the second, 10 000 each sample."""
    x, y, z = torch.meshgrid(*[torch.arange(1.0, side + 1)] * 3, indexing="ij")
    image = torch.stack([torch.stack([x + 100 * y, z]) + 10_000 * sample for sample in range(samples)])
    present = torch.ones(samples, 2, dtype=torch.bool)
    present[-1, 1] = False
    return Batch(
        image=image * present[:, :, None, None, None],
        present=present,
        foreground=torch.ones(samples, 1, side, side, side, dtype=torch.bool),
        spacing=torch.ones(samples, 3),
        modalities=SEQUENCES,
        cases=tuple(map(str, range(samples))),
    )


def _rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_both_views_show_the_same_patch_and_half_of_the_same_voxels() -> None:
    batch = _batch()
    views = _method(augment=0.0).views(batch, _rng())
    assert views.image.shape == (6, 2, 8, 8, 8)
    for sample in range(3):
        first, second = views.image[sample, 0], views.image[sample + 3, 0]
        assert (first // 10_000 == sample).all()
        assert (second // 10_000 == sample).all()
        columns = [set(view.flatten().tolist()) for view in (first, second)]
        assert len(columns[0] & columns[1]) >= 32  # of 64 columns along z
    changed = _method(augment=3.0).views(batch, _rng())
    assert not torch.equal(changed.image, views.image)


def test_the_loss_is_nt_xent_of_the_projected_foreground_means() -> None:
    method = _method(temperature=0.2)
    rng = _rng()
    image, foreground = torch.randn(6, 2, 4, 4, 4, generator=rng), torch.rand(6, 1, 4, 4, 4, generator=rng) < 0.5
    views = Views(image * foreground, torch.ones(6, 2, dtype=torch.bool), foreground)
    deep, tissue = (nn.functional.avg_pool3d(v.float(), 2) for v in (views.image, foreground))
    pooled = (deep * tissue).sum((2, 3, 4)) / tissue.sum((2, 3, 4))
    z = nn.functional.normalize(method.project.layers(method.standard(pooled)))
    likeness = (z @ z.T / 0.2).exp().detach()
    by_hand = sum(-log(likeness[v, (v + 3) % 6] / (likeness[v].sum() - likeness[v, v])) for v in range(6)) / 6
    assert method.losses(views, CLOCK).terms["contrast"].item() == pytest.approx(by_hand, rel=1e-4)


def test_twins_that_differ_from_the_others_have_the_least_loss() -> None:
    method = _method(temperature=1.0)
    method.project = nn.Sequential(nn.Flatten())  # and before the first step nothing is standardised
    image = torch.zeros(4, 2, 4, 4, 4)
    image[[0, 2], 0] = 1.0
    image[[1, 3], 1] = 1.0
    views = Views(image, torch.ones(4, 2, dtype=torch.bool), torch.ones(4, 1, 4, 4, 4, dtype=torch.bool))
    assert method.losses(views, CLOCK).total.item() == pytest.approx(log(e + 2) - 1, abs=1e-6)
    crossed = replace(views, image=image[[0, 1, 3, 2]])
    assert method.losses(crossed, CLOCK).total.item() == pytest.approx(log(e + 2), abs=1e-6)


def test_features_of_air_have_no_say() -> None:
    method = _method()
    views = method.views(_batch(), _rng())
    foreground = torch.zeros_like(views.foreground)
    foreground[..., :4, :, :] = True
    here = replace(views, foreground=foreground)
    elsewhere = replace(here, image=views.image + 1e3 * ~foreground)
    assert torch.equal(method.losses(here, CLOCK).total, method.losses(elsewhere, CLOCK).total)
    assert not torch.equal(method.losses(views, CLOCK).total, method.losses(here, CLOCK).total)


def test_absent_sequences_stay_absent_and_hidden_ones_join_them() -> None:
    batch = _batch()
    views = _method(augment=1.0).views(batch, _rng())
    assert torch.equal(views.present, batch.present.repeat(2, 1))
    assert not views.image[~views.present].any()
    hidden = _method(augment=0.0, hide=1.0).views(batch, _rng())
    assert (hidden.present.sum(1) == 1).all()
    assert not (hidden.present & ~views.present).any()
    assert not hidden.image[~hidden.present].any()
    assert hidden.image[hidden.present].all()


def test_a_single_sample_is_refused() -> None:
    method = _method()
    with pytest.raises(SettingsError, match="use batch 2 or more"):
        method.losses(method.views(_batch(1), _rng()), CLOCK)


def test_only_the_encoder_leaves() -> None:
    assert set(_method().export().state_dict()) == {"encoder.weight"}
