from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from oligovox.errors import RunError
from oligovox.infer.window import blend, corners, predict_case

INSIDE = (slice(2, -2),) * 3


def two_classes(image, present):
    """Logits whose softmax of class 1 is the sigmoid of the first channel."""
    return torch.cat([torch.zeros_like(image[:, :1]), image[:, :1]], dim=1)


@pytest.mark.parametrize("patch", [(8, 8, 8), (16, 12, 8), (32, 32, 32)])
@pytest.mark.parametrize("mirror", [False, True])
def test_a_voxelwise_network_gives_itself_everywhere(case, plan, image, patch, mirror):
    """Also for windows larger than the volume, and for odd numbers of windows."""
    found = predict_case(two_classes, case, plan, patch=patch, mirror=mirror)
    assert found.dtype == np.float32
    expected = np.where(image > 0, 1 / (1 + np.exp(-image)), 0)
    assert np.allclose(found[1], expected, atol=1e-6)
    assert np.allclose(found.sum(axis=0), 1, atol=1e-6)


def test_outside_the_foreground_box_is_background(case, plan):
    softmax = predict_case(lambda i, p: two_classes(i, p) + 3, case, plan, patch=(8, 8, 8))
    sigmoid = predict_case(lambda i, p: two_classes(i, p) + 3, case, plan, patch=(8, 8, 8), activation="sigmoid")
    outside = np.ones(case.shape, dtype=bool)
    outside[INSIDE] = False
    assert (softmax[:, outside] == np.array([[1], [0]])).all()
    assert (sigmoid[:, outside] == 0).all()
    assert (sigmoid[:, ~outside] > 0.9).all()


def test_a_constant_network_has_no_seams(case, plan):
    found = predict_case(
        lambda i, p: torch.full((len(i), 3, *i.shape[2:]), 0.4), case, plan, patch=(8, 8, 8), overlap=0.3
    )
    assert np.allclose(found[(slice(None), *INSIDE)], 1 / 3, atol=1e-6)


def test_a_network_with_context_is_exact_where_windows_see_it_all(case, plan, image):
    """A 3-voxel mean, by one window over everything: the reference; small windows agree away from their borders' reach."""
    mean = nn.Conv3d(1, 1, 3, padding=1, bias=False)
    nn.init.constant_(mean.weight, 1 / 27)
    network = lambda i, p: mean(i[:, :1])  # noqa: E731
    whole = predict_case(network, case, plan, patch=(16, 14, 12), activation="sigmoid")
    tiled = predict_case(network, case, plan, patch=(12, 12, 12), activation="sigmoid", overlap=0.5)
    direct = np.stack([np.roll(image, s, (0, 1, 2)) for s in np.ndindex(3, 3, 3)]).mean(0)
    direct = 1 / (1 + np.exp(-np.roll(direct, -1, (0, 1, 2))))
    assert np.allclose(whole[0][3:-3, 3:-3, 3:-3], direct[3:-3, 3:-3, 3:-3], atol=1e-6)
    middle = np.abs(whole - tiled)[0][8:12, 8:10, 6:10]  # inside every window by at least one voxel
    assert middle.max() < 1e-6
    assert np.abs(whole - tiled).max() > 1e-3  # borders do differ, so the line above says something


def test_channels_are_in_plan_order_and_absence_is_told(case, plan, image):
    seen = []

    def network(windows, present):
        seen.append((windows, present))
        return windows[:, :2]

    predict_case(network, case, plan, patch=(8, 8, 8), batch=3)
    for windows, present in seen:
        assert windows.dtype == torch.float32
        assert len(windows) <= 3
        assert present.tolist() == [[True, False, True]] * len(windows)
        assert (windows[:, 1] == 0).all()
        assert torch.equal(windows[:, 2], -windows[:, 0])


