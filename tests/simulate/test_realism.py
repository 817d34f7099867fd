from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from oligovox.simulate.anatomy.template import template
from oligovox.simulate.comparison import (
    Compared,
    LesionFacts,
    compare,
    distances,
    histogram_distances,
    ks_distance,
    lesion_facts,
    meaning,
)
from oligovox.simulate.realism import HISTOGRAM_EDGES, Row, contrast, histograms, tissue_classes

MM = (1.0, 1.0, 1.0)
SIDE = 64
AXES = np.stack(np.meshgrid(*[np.arange(SIDE) - SIDE / 2] * 3, indexing="ij"))
RADIUS = np.sqrt((AXES**2).sum(0))
BRAIN = RADIUS < 30
TRUTH = {"CSF": RADIUS < 10, "WM": (RADIUS >= 10) & (RADIUS < 21), "GM": (RADIUS >= 21) & BRAIN}
NOTHING = np.zeros_like(BRAIN)
T1W, T2W = {"CSF": 30.0, "GM": 65.0, "WM": 100.0}, {"CSF": 250.0, "GM": 140.0, "WM": 100.0}


def painted(levels: dict[str, float], noise: float = 3.0, seed: int = 0) -> np.ndarray:
    image = sum(levels[name] * mask for name, mask in TRUTH.items())
    return (image + BRAIN * np.random.default_rng(seed).normal(0, noise, BRAIN.shape)).astype(np.float32)


def value(rows: list[Row], quantity: str, sequence: str = "T1w") -> float:
    (found,) = [row.value for row in rows if (row.sequence, row.quantity) == (sequence, quantity)]
    return found


@pytest.mark.parametrize("second", [True, False])
def test_three_levels_are_recovered_under_a_bias_field(second: bool) -> None:
    field = 1 + 0.2 * (AXES[2] / 30) + 0.1 * (AXES[0] / 30) ** 2
    t1w, t2w = painted(T1W) * field, painted(T2W, seed=1) * field
    found = tissue_classes(t1w, t2w if second else None, BRAIN, NOTHING, MM)
    inner = RADIUS < 26  # the outer 3 mm are left out
    for name, mask in TRUTH.items():
        assert (found[name] & ~mask).sum() < 0.02 * found[name].sum(), name
        assert (found[name] & mask).sum() > 0.8 * (mask & inner).sum(), name


def test_lesions_belong_to_no_class_and_a_missing_tissue_is_empty() -> None:
    lesion = np.abs(AXES).max(0) < 14
    found = tissue_classes(painted(T1W), None, BRAIN, lesion, MM)
    assert not any((mask & lesion).any() for mask in found.values())
    assert not any(mask.any() for mask in tissue_classes(painted(T1W), None, NOTHING, NOTHING, MM).values())
    two = np.where(RADIUS < 20, 100.0, 60.0).astype(np.float32)
    found = tissue_classes(two, None, BRAIN, NOTHING, MM)
    np.testing.assert_array_equal(found["WM"], RADIUS < 20)
    assert not (found["GM"] & found["CSF"]).any()


def test_ratios_are_ratios_of_medians_and_the_ring_is_one_to_three_mm() -> None:
    lesion = np.sqrt(((AXES - np.array([0, 0, 15])[:, None, None, None]) ** 2).sum(0)) < 4
    image = painted(T1W)
    image[lesion] -= 40
    rows = contrast({"T1w": image}, TRUTH, {"lesion": lesion}, BRAIN, MM)
    white = np.median(image[TRUTH["WM"]])
    assert value(rows, "GM / WM") == pytest.approx(np.median(image[TRUTH["GM"]]) / white)
    assert value(rows, "lesion / WM, 10 %") == pytest.approx(np.percentile(image[lesion], 10) / white)
    away = ndimage.distance_transform_edt(~lesion)
    ring = BRAIN & (away > 1) & (away <= 3)
    clipped = image[BRAIN].clip(*np.percentile(image[BRAIN], (0.5, 99.5)))
    assert value(rows, "ring contrast") == pytest.approx(
        (image[lesion].mean() - image[ring].mean()) / clipped.std(), rel=1e-5
    )
    assert value(rows, "WM core, % of brain", "anatomy") == pytest.approx(100 * TRUTH["WM"].sum() / BRAIN.sum())


