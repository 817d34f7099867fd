import math

import numpy as np
import pytest
from pydantic import ValidationError

from oligovox.errors import SettingsError
from oligovox.simulate.physics.scene import Part, mix
from oligovox.simulate.physics.sequences import (
    FLAIR,
    GRE,
    MPRAGE,
    TSE,
    flair,
    gre_signal,
    mprage,
    null_time,
    protocol,
    signal,
    tse,
)
from oligovox.simulate.physics.tissues import FIELDS, Tissue, between, draw_palette, typical

MODALITIES = ("T1w", "T1wGd", "T2w", "PDw", "FLAIR", "T2starw", "QSM", "T1in", "T1out", "T2spir")
WATER = Tissue(pd=0.8, t1=1000.0, t2=100.0, t2s=50.0)


def values(modality, field, *names):
    """Magnitude of each tissue relative to white matter."""
    s = protocol(modality, field)
    white = abs(complex(signal(typical("white_matter", field), s, field)))
    return [abs(complex(signal(typical(name, field), s, field))) / white for name in names]


def test_tse_worked_value():
    expected = 0.8 * (1 - math.exp(-2)) * math.exp(-1)
    assert tse(WATER, TSE(tr=2000, te=100)) == pytest.approx(expected)
    assert tse(WATER, TSE(tr=2000, te=100), b1=2 / 3) == pytest.approx(expected * 0.75)  # 60 and 120 degrees


def test_fat_suppression_takes_fat_only():
    half = Tissue(pd=0.8, t1=1000.0, t2=100.0, t2s=50.0, fat=0.5)
    s = TSE(tr=2000, te=100, fat_suppression=0.8)
    assert tse(half, s) == pytest.approx(0.6 * tse(WATER, s))
    assert tse(WATER, s) == tse(WATER, TSE(tr=2000, te=100))


@pytest.mark.parametrize(("adiabatic", "b1"), [(True, 1.0), (False, 1.0), (False, 0.8)])
def test_flair_equals_a_step_by_step_simulation(adiabatic, b1):
    s = FLAIR(tr=5000, ti=1700, te=100, inversion=0.9, adiabatic=adiabatic)
    efficiency = 0.9 * (1 if adiabatic else -math.cos(math.pi * b1))
    m = 1.0
    for _ in range(20):  # cycles until the steady state
        m *= -efficiency
        m = 1 + (m - 1) * math.exp(-s.ti / 1000)
        read = m * math.sin(math.pi / 2 * b1) * math.sin(math.pi * b1 / 2) * math.exp(-1)
        m = 1 - math.exp(-(s.tr - s.ti) / 1000)  # the echo train leaves nothing
    assert flair(WATER, s, b1) == pytest.approx(0.8 * read)


@pytest.mark.parametrize(
    ("t1", "tr", "efficiency"), [(4000.0, 9000.0, 1.0), (4000.0, 5000.0, 0.9), (250.0, 3000.0, 1.0)]
)
def test_flair_is_nothing_at_the_null_time(t1, tr, efficiency):
    s = FLAIR(tr=tr, ti=null_time(t1, tr, efficiency), te=100, inversion=efficiency)
    assert flair(Tissue(pd=1.0, t1=t1, t2=1500.0, t2s=800.0), s) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("t1", "adiabatic", "b1"), [(832.0, True, 1.0), (1331.0, True, 0.7), (4000.0, False, 1.2)])
def test_mprage_equals_a_pulse_by_pulse_simulation(t1, adiabatic, b1):
    s = MPRAGE(tr=2300, ti=900, te=3, flip=9, echo_spacing=7, excitations=100, inversion=0.95, adiabatic=adiabatic)
    efficiency = 0.95 * (1 if adiabatic else -math.cos(math.pi * b1))
    before, alpha = s.ti - 350, math.radians(9 * b1)
    after = s.tr - before - 700
    m = 1.0
    for _ in range(30):  # cycles until the steady state
        m = 1 - (1 + efficiency * m) * math.exp(-before / t1)
        for pulse in range(100):
            if pulse == 50:
                read = m * math.sin(alpha)
            m = 1 - (1 - m * math.cos(alpha)) * math.exp(-s.echo_spacing / t1)
        m = 1 - (1 - m) * math.exp(-after / t1)
    tissue = Tissue(pd=0.7, t1=t1, t2=90.0, t2s=60.0)
    assert mprage(tissue, s, b1) == pytest.approx(0.7 * read * math.exp(-0.05), rel=1e-9)


