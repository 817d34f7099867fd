"""vox2vec: both crops show the drawn voxels, air is not drawn, a descriptor is the voxel's own feature at every level."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from oligovox.method import Clock
from oligovox.networks.encoder import Encoder
from oligovox.pretext.vox2vec import Settings, Views, Vox2Vec
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


def _method(**chosen: object) -> Vox2Vec:
    torch.manual_seed(0)
    return Vox2Vec(Plain(), Settings(**{"voxels": 40, "hidden": 16, "embedding": 8, **chosen}))  # type: ignore[arg-type]


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


def _values(views: Views) -> Tensor:
    """Image at the drawn voxels: (2, n, m)."""
    crop, x, y, z = views.voxels.unbind(-1)
    return views.image[crop, :, x, y, z]


def test_both_crops_show_the_drawn_voxels() -> None:
    views = _method(augment=0).views(_batch(), _rng())
    first, second = _values(views)
    assert torch.equal(first, second)
    assert len(first) == 3 * 40
    assert not torch.equal(views.voxels[0, :, 1:], views.voxels[1, :, 1:])  # at other places of the crops
    assert len(torch.unique(views.voxels[0], dim=0)) == 3 * 40  # no voxel twice: it would be its own negative
    assert (views.voxels[1, :, 0] - views.voxels[0, :, 0] == 3).all()


def test_air_is_drawn_only_where_there_is_nothing_else() -> None:
    batch = _batch()
    foreground = batch.foreground & (torch.rand(3, 1, 12, 12, 12, generator=_rng()) < 0.05)
    for seed in range(3):
        views = _method(augment=0).views(
            replace(batch, image=batch.image * foreground, foreground=foreground), _rng(seed)
        )
        assert 2 <= views.voxels.shape[1] < 3 * 40  # fewer, where fewer are to be had
        assert (_values(views)[..., 0] > 0).all()
    empty = replace(batch, image=torch.zeros_like(batch.image), foreground=torch.zeros_like(foreground))
    assert _method().views(empty, _rng()).voxels.shape[1] == 3 * 40


def test_crops_are_changed_each_on_its_own_and_absent_sequences_stay_absent() -> None:
    batch = _batch()
    views = _method(augment=100).views(batch, _rng())
    first, second = _values(views)
    assert (first[:80] != second[:80]).float().mean() > 0.9
    assert torch.equal(views.present, batch.present.repeat(2, 1))
    assert not views.image[~views.present].any()


def test_hidden_sequences_differ_between_the_crops_but_one_stays() -> None:
    views = _method(hide=1.0).views(_batch(), _rng())
    assert (views.present.sum(1) == 1).all()
    assert views.present[2].equal(torch.tensor([True, False]))
    assert not views.image[~views.present].any()
    draws = [_method(hide=0.5).views(_batch(), _rng(seed)).present for seed in range(5)]
    assert any(not torch.equal(d[:3], d[3:]) for d in draws)


def test_a_descriptor_is_the_feature_of_its_own_cell_at_every_level() -> None:
    """Change one voxel's surroundings: descriptors far from it stay."""
    method = _method(augment=0)
    views = method.views(_batch(), _rng())
    found = method._descriptors(views)
    features = method.network.encoder(views.image, views.present)
    full = method.network.decoder(features)[0]
    for row, (crop, x, y, z) in enumerate(views.voxels.flatten(0, 1).tolist()):
        assert torch.equal(found[row, :2], full[crop, :, x, y, z])
        assert torch.equal(found[row, 2:], features[-1][crop, :, x // 2, y // 2, z // 2])


def test_the_loss_is_nt_xent_of_the_projected_descriptors() -> None:
    method = _method()
    views = method.views(_batch(), _rng())
    rows = nn.functional.normalize(method.project(method._descriptors(views)), dim=1)
    similar = (rows @ rows.T / 0.1).fill_diagonal_(-torch.inf)
    n = len(rows) // 2
    expected = -torch.stack([similar[i].log_softmax(0)[(i + n) % (2 * n)] for i in range(2 * n)]).mean()
    torch.testing.assert_close(method.losses(views, CLOCK).total, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("crop", "side"), [(0.67, 8), (1.0, 12)])
def test_crops_are_a_share_of_the_patch_on_the_networks_grid(crop: float, side: int) -> None:
    views = _method(crop=crop).views(_batch(), _rng())
    assert views.image.shape == (6, 2, side, side, side)
    assert ((views.voxels[..., 1:] >= 0) & (views.voxels[..., 1:] < side)).all()


def test_a_projector_without_memory() -> None:
    """Statistics of the batch in training and in evaluation: nothing of self changes, and validation is the training loss."""
    method = _method()
    views = method.views(_batch(), _rng())
    before = {k: v.clone() for k, v in method.state_dict().items()}
    training = method.train().losses(views, CLOCK).total
    assert torch.equal(training, method.eval().losses(views, CLOCK).total)
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
