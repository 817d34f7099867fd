import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import ndimage

from oligovox.errors import SettingsError
from oligovox.settings import parse
from oligovox.simulate.physics.sequences import FLAIR, GRE, MPRAGE, protocol, signal
from oligovox.simulate.physics.tissues import typical
from oligovox.simulate.scanner.coils import bias_field, texture, transmit_field
from oligovox.simulate.scanner.scan import MODALITIES, Acquisition, Scan, acquire, at_site, draw_scan, draw_site

SHAPE, SPACING = (40, 48, 44), 3.0
HEAD = np.linalg.norm((np.indices(SHAPE).T - np.array([19.5, 23.5, 21.5])) / [16, 20, 18], axis=-1).T < 1
rng = np.random.default_rng(0)
IDEAL = (HEAD * (0.3 + 0.05 * ndimage.gaussian_filter(rng.standard_normal(SHAPE), 2))).astype(np.float32)
IDEAL[20:23, 20:26, 20:23] *= -1  # an inversion left this negative
PERFECT = Scan(protocol("T1w", 3.0))


def image(scan, seed=0, ideal=lambda b1: IDEAL, **more):
    return acquire(np.random.default_rng(seed), scan, ideal, HEAD, SPACING, 0.3, **more)


def test_a_perfect_scanner_gives_the_magnitude_times_the_gain():
    np.testing.assert_allclose(
        image(dataclasses.replace(PERFECT, gain=600.0)), np.abs(IDEAL) / np.float32(0.3) * 600, rtol=1e-5
    )


def test_the_same_chance_gives_the_same_image_and_leaves_the_ideal_alone():
    before = IDEAL.copy()
    scan = one_scan(7)
    first = image(scan)
    assert np.array_equal(first, image(scan))
    assert not np.array_equal(first, image(scan, seed=1))
    assert np.array_equal(IDEAL, before)
    assert first.dtype == np.float32
    assert first.min() >= 0


def one_scan(seed, modality="T2w", field=3.0, **settings):
    rng, settings = np.random.default_rng(seed), Acquisition(**settings)
    site = draw_site(rng, settings, field)
    return draw_scan(rng, site, settings, modality, protocol(modality, field), field)


def test_air_is_empty_after_stripping_and_noisy_in_a_whole_head():
    scan = dataclasses.replace(PERFECT, noise=0.05, plane_mm=4.0, ringing=0.5)
    assert not image(scan)[~HEAD].any()
    air = image(scan, stripped=False, ideal=lambda b1: 0 * IDEAL)
    assert air.std() / air.mean() == pytest.approx(math.sqrt(4 / math.pi - 1), rel=0.03)


@pytest.mark.parametrize("field", [3.0, 7.0])
def test_signal_follows_the_transmit_field_exactly_where_it_is_linear_in_it(field):
    scan = dataclasses.replace(PERFECT, transmit=(0.5, 1.25) if field == 7.0 else (0.85, 1.1))
    asked = []

    def ideal(b1):
        asked.append(b1)
        return np.float32(2 * b1 - 0.4) * IDEAL

    b1 = transmit_field(np.random.default_rng(0), SHAPE, SPACING, scan.transmit, HEAD)
    np.testing.assert_allclose(
        image(scan, ideal=ideal), np.abs((2 * b1 - 0.4) * IDEAL) / 0.3 * HEAD, rtol=1e-3, atol=1e-5
    )
    assert len(asked) == (4 if field == 7.0 else 2)
    assert b1[20, 24, 22] > b1[HEAD].mean() > np.percentile(b1[HEAD], 5)


def test_mprage_between_the_knots_is_close_to_the_equation():
    white = typical("white_matter", 7.0)
    sequence = protocol("T1w", 7.0)
    scan = Scan(sequence, transmit=(0.5, 1.25))
    b1 = transmit_field(np.random.default_rng(0), SHAPE, SPACING, scan.transmit, HEAD)
    exact = signal(white, sequence, 7.0, b1.astype(np.float64))
    made = acquire(
        np.random.default_rng(0), scan, lambda b: HEAD * np.float32(signal(white, sequence, 7.0, b)), HEAD, SPACING, 1.0
    )
    np.testing.assert_allclose(made[HEAD], np.abs(exact[HEAD]), atol=0.005 * np.abs(exact[HEAD]).max())


