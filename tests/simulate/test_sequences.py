import math

import numpy as np
import pytest

from oligovox.simulate.sequences import FLAIR, MPRAGE, SEQUENCES, TSE, flair, mprage, signal, tse
from oligovox.simulate.tissues import TYPICAL, Tissue


def test_tse_worked_value():
    assert tse(0.8, 1000.0, 100.0, TSE(tr=2000, te=100)) == pytest.approx(0.8 * (1 - math.exp(-2)) * math.exp(-1))


def test_flair_worked_value_and_null():
    expected = 0.5 * (1 - 2 * math.exp(-2.5) + math.exp(-9)) * math.exp(-0.5)
    assert flair(0.5, 1000.0, 200.0, FLAIR(tr=9000, ti=2500, te=100)) == pytest.approx(expected)
    null = 4000 * math.log(2 / (1 + math.exp(-9000 / 4000)))
    assert flair(1.0, 4000.0, 1500.0, FLAIR(tr=9000, ti=null, te=100)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("t1", [832.0, 1331.0, 4000.0])
def test_mprage_equals_a_pulse_by_pulse_simulation(t1):
    s = MPRAGE(tr=2300, ti=900, flip=9, echo_spacing=7, excitations=100)
    before, alpha = s.ti - 350, math.radians(9)
    after = s.tr - before - 700
    m = 1.0
    for _ in range(30):  # cycles until the steady state
        m = 1 - (1 + m) * math.exp(-before / t1)
        for pulse in range(100):
            if pulse == 50:
                read = m * math.sin(alpha)
            m = 1 - (1 - m * math.cos(alpha)) * math.exp(-s.echo_spacing / t1)
        m = 1 - (1 - m) * math.exp(-after / t1)
    assert mprage(0.7, t1, s) == pytest.approx(0.7 * read, rel=1e-9)


def test_signals_take_arrays():
    tissue = Tissue(pd=np.full(3, 0.7), t1=np.array([832.0, 1331, 4000]), t2=np.array([76.0, 99, 1500]))
    for sequence in SEQUENCES.values():
        each = [float(signal(Tissue(0.7, tissue.t1[i], tissue.t2[i]), sequence)) for i in range(3)]
        np.testing.assert_allclose(signal(tissue, sequence), each)


def test_typical_contrast_is_that_of_a_3_t_exam():
    value = {
        name: {t: float(signal(getattr(TYPICAL, t), s)) for t in ("gm", "wm", "csf", "mild", "severe")}
        for name, s in SEQUENCES.items()
    }
    t1w, t2w, dark = value["T1w"], value["T2w"], value["FLAIR"]
    assert t1w["wm"] > t1w["mild"] > t1w["severe"] > t1w["csf"]
    assert t1w["wm"] > t1w["gm"] > t1w["csf"] > 0
    assert t2w["csf"] > t2w["severe"] > t2w["mild"] > t2w["gm"] > t2w["wm"]
    assert min(dark["mild"], dark["severe"]) > 1.15 * dark["gm"] > dark["wm"] > 3 * abs(dark["csf"])
