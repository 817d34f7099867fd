"""FRODO: sizes of the paper, the modulation that starts as nothing, and the ways in which the condition may and may not speak."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from oligovox.errors import SettingsError
from oligovox.networks.compose import ClassificationNetwork
from oligovox.networks.frodo import FiLM, Frodo, Settings, SqueezeExcitation
from oligovox.networks.heads import ClassificationHead
from oligovox.networks.transfer import transfer
from oligovox.settings import parse

PAIR = ("QSM", "FLAIR")
FUSIONS = ("film", "global_film", "symmetric_film", "concat", "early", "late", "alone")


def _network(modalities: tuple[str, ...] = PAIR, seed: int = 0, **chosen: object) -> Frodo:
    torch.manual_seed(seed)
    return Frodo(modalities, parse(Settings, {"preset": "nano"} | chosen, "test"))


def _image(samples: int = 2, channels: int = 2, side: int = 16, seed: int = 1) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(samples, channels, side, side, side, generator=rng), torch.ones(
        samples, channels, dtype=torch.bool
    )


def test_shapes_and_weights_of_the_paper() -> None:
    with torch.device("meta"):
        encoder = Frodo(PAIR, Settings())
        network = ClassificationNetwork(encoder, ClassificationHead(encoder.channels[-1], (64,)))
        image, present = torch.rand(2, 2, 64, 64, 64), torch.ones(2, 2, dtype=torch.bool)
        features = encoder(image, present)
        assert [tuple(f.shape[1:]) for f in features] == [(32, 32, 32, 32), (64, 16, 16, 16), (128, 8, 8, 8)]
        assert encoder.stem("QSM", image, present).shape == (2, 32, 32, 32, 32)
        assert network.head.embedding(network.head.pooled(features[-1])).shape == (2, 64)
        assert network(image, present).shape == (2,)
    availability = 2 * 16 * 27  # the stems' second channel, which the paper does not have
    assert sum(p.numel() for p in network.parameters()) - availability == 2_213_645  # 2.21 M


def test_the_modulation_is_nothing_at_first_and_voxel_by_voxel_later() -> None:
    film, z = FiLM(3, whole=False), torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    condition = torch.zeros_like(z)
    condition[0, 0, 1, 2, 3] = 1.0
    film.identity()
    assert torch.equal(film(z, condition), z)
    with torch.no_grad():
        film.scale.weight[1, 0], film.shift.weight[2, 0] = 2.0, 5.0
    expected = z.clone()
    expected[0, 1, 1, 2, 3] *= 3.0
    expected[0, 2, 1, 2, 3] += 5.0
    torch.testing.assert_close(film(z, condition), expected)
    whole = FiLM(3, whole=True)
    whole.load_state_dict(film.state_dict())
    mean = torch.zeros_like(z)
    mean[0, 0] = 1 / 64
    torch.testing.assert_close(whole(z, condition), film(z, mean))


@pytest.mark.parametrize("fusion", ["film", "global_film", "symmetric_film"])
def test_every_modulation_starts_as_the_identity(fusion: str) -> None:
    """So that at first the network is the one without, of the same other weights."""
    network, plain = _network(fusion=fusion), _network(fusion="concat", seed=1)
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("modulate")})
    for one, other in zip(network(*_image()), plain(*_image()), strict=True):
        assert torch.equal(one, other)


def test_the_condition_speaks_through_scale_shift_and_fusion_only() -> None:
    network = _network()
    image, present = _image()
    changed = image.clone()
    changed[:, 1] = 1.0 - changed[:, 1]
    film = network.modulate[0]
    with torch.no_grad():
        for parameter in film.parameters():
            parameter.add_(0.1)

    def speaks() -> bool:
        return not torch.equal(network(image, present)[-1], network(changed, present)[-1])

    assert speaks()
    with torch.no_grad():
        network.fuse[0].weight[:, network.stem_channels :] = 0.0
    assert speaks()
    with torch.no_grad():
        film.scale.weight.zero_()
    assert speaks()
    with torch.no_grad():
        film.shift.weight.zero_()
    assert not speaks()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_each_fusion_learns_and_reads_what_it_says(fusion: str) -> None:
    network = _network(("T1w", "FLAIR", "QSM"), fusion=fusion)
    image, present = _image(samples=4, channels=3)
    image.requires_grad_()
    deep = network(image, present)[-1]
    assert deep.shape == (4, (64 if fusion == "late" else 32), 2, 2, 2)
    (deep * torch.randn(deep.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    assert [bool(image.grad[:, channel].any()) for channel in range(3)] == [False, fusion != "alone", True]
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_reverse_asymmetry_and_single_sequences_are_settings() -> None:
    image, present = _image()
    reverse = _network(primary="FLAIR", condition="QSM")
    assert list(reverse.stems) == ["FLAIR", "QSM"]
    same = _network(seed=1)
    same.load_state_dict(reverse.state_dict())  # stems go by name
    assert not torch.equal(same(image, present)[-1], reverse(image, present)[-1])
    flair_only = _network(("FLAIR",), primary="FLAIR", fusion="alone")
    assert list(flair_only.stems) == ["FLAIR"]
    gates = [m for m in _network(squeeze_excitation=False).modules() if isinstance(m, SqueezeExcitation)]
    assert gates == []


def test_stems_move_by_name_between_fusions_and_orders() -> None:
    old = nn.ModuleDict({"encoder": _network()})
    for chosen in ({"fusion": "alone"}, {"fusion": "late"}, {"primary": "FLAIR", "condition": "QSM"}):
        target = nn.ModuleDict({"encoder": _network(("FLAIR", "QSM"), seed=1, **chosen)})
        transfer(old.state_dict(), PAIR, target)
        image, present = _image()
        for name in target.encoder.stems:
            expected = old.encoder.stem(name, image, present)
            assert torch.equal(target.encoder.stem(name, image.flip(1), present), expected)


@pytest.mark.parametrize(
    ("modalities", "chosen", "message"),
    [
        (("T1w", "FLAIR"), {}, "QSM is missing; prepare it, name another primary"),
        (("QSM",), {}, "FLAIR is missing"),
        (("FLAIR",), {"fusion": "alone"}, "QSM is missing"),
        (PAIR, {"primary": "FLAIR"}, "both FLAIR"),
        (PAIR, {"primary": "QSN"}, "did you mean 'QSM'"),
    ],
)
def test_what_does_not_fit_is_said_by_name(
    modalities: tuple[str, ...], chosen: dict[str, object], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        _network(modalities, **chosen)
