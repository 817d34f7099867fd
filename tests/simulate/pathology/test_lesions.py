from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from oligovox.errors import SettingsError
from oligovox.settings import parse
from oligovox.simulate.anatomy.brain import Anatomy, draw_anatomy, template
from oligovox.simulate.pathology.lesion_canvas import Canvas, Lesion
from oligovox.simulate.pathology.lesion_plan import draw_load, draw_volumes
from oligovox.simulate.pathology.lesion_shapes import NEIGHBOURS, Shape, cut
from oligovox.simulate.pathology.lesion_statistics import lesion_statistics
from oligovox.simulate.pathology.lesions import MSLesions, grow_lesions

SPACING = 3.0
STILL = {"enlarging": 0.0, "shrinking": 0.0, "gone": 0.0, "new_lesions": (0, 0)}


@pytest.fixture(scope="module")
def person():
    return draw_anatomy(np.random.default_rng(4), template(SPACING))


def grow(person, load, seed=2, visit=1, **changes):
    chosen = MSLesions(load_ml=(load, load), **changes)
    return grow_lesions(np.random.default_rng(seed), person, chosen, visit=visit)


@pytest.fixture(scope="module")
def lesions(person):
    return grow(person, 20.0, enhancing_people=1.0)


def test_loads_follow_the_patients_and_stay_in_range():
    rng = np.random.default_rng(0)
    loads = np.array([draw_load(rng, 0.3, 52.0) for _ in range(4000)])
    assert loads.min() >= 0.3
    assert loads.max() <= 52.0
    low, median, high = np.percentile(loads, (25, 50, 75))  # patients: 1.8, 13.9, 28.2
    assert 1.2 < low < 5
    assert 10 < median < 18
    assert 20 < high < 32
    narrow = [draw_load(rng, 90.0, 95.0) for _ in range(20)]
    assert 90 <= min(narrow) <= max(narrow) <= 95


def test_volumes_sum_to_the_load_and_are_spread_as_in_the_patients():
    rng = np.random.default_rng(0)
    drawn = [draw_volumes(rng, 1000 * draw_load(rng, 0.3, 52.0)) for _ in range(200)]
    for load in (300.0, 5000.0, 50000.0):
        volumes = draw_volumes(rng, load)
        assert load - 4 < volumes.sum() <= load + 1e-6
        assert volumes.min() >= 4
    logs = np.log(np.concatenate(drawn))
    assert logs.mean() == pytest.approx(3.2, abs=0.25)  # patients: 3.2, 1.4
    assert logs.std() == pytest.approx(1.4, abs=0.15)
    shares = [v.max() / v.sum() for v in drawn]
    assert 0.2 < np.median(shares) < 0.45  # patients: 0.25 to 0.3


@pytest.mark.parametrize("load", [0.5, 12.0, 45.0])
def test_the_mask_has_the_load_asked_for(person, load):
    assert np.count_nonzero(grow(person, load).mask) * SPACING**3 / 1000 == pytest.approx(load, abs=0.028)


def test_no_mask_is_empty(person):
    for seed in range(5):
        assert 1 <= np.count_nonzero(grow(person, 0.05, seed).mask) <= 4  # 50 mm³ in voxels of 27


def test_lesions_lie_in_white_matter_near_the_ventricles_and_are_soft_at_the_border(person, lesions):
    assert lesions.fraction.min() >= 0
    assert np.all(lesions.fraction <= person.wm + person.gm + 1e-5)
    assert lesions.fraction[person.wm < 1e-3].max() < 0.01
    assert person.csf[lesions.mask].max() < 0.5
    white = person.wm > 0.5
    assert np.median(person.to_ventricle[lesions.mask]) < 0.7 * np.median(person.to_ventricle[white])
    assert ((lesions.fraction > 0.05) & (lesions.fraction < 0.95)).sum() > 0.3 * lesions.mask.sum()
    severity = lesions.severity[lesions.mask]
    assert 0 <= severity.min() < severity.max() <= 1
    assert severity.std() > 0.1  # not one brightness for a confluent mass


