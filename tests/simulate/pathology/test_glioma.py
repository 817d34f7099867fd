import numpy as np
import pytest
from scipy import ndimage

from oligovox.errors import SettingsError
from oligovox.settings import parse
from oligovox.simulate.anatomy.brain import draw_anatomy, template
from oligovox.simulate.anatomy.deformation import jacobian
from oligovox.simulate.pathology.glioma import Glioma, grow_glioma
from oligovox.simulate.pathology.mass_effect import displaced, mass_effect
from oligovox.simulate.pathology.tumour_shapes import arrival, coarsen, distance_from, refine
from oligovox.simulate.physics.scene import mix
from oligovox.simulate.physics.sequences import protocol, signal
from oligovox.simulate.physics.tissues import typical

TISSUE = {
    "necrosis": 1,
    "solid_tumour": 1,
    "oedema": 2,
    "enhancing_tumour": 3,
    "resection_cavity": 4,
    "blood_products": 4,
}
HIGH = Glioma(low_grade=0, multifocal=0, satellites=0)
KINDS = {
    "high grade": HIGH,
    "low grade": Glioma(low_grade=1, multifocal=0),
    "many": Glioma(low_grade=0, multifocal=1, satellites=1),
    "treated": Glioma(post_treatment=True),
}


@pytest.fixture(scope="module")
def person():
    return draw_anatomy(np.random.default_rng(4), template(3.0))


@pytest.fixture(scope="module")
def grown(person):
    return {
        name: [grow_glioma(np.random.default_rng(seed), person, settings) for seed in range(4)]
        for name, settings in KINDS.items()
    }


def test_a_front_takes_the_least_cost_path():
    slow = np.ones((15, 15, 15), np.float32)
    slow[8:10] = 5.0
    start = np.full(slow.shape, np.inf, np.float32)
    start[2, 7, 7] = 0
    time = arrival(slow, start, 2.0, 400.0)
    assert time[7, 7, 7] == pytest.approx(10.0)
    assert time[10, 7, 7] == pytest.approx(10 + 2 * (3 + 5 + 3))  # each step at the mean slowness of its ends
    slow[8:10, :, 0] = 1.0  # a gap in the wall
    assert arrival(slow, start, 2.0, 400.0)[10, 7, 0] < time[10, 7, 0] - 10
    far = distance_from(np.array([2, 7, 7]), slow.shape, 2.0)[:8]
    assert np.all(time[:8] >= far - 1e-4)
    assert np.all(time[:8] <= 1.129 * far + 1e-4)


@pytest.mark.parametrize("factor", [2, 3])
def test_the_coarse_grid_keeps_means_and_the_fine_one_gets_lines_back(factor):
    x, y, z = np.meshgrid(np.arange(12), np.arange(18), np.arange(24), indexing="ij")
    line = (2 * x - y + 0.5 * z).astype(np.float32)
    coarse = coarsen(line, factor)
    assert coarse.mean() == pytest.approx(line.mean())
    inner = (slice(factor, -factor),) * 3
    np.testing.assert_allclose(refine(coarse, factor, line.shape)[inner], line[inner], atol=1e-4)
    assert refine(coarsen(line[:-1], factor), factor, (11, 18, 24)).shape == (11, 18, 24)


@pytest.mark.parametrize("peak", [2.0, 9.0, -4.0])
def test_mass_effect_points_away_from_the_core_and_never_folds(person, peak):
    centre = np.argwhere((person.wm > 0.9) & (person.to_ventricle > 12) & (person.to_cortex > 6))[0]
    far = distance_from(centre, person.wm.shape, 3.0)
    where = mass_effect(person, (far < 22).astype(np.float32), 1, peak)
    assert jacobian(where).min() > 0
    moved = np.indices(far.shape) - where  # what is here has come this far, voxels
    length = 3 * np.linalg.norm(moved, axis=0)
    assert 0.4 * abs(peak) < length.max() <= abs(peak) + 1e-3
    assert length[~person.brain].max() < 0.15 * abs(peak)  # the skull stays
    outward = np.indices(far.shape) - centre[:, None, None, None]
    strong = length > 0.3 * length.max()
    along = (moved * outward).sum(0)[strong] / np.linalg.norm(moved, axis=0)[strong] / (far[strong] / 3 + 1e-6)
    assert np.median(np.sign(peak) * along) > 0.9
    assert length[far > 100].max(initial=0) < 1e-3


