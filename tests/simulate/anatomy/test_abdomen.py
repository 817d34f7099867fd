import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from oligovox.simulate.anatomy.abdomen import Abdomen, draw_abdomen

COARSE = Abdomen(spacing=(4.0, 4.0, 8.0))
RANGES = {"liver": "liver_ml", "right_kidney": "kidney_ml", "left_kidney": "kidney_ml", "spleen": "spleen_ml"}


def places(body):
    """Organ → middle in RAS mm."""
    return {
        name: body.affine[:3, :3] @ np.argwhere(body.labels == value).mean(0) + body.affine[:3, 3]
        for name, value in body.classes.items()
    }


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_four_organs_of_the_right_size_on_the_right_sides(seed):
    body = draw_abdomen(np.random.default_rng(seed), COARSE)
    assert body.classes == {"liver": 1, "right_kidney": 2, "left_kidney": 3, "spleen": 4}
    assert set(np.unique(body.labels)) == {0, 1, 2, 3, 4}
    for name, value in body.classes.items():
        volume = np.count_nonzero(body.labels == value) * np.prod(body.spacing) / 1000
        low, high = getattr(COARSE, RANGES[name])
        assert low <= volume <= high, name
        assert body.facts[f"{name}_mL"] == pytest.approx(volume, abs=0.1)
    at = places(body)
    assert at["liver"][0] > 20  # RAS: +x is the patient's right
    assert at["right_kidney"][0] > 20
    assert at["left_kidney"][0] < -20
    assert at["spleen"][0] < -60
    assert min(at["right_kidney"][1], at["left_kidney"][1], at["spleen"][1]) < at["liver"][1]  # kidneys lie behind
    assert at["liver"][2] > at["right_kidney"][2] + 20


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_parts_fill_the_body_and_nothing_else(seed):
    body = draw_abdomen(np.random.default_rng(seed), COARSE)
    total = sum(part.fraction for part in body.parts)
    assert min(part.fraction.min() for part in body.parts) >= 0
    assert total.max() <= 1 + 1e-4
    edge = np.ones(body.body.shape, bool)
    edge[1:-1, 1:-1] = False
    assert total[edge].max() == 0  # air around
    assert np.all(body.body[body.labels > 0])
    assert 0.02 < np.mean(total[body.body] < 0.3) < 0.35  # lungs and gas
    found = {part.tissue: part.fraction for part in body.parts}
    assert found["liver"][body.labels == 1].mean() > 0.6
    assert found["spleen"][body.labels == 4].mean() > 0.85
    kidney = np.isin(body.labels, (2, 3))
    assert (found["kidney_cortex"] + found["kidney_medulla"])[kidney].mean() > 0.8
    assert found["kidney_cortex"][~kidney].sum() < 0.3 * found["kidney_cortex"].sum()


def test_a_fatty_liver_is_liver_and_fat_in_the_share_that_was_drawn():
    lean, fatty = (
        draw_abdomen(np.random.default_rng(1), COARSE.model_copy(update={"liver_fat": (f, f)})) for f in (0.0, 0.3)
    )
    np.testing.assert_array_equal(lean.labels, fatty.labels)
    deep = [{p.tissue: p.fraction for p in b.parts} for b in (lean, fatty)]
    inside = (lean.labels == 1) & (deep[0]["liver"] > 0.99)
    assert deep[0]["fat"][inside].max() < 0.02
    assert deep[1]["fat"][inside].mean() == pytest.approx(0.3, abs=0.04)
    assert fatty.facts["liver_fat"] == 0.3


def test_the_same_stream_makes_the_same_person_and_another_another():
    a, b, c = (draw_abdomen(np.random.default_rng(s), COARSE) for s in (7, 7, 8))
    np.testing.assert_array_equal(a.labels, b.labels)
    assert all(np.array_equal(p.fraction, q.fraction) for p, q in zip(a.parts, b.parts, strict=True))
    assert a.facts != c.facts


def test_volumes_are_met_on_any_grid():
    narrow = {"liver_ml": (1400.0, 1400.0), "spleen_ml": (200.0, 200.0), "kidney_ml": (150.0, 150.0)}
    thick, thin = (
        draw_abdomen(np.random.default_rng(2), COARSE.model_copy(update={"spacing": s, **narrow}))
        for s in ((4.0, 4.0, 8.0), (3.0, 3.0, 5.0))
    )
    for name, target in (("liver", 1400), ("spleen", 200), ("right_kidney", 150), ("left_kidney", 150)):
        assert thick.facts[f"{name}_mL"] == pytest.approx(target, rel=0.06)
        assert thin.facts[f"{name}_mL"] == pytest.approx(target, rel=0.06)
    np.testing.assert_allclose(thin.affine.diagonal(), [3, 3, 5, 1])
    assert thin.spacing == (3.0, 3.0, 5.0)


def test_settings_that_no_body_has_are_refused():
    with pytest.raises(ValidationError, match=r"liver_ml = \(1000.0, 9000.0\); expected 700"):
        Abdomen(liver_ml=(1000.0, 9000.0))
    with pytest.raises(ValidationError, match="expected three sizes from 1 to 10 mm"):
        Abdomen(spacing=(1.0, 1.0, 20.0))
