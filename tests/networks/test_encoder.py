import torch

from oligovox.networks.encoder import with_availability


def test_data_channels_come_first_then_constant_maps():
    image = torch.arange(2 * 2 * 8, dtype=torch.float32).reshape(2, 2, 2, 2, 2)
    present = torch.tensor([[True, False], [False, True]])
    out = with_availability(image, present)
    assert torch.equal(out[:, :2], image)
    assert torch.equal(out[:, 2:], present.float()[:, :, None, None, None].expand(2, 2, 2, 2, 2))


def test_keeps_the_precision_of_the_image():
    out = with_availability(torch.zeros(1, 1, 2, 2, 2, dtype=torch.bfloat16), torch.ones(1, 1, dtype=torch.bool))
    assert out.dtype == torch.bfloat16