def test_noise_is_that_of_a_1_mm_scan_averaged():
    flat = np.ones((64, 64, 64), np.float32)
    inside = flat > 0
    found = {}
    for spacing in (1.0, 2.0):
        scan = Scan(
            protocol("T2w", 3.0),
            noise=0.05,
            plane_mm=1.0,
            slice_mm=1.1,
            shift_mm=(0.3, 0.2, 0.4),
            turn_deg=(0.3, 0.5, 0.2),
        )
        found[spacing] = acquire(np.random.default_rng(0), scan, lambda b: flat, inside, spacing, 1.0)
    middle = (slice(6, -6),) * 3
    assert found[1.0][middle].std() == pytest.approx(0.05, rel=0.05)
    pairs = found[1.0].reshape(32, 2, 32, 2, 32, 2).mean((1, 3, 5))
    assert found[2.0][middle].std() == pytest.approx(pairs[3:-3, 3:-3, 3:-3].std(), rel=0.15)


def test_thick_slices_keep_the_mean_and_blur_across_only():
    scan = dataclasses.replace(PERFECT, slice_mm=9.0, gap_mm=1.0)
    ball = np.abs(IDEAL) / 0.3
    assert image(scan, stripped=False).mean() == pytest.approx(ball.mean(), rel=0.02)
    for axis in range(3):
        lines = np.zeros(SHAPE, np.float32)
        np.moveaxis(lines, axis, 0)[::4] = 0.3
        left = image(scan, ideal=lambda b1, lines=lines: lines, stripped=False).std() / (lines / 0.3).std()
        assert left < 0.3 if axis == 2 else left == pytest.approx(1, abs=0.01)


def test_the_bias_field_has_the_strength_asked_for():
    for centre in (0.0, 0.7):
        field = bias_field(np.random.default_rng(3), SHAPE, 4.0, 0.15, HEAD, centre)
        low, middle, high = np.percentile(field[HEAD], (5, 50, 95))
        assert middle == pytest.approx(1, abs=0.01)
        assert math.log(high / low) == pytest.approx(0.30, rel=0.05)
        assert np.abs(np.diff(field, axis=0)[HEAD[1:]]).max() < 0.05
    core = bias_field(np.random.default_rng(4), SHAPE, 4.0, 0.3, HEAD, 1.0)
    assert core[20, 24, 22] > 1.1 * core[HEAD].mean()


def test_texture_has_mean_one_and_the_spread_asked_for():
    made = texture(np.random.default_rng(0), (80, 80, 80), 4.0, 0.05)
    assert made.mean() == pytest.approx(1, abs=0.005)
    assert made.std() == pytest.approx(0.05, rel=0.06)


def test_sites_differ_and_scans_of_one_site_share_its_protocol():
    settings = Acquisition(thick=0.5)
    sites = [draw_site(np.random.default_rng(s), settings, 3.0) for s in range(40)]
    tr = [
        draw_scan(np.random.default_rng(0), s, settings, "T1w", MPRAGE(), 3.0).sequence.tr / MPRAGE().tr for s in sites
    ]
    assert 0.03 < np.std(tr) < 0.09
    assert max(abs(v - 1) for v in tr) <= 0.1501
    scans = [draw_scan(np.random.default_rng(s), sites[0], settings, "T1w", MPRAGE(), 3.0) for s in range(5)]
    assert len({s.sequence for s in scans}) == 1
    assert len({s.noise for s in scans}) == 5
    thick = [draw_scan(np.random.default_rng(0), s, settings, "T2w", protocol("T2w", 3.0), 3.0).slice_mm for s in sites]
    assert 8 < sum(v >= 3 for v in thick) < 32
    gd = draw_scan(np.random.default_rng(0), sites[0], settings, "T1wGd", protocol("T1wGd", 3.0), 3.0).sequence
    assert gd.dose == 1
    assert gd.model_copy(update={"dose": 0.0}) == scans[0].sequence


def test_echo_times_of_gradient_echoes_stay():
    for modality in ("T1in", "T1out", "T2starw"):
        usual = protocol(modality, 1.5)
        assert isinstance(usual, GRE)
        assert one_scan(3, modality, 1.5).sequence.te == usual.te


@pytest.mark.parametrize("field", [1.5, 3.0, 7.0])
def test_every_protocol_stays_possible_at_every_site(field):
    for seed in range(300):
        site = draw_site(np.random.default_rng(seed), Acquisition(timing=0.15), field)
        for modality in MODALITIES:
            if modality == "FLAIR" and seed >= 50:
                continue  # its TI is searched for, which takes time
            s = at_site(protocol(modality, field), site, modality, field)
            assert type(s).model_validate(s.model_dump()) == s
            if isinstance(s, MPRAGE):
                before = s.ti - s.excitations / 2 * s.echo_spacing
                assert before >= 0
                assert s.tr - before - s.excitations * s.echo_spacing >= 0


