from typing import get_args

import numpy as np
import pytest

from oligovox.errors import SettingsError
from oligovox.simulate.physics.tissues import (
    FIELDS,
    SOURCES,
    TABLE,
    TissueName,
    between,
    draw_palette,
    typical,
    with_gadolinium,
)

NAMES = get_args(TissueName)
NUCLEI = ("caudate", "putamen", "pallidum", "thalamus", "red_nucleus", "substantia_nigra", "dentate")


@pytest.mark.parametrize("field", FIELDS)
def test_every_tissue_has_possible_values_at_every_field(field):
    for name in NAMES:
        t = typical(name, field)
        assert 0 < t.pd <= 1, name
        assert 0 < t.t2s <= t.t2 <= t.t1, name
        assert t.uptake >= 0, name
        assert 0 <= t.fat <= 1, name
    assert set(draw_palette(np.random.default_rng(0), field)) == set(NAMES)


def test_every_value_has_one_row_and_a_source_and_every_source_is_used():
    assert len({row[:3] for row in TABLE}) == len(TABLE)
    assert {row.source for row in TABLE} == set(SOURCES)
    assert {row.tissue for row in TABLE} == set(NAMES)
    for tissue in NAMES:
        assert {q for t, q, *_ in TABLE if t == tissue} >= {"pd", "t1", "t2", "t2s", "chi"}, tissue


def test_t1_grows_and_transverse_times_shrink_with_the_field():
    for name in (*NUCLEI, "grey_matter", "white_matter", "muscle", "fat", "lesion_severe", "oedema"):
        low, middle, high = (typical(name, field) for field in FIELDS)
        assert low.t1 < middle.t1 < high.t1, name
        assert low.t2 >= middle.t2 > high.t2, name
        assert low.t2s > middle.t2s > high.t2s, name


def test_susceptibility_of_iron_and_of_lost_myelin():
    chi = {name: typical(name, 3.0).chi for name in NAMES}
    assert chi["white_matter"] < chi["lesion_mild"] < chi["lesion_severe"]
    assert chi["rim_weak"] - chi["white_matter"] == 25
    assert chi["rim_strong"] - chi["white_matter"] == 120
    assert (
        chi["thalamus"] < chi["caudate"] < chi["putamen"] < chi["red_nucleus"] < chi["pallidum"] < chi["venous_blood"]
    )
    assert all(typical(name, 7.0).chi == chi[name] for name in NAMES)


def test_iron_of_the_nuclei_grows_with_age_and_shortens_t2s():
    young, old = (draw_palette(np.random.default_rng(5), 3.0, age=age) for age in (20.0, 80.0))
    for name in NUCLEI:
        if name != "thalamus":
            assert young[name].chi < old[name].chi, name
            assert young[name].t2s > old[name].t2s, name
    assert old["putamen"].chi / young["putamen"].chi > old["pallidum"].chi / young["pallidum"].chi  # still filling up
    assert young["white_matter"] == old["white_matter"]
    mean = np.mean([draw_palette(np.random.default_rng(i), 3.0)["pallidum"].chi for i in range(200)])
    assert mean == pytest.approx(typical("pallidum", 3.0).chi, rel=0.05)  # the table is that of a person of 40


def test_palettes_are_reproducible_and_related_tissues_share_their_factors():
    first, again, other = (draw_palette(np.random.default_rng(seed), 7.0) for seed in (1, 1, 2))
    assert first == again
    assert first["white_matter"] != other["white_matter"]
    for mine, yours in (("white_matter", "lesion_mild"), ("grey_matter", "thalamus"), ("fat", "marrow")):
        shift = {name: first[name].t1 / typical(name, 7.0).t1 for name in (mine, yours)}
        assert shift[mine] == pytest.approx(shift[yours])
        assert shift[mine] != 1
    assert first["grey_matter"].t1 / typical("grey_matter", 7.0).t1 != pytest.approx(
        first["white_matter"].t1 / typical("white_matter", 7.0).t1
    )


def test_no_draw_leaves_the_possible():
    for seed in range(60):
        for field, age in ((1.5, 18.0), (3.0, 95.0), (7.0, 18.0)):
            for name, t in draw_palette(np.random.default_rng(seed), field, age=age).items():
                assert 0 < t.pd <= 1, name
                assert 0 < t.t2s <= t.t2 <= t.t1, name
                assert 0 <= t.fat <= 1, name


def test_between_is_a_line():
    mild, severe = typical("lesion_mild", 3.0), typical("lesion_severe", 3.0)
    line = between(mild, severe, np.array([0.0, 0.25, 1.0]))
    np.testing.assert_allclose(line.t2, [mild.t2, 0.75 * mild.t2 + 0.25 * severe.t2, severe.t2])
    np.testing.assert_allclose(line.chi, [mild.chi, 0.75 * mild.chi + 0.25 * severe.chi, severe.chi])


def test_gadolinium_adds_relaxivity_times_concentration():
    plain = typical("enhancing_tumour", 3.0)
    given = with_gadolinium(plain, 2.0, 3.0)
    concentration = 2.0 * plain.uptake
    assert 1000 / given.t1 == pytest.approx(1000 / plain.t1 + 4.97 * concentration)
    assert 1000 / given.t2 == pytest.approx(1000 / plain.t2 + 7.1 * concentration)
    assert with_gadolinium(typical("csf", 3.0), 1.0, 3.0) == typical("csf", 3.0)  # takes up none


@pytest.mark.parametrize("call", [lambda f: typical("csf", f), lambda f: draw_palette(np.random.default_rng(0), f)])
def test_unknown_field_strength(call):
    with pytest.raises(SettingsError, match=r"field strength 4\.7 T .* choose 1\.5, 3 or 7 T"):
        call(4.7)
