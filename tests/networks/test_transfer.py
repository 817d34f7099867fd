import pytest
import torch

from oligovox.errors import CheckpointError
from oligovox.networks import resenc, swin
from oligovox.networks.compose import EncoderDecoder, SegmentationNetwork
from oligovox.networks.decoder import Decoder
from oligovox.networks.heads import SegmentationHead
from oligovox.networks.transfer import transfer

THREE = ("T1w", "T2w", "FLAIR")


def build(modalities, seed=0, preset="nano"):
    torch.manual_seed(seed)
    encoder = resenc.ResEnc(modalities, resenc.Settings(preset=preset))
    return EncoderDecoder(encoder, Decoder(encoder.channels, encoder.strides))


def small_swin(window, seed=0, feature_size=12):
    torch.manual_seed(seed)
    return swin.Swin(("T1w",), swin.Settings(feature_size=feature_size, depths=(1, 1, 1, 1), window=window))


def image_of(modalities, seed=3):
    rng = torch.Generator().manual_seed(seed)
    channels = {name: torch.randn(1, 8, 8, 8, generator=rng) for name in sorted({*THREE, "PDw"})}
    return torch.stack([channels[name] for name in modalities], dim=1)


def test_same_modalities_are_an_exact_copy_and_the_head_is_left_alone():
    body = build(THREE)
    trained = SegmentationNetwork(body.encoder, body.decoder, SegmentationHead(8, 2))
    target = build(THREE, seed=1)
    report = transfer(trained.state_dict(), THREE, target)
    assert report.count("loaded") == len(report.rows) == len(target.state_dict())
    assert report.unused == ()
    assert all(torch.equal(trained.state_dict()[k], v) for k, v in target.state_dict().items())


def test_another_order_gives_the_same_network():
    old, order = build(THREE), ("FLAIR", "T1w", "T2w")
    new = build(order, seed=1)
    report = transfer(old.state_dict(), THREE, new)
    present = torch.tensor([[True, False, True]])  # T2w absent
    image = image_of(THREE)
    image[:, 1] = 0
    index = [THREE.index(name) for name in order]
    expected, found = old(image, present), new(image[:, index], present[:, index])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert report.count("expanded") == 1


def test_unscaled_subset_is_the_old_network_with_the_others_absent():
    old, new = build(THREE), build(("FLAIR",), seed=1)
    transfer(old.state_dict(), THREE, new, rescale=False)
    image = image_of(THREE)
    image[:, :2] = 0
    expected = old(image, torch.tensor([[False, False, True]]))
    torch.testing.assert_close(new(image[:, 2:], torch.ones(1, 1, dtype=torch.bool)), expected, rtol=1e-4, atol=1e-5)


def test_slices_by_name_mean_for_new_ones_and_rescaling():
    old, order = build(THREE), ("PDw", "FLAIR", "T1w", "QSM")
    new = build(order, seed=1)
    transfer(old.state_dict(), THREE, new)
    before, after = old.encoder.stem.weight, new.encoder.stem.weight
    for group in (0, 1):  # data, availability
        mine, theirs = after[:, 4 * group : 4 * group + 4], before[:, 3 * group : 3 * group + 3]
        torch.testing.assert_close(mine[:, 1], 0.75 * theirs[:, 2])
        torch.testing.assert_close(mine[:, 2], 0.75 * theirs[:, 0])
        for new_name in (0, 3):
            torch.testing.assert_close(mine[:, new_name], 0.75 * theirs.mean(dim=1))


def test_rescaling_keeps_the_sum_over_equal_channels():
    old, new = build(THREE), build(("A", "B", "C", "D", "E"), seed=1)
    transfer(old.state_dict(), THREE, new)
    torch.testing.assert_close(new.encoder.stem.weight[:, :5].sum(1), old.encoder.stem.weight[:, :3].sum(1))


def test_encoder_only_weights_leave_the_decoder_fresh():
    old, new = build(THREE), build(THREE, seed=1)
    fresh = {k: v.clone() for k, v in new.decoder.state_dict().items()}
    report = transfer({k: v for k, v in old.state_dict().items() if k.startswith("encoder.")}, THREE, new)
    assert all(torch.equal(fresh[k], v) for k, v in new.decoder.state_dict().items())
    assert {row.status for row in report.rows if row.tensor.startswith("decoder.")} == {"fresh"}
    assert f"{len(fresh)} fresh" in report.summary()


def test_parts_choose_and_a_decoder_of_other_channels_stays_fresh_as_a_whole():
    old, new = build(THREE), build(THREE, seed=1)
    weights = old.state_dict()
    assert transfer(weights, THREE, new, parts=("encoder",)).count("fresh") == 0
    weights["decoder.joins.1.0.0.weight"] = torch.zeros(5, 32, 3, 3, 3)
    report = transfer(weights, THREE, new)
    assert report.count("fresh") == len(new.decoder.state_dict())
    assert any(line.startswith("fresh") and "(5, 32, 3, 3, 3) → (16, 32, 3, 3, 3)" in line for line in report.table())