def site_with(csf=0.3, **factors):
    site = draw_site(np.random.default_rng(0), Acquisition(), 3.0)
    timing = {"tr": 1.0, "te": 1.0, "ti": 1.0, "flip": 1.0} | factors
    return dataclasses.replace(site, csf=csf, timing=dict.fromkeys(MODALITIES, timing))


def test_times_are_changed_only_where_they_do_not_fit():
    usual = MPRAGE(tr=1500, ti=700, echo_spacing=7, excitations=100)  # half a train is 350 ms
    for factor, ti in ((0.51, 357.0), (0.49, 350.0), (1.64, 1148.0), (1.65, 1150.0)):
        assert at_site(usual, site_with(ti=factor), "T1w", 3.0) == usual.model_copy(update={"ti": ti})
    short = at_site(FLAIR(tr=300, ti=100), site_with(csf=1.0), "FLAIR", 3.0)  # CSF never is as bright as that
    assert 0 < short.ti < short.tr
    for name, factor in (("tr", 0.6), ("flip", 1.3)):
        made = at_site(GRE(tr=40, te=(8, 30), flip=80, bandwidth=250), site_with(**{name: factor}), "QSM", 3.0)
        assert (made.tr, made.flip) == ((32.0, 80.0) if name == "tr" else (40.0, 90.0))


@pytest.mark.parametrize("field", [1.5, 3.0, 7.0])
def test_flair_csf_is_as_dark_as_the_site_has_it(field):
    for seed in range(5):
        s = one_scan(seed, "FLAIR", field, csf=(0.25, 0.25)).sequence
        csf, white = (float(signal(typical(name, field), s, field)) for name in ("csf", "white_matter"))
        assert csf / white == pytest.approx(0.25, abs=0.01)
        assert 0 < s.ti < s.tr


def test_fields_are_stronger_at_7_t():
    low, high = one_scan(1, "T1w", 3.0), one_scan(1, "T1w", 7.0)
    assert np.ptp(one_scan(1, "T1w", 1.5).transmit) == 0 < np.ptp(low.transmit) < np.ptp(high.transmit)
    assert low.bias < high.bias
    assert low.centre == 0 < high.centre


def test_facts_are_json_with_units_in_the_names():
    for modality in MODALITIES:
        facts = json.loads(json.dumps(one_scan(2, modality).facts()))
        assert facts["slice_mm"] > 0
        assert facts["sequence"]["tr"] > 0
        assert {"plane_mm", "shift_mm", "turn_deg", "noise_at_1mm_of_white_matter"} <= facts.keys()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gain": [0, 0]}, r"gain = \(0.0, 0.0\); expected 10 <= lowest <= highest <= 3000"),
        ({"gain": [200, 3001]}, r"gain = \(200.0, 3001.0\); expected 10 <= lowest <= highest <= 3000"),
        ({"transmit_3t": [0, 0]}, r"transmit_3t = \(0.0, 0.0\); expected 0.1 <= lowest <= highest <= 2"),
        ({"transmit_7t": [0.05, 1]}, r"transmit_7t = \(0.05, 1.0\); expected 0.1 <= lowest <= highest <= 2"),
        ({"scanners": -1}, r"scanners = -1: "),
    ],
)
def test_what_no_scanner_does_is_refused_in_one_line(given, message):
    with pytest.raises(SettingsError, match=message) as error:
        parse(Acquisition, given, "recipe")
    assert "\n" not in str(error.value)
    assert parse(Acquisition, {"gain": [10, 3000], "transmit_3t": [0.1, 2]}, "recipe").scanners == 0


def test_ranges_must_ascend():
    with pytest.raises(SettingsError, match=r"recipe: .*noise_t1w = \(0.05, 0.02\); expected 0 <= lowest <= highest"):
        parse(Acquisition, {"noise_t1w": (0.05, 0.02)}, "recipe")
    with pytest.raises(SettingsError, match="unknown key 'ghost_strength'; did you mean"):
        parse(Acquisition, {"ghost_strength": (0.0, 0.1)}, "recipe")


def test_voxels_need_not_be_cubes():
    flat, sizes = np.ones((50, 50, 30), np.float32), (1.5, 1.5, 5.0)
    scan = dataclasses.replace(one_scan(5, "T2spir", 1.5), bias=0.0, texture=0.0, gain=1.0, slice_mm=3.0, gap_mm=0.0)
    made = acquire(np.random.default_rng(0), scan, lambda b1: flat, flat > 0, sizes, 1.0)
    assert made.shape == flat.shape
    assert np.median(made) == pytest.approx(1, abs=0.01)
    assert 0.2 * scan.noise < made[8:-8, 8:-8, 6:-6].std() < scan.noise
