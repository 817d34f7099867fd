import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from oligovox.errors import SettingsError
from oligovox.settings import parse
from oligovox.simulate.anatomy.brain import draw_anatomy
from oligovox.simulate.anatomy.template import template
from oligovox.simulate.physics.dipole import division_factor
from oligovox.simulate.physics.scene import Part
from oligovox.simulate.physics.sequences import GRE, protocol
from oligovox.simulate.physics.tissues import draw_palette, typical
from oligovox.simulate.scanner.qsm import GAMMA, QSMSettings, _direction, acquire_gre

CLEAN = {"snr": (1e6, 1e6), "air": (0.0, 0.0), "blur": 0.0, "coil_phase": 0.0}
TKD = {"inversion": "tkd"}


def shells(side, *radii):
    """Fractions of a voxel between radii, from outside inwards, soft over one voxel; and the distance to the middle."""
    r = np.linalg.norm(np.stack(np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 3, indexing="ij")), axis=0)
    discs = [np.clip(radius - r + 0.5, 0, 1).astype(np.float32) for radius in (*radii, -1)]
    return [outer - inner for outer, inner in itertools.pairwise(discs)], r


def scan(names, fractions, brain, chi, field=3.0, spacing=2.0, gre=None, seed=0, **settings):
    """A scan of parts whose susceptibility is set to `chi`."""
    parts = tuple(Part(name, fraction) for name, fraction in zip(names, fractions, strict=True))
    palette = {name: replace(typical(name, field), chi=value) for name, value in zip(names, chi, strict=True)}
    palette["air"] = typical("air", field)
    affine = np.diag([spacing] * 3 + [1.0])
    return acquire_gre(
        np.random.default_rng(seed), parts, palette, gre or protocol("QSM", field), field, brain, affine, spacing,
        QSMSettings(**settings),
    )  # fmt: skip


def ppb(phase, te, field):
    """The field that turns the phase from one echo to the next; echoes are close, so that there is no wrap in time."""
    return np.angle(np.exp(1j * np.diff(phase, axis=-1)[..., 0])) / (2 * np.pi * (te[1] - te[0]) * GAMMA * field) * 1e6


@pytest.fixture(scope="module")
def nucleus():
    """A ball of white matter of 44 mm with a nucleus of 8 mm in its middle, at 2 mm."""
    fractions, r = shells(48, 22.0, 4.0)
    return ("white_matter", "putamen"), fractions, r < 22


@pytest.mark.parametrize("field", [3.0, 7.0])
def test_a_sphere_is_recovered_within_what_the_division_loses(nucleus, field):
    names, fractions, brain = nucleus
    middle = fractions[1] == 1

    def contrast(**settings):
        found = scan(names, fractions, brain, (0.0, 100.0), field, **CLEAN, **settings)
        return found.chi[middle].mean() - found.chi[found.mask & (fractions[1] == 0)].mean()

    assert contrast(**TKD, corrected=False) == pytest.approx(100 * division_factor(0.19), abs=8)
    assert contrast(**TKD) == pytest.approx(100, abs=9)
    assert contrast() == pytest.approx(100, abs=25)  # the penalty on the gradient costs contrast


def test_the_iterative_inversion_comes_closer_than_the_division_where_there_is_noise(nucleus):
    names, fractions, brain = nucleus

    def error(**settings):
        found = scan(names, fractions, brain, (0.0, 100.0), snr=(40.0, 40.0), **settings)
        return np.std((found.chi - found.true_chi)[found.mask])

    assert error() < 0.8 * error(**TKD)


@pytest.mark.parametrize("inversion", ["iterative", "tkd"])
def test_the_profile_of_a_rim_is_recovered(inversion):
    fractions, r = shells(56, 25.0, 7.0, 5.5)
    names = ("white_matter", "rim_strong", "lesion_mild")
    found = scan(
        names, fractions, r < 25, (-30.0, 90.0, -10.0), spacing=1.0, inversion=inversion, blur=0.8, snr=(100, 100)
    )
    profile = [found.chi[(r >= low) & (r < low + 1)].mean() for low in range(12)]
    assert np.argmax(profile) in (5, 6)
    peak, core, around = max(profile), np.mean(profile[:4]), np.mean(profile[9:12])
    assert peak - around > 0.4 * 120  # partial volume and the inversion take the rest
    assert core - around < 0.5 * (peak - around)