def test_mirroring_averages_probabilities_of_all_flips(case, plan):
    """A network that likes high x: mirrored, its ramp and the reversed ramp average to a constant."""
    ramp = lambda i, p: torch.linspace(-1, 1, i.shape[2])[:, None, None].expand(len(i), 1, *i.shape[2:])  # noqa: E731
    plain = predict_case(ramp, case, plan, patch=(16, 14, 12), activation="sigmoid")
    mirrored = predict_case(ramp, case, plan, patch=(16, 14, 12), activation="sigmoid", mirror=True)
    assert np.ptp(plain[0][INSIDE]) > 0.4
    assert np.allclose(mirrored[0][INSIDE], 0.5, atol=1e-6)


def test_evaluation_mode_and_back(case, plan):
    network = nn.Sequential(nn.Conv3d(3, 2, 1), nn.Dropout3d(0.9))
    network[0].eval()
    modes = []

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, image, present):
            modes.append(any(m.training for m in self.modules()))
            return self.inner(image)

    wrapped = Wrapped()
    wrapped.inner[0].eval()
    predict_case(wrapped, case, plan, patch=(16, 16, 16))
    assert not any(modes)
    assert (wrapped.training, network[0].training, network[1].training) == (True, False, True)


def test_bfloat16_is_close_and_float32(case, plan):
    torch.manual_seed(0)
    network = nn.Conv3d(3, 2, 3, padding=1)
    kinds = set()

    def wrapped(image, present):
        logits = network(image)
        kinds.add(logits.dtype)
        return logits

    exact = predict_case(wrapped, case, plan, patch=(16, 16, 16))
    rough = predict_case(wrapped, case, plan, patch=(16, 16, 16), precision="bf16-mixed")
    assert kinds == {torch.float32, torch.bfloat16}
    assert rough.dtype == np.float32
    assert 0 < np.abs(exact - rough).max() < 0.05


def test_no_random_number_is_drawn(case, plan):
    before = torch.get_rng_state()
    predict_case(two_classes, case, plan, patch=(8, 8, 8))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("shape", "patch", "overlap"),
    [
        ((20, 17, 13), (8, 8, 8), 0.5),
        ((5, 20, 11), (8, 12, 8), 0.5),
        ((5, 4, 7), (8, 8, 8), 0.5),
        ((25, 9, 16), (8, 9, 8), 0.0),
    ],
)
def test_it_is_the_sliding_window_of_monai(shape, patch, overlap):
    from monai.inferers.utils import sliding_window_inference

    rng = torch.Generator().manual_seed(0)
    image, filters = torch.randn(2, *shape, generator=rng), torch.randn(3, 2, 3, 3, 3, generator=rng)

    def answer(windows):
        return nn.functional.conv3d(windows, filters, padding=1).softmax(1)

    theirs = sliding_window_inference(image[None], patch, 2, answer, overlap, "gaussian")[0]
    assert torch.allclose(blend(image, patch, answer, overlap=overlap, batch=2), theirs, atol=1e-6)


def test_windows_end_with_the_volume():
    assert corners([20, 8, 5], (8, 8, 8), 0.5) == [(0, 0, 0), (4, 0, 0), (8, 0, 0), (12, 0, 0)]
    assert len(corners([100, 100, 100], (48, 48, 48), 0.25)) == 27


def test_a_broken_network_is_named_not_painted(case, plan):
    with pytest.raises(RunError, match=r"sub-01_ses-1.*NaN"):
        predict_case(lambda i, p: i[:, :2] * float("nan"), case, plan, patch=(8, 8, 8))


def test_smaller_than_a_window_along_one_axis(tmp_path, plan, make_case):
    array = np.ones((30, 6, 30), dtype=np.float32)
    thin = make_case(tmp_path, nib.Nifti1Image(array, np.eye(4)))
    found = predict_case(two_classes, thin, plan, patch=(16, 16, 16))
    assert found.shape == (2, 30, 6, 30)
    assert np.allclose(found[1], 1 / (1 + np.exp(-1)), atol=1e-6)