def test_gre_equals_a_pulse_by_pulse_simulation():
    gre, m = GRE(tr=40, te=(5, 25), flip=20), 1.0
    for _ in range(400):
        m = 1 - (1 - m * math.cos(math.radians(20))) * math.exp(-40 / 1000)
    expected = [0.8 * m * math.sin(math.radians(20)) * math.exp(-te / 50) for te in gre.te]
    np.testing.assert_allclose(gre_signal(WATER, gre, 3.0), expected, rtol=1e-9)
    np.testing.assert_allclose(signal(WATER, gre, 3.0), expected[0], rtol=1e-9)


def test_gre_is_largest_at_the_ernst_angle():
    ernst = math.degrees(math.acos(math.exp(-40 / 1000)))
    signals = [abs(gre_signal(WATER, GRE(tr=40, te=(5,), flip=ernst), 3.0, b1)[0]) for b1 in (0.95, 1.0, 1.05)]
    assert signals[1] > max(signals[0], signals[2])


def test_gre_echoes_come_last_and_tissues_may_be_arrays():
    tissue = Tissue(
        pd=np.full(3, 0.7), t1=np.array([832.0, 1331, 4000]), t2=np.full(3, 90.0), t2s=np.array([20.0, 50, 80])
    )
    assert gre_signal(tissue, GRE(te=(5, 10)), 3.0).shape == (3, 2)
    for modality in MODALITIES:
        s = protocol(modality, 3.0)
        each = [signal(Tissue(0.7, tissue.t1[i], 90.0, tissue.t2s[i]), s, 3.0) for i in range(3)]
        np.testing.assert_allclose(signal(tissue, s, 3.0), each)
        assert np.iscomplexobj(signal(tissue, s, 3.0)) == isinstance(s, GRE)


@pytest.mark.parametrize("field", FIELDS)
def test_fat_and_water_add_in_phase_and_cancel_out_of_phase(field):
    fatty = Tissue(pd=0.8, t1=800.0, t2=50.0, t2s=1e9, fat=0.3)
    within, opposed = (signal(fatty, protocol(m, field), field) for m in ("T1in", "T1out"))
    assert abs(opposed) / abs(within) == pytest.approx(0.4, abs=0.01)
    assert within.real > 0
    assert abs(within.imag) < 0.02 * abs(within)
    # a voxel that fat and water share: their signals cancel before the magnitude is taken
    palette = {"fat": Tissue(0.8, 800.0, 50.0, 1e9, fat=1.0), "liver": Tissue(0.8, 800.0, 50.0, 1e9)}
    half = np.full((1, 1, 1), 0.5, dtype=np.float32)
    s = protocol("T1out", field)
    mixed = mix((Part("fat", half), Part("liver", half)), palette, lambda t: signal(t, s, field))
    assert abs(mixed[0, 0, 0]) < 0.01 * abs(signal(palette["liver"], s, field))


@pytest.mark.parametrize("field", FIELDS)
def test_every_lesion_is_bright_on_t2w_and_flair_and_dark_on_t1w(field):
    line = np.linspace(0, 1, 9)
    for seed in range(40):
        p = draw_palette(np.random.default_rng(seed), field)
        lesions = between(p["lesion_mild"], p["lesion_severe"], line)
        found = {m: signal(lesions, protocol(m, field), field) for m in ("T1w", "T2w", "FLAIR")}
        grey, white = (
            {m: float(signal(p[name], protocol(m, field), field)) for m in found}
            for name in ("grey_matter", "white_matter")
        )
        assert found["FLAIR"].min() > 1.1 * white["FLAIR"]
        assert found["FLAIR"][:5].min() > grey["FLAIR"]  # a black hole may be as grey as cortex
        assert found["T2w"].min() > 0.95 * grey["T2w"]
        assert found["T1w"].max() < 0.95 * white["T1w"]
        assert np.all(np.diff(found["T1w"]) < 0)
        assert np.all(np.diff(found["T2w"]) > 0)