def test_a_deeper_network_starts_from_a_shallower_one():
    old, new = build(THREE), build(THREE, seed=1, preset="tiny")
    report = transfer(old.state_dict(), THREE, new)
    fresh = [row.tensor for row in report.rows if row.status == "fresh"]
    assert fresh
    assert all(name.startswith(("encoder.stages.3", "decoder.ups.2", "decoder.joins.2")) for name in fresh)
    back = transfer(new.state_dict(), THREE, build(THREE))
    assert all(name.startswith(("encoder.stages.3", "decoder.ups.2", "decoder.joins.2")) for name in back.unused)
    assert back.unused


@pytest.mark.parametrize(("before", "after"), [(4, 4), (4, 7), (5, 3)])
def test_position_tables_are_resized_to_another_window(before, after):
    old, new = torch.nn.Module(), torch.nn.Module()
    old.encoder, new.encoder = small_swin(before), small_swin(after, seed=1)
    name = "encoder.transformer.layers1.0.blocks.0.attn.relative_position_bias_table"
    n, m = 2 * before - 1, 2 * after - 1
    ramp = torch.linspace(-1, 1, n)  # offsets as a share of the largest: linear in x, so resizing is exact
    weights = old.state_dict()
    weights[name] = ramp[:, None, None, None].expand(n, n, n, 3).reshape(-1, 3)
    report = transfer(weights, ("T1w",), new)
    assert report.count("interpolated") == (0 if before == after else 4)
    expected = torch.linspace(-1, 1, m)[:, None, None, None].expand(m, m, m, 3).reshape(-1, 3)
    torch.testing.assert_close(new.state_dict()[name], expected, atol=1e-6, rtol=0)
    new.encoder(torch.randn(1, 1, 32, 32, 32), torch.ones(1, 1, dtype=torch.bool))


def test_norm_reset_keeps_directions_and_takes_the_fresh_sizes():
    old, new = build(THREE), build(THREE, seed=1)
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.mul_(3.0)
    norms = {k: v.norm().clone() for k, v in new.state_dict().items() if v.ndim == 5}
    transfer(old.state_dict(), THREE, new, norm_reset=True)
    for key, value in new.state_dict().items():
        if value.ndim == 5:
            torch.testing.assert_close(value.norm(), norms[key])
            cosine = torch.nn.functional.cosine_similarity(value.flatten(), old.state_dict()[key].flatten(), dim=0)
            assert cosine > 0.9999
    norm = new.encoder.stages[0][0].body[1]
    assert torch.equal(norm.weight, torch.ones(8))
    assert torch.equal(norm.bias, torch.zeros(8))


def test_the_shuffled_control_keeps_the_values_and_nothing_else():
    old, new, again = build(THREE), build(THREE, seed=1), build(THREE, seed=2)
    for target in (new, again):
        transfer(old.state_dict(), THREE, target, shuffled=True)
    for key, value in old.state_dict().items():
        found = new.state_dict()[key]
        assert torch.equal(found.flatten().sort().values, value.flatten().sort().values)
        assert torch.equal(found, again.state_dict()[key]), "the order is always the same"
    deep = "encoder.stages.2.0.body.0.weight"
    both = torch.stack([one.state_dict()[deep].flatten() for one in (old, new)])
    assert both.corrcoef()[0, 1].abs() < 0.05


@pytest.mark.parametrize("kind", ["wider", "other", "none"])
def test_another_architecture_is_refused_in_one_line_and_nothing_changes(kind):
    old, target = torch.nn.Module(), build(("T1w",))
    if kind == "wider":
        old, match = build(("T1w",), preset="S"), r"encoder.stem.weight is \(16, 2, 3, 3, 3\) in the weights, \(8, 2, "
    elif kind == "other":
        old.encoder, match = small_swin(4), "no tensor of this ResEnc .theirs: full.layer.* ours: stem.weight"
    else:
        match = "the weights have no encoder"
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(CheckpointError, match=match) as caught:
        transfer(old.state_dict(), ("T1w",), target)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[k], v) for k, v in target.state_dict().items())


def test_a_wider_swin_is_refused_although_its_position_tables_fit():
    old, new = torch.nn.Module(), torch.nn.Module()
    old.encoder, new.encoder = small_swin(4), small_swin(4, feature_size=24)
    with pytest.raises(CheckpointError, match="in this Swin"):
        transfer(old.state_dict(), ("T1w",), new)


def test_wrong_modality_list_is_refused():
    with pytest.raises(CheckpointError, match="6 input channels, but 2 × 2 were expected for T1w, T2w"):
        transfer(build(THREE).state_dict(), ("T1w", "T2w"), build(THREE))


def test_a_head_comes_along_where_it_is_asked_for_and_has_as_many_classes():
    def with_head(classes, seed):
        body = build(THREE, seed)
        return SegmentationNetwork(body.encoder, body.decoder, SegmentationHead(8, classes))

    old, everything = with_head(2, 0), ("encoder", "decoder", "head")
    new = with_head(2, 1)
    transfer(old.state_dict(), THREE, new)
    assert not torch.equal(new.head.weight, old.head.weight)
    assert transfer(old.state_dict(), THREE, new, parts=everything).count("fresh") == 0
    assert all(torch.equal(value, new.state_dict()[name]) for name, value in old.state_dict().items())
    other = with_head(4, 1)
    fresh = [
        row.tensor for row in transfer(old.state_dict(), THREE, other, parts=everything).rows if row.status == "fresh"
    ]
    assert fresh == ["head.weight", "head.bias"]
