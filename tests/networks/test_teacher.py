import pytest
import torch
from torch import nn

from oligovox.networks.teacher import Teacher, cosine_momentum, rising_momentum, warm_momentum


def student():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))


def moved(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    module[1].running_mean.fill_(7.0)
    module[1].num_batches_tracked.fill_(5)
    return module


def test_starts_as_a_frozen_copy():
    net = student()
    teacher = Teacher(net)
    moved(net)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not torch.equal(teacher.module[0].weight, net[0].weight)
    assert not teacher(torch.randn(2, 3, requires_grad=True)).requires_grad


@pytest.mark.parametrize("momentum", [0.0, 0.25, 1.0])
def test_parameters_are_averaged_and_buffers_copied(momentum):
    net = student()
    teacher = Teacher(net)
    before = net[0].weight.detach().clone()
    teacher.update(moved(net), momentum)
    torch.testing.assert_close(teacher.module[0].weight, momentum * before + (1 - momentum) * net[0].weight)
    assert torch.equal(teacher.module[1].running_mean, net[1].running_mean)
    assert teacher.module[1].num_batches_tracked == 5
    if momentum == 0:
        assert all(torch.equal(a, b) for a, b in zip(teacher.module.parameters(), net.parameters(), strict=True))


def test_warm_momentum_is_a_plain_mean_first():
    assert [warm_momentum(t, 0.99) for t in (0, 1, 3)] == [0.0, 0.5, 0.75]
    assert warm_momentum(10_000, 0.99) == 0.99
    values = torch.tensor([3.0, 5.0, 10.0, 2.0])
    net = nn.Linear(1, 1, bias=False)
    teacher = Teacher(net)
    for step, value in enumerate(values):
        nn.init.constant_(net.weight, value)
        teacher.update(net, warm_momentum(step, 0.99))
    torch.testing.assert_close(teacher.module.weight, values.mean().reshape(1, 1))


def test_cosine_momentum_is_half_a_cosine():
    assert [cosine_momentum(p, 0.9) for p in (0.0, 1.0)] == [pytest.approx(0.9), 1.0]
    assert cosine_momentum(0.5, 0.9) == pytest.approx(0.95)
    assert cosine_momentum(1 / 3, 0.8, end=0.4) == pytest.approx(0.7)
    steps = [cosine_momentum(p / 50, 0.996) for p in range(51)]
    assert steps == sorted(steps)


def test_modes():
    plain, dropping = Teacher(student().eval()), Teacher(student(), dropout=True)
    for teacher in (plain, dropping):
        nn.ModuleList([teacher]).train()
        assert not teacher.module[1].training
    assert not plain.module[2].training
    assert dropping.module[2].training
    assert not nn.ModuleList([dropping]).eval()[0].module[2].training


@pytest.mark.parametrize("steps", [10, 100, 1000, 10000])
def test_of_the_first_weights_little_is_left_however_short_the_training(steps):
    left = 1.0
    for step in range(steps):
        left *= rising_momentum(step, steps, 0.996)
    assert left < 0.007  # e⁻⁵
    assert rising_momentum(steps, steps, 0.996) == 1.0
    assert rising_momentum(0, steps, 0.996) == pytest.approx(min(0.996, 1 - 10 / steps))