def test_rows_describe_the_components(person, lesions):
    components, count = ndimage.label(lesions.mask, NEIGHBOURS)
    np.testing.assert_array_equal(components, lesions.instances)
    assert [row["id"] for row in lesions.rows] == list(range(1, count + 1))
    for row in lesions.rows[:: max(count // 5, 1)]:
        own = components == row["id"]
        assert row["volume_mm3"] == pytest.approx(own.sum() * SPACING**3)
        centre = person.affine[:3, :3] @ np.argwhere(own).mean(0) + person.affine[:3, 3]
        np.testing.assert_allclose([row["x_mm"], row["y_mm"], row["z_mm"]], centre, atol=0.01)
        assert row["severity"] == pytest.approx(lesions.severity[own].mean(), abs=1e-3)
        assert row["enhancing_mm3"] == pytest.approx(lesions.enhancing[own].sum() * SPACING**3, abs=0.01)
        below, near = person.below[own].mean() > 0.5, person.to_ventricle[own].min()
        assert (row["region"] == "infratentorial") == below
        assert (row["region"] == "periventricular") == (not below and near <= 1.5 * SPACING)
    assert {row["change"] for row in lesions.rows} == {"first visit"}
    assert 0.4 < np.mean([row["central_vein"] for row in lesions.rows]) < 1
    assert 1 <= sum(row["enhancing_mm3"] > 0 for row in lesions.rows) <= 8


def test_painting_spares_csf_and_veins_and_keeps_every_voxel_full(person, lesions):
    before = person.parts()
    after = lesions.paint(before)
    total = [np.sum([part.fraction for part in parts], axis=0) for parts in (before, after)]
    np.testing.assert_allclose(total[1], total[0], atol=1e-5)
    named = {part.tissue: part for part in before}
    for part in after[: len(before)]:
        if part.tissue in ("csf", "venous_blood"):
            np.testing.assert_array_equal(part.fraction, named[part.tissue].fraction)
    ill = {part.tissue: part.fraction for part in after[len(before) :]}
    whole = ill["lesion_mild"] + ill["lesion_enhancing"]
    room = person.wm + person.gm
    assert np.all(whole <= lesions.fraction + 1e-5)
    assert whole.sum() > 0.95 * np.minimum(lesions.fraction, room).sum()
    assert np.all(lesions.enhancing <= lesions.fraction + 1e-6)


def test_a_brain_without_veins_or_cerebellum_has_lesions_too(person):
    bare = replace(person, veins=(), below=np.zeros_like(person.below))
    found = grow(bare, 5.0)
    assert np.count_nonzero(found.mask) * SPACING**3 / 1000 == pytest.approx(5.0, abs=0.028)
    assert "infratentorial" not in {row["region"] for row in found.rows}


def test_the_first_visit_does_not_know_of_a_second(person):
    first, again = grow(person, 8.0), grow(person, 8.0)
    second = grow(person, 8.0, visit=2, new_lesions=(3, 3))
    np.testing.assert_array_equal(first.fraction, again.fraction)
    assert first.rows == again.rows
    changes = {row["change"] for row in second.rows}
    assert {"stable", "new"} <= changes
    for row in second.rows:
        overlap = first.mask[second.instances == row["id"]].any()
        assert overlap == (row["change"] != "new")


def test_a_visit_without_change_repeats_the_one_before(person):
    first, second = grow(person, 8.0), grow(person, 8.0, visit=2, **STILL)
    np.testing.assert_array_equal(first.mask, second.mask)
    assert {row["change"] for row in second.rows} == {"stable"}
    assert not second.gone


@pytest.mark.parametrize(("fate", "sign"), [("enlarging", 1), ("shrinking", -1)])
def test_lesions_change_as_the_settings_say(person, fate, sign):
    first, second = grow(person, 8.0), grow(person, 8.0, visit=2, **{**STILL, fate: 1.0})
    assert sign * (np.count_nonzero(second.mask) - np.count_nonzero(first.mask)) > 0.1 * np.count_nonzero(first.mask)
    assert fate in {row["change"] for row in second.rows}
    assert "new" not in {row["change"] for row in second.rows}


def test_small_lesions_that_are_gone_are_listed(person):
    first, second = grow(person, 8.0), grow(person, 8.0, visit=2, **{**STILL, "gone": 1.0})
    assert second.gone
    for row in second.gone:
        assert not second.mask[first.instances == row["id"]].any()
    assert len(second.rows) + len(second.gone) == len(first.rows)


def all_white(side=41):
    ones, zeros = np.ones((side,) * 3, np.float32), np.zeros((side,) * 3, np.float32)
    far = np.broadcast_to(np.arange(side, dtype=np.float32)[:, None, None], ones.shape)
    return Anatomy(
        gm=zeros, wm=ones, csf=zeros, brain=ones > 0, to_ventricle=far, to_cortex=far, deep=zeros, below=zeros, limbic=zeros, plexus=zeros,
        nuclei={}, vessels=zeros, veins=(), affine=np.eye(4), spacing=1.0,
    )  # fmt: skip


def ball(anatomy, count):
    middle = (np.indices(anatomy.wm.shape) - 20.0) ** 2
    shape = Shape((slice(0, 41),) * 3, (-np.sqrt(middle.sum(0))).astype(np.float32))
    return Lesion(shape, count, "deep", 0.4, 0.0, False, False, None, edge=1.0, halo=0.0)


def test_rings_are_hollow_and_nodules_are_not():
    anatomy = all_white()
    for kind, middle in (("ring", 0.0), ("nodule", 1.0)):
        canvas = Canvas(anatomy, anatomy.wm, np.zeros_like(anatomy.wm))
        assert canvas.stamp(ball(anatomy, 2109))  # all voxels within 8 mm
        canvas.enhance(1, kind, 1.5)
        assert canvas.enhancing[20, 20, 20] == middle
        assert canvas.enhancing[20, 20, 27] > 0.5
        assert canvas.enhancing[20, 20, 30:].max() == 0
    canvas = Canvas(anatomy, anatomy.wm, np.zeros_like(anatomy.wm))
    canvas.stamp(ball(anatomy, 2109))
    canvas.enhance(1, "open ring", 1.5)
    assert canvas.enhancing[13, 20, 20] == 0  # towards the cortex
    assert canvas.enhancing[27, 20, 20] > 0.5


def test_a_lesion_keeps_off_another_and_a_black_hole_is_worst_in_the_middle():
    anatomy = all_white()
    canvas = Canvas(anatomy, anatomy.wm, np.zeros_like(anatomy.wm))
    assert canvas.stamp(replace(ball(anatomy, 515), severity=0.8, black_hole=True))
    assert canvas.severity[20, 20, 20] > canvas.severity[20, 20, 24] + 0.1
    assert not canvas.stamp(ball(anatomy, 100), crowded=0.03)  # it would wrap the first
    assert canvas.stamp(ball(anatomy, 2000))
    assert ndimage.label(canvas.fraction > 0.5, NEIGHBOURS)[1] == 2


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 200))
def test_a_cut_is_one_piece_of_the_deepest_voxels(seed, count):
    rng = np.random.default_rng(seed)
    depth = ndimage.gaussian_filter(rng.standard_normal((9, 9, 9)), 1.0).astype(np.float32)
    free = rng.random(depth.shape) < 0.7
    level, piece = cut(Shape((slice(0, 9),) * 3, depth), free, count)
    assert 1 <= piece.sum() <= count
    assert np.all(free[piece])
    assert ndimage.label(piece, NEIGHBOURS)[1] == 1
    assert piece[np.unravel_index(np.where(free, depth, -np.inf).argmax(), depth.shape)]
    parts, _ = ndimage.label(free & (depth > level), NEIGHBOURS)
    np.testing.assert_array_equal(piece, parts == parts[piece][0])