def test_a_large_core_on_one_side_moves_the_middle_to_the_other(person):
    place = np.array([30.0, 0.0, 15.0])
    centre = (place - person.affine[:3, 3]) / 3.0
    core = (distance_from(centre, person.wm.shape, 3.0) < 24).astype(np.float32)
    after = displaced(person, mass_effect(person, core, 1, 9.0))
    x = np.arange(core.shape[0]) * 3.0 + person.affine[0, 3]
    middle = (np.abs(x) < 20)[:, None, None] & (distance_from(centre, core.shape, 3.0) < 45)

    def mean_x(anatomy):
        ventricles = anatomy.csf * (anatomy.to_ventricle < 2) * middle
        return (ventricles.sum((1, 2)) * x).sum() / ventricles.sum()

    assert mean_x(after) < mean_x(person) - 0.7  # mm
    np.testing.assert_array_equal(after.wm[x < -60], person.wm[x < -60])
    np.testing.assert_allclose((after.wm + after.gm + after.csf)[after.brain].mean(), 1, atol=0.01)


@pytest.mark.parametrize("kind", list(KINDS))
def test_labels_components_and_rows_agree(person, grown, kind):
    for tumour in grown[kind]:
        labels, rows = tumour.labels, tumour.rows
        assert labels.dtype == np.uint8
        assert labels.any()
        assert set(np.unique(labels)) <= {0, *tumour.classes.values()}
        assert not labels[~tumour.anatomy.brain].any()
        np.testing.assert_array_equal(tumour.instances > 0, labels > 0)
        assert ndimage.label(labels > 0, np.ones((3, 3, 3)))[1] == len(rows)
        volumes = [row["volume_mm3"] for row in rows]
        assert volumes == sorted(volumes, reverse=True)
        for row in rows:
            mine = tumour.instances == row["id"]
            assert row["volume_mm3"] == mine.sum() * 27
            for name, value in tumour.classes.items():
                assert row[f"{name}_mm3"] == (labels[mine] == value).sum() * 27
        x, y, z = np.argwhere(tumour.instances == 1).mean(0) * 3 + tumour.anatomy.affine[:3, 3]
        assert (rows[0]["x_mm"], rows[0]["y_mm"], rows[0]["z_mm"]) == pytest.approx((x, y, z), abs=0.01)


@pytest.mark.parametrize("kind", list(KINDS))
def test_labels_are_what_is_painted(grown, kind):
    for tumour in grown[kind]:
        before = tumour.anatomy.parts()
        after = tumour.paint(before)
        full, painted = (sum(part.fraction for part in parts) for parts in (before, after))
        np.testing.assert_allclose(painted, full, atol=1e-4)
        by_class = np.zeros((5, *tumour.labels.shape))
        for part in after:
            assert part.fraction.min() > -1e-5
            if part.tissue in TISSUE:
                by_class[TISSUE[part.tissue]] += part.fraction
        whole = by_class.sum(0) > 0.5
        by_class[3][by_class[3] <= 0.351] = 0  # a thin line of enhancement is seen, not labelled
        expected = np.where(whole, by_class.argmax(0), 0)
        assert (expected != tumour.labels).sum() <= 0.005 * (tumour.labels > 0).sum()  # ties
        blood = [part.fraction.sum() for parts in (before, after) for part in parts if part.tissue == "venous_blood"]
        assert blood[0] == blood[1]


def test_high_grade_has_a_core_of_necrosis_and_rim_inside_oedema_of_white_matter(grown):
    for tumour in grown["high grade"]:
        assert tumour.classes == {"NCR": 1, "ED": 2, "ET": 3}
        labels = tumour.labels
        assert {2, 3} <= set(np.unique(labels))
        assert (tumour.anatomy.wm[labels == 2] > 0.5).mean() > 0.7  # the rest is cortex next to the core
        rim = labels == 3
        if (labels == 1).sum() > 100:  # necrosis lies deeper than the rim
            depth = ndimage.distance_transform_edt((labels == 1) | rim)
            assert depth[labels == 1].mean() > depth[rim].mean()
        core = ndimage.binary_dilation((labels == 1) | rim)
        assert ((labels == 2) & core).any()  # oedema begins at the core


def test_low_grade_does_not_enhance(grown):
    for tumour in grown["low grade"]:
        assert set(np.unique(tumour.labels)) <= {0, 1, 2}
        assert (tumour.labels == 1).any()