@pytest.mark.parametrize("field", FIELDS)
def test_contrast_of_the_healthy_brain(field):
    grey, csf = values("T1w", field, "grey_matter", "csf")
    assert 0.5 < grey < 0.75
    assert csf < 0.3
    grey, csf, pallidum = values("T2w", field, "grey_matter", "csf", "pallidum")
    assert csf > 2 > grey > 1.3 > 1 > pallidum
    assert values("PDw", field, "grey_matter")[0] > 1.05
    assert values("FLAIR", field, "csf")[0] < 0.5
    strong, plain = values("T2starw", field, "rim_strong", "lesion_mild")
    assert strong < 0.8 < 1 < plain


def test_3_t_contrast_is_that_of_patients():
    """Medians of three patients: T1w, T2w and FLAIR relative to white matter (closed form, without partial volume, which darkens GM on T1w)."""
    typical_lesion = between(typical("lesion_mild", 3.0), typical("lesion_severe", 3.0), np.array(0.2))
    for modality, lesion, over_grey, csf in (
        ("T1w", (0.69, 0.82), (1.10, 1.36), (0.13, 0.22)),
        ("T2w", (1.58, 1.95), (1.15, 1.31), (2.5, 3.0)),
        ("FLAIR", (1.34, 1.65), (1.20, 1.49), (0.32, 0.71)),
    ):
        s = protocol(modality, 3.0)
        white, grey, fluid = (float(signal(typical(n, 3.0), s, 3.0)) for n in ("white_matter", "grey_matter", "csf"))
        found = float(signal(typical_lesion, s, 3.0))
        assert lesion[0] < found / white < lesion[1], modality
        assert over_grey[0] < found / grey < over_grey[1], modality
        assert csf[0] < fluid / white < csf[1], modality


@pytest.mark.parametrize("field", FIELDS)
def test_contrast_agent_makes_leaking_tissue_the_brightest(field):
    for name in ("lesion_enhancing", "enhancing_tumour"):
        before, after = values("T1w", field, name)[0], values("T1wGd", field, name)[0]
        assert before < 0.95 < 1.1 < after
    assert values("T1wGd", field, "lesion_severe")[0] < 0.9
    assert values("T1wGd", field, "necrosis")[0] < 0.7


def test_abdomen_at_1_5_t():
    liver, spleen, fat = values("T1in", 1.5, "liver", "spleen", "fat")
    assert fat > liver > spleen
    liver, spleen, kidney, fat, muscle = values("T2spir", 1.5, "liver", "spleen", "kidney_cortex", "fat", "muscle")
    assert min(spleen, kidney) > 1.4 * liver > liver > max(fat, muscle)


def test_unknown_modality_and_field():
    with pytest.raises(SettingsError, match="modality 'FLAR' has no protocol; did you mean 'FLAIR'"):
        protocol("FLAR", 3.0)
    with pytest.raises(SettingsError, match=r"field strength 2 T"):
        protocol("FLAIR", 2)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (MPRAGE, {"ti": 300}, "half a train takes 616 ms, .*TI 300 ms"),
        (FLAIR, {"tr": 2000}, "TI 2600 ms is not shorter than TR 2000 ms"),
        (GRE, {"te": (10, 5)}, "do not ascend"),
        (GRE, {"te": (40,), "tr": 35}, "do not ascend from 0 to TR 35 ms"),
    ],
)
def test_impossible_timing(kind, given, message):
    with pytest.raises(ValidationError, match=message):
        kind(**given)