@pytest.mark.parametrize("spacing", [1.0, 3.0])
def test_white_noise_is_measured_and_has_no_grain(spacing: float) -> None:
    image = (100 + np.random.default_rng(2).normal(0, 4, BRAIN.shape)).astype(np.float32)
    rows = contrast({"T1w": image}, {"WM": BRAIN}, {}, BRAIN, (spacing,) * 3)
    assert value(rows, "noise, %") == pytest.approx(4, rel=0.03)
    assert abs(value(rows, "grain")) < (0.03 if spacing == 1 else 0.3)  # the local mean itself makes neighbours unlike


def test_smoothed_noise_has_the_grain_of_its_kernel() -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(3).normal(0, 20, BRAIN.shape), 0.6)
    rows = contrast({"T1w": (100 + noise).astype(np.float32)}, {"WM": BRAIN}, {}, BRAIN, MM)
    kernel = ndimage.gaussian_filter(np.pad(np.ones((1, 1, 1)), 10), 0.6)
    kernel -= ndimage.gaussian_filter(kernel, 2.0)  # what the local mean takes away
    expected = (kernel[1:] * kernel[:-1]).sum() / (kernel**2).sum()
    assert 0.3 < expected < 0.5
    assert value(rows, "grain") == pytest.approx(expected, abs=0.03)


def test_a_known_field_is_read_off_white_matter() -> None:
    field = 1 + 0.3 * AXES[1] / 30
    rows = contrast({"T1w": (100 * field).astype(np.float32)}, {"WM": TRUTH["WM"]}, {}, BRAIN, MM)
    low, high = np.percentile(field[TRUTH["WM"]], (5, 95))
    assert value(rows, "field, 5 %") == pytest.approx(low, abs=0.005)
    assert value(rows, "field, 95 %") == pytest.approx(high, abs=0.005)


@pytest.mark.parametrize("sigma", [1.2, 1.8])
def test_edge_width_is_that_of_the_blur(sigma: float) -> None:
    step = ndimage.gaussian_filter(np.where(AXES[0] < 0, 30.0, 100.0), sigma).astype(np.float32)
    classes = {"CSF": (AXES[0] < -3) & BRAIN, "WM": (AXES[0] > 2) & BRAIN}
    wide = {name: np.asarray(ndimage.binary_dilation(mask, iterations=2)) for name, mask in classes.items()}
    rows = contrast({"T1w": step}, wide, {}, np.ones_like(BRAIN), MM)
    assert value(rows, "edge width, mm") == pytest.approx(2.355 * sigma, rel=0.2)


@settings(max_examples=5, deadline=None)
@given(scale=st.floats(0.01, 100))
def test_the_unit_of_an_image_does_not_matter(scale: float) -> None:
    lesion = np.abs(AXES - 12).max(0) < 3
    image = painted(T1W, noise=6)
    rows, scaled = (
        contrast({"T1w": (image * k).astype(np.float32)}, TRUTH, {"lesion": lesion}, BRAIN, MM) for k in (1.0, scale)
    )
    assert [row.quantity for row in rows] == [row.quantity for row in scaled]
    np.testing.assert_allclose([r.value for r in scaled], [r.value for r in rows], rtol=1e-3, atol=1e-3)


def test_a_map_around_zero_has_a_ring_contrast_only() -> None:
    image = np.random.default_rng(0).normal(0, 10, BRAIN.shape).astype(np.float32) - 1
    rows = contrast({"QSM": image}, TRUTH, {"lesion": np.abs(AXES).max(0) < 5}, BRAIN, MM)
    assert {row.quantity for row in rows if row.sequence == "QSM"} == {"ring contrast"}


