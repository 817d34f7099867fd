from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from oligovox.errors import SettingsError
from oligovox.settings import parse
from oligovox.simulate.pathology.rims import Rims, draw_rims
from oligovox.simulate.physics.scene import Part, mix, paint
from oligovox.simulate.physics.tissues import typical

ALWAYS = {"people": 1.0, "share": (1.0, 1.0), "core_mimics": 0.0, "vein_mimics": 0.0}
NEVER = {"people": 0.0}
SMALL = 4  # number of the lesion that is too small to be graded


@pytest.fixture(scope="module")
def scene():
    """White matter at 1 mm with three lesions of 5 to 8 mm, a band of CSF that cuts the second, and a lesion of 2 mm."""
    shape = (72, 40, 40)
    at = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    fraction = np.zeros(shape, np.float32)
    for middle, radius in (((12, 20, 20), 8), ((33, 20, 20), 6), ((51, 20, 20), 5), ((64, 20, 20), 2)):
        r = np.linalg.norm(at - np.array(middle)[:, None, None, None], axis=0)
        fraction = np.maximum(fraction, np.clip(radius - r + 0.5, 0, 1)).astype(np.float32)
    csf = ((at[1] >= 24) & (np.abs(at[0] - 33) < 9)).astype(np.float32)
    fraction *= 1 - csf
    instances = ndimage.label(fraction > 0.5, np.ones((3, 3, 3)))[0].astype(np.int32)
    lesions = SimpleNamespace(
        fraction=fraction, enhancing=np.zeros_like(fraction), instances=instances, mask=fraction > 0.5
    )
    return SimpleNamespace(csf=csf, spacing=1.0), lesions


def draw(scene, seed=0, **settings):
    return draw_rims(np.random.default_rng(seed), *scene, Rims(**settings))


def depth(lesions):
    mask = lesions.mask
    return ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)


def test_rims_follow_the_border_from_inside_and_leave_the_core(scene):
    _, lesions = scene
    found = draw(scene, **ALWAYS, partial=0.0, thickness_mm=(1.5, 1.5), beyond_mm=(0.0, 0.0))
    assert [found.grades[k]["rim"] for k in (1, 2, 3, SMALL)] == [1, 1, 1, 0]
    far = depth(lesions)
    assert found.fraction[(far > 4) | (far < -1.5)].max() < 0.05
    assert found.fraction[(far >= 1) & (far <= 2) & (lesions.instances == 1)].mean() > 0.6
    volume = found.fraction[lesions.instances == 1].sum()
    assert volume == pytest.approx(4 / 3 * np.pi * (8**3 - 6.5**3), rel=0.15)
    assert not found.fraction[:, 24:][scene[0].csf[:, 24:] == 1].any()
    assert not found.solid.any()
    assert not found.veins.any()


def test_lesions_that_do_not_qualify_or_enhance_have_no_rim(scene):
    anatomy, lesions = scene
    assert not any(grade["rim"] for grade in draw(scene, **NEVER).grades.values())
    active = SimpleNamespace(**vars(lesions) | {"enhancing": np.where(lesions.instances == 1, lesions.fraction, 0)})
    found = draw((anatomy, active), **ALWAYS)
    assert [found.grades[k]["rim"] for k in (1, 2, 3)] == [0, 1, 1]
    assert not found.fraction[lesions.instances == 1].any()
    assert set(found.grades) == {1, 2, 3, SMALL}


@pytest.mark.parametrize("coverage", [0.5, 0.8])
def test_a_partial_rim_covers_what_its_grade_says(scene, coverage):
    closed, arcs = (
        draw(
            scene,
            **ALWAYS,
            partial=partial,
            coverage=(coverage, coverage),
            thickness_mm=(1.5, 1.5),
            beyond_mm=(0.2, 0.2),
        )
        for partial in (0.0, 1.0)
    )
    for number in (1, 2, 3):
        near = ndimage.binary_dilation(scene[1].instances == number, iterations=2)
        measured = arcs.fraction[near].sum() / closed.fraction[near].sum()
        assert measured == pytest.approx(arcs.grades[number]["coverage"], abs=0.02)
        assert measured == pytest.approx(coverage, abs=0.08)
        assert closed.grades[number]["coverage"] == 1


