from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage

from oligovox.simulate.anatomy.brain import draw_anatomy, template
from oligovox.simulate.anatomy.head import Head, draw_head

MARGIN = (25.0, 25.0, 30.0, 40.0, 75.0, 25.0)


def person(seed=0, margin=MARGIN, spacing=4.0):
    return draw_anatomy(np.random.default_rng(seed), template(spacing, margin))


def cropped(anatomy, box):
    volumes = {f.name: getattr(anatomy, f.name) for f in fields(anatomy)}
    cut = {name: v[box] for name, v in volumes.items() if isinstance(v, np.ndarray) and v.ndim == 3}
    affine = anatomy.affine.copy()
    affine[:3, 3] += [s.start * anatomy.spacing for s in box]
    return replace(anatomy, **cut, nuclei={}, affine=affine)


def by_tissue(parts):
    return {part.tissue: part.fraction for part in parts}


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_head_is_around_the_brain_and_never_in_it(seed):
    anatomy = person(seed)
    parts = draw_head(np.random.default_rng(seed), anatomy, Head())
    total = sum(part.fraction for part in parts)
    assert min(part.fraction.min() for part in parts) >= 0
    assert total.max() <= 1 + 1e-4
    assert total[anatomy.brain].max() == 0
    next_to = ndimage.binary_dilation(anatomy.brain) & ~anatomy.brain
    assert total[next_to].mean() > 0.97  # no gap of air between brain and skull
    assert np.all(total[:, :, -1] == 0)  # air above the head
    assert np.all(total[[0, -1]][:, :2] == 0)  # and behind it
    assert {part.tissue for part in parts} >= {
        "bone",
        "marrow",
        "fat",
        "skin",
        "muscle",
        "csf",
        "vitreous",
        "venous_blood",
    }


def test_from_the_brain_outwards_come_csf_bone_fat_and_skin():
    anatomy = person(3, spacing=2.0)
    found = by_tissue(draw_head(np.random.default_rng(3), anatomy, Head()))
    away = ndimage.distance_transform_edt(~anatomy.brain, sampling=2.0)
    top = np.zeros_like(anatomy.brain)
    top[:, :, np.argwhere(anatomy.brain)[:, 2].max() - 20 :] = True  # the upper 4 cm, where there is no face
    mean = [np.average(away[top], weights=found[t][top]) for t in ("csf", "bone", "fat", "skin")]
    assert mean == sorted(mean)
    across = found["bone"][top].sum() + found["marrow"][top].sum()
    surface = np.count_nonzero((away[top] > 2) & (away[top] <= 6)) / 2  # voxels a layer of 2 mm has
    assert 2 < 2 * across / surface < 12  # mm of bone on average


def test_eyes_are_two_balls_of_24_mm_in_front_and_air_is_left_in_the_sinuses():
    anatomy = person(1, spacing=2.0)
    parts = draw_head(np.random.default_rng(1), anatomy, Head())
    vitreous = by_tissue(parts)["vitreous"]
    eyes, count = ndimage.label(vitreous > 0.5)
    assert count == 2
    volumes = np.bincount(eyes.ravel())[1:] * 8 / 1000
    assert np.all((volumes > 3.5) & (volumes < 8.5))  # mL; a ball of 24 mm with its wall has 7.2
    brain = np.argwhere(anatomy.brain)
    eye = np.argwhere(vitreous > 0.5)
    assert eye[:, 1].mean() > brain[:, 1].mean() + 20
    assert eye[:, 2].mean() < brain[:, 2].mean() - 10
    solid = sum(part.fraction for part in parts) + anatomy.brain
    inside = ndimage.binary_fill_holes(solid > 0.5)
    cavities = inside & (solid < 0.3)
    assert 5 < cavities.sum() * 8 / 1000 < 150  # mL of air


def test_the_same_stream_makes_the_same_head_and_another_another():
    anatomy = person(2)
    a, b, c = (by_tissue(draw_head(np.random.default_rng(s), anatomy, Head())) for s in (5, 5, 6))
    assert all(np.array_equal(a[t], b[t]) for t in a)
    assert np.abs(a["bone"] - c["bone"]).max() > 0.1


def test_a_small_grid_cuts_the_head_off():
    tight = person(4, margin=(8.0,) * 6, spacing=4.0)
    total = sum(part.fraction for part in draw_head(np.random.default_rng(4), tight, Head()))
    assert total[:, :, 0].max() > 0.9  # the neck goes on below
    whole = person(4)
    slab = cropped(
        whole, tuple(slice(0, n) if a < 2 else slice(n // 2, n // 2 + 8) for a, n in enumerate(whole.brain.shape))
    )
    total = sum(part.fraction for part in draw_head(np.random.default_rng(4), slab, Head()))
    assert total.shape == slab.brain.shape
    assert total[slab.brain].max() == 0


def test_thicker_settings_make_a_thicker_skull():
    anatomy = person(6)
    thin, thick = (Head(skull_mm=(mm, mm), uneven=0.0) for mm in (3.0, 9.0))
    bone = [by_tissue(draw_head(np.random.default_rng(0), anatomy, s))["marrow"].sum() for s in (thin, thick)]
    assert bone[1] > 1.8 * bone[0]


def test_ranges_must_ascend():
    with pytest.raises(ValidationError, match=r"fat_mm = \(5.0, 2.0\); expected 0 < lowest ≤ highest"):
        Head(fat_mm=(5.0, 2.0))


@pytest.mark.parametrize(
    ("name", "most"),
    [("csf_mm", 10), ("skull_mm", 15), ("marrow", 1), ("fat_mm", 15), ("skin_mm", 5), ("mucosa_mm", 10)],
)
def test_no_layer_is_thicker_than_a_person_has_it(name, most):
    assert getattr(Head(**{name: (most / 2, most)}), name) == (most / 2, most)
    with pytest.raises(ValidationError, match=rf"{name} = .*; expected 0 < lowest ≤ highest ≤ {most}; change it"):
        Head(**{name: (most / 2, most + 0.1)})
