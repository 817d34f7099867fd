"""One question list over every network there is."""

import re

import pytest
import torch

from oligovox import catalogue
from oligovox.errors import GeometryError, SettingsError
from oligovox.networks.compose import SegmentationNetwork
from oligovox.networks.decoder import Decoder
from oligovox.networks.heads import SegmentationHead
from oligovox.settings import parse

NAMES = (*catalogue.entries("NETWORK"), "resenc, stems", "swin, stems")
MODALITIES = ("T1w", "T2w", "FLAIR", "PDw")
SMALL = {
    "resenc": {"preset": "nano"},
    "swin": {"feature_size": 12, "depths": (2, 1, 1, 1), "window": 4},
    "frodo": {"preset": "nano", "primary": "T1w", "condition": "T2w"},
    "rimnet": {"preset": "nano", "first": "T1w", "second": "T2w"},
    "resnet18": {"preset": "nano"},
}


def build(name, modalities=MODALITIES[:3], seed=0):
    """The network in its smallest settings (its defaults where none are given above); after a comma another fusion."""
    name, _, fusion = name.partition(", ")
    module = catalogue.load("NETWORK", name)
    torch.manual_seed(seed)
    settings = SMALL.get(name, {}) | ({"fusion": fusion} if fusion else {})
    return module.NETWORK(modalities, parse(module.Settings, settings, name))


def inputs(encoder, batch=2, seed=1):
    """A random image of a small valid size, with every sequence present."""
    deep = encoder.strides[-1]
    sides = max(2 * deep, 16), max(deep, 8), max(deep, 8)
    rng = torch.Generator().manual_seed(seed)
    m = len(encoder.modalities)
    return torch.randn(batch, m, *sides, generator=rng), torch.ones(batch, m, dtype=torch.bool)


def without(image, present, channel):
    image, present = image.clone(), present.clone()
    image[:, channel], present[:, channel] = 0, False
    return image, present


def test_there_are_networks():
    assert {"resenc", "swin"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_features_have_the_shapes_the_contract_states(name, m):
    if (
        m == 1 and {"primary", "first"} & SMALL.get(name, {}).keys()
    ):  # of named sequences: says which one the plan lacks
        with pytest.raises(SettingsError, match="T2w is missing"):
            build(name, MODALITIES[:m])
        return
    encoder = build(name, MODALITIES[:m])
    image, present = inputs(encoder, batch=1)
    features = encoder(image, present)
    assert encoder.modalities == MODALITIES[:m]
    assert len(features) == len(encoder.channels) == len(encoder.strides)
    for feature, channels, stride in zip(features, encoder.channels, encoder.strides, strict=True):
        assert feature.shape == (1, channels, *(side // stride for side in image.shape[2:]))


@pytest.mark.parametrize("name", NAMES)
def test_is_built_on_the_meta_device_as_a_recipe_s_check_does(name):
    with torch.device("meta"):
        dry = build(name)
    assert {key: t.shape for key, t in dry.state_dict().items()} == {
        key: t.shape for key, t in build(name).state_dict().items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_that_grows_with_the_modalities_is_named(name):
    two, three = (build(name, MODALITIES[:m]) for m in (2, 3))
    shapes = {key: value.shape for key, value in two.state_dict().items()}
    grown = {key for key, value in three.state_dict().items() if value.shape != shapes[key]}
    assert grown == set(three.modality_weights)
    for key, groups in three.modality_weights.items():
        assert three.state_dict()[key].shape[1] == 3 * groups


@pytest.mark.parametrize("name", NAMES)
def test_absent_is_told_from_dark_by_availability_alone(name):
    encoder = build(name)
    image, present = without(*inputs(encoder), channel=1)
    hidden = encoder(image, present)[-1]
    dark = encoder(image, torch.ones_like(present))[-1]
    assert (hidden - dark).abs().mean() > 1e-3 * dark.std()


@pytest.mark.parametrize("name", NAMES)
def test_weights_named_after_an_absent_sequence_do_not_matter(name):
    encoder = build(name)
    image, present = without(*inputs(encoder), channel=1)
    before = encoder(image, present)
    for key, groups in encoder.modality_weights.items():
        value = encoder.state_dict()[key]
        for group in range(groups):
            value[:, group * 3 + 1] += 1.0
    for old, new in zip(before, encoder(image, present), strict=True):
        torch.testing.assert_close(new, old)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_learns_through_decoder_and_head(name):
    encoder = build(name)
    decoder = Decoder(encoder.channels, encoder.strides)
    network = SegmentationNetwork(encoder, decoder, SegmentationHead(decoder.channels[0], 2))
    image, present = inputs(encoder)
    logits = network(image, present)
    assert logits.shape == (2, 2, *image.shape[2:])
    torch.nn.functional.cross_entropy(logits, (image[:, 0] > 0).long()).backward()
    silent = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("name", NAMES)
def test_samples_do_not_see_each_other_and_modes_agree(name):
    encoder = build(name)
    image, present = inputs(encoder)
    state = torch.get_rng_state()
    together, again = encoder(image, present), encoder(image, present)
    alone = encoder.eval()(image[1:], present[1:])
    assert torch.equal(torch.get_rng_state(), state)
    for both, repeated, one in zip(together, again, alone, strict=True):
        assert torch.equal(both, repeated)
        torch.testing.assert_close(both[1:], one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_round_trip(name):
    first, second = build(name, seed=0), build(name, seed=1)
    image, present = inputs(first, batch=1)
    assert not torch.equal(first(image, present)[-1], second(image, present)[-1])
    second.load_state_dict(first.state_dict())
    for one, other in zip(first(image, present), second(image, present), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_is_finite_and_close(name):
    encoder = build(name)
    image, present = inputs(encoder, batch=1)
    exact = encoder(image, present)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = encoder(image, present)
    for one, other in zip(exact, rounded, strict=True):
        assert (one - other.float()).abs().mean() < 0.1 * one.abs().mean()  # false for NaN as well


@pytest.mark.parametrize("name", NAMES)
def test_wrong_size_says_the_next_one_that_fits(name):
    encoder = build(name)
    deep = encoder.strides[-1]
    present = torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises(GeometryError, match="the next size that fits is") as caught:
        encoder(torch.zeros(1, 3, deep + 1, 2 * deep, 2 * deep), present)
    sides = [int(n) for n in re.findall(r"\d+", str(caught.value).split("fits is")[1])]
    assert sides == [2 * deep] * 3
    encoder(torch.zeros(1, 3, *sides), present)