def test_as_many_rims_as_asked_for_and_more_often_large_ones():
    instances = np.zeros((40, 40, 10), np.int32)  # at 3 mm, so that it is quick: 16 lesions, every other one larger
    for k in range(16):
        x, y = 10 * (k // 4) + 2, 10 * (k % 4) + 2
        instances[x : x + 2 + 2 * (k % 2), y : y + 3, 4:7] = k + 1
    fraction = (instances > 0).astype(np.float32)
    lesions = SimpleNamespace(fraction=fraction, enhancing=0 * fraction, instances=instances)
    crowd = (SimpleNamespace(csf=0 * fraction, spacing=3.0), lesions)
    people = [draw(crowd, seed, people=0.6, share=(0.2, 0.4)).grades for seed in range(60)]
    rims = np.array([[grades[k]["rim"] for k in range(1, 17)] for grades in people])
    assert rims.mean() == pytest.approx(0.6 * 0.3, abs=0.06)
    assert rims.any(axis=1).mean() == pytest.approx(0.6, abs=0.12)
    assert rims[:, 1::2].sum() > 1.2 * rims[:, ::2].sum()
    mimics = [grades[k]["mimic"] for grades in people for k in range(1, 17) if not grades[k]["rim"]]
    assert np.mean([m == "core" for m in mimics]) == pytest.approx(0.12, abs=0.035)
    assert np.mean([m == "vein" for m in mimics]) == pytest.approx(0.06, abs=0.03)


def test_iron_throughout_lies_in_the_lesion_and_veins_along_its_border(scene):
    _, lesions = scene
    cores = draw(scene, **NEVER, core_mimics=1.0, vein_mimics=0.0)
    assert not cores.fraction.any()
    assert cores.solid[lesions.instances == 1].mean() > 0.5
    assert cores.solid[~ndimage.binary_dilation(lesions.mask)].max() < 0.01
    veins = draw(scene, **NEVER, core_mimics=0.0, vein_mimics=1.0)
    assert all(veins.grades[k]["mimic"] == "vein" for k in (1, 2, 3))
    touched = [np.abs(depth(lesions)[near & (veins.veins > 0.3)]).min() for near in _around(lesions)]
    assert max(touched) <= 2
    assert veins.veins[depth(lesions) > 3.5].max() < 0.5


def test_iron_can_reach_the_border_and_large_lesions_can_be_preferred(scene):
    """Settings that are not written where they are the usual ones, so that cohorts of before stay what they were."""
    _, lesions = scene
    fading, even = (
        draw(scene, **NEVER, core_mimics=1.0, vein_mimics=0.0, **more)
        for more in ({"core_fade_mm": (3, 3)}, {"core_fade_mm": (0, 0)})
    )
    border = (lesions.instances == 1) & (depth(lesions) == 1)
    assert even.solid[border].mean() > fading.solid[border].mean() + 0.2
    often = [draw(scene, seed, people=1.0, share=(0.34, 0.34), volume_power=2.0).grades for seed in range(40)]
    seldom = [draw(scene, seed, people=1.0, share=(0.34, 0.34), volume_power=0.0).grades for seed in range(40)]
    assert sum(g[1]["rim"] for g in often) > 1.5 * sum(g[1]["rim"] for g in seldom)
    assert "core_fade_mm" not in Rims().model_dump()
    assert Rims(volume_power=1.0).model_dump()["volume_power"] == 1.0


def _around(lesions):
    return [ndimage.binary_dilation(lesions.instances == k, iterations=3) for k in (1, 2, 3)]


def test_painted_rims_are_bright_on_susceptibility_alone_and_fractions_stay_whole(scene):
    anatomy, lesions = scene
    found = draw(scene, **ALWAYS, strength=(0.8, 0.8))
    brain = (Part("white_matter", 1 - anatomy.csf), Part("csf", anatomy.csf))
    parts = paint(brain, Part("lesion_mild", lesions.fraction), sparing=("csf",))
    painted = found.paint(parts)
    total = np.sum([part.fraction for part in painted], axis=0)
    np.testing.assert_allclose(total, 1, atol=1e-5)
    palette = {part.tissue: typical(part.tissue, 3.0) for part in painted} | {"rim_strong": typical("rim_strong", 3.0)}
    rim, core = found.fraction > 0.8, depth(lesions) > 4
    before, after = (mix(p, palette, lambda tissue: np.asarray(tissue.chi)) for p in (parts, painted))
    assert after[rim].mean() > before[rim].mean() + 40
    np.testing.assert_allclose(after[core], before[core], atol=1)
    t2 = mix(painted, palette, lambda tissue: np.asarray(tissue.t2))
    assert t2[rim].mean() == pytest.approx(float(typical("lesion_mild", 3.0).t2), rel=0.12)


def test_the_same_stream_gives_the_same_rims(scene):
    first, same, other = (draw(scene, seed, **ALWAYS) for seed in (1, 1, 2))
    assert np.array_equal(first.fraction, same.fraction)
    assert first.grades == same.grades
    assert not np.array_equal(first.fraction, other.fraction)


def test_impossible_settings_are_refused_in_one_line():
    with pytest.raises(SettingsError, match=r"coverage = \(0.9, 0.5\); expected 0.0 <= lowest <= highest <= 1.0"):
        parse(Rims, {"coverage": (0.9, 0.5)}, "rims")
    with pytest.raises(SettingsError, match=r"core_mimics \+ vein_mimics"):
        parse(Rims, {"core_mimics": 0.8, "vein_mimics": 0.4}, "rims")


def test_a_lesion_without_room_for_a_rim_has_none():
    """One voxel of 4 mm that is all fluid but for its lesion, as coarse simulations have."""
    fraction = np.zeros((12, 12, 12), np.float32)
    fraction[6, 6, 6] = 0.6
    lesions = SimpleNamespace(
        fraction=fraction,
        enhancing=np.zeros_like(fraction),
        instances=(fraction > 0.5).astype(np.int32),
        mask=fraction > 0.5,
    )
    anatomy = SimpleNamespace(csf=np.ones_like(fraction), spacing=4.0)
    settings = Rims(**ALWAYS, partial=1.0, volume_mm3=(1.0, 1e5))
    found = draw_rims(np.random.default_rng(0), anatomy, lesions, settings)
    assert found.grades[1]["rim"] == 0
    assert not found.fraction.any()