def test_histograms_are_relative_to_the_reference_and_sum_to_one() -> None:
    shares = histograms({"T1w": painted(T1W, noise=0)}, TRUTH | {"lesion": NOTHING}, TRUTH["WM"])["T1w"]
    assert set(shares) == {"CSF", "WM", "GM"}
    for name, share in shares.items():
        assert share.sum() == pytest.approx(1)
        assert HISTOGRAM_EDGES[share.argmax()] <= T1W[name] / 100 + 1e-6 < HISTOGRAM_EDGES[share.argmax() + 1]
    (far, *_) = histogram_distances([{"T1w": shares}], [{"T1w": {"WM": shares["GM"]}}, {"T1w": {"WM": shares["WM"]}}])
    assert (far.simulated, far.real) == pytest.approx((0.5, 1.0))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.lists(st.integers(0, 9), min_size=1, max_size=9))
def test_ks_distance_is_the_largest_gap(one: list[int], other: list[int]) -> None:
    a, b = np.array(one), np.array(other)
    assert ks_distance(one, other) == pytest.approx(max(abs((a <= x).mean() - (b <= x).mean()) for x in range(10)))


def test_ks_distance_of_nothing_is_undefined() -> None:
    assert np.isnan(ks_distance([], [1.0]))
    assert ks_distance([1, 2, 3, 4], [3, 4, 5, 6]) == 0.5


def test_verdicts() -> None:
    def side(*values: float) -> list[list[Row]]:
        return [[Row("FLAIR", "noise, %", v)] for v in values]

    for simulated, verdict in (((4.0, 5.0), "inside"), ((1.0, 1.0, 4.0), "overlap"), ((1.0, 2.0), "apart")):
        (row,) = compare(side(*simulated), side(3, 6))
        assert row == Compared("FLAIR", "noise, %", (3, 6), simulated)
        assert row.verdict == verdict
    assert compare(side(1), [])[0].verdict is None
    assert compare([[Row("T2w", "grain", 1)]], side(3)) == []


def test_lesions_are_counted_as_neighbours_across_corners_and_specks_are_not() -> None:
    average = template(3.0)
    mask = np.zeros(average.cover.shape, bool)
    mask[4:6, 4:6, 4:6] = mask[6, 6, 6] = True  # one of 9, across a corner
    mask[12:14, 12:14, 12] = True  # one of 4
    mask[16, 4, 4] = True  # a speck at 1 mm
    facts = lesion_facts(mask, None, MM, average)
    assert facts == LesionFacts((9, 4))
    assert (facts.count, facts.load_ml, facts.largest_share) == (2, 0.013, pytest.approx(9 / 13))
    assert lesion_facts(mask, None, (2.0, 2.0, 2.0), average).volumes_mm3 == pytest.approx((72, 32, 8))
    assert lesion_facts(np.zeros_like(mask), None, MM, average) == LesionFacts(())
    ventricle = average.to_ventricle < 1
    inside = lesion_facts(ventricle, average.cover > 0.5, (3.0,) * 3, average)
    assert max(inside.to_ventricle_mm) < 1
    assert min(inside.nearest_mm) == 0
    assert inside.infratentorial is not None
    assert inside.infratentorial < 0.1


def test_distances_know_near_from_far() -> None:
    rng = np.random.default_rng(0)

    def people(middle: float, number: int) -> list[LesionFacts]:
        return [LesionFacts(tuple(sorted(rng.lognormal(middle, 1, 40) + 3)[::-1])) for _ in range(number)]

    real = people(3, 20)
    near = {d.quantity: d for d in distances(rng, people(3, 8), real)}
    far = {d.quantity: d for d in distances(rng, people(5, 8), real)}
    assert "voxels to ventricles, mm" not in near  # nobody has a brain mask
    volume = "ln lesion volume, mm³"
    assert near[volume].people == 8
    assert near[volume].simulated <= near[volume].real_high < far[volume].simulated
    assert distances(rng, people(3, 8), real[:3]) == []


def test_every_quantity_has_a_meaning() -> None:
    rows = contrast({"T1w": painted(T1W)}, TRUTH, {"lesion": np.abs(AXES - 10).max(0) < 3}, BRAIN, MM)
    assert len({row.quantity for row in rows}) > 12
    for row in rows:
        assert meaning(row.quantity).what not in ("", row.quantity)