def test_noise_free_maps_follow_the_truth():
    fractions, r = shells(48, 22.0, 12.0, 7.0, 3.0)
    names, chi = ("grey_matter", "white_matter", "pallidum", "csf"), (15.0, -30.0, 120.0, 0.0)
    found = scan(names, fractions, r < 22, chi, **CLEAN)
    assert np.corrcoef(found.chi[found.mask], found.true_chi[found.mask])[0, 1] > 0.9


@pytest.mark.parametrize("field", [3.0, 7.0])
def test_a_brain_below_air_keeps_its_nuclei(field):
    person = draw_anatomy(np.random.default_rng(1), template(3.0))
    parts, palette = person.parts(), draw_palette(np.random.default_rng(2), field)
    gre = protocol("QSM", field)
    found = acquire_gre(
        np.random.default_rng(3), parts, palette, gre, field, person.brain, person.affine, 3.0, QSMSettings()
    )
    phase = found.phase[..., -1]
    assert np.mean(np.abs(np.diff(phase, axis=1)) > 3) > 1e-3  # wraps: the field of the sinuses is there
    deep = found.mask & (ndimage.distance_transform_edt(person.brain, sampling=3.0) > 9)
    assert np.corrcoef(found.chi[deep], found.true_chi[deep])[0, 1] > 0.7
    iron, white = person.nuclei["pallidum"] > 0.9, deep & (person.wm > 0.95)
    true, seen = (float(np.median(m[iron]) - np.median(m[white])) for m in (found.true_chi, found.chi))
    assert 0.5 * true < seen < 1.2 * true


def test_the_phase_has_the_noise_of_the_signal_to_noise_ratio(nucleus):
    names, fractions, brain = nucleus
    settings = CLEAN | {"snr": (50.0, 50.0)}
    found = scan(names, fractions, brain, (0.0, 0.0), **settings)
    first = found.phase[..., 0][brain & (fractions[0] == 1)]
    assert np.std(first) == pytest.approx(1 / 50, rel=0.03)
    assert found.magnitude.shape == found.phase.shape == (48, 48, 48, 5)
    assert np.median(found.magnitude[..., 0][brain]) == pytest.approx(1000, rel=0.01)
    assert np.abs(found.phase).max() <= np.float32(np.pi)
    for image in (found.magnitude[..., 0], found.chi, found.true_chi):
        assert not image[~brain].any()
    assert abs(found.chi[found.mask].mean()) < 1e-3