def test_nothing_is_cut_from_where_nothing_is_free():
    _, piece = cut(Shape((slice(0, 3),) * 3, np.ones((3, 3, 3), np.float32)), np.zeros((3, 3, 3), bool), 5)
    assert not piece.any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"load_ml": (5.0, 1.0)}, "load_ml = (5.0, 1.0); expected 0.05 <= lowest"),
        ({"severity": (0.2, 1.5)}, "severity = (0.2, 1.5)"),
        ({"enlarging": 0.7, "shrinking": 0.6}, "expected at most 1"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(SettingsError) as caught:
        parse(MSLesions, wrong, "lesions")
    assert message in str(caught.value)


def test_statistics_of_a_known_mask():
    average = template(SPACING)
    mask = np.zeros(average.cover.shape, bool)
    mask[20:22, 30, 25] = True  # 2 voxels of 27 mm³
    mask[30, 30:34, 25] = True  # 4 voxels
    found = lesion_statistics(mask, average.cover > 0.5, SPACING, average)
    assert (found.count, found.load_ml, found.largest_share) == (2, pytest.approx(0.162), pytest.approx(4 / 6))
    np.testing.assert_allclose(found.voxel_distance_mm, average.to_ventricle[mask], rtol=1e-4, atol=1e-4)
    assert found.nearest_mm[0] == pytest.approx(average.to_ventricle[20:22, 30, 25].min(), rel=1e-4)
    half = average.cover.shape[0] / 2
    assert found.left == np.mean(np.argwhere(mask)[:, 0] < half)


@pytest.mark.real
def test_simulated_masks_are_as_near_to_real_ones_as_real_ones_are_to_each_other(real_data):
    """Kolmogorov-Smirnov distances at 2 mm would see the voxel, so volumes are compared as they are drawn."""
    from scipy.stats import ks_2samp

    from oligovox.simulate.pathology.implants import read_donors

    donors = read_donors(real_data / "openms" / "lesion_masks_mni")
    real = [np.bincount(ndimage.label(d.mask, NEIGHBOURS)[0].ravel())[1:] * d.voxel_mm3 for d in donors]
    real = [v[v >= 3] for v in real]
    rng = np.random.default_rng(1)
    drawn = [draw_volumes(rng, 1000 * draw_load(rng, 0.3, 52.0)) for _ in range(400)]
    for of, most in ((len, 0.25), (np.sum, 0.25), (lambda v: v.max() / v.sum(), 0.3)):
        assert ks_2samp([of(v) for v in real], [of(v) for v in drawn]).statistic < most
    assert ks_2samp(np.concatenate(real), np.concatenate(drawn)).statistic < 0.1
