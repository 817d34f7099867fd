"""Stems of each sequence, and the mean of those that are there."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oligovox.networks import resenc, swin
from oligovox.networks.compose import EncoderDecoder
from oligovox.networks.decoder import Decoder
from oligovox.networks.stems import Stems
from oligovox.networks.transfer import transfer

THREE = ("T1w", "T2w", "FLAIR")
EVERY = torch.ones(1, 3, dtype=torch.bool)


def build(modalities=THREE, seed=0, fusion="stems"):
    torch.manual_seed(seed)
    encoder = resenc.ResEnc(modalities, resenc.Settings(preset="nano", fusion=fusion))
    return EncoderDecoder(encoder, Decoder(encoder.channels, encoder.strides))


def image_of(modalities, seed=3):
    rng = torch.Generator().manual_seed(seed)
    channels = {name: torch.randn(1, 8, 8, 8, generator=rng) for name in sorted({*THREE, "PDw"})}
    return torch.stack([channels[name] for name in modalities], dim=1)


def test_worked_values():
    """Two stems that multiply by 2 and by -1, of constant images 3 and 5: leaky ReLU gives 6 and -0.05."""
    stems = Stems(("T1w", "FLAIR"), 1)
    torch.nn.init.zeros_(stems.filters), torch.nn.init.zeros_(stems.offsets)
    with torch.no_grad():
        stems.filters[0, :, 1, 1, 1] = torch.tensor([2.0, -1.0])
    image = torch.stack([torch.full((4, 4, 4), value) for value in (3.0, 5.0)])[None]
    for present, expected in {
        (True, True): 5.95,
        (True, False): 12.0,
        (False, True): -0.1,
        (False, False): 0.0,
    }.items():
        found = stems(image, torch.tensor([present]))
        torch.testing.assert_close(found, torch.full_like(found, expected))


def test_the_size_of_a_feature_does_not_depend_on_how_many_are_there():
    """Of the same image in every channel and the same stem for each: a repeated acquisition changes nothing."""
    stems = Stems(THREE, 4)
    with torch.no_grad():
        stems.filters.copy_(stems.filters[:, :1].expand_as(stems.filters))
        stems.offsets.copy_(stems.offsets[:, :1].expand_as(stems.offsets))
    image = image_of(("T1w",)).expand(-1, 3, -1, -1, -1)
    whole = stems(image, EVERY)
    for shown in ([True, False, False], [False, True, True]):
        torch.testing.assert_close(stems(image, torch.tensor([shown])), whole)


def test_what_lies_in_the_channel_of_an_absent_sequence_is_not_read():
    network, image, present = build(), image_of(THREE), torch.tensor([[True, False, True]])
    other = image.clone()
    other[:, 1] = 7.0
    assert torch.equal(network(image, present), network(other, present))
    assert not torch.equal(network(image, EVERY), network(other, EVERY))


def test_no_sequence_at_all_is_answered():
    assert build()(image_of(THREE), torch.zeros(1, 3, dtype=torch.bool)).isfinite().all()


@settings(max_examples=6, deadline=None)
@given(order=st.sampled_from(list(permutations(THREE))), shown=st.sets(st.sampled_from(THREE), min_size=1))
@pytest.mark.parametrize("fusion", ["early", "stems"])
def test_the_order_of_the_plan_does_not_change_an_answer(fusion, order, shown):
    """Stems: not a bit. Early: the sum of a convolution runs in another order; with float64 that is below 1e-9."""
    old, new = build(fusion=fusion).double(), build(order, seed=1, fusion=fusion).double()
    transfer(old.state_dict(), THREE, new)

    def answer(network, modalities):
        present = torch.tensor([[name in shown for name in modalities]])
        return network(image_of(modalities).double() * present[:, :, None, None, None], present)

    one, other = answer(old, THREE), answer(new, order)
    if fusion == "stems":
        assert torch.equal(one, other)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("subset", [("FLAIR",), ("FLAIR", "T1w")])
def test_a_network_of_fewer_sequences_is_the_old_one_with_the_others_absent(subset):
    old, new = build(), build(subset, seed=1)
    report = transfer(old.state_dict(), THREE, new)
    present = torch.tensor([[name in subset for name in THREE]])
    expected = old(image_of(THREE), present)
    torch.testing.assert_close(
        new(image_of(subset), torch.ones(1, len(subset), dtype=torch.bool)), expected, rtol=1e-4, atol=1e-5
    )
    assert report.count("expanded") == 2


def test_a_new_sequence_starts_as_the_mean_of_the_known_stems():
    old, new = build(), build(("PDw", "FLAIR"), seed=1)
    transfer(old.state_dict(), THREE, new)
    before, after = old.encoder.stem, new.encoder.stem
    for name in ("filters", "offsets"):
        theirs, ours = getattr(before, name), getattr(after, name)
        torch.testing.assert_close(ours[:, 1], 1.5 * theirs[:, 2])  # 1.5: a sum of two is scaled as one of three
        torch.testing.assert_close(ours[:, 0], 1.5 * theirs.mean(dim=1))
    flair = torch.tensor([[False, True]])
    expected = old(image_of(THREE), torch.tensor([[False, False, True]]))
    torch.testing.assert_close(new(image_of(("PDw", "FLAIR")), flair), expected, rtol=1e-4, atol=1e-5)


TWICE = ("FLAIR_run-2", "T1w", "FLAIR", "FLAIR_run-3")


def test_acquisitions_of_a_sequence_are_averaged_behind_one_stem():
    """A worked value, and the reference: the mean over the acquisitions of a sequence, then over sequences."""
    stems = Stems(TWICE, 4)
    assert stems.filters.shape[1] == 2
    image = torch.randn(2, 4, 6, 6, 6, generator=torch.Generator().manual_seed(1))
    present = torch.tensor([[True, True, True, False], [False, False, True, True]])
    flair, t1w = stems.stem_of[0], stems.stem_of[1]

    def heard(sample, channel, stem):
        one = image[sample, channel][None, None]
        said = torch.nn.functional.conv3d(one, stems.filters[:, stem : stem + 1], stems.offsets[:, stem], padding=1)
        return torch.nn.functional.leaky_relu(said, 0.01)[0]

    both = (heard(0, 0, flair) + heard(0, 2, flair)) / 2 + heard(0, 1, t1w)
    alone = 2 * (heard(1, 2, flair) + heard(1, 3, flair)) / 2
    torch.testing.assert_close(stems(image, present), torch.stack([both, alone]))


def test_another_acquisition_of_the_same_image_changes_nothing_nor_does_their_order():
    old, new = build(("T1w", "FLAIR")), build(TWICE, seed=1)
    report = transfer(old.state_dict(), ("T1w", "FLAIR"), new)
    assert report.count("fresh") == 0
    flair, t1w, other = torch.randn(3, 1, 8, 8, 8, generator=torch.Generator().manual_seed(2))
    expected = old(torch.stack([t1w, flair], dim=1), torch.ones(1, 2, dtype=torch.bool))
    once, twice = (torch.tensor([[run, True, True, False]]) for run in (False, True))
    same = torch.stack([flair, t1w, flair, other], dim=1)
    torch.testing.assert_close(new(same, once), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(new(same, twice), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(new(same, torch.ones(1, 4, dtype=torch.bool)), expected, atol=1e-3)
    one, swapped = (torch.stack([*pair, flair], dim=1) for pair in ((other, t1w, flair), (flair, t1w, other)))
    torch.testing.assert_close(new(one, twice), new(swapped, twice), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fusion", ["early", "stems"])
def test_a_further_acquisition_starts_as_its_sequence(fusion):
    old, new = build(fusion=fusion), build((*THREE, "FLAIR_run-2"), seed=1, fusion=fusion)
    transfer(old.state_dict(), THREE, new)
    if fusion == "early":
        weight = new.encoder.stem.weight
        assert torch.equal(weight[:, 3], weight[:, 2])
        assert not torch.equal(weight[:, 1], weight[:, 2])
    else:
        assert torch.equal(new.encoder.stem.filters, old.encoder.stem.filters)


def test_swin_reads_stems_in_its_transformer_and_beside_it():
    torch.manual_seed(0)
    small = {"feature_size": 12, "depths": (1, 1, 1, 1), "window": 4}
    encoder = swin.Swin(THREE, swin.Settings(**small, fusion="stems"))
    image = torch.randn(1, 3, 32, 32, 32)
    other = image.clone()
    other[:, 0] = 5.0
    hidden = torch.tensor([[False, True, True]])
    with torch.no_grad():
        for one, same in zip(encoder(image, hidden), encoder(other, hidden), strict=True):
            assert torch.equal(one, same)
        assert all(not torch.equal(a, b) for a, b in zip(encoder(image, EVERY), encoder(other, EVERY), strict=True))


@pytest.mark.parametrize("network", [resenc, swin])
def test_runs_begun_without_the_setting_are_known_by_the_same_text(network):
    assert "fusion" not in network.Settings().model_dump(mode="json")
    chosen = network.Settings(fusion="stems")
    assert network.Settings.model_validate(chosen.model_dump(mode="json")) == chosen
