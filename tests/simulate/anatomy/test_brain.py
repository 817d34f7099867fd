import numpy as np
import pytest

from oligovox.errors import SettingsError
from oligovox.simulate.anatomy.brain import draw_anatomy, template

SPACING = 3.0
PER_SIDE = {  # mL; ranges of adults, wider than published means for one person at 3 mm
    "caudate": (2.2, 4.8),
    "putamen": (3.0, 6.0),
    "pallidum": (1.0, 2.4),
    "thalamus": (4.5, 8.5),
    "red_nucleus": (0.15, 0.40),
    "substantia_nigra": (0.3, 0.75),
    "dentate": (0.45, 1.1),
}


def people(count, **how):
    return [draw_anatomy(np.random.default_rng(seed), template(SPACING), **how) for seed in range(count)]


def millilitres(volume):
    return float(volume.sum() * SPACING**3 / 1e3)


def test_fractions_fill_the_brain_and_nothing_else():
    person = draw_anatomy(np.random.default_rng(1), template(SPACING))
    total = person.gm + person.wm + person.csf
    np.testing.assert_allclose(total[person.brain], 1, atol=1e-4)
    assert not total[~person.brain].any()
    assert min(m.min() for m in (person.gm, person.wm, person.csf)) >= 0
    assert not person.brain[[0, -1]].any()
    assert (sum(person.nuclei.values()) <= person.gm + 1e-5).all()
    np.testing.assert_allclose(sum(part.fraction for part in person.parts())[person.brain], 1, atol=1e-4)


def test_volumes_are_those_of_adults():
    drawn = people(4, age=40)
    grey, white, fluid, whole = (
        np.array([millilitres(getattr(p, f)) for p in drawn]) for f in ("gm", "wm", "csf", "brain")
    )
    assert ((whole > 1050) & (whole < 1500)).all()
    assert 560 < grey.mean() < 740
    assert 420 < white.mean() < 560
    assert ((grey / white > 1.1) & (grey / white < 1.55)).all()
    assert ((fluid / whole > 0.08) & (fluid / whole < 0.24)).all()
    for name, (least, most) in PER_SIDE.items():
        assert least < np.mean([millilitres(p.nuclei[name]) for p in drawn]) / 2 < most, name


def test_age_and_atrophy_widen_ventricles_and_thin_the_cortex():
    young, old = people(3, age=25, atrophy=0.0), people(3, age=75, atrophy=1.0)
    ventricles = [np.mean([millilitres(p.csf * (p.to_ventricle < 3)) for p in group]) for group in (young, old)]
    assert 8 < ventricles[0] < 30 < ventricles[1] < 80
    grey = [np.mean([millilitres(p.gm) / millilitres(p.brain) for p in group]) for group in (young, old)]
    assert grey[1] < grey[0] - 0.03


def test_nuclei_lie_where_they_should():
    average = template(SPACING)
    x, y, z = (average.affine[a, a] * np.arange(n) + average.affine[a, 3] for a, n in enumerate(average.white.shape))
    x, y, z = (axis[part] for axis, part in zip((x, y, z), average.nuclei_box, strict=True))
    right = (x > 0)[:, None, None]

    def centre(name):
        weight = average.nuclei[name] * right
        grid = (x[:, None, None], y[None, :, None], z[None, None])
        return np.array([float((weight * g).sum() / weight.sum()) for g in grid])

    np.testing.assert_allclose(centre("dentate"), (13.8, -55.7, -36.4), atol=1.5)  # He et al. 2017
    assert centre("pallidum")[0] < centre("putamen")[0]
    assert centre("caudate")[1] > centre("thalamus")[1] + 20
    assert centre("substantia_nigra")[0] > centre("red_nucleus")[0] + 3
    assert max(volume.max() for volume in average.nuclei.values()) <= 1 + 1e-5


def test_below_the_tentorium_are_the_dentate_and_not_the_thalamus():
    person = draw_anatomy(np.random.default_rng(2), template(SPACING))
    share = {name: np.average(person.below, weights=volume) for name, volume in person.nuclei.items()}
    assert share["dentate"] > 0.98
    assert share["thalamus"] < 0.05
    assert 0.08 < millilitres(person.below * person.brain) / millilitres(person.brain) < 0.2  # cerebellum and stem


def test_the_nuclei_are_no_cortex():
    person = draw_anatomy(np.random.default_rng(2), template(SPACING))
    assert np.average(person.to_cortex, weights=person.nuclei["putamen"]) > 3
    cortex = (person.gm - sum(person.nuclei.values())) > 0.8
    assert np.median(person.to_cortex[cortex]) < 1.5


def test_a_margin_changes_the_grid_and_not_the_person():
    near = draw_anatomy(np.random.default_rng(5), template(SPACING))
    far = draw_anatomy(np.random.default_rng(5), template(SPACING, (20, 8, 8, 44, 74, 8)))
    assert np.subtract(far.gm.shape, near.gm.shape).tolist() == [4, 12, 22]
    first = np.array([4, 0, 22])
    part = tuple(slice(f, f + n) for f, n in zip(first, near.gm.shape, strict=True))
    np.testing.assert_array_equal(far.gm[part], near.gm)
    assert far.gm.sum() == pytest.approx(near.gm.sum())
    voxel = np.argwhere(near.brain)[0]
    np.testing.assert_allclose(far.affine @ [*(voxel + first), 1], near.affine @ [*voxel, 1])
    np.testing.assert_allclose(far.veins[0].points, near.veins[0].points + first)


@pytest.mark.parametrize("margin", [5.0, (8, 8, 8, 8, 8, 2), (8, 8, 8)])
def test_too_small_a_margin_is_refused(margin):
    with pytest.raises(SettingsError, match="margin"):
        template(SPACING, margin)


def test_maps_lie_at_the_same_mm_at_every_spacing():
    centres = []
    for spacing in (2.0, 3.0):
        average = template(spacing)
        voxel = np.average(np.indices(average.cover.shape).reshape(3, -1), axis=1, weights=average.cover.ravel())
        centres.append((average.affine @ [*voxel, 1])[:3])
    np.testing.assert_allclose(centres[0], centres[1], atol=0.15)
    assert abs(centres[0][0]) < 0.1  # the average is symmetric
    ventricles = average.affine @ [*np.argwhere(average.to_ventricle < 1).mean(axis=0), 1]
    np.testing.assert_allclose(ventricles[:3], [0, -17, 10], atol=6)
