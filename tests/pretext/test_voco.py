"""VoCo: overlaps are right, similar crops are paid for, air and absent sequences have no say, the copy follows."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch
from torch import Tensor, nn

from oligovox.errors import SettingsError
from oligovox.method import Clock
from oligovox.networks.encoder import Encoder
from oligovox.pretext.voco import Settings, Views, VoCo
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


def _method(**chosen: object) -> VoCo:
    torch.manual_seed(0)
    return VoCo(Plain(), Settings(**{"hidden": 16, "embedding": 8, **chosen}))  # type: ignore[arg-type]


def _batch(samples: int = 2, sides: tuple[int, int, int] = (12, 12, 8)) -> Batch:
    rng = torch.Generator().manual_seed(0)
    present = torch.ones(samples, 2, dtype=torch.bool)
    present[-1, 1] = False
    image = torch.randn(samples, 2, *sides, generator=rng) * present[:, :, None, None, None]
    return Batch(
        image=image,
        present=present,
        foreground=torch.ones(samples, 1, *sides, dtype=torch.bool),
        spacing=torch.ones(samples, 3),
        modalities=SEQUENCES,
        cases=tuple(map(str, range(samples))),
    )


def _rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Told(nn.Module):
    """Embeddings that were decided beforehand."""

    def __init__(self, embedding: Tensor) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, views: Views) -> Tensor:
        return self.embedding


def _told(method: VoCo, embedding: Tensor, copy: Tensor | None = None) -> VoCo:
    method.student = Told(embedding)  # type: ignore[assignment]
    if copy is not None:
        method.teacher = Told(copy)  # type: ignore[assignment]
    return method


@pytest.mark.parametrize("grid", [(2, 2, 2), (3, 2, 1)])
def test_overlap_is_the_share_of_voxels_that_target_and_base_have_in_common(grid: tuple[int, int, int]) -> None:
    """Every voxel is given a number of its own, so that common voxels can be counted."""
    batch = _batch()
    numbers = torch.arange(12.0 * 12 * 8).reshape(1, 1, 12, 12, 8).expand(2, 2, -1, -1, -1)
    views = _method(grid=grid).views(replace(batch, image=1 + numbers), _rng())
    n = grid[0] * grid[1] * grid[2]
    bases = views.image[0, :n, 0].flatten()
    assert bases[bases > 0].sort().values.equal(1 + numbers[0, 0].flatten())  # they tile the patch
    crops = views.image[:, :, 0].flatten(2)
    for sample, target, base in ((0, 0, 0), (0, 3, 1), (1, 2, n - 1), (1, 1, n // 2)):
        one, other = crops[sample, n + target], crops[sample, base]
        torch.testing.assert_close(views.overlap[sample, target, base], torch.isin(one[one > 0], other).float().mean())
    torch.testing.assert_close(views.overlap.sum(2), torch.ones(2, 4))
    assert len(views.overlap.unique()) > 3


def test_the_losses_are_those_of_the_paper() -> None:
    """A reference in a few lines, over samples, targets and bases one by one."""
    method = _method()
    views = method.views(_batch(), _rng())
    embedding, copy = (torch.randn(2, 12, 5, generator=_rng(seed)) for seed in (3, 4))
    losses = _told(method, embedding, copy).losses(views, CLOCK).terms

    def cosine(a: Tensor, b: Tensor) -> float:
        return max(0.0, float(a @ b / (a.norm() * b.norm())))

    positive, negative, weight = 0.0, [], 0.0
    for b in range(2):
        for i in range(4):
            for j in range(8):
                y = float(views.overlap[b, i, j])
                one = cosine(embedding[b, 8 + i], copy[b, j])
                s = (one + cosine(copy[b, 8 + i], embedding[b, j])) / 2
                positive += y * -log(1 - abs(y - s) + 1e-6)
                weight += y
                negative += [s**2] if y == 0 else []
    between = [cosine(embedding[b, i], embedding[b, j]) ** 2 for b in range(2) for i in range(8) for j in range(i)]
    assert losses["overlap"].item() == pytest.approx(positive / weight, rel=1e-4)
    assert losses["apart"].item() == pytest.approx(sum(negative) / len(negative), rel=1e-4)
    assert losses["spread"].item() == pytest.approx(sum(between) / len(between), rel=1e-4)


def test_orthogonal_bases_and_targets_that_lie_on_one_cost_nothing() -> None:
    method = _method(spread="plain")
    views = method.views(_batch(), _rng())
    which = torch.tensor([[0, 3, 3, 7], [1, 2, 4, 5]])
    views = replace(views, overlap=torch.eye(8)[which])
    embedding = torch.cat([torch.eye(8).expand(2, -1, -1), torch.eye(8)[which]], 1)
    terms = _told(method, embedding, embedding).losses(views, CLOCK).terms
    for term in terms.values():
        assert term.item() == pytest.approx(0.0, abs=1e-5)
    shifted = torch.cat([embedding[:, 1:], embedding[:, :1]], 1)
    assert _told(method, shifted, shifted).losses(views, CLOCK).terms["overlap"] > 1


def test_crops_of_air_do_not_count() -> None:
    """Half of the patch is air: what the network makes of crops there changes nothing."""
    batch = _batch()
    foreground = batch.foreground.clone()
    foreground[..., 4:] = False
    method = _method(targets=6)
    views = method.views(replace(batch, foreground=foreground, image=batch.image * foreground), _rng())
    assert torch.equal(views.counted[:, :8], torch.tensor([True, False] * 4).expand(2, -1))
    embedding = torch.randn(2, 14, 5, generator=_rng())
    moved = torch.where(views.counted[..., None], embedding, torch.randn(2, 14, 5, generator=_rng(5)))
    assert not torch.equal(embedding, moved)
    one = {k: v.item() for k, v in _told(method, embedding, embedding).losses(views, CLOCK).terms.items()}
    other = {k: v.item() for k, v in _told(method, moved, moved).losses(views, CLOCK).terms.items()}
    assert one == pytest.approx(other)


def test_air_inside_a_crop_is_not_pooled() -> None:
    """Features where there is air, whatever they are, do not reach the embedding."""
    batch, method = _batch(), _method()
    foreground = batch.foreground.clone()
    foreground[:, :, ::2] = False
    foreground = foreground.repeat_interleave(2, 2)[:, :, :12]  # cells of 2³ voxels: all tissue or all air
    views = method.views(replace(batch, foreground=foreground), _rng())
    bases = slice(0, 8)
    even = replace(views, image=views.image[:, bases], foreground=views.foreground[:, bases], counted=views.counted[:, bases])  # fmt: skip
    loud = replace(even, image=even.image + 100.0 * ~even.foreground)
    torch.testing.assert_close(method.student(even), method.student(loud))


def test_without_the_copy_bases_are_held_fixed() -> None:
    """Gradient of the pairs reaches targets only; the regulariser alone moves bases."""
    method = _method(teacher=False)
    views = method.views(_batch(), _rng())
    embedding = torch.rand(2, 12, 5, generator=_rng()).requires_grad_()
    terms = _told(method, embedding).losses(views, CLOCK).terms
    moved = torch.autograd.grad(terms["overlap"] + terms["apart"], embedding, retain_graph=True)[0]
    assert not moved[:, :8].any()
    assert moved[:, 8:].any()
    assert torch.autograd.grad(terms["spread"], embedding)[0][:, :8].any()
    assert method.teacher is None


def test_the_copy_follows_after_a_step() -> None:
    method = _method(momentum=0.75)
    assert method.teacher is not None
    losses = method.losses(method.views(_batch(), _rng()), CLOCK)
    with torch.no_grad():
        method.student.encoder.weight.fill_(3.0)  # type: ignore[union-attr, operator]
    method.after_step(losses, CLOCK)
    assert method.teacher.module.encoder.weight.item() == pytest.approx(0.75 * 1 + 0.25 * 3)  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("side", [11, 16])
def test_crops_fit_the_network_whatever_the_patch(side: int) -> None:
    """Cells of 3 or 5 voxels, a network of stride 2: crops get a frame of zeros, and what is left over is not tiled."""
    batch = _batch(sides=(side, side, side))
    views = _method(grid=(3, 3, 3)).views(batch, _rng())
    cell, framed = side // 3, side // 3 + 1
    assert views.image.shape == (2, 27 + 4, 2, framed, framed, framed)
    assert (views.foreground.sum((2, 3, 4, 5)) == cell**3).all()
    assert views.counted.all()
    torch.testing.assert_close(views.overlap.sum(2), torch.ones(2, 4))


def test_one_base_is_refused() -> None:
    with pytest.raises(SettingsError, match="expected two or more"):
        _method(grid=(1, 1, 1))