def test_the_same_stream_gives_the_same_scan_and_another_another(nucleus):
    first, same, other = (scan(*nucleus, (0.0, 100.0), seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.phase, same.phase)
    assert np.array_equal(first.chi, same.chi)
    assert not np.array_equal(first.chi, other.chi)


def test_one_echo_is_enough(nucleus):
    found = scan(*nucleus, (0.0, 100.0), gre=GRE(te=(20.0,)), **CLEAN)
    assert np.corrcoef(found.chi[found.mask], found.true_chi[found.mask])[0, 1] > 0.85


def test_what_cannot_be_is_refused_in_one_line(nucleus):
    for settings, gre, words in (
        ({}, GRE(te=(5.0, 11.0, 18.0)), "not evenly spaced"),
        ({"radii": (80.0,)}, None, "no sphere of radii"),
    ):
        with pytest.raises(SettingsError, match=words):
            scan(*nucleus, (0.0, 100.0), gre=gre, **settings)
    with pytest.raises(SettingsError, match=r"snr = \(90.0, 60.0\); expected 1 <= lowest <= highest"):
        parse(QSMSettings, {"snr": (90.0, 60.0)}, "qsm")


def head_in_air(front, above):
    """The shim's rest, ppb, in a brain of 60 mm inside a head of 88 mm that ends at the chin; more air in front and above, or less."""
    x, y, z = np.ogrid[:28, : 28 + front, : 26 + above]
    r = 4 * np.sqrt((x - 13.5) ** 2 + (y - 13.5) ** 2 + (z - 12.5) ** 2)
    head = np.clip((44 - r) / 4 + 0.5, 0, 1).astype(np.float32)
    sinus = (4 * np.sqrt((x - 13.5) ** 2 + (y - 22.5) ** 2 + (z - 8.5) ** 2) < 9) * head
    te, brain = (1.0, 2.0), r < 30
    names, fractions = ("white_matter", "skin", "air"), (head * brain, (head - sinus) * ~brain, sinus)
    found = scan(names, fractions, brain, (0.0, 0.0, 9400.0), spacing=4.0, gre=GRE(te=te), radii=(6.0,), **CLEAN)
    return ppb(found.phase, te, 3.0)[brain]


def test_the_field_in_a_head_does_not_depend_on_how_much_air_is_seen_around_it():
    narrow, wide = head_in_air(0, 0), head_in_air(8, 6)
    assert np.std(narrow) > 30  # the sinus is there
    assert np.std(wide - narrow) < 0.05 * np.std(narrow)


def test_a_ball_of_water_in_air_has_no_field_inside_but_that_of_a_sphere():
    side = (28, 36, 30)
    x, y, z = np.ogrid[tuple(slice(n) for n in side)]
    r = 4 * np.sqrt((x - 13.5) ** 2 + (y - 14.5) ** 2 + (z - 14.5) ** 2)
    water = np.clip((44 - r) / 4 + 0.5, 0, 1).astype(np.float32)
    brain, te = r < 32, (1.0, 2.0)
    names, fractions = ("white_matter", "skin"), (water * brain, water * ~brain)
    found = scan(names, fractions, brain, (0.0, 0.0), spacing=4.0, gre=GRE(te=te), radii=(6.0,), **CLEAN)
    assert np.abs(ppb(found.phase, te, 3.0)[brain]).max() < 0.01 * 9400 / 3  # uniform, and the shim takes the constant


@pytest.mark.parametrize("angle", [0.0, 40.0])
def test_a_paramagnetic_cylinder_along_the_head_gains_phase_by_its_angle_to_b0(angle):
    x, y, z = np.ogrid[:40, :40, :64]
    r = np.sqrt((x - 19.5) ** 2 + (y - 19.5) ** 2) + 0 * z
    vein = np.clip(4 - r + 0.5, 0, 1).astype(np.float32)
    brain, te = (r < 18) & (z >= 2) & (z < 62), (4.0, 8.0)
    names, fractions = ("white_matter", "venous_blood"), (1 - vein, vein)
    found = scan(names, fractions, brain, (0.0, 300.0), gre=GRE(te=te), tilt=(angle, angle), **CLEAN)
    shift = ppb(found.phase, te, 3.0)[:, :, 28:36]
    gained = shift[(r < 2.5)[:, :, 28:36]].mean() - shift[((r > 6) & (r < 14))[:, :, 28:36]].mean()
    assert gained == pytest.approx(300 * (3 * np.cos(np.radians(angle)) ** 2 - 1) / 6, abs=0.03 * 300)


def test_the_dipole_of_a_sphere_turns_with_b0():
    turned = np.array([[0.0, 0.0, 2.0, 0.0], [2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    settings, te = QSMSettings(tilt=(50.0, 50.0), **CLEAN), (4.0, 8.0)
    fractions, r = shells(40, 19.0, 4.0)
    names, brain = ("white_matter", "pallidum"), r < 19
    parts = tuple(Part(name, fraction) for name, fraction in zip(names, fractions, strict=True))
    palette = {"air": typical("air", 3.0)}
    palette |= {name: replace(typical(name, 3.0), chi=chi) for name, chi in zip(names, (0.0, 500.0), strict=True)}
    for affine in (np.diag([2.0, 2.0, 2.0, 1.0]), turned):
        rng = np.random.default_rng(5)
        found = acquire_gre(rng, parts, palette, GRE(te=te), 3.0, brain, affine, 2.0, settings)
        b0 = _direction(np.random.default_rng(5), affine, settings)
        assert (affine[:3, :3] @ b0)[2] == pytest.approx(
            2 * np.cos(np.radians(50))
        )  # the scanner's axis is 50 degrees off
        middle = np.stack(np.meshgrid(*[np.arange(40) - 19.5] * 3, indexing="ij"))
        cosine = np.tensordot(b0, middle, 1) / r
        analytic = 500 / 3 * (4 / r) ** 3 * (3 * cosine**2 - 1)
        near = (r > 6) & (r < 12)
        shift = ppb(found.phase, te, 3.0)
        slope, _ = np.polyfit(analytic[near], shift[near], 1)
        assert slope == pytest.approx(1, abs=0.05)
        assert np.std((shift - analytic)[near]) < 0.1 * np.std(analytic[near])
