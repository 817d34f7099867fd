"""Dual-task consistency: distances, what a label known in part says of them, and what the two heads learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.sample.batch import Batch
from oligovox.semi.dual_task import DualTask, Settings, bounds, distance_to
from oligovox.tasks import segmentation

SEQUENCES = ("T1w", "FLAIR")
REGIONS = segmentation.Settings(mode="regions", labels={"whole": (1, 2), "core": (2,)})


def method(**chosen: object) -> DualTask:
    torch.manual_seed(0)
    return DualTask(ResEnc(SEQUENCES, ResEncSettings(preset="nano")), Settings(**chosen))


def batch() -> Batch:
    """A labelled sample with a cube of 1 and a core of 2 in it, one that nobody looked at."""
    rng = torch.Generator().manual_seed(0)
    label = torch.zeros(2, 16, 16, 16, dtype=torch.int64)
    label[:, 4:10, 5:11, 6:12] = 1
    label[:, 6:8, 7:9, 8:10] = 2
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


def terms(one: DualTask, seen: Batch) -> dict[str, Tensor]:
    return dict(one.losses(one.views(seen, torch.Generator().manual_seed(1)), Clock(0, 1)).terms)


def saying(one: DualTask, distance: float) -> DualTask:
    """With a distance head that says the same at every voxel."""
    torch.nn.init.zeros_(one.distance.weight)
    torch.nn.init.constant_(one.distance.bias, float(np.arctanh(distance)))
    return one


def line(*values: int) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)


def of_line(*label: int) -> tuple[list[float], list[float]]:
    """Lower and upper bound along a line of voxels of 2 mm."""
    known = bounds(line(*label), [(1,)], line(*label) < 0, torch.full((1, 3), 2.0))
    return [part.flatten().tolist() for part in (known.near, known.far)]


def test_distances_are_those_of_scipy_in_millimetres() -> None:
    sources = torch.rand(2, 2, 7, 9, 5, generator=torch.Generator().manual_seed(0)) < 0.03
    sources[1, 1] = False
    spacing = torch.tensor([[1.0, 0.7, 3.0], [1.0, 1.0, 1.0]])
    found = distance_to(sources, spacing)
    for sample, channel in ((0, 0), (0, 1), (1, 0)):
        expected = distance_transform_edt(~sources[sample, channel].numpy(), sampling=spacing[sample].tolist())
        np.testing.assert_allclose(found[sample, channel], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1, 1], torch.full((7, 9, 5), (49 + 81 + 25) ** 0.5)), "the diagonal"


def test_a_label_known_throughout_gives_the_distance_as_a_share_of_the_largest() -> None:
    near, far = of_line(0, 1, 1, 1, 1, 0, 0, 0, 0)
    assert near == far == pytest.approx([0.25, 0.5, 1.0, 1.0, 0.5, 0.25, 0.5, 0.75, 1.0])


def test_a_voxel_nobody_looked_at_leaves_open_how_far_it_is() -> None:
    near, far = of_line(1, 0, 0, -1, 0, 0)
    looked = [0, 1, 2, 4, 5]
    assert [near[i] for i in looked] == pytest.approx([1.0, 0.2, 0.2, 0.2, 0.4])
    assert [far[i] for i in looked] == pytest.approx([1.0, 0.2, 0.4, 0.8, 1.0])


def test_a_labelled_patch_without_a_lesion_is_all_outside() -> None:
    near, far = of_line(0, 0, 0, 0)
    assert near == far == [1.0] * 4
    near, far = of_line(0, 0, -1)
    assert far[:2] == [1.0] * 2
    assert 0 < near[1] < near[0] < 1


@pytest.mark.parametrize("said", [0.6, -0.6])
def test_the_distance_is_positive_outside_and_taught_on_labelled_voxels(said: float) -> None:
    one, seen = saying(method(task=REGIONS), said), batch()
    errors = []
    for values in ((1, 2), (2,)):
        inside = np.isin(seen.label[0].numpy(), values)
        out, into = distance_transform_edt(~inside), distance_transform_edt(inside)
        errors.append(np.square(out / out.max() - into / into.max() - said).mean())
    assert terms(one, seen)["distance"].item() == pytest.approx(np.mean(errors), rel=1e-5)


def test_between_the_bounds_any_distance_is_right() -> None:
    one, seen = saying(method(), 0.5), batch()
    views = one.views(seen, torch.Generator().manual_seed(1))
    wide = replace(views.distance, near=torch.full_like(views.distance.near, 0.2), inside=views.distance.inside & False)
    for far, error in ((0.9, 0.0), (0.3, 0.04)):
        given = replace(views, distance=replace(wide, far=torch.full_like(wide.far, far)))
        assert one.losses(given, Clock(0, 1)).terms["distance"].item() == pytest.approx(error, abs=1e-6)


@pytest.mark.parametrize("over", ["unlooked", "all"])
def test_the_heads_are_compared_where_nobody_looked_or_over_all(over: str) -> None:
    one, seen = method(sharpness=3.0, over=over), batch()
    features = one.task.network.decoder(one.task.network.encoder(seen.image, seen.present))[0]
    mask = torch.sigmoid(-3.0 * one.distance(features).tanh())[:, 0]
    p = one.task.network.head(features).softmax(1)[:, 1]
    differs = (mask - p).square()
    expected = differs.mean() if over == "all" else differs[1, seen.foreground[1, 0]].mean()
    torch.testing.assert_close(terms(one, seen)["consistency"], expected)


def test_both_heads_learn_from_their_difference() -> None:
    one = saying(method(), 1e-4)
    terms(one, batch())["consistency"].backward()
    assert all(p.grad is not None and p.grad.any() for p in one.distance.parameters())
    assert all(p.grad is not None and p.grad.any() for p in one.task.network.head.parameters())


def test_what_nobody_looked_at_has_no_part_in_the_labelled_terms() -> None:
    one, seen = method(), batch()
    other = replace(seen, image=torch.cat([seen.image[:1], 3 * seen.image[1:]]))
    both = [terms(one, each) for each in (seen, other)]
    assert all(torch.equal(both[0][name], both[1][name]) for name in ("dice", "cross_entropy", "distance"))
    assert not torch.equal(both[0]["consistency"], both[1]["consistency"])