def test_further_tumours_do_not_touch_and_some_are_tiny(grown):
    assert all(len(tumour.rows) >= 2 for tumour in grown["many"])
    assert min(row["volume_mm3"] for tumour in grown["many"] for row in tumour.rows) < 500


def test_after_treatment_there_is_a_cavity_or_residue_as_asked(person, grown):
    assert all(t.classes == {"NETC": 1, "SNFH": 2, "ET": 3, "RC": 4} for t in grown["treated"])
    assert sum((t.labels == 4).any() for t in grown["treated"]) >= 3
    for seed in range(2):
        clean = Glioma(post_treatment=True, cavity=1, residual=0, satellites=0, multifocal=0)
        tumour = grow_glioma(np.random.default_rng(seed), person, clean)
        assert (tumour.labels == 4).any()
        assert not (tumour.labels == 3).any()
        (line,) = [p.fraction for p in tumour.tissue if p.tissue == "enhancing_tumour"]
        assert 0.1 < line.max() < 0.5  # the thin line along the wall is there, and not labelled
        intact = Glioma(post_treatment=True, cavity=0, residual=1)
        assert not (grow_glioma(np.random.default_rng(seed), person, intact).labels == 4).any()


def test_ventricles_stay_open(grown):
    for tumour in grown["high grade"] + grown["treated"]:
        ventricle = (tumour.anatomy.to_ventricle < 1) & (tumour.anatomy.csf > 0.8)
        assert ventricle.sum() > 100
        assert not tumour.labels[ventricle].any()


def test_the_same_stream_gives_the_same_tumour_and_volumes_follow_the_settings(person, grown):
    again = grow_glioma(np.random.default_rng(1), person, HIGH)
    np.testing.assert_array_equal(again.labels, grown["high grade"][1].labels)
    np.testing.assert_array_equal(again.anatomy.wm, grown["high grade"][1].anatomy.wm)
    small, large = (
        grow_glioma(np.random.default_rng(3), person, HIGH.model_copy(update={"core_ml": (v, v)})) for v in (3.0, 60.0)
    )
    cores = [np.isin(t.labels, (1, 3)).sum() * 27 / 1000 for t in (small, large)]
    assert 1.5 < cores[0] < 4.0
    assert 42 < cores[1] < 70


def test_another_spacing_gives_a_tumour_of_the_same_size():
    person = draw_anatomy(np.random.default_rng(4), template(2.0))
    fixed = HIGH.model_copy(update={"core_ml": (25.0, 25.0), "oedema_ml": (40.0, 40.0)})
    tumour = grow_glioma(np.random.default_rng(0), person, fixed)
    assert 18 < np.isin(tumour.labels, (1, 3)).sum() * 8 / 1000 < 29
    assert 20 < (tumour.labels == 2).sum() * 8 / 1000 < 60


def test_images_look_as_a_radiologist_expects(grown):
    rims = []
    for tumour in grown["high grade"]:
        parts = tumour.paint(tumour.anatomy.parts())
        palette = {part.tissue: typical(part.tissue, 3.0) for part in parts}
        palette |= {part.towards: typical(part.towards, 3.0) for part in parts if part.towards}
        flair, contrast, t2 = (
            np.abs(mix(parts, palette, lambda tissue, m=m: signal(tissue, protocol(m, 3.0), 3.0)))
            for m in ("FLAIR", "T1wGd", "T2w")
        )
        plain = tumour.labels == 0
        white, grey = plain & (tumour.anatomy.wm > 0.95), plain & (tumour.anatomy.gm > 0.9)
        oedema = tumour.labels == 2
        assert np.median(flair[oedema]) > np.median(flair[grey]) > 0.9 * np.median(flair[white])
        assert np.median(t2[oedema]) > 1.3 * np.median(t2[white])
        rims.append(np.median(contrast[tumour.labels == 3]) / np.median(contrast[white]))
        if (tumour.labels == 1).sum() > 100:
            assert np.median(contrast[tumour.labels == 1]) < 0.85 * np.median(contrast[white])
    assert min(rims) > 1.05  # a thin rim shares its voxels of 3 mm with necrosis
    assert np.median(rims) > 1.3


def test_a_range_the_wrong_way_round_is_refused():
    with pytest.raises(SettingsError, match=r"core_ml = \(50.0, 10.0\); expected 0.2 <= lowest <= highest <= 150.0"):
        parse(Glioma, {"core_ml": (50.0, 10.0)}, "here")
